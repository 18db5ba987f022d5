"""The blocks around a token mixer, and the layers that shrink the map between stages."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from timm.layers import DropPath, LayerNorm2d
from torch import Tensor, nn


class DepthwiseMlp(nn.Module):
    """``W2 GELU(DW(W1 x))`` for a map (B, H, W, C); DW, a depthwise 3x3 convolution, only with ``dwconv``."""

    def __init__(self, dim: int, hidden: int, dwconv: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if dwconv else None
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        x = self.fc1(x)
        if self.dwconv is not None:
            x = self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(self.act(x))


class BiFormerBlock(nn.Module):
    """A position-giving convolution, a token mixer and an MLP, each with a shortcut.

    ``x = x + DW(x)``, then ``x = x + g1 mixer(LN x)`` and ``x = x + g2 MLP(LN x)``; with ``pre_norm=False``
    ``x = LN(x + g1 mixer(x))`` and ``x = LN(x + g2 MLP(x))``.

    Args:
        dim: channels C.
        mixer: from a map (B, H, W, C) to one like it.
        mlp_ratio: hidden channels of the MLP as a multiple of C.
        mlp_dwconv: a depthwise convolution inside the MLP.
        before_attn_dwconv: side of the convolution DW, odd; 0 for none.
        layer_scale: initial value of the scales g1 and g2 of each channel; None for no scales.
        pre_norm: see above.
        drop_path: probability that a sample skips a branch while training.

    Shape:
        (B, C, H, W) -> (B, C, H, W)
    """

    gamma1: Tensor | None
    gamma2: Tensor | None

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        *,
        mlp_ratio: float = 3.0,
        mlp_dwconv: bool = False,
        before_attn_dwconv: int = 3,
        layer_scale: float | None = None,
        pre_norm: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        side = before_attn_dwconv
        self.pos_embed = nn.Conv2d(dim, dim, side, padding=side // 2, groups=dim) if side else None
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = mixer
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = DepthwiseMlp(dim, int(mlp_ratio * dim), mlp_dwconv)
        for name in ("gamma1", "gamma2"):
            scale = None if layer_scale is None else nn.Parameter(torch.full((dim,), float(layer_scale)))
            self.register_parameter(name, scale)
        self.pre_norm = pre_norm
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if self.pos_embed is not None:
            x = x + self.pos_embed(x)
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        x = self._branch(x, self.norm1, self.attn, self.gamma1)
        x = self._branch(x, self.norm2, self.mlp, self.gamma2)
        return x.permute(0, 3, 1, 2)

    def _branch(self, x: Tensor, norm: nn.Module, layer: nn.Module, scale: Tensor | None) -> Tensor:
        y = layer(norm(x) if self.pre_norm else x)
        y = x + self.drop_path(y if scale is None else scale * y)
        return y if self.pre_norm else norm(y)


class BiFormerBlock2d(nn.Module):
    """``x = x + mixer(LN x)``, ``x = x + MLP(LN x)`` with 1x1 convolutions, norms over channels.

    Args:
        dim: channels C.
        mixer: from a map (B, C, H, W) to one like it.
        mlp_ratio: hidden channels of the MLP as a multiple of C.
        drop_path: probability that a sample skips a branch while training.

    Shape:
        (B, C, H, W) -> (B, C, H, W)
    """

    def __init__(self, dim: int, mixer: nn.Module, *, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> None:
        super().__init__()
        hidden = int(mlp_ratio * dim)
        self.norm1 = LayerNorm2d(dim, eps=1e-6)
        self.attn = mixer
        self.norm2 = LayerNorm2d(dim, eps=1e-6)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Conv2d(dim, hidden, 1))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("fc2", nn.Conv2d(hidden, dim, 1))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


# Between stages -------------------------------------------------------------------------------------------------------


def stem(in_chans: int, dim: int, stride: int) -> nn.Sequential:
    """Two overlapping 3x3 convolutions: (B, in_chans, H, W) -> (B, dim, H / stride, W / stride), rounded up."""
    return nn.Sequential(
        nn.Conv2d(in_chans, dim // 2, 3, 2, 1),
        nn.BatchNorm2d(dim // 2),
        nn.GELU(),
        nn.Conv2d(dim // 2, dim, 3, stride // 2, 1),
        nn.BatchNorm2d(dim),
    )


def halve(in_channels: int, dim: int) -> nn.Sequential:
    """One more: (B, in_channels, H, W) -> (B, dim, H / 2, W / 2), rounded up."""
    return nn.Sequential(nn.Conv2d(in_channels, dim, 3, 2, 1), nn.BatchNorm2d(dim))


def patches(in_chans: int, dims: Sequence[int]) -> list[nn.Module]:
    """Of each stage the layer in front: patches of 4x4 pixels, then of 2x2 of the stage before, sides rounded down."""
    first = nn.Sequential(nn.Conv2d(in_chans, dims[0], 4, 4), nn.BatchNorm2d(dims[0]))
    merges = (nn.Sequential(nn.BatchNorm2d(a), nn.Conv2d(a, b, 2, 2)) for a, b in pairwise(dims))
    return [first, *merges]
