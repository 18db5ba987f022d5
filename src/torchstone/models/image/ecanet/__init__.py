"""ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks (Wang, Wu, Zhu, Li, Zuo, Hu; CVPR 2020,
arXiv 1910.03151).

Squeeze-and-excitation predicts a gate for every channel from all channels, through a bottleneck of two dense layers.
ECA-Net finds that the bottleneck hurts and that near channels suffice: a gate is a correlation of k weights with the
means of the k nearest channels. A ResNet-50 gains accuracy from 80 more weights.

Efficient channel attention (Section 3.2; :mod:`torchstone.layers.channel_attention`), y the channels' means::

    ECA(x)_c = x_c * sigmoid(sum_j w_j y_(c + j - (k-1)/2)),   j = 0 ... k-1

It scales the residual branch of every block, behind its last batch norm and before the addition::

    basic block       out = ReLU(ECA(BN conv3x3 ReLU BN conv3x3(x)) + shortcut(x))
    bottleneck        out = ReLU(ECA(BN conv1x1 ReLU BN conv3x3 ReLU BN conv1x1(x)) + shortcut(x))
    inverted residual out = ECA(BN conv1x1 ReLU6 BN dwconv3x3 ReLU6 BN conv1x1(x)) [+ x]

Networks, for an image (B, 3, H, W): ResNet-18/34/50/101/152 of width 64 and MobileNetV2, each with ECA in every block::

    ResNet       stem 7x7 convolution of stride 2, 3x3 max pooling of stride 2    (B, 64, H/4, W/4)
                 stages of 64, 128, 256, 512 planes (four times as many channels
                 with bottlenecks), halving the map from the second on            (B, 512 or 2048, H/32, W/32)
                 mean over H and W, linear                                        (B, num_classes)
    MobileNetV2  3x3 convolution of stride 2, 17 inverted residuals,
                 1x1 convolution                                                  (B, 1280, H/32, W/32)
                 mean over H and W, dropout, linear                               (B, num_classes)

The paper's way from squeeze-and-excitation to ECA (Table 2: SE-Var1 to 3, SE-GC, ECA-NS) can be put in ECA's place, by
the argument ``attention`` of every network.

The kernel sizes k of the paper's rule (Section 3.2) follow from the channels; the released networks have others, one
per stage, which are the defaults here. Those of another checkpoint are read off its weights.

Reading order: :mod:`channel_attention <torchstone.layers.channel_attention>`,
:mod:`blocks <torchstone.models.image.ecanet.blocks>`, :mod:`resnet <torchstone.models.image.ecanet.resnet>`,
:mod:`mobilenet <torchstone.models.image.ecanet.mobilenet>`, and here the variants.

Example:
    >>> import torch, torchstone
    >>> model = torchstone.create_model("ecanet_mini32", num_classes=10).eval()
    >>> model(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
"""

from __future__ import annotations

from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from torchstone.models.image.ecanet.blocks import ECABasicBlock, ECABottleneck, ECAInvertedResidual, LinearChannelGate
from torchstone.models.image.ecanet.mobilenet import ECAMobileNetV2
from torchstone.models.image.ecanet.resnet import ECAResNet
from torchstone.models.registry import build_image_model, register_model

__all__ = [
    "ECABasicBlock",
    "ECABottleneck",
    "ECAInvertedResidual",
    "ECAMobileNetV2",
    "ECAResNet",
    "LinearChannelGate",
    "convert_official",
]

# Official checkpoints -------------------------------------------------------------------------------------------------


def convert_official(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Turn a state dict of the authors' layout into ours; ours passes unchanged.

    MobileNetV2's classifier has lost the dropout before it. Files of PyTorch before 0.4.1 do not count batches; the
    counts, which no output depends on, start at zero.
    """
    converted = {name.replace("classifier.1.", "classifier."): value for name, value in state.items()}
    if not any(name.endswith("num_batches_tracked") for name in converted):
        own = model.state_dict()
        converted |= {name: torch.zeros_like(own[name]) for name in own if name.endswith("num_batches_tracked")}
    return converted


def _trained_kernel_sizes(kwargs: dict[str, Any], attention: list[str]) -> dict[str, list[int]]:
    """The argument ``k_size`` read off the weights that a network is built for.

    Args:
        kwargs: of the factory; the weights are where timm's loader finds them.
        attention: names of modules that stand for the kernel sizes.

    Returns:
        Nothing when there are no weights, or none of these modules in them.
    """
    state = (kwargs.get("pretrained_cfg_overlay") or {}).get("state_dict") or {}
    names = [f"{module}.conv.weight" for module in attention]
    return {"k_size": [state[name].shape[-1] for name in names]} if all(name in state for name in names) else {}


# Factories ------------------------------------------------------------------------------------------------------------

_CFG = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "interpolation": "bilinear",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
}


def _resnet(
    name: str, pretrained: bool, kwargs: dict[str, Any], cfg: dict[str, Any] | None = None, **variant: Any
) -> nn.Module:
    stages = range(1, len(kwargs.get("layers", variant["layers"])) + 1)
    trained = _trained_kernel_sizes(kwargs, [f"layer{stage}.0.eca" for stage in stages])
    return build_image_model(
        ECAResNet,
        name,
        pretrained,
        convert=convert_official,
        cfg={**_CFG, "first_conv": "conv1", "classifier": "fc", **(cfg or {})},
        feature_cfg={"out_indices": (0, *stages), "feature_cls": "getter"},
        **{**variant, **trained, **kwargs},
    )


@register_model
def eca_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ECA-Net18, kernel sizes 3, 5, 7, 7."""
    return _resnet("eca_resnet18", pretrained, kwargs, block=ECABasicBlock, layers=(2, 2, 2, 2), k_size=(3, 5, 7, 7))


@register_model
def eca_resnet34(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ECA-Net34, kernel sizes 3, 3, 5, 7."""
    return _resnet("eca_resnet34", pretrained, kwargs, block=ECABasicBlock, layers=(3, 4, 6, 3), k_size=(3, 3, 5, 7))


@register_model
def eca_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ECA-Net50, kernel sizes 3, 5, 5, 7."""
    return _resnet("eca_resnet50", pretrained, kwargs, block=ECABottleneck, layers=(3, 4, 6, 3), k_size=(3, 5, 5, 7))


@register_model
def eca_resnet101(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ECA-Net101, kernel sizes 3, 3, 5, 7."""
    return _resnet("eca_resnet101", pretrained, kwargs, block=ECABottleneck, layers=(3, 4, 23, 3), k_size=(3, 3, 5, 7))


@register_model
def eca_resnet152(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ECA-Net152, kernel sizes 3, 3, 5, 7."""
    return _resnet("eca_resnet152", pretrained, kwargs, block=ECABottleneck, layers=(3, 8, 36, 3), k_size=(3, 3, 5, 7))


@register_model
def eca_mobilenet_v2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ECA-MobileNetV2, kernel size 1 below 96 channels and 3 from there on."""
    trained = _trained_kernel_sizes(kwargs, ["features.1.conv.3", "features.17.conv.4"])
    return build_image_model(
        ECAMobileNetV2,
        "eca_mobilenet_v2",
        pretrained,
        convert=convert_official,
        cfg={**_CFG, "first_conv": "features.0.0", "classifier": "classifier"},
        feature_cfg={"feature_cls": "getter"},
        **{**trained, **kwargs},
    )


@register_model
def ecanet_mini32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A small ECA-ResNet of three stages for 32x32 images; ours, not the paper's."""
    return _resnet(
        "ecanet_mini32",
        pretrained,
        kwargs,
        {"input_size": (3, 32, 32), "pool_size": (4, 4), "crop_pct": 1.0},
        block=ECABasicBlock,
        layers=(3, 3, 3),
        width=24,
        stem_stride=2,
    )
