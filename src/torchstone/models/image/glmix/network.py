"""GLNet and its variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from torchstone.errors import CallError, unknown_name
from torchstone.layers.backbone import Backbone
from torchstone.layers.checkpointing import BlockSequence
from torchstone.layers.checks import check_images
from torchstone.models.image.glmix.blocks import (
    AttentionBlock,
    GLMixBlock,
    Layer,
    ResidualDepthwiseConv,
    TokenAttentionBlock,
    init_weights,
)
from torchstone.models.pretrained import Convert
from torchstone.models.registry import build_image_model, register_model

T = TypeVar("T")

BLOCKS = ("glmix", "mha_nchw", "mha")
DOWNSAMPLE_STYLES = ("ovlp", "non_ovlp")
TRANSITION_LAYOUTS = ("proj.norm", "norm.proj")


class Stage(nn.Module):
    """Blocks of one resolution: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = BlockSequence(*blocks)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.blocks(x)


class GLNet(Backbone):
    """The GLNet network.

    Args:
        dims: channels of each stage, multiples of ``head_dim``.
        depths: blocks of each stage.
        mlp_ratios: hidden channels of the feed-forward networks as a multiple; one for all stages, or one per stage.
        head_dim: channels of an attention head.
        mixing_modes: the blocks of all stages, or of each: ``glmix``, ``mha_nchw``, ``mha``, or several of them that
            take turns, joined by dots: ``glmix.mha_nchw``.
        num_slots: slots of a GLMix block, a square number where they are pooled; 0 for convolution alone.
        slot_init: ``ada_avgpool`` (pooled from the block's input) or ``param`` (learned).
        local_dw_ks: side of the GLMix blocks' kernel, odd; 0 for slots alone; one for all stages, or one per stage.
        cpe_ks: side of the position encoding's kernel in all blocks but ``mha``, odd; 0 for none.
        mlp_dw: a depthwise convolution within the feed-forward networks of all blocks but ``mha``.
        layerscale: start value of the layer scales; 0 or less for none.
        downsample_style: ``ovlp`` (overlapping 3x3 convolutions) or ``non_ovlp`` (of the stride's size).
        transition_layout: between stages: ``proj.norm`` (convolution, then norm) or ``norm.proj``.
        dual_patch_norm: a LayerNorm over the image's channels before an overlapping stem.
        stem_stride: 4, or 2 for small images.
        norm_layer: of stem, transitions and head, called with the channels; the blocks' own are LayerNorms.
        in_chans: channels of the image.
        num_classes: classes; 0 for no classifier.
        global_pool: ``avg``, ``max``, ``avgmax`` or ``catavgmax``; empty (with ``num_classes=0``) for the unpooled map.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first one.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes), of any height and width for ``ovlp``, of at least the product of all
        strides for ``non_ovlp``, which leaves out what the strides do not divide.

    Raises:
        CallError: arguments per stage whose number is not that of ``depths``, another stem stride, or what the blocks
            refuse.
        UnknownName: an unknown block, style or layout.
        ShapeError: on call, images of another rank, other channels, or too small.
    """

    classifier_name = "head"

    def __init__(
        self,
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 6, 2),
        mlp_ratios: float | Sequence[float] = 4.0,
        head_dim: int = 32,
        mixing_modes: str | Sequence[str] = ("glmix", "glmix", "glmix", "mha"),
        num_slots: int = 64,
        slot_init: str = "ada_avgpool",
        local_dw_ks: int | Sequence[int] = 5,
        cpe_ks: int = 0,
        mlp_dw: bool = False,
        layerscale: float = 0.0,
        downsample_style: str = "non_ovlp",
        transition_layout: str = "norm.proj",
        dual_patch_norm: bool = False,
        stem_stride: int = 4,
        norm_layer: Layer = nn.BatchNorm2d,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans, drop_rate)
        stages = len(depths)
        dims = _per_stage("dims", tuple(dims), stages)
        ratios = _per_stage("mlp_ratios", mlp_ratios, stages)
        modes: tuple[str, ...] = _per_stage("mixing_modes", mixing_modes, stages)
        kernels = _per_stage("local_dw_ks", local_dw_ks, stages)
        if downsample_style not in DOWNSAMPLE_STYLES:
            raise unknown_name("downsample_style", downsample_style, DOWNSAMPLE_STYLES)
        if transition_layout not in TRANSITION_LAYOUTS:
            raise unknown_name("transition_layout", transition_layout, TRANSITION_LAYOUTS)
        if stem_stride not in (2, 4):
            raise CallError(f"stem_stride must be 2 or 4, got {stem_stride}")
        for dim in dims:
            if head_dim < 1 or dim % head_dim:
                raise CallError(f"dims must be multiples of head_dim, got {dim} for head_dim={head_dim}")
        if dual_patch_norm and downsample_style != "ovlp":
            raise CallError("dual_patch_norm is for downsample_style='ovlp'")

        overlapped = downsample_style == "ovlp"
        self.min_size = 1 if overlapped else stem_stride * 2 ** (stages - 1)
        self.num_features = dims[-1]
        self.feature_info = [
            {"num_chs": dim, "reduction": stem_stride * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(dims)
        ]
        if overlapped:
            stem = _overlapped_stem(in_chans, dims[0], stem_stride, norm_layer, dual_patch_norm)
        else:
            stem = nn.Sequential(nn.Conv2d(in_chans, dims[0], stem_stride, stem_stride), norm_layer(dims[0]))
        self.downsample_layers = nn.ModuleList([stem])
        for before, dim in pairwise(dims):
            self.downsample_layers.append(_transition(before, dim, overlapped, transition_layout, norm_layer))

        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        self.stages = nn.ModuleList()
        for dim, depth, ratio, mode, kernel in zip(dims, depths, ratios, modes, kernels, strict=True):
            common: dict[str, Any] = {
                "dim": dim,
                "heads": dim // head_dim,
                "mlp_ratio": ratio,
                "layerscale": layerscale,
            }
            on_maps: dict[str, Any] = {"cpe_ks": cpe_ks, "mlp_dw": mlp_dw}
            slots: dict[str, Any] = {"num_slots": num_slots, "slot_init": slot_init, "local_dw_ks": kernel}
            blocks: list[nn.Module] = []
            for kind in _kinds(mode, depth):
                common["drop_path"] = next(rates)
                if kind == "glmix":
                    blocks.append(GLMixBlock(**common, **on_maps, **slots))
                elif kind == "mha_nchw":
                    blocks.append(AttentionBlock(**common, **on_maps))
                else:
                    blocks.append(TokenAttentionBlock(**common))
            self.stages.append(Stage(*blocks))
        self.norm = norm_layer(dims[-1])
        self.reset_classifier(num_classes, global_pool)
        self.apply(init_weights)

    def _check(self, x: Tensor) -> None:
        check_images(x, self.in_chans, self.min_size)

    def _stage(self, index: int, x: Tensor) -> Tensor:
        if index == 0:  # the blocks go back and forth between convolutions and products: channels last costs least
            x = x.contiguous(memory_format=torch.channels_last)
        return self.stages[index](self.downsample_layers[index](x))

    def _tail(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def _cut(self, last: int) -> None:
        self.downsample_layers, self.stages = self.downsample_layers[: last + 1], self.stages[: last + 1]
        self.norm = nn.Identity()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Start a new classifier.

        Args:
            num_classes: classes; 0 for none: the network then answers (B, head_hidden_size).
            global_pool: another pooling; empty for none: the network then answers the unpooled map.
        """
        super().reset_classifier(num_classes, global_pool)
        init_weights(self.get_classifier())

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names by depth, for layer-wise learning rates."""
        stage = r"^(?:stages|downsample_layers)\.(\d+)"
        fine = [(r"^downsample_layers\.(\d+)", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^downsample_layers\.0\.", "blocks": stage if coarse else fine}

    def no_weight_decay(self) -> set[str]:
        """The layer scales; norms and biases are one-dimensional, which timm's rule leaves out."""
        return {name for name, _ in self.named_parameters() if name.endswith("gamma")}

    def fuse(self) -> GLNet:
        """Turn the network, in place, into its deploy form.

        Batch norms go into the convolutions before them, and residual depthwise convolutions become convolutions. The
        network is set to eval mode. Keep a copy to go on training: batch statistics are gone.

        Returns:
            The network itself.
        """
        super().fuse()
        for module in list(self.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, ResidualDepthwiseConv):
                    module.add_module(name, child.folded())
        return self


def _overlapped_stem(in_chans: int, dim: int, stride: int, norm_layer: Layer, patch_norm: bool) -> nn.Sequential:
    return nn.Sequential(
        LayerNorm2d(in_chans) if patch_norm else nn.Identity(),
        nn.Conv2d(in_chans, dim // 2, 3, 2, padding=1),
        norm_layer(dim // 2),
        nn.GELU(),
        nn.Conv2d(dim // 2, dim, 3, stride // 2, padding=1),
        norm_layer(dim),
    )


def _transition(before: int, dim: int, overlapped: bool, layout: str, norm_layer: Layer) -> nn.Sequential:
    projection = nn.Conv2d(before, dim, 3, 2, padding=1) if overlapped else nn.Conv2d(before, dim, 2, 2)
    if layout == "norm.proj":
        return nn.Sequential(norm_layer(before), projection)
    return nn.Sequential(projection, norm_layer(dim))


def _kinds(mode: str, depth: int) -> list[str]:
    """The blocks of a stage: those that the mode names, in turn."""
    named = mode.split(".")
    for name in named:
        if name not in BLOCKS:
            raise unknown_name("mixing mode", name, BLOCKS)
    return [named[i % len(named)] for i in range(depth)]


def _per_stage(name: str, value: T | Sequence[T], stages: int) -> tuple[T, ...]:
    """One value for each stage; a single one is repeated."""
    values = (value,) * stages if isinstance(value, (int, float, str)) else tuple(cast("Sequence[T]", value))
    if len(values) != stages:
        raise CallError(f"{name} has {len(values)} values for {stages} stages (the length of depths)")
    return values


# Factories ------------------------------------------------------------------------------------------------------------

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "4g": {"dims": (64, 128, 256, 512)},
    "9g": {"dims": (96, 192, 384, 768)},
    "16g": {"dims": (128, 256, 512, 1024), "layerscale": 1e-4},
}
_HYBRID: Mapping[str, Any] = {
    "depths": (4, 4, 18, 4),
    "mlp_ratios": 3.0,
    "mixing_modes": ("glmix", "glmix", "glmix.mha_nchw", "mha_nchw"),
    "cpe_ks": 3,
    "mlp_dw": True,
    "downsample_style": "ovlp",
    "transition_layout": "proj.norm",
}


def build(
    cls: type[nn.Module],
    name: str,
    pretrained: bool,
    variant: Mapping[str, Any],
    convert: Convert | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a variant, or with ``kwargs`` a network that differs from it in these arguments."""
    kwargs = {**variant, **kwargs}
    stages, side = len(kwargs.get("depths", (2, 2, 6, 2))), 32 if name.endswith("_mini32") else 224
    map_side = side // (kwargs.get("stem_stride", 4) * 2 ** (stages - 1))
    overlapped = kwargs.get("downsample_style") == "ovlp"
    return build_image_model(
        cls,
        name,
        pretrained,
        cfg={
            "num_classes": 1000,
            "input_size": (3, side, side),
            "pool_size": (map_side, map_side),
            "crop_pct": 1.0 if side == 32 else 0.875,
            "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": f"downsample_layers.0.{int(overlapped)}",
            "classifier": "head",
        },
        convert=convert,
        feature_cfg={"out_indices": tuple(range(stages)), "feature_cls": "getter"},
        **kwargs,
    )


def hybrid(size: str) -> dict[str, Any]:
    """The arguments of GLNet-4G, -9G or -16G."""
    return {**_HYBRID, **VARIANTS[size]}


@register_model
def glnet_4g(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """GLNet-4G."""
    return build(GLNet, "glnet_4g", pretrained, hybrid("4g"), **kwargs)


@register_model
def glnet_9g(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """GLNet-9G."""
    return build(GLNet, "glnet_9g", pretrained, hybrid("9g"), **kwargs)


@register_model
def glnet_16g(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """GLNet-16G, with layer scales."""
    return build(GLNet, "glnet_16g", pretrained, hybrid("16g"), **kwargs)


@register_model
def glnet_stl(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """GLNet-STL, the layout of Swin-T."""
    return build(GLNet, "glnet_stl", pretrained, {}, **kwargs)


@register_model
def glnet_stl_paramslot(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """GLNet-STL whose slots are learned instead of pooled."""
    return build(GLNet, "glnet_stl_paramslot", pretrained, {"slot_init": "param"}, **kwargs)


@register_model
def glmix_mini32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A small network for 32x32 images; ours, not the paper's."""
    variant = {
        **_HYBRID,
        "dims": (32, 64, 128),
        "depths": (1, 1, 2),
        "head_dim": 16,
        "num_slots": 16,
        "mixing_modes": ("glmix", "glmix", "glmix.mha_nchw"),
        "stem_stride": 2,
    }
    return build(GLNet, "glmix_mini32", pretrained, variant, **kwargs)
