"""The inverted residual block of mobile networks, and the layers it is made of."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import DropPath
from torch import Tensor, nn


class SameConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 1 or 2 whose output has 1/stride of the (even) input's height and width.

    At stride 2 it pads one pixel at the right and lower border only, where TensorFlow puts it.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, groups: int = 1, bias: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, 3, stride, padding=int(stride == 1), groups=groups, bias=bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.stride[0] == 2 else x)


class SqueezeExcitation(nn.Module):
    """``X * sigmoid(W2 SiLU(W1 mean(X)))``.

    Shape:
        (B, channels, H, W) -> (B, channels, H, W)
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x * self.fc2(F.silu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class Shortcut(nn.Module):
    """The map beside a branch: pooled for stride 2, projected for other channels."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2) if stride == 2 else nn.Identity()
        self.expand = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        return self.expand(self.pool(x))


class MBConv(nn.Module):
    """Inverted residual with squeeze-and-excitation and a norm in front.

    ``shortcut(X) + W_c SE(act norm DWConv_3x3 act norm W_e norm(X))``

    Args:
        in_channels: channels of the input.
        channels: channels C of the output.
        stride: 1 or 2.
        norm: called with the channels.
        act: activation.
        expansion: hidden channels as a multiple of C.
        squeeze: channels that squeeze-and-excitation narrows to, as a share of C.
        drop_path: probability that a sample skips the branch while training.

    Shape:
        (B, in_channels, H, W) -> (B, C, H / stride, W / stride), H and W even for stride 2

    Source: the form of Tu et al., MaxViT (ECCV 2022); Sandler et al., MobileNetV2 (CVPR 2018), and Tan and Le,
    EfficientNet (ICML 2019), have no norm in front, and one behind.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        *,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        act: Callable[[], nn.Module] = nn.GELU,
        expansion: int = 4,
        squeeze: float = 0.25,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = expansion * channels
        self.shortcut = Shortcut(in_channels, channels, stride)
        self.pre_norm = norm(in_channels)
        self.conv1_1x1 = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.norm1 = norm(hidden)
        self.conv2_kxk = SameConv2d(hidden, hidden, stride, groups=hidden, bias=False)
        self.norm2 = norm(hidden)
        self.act = act()
        self.se = SqueezeExcitation(hidden, int(squeeze * channels))
        self.conv3_1x1 = nn.Conv2d(hidden, channels, 1)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        branch = self.act(self.norm1(self.conv1_1x1(self.pre_norm(x))))
        branch = self.se(self.act(self.norm2(self.conv2_kxk(branch))))
        return self.shortcut(x) + self.drop_path(self.conv3_1x1(branch))
