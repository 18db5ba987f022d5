"""The networks by name, and the authors' checkpoints under our names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from torchstone.models.image.transnext.network import TransNeXt, pair
from torchstone.models.registry import build_image_model, register_model

# Official checkpoints -------------------------------------------------------------------------------------------------

_RENAMED = (
    (r"^(patch_embed|norm)(\d+)(\.)", r"stages.\2.\1\3"),
    (r"^block(\d+)\.", r"stages.\1.blocks."),
    (r"\.relative_pos_bias_local$", ".window_bias"),
    (r"\.cpb_fc", ".position.fc"),
    (r"\.dwconv\.dwconv\.", ".dwconv."),
)


def convert_official(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The released weights under our names; they fit a model of any image size.

    The 1x1 convolution in front of the pooling is a linear map here. A state dict in our layout is left as it is.
    """
    converted = {}
    for name, value in state.items():
        if name.startswith("stages."):
            converted[name] = value
            continue
        for pattern, new in _RENAMED:
            name = re.sub(pattern, new, name)
        name = re.sub(r"^stages\.(\d+)", lambda found: f"stages.{int(found[1]) - 1}", name)
        converted[name] = value.flatten(1) if name.endswith("attn.sr.weight") else value
    return converted


# Factories ------------------------------------------------------------------------------------------------------------

_CFG: Mapping[str, Any] = {
    "num_classes": 1000,
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "stages.0.patch_embed.proj",
    "classifier": "head",
}
_TINY: Mapping[str, Any] = {"dims": (72, 144, 288, 576), "heads": (3, 6, 12, 24)}
_VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "micro": {"dims": (48, 96, 192, 384), "heads": (2, 4, 8, 16), "depths": (2, 2, 15, 2)},
    "tiny": {**_TINY, "depths": (2, 2, 15, 2)},
    "small": {**_TINY, "depths": (5, 5, 22, 5)},
    "base": {"dims": (96, 192, 384, 768), "heads": (4, 8, 16, 32), "depths": (5, 5, 23, 5)},
}


def _build(name: str, pretrained: bool, variant: Mapping[str, Any], kwargs: dict[str, Any]) -> nn.Module:
    kwargs = {**variant, **kwargs}
    height, width = pair(kwargs.get("img_size", 224))
    stages = len(kwargs["dims"])
    reduction = kwargs.get("patch_size", 4) * 2 ** (stages - 1)
    cfg = {**_CFG, "input_size": (3, height, width), "pool_size": (height // reduction, width // reduction)}
    features = {"out_indices": tuple(range(stages)), "feature_cls": "getter"}
    return build_image_model(
        TransNeXt, name, pretrained, cfg=cfg, convert=convert_official, feature_cfg=features, **kwargs
    )


@register_model
def transnext_micro(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """TransNeXt-Micro at 224 x 224 pixels."""
    return _build("transnext_micro", pretrained, _VARIANTS["micro"], kwargs)


@register_model
def transnext_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """TransNeXt-Tiny at 224 x 224 pixels."""
    return _build("transnext_tiny", pretrained, _VARIANTS["tiny"], kwargs)


@register_model
def transnext_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """TransNeXt-Small at 224 x 224 pixels."""
    return _build("transnext_small", pretrained, _VARIANTS["small"], kwargs)


@register_model
def transnext_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """TransNeXt-Base at 224 x 224 pixels."""
    return _build("transnext_base", pretrained, _VARIANTS["base"], kwargs)


@register_model
def transnext_small_384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """TransNeXt-Small, pre-trained at 224 and fine-tuned at 384 x 384 pixels."""
    larger = {**_VARIANTS["small"], "img_size": 384, "pretrain_size": 224}
    return _build("transnext_small_384", pretrained, larger, kwargs)


@register_model
def transnext_base_384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """TransNeXt-Base, pre-trained at 224 and fine-tuned at 384 x 384 pixels."""
    larger = {**_VARIANTS["base"], "img_size": 384, "pretrain_size": 224}
    return _build("transnext_base_384", pretrained, larger, kwargs)


@register_model
def transnext_micro_AAAA(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """TransNeXt-Micro with aggregated attention in all stages, at 256 x 256 pixels."""
    everywhere = {**_VARIANTS["micro"], "img_size": 256, "windows": (3, 3, 3, 3), "pools": (16, 8, 4, 2)}
    return _build("transnext_micro_AAAA", pretrained, everywhere, kwargs)


@register_model
def transnext_mini32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A small network for 32x32 images; ours, not the paper's."""
    variant = {
        "img_size": 32,
        "dims": (48, 96, 192),
        "depths": (1, 1, 2),
        "heads": (2, 4, 8),
        "mlp_ratios": (4, 4, 4),
        "windows": (3, 3, None),
        "pools": (4, 2, 1),
        "patch_size": 2,
    }
    return _build("transnext_mini32", pretrained, variant, kwargs)
