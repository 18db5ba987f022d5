"""The MetaNeXt network and its InceptionNeXt variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from torchstone.errors import CallError
from torchstone.layers.backbone import ClassifierHead, HeadedBackbone
from torchstone.layers.checks import check_images
from torchstone.models.image.inceptionnext.blocks import (
    InceptionDWConv2d,
    Layer,
    MetaNeXtBlock,
    MetaNeXtStage,
    MlpHead,
    has_running_statistics,
    init_weights,
)
from torchstone.models.registry import build_image_model, register_model

T = TypeVar("T")


class MetaNeXt(HeadedBackbone):
    """The MetaNeXt network; with the default token mixer it is InceptionNeXt.

    Args:
        in_chans: channels of the image.
        num_classes: classes; 0 for no classifier.
        global_pool: ``avg``, ``max`` or ``avgmax``; empty (with ``num_classes=0``) for the unpooled map.
        depths: blocks of each stage.
        dims: channels of each stage.
        token_mixers: called with the channels; one for all stages, or one per stage.
        norm_layer: norm of stem, downsampling and blocks, called with the channels.
        act_layer: activation of the blocks' MLPs.
        mlp_ratios: hidden channels of the MLPs as a multiple; one for all stages, or one per stage.
        head_fn: builds a :class:`ClassifierHead` from ``(dim, num_classes, drop_rate=, global_pool=)``.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first one.
        ls_init_value: start value of the layer scales; None or 0 for no layer scale.
        patch_size: side and stride of the stem's convolution, in pixels.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes). H and W are at least ``patch_size * 2**(stages - 1)`` pixels; of a size
        that the strides do not divide, the remainder at the right and lower border is left out.

    Raises:
        CallError: arguments per stage whose number is not that of ``depths``, or a pooling that does not fit.
        ShapeError: on call, images of another rank, other channels, or too small.
    """

    poolings = ("", "avg", "max", "avgmax")

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        token_mixers: Layer | Sequence[Layer] = InceptionDWConv2d,
        norm_layer: Layer = nn.BatchNorm2d,
        act_layer: Layer = nn.GELU,
        mlp_ratios: float | Sequence[float] = (4, 4, 4, 3),
        head_fn: Layer = MlpHead,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        ls_init_value: float | None = 1e-6,
        patch_size: int = 4,
    ) -> None:
        super().__init__(in_chans, drop_rate)
        stages = len(depths)
        dims = per_stage("dims", tuple(dims), stages)
        mixers = per_stage("token_mixers", token_mixers, stages)
        ratios = per_stage("mlp_ratios", mlp_ratios, stages)
        drop_paths = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").split(list(depths))

        self.num_features = dims[-1]
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": dim, "reduction": patch_size * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(dims)
        ]

        self.stem = nn.Sequential(nn.Conv2d(in_chans, dims[0], patch_size, patch_size), norm_layer(dims[0]))
        self.stages = nn.Sequential()
        for i, dim in enumerate(dims):
            blocks = [
                MetaNeXtBlock(dim, mixers[i], norm_layer, ratios[i], act_layer, ls_init_value, drop_path=rate)
                for rate in drop_paths[i].tolist()
            ]
            self.stages.append(MetaNeXtStage(dims[i - 1] if i else None, dim, norm_layer, blocks))

        self._head_fn = head_fn
        self.reset_classifier(num_classes, global_pool)
        self.apply(init_weights)

    def _check(self, x: Tensor) -> None:
        check_images(x, self.in_chans, self.feature_info[-1]["reduction"])

    def _stage(self, index: int, x: Tensor) -> Tensor:
        if index == 0:  # off the GPU the blocks' matrix products like a map that is laid out channels last
            x = self.stem(x)
            x = x if x.is_cuda else x.contiguous(memory_format=torch.channels_last)
        return self.stages[index](x)

    def _tail(self, x: Tensor) -> Tensor:
        return x

    def _cut(self, last: int) -> None:
        self.stages = self.stages[: last + 1]

    def _new_head(self, num_classes: int, global_pool: str) -> ClassifierHead:
        head = self._head_fn(self.num_features, num_classes, drop_rate=self.drop_rate, global_pool=global_pool)
        return cast(ClassifierHead, head)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names by depth, for layer-wise learning rates."""
        fine = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else fine}

    def fuse(self) -> MetaNeXt:
        """Turn the network, in place, into its deploy form: the same function in fewer operations.

        Batch norms go into the convolutions beside them and layer scales into the MLPs; other norms stay. The network
        is set to eval mode. Keep a copy to go on training: the batch statistics are gone.

        Returns:
            The network itself.
        """
        self.eval()
        conv, norm = self.stem
        if isinstance(conv, nn.Conv2d) and has_running_statistics(norm):
            self.stem = nn.Sequential(fuse_conv_bn_eval(conv, norm), nn.Identity())
        for stage in self.stages:
            cast(MetaNeXtStage, stage).fuse()
        return self


def per_stage(name: str, value: T | Sequence[T], stages: int) -> Sequence[T]:
    """One value for every stage: the given ones, or the given one repeated."""
    if not isinstance(value, (list, tuple)):
        return [cast(T, value)] * stages
    if len(value) != stages:
        raise CallError(f"{name} has {len(value)} values for {stages} stages (the length of depths)")
    return value


# Factories ------------------------------------------------------------------------------------------------------------

Config = Mapping[str, Any]

IMAGENET_CFG: Config = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "stem.0",
}
MINI32_CFG: Config = {**IMAGENET_CFG, "input_size": (3, 32, 32), "pool_size": (4, 4), "crop_pct": 1.0}
MINI32: Config = {"depths": (2, 2, 4), "dims": (24, 48, 96), "patch_size": 2, "ls_init_value": 1.0}


def feature_cfg(kwargs: Config) -> dict[str, Any]:
    """timm's settings for ``features_only=True``: the maps of all stages."""
    return {"out_indices": tuple(range(len(kwargs["depths"]))), "feature_cls": "getter"}


def _build(name: str, pretrained: bool, variant: Config, kwargs: Config, cfg: Config = IMAGENET_CFG) -> nn.Module:
    kwargs = {**variant, **kwargs}
    cfg = {**cfg, "classifier": "head.fc2"}
    return build_image_model(MetaNeXt, name, pretrained, cfg=cfg, feature_cfg=feature_cfg(kwargs), **kwargs)


@register_model
def inceptionnext_atto(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InceptionNeXt-A: bands of 9 pixels, a quarter of the channels in each branch."""
    mixer = partial(InceptionDWConv2d, band_kernel_size=9, branch_ratio=1 / 4)
    variant = {"depths": (2, 2, 6, 2), "dims": (40, 80, 160, 320), "token_mixers": mixer}
    return _build("inceptionnext_atto", pretrained, variant, kwargs)


@register_model
def inceptionnext_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InceptionNeXt-T."""
    variant = {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)}
    return _build("inceptionnext_tiny", pretrained, variant, kwargs)


@register_model
def inceptionnext_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InceptionNeXt-S."""
    variant = {"depths": (3, 3, 27, 3), "dims": (96, 192, 384, 768)}
    return _build("inceptionnext_small", pretrained, variant, kwargs)


@register_model
def inceptionnext_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InceptionNeXt-B."""
    variant = {"depths": (3, 3, 27, 3), "dims": (128, 256, 512, 1024)}
    return _build("inceptionnext_base", pretrained, variant, kwargs)


@register_model
def inceptionnext_base_384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """InceptionNeXt-B, fine-tuned at 384x384."""
    variant = {"depths": (3, 3, 27, 3), "dims": (128, 256, 512, 1024)}
    cfg = {**IMAGENET_CFG, "input_size": (3, 384, 384), "pool_size": (12, 12), "crop_pct": 1.0}
    return _build("inceptionnext_base_384", pretrained, variant, kwargs, cfg)


@register_model
def inceptionnext_mini32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A small network for 32x32 images; ours, not the paper's."""
    mixer = partial(InceptionDWConv2d, band_kernel_size=7, branch_ratio=1 / 4)
    variant = {**MINI32, "mlp_ratios": 4, "token_mixers": mixer}
    return _build("inceptionnext_mini32", pretrained, variant, kwargs, MINI32_CFG)
