"""Long convolutions that stay on chip: the Monarch decomposition of their Fourier transforms in two products.

N = N1 N2 points, index ``n = n1 N2 + n2`` in and ``k = k1 + N1 k2`` out, laid out as N1 x N2 matrices:

    X^ = ((F1 X) * T) F2,    F1[k1, n1] = w(N1)^(k1 n1),  T[k1, n2] = w(N)^(k1 n2),  F2[n2, k2] = w(N2)^(n2 k2),

``w(p) = exp(-2 pi i / p)``. The inverse takes the conjugates in reverse order, so frequencies stay in the order in
which they come out and nothing is transposed. Two sequences of a batch share a complex one, as its real and imaginary
part: the kernel is real, so they stay apart. Where the sequence fills half of the N points or less, half of F1 is left
out on both ways.

Everything is computed in float32; products are split into three on the matrix units (``tf32x3``) where the operands
are float32, and are single ones where they hold no more digits than those (float16, bfloat16).
"""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

_SMALLEST = 256
"""Points of the shortest transforms: two products with 16 x 16 matrices, the least that a matrix unit takes."""

_PROGRAMS = 1024
"""Programs from which on a device is busy; further pairs of sequences are worked off by the same programs."""


def transform_points(length: int, taps: int, ahead: int) -> int:
    """The power of two of points with which nothing wraps round."""
    return max(_SMALLEST, 1 << (max(length + ahead, length + taps - 1 - ahead, taps) - 1).bit_length())


def convolve(u: Tensor, taps: Tensor, ahead: int) -> Tensor:
    """As ``reference.convolve``: u (B, H, L) and taps (C, H, J) to (B, C, H, L)."""
    batch, channels, length = u.shape
    maps = taps.shape[0]
    sizes = _sizes(length, taps.shape[-1], ahead)
    y = u.new_empty(batch, maps, channels, length, dtype=torch.promote_types(u.dtype, taps.dtype))
    per_program, programs = _share(channels, -(-batch // 2))
    _convolve[channels, programs](
        u.contiguous(),
        _spectrum(taps, ahead, sizes),
        y,
        _roots(sizes["N1"] * sizes["N2"], u.device),
        batch,
        maps,
        channels,
        length,
        per_program,
        PRECISION=_precision(u, taps),
        **sizes,
        **_launch(sizes),
    )
    return y


def convolve_backward(
    gradient: Tensor, u: Tensor, taps: Tensor, ahead: int, wants_u: bool, wants_taps: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of ``u`` and of ``taps``; an empty tensor for one that is not wanted.

    Args:
        gradient: of the output, (B, C, H, L).
        u: (B, H, L).
        taps: (C, H, J).
        ahead: index of the tap of the present.
        wants_u: whether the gradient of ``u`` is computed.
        wants_taps: whether that of ``taps`` is.
    """
    batch, channels, length = u.shape
    maps, _, lags = taps.shape
    sizes = _sizes(length, lags, ahead)
    table = _roots(sizes["N1"] * sizes["N2"], u.device)
    shared = {"PRECISION": _precision(u, taps), **sizes, **_launch(sizes)}
    gradient, pairs = gradient.contiguous(), -(-batch // 2)
    u_gradient, taps_gradient = u.new_empty(0), taps.new_empty(0)
    if wants_u:
        u_gradient = u.new_empty(u.shape)
        per_program, programs = _share(channels, pairs)
        _correlate[channels, programs](
            gradient,
            _spectrum(taps, ahead, sizes),
            u_gradient,
            table,
            batch,
            maps,
            channels,
            length,
            per_program,
            **shared,
        )
    if wants_taps:
        per_program, programs = _share(maps * channels, pairs)
        parts = u.new_empty(programs, maps, channels, lags, dtype=torch.float32)
        _correlate_taps[maps * channels, programs](
            gradient, u.contiguous(), parts, table, batch, maps, channels, length, lags, ahead, per_program, **shared
        )
        taps_gradient = parts.sum(0).to(taps.dtype)
    return u_gradient, taps_gradient


def _sizes(length: int, taps: int, ahead: int) -> dict[str, int]:
    """Rows and columns of the transforms' matrices, and the rows that the sequence reaches into."""
    points = transform_points(length, taps, ahead)
    rows = 1 << (points.bit_length() // 2)
    return {"N1": rows, "N2": points // rows, "ROWS": rows // 2 if length <= points // 2 and rows > 16 else rows}


def _launch(sizes: dict[str, int]) -> dict[str, int]:
    return {"num_warps": 4 if sizes["N1"] * sizes["N2"] <= 512 else 8, "num_stages": 1}


def _share(channels: int, pairs: int) -> tuple[int, int]:
    """How many pairs of sequences one program works off, and how many programs a channel has."""
    programs = min(pairs, max(1, -(-_PROGRAMS // channels)))
    per_program = -(-pairs // programs)
    return per_program, -(-pairs // per_program)


def _precision(*operands: Tensor) -> str:
    return "tf32x3" if any(x.dtype == torch.float32 for x in operands) else "tf32"


@functools.lru_cache(maxsize=32)
def _roots(points: int, device: torch.device) -> Tensor:
    """``exp(-2 pi i k / points)``, real parts and imaginary parts, (2, points)."""
    angles = torch.arange(points, dtype=torch.float64) * (-2 * math.pi / points)
    return torch.stack([angles.cos(), angles.sin()]).to(device, torch.float32)


def _spectrum(taps: Tensor, ahead: int, sizes: dict[str, int]) -> Tensor:
    """Transforms of the taps over N, real and imaginary parts, (C, H, 2, N1, N2)."""
    maps, channels, lags = taps.shape
    rows, columns = sizes["N1"], sizes["N2"]
    spectrum = taps.new_empty(maps, channels, 2, rows, columns, dtype=torch.float32)
    _transform_taps[(maps * channels,)](
        taps.contiguous(),
        spectrum,
        _roots(rows * columns, taps.device),
        lags,
        ahead,
        N1=rows,
        N2=columns,
        PRECISION=_precision(taps),
        **_launch(sizes),
    )
    return spectrum


@triton.jit
def _transform_taps(taps, spectrum, table, lags, ahead, N1: tl.constexpr, N2: tl.constexpr, PRECISION: tl.constexpr):
    """One program: the spectrum of one kernel. Taps ahead of the present stand at the end of the N points."""
    N: tl.constexpr = N1 * N2
    kernel = tl.program_id(0).to(tl.int64)
    place = _places(N1, N2)
    lag = tl.where(place < lags - ahead, place, place - N)
    x = tl.load(taps + kernel * lags + lag + ahead, mask=lag >= -ahead, other=0.0).to(tl.float32)
    re, im = _transform(x, tl.zeros_like(x), table, N1, N2, N1, PRECISION)
    tl.store(spectrum + 2 * kernel * N + place, re / N)
    tl.store(spectrum + (2 * kernel + 1) * N + place, im / N)


@triton.jit
def _convolve(
    u,
    spectrum,
    y,
    table,
    batch,
    maps,
    channels,
    length,
    per_program,
    N1: tl.constexpr,
    N2: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: some pairs of sequences of one channel, with all of its kernels."""
    channel = tl.program_id(0).to(tl.int64)
    for index in range(per_program):
        pair = (tl.program_id(1) * per_program + index).to(tl.int64)
        sequence = 2 * pair * channels + channel
        x_re = _load_sequence(u, sequence, 2 * pair < batch, length, N2, ROWS)
        x_im = _load_sequence(u, sequence + channels, 2 * pair + 1 < batch, length, N2, ROWS)
        u_re, u_im = _transform(x_re, x_im, table, N1, N2, ROWS, PRECISION)
        for kernel in range(maps):
            k_re, k_im = _load_spectrum(spectrum, kernel * channels + channel, N1, N2)
            re, im = _times(u_re, u_im, k_re, k_im)
            re, im = _invert(re, im, table, N1, N2, ROWS, PRECISION)
            sequence = (2 * pair * maps + kernel) * channels + channel
            _store_sequence(y, re, sequence, 2 * pair < batch, length, N2, ROWS)
            _store_sequence(y, im, sequence + maps * channels, 2 * pair + 1 < batch, length, N2, ROWS)


@triton.jit
def _correlate(
    gradient,
    spectrum,
    u_gradient,
    table,
    batch,
    maps,
    channels,
    length,
    per_program,
    N1: tl.constexpr,
    N2: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: the gradient of some pairs of sequences of one channel, from all of its kernels."""
    channel = tl.program_id(0).to(tl.int64)
    for index in range(per_program):
        pair = (tl.program_id(1) * per_program + index).to(tl.int64)
        sum_re = tl.zeros([N1, N2], dtype=tl.float32)
        sum_im = tl.zeros([N1, N2], dtype=tl.float32)
        for kernel in range(maps):
            sequence = (2 * pair * maps + kernel) * channels + channel
            x_re = _load_sequence(gradient, sequence, 2 * pair < batch, length, N2, ROWS)
            x_im = _load_sequence(gradient, sequence + maps * channels, 2 * pair + 1 < batch, length, N2, ROWS)
            g_re, g_im = _transform(x_re, x_im, table, N1, N2, ROWS, PRECISION)
            k_re, k_im = _load_spectrum(spectrum, kernel * channels + channel, N1, N2)
            re, im = _times(g_re, g_im, k_re, -k_im)
            sum_re += re
            sum_im += im
        re, im = _invert(sum_re, sum_im, table, N1, N2, ROWS, PRECISION)
        sequence = 2 * pair * channels + channel
        _store_sequence(u_gradient, re, sequence, 2 * pair < batch, length, N2, ROWS)
        _store_sequence(u_gradient, im, sequence + channels, 2 * pair + 1 < batch, length, N2, ROWS)


@triton.jit
def _correlate_taps(
    gradient,
    u,
    parts,
    table,
    batch,
    maps,
    channels,
    length,
    lags,
    ahead,
    per_program,
    N1: tl.constexpr,
    N2: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: the gradient of one kernel from some pairs of sequences.

    With pairs as complex sequences, the real part of the correlation is the sum of both sequences' correlations.
    """
    N: tl.constexpr = N1 * N2
    kernel = tl.program_id(0).to(tl.int64)
    channel = kernel % channels
    sum_re = tl.zeros([N1, N2], dtype=tl.float32)
    sum_im = tl.zeros([N1, N2], dtype=tl.float32)
    for index in range(per_program):
        pair = (tl.program_id(1) * per_program + index).to(tl.int64)
        sequence = 2 * pair * maps * channels + kernel
        x_re = _load_sequence(gradient, sequence, 2 * pair < batch, length, N2, ROWS)
        x_im = _load_sequence(gradient, sequence + maps * channels, 2 * pair + 1 < batch, length, N2, ROWS)
        g_re, g_im = _transform(x_re, x_im, table, N1, N2, ROWS, PRECISION)
        sequence = 2 * pair * channels + channel
        x_re = _load_sequence(u, sequence, 2 * pair < batch, length, N2, ROWS)
        x_im = _load_sequence(u, sequence + channels, 2 * pair + 1 < batch, length, N2, ROWS)
        u_re, u_im = _transform(x_re, x_im, table, N1, N2, ROWS, PRECISION)
        re, im = _times(g_re, g_im, u_re, -u_im)
        sum_re += re
        sum_im += im
    re, im = _invert(sum_re, sum_im, table, N1, N2, N1, PRECISION)
    place = _places(N1, N2)
    lag = tl.where(place < lags - ahead, place, place - N)
    part = (tl.program_id(1) * maps * channels + kernel) * lags
    tl.store(parts + part + lag + ahead, re / N, mask=lag >= -ahead)


@triton.jit
def _transform(re, im, table, N1: tl.constexpr, N2: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr):
    """``((F1 X) * T) F2``."""
    rows_re, rows_im = _row_roots(table, N1, N2, ROWS)
    re, im = _product(rows_re, rows_im, re, im, PRECISION)
    twiddle_re, twiddle_im = _twiddles(table, N1, N2)
    re, im = _times(re, im, twiddle_re, twiddle_im)
    columns_re, columns_im = _column_roots(table, N1, N2)
    return _product(re, im, columns_re, columns_im, PRECISION)


@triton.jit
def _invert(re, im, table, N1: tl.constexpr, N2: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr):
    """``conj(F1)^T ((Y conj(F2)) * conj(T))``."""
    columns_re, columns_im = _column_roots(table, N1, N2)
    re, im = _product(re, im, columns_re, -columns_im, PRECISION)
    twiddle_re, twiddle_im = _twiddles(table, N1, N2)
    re, im = _times(re, im, twiddle_re, -twiddle_im)
    rows_re, rows_im = _row_roots(table, N1, N2, ROWS)
    return _product(tl.trans(rows_re), -tl.trans(rows_im), re, im, PRECISION)


@triton.jit
def _product(a_re, a_im, b_re, b_im, PRECISION: tl.constexpr):
    """Matrix product of complex factors."""
    re = tl.dot(a_re, b_re, input_precision=PRECISION) - tl.dot(a_im, b_im, input_precision=PRECISION)
    im = tl.dot(a_re, b_im, input_precision=PRECISION) + tl.dot(a_im, b_re, input_precision=PRECISION)
    return re, im


@triton.jit
def _times(a_re, a_im, b_re, b_im):
    """Elementwise product of complex factors."""
    return a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re


@triton.jit
def _row_roots(table, N1: tl.constexpr, N2: tl.constexpr, ROWS: tl.constexpr):
    """F1, (N1, ROWS)."""
    exponent = (tl.arange(0, N1)[:, None] * tl.arange(0, ROWS)[None, :]) % N1 * N2
    return tl.load(table + exponent), tl.load(table + N1 * N2 + exponent)


@triton.jit
def _column_roots(table, N1: tl.constexpr, N2: tl.constexpr):
    """F2, (N2, N2)."""
    exponent = (tl.arange(0, N2)[:, None] * tl.arange(0, N2)[None, :]) % N2 * N1
    return tl.load(table + exponent), tl.load(table + N1 * N2 + exponent)


@triton.jit
def _twiddles(table, N1: tl.constexpr, N2: tl.constexpr):
    """T, (N1, N2)."""
    exponent = tl.arange(0, N1)[:, None] * tl.arange(0, N2)[None, :]
    return tl.load(table + exponent), tl.load(table + N1 * N2 + exponent)


@triton.jit
def _places(ROWS: tl.constexpr, N2: tl.constexpr):
    """The index of each element, (ROWS, N2)."""
    return tl.arange(0, ROWS)[:, None] * N2 + tl.arange(0, N2)[None, :]


@triton.jit
def _load_sequence(x, sequence, present, length, N2: tl.constexpr, ROWS: tl.constexpr):
    place = _places(ROWS, N2)
    there = tl.where(present, length, 0)
    return tl.load(x + sequence * length + place, mask=place < there, other=0.0).to(tl.float32)


@triton.jit
def _store_sequence(x, values, sequence, present, length, N2: tl.constexpr, ROWS: tl.constexpr):
    place = _places(ROWS, N2)
    there = tl.where(present, length, 0)
    tl.store(x + sequence * length + place, values.to(x.dtype.element_ty), mask=place < there)


@triton.jit
def _load_spectrum(spectrum, kernel, N1: tl.constexpr, N2: tl.constexpr):
    place = _places(N1, N2)
    return tl.load(spectrum + 2 * kernel * N1 * N2 + place), tl.load(spectrum + (2 * kernel + 1) * N1 * N2 + place)
