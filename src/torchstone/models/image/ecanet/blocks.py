"""Residual blocks with channel attention."""

from __future__ import annotations

from collections.abc import Callable
from math import gcd
from typing import ClassVar

import torch
from jaxtyping import Float
from timm.layers import DropPath, SEModule
from torch import Tensor, nn

from torchstone.errors import CallError, ShapeError, unknown_name
from torchstone.layers.channel_attention import EfficientChannelAttention, EfficientChannelAttentionNS


class LinearChannelGate(nn.Module):
    """The paper's steps from squeeze-and-excitation to ECA (Section 3.1, Table 2): a gate without a bottleneck.

    The C channels' means y fall into G groups of n = C / G neighbours, each with a matrix W_g of its own::

        out_c = x_c * sigmoid((W_g y_g)_c),   c in group g

    ``groups=1`` is SE-Var3 (every channel sees all), ``groups=C`` SE-Var2 (every channel sees itself), and what lies
    between is SE-GC; ``groups=None`` is SE-Var1, which has no weights: W is the identity.

    Args:
        channels: C.
        groups: G, a divisor of C, or None.

    Shape:
        (B, C, H, W) -> (B, C, H, W)

    Raises:
        CallError: groups that do not divide the channels.
        ShapeError: an input of another rank or number of channels.
    """

    def __init__(self, channels: int, groups: int | None) -> None:
        super().__init__()
        self.channels, self.groups = channels, groups
        self.weight: nn.Parameter | None = None
        if groups is None:
            return
        if groups < 1 or channels % groups:
            raise CallError(
                f"groups must divide the {channels} channels, got {groups}; for example {gcd(channels, groups)}"
            )
        size = channels // groups
        self.weight = nn.Parameter(torch.empty(groups, size, size))
        nn.init.uniform_(self.weight, -(size**-0.5), size**-0.5)  # as nn.Linear and nn.Conv1d start

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ShapeError(f"expected maps (B, {self.channels}, H, W), got a tensor of shape {tuple(x.shape)}")
        y = x.mean((2, 3))
        if self.weight is not None:
            y = torch.einsum("bgi,goi->bgo", y.unflatten(1, (len(self.weight), -1)), self.weight).flatten(1)
        return x * y.sigmoid()[:, :, None, None]

    def extra_repr(self) -> str:
        return f"channels={self.channels}, groups={self.groups}"


def _squeeze_excitation(channels: int, kernel_size: int | None) -> nn.Module:
    """SE with the reduction of 16 that the paper compares with; it looks at all channels, whatever the kernel size."""
    return SEModule(channels, rd_channels=max(1, channels // 16))


_ATTENTION: dict[str, Callable[[int, int | None], nn.Module]] = {
    "eca": EfficientChannelAttention,
    "eca_ns": EfficientChannelAttentionNS,
    "se": _squeeze_excitation,
    "se_var1": lambda channels, kernel_size: LinearChannelGate(channels, None),
    "se_var2": lambda channels, kernel_size: LinearChannelGate(channels, channels),
    "se_var3": lambda channels, kernel_size: LinearChannelGate(channels, 1),
    "se_gc": lambda channels, kernel_size: LinearChannelGate(channels, gcd(channels, 16)),
    "none": lambda channels, kernel_size: nn.Identity(),
}


def _channel_gate(attention: str, channels: int, kernel_size: int | None) -> nn.Module:
    if attention not in _ATTENTION:
        raise unknown_name("attention", attention, _ATTENTION)
    return _ATTENTION[attention](channels, kernel_size)


def _projection(in_channels: int, channels: int, stride: int) -> nn.Module:
    """The shortcut: the input itself where its shape fits, else a 1x1 convolution and batch norm."""
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


class ECABasicBlock(nn.Module):
    """Two 3x3 convolutions with ECA (ResNet-18 and 34).

    Args:
        in_channels: channels that come in.
        planes: channels that go out.
        stride: of the first convolution.
        k_size: kernel size of the attention; None for the adaptive one.
        attention: ``eca``, or for comparison ``eca_ns``, ``se`` (r = 16), ``se_var1``, ``se_var2``, ``se_var3``,
            ``se_gc`` (16 groups), ``none``.
        drop_path: rate of stochastic depth.

    Shape:
        (B, in_channels, H, W) -> (B, planes, ceil(H / stride), ceil(W / stride))
    """

    expansion: ClassVar[int] = 1

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int = 1,
        k_size: int | None = None,
        attention: str = "eca",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.eca = _channel_gate(attention, planes, k_size)
        self.act = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, planes, stride)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        branch = self.act(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        branch = self.drop_path(self.eca(branch))
        branch += self.downsample(x)
        return self.act(branch)


class ECABottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution with ECA on the wide end (ResNet-50, 101 and 152).

    Args:
        in_channels: channels that come in.
        planes: channels of the 3x3 convolution; four times as many go out.
        stride: of the 3x3 convolution.
        k_size: kernel size of the attention; None for the adaptive one.
        attention: ``eca``, or for comparison ``eca_ns``, ``se`` (r = 16), ``se_var1``, ``se_var2``, ``se_var3``,
            ``se_gc`` (16 groups), ``none``.
        drop_path: rate of stochastic depth.

    Shape:
        (B, in_channels, H, W) -> (B, 4 planes, ceil(H / stride), ceil(W / stride))
    """

    expansion: ClassVar[int] = 4

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int = 1,
        k_size: int | None = None,
        attention: str = "eca",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        channels = planes * self.expansion
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.eca = _channel_gate(attention, channels, k_size)
        self.act = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, channels, stride)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        branch = self.act(self.bn1(self.conv1(x)))
        branch = self.act(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        branch = self.drop_path(self.eca(branch))
        branch += self.downsample(x)
        return self.act(branch)


def conv_bn_relu6(in_channels: int, channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU6(inplace=True),
    )


class ECAInvertedResidual(nn.Module):
    """MobileNetV2's block with ECA behind its linear bottleneck; with a shortcut where the shape stays.

    Args:
        in_channels: channels that come in.
        channels: channels that go out.
        stride: of the depthwise convolution.
        expand_ratio: channels of the depthwise convolution as a multiple of ``in_channels``.
        k_size: kernel size of the attention; None for the adaptive one.
        attention: ``eca``, or for comparison ``eca_ns``, ``se`` (r = 16), ``se_var1``, ``se_var2``, ``se_var3``,
            ``se_gc`` (16 groups), ``none``.
        drop_path: rate of stochastic depth; it acts only where there is a shortcut.

    Shape:
        (B, in_channels, H, W) -> (B, channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        expand_ratio: int = 6,
        k_size: int | None = None,
        attention: str = "eca",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = in_channels * expand_ratio
        self.conv = nn.Sequential(
            *([conv_bn_relu6(in_channels, hidden, 1)] if expand_ratio != 1 else []),
            conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            _channel_gate(attention, channels, k_size),
        )
        self.has_shortcut = stride == 1 and in_channels == channels
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        if self.has_shortcut:
            return x + self.drop_path(self.conv(x))
        return self.conv(x)
