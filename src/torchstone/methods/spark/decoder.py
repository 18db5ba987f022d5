"""From sparse maps to pixels: mask tokens fill the hidden positions, a light UNet decoder doubles the resolution."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from timm.layers import LayerNorm2d, trunc_normal_
from torch import Tensor, nn

from torchstone.errors import CallError
from torchstone.methods.spark.sparse import Visible, rows_of, strip_of


class Densify(nn.Module):
    """One map of the encoder, dense, in the decoder's channels (Section 3.2)::

        z = proj(where(visible, norm(x), mask_token))

    Args:
        channels: C of the encoder's map.
        width: D of the decoder at this resolution.
        norm: ``bn`` or ``ln``, over visible positions.
        kernel_size: of the projection; 1 for the deepest map, 3 for the others. A 1x1 projection between equal widths
            is left out.

    Shape:
        (B, C, H, W) -> (B, D, H, W)
    """

    def __init__(self, channels: int, width: int, norm: str, kernel_size: int) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm2d(channels) if norm == "bn" else LayerNorm2d(channels, eps=1e-6)
        self.mask_token = nn.Parameter(torch.zeros(1, channels, 1, 1))
        trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        self.proj: nn.Module = nn.Identity()
        if kernel_size > 1 or channels != width:
            self.proj = nn.Conv2d(channels, width, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Float[Tensor, "b c h w"], visible: Visible) -> Float[Tensor, "b d h w"]:
        height, width = x.shape[2:]
        rows = rows_of(self.norm(strip_of(visible.take(x.permute(0, 2, 3, 1)))))
        dense = visible.put(rows, height, width).permute(0, 3, 1, 2)
        return self.proj(torch.where(visible.mask(height, width, torch.bool), dense, self.mask_token.to(dense.dtype)))


class UNetBlock(nn.Module):
    """Twice the resolution: a transposed convolution, then conv, BN, ReLU6, conv, BN.

    Shape:
        (B, C, H, W) -> (B, D, 2H, 2W)
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.up_sample = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1)
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU6(inplace=True),
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        return self.conv(self.up_sample(x))


class LightDecoder(nn.Module):
    """The decoder: blocks of D, D/2, D/4, ... channels, each of which also takes an encoder map of its resolution::

        x_0 = block_0(z_0)        x_j = block_j(x_{j-1} + z_j)        prediction = conv_1x1(x_{n-1})

    Args:
        stride: total stride r of the network, a power of two; n = log2 r blocks.
        width: D, divisible by r.
        channels: of the prediction.

    Raises:
        CallError: a stride or width that cannot be halved so often.

    Shape:
        maps z_j (B, D / 2^j, h 2^j, w 2^j), at most n -> (B, channels, h r, w r)
    """

    def __init__(self, stride: int, width: int, channels: int = 3) -> None:
        super().__init__()
        blocks = stride.bit_length() - 1
        if stride < 2 or stride != 2**blocks:
            raise CallError(f"the total stride of the network must be a power of two from 2 on, got {stride}")
        if width < 1 or width % stride:
            fitting = max(1, round(width / stride)) * stride
            raise CallError(
                f"width must be a multiple of the network's total stride {stride}, got {width}; {fitting} fits"
            )
        widths = [width // 2**i for i in range(blocks + 1)]
        self.dec = nn.ModuleList(UNetBlock(c, d) for c, d in pairwise(widths))
        self.proj = nn.Conv2d(widths[-1], channels, 1)
        self._initialise()

    def forward(self, maps: Sequence[Float[Tensor, "b c h w"]]) -> Float[Tensor, "b k p q"]:
        x = self.dec[0](maps[0])
        for j, block in enumerate(self.dec[1:], start=1):
            x = block(x + maps[j] if j < len(maps) else x)
        return self.proj(x)

    @torch.no_grad()
    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                trunc_normal_(module.weight, std=0.02)
            elif isinstance(module, nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
