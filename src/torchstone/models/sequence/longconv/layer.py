"""The long convolution as a layer, (B, L, H) to (B, L, H), and the released forms of it that wrap around.

Every channel h of u (B, H, L) meets C kernels and a skip, and a linear layer mixes all C H maps at each step::

    y_ch = k_ch * u_h + D_ch u_h                     true linear convolution, c = 1 .. C
    out  = GLU(W dropout(GELU(y)) + b)               (B, L, C H) -> (B, L, 2 H) -> (B, L, H)

``direction`` says where the kernels look, all of them free of wrap-around at any length::

    causal         C kernels of l taps:      y_t = sum_j k_j u_(t-j)
    bidirectional  2 C kernels of l taps:    y_t = sum_j k_j u_(t-j) + sum_j k'_j u_(t+1+j)
    two-sided      C kernels of 2 l taps, the second half counted from the end: k' is k_(2l-1), k_(2l-2), ...

The authors' layers multiply spectra of a fixed number of points. Where kernel and sequence together are longer than
that, what runs over the end comes in again at the start. :class:`WrappedLongConv`, :class:`StandaloneLongConv` and
:class:`WrappedButterflyLongConv` are those released forms; no weights depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.errors import ShapeError, unknown_name
from torchstone.models.sequence.longconv.butterfly import BlockFFT
from torchstone.models.sequence.longconv.kernels import LongConvKernel
from torchstone.ops.long_conv import long_conv, monarch_conv

DIRECTIONS = ("causal", "bidirectional", "two-sided")


def _laplace(x: Tensor) -> Tensor:
    """The distribution function of a normal of mean sqrt(1/2) and variance 1/(4 pi): Mega's stand-in for relu(x)^2."""
    return 0.5 * (1 + torch.erf((x - 0.707107) / (0.282095 * 2**0.5)))


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "id": lambda x: x,
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "squared_relu": lambda x: F.relu(x).square(),
    "laplace": _laplace,
}


class Activation(nn.Module):
    """An activation by name: ``gelu`` (exact), ``relu``, ``silu``, ``tanh``, ``sigmoid``, ``squared_relu``,
    ``laplace``, ``id``."""

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in ACTIVATIONS:
            raise unknown_name("activation", name, ACTIVATIONS)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.name](x)

    def extra_repr(self) -> str:
        return self.name


class TiedDropout(nn.Module):
    """Drops whole channels of a sequence (B, L, H): one draw for all steps."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x * F.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), self.p, self.training) if self.training else x

    def extra_repr(self) -> str:
        return f"p={self.p}"


def make_dropout(p: float, tied: bool) -> nn.Module:
    """Dropout of single values, or of whole channels where it is tied over the length."""
    return nn.Identity() if p == 0 else TiedDropout(p) if tied else nn.Dropout(p)


def mask_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Zero the steps behind each sequence's end: x (B, L, H), lengths (B,) of integers, or None for full sequences."""
    if lengths is None:
        return x
    padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]  # (B, L)
    return x.masked_fill(padding.unsqueeze(-1), 0.0)


class LongConv(nn.Module):
    """A layer of long convolutions.

    Args:
        width: H, channels of the sequence.
        max_length: l, the kernels' reach in steps. Longer sequences are taken; what is farther apart does not meet.
        maps: C, kernels of each channel.
        direction: ``"causal"``, ``"bidirectional"`` or ``"two-sided"``.
        activation: behind the convolution, a name of :data:`ACTIVATIONS`.
        mixing: what follows the linear layer: ``"glu"``, a name of :data:`ACTIVATIONS`, or None for no linear layer
            (then C must be 1 for a residual block to fit).
        dropout: rate between activation and linear layer.
        tie_dropout: one draw for all steps of a channel.
        kernel: arguments of :class:`LongConvKernel`: ``squash``, ``dropout``, ``smooth``, ``window``, ``init``, ``lr``.

    Source: the authors' ``LongConv``.
    """

    def __init__(
        self,
        width: int,
        max_length: int,
        *,
        maps: int = 1,
        direction: str = "causal",
        activation: str = "gelu",
        mixing: str | None = "glu",
        dropout: float = 0.0,
        tie_dropout: bool = False,
        kernel: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if direction not in DIRECTIONS:
            raise unknown_name("direction", direction, DIRECTIONS)
        self.width, self.max_length, self.direction = width, max_length, direction
        self.D = nn.Parameter(torch.randn(maps, width))
        banks = 2 * maps if direction == "bidirectional" else maps
        taps = 2 * max_length if direction == "two-sided" else max_length
        self.kernel = LongConvKernel(banks, width, taps, **(kernel or {}))
        self.activation = Activation(activation)
        self.dropout = make_dropout(dropout, tie_dropout)
        self.output_linear: nn.Module = nn.Identity()
        self.output_activation: nn.Module = nn.Identity()
        if mixing == "glu":
            self.output_linear = nn.Linear(maps * width, 2 * width)
            self.output_activation = nn.GLU()
        elif mixing is not None:
            self.output_linear = nn.Linear(maps * width, width)
            self.output_activation = Activation(mixing)

    def taps(self, kernel: Tensor) -> tuple[Tensor, Tensor | None]:
        """The kernels apart: forward (C, H, l), which looks back, and backward (C, H, l), which looks ahead."""
        if self.direction == "causal":
            return kernel, None
        if self.direction == "bidirectional":
            forward, backward = kernel.chunk(2)
            return forward, backward
        return kernel[..., : self.max_length], kernel[..., self.max_length :].flip(-1)

    def convolve(self, u: Tensor, kernel: Tensor) -> Tensor:
        """(B, H, L) with kernels as :class:`LongConvKernel` gives them to (B, C, H, L)."""
        return long_conv(u, *self.taps(kernel))

    def respond(self, u: Tensor) -> Tensor:
        """Convolution and skip, (B, H, L) to (B, C, H, L): the skip is a part of the tap of the present."""
        kernel, maps = self.kernel(), len(self.D)
        present = kernel[:maps, :, :1] + self.D.unsqueeze(-1)
        forward = torch.cat([present, kernel[:maps, :, 1:]], -1)
        return self.convolve(u, torch.cat([forward, kernel[maps:]]) if len(kernel) > maps else forward)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Convolve.

        Args:
            x: (B, L, H).
            lengths: (B,), steps of each sequence that are real; what is behind them counts as zero.

        Returns:
            (B, L, H); without the linear layer (B, L, C H), the C maps one after the other.

        Raises:
            ShapeError: x is no batch of sequences of H channels.
        """
        if x.ndim != 3 or x.shape[-1] != self.width:
            raise ShapeError(f"a long convolution takes sequences (B, L, {self.width}), got {tuple(x.shape)}")
        u = mask_padding(x, lengths).transpose(1, 2)  # (B, H, L)
        y = self.respond(u).flatten(1, 2).transpose(1, 2).contiguous()  # (B, L, C H), as the linear layer wants it
        y = self.dropout(self.activation(y))
        return self.output_activation(self.output_linear(y))

    def extra_repr(self) -> str:
        return f"width={self.width}, max_length={self.max_length}, direction={self.direction}"


# The released forms ---------------------------------------------------------------------------------------------------


def circular_kernel(forward: Tensor, backward: Tensor | None, points: int) -> Tensor:
    """Kernels of both directions as one circular kernel: (..., l) each to (..., points), backward taps from the end."""
    kernel = F.pad(forward, (0, points - forward.shape[-1]))
    if backward is None:
        return kernel
    return kernel + F.pad(backward.flip(-1), (points - backward.shape[-1], 0))


def released_kernel(layer: LongConv, kernel: Tensor, length: int) -> Tensor:
    """The kernels as the authors multiply them: (C, H, taps), padded or cut to the points by the transform.

    Raises:
        ShapeError: a bidirectional layer's sequence is not as long as its kernels.
    """
    if layer.direction != "bidirectional":
        return kernel
    if length != layer.max_length:
        raise ShapeError(
            f"the authors' bidirectional layer takes sequences of {layer.max_length} steps, got {length}; "
            "LongConv takes any length"
        )
    return circular_kernel(*layer.taps(kernel), points=2 * length)


class WrappedLongConv(LongConv):
    """The authors' layer: a product of spectra of min(L, l) + L points, so that what runs over the end wraps around.

    It equals :class:`LongConv` when the sequence has the kernels' length. For shorter ones the kernel keeps the taps
    that fit into the points, late taps meet the first steps, and a two-sided kernel's backward half begins at tap L.

    Raises:
        ShapeError: a bidirectional layer takes sequences of exactly ``max_length`` steps.
    """

    def points(self, length: int) -> int:
        """Of the spectra for a sequence of so many steps."""
        return min(length, self.max_length) + length

    def convolve(self, u: Tensor, kernel: Tensor) -> Tensor:
        length = u.shape[-1]
        points = self.points(length)
        spectrum = torch.fft.rfft(released_kernel(self, kernel, length), n=points)  # (C, H, points / 2 + 1)
        product = torch.fft.rfft(u.float(), n=points).unsqueeze(1) * spectrum  # (B, C, H, points / 2 + 1)
        return torch.fft.irfft(product, n=points)[..., :length]


class StandaloneLongConv(WrappedLongConv):
    """The layer of the authors' standalone model: two-sided kernels and 2 L points at every length."""

    def __init__(self, width: int, max_length: int, *, direction: str = "two-sided", **kwargs: Any) -> None:
        super().__init__(width, max_length, direction=direction, **kwargs)

    def points(self, length: int) -> int:
        return 2 * length


# Learned butterflies --------------------------------------------------------------------------------------------------


class ButterflyLongConv(LongConv):
    """A long convolution whose forward transforms are butterflies (:class:`BlockFFT`), one for sequences and one for
    kernels; the inverse is the exact one::

        y = Re DFT^-1(B_u(u) B_k(k))      over a power of two of points with which nothing wraps around

    With the exact matrices that it starts from it is :class:`LongConv`.

    Args:
        butterfly: arguments of :class:`BlockFFT`: ``learned``, ``additive``, ``channels``, ``dropout``,
            ``activation``, ``lr``.
        others: as in :class:`LongConv`.
    """

    def __init__(
        self, width: int, max_length: int, *, butterfly: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(width, max_length, **kwargs)
        self.block_fft_u = BlockFFT(**(butterfly or {}))
        self.block_fft_k = BlockFFT(**(butterfly or {}))

    def respond(self, u: Tensor) -> Tensor:
        """Convolution and skip; the skip does not go through the transforms."""
        return self.convolve(u, self.kernel()) + u.unsqueeze(1) * self.D.unsqueeze(-1)

    def convolve(self, u: Tensor, kernel: Tensor) -> Tensor:
        return monarch_conv(
            u,
            *self.taps(kernel),
            matrices=self.block_fft_u.matrices(),
            kernel_matrices=self.block_fft_k.matrices(),
            activation=self.block_fft_u.act if self.block_fft_u.activation else None,
        )


class WrappedButterflyLongConv(ButterflyLongConv):
    """The authors' butterfly layer: forward transforms of a power of two from n = min(L, l) + L points on, an inverse
    of n points, which leaves out the frequencies beyond. Where these numbers differ it is no convolution.

    Raises:
        ShapeError: a bidirectional layer takes sequences of exactly ``max_length`` steps.
    """

    def convolve(self, u: Tensor, kernel: Tensor) -> Tensor:
        length = u.shape[-1]
        points = min(length, self.max_length) + length
        size = 1 << (points - 1).bit_length()
        released = released_kernel(self, kernel, length)[..., :size]
        product = self.block_fft_u(u, size).unsqueeze(1) * self.block_fft_k(released, size)  # (B, C, H, size)
        return torch.fft.ifft(product, n=points).real[..., :length]
