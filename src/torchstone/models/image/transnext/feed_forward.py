"""The feed-forward networks: the paper's convolutional GLU, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from torchstone.models.image.transnext.initialization import conv, linear


class ConvolutionalGLU(nn.Module):
    """``W2 (GELU(DWConv_3x3(U)) * V)`` with ``(U, V) = W1 X``: a gated linear unit whose gate sees the neighbours.

    Args:
        dim: channels C.
        ratio: hidden channels as a multiple of C, before they are cut to two thirds for the gate's sake.
        drop: dropout of the hidden channels and of the output.
        convolve: whether there is the convolution; without it, a plain GLU.

    Shape:
        (B, H, W, C) -> (B, H, W, C)

    Source:
        Shi, TransNeXt, CVPR 2024, Section 3.5.
    """

    def __init__(self, dim: int, ratio: float, drop: float = 0.0, convolve: bool = True) -> None:
        super().__init__()
        hidden = int(2 * int(dim * ratio) / 3)
        self.fc1 = linear(dim, 2 * hidden)
        self.dwconv = conv(hidden, hidden, 3, groups=hidden) if convolve else nn.Identity()
        self.fc2 = linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        gate, value = self.fc1(x).chunk(2, -1)
        gate = self.dwconv(gate.contiguous().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.drop(self.fc2(self.drop(F.gelu(gate) * value)))


class ConvolutionalMLP(nn.Module):
    """``W2 GELU(DWConv_3x3(W1 X))``, as in PVTv2: no gate, all hidden channels, and so about as many parameters.

    Args:
        dim: channels C.
        ratio: hidden channels as a multiple of C.
        drop: dropout of the hidden channels and of the output.

    Shape:
        (B, H, W, C) -> (B, H, W, C)
    """

    def __init__(self, dim: int, ratio: float, drop: float = 0.0) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.fc1 = linear(dim, hidden)
        self.dwconv = conv(hidden, hidden, 3, groups=hidden)
        self.fc2 = linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        hidden = self.dwconv(self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.drop(self.fc2(self.drop(F.gelu(hidden))))


def _glu(dim: int, ratio: float, drop: float) -> nn.Module:
    return ConvolutionalGLU(dim, ratio, drop, convolve=False)


FEED_FORWARDS: dict[str, Callable[[int, float, float], nn.Module]] = {
    "conv_glu": ConvolutionalGLU,
    "glu": _glu,
    "conv_mlp": ConvolutionalMLP,
}
"""By name; the paper's is the first, the others are those of its ablation."""
