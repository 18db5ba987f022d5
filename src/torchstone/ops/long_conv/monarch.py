"""The Fourier transform as products with small matrices: the block, Butterfly or Monarch decomposition.

A transform of N = 16 n points, index ``i = i_m n + i_n`` in and ``k = k_n 16 + k_m`` out, is

    X[k_n 16 + k_m] = sum_{i_n} w(n)^(i_n k_n)  w(N)^(i_n k_m)  sum_{i_m} w(16)^(i_m k_m) x[i_m n + i_n],

``w(p) = exp(-2 pi i / p)``: a product with the 16 x 16 matrix of the transform along ``i_m``, an elementwise product
with twiddle factors, and a transform of n points along ``i_n``, which is decomposed in the same way until n <= 16. Only
matrices of 2, 4, 8 and 16 rows occur; learned ones in their place make another, trainable, transform.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Complex, Inexact
from torch import Tensor

from torchstone.errors import CallError, ShapeError
from torchstone.ops.dispatch import accurate
from torchstone.ops.long_conv.reference import transform_length

BLOCK = 16
"""Rows of the largest matrix."""

Activation = Callable[[Tensor], Tensor]
Matrices = Mapping[int, Tensor]


def block_fft(
    x: Inexact[Tensor, "*batch length"],
    matrices: Matrices | None = None,
    *,
    points: int | None = None,
    activation: Activation | None = None,
) -> Complex[Tensor, "*batch points"]:
    """Discrete Fourier transform along the last axis by products with matrices of at most 16 rows.

    With the exact matrices it is ``torch.fft.fft(x, points)`` up to rounding, in natural order.

    Args:
        x: real or complex, (..., H, L); zeros follow where it is shorter than the transform.
        matrices: by their number of rows p, complex (p, p) or (H, p, p), one for all channels or one for each; one of
            a size serves every place that needs the size. :func:`dft_matrices` by default.
        points: of the transform, rounded up to a power of two; L by default.
        activation: applied to the real and the imaginary part of every product with a matrix.

    Returns:
        Complex (..., H, N), N being the power of two.

    Raises:
        ShapeError: more elements than points, or matrices that do not fit.
        CallError: a size among the matrices is missing.
    """
    length = x.shape[-1]
    points = length if points is None else points
    if length > points or points < 1:
        raise ShapeError(f"a transform of {points} points cannot take {length} elements, got x of {tuple(x.shape)}")
    size = 1 << (points - 1).bit_length()
    x = torch.nn.functional.pad(_complex(x), (0, size - length))
    used = {rows: _matrix(rows, matrices, x) for rows in block_sizes(size)}
    return _transform(x.unsqueeze(-2), used, activation).squeeze(-2)


def inverse_block_fft(
    x: Inexact[Tensor, "*batch length"],
    matrices: Matrices | None = None,
    *,
    points: int | None = None,
    activation: Activation | None = None,
) -> Complex[Tensor, "*batch points"]:
    """The inverse transform with the same matrices: ``conj(block_fft(conj(x))) / N``.

    Args:
        x: as of :func:`block_fft`.
        matrices: as of :func:`block_fft`.
        points: as of :func:`block_fft`.
        activation: as of :func:`block_fft`.

    Returns:
        Complex (..., H, N).

    Raises:
        ShapeError: more elements than points, or matrices that do not fit.
        CallError: a size among the matrices is missing.
    """
    y = block_fft(_complex(x).conj(), matrices, points=points, activation=activation)
    return y.conj() / y.shape[-1]


def block_sizes(points: int) -> list[int]:
    """Rows of the matrices that a transform of a power of two of points needs, without the trivial one of 1."""
    sizes = set()
    while points > BLOCK:
        sizes.add(BLOCK)
        points //= BLOCK
    return sorted(sizes | ({points} - {1}))


def dft_matrices(
    sizes: tuple[int, ...] = (2, 4, 8, 16), *, dtype: torch.dtype = torch.complex64, device: torch.device | None = None
) -> dict[int, Tensor]:
    """The exact matrices, ``exp(-2 pi i j k / p)``, by their number of rows p."""
    return {size: _roots(size, size, size, dtype, device) for size in sizes}


def convolve_by_blocks(
    u: Tensor,
    taps: Tensor,
    ahead: int,
    matrices: Matrices | None = None,
    taps_matrices: Matrices | None = None,
    activation: Activation | None = None,
) -> Tensor:
    """The convolution with taps by lag: u (B, H, L) and taps (C, H, J) to (B, C, H, L)."""
    length = u.shape[-1]
    dtype, result = accurate(u, taps), torch.promote_types(u.dtype, taps.dtype)
    if not (u.numel() and taps.numel()):
        return torch.einsum("bhl,chj->bchl", u.to(result), taps.to(result))  # sums of nothing
    points = transform_length(length, taps.shape[-1], ahead)
    u_spectrum = block_fft(u.to(dtype), matrices, points=points, activation=activation)[:, None]
    spectrum = u_spectrum * block_fft(taps.to(dtype), taps_matrices, points=points, activation=activation)
    return inverse_block_fft(spectrum).real[..., ahead : ahead + length].to(result)


def _transform(x: Tensor, matrices: Matrices, activation: Activation | None) -> Tensor:
    """Transform the last axis of (..., H, R, N)."""
    size = x.shape[-1]
    if size == 1:
        return x
    if size <= BLOCK:
        return _product(matrices[size], x[..., None], activation)[..., 0]
    rest = size // BLOCK
    x = _product(matrices[BLOCK], x.unflatten(-1, (BLOCK, rest)), activation)  # (..., H, R, k_m, i_n)
    x = x * _roots(BLOCK, rest, size, x.dtype, x.device)
    x = _transform(x.flatten(-3, -2), matrices, activation)  # (..., H, R k_m, k_n)
    return x.unflatten(-2, (-1, BLOCK)).transpose(-2, -1).flatten(-2)


def _product(matrix: Tensor, x: Tensor, activation: Activation | None) -> Tensor:
    """(H or 1, p, p) times (..., H, R, p, q)."""
    x = matrix[:, None] @ x
    if activation is None:
        return x
    return torch.complex(activation(x.real), activation(x.imag))


def _roots(rows: int, columns: int, size: int, dtype: torch.dtype, device: torch.device | None) -> Tensor:
    """``exp(-2 pi i j k / size)``, (rows, columns), computed in double precision."""
    exponents = torch.outer(torch.arange(rows, device=device), torch.arange(columns, device=device)) % size
    angles = exponents.to(torch.float64) * (-2 * math.pi / size)
    return torch.polar(torch.ones_like(angles), angles).to(dtype)


def _complex(x: Tensor) -> Tensor:
    return x if x.is_complex() else x.to(torch.complex128 if x.dtype == torch.float64 else torch.complex64)


def _matrix(rows: int, matrices: Matrices | None, x: Tensor) -> Tensor:
    """The matrix of a size as (H or 1, p, p)."""
    if matrices is None:
        return _roots(rows, rows, rows, x.dtype, x.device)[None]
    if rows not in matrices:
        raise CallError(f"a transform of {x.shape[-1]} points needs a matrix of {rows} rows, given are {[*matrices]}")
    matrix = matrices[rows]
    if matrix.shape[-2:] != (rows, rows) or matrix.ndim not in (2, 3):
        fitting = f"({rows}, {rows}) or (H, {rows}, {rows})"
        raise ShapeError(f"the matrix of {rows} rows must be {fitting}, got {tuple(matrix.shape)}")
    if matrix.ndim == 3 and (x.ndim < 2 or matrix.shape[0] not in (1, x.shape[-2])):
        raise ShapeError(f"matrices of {matrix.shape[0]} channels do not fit x of shape {tuple(x.shape)}")
    return matrix if matrix.ndim == 3 else matrix[None]
