"""The paper's ablation network: ConvNeXt with other kernels, or with a convolution on a part of the channels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.layers import LayerNorm2d
from torch import Tensor, nn

from torchstone.models.image.inceptionnext.blocks import NormHead, PartialConv2d
from torchstone.models.image.inceptionnext.network import (
    IMAGENET_CFG,
    MINI32,
    MINI32_CFG,
    Config,
    MetaNeXt,
    feature_cfg,
    per_stage,
)
from torchstone.models.registry import build_image_model, register_model


class ConvNeXt(MetaNeXt):
    """ConvNeXt as a MetaNeXt network: mixers are depthwise convolutions, norms are LayerNorm, the head is linear.

    Args:
        kernel_sizes: side of the depthwise kernels, odd; one for all stages, or one per stage.
        conv_ratios: share of the channels that is convolved; one for all stages, or one per stage.

    The other arguments, shapes and errors are those of :class:`MetaNeXt`.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        kernel_sizes: int | Sequence[int] = 7,
        conv_ratios: float | Sequence[float] = 1.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        ls_init_value: float | None = 1e-6,
        patch_size: int = 4,
    ) -> None:
        kernels = per_stage("kernel_sizes", kernel_sizes, len(depths))
        ratios = per_stage("conv_ratios", conv_ratios, len(depths))
        super().__init__(
            in_chans,
            num_classes,
            global_pool,
            depths,
            dims,
            token_mixers=[
                partial(PartialConv2d, kernel_size=kernel, conv_ratio=ratio)
                for kernel, ratio in zip(kernels, ratios, strict=True)
            ],
            norm_layer=LayerNorm2d,
            mlp_ratios=4,
            head_fn=NormHead,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            ls_init_value=ls_init_value,
            patch_size=patch_size,
        )


# Official checkpoints -------------------------------------------------------------------------------------------------

_NAMES = (
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.dwconv\.(?:conv\.)?", r"stages.\1.blocks.\2.token_mixer.conv."),
    (r"^stages\.(\d+)\.(\d+)\.pwconv", r"stages.\1.blocks.\2.mlp.fc"),
    (r"^stages\.(\d+)\.(\d+)\.(gamma|norm)", r"stages.\1.blocks.\2.\3"),
    (r"^norm\.", "head.norm."),
    (r"^head\.", "head.fc."),
)


def convert_convnext(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Turn a state dict of the official ablation network, or of Meta's ConvNeXt, into ours; ours passes unchanged.

    The official MLPs are linear layers, (out, in); here they are 1x1 convolutions, (out, in, 1, 1).
    """
    if not any(name.startswith("downsample_layers.") for name in state):
        return dict(state)
    converted = {}
    for official, value in state.items():
        name = official
        for pattern, ours in _NAMES:
            name, found = re.subn(pattern, ours, official)
            if found:
                break
        converted[name] = value[:, :, None, None] if ".mlp." in name and value.ndim == 2 else value
    return converted


# Factories ------------------------------------------------------------------------------------------------------------

_TINY: Config = {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)}


def _build(name: str, pretrained: bool, variant: Config, kwargs: Config, cfg: Config = IMAGENET_CFG) -> nn.Module:
    kwargs = {**variant, **kwargs}
    return build_image_model(
        ConvNeXt,
        name,
        pretrained,
        convert=convert_convnext,
        cfg={**cfg, "classifier": "head.fc"},
        feature_cfg=feature_cfg(kwargs),
        **kwargs,
    )


@register_model
def convnext_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-T with its 7x7 kernels, where the ablation starts."""
    return _build("convnext_tiny", pretrained, _TINY, kwargs)


@register_model
def convnext_tiny_k5(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-T with 5x5 kernels."""
    variant = {**_TINY, "kernel_sizes": 5}
    return _build("convnext_tiny_k5", pretrained, variant, kwargs)


@register_model
def convnext_tiny_k3(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-T with 3x3 kernels."""
    variant = {**_TINY, "kernel_sizes": 3}
    return _build("convnext_tiny_k3", pretrained, variant, kwargs)


@register_model
def convnext_tiny_k3_par1_2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-T with 3x3 kernels on 1/2 of the channels."""
    variant = {**_TINY, "kernel_sizes": 3, "conv_ratios": 1 / 2}
    return _build("convnext_tiny_k3_par1_2", pretrained, variant, kwargs)


@register_model
def convnext_tiny_k3_par3_8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-T with 3x3 kernels on 3/8 of the channels."""
    variant = {**_TINY, "kernel_sizes": 3, "conv_ratios": 3 / 8}
    return _build("convnext_tiny_k3_par3_8", pretrained, variant, kwargs)


@register_model
def convnext_tiny_k3_par1_4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-T with 3x3 kernels on 1/4 of the channels."""
    variant = {**_TINY, "kernel_sizes": 3, "conv_ratios": 1 / 4}
    return _build("convnext_tiny_k3_par1_4", pretrained, variant, kwargs)


@register_model
def convnext_tiny_k3_par1_8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-T with 3x3 kernels on 1/8 of the channels."""
    variant = {**_TINY, "kernel_sizes": 3, "conv_ratios": 1 / 8}
    return _build("convnext_tiny_k3_par1_8", pretrained, variant, kwargs)


@register_model
def convnext_tiny_k3_par1_16(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ConvNeXt-T with 3x3 kernels on 1/16 of the channels."""
    variant = {**_TINY, "kernel_sizes": 3, "conv_ratios": 1 / 16}
    return _build("convnext_tiny_k3_par1_16", pretrained, variant, kwargs)


@register_model
def convnext_mini32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A small ablation network for 32x32 images, without batch statistics; ours, not the paper's."""
    return _build("convnext_mini32", pretrained, MINI32, kwargs, MINI32_CFG)
