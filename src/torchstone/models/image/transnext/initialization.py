"""Layers as they are when training starts."""

from __future__ import annotations

from timm.layers import trunc_normal_
from torch import Tensor, nn


def init(parameter: Tensor, std: float = 0.02) -> None:
    """A truncated normal distribution, or zeros."""
    if parameter.is_meta:
        return
    if std:
        trunc_normal_(parameter, std=std)
    else:
        nn.init.zeros_(parameter)


def linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """A linear layer, its weights from a truncated normal distribution."""
    layer = nn.Linear(in_features, out_features, bias)
    init(layer.weight)
    if bias:
        init(layer.bias, 0)
    return layer


def conv(in_channels: int, channels: int, side: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution with bias, its weights normal by what each one writes."""
    layer = nn.Conv2d(in_channels, channels, side, stride, side // 2, groups=groups)
    if not layer.weight.is_meta:
        nn.init.normal_(layer.weight, std=(2 * groups / (side**2 * channels)) ** 0.5)
    if layer.bias is not None:
        init(layer.bias, 0)
    return layer
