"""The fused block as Triton kernels: one for the forward pass, two for the backward pass of the pointwise part.

Maps are channels last. A program of the forward kernel owns a tile of pixels. Channels are convolved in chunks of 16:
each tap is a batched product, over the chunks, of the tile's shifted pixels with a block-diagonal (16, 16) matrix that
holds the groups of the chunk. Then, slice by slice of the hidden channels::

    h = W1[slice] u + b1[slice];   y += W2[:, slice] SiLU(h)

so that the hidden tensor exists a slice of a tile at a time, in registers. The backward kernels compute it again the
same way: one owns tiles of pixels and gives the gradient of u, the other owns slices of the hidden channels and gives
those of W1, b1 and W2, summed over its share of the pixels without atomic operations. The gradient of the grouped
convolution is PyTorch's.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from torchstone.ops.dispatch import kernel_op
from torchstone.ops.fused_block import reference
from torchstone.ops.fused_block.reference import CHUNK


@triton.jit
def _forward(
    x_ptr, taps_ptr, b0_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, y_ptr,
    pixels, height, width, channels, hidden, out,
    SIDE: tl.constexpr, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, OUT: tl.constexpr,
    TILE: tl.constexpr, SLICE: tl.constexpr, RESIDUAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x (pixels, C) and y (pixels, O), channels last; taps (k*k, C/16, 16 in, 16 out); w1 (E, C); w2 (O, E)."""
    pixel = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    row = (pixel // width) % height
    column = pixel % width
    inside = pixel < pixels
    chunk, within = tl.arange(0, CHUNKS), tl.arange(0, CHUNK)
    channel = chunk[:, None] * CHUNK + within[None, :]  # (chunks, 16)

    u = tl.zeros((CHUNKS, TILE, CHUNK), dtype=tl.float32)
    for tap in tl.static_range(SIDE * SIDE):
        down, right = tap // SIDE - SIDE // 2, tap % SIDE - SIDE // 2
        valid = inside & (row + down >= 0) & (row + down < height) & (column + right >= 0) & (column + right < width)
        source = pixel + down * width + right
        shifted = tl.load(
            x_ptr + source[None, :, None] * channels + channel[:, None, :],
            mask=valid[None, :, None] & (channel < channels)[:, None, :],
            other=0.0,
        )  # (chunks, tile, 16)
        matrix = tl.load(
            taps_ptr
            + ((tap * CHUNKS + chunk[:, None, None]) * CHUNK + within[None, :, None]) * CHUNK
            + within[None, None, :]
        )  # (chunks, 16, 16)
        u = tl.dot(shifted, matrix, u, input_precision=PRECISION)
    u += tl.load(b0_ptr + channel, mask=channel < channels, other=0.0)[:, None, :]
    u_tile = tl.reshape(tl.permute(u, (1, 0, 2)), (TILE, CHUNKS * CHUNK)).to(x_ptr.dtype.element_ty)

    all_channels, all_out = tl.arange(0, CHUNKS * CHUNK), tl.arange(0, OUT)
    y = tl.zeros((TILE, OUT), dtype=tl.float32)
    for start in range(0, hidden, SLICE):
        unit = start + tl.arange(0, SLICE)
        w1 = tl.load(
            w1_ptr + unit[None, :] * channels + all_channels[:, None],
            mask=(unit < hidden)[None, :] & (all_channels < channels)[:, None],
            other=0.0,
        )  # (C, slice)
        h = tl.dot(u_tile, w1, input_precision=PRECISION)
        h += tl.load(b1_ptr + unit, mask=unit < hidden, other=0.0)[None, :]
        activated = (h * tl.sigmoid(h)).to(x_ptr.dtype.element_ty)
        w2 = tl.load(
            w2_ptr + all_out[None, :] * hidden + unit[:, None],
            mask=(unit < hidden)[:, None] & (all_out < out)[None, :],
            other=0.0,
        )  # (slice, O)
        y = tl.dot(activated, w2, y, input_precision=PRECISION)
    y += tl.load(b2_ptr + all_out, mask=all_out < out, other=0.0)[None, :]
    written = inside[:, None] & (all_out < out)[None, :]
    place = pixel[:, None] * out + all_out[None, :]
    if RESIDUAL:
        y += tl.load(x_ptr + place, mask=written, other=0.0).to(tl.float32)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=written)


@triton.jit
def _rows(ptr, row, row_valid, column, columns, other_size):
    """Rows of a matrix (rows, other_size), zero outside: (rows, columns)."""
    return tl.load(
        ptr + row[:, None] * other_size + column[None, :],
        mask=row_valid[:, None] & (column < columns)[None, :],
        other=0.0,
    )


@triton.jit
def _input_gradient(
    u_ptr, dy_ptr, w1_ptr, b1_ptr, w2_ptr, du_ptr,
    pixels, channels, hidden, out,
    IN: tl.constexpr, OUT: tl.constexpr, TILE: tl.constexpr, SLICE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """du = W1^T (SiLU'(h) * W2^T dy), a tile of pixels at a time."""
    pixel = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = pixel < pixels
    channel, outs = tl.arange(0, IN), tl.arange(0, OUT)
    u = _rows(u_ptr, pixel, inside, channel, channels, channels)
    dy = _rows(dy_ptr, pixel, inside, outs, out, out)
    du = tl.zeros((TILE, IN), dtype=tl.float32)
    for start in range(0, hidden, SLICE):
        unit = start + tl.arange(0, SLICE)
        valid = unit < hidden
        w1 = _rows(w1_ptr, unit, valid, channel, channels, channels)  # (slice, C)
        h = tl.dot(u, tl.trans(w1), input_precision=PRECISION)
        h += tl.load(b1_ptr + unit, mask=valid, other=0.0)[None, :]
        gate = tl.sigmoid(h)
        w2 = _rows(w2_ptr, outs, outs < out, unit, hidden, hidden)  # (O, slice)
        dh = tl.dot(dy, w2, input_precision=PRECISION) * gate * (1 + h * (1 - gate))
        du = tl.dot(dh.to(w1_ptr.dtype.element_ty), w1, du, input_precision=PRECISION)
    tl.store(
        du_ptr + pixel[:, None] * channels + channel[None, :],
        du.to(du_ptr.dtype.element_ty),
        mask=inside[:, None] & (channel < channels)[None, :],
    )


@triton.jit
def _weight_gradients(
    u_ptr, dy_ptr, w1_ptr, b1_ptr, w2_ptr, dw1_ptr, db1_ptr, dw2_ptr,
    pixels, channels, hidden, out, share,
    IN: tl.constexpr, OUT: tl.constexpr, TILE: tl.constexpr, SLICE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dW1, db1 and dW2 of a slice of the hidden channels, summed over ``share`` pixels; one partial sum per share."""
    unit = tl.program_id(0) * SLICE + tl.arange(0, SLICE)
    valid = unit < hidden
    part = tl.program_id(1)
    channel, outs = tl.arange(0, IN), tl.arange(0, OUT)
    w1 = _rows(w1_ptr, unit, valid, channel, channels, channels)
    w2 = _rows(w2_ptr, outs, outs < out, unit, hidden, hidden)
    b1 = tl.load(b1_ptr + unit, mask=valid, other=0.0)
    dw1 = tl.zeros((SLICE, IN), dtype=tl.float32)
    dw2 = tl.zeros((OUT, SLICE), dtype=tl.float32)
    db1 = tl.zeros((SLICE,), dtype=tl.float32)
    for start in range(0, share, TILE):
        pixel = part.to(tl.int64) * share + start + tl.arange(0, TILE)
        inside = (pixel < pixels) & (start + tl.arange(0, TILE) < share)
        u = _rows(u_ptr, pixel, inside, channel, channels, channels)
        dy = _rows(dy_ptr, pixel, inside, outs, out, out)
        h = tl.dot(u, tl.trans(w1), input_precision=PRECISION) + b1[None, :]
        gate = tl.sigmoid(h)
        dh = tl.dot(dy, w2, input_precision=PRECISION) * gate * (1 + h * (1 - gate))
        db1 += tl.sum(tl.where(inside[:, None], dh, 0.0), axis=0)
        dw1 = tl.dot(tl.trans(dh.to(u_ptr.dtype.element_ty)), u, dw1, input_precision=PRECISION)
        activated = (h * gate).to(u_ptr.dtype.element_ty)
        dw2 = tl.dot(tl.trans(dy), activated, dw2, input_precision=PRECISION)
    first = part.to(tl.int64) * hidden
    tl.store(
        dw1_ptr + (first + unit)[:, None] * channels + channel[None, :],
        dw1,
        mask=valid[:, None] & (channel < channels)[None, :],
    )
    tl.store(db1_ptr + first + unit, db1, mask=valid)
    tl.store(
        dw2_ptr + (part.to(tl.int64) * out + outs)[:, None] * hidden + unit[None, :],
        dw2,
        mask=(outs < out)[:, None] & valid[None, :],
    )


# Launchers ------------------------------------------------------------------------------------------------------------


def launch_forward(
    x: Tensor, w0: Tensor, b0: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, residual: bool
) -> Tensor:
    """y of the whole block, channels last; operands as of :func:`torchstone.ops.fused_block.fused_block`."""
    batch, channels, height, width = x.shape
    hidden, out = w1.shape[0], w2.shape[0]
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty((batch, height, width, out), dtype=x.dtype, device=x.device)
    chunks, outs = _chunks(channels), _power(out)
    tile, width_of_slice, warps = _blocks(max(chunks * CHUNK, outs), x.dtype)
    pixels = batch * height * width
    _forward[(triton.cdiv(pixels, tile),)](
        x, chunk_matrices(w0), b0, w1.contiguous(), b1, w2.contiguous(), b2, y,
        pixels, height, width, channels, hidden, out,
        SIDE=w0.shape[-1], CHUNKS=chunks, CHUNK=CHUNK, OUT=outs,
        TILE=tile, SLICE=width_of_slice, RESIDUAL=residual, PRECISION=_precision(x.dtype), num_warps=warps,
    )  # fmt: skip
    return y.permute(0, 3, 1, 2)


def launch_backward(u: Tensor, dy: Tensor, w1: Tensor, b1: Tensor, w2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, W1, b1 and W2 for ``y = W2 SiLU(W1 u + b1)``, hidden channels computed again.

    Args:
        u: (B, C, H, W).
        dy: the gradient of y, (B, O, H, W).
        w1: (E, C, 1, 1).
        b1: (E,).
        w2: (O, E, 1, 1).
    """
    u, dy = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (u, dy))
    w1_flat, w2_flat = w1.flatten(1).contiguous(), w2.flatten(1).contiguous()
    batch, channels, height, width = u.shape
    hidden, out, pixels = w1.shape[0], w2.shape[0], batch * height * width
    padded, outs = _chunks(channels) * CHUNK, _power(out)
    tile, width_of_slice, warps = _blocks(max(padded, outs), u.dtype)
    sizes = {"IN": padded, "OUT": outs, "TILE": tile, "SLICE": width_of_slice, "PRECISION": _precision(u.dtype)}
    du = torch.empty_like(u)
    _input_gradient[(triton.cdiv(pixels, tile),)](
        u, dy, w1_flat, b1, w2_flat, du, pixels, channels, hidden, out, **sizes, num_warps=warps
    )
    slices = triton.cdiv(hidden, width_of_slice)
    parts = max(1, min(triton.cdiv(pixels, 8 * tile), 512 // slices))
    share = triton.cdiv(pixels, parts)
    dw1 = u.new_empty((parts, hidden, channels), dtype=torch.float32)
    db1 = u.new_empty((parts, hidden), dtype=torch.float32)
    dw2 = u.new_empty((parts, out, hidden), dtype=torch.float32)
    _weight_gradients[(slices, parts)](
        u, dy, w1_flat, b1, w2_flat, dw1, db1, dw2, pixels, channels, hidden, out, share, **sizes, num_warps=warps
    )
    dtype = u.dtype
    return du, dw1.sum(0).view_as(w1).to(dtype), db1.sum(0).to(dtype), dw2.sum(0).view_as(w2).to(dtype)


def chunk_matrices(weight: Tensor) -> Tensor:
    """Kernels (C, g, k, k) as block-diagonal matrices (k*k, C/16, 16 in, 16 out), the channels padded."""
    channels, group_width, side, _ = weight.shape
    chunks = _chunks(channels)
    channel = torch.arange(channels, device=weight.device)
    first = channel // group_width * group_width  # of the channel's group
    inputs = first[:, None] + torch.arange(group_width, device=weight.device)  # (C, g): what each channel reads
    dense = weight.new_zeros(side * side, chunks, CHUNK, CHUNK)
    dense[:, channel[:, None] // CHUNK, inputs % CHUNK, channel[:, None] % CHUNK] = weight.flatten(2).permute(2, 0, 1)
    return dense


def _chunks(channels: int) -> int:
    return _power(triton.cdiv(channels, CHUNK), least=1)


def _power(size: int, least: int = 16) -> int:
    return max(least, triton.next_power_of_2(size))


def _blocks(widest: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Pixels of a tile, hidden channels of a slice, warps: what fits into registers and shared memory."""
    if dtype == torch.float32:
        return (32, 16, 4) if widest > 128 else (32, 32, 4)
    return (64, 32, 8) if widest > 128 else (64, 64, 4)


def _precision(dtype: torch.dtype) -> str:
    return "ieee" if dtype == torch.float32 else "tf32"


# Operators ------------------------------------------------------------------------------------------------------------


def _fake_forward(x: Tensor, w0: Tensor, b0: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, residual: bool):
    batch, _, height, width = x.shape
    return x.new_empty((batch, height, width, w2.shape[0])).permute(0, 3, 1, 2)


def _flops_forward(x: Any, w0: Any, b0: Any, w1: Any, b1: Any, w2: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * reference.macs(x, w0, w1, w2)


def _fake_backward(u: Tensor, dy: Tensor, w1: Tensor, b1: Tensor, w2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    last = torch.channels_last
    return torch.empty_like(u, memory_format=last), torch.empty_like(w1), torch.empty_like(b1), torch.empty_like(w2)


def _flops_backward(u: Any, dy: Any, w1: Any, b1: Any, w2: Any, *args: Any, **kwargs: Any) -> int:
    """The hidden tensor again, and two gradients of each product."""
    pixels = u[0] * u[2] * u[3]
    return 2 * pixels * (3 * w1[0] * w1[1] + 2 * w2[0] * w2[1])


@kernel_op("fused_block", fake=_fake_forward, flops=_flops_forward)
def fused_block_kernel(
    x: Tensor, w0: Tensor, b0: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, residual: bool
) -> Tensor:
    return launch_forward(x, w0, b0, w1, b1, w2, b2, residual)


@kernel_op("fused_block_backward", fake=_fake_backward, flops=_flops_backward)
def fused_block_backward(
    u: Tensor, dy: Tensor, w1: Tensor, b1: Tensor, w2: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return launch_backward(u, dy, w1, b1, w2)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.residual = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, w0, b0, w1, b1, w2, _ = ctx.saved_tensors
    u = reference.grouped_convolution(x, w0, b0)
    du, dw1, db1, dw2 = fused_block_backward(u, dy, w1, b1, w2)
    side, groups = w0.shape[-1], w0.shape[0] // w0.shape[1]
    dx, dw0, db0 = torch.ops.aten.convolution_backward(
        du, x, w0, [w0.shape[0]], [1, 1], [side // 2] * 2, [1, 1], False, [0, 0], groups, [True, True, True]
    )
    return (dx + dy if ctx.residual else dx), dw0, db0, dw1, db1, dw2, dy.sum((0, 2, 3)), None


fused_block_kernel.register_autograd(_gradients, setup_context=_save)
