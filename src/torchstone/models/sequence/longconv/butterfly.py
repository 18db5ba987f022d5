"""The discrete Fourier transform as a butterfly of small matrices, exact or learned.

A transform of N = n m points is m-point transforms along one axis of an (m, n) grid, twiddle factors, and n-point
transforms along the other; with m = 16 and recursion on n, it is a chain of 16 x 16 matrix products::

    x_(b n + a) as (m, n)          grid, a = 0 .. n-1, b = 0 .. m-1
    z_(c a) = sum_b F_m[c, b] x_(b a)         m-point transforms
    z_(a c) <- exp(-2 pi i a c / (n m)) z     twiddles
    X_(d m + c) = sum_a F_n[d, a] z_(a c)     n-point transforms (recursively)

FlashButterfly runs this on tensor cores. The learned butterfly makes the matrices F_2, F_4, F_8, F_16 parameters: each
place that needs a size uses the same one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.errors import CallError, unknown_name

Complex = Tensor


def power_of_two(points: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << max(0, math.ceil(math.log2(points)))


def dft_matrix(points: int, device: torch.device | None = None) -> Complex:
    """exp(-2 pi i j k / points), (points, points), complex64."""
    index = torch.arange(points, device=device, dtype=torch.float64)
    angle = -2 * math.pi / points * torch.outer(index, index).remainder(points)
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def twiddles(n: int, m: int, device: torch.device | None = None) -> Complex:
    """exp(-2 pi i a b / (n m)), (n, m), complex64."""
    rows = torch.arange(n, device=device, dtype=torch.float64)
    angle = -2 * math.pi / (n * m) * torch.outer(rows, torch.arange(m, device=device, dtype=torch.float64))
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def butterfly(
    x: Complex,
    matrix: Callable[[int], Complex],
    radix: int = 16,
    activation: Callable[[Tensor], Tensor] | None = None,
) -> Complex:
    """The transform over the last axis, its small transforms done by matrices that are given.

    Args:
        x: complex (..., H, N), N a power of two.
        matrix: the p-point transform, (p, p) or (H, p, p), for p up to the radix.
        radix: m, a power of two.
        activation: acts on real and imaginary parts after every matrix product (not after the twiddles).

    Returns:
        complex (..., H, N), frequencies in their natural order.
    """

    def small(p: int, grid: Complex) -> Complex:
        """p-point transforms down the columns of (..., H, p, q)."""
        y = matrix(p) @ grid
        return y if activation is None else torch.view_as_complex(activation(torch.view_as_real(y)))

    points = x.shape[-1]
    if points <= radix:
        return small(points, x.unsqueeze(-1)).squeeze(-1)
    n = points // radix
    z = small(radix, x.unflatten(-1, (radix, n)))  # (..., H, m, n)
    z = z.transpose(-1, -2) * twiddles(n, radix, x.device)  # (..., H, n, m)
    if n <= radix:
        return small(n, z).flatten(-2)
    z = butterfly(z.movedim(-1, -3), matrix, radix, activation)  # (..., m, H, n)
    return z.movedim(-3, -1).flatten(-2)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": F.tanh}


class BlockFFT(nn.Module):
    """A Fourier transform by small matrices, which may be learned.

    Args:
        learned: the matrices are parameters, starting at the exact ones (with ``additive``, near them).
        additive: F_p + dropout(parameter), the parameter starting at 0.01 N(0, 1).
        channels: sets of matrices: 1, shared by all channels, or one for each of H.
        radix: the largest matrix, a power of two.
        dropout: rate on learned entries while training.
        activation: ``"relu"``, ``"gelu"``, ``"silu"`` or ``"tanh"``, on real and imaginary parts after every matrix.
        lr: learning rate of the matrices, which never decay.

    Raises:
        CallError: a radix that is no power of two, a learning rate or a dropout out of range, additive without learned.
        UnknownName: an activation that does not exist.
    """

    def __init__(
        self,
        *,
        learned: bool = True,
        additive: bool = False,
        channels: int = 1,
        radix: int = 16,
        dropout: float = 0.0,
        activation: str | None = None,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        if radix < 2 or radix & (radix - 1):
            raise CallError(
                f"radix must be a power of two from 2 on, got {radix}; the nearest is {power_of_two(radix)}"
            )
        if not lr > 0:
            raise CallError(f"the learning rate of the matrices must be positive, got {lr}")
        if not 0 <= dropout < 1:
            raise CallError(f"dropout must be at least 0 and below 1, got {dropout}")
        if additive and not learned:
            raise CallError("additive says how matrices are learned; it needs learned=True")
        if activation is not None and activation not in _ACTIVATIONS:
            raise unknown_name("activation", activation, _ACTIVATIONS)
        self.learned, self.additive, self.radix, self.dropout, self.lr = learned, additive, radix, dropout, lr
        self.activation = activation
        if learned:
            for points in self.sizes():
                exact = torch.view_as_real(dft_matrix(points)).expand(channels, points, points, 2)
                start = 0.01 * torch.randn(exact.shape) if additive else exact.clone()
                self.register_parameter(f"mat_{points}", nn.Parameter(start))  # (channels, p, p, 2)

    def sizes(self) -> list[int]:
        """2, 4, ..., radix."""
        return [1 << power for power in range(1, self.radix.bit_length())]

    def parameter_settings(self) -> dict[str, dict[str, Any]]:
        """How the optimizer treats the matrices: their own learning rate, no weight decay."""
        return (
            {f"mat_{points}": {"lr": self.lr, "weight_decay": 0.0} for points in self.sizes()} if self.learned else {}
        )

    def matrix(self, points: int, device: torch.device | None = None) -> Complex:
        """The transform of so many points, (channels, p, p) or (p, p), complex."""
        if points == 1 or not self.learned:
            return dft_matrix(points, device)
        parameter = F.dropout(self.get_parameter(f"mat_{points}"), self.dropout, self.training)
        learned = torch.view_as_complex(parameter)
        return dft_matrix(points, device) + learned if self.additive else learned

    def forward(self, x: Tensor, points: int) -> Complex:
        """The transform of ``points`` points, rounded up to a power of two; x is padded with zeros behind.

        Args:
            x: real or complex, (..., H, L).
            points: at least L.

        Returns:
            complex (..., H, power of two).

        Raises:
            CallError: fewer points than the sequence has.
        """
        points = power_of_two(points)
        if x.shape[-1] > points:
            raise CallError(f"a transform of {points} points is too short for {x.shape[-1]} values")
        padded = F.pad(x, (0, points - x.shape[-1])).to(torch.complex64)
        activation = None if self.activation is None else _ACTIVATIONS[self.activation]
        return butterfly(padded, partial(self.matrix, device=x.device), self.radix, activation)

    def inverse(self, x: Tensor, points: int) -> Complex:
        """conj(B(conj(x))) / points, the inverse transform when the matrices are exact; shapes as in :meth:`forward`."""
        return self(x.conj().resolve_conj(), points).conj() / points

    def extra_repr(self) -> str:
        return f"learned={self.learned}, additive={self.additive}, radix={self.radix}"
