"""The two products as Triton kernels, which serve as their gradients too.

Maps are (B * h, d, H, W). A program owns a block of pixels of one map and all d channels of a head. It reads the map at
every offset of the window; neighbouring pixels read the same rows, which the cache holds. Sums are in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _neighbour(pixel, tap: tl.constexpr, height, width, WINDOW: tl.constexpr, SIGN: tl.constexpr):
    """The pixel at a tap's offset (or, with SIGN -1, the one whose offset leads here), and whether it is on the map."""
    down = SIGN * (tap // WINDOW - WINDOW // 2)
    right = SIGN * (tap % WINDOW - WINDOW // 2)
    row, column = pixel // width + down, pixel % width + right
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width) & (pixel < height * width)
    return pixel + down * width + right, inside


@triton.jit
def _scores(
    q_ptr, k_ptr, s_ptr, dim, height, width,
    WINDOW: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """s[j, n] = sum_c q[c, n] k[c, n + o_j]."""
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    head, pixels = tl.program_id(0).to(tl.int64), height * width
    channel = tl.arange(0, DIM)[:, None]
    on_map = (channel < dim) & (pixel < pixels)[None, :]
    first = head * dim * pixels
    q = tl.load(q_ptr + first + channel * pixels + pixel[None, :], mask=on_map, other=0.0).to(tl.float32)
    for tap in tl.static_range(WINDOW * WINDOW):
        there, inside = _neighbour(pixel, tap, height, width, WINDOW, 1)
        k = tl.load(
            k_ptr + first + channel * pixels + there[None, :], mask=(channel < dim) & inside[None, :], other=0.0
        ).to(tl.float32)
        s = tl.sum(q * k, axis=0)
        place = s_ptr + (head * WINDOW * WINDOW + tap) * pixels + pixel
        tl.store(place, s.to(s_ptr.dtype.element_ty), mask=pixel < pixels)


@triton.jit
def _total(
    w_ptr, v_ptr, y_ptr, dim, height, width,
    WINDOW: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """y[c, n] = sum_j w[j, n] v[c, n + o_j]; with BACK, both are read at n - o_j."""
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    head, pixels = tl.program_id(0).to(tl.int64), height * width
    channel = tl.arange(0, DIM)[:, None]
    first = head * dim * pixels
    y = tl.zeros((DIM, BLOCK), dtype=tl.float32)
    for tap in tl.static_range(WINDOW * WINDOW):
        there, inside = _neighbour(pixel, tap, height, width, WINDOW, -1 if BACK else 1)
        weighed = there if BACK else pixel
        w = tl.load(w_ptr + (head * WINDOW * WINDOW + tap) * pixels + weighed, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(
            v_ptr + first + channel * pixels + there[None, :], mask=(channel < dim) & inside[None, :], other=0.0
        ).to(tl.float32)
        y += w[None, :] * v
    place = y_ptr + first + channel * pixels + pixel[None, :]
    tl.store(place, y.to(y_ptr.dtype.element_ty), mask=(channel < dim) & (pixel < pixels)[None, :])


# Launchers ------------------------------------------------------------------------------------------------------------


def scores(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    """As ``reference.scores``."""
    batch, heads, dim, height, width = queries.shape
    dtype = torch.promote_types(queries.dtype, keys.dtype)
    found = queries.new_empty((batch, heads, window**2, height, width), dtype=dtype)
    padded, block = _sizes(dim, height * width)
    _scores[(batch * heads, triton.cdiv(height * width, block))](
        queries.contiguous(), keys.contiguous(), found, dim, height, width, WINDOW=window, DIM=padded, BLOCK=block
    )
    return found


def total(weights: Tensor, values: Tensor, window: int, back: bool) -> Tensor:
    """As ``reference.total``."""
    batch, heads, dim, height, width = values.shape
    y = values.new_empty(values.shape, dtype=torch.promote_types(weights.dtype, values.dtype))
    padded, block = _sizes(dim, height * width)
    _total[(batch * heads, triton.cdiv(height * width, block))](
        weights.contiguous(), values.contiguous(), y, dim, height, width,
        WINDOW=window, DIM=padded, BLOCK=block, BACK=back,
    )  # fmt: skip
    return y


def _sizes(dim: int, pixels: int) -> tuple[int, int]:
    """Channels padded to a power of two, and pixels of a block: some 4096 numbers, 32 to 128 pixels."""
    padded = triton.next_power_of_2(dim)
    return padded, min(max(32, min(128, 4096 // padded)), max(16, triton.next_power_of_2(pixels)))
