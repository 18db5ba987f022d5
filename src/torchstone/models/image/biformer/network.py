"""Networks: BiFormer, its form in the layout of Swin-T (STL), and their variants."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import trunc_normal_
from torch import Tensor, nn

from torchstone.errors import CallError, ShapeError
from torchstone.layers.backbone import Backbone
from torchstone.layers.checkpointing import BlockSequence
from torchstone.layers.checks import check_images
from torchstone.models.image.biformer.attention import (
    FULL,
    FULL_LEPE,
    AttentionLePE2d,
    BiLevelRoutingAttention,
    BiLevelRoutingAttention2d,
    unrouted,
)
from torchstone.models.image.biformer.blocks import BiFormerBlock, BiFormerBlock2d, halve, patches, stem
from torchstone.models.registry import build_image_model, register_model

# Networks -------------------------------------------------------------------------------------------------------------


class _Stages(Backbone):
    """What the networks share: stages, each behind a layer that shrinks the map, a batch norm and a linear head.

    ``forward_features`` ends in the batch norm; the head is the mean over pixels and a linear layer.
    """

    classifier_name = "head"

    def __init__(
        self,
        dims: Sequence[int],
        shrink: Sequence[nn.Module],
        stages: Sequence[BlockSequence],
        reduction: int,
        *,
        least: int,
        step: int,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
    ) -> None:
        super().__init__(in_chans, drop_rate)
        self.least, self.step = least, step  # pixels: the smallest side that images may have, its multiples
        self.downsample_layers = nn.ModuleList(shrink)
        self.stages = nn.ModuleList(stages)
        self.feature_info = [
            {"num_chs": dim, "reduction": reduction * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(dims)
        ]
        self.num_features = dims[-1]
        self.norm: nn.Module = nn.BatchNorm2d(dims[-1])
        self.reset_classifier(num_classes, global_pool)
        self.apply(_init_weights)

    def _check(self, x: Tensor) -> None:
        check_sides(x, self.in_chans, self.least, self.step)

    def _stage(self, index: int, x: Tensor) -> Tensor:
        if index == 0:  # linear layers and norms work on the channels of a pixel: channels last costs least
            x = x.contiguous(memory_format=torch.channels_last)
        return self.stages[index](self.downsample_layers[index](x))

    def _tail(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def _cut(self, last: int) -> None:
        self.downsample_layers, self.stages = self.downsample_layers[: last + 1], self.stages[: last + 1]
        self.norm = nn.Identity()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names by depth, for layer-wise learning rates."""
        if coarse:
            return {"stem": r"^downsample_layers\.0", "blocks": r"^(?:stages|downsample_layers)\.(\d+)"}
        return {
            "stem": r"^downsample_layers\.0",
            "blocks": [(r"^downsample_layers\.(\d+)", (0,)), (r"^stages\.(\d+)\.(\d+)", None), (r"^norm", (99999,))],
        }


class BiFormer(_Stages):
    """BiFormer.

    Args:
        dims: channels of each stage, multiples of ``head_dim``.
        depths: blocks of each stage.
        mlp_ratio: hidden channels of the MLPs as a multiple of their channels.
        head_dim: channels of q and k of a head of routing attention; other attention has 8 heads.
        regions: S, regions a side, of all stages.
        topks: of each stage the number of regions that a region attends to; or 0 for convolutions, -1 for attention
            among all pixels, -2 for that with local enhancement.
        qk_dims: channels of q and k in each stage, ``dims`` by default.
        side_dwconv: side of the depthwise convolution beside attention; 0 for none.
        before_attn_dwconv: side of the one in front of it; 0 for none.
        auto_pad: pad maps that the regions do not divide; otherwise images of such sizes are refused.
        kv_downsample_mode: pooling of keys and values (see :class:`BiLevelRoutingAttention`).
        kv_per_wins: of each stage, for adaptive pooling.
        kv_downsample_ratios: of each stage, for pooling by a ratio.
        param_attention: ``qkvo``, or ``qkv`` for no output projection.
        soft_routing: multiply keys and values by the routes' weights.
        diff_routing: give those weights gradients.
        param_routing: a linear layer for the regions' descriptors.
        router: ``content``, or ``nearest`` or ``random`` to measure what routing is worth.
        mlp_dwconv: a depthwise convolution inside the MLPs.
        layer_scale: initial value of the branches' scales; None for no scales.
        pre_norm: norms in front of the branches, not behind the shortcuts.
        stem_stride: 4 as published, or 2 for small images.
        in_chans: channels of the image.
        num_classes: classes; 0 for no classifier.
        global_pool: ``avg``, ``max``, ``avgmax`` or ``catavgmax``; empty (with ``num_classes=0``) for the unpooled map.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes); any H and W with ``auto_pad``, otherwise multiples of S times the
        stride of the last stage with routing (7 x 16 = 112 for the published variants).

    Raises:
        CallError: options that do not go together, other numbers of values than of stages.
        UnknownName: an unknown pooling or router.
        ShapeError: on call, images of another rank, other channels, or a size that the regions do not divide.
    """

    def __init__(
        self,
        dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 8, 2),
        *,
        mlp_ratio: float = 3.0,
        head_dim: int = 32,
        regions: int = 7,
        topks: Sequence[int] = (1, 4, 16, FULL_LEPE),
        qk_dims: Sequence[int] | None = None,
        side_dwconv: int = 5,
        before_attn_dwconv: int = 3,
        auto_pad: bool = False,
        kv_downsample_mode: str = "identity",
        kv_per_wins: Sequence[int] | None = None,
        kv_downsample_ratios: Sequence[int] | None = None,
        param_attention: str = "qkvo",
        soft_routing: bool = False,
        diff_routing: bool = False,
        param_routing: bool = False,
        router: str = "content",
        mlp_dwconv: bool = False,
        layer_scale: float | None = None,
        pre_norm: bool = True,
        stem_stride: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        stages = len(dims)
        qk_dims = dims if qk_dims is None else qk_dims
        per_window, ratios = kv_per_wins or [4] * stages, kv_downsample_ratios or [1] * stages
        _check_lengths(
            dims, depths=depths, topks=topks, qk_dims=qk_dims, kv_per_wins=per_window, kv_downsample_ratios=ratios
        )
        if stem_stride not in (2, 4):
            raise CallError(f"stem_stride must be 2 or 4, got {stem_stride}")

        def mixer(i: int) -> nn.Module:
            if topks[i] <= 0:
                return unrouted(dims[i], topks[i], side_dwconv)
            return BiLevelRoutingAttention(
                dims[i],
                _heads(qk_dims[i], head_dim),
                regions,
                topks[i],
                qk_dim=qk_dims[i],
                side_dwconv=side_dwconv,
                auto_pad=auto_pad,
                kv_downsample_mode=kv_downsample_mode,
                kv_per_win=per_window[i],
                kv_downsample_ratio=ratios[i],
                param_attention=param_attention,
                soft_routing=soft_routing,
                diff_routing=diff_routing,
                param_routing=param_routing,
                router=router,
            )

        def block(i: int, drop_path: float) -> nn.Module:
            return BiFormerBlock(
                dims[i],
                mixer(i),
                mlp_ratio=mlp_ratio,
                mlp_dwconv=mlp_dwconv,
                before_attn_dwconv=before_attn_dwconv,
                layer_scale=layer_scale,
                pre_norm=pre_norm,
                drop_path=drop_path,
            )

        step = 1 if auto_pad else _step([regions] * stages, topks, stem_stride)
        super().__init__(
            dims,
            [stem(in_chans, dims[0], stem_stride), *(halve(a, b) for a, b in pairwise(dims))],
            _sequences(block, depths, drop_path_rate),
            stem_stride,
            least=step,
            step=step,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )


class BiFormerSTL(_Stages):
    """BiFormer in the layout of Swin-T: patches of 4x4 pixels, merged by twos, no convolution in front of attention.

    Args:
        dims: channels of each stage, multiples of ``head_dim``.
        depths: blocks of each stage.
        mlp_ratio: hidden channels of the MLPs as a multiple of their channels.
        head_dim: channels of a head of routing attention; other attention has 8 heads.
        regions: S, regions a side, of each stage or of all.
        topks: as of :class:`BiFormer`.
        side_dwconv: side of the depthwise convolution beside attention.
        auto_pad: pad maps that the regions do not divide (ours: the authors' network refuses them).
        router: ``content``, or ``nearest`` or ``random`` to measure what routing is worth.
        in_chans: channels of the image.
        num_classes: classes; 0 for no classifier.
        global_pool: as of :class:`BiFormer`.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes); sizes as of :class:`BiFormer`, at least 32 pixels.
    """

    def __init__(
        self,
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 6, 2),
        *,
        mlp_ratio: float = 4.0,
        head_dim: int = 32,
        regions: int | Sequence[int] = 7,
        topks: Sequence[int] = (1, 4, 16, FULL_LEPE),
        side_dwconv: int = 5,
        auto_pad: bool = False,
        router: str = "content",
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        sides = [regions] * len(dims) if isinstance(regions, int) else list(regions)
        _check_lengths(dims, depths=depths, topks=topks, regions=sides)

        def mixer(i: int) -> nn.Module:
            if topks[i] <= 0:
                return unrouted(dims[i], topks[i], side_dwconv)
            return BiLevelRoutingAttention(
                dims[i],
                _heads(dims[i], head_dim),
                sides[i],
                topks[i],
                side_dwconv=side_dwconv,
                auto_pad=auto_pad,
                router=router,
            )

        def block(i: int, drop_path: float) -> nn.Module:
            return BiFormerBlock(dims[i], mixer(i), mlp_ratio=mlp_ratio, before_attn_dwconv=0, drop_path=drop_path)

        step = 1 if auto_pad else _step(sides, topks, 4)
        super().__init__(
            dims,
            patches(in_chans, dims),
            _sequences(block, depths, drop_path_rate),
            4,
            least=max(step, 2 ** (len(dims) + 1)),  # patches are not padded
            step=step,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )


class BiFormerSTL2d(_Stages):
    """:class:`BiFormerSTL` with the authors' later operator, which takes maps (B, C, H, W) of any size.

    Args:
        dims: channels of each stage, multiples of ``head_dim``.
        depths: blocks of each stage.
        mlp_ratio: hidden channels of the MLPs as a multiple of their channels.
        head_dim: channels of a head of routing attention; other attention has 8 heads.
        regions: S, regions a side, of each stage or of all.
        topks: of each stage the number of regions that a region attends to, or -1 for attention among all pixels, with
            local enhancement.
        side_dwconv: side of the depthwise convolution beside routing attention; beside other attention it is 5.
        in_chans: channels of the image.
        num_classes: classes; 0 for no classifier.
        global_pool: as of :class:`BiFormer`.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes); H and W at least S times the stride of the last stage with routing
        (112 for the published variant).
    """

    def __init__(
        self,
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 6, 2),
        *,
        mlp_ratio: float = 4.0,
        head_dim: int = 32,
        regions: int | Sequence[int] = 7,
        topks: Sequence[int] = (1, 4, 16, FULL),
        side_dwconv: int = 5,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        sides = [regions] * len(dims) if isinstance(regions, int) else list(regions)
        _check_lengths(dims, depths=depths, topks=topks, regions=sides)
        if any(topk < 1 and topk != FULL for topk in topks):
            raise CallError(f"topks must be positive, or {FULL} for attention among all pixels, got {list(topks)}")

        def mixer(i: int) -> nn.Module:
            if topks[i] == FULL:
                return AttentionLePE2d(dims[i])
            heads = _heads(dims[i], head_dim)
            return BiLevelRoutingAttention2d(dims[i], heads, sides[i], topks[i], side_dwconv=side_dwconv)

        def block(i: int, drop_path: float) -> nn.Module:
            return BiFormerBlock2d(dims[i], mixer(i), mlp_ratio=mlp_ratio, drop_path=drop_path)

        routed = [side * 4 * 2**i for i, (side, topk) in enumerate(zip(sides, topks, strict=True)) if topk > 0]
        super().__init__(
            dims,
            patches(in_chans, dims),
            _sequences(block, depths, drop_path_rate),
            4,
            least=max([*routed, 2 ** (len(dims) + 1)]),
            step=1,
            in_chans=in_chans,
            num_classes=num_classes,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )


# Parts ----------------------------------------------------------------------------------------------------------------


def _sequences(
    block: Callable[[int, float], nn.Module], depths: Sequence[int], drop_path_rate: float
) -> list[BlockSequence]:
    rates: Iterator[float] = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
    return [BlockSequence(*(block(i, next(rates)) for _ in range(depth))) for i, depth in enumerate(depths)]


def check_sides(x: Tensor, in_chans: int, least: int, step: int) -> None:
    """Refuse what are no images (B, in_chans, H, W), and sides that are smaller than ``least`` or no multiples."""
    check_images(x, in_chans)
    try:
        check_images(x, in_chans, least, step)
    except ShapeError as error:
        hint = "; build it with auto_pad=True for sizes between" if step > 1 else ""
        raise ShapeError(f"{error}{hint}") from None


def _step(regions: Sequence[int], topks: Sequence[int], reduction: int) -> int:
    """What sides of images must be multiples of, so that the regions of every stage divide its map."""
    steps = [side * reduction * 2**i for i, (side, topk) in enumerate(zip(regions, topks, strict=True)) if topk > 0]
    return math.lcm(*steps)


def _heads(qk_dim: int, head_dim: int) -> int:
    if qk_dim % head_dim:
        raise CallError(f"{qk_dim} channels are not a multiple of the {head_dim} of a head")
    return qk_dim // head_dim


def _check_lengths(dims: Sequence[int], **others: Sequence[Any]) -> None:
    for name, values in others.items():
        if len(values) != len(dims):
            raise CallError(f"{name} has {len(values)} values for {len(dims)} stages (the length of dims)")


def _init_weights(module: nn.Module) -> None:
    """Linear layers start truncated normal of deviation 0.02 with zero biases, others as PyTorch has them."""
    if isinstance(module, nn.Linear) and not module.weight.is_meta:
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# Official checkpoints -------------------------------------------------------------------------------------------------

_NAMES = (
    (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.1\.dwconv\.", ".mlp.dwconv."),
    (r"\.mlp\.[23]\.", ".mlp.fc2."),
    (r"\.attn\.1\.", ".attn.proj_in."),
    (r"\.attn\.2\.", ".attn.dwconv."),
    (r"\.attn\.3\.", ".attn.proj_out."),
    (r"(^|\.)qkv\.qkv\.", r"\1qkv."),
    (r"(^|\.)qkv_linear\.", r"\1qkv."),
    (r"(^|\.)output_linear\.", r"\1wo."),
    (r"(^|\.)router\.emb\.", r"\1emb."),
)


def convert_official(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The authors' state dict of a network or of a routing attention with our names; the weights stay as they are."""
    return {_renamed(name): value for name, value in state.items()}


def _renamed(name: str) -> str:
    for pattern, ours in _NAMES:
        name = re.sub(pattern, ours, name)
    return name


# Factories ------------------------------------------------------------------------------------------------------------

_CFG: Mapping[str, Any] = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "downsample_layers.0.0",
    "classifier": "head",
}


def _build(
    cls: type[_Stages], name: str, pretrained: bool, variant: Mapping[str, Any], kwargs: dict[str, Any], **cfg: Any
) -> nn.Module:
    kwargs = {**variant, **kwargs}
    stages = len(kwargs.get("dims", (0, 0, 0, 0)))
    return build_image_model(
        cls,
        name,
        pretrained,
        convert=convert_official,
        cfg={**_CFG, **cfg},
        feature_cfg={"out_indices": tuple(range(stages)), "feature_cls": "getter"},
        **kwargs,
    )


@register_model
def biformer_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """BiFormer-T."""
    return _build(BiFormer, "biformer_tiny", pretrained, {}, kwargs)


@register_model
def biformer_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """BiFormer-S."""
    return _build(BiFormer, "biformer_small", pretrained, {"depths": (4, 4, 18, 4)}, kwargs)


@register_model
def biformer_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """BiFormer-B."""
    variant = {"dims": (96, 192, 384, 768), "depths": (4, 4, 18, 4)}
    return _build(BiFormer, "biformer_base", pretrained, variant, kwargs)


@register_model
def biformer_stl(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """BiFormer in the layout of Swin-T, of the paper's ablation."""
    return _build(BiFormerSTL, "biformer_stl", pretrained, {}, kwargs)


@register_model
def biformer_stl_nchw(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """BiFormer in the layout of Swin-T, with the authors' later operator."""
    return _build(BiFormerSTL2d, "biformer_stl_nchw", pretrained, {}, kwargs)


@register_model
def biformer_mini32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A small network for 32x32 images; ours, not the paper's."""
    variant = {
        "dims": (32, 64, 128),
        "depths": (1, 2, 1),
        "head_dim": 16,
        "regions": 4,
        "topks": (2, 4, FULL_LEPE),
        "stem_stride": 2,
    }
    size = {"input_size": (3, 32, 32), "pool_size": (4, 4), "crop_pct": 1.0}
    return _build(BiFormer, "biformer_mini32", pretrained, variant, kwargs, **size)
