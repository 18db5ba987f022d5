"""The kernels as operators of PyTorch: ``torchstone::neighbour_scores`` and ``torchstone::neighbour_sum``.

The gradient of either is made of the two again, so that one pair of kernels does all of it, to any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchstone.ops.dispatch import has_kernels, kernel_op, takes_kernels
from torchstone.ops.neighbourhood import reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_DIM = 128
"""Channels of a head that a block of pixels holds in registers."""
LARGEST_WINDOW = 7


def takes(*operands: Tensor, dim: int, window: int) -> bool:
    """Whether the kernels are made for these tensors and sizes."""
    return takes_kernels(*operands, dtypes=DTYPES) and dim <= LARGEST_DIM and window <= LARGEST_WINDOW


def _empty_scores(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    batch, heads, _, height, width = queries.shape
    dtype = torch.promote_types(queries.dtype, keys.dtype)
    return queries.new_empty((batch, heads, window**2, height, width), dtype=dtype)


def _empty_total(weights: Tensor, values: Tensor, window: int, back: bool) -> Tensor:
    return values.new_empty(values.shape, dtype=torch.promote_types(weights.dtype, values.dtype))


def _scores_flops(queries: Sequence[int], keys: Sequence[int], window: int, *args: Any, **kwargs: Any) -> int:
    return 2 * reference.macs(queries, window**2)


def _total_flops(
    weights: Sequence[int], values: Sequence[int], window: int, back: bool, *args: Any, **kwargs: Any
) -> int:
    return 2 * reference.macs(values, window**2)


def run_scores(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    """The operator's implementation; as ``reference.scores``."""
    if not has_kernels(queries.device):
        return reference.scores(queries, keys, window)

    from torchstone.ops.neighbourhood import triton_kernels

    return triton_kernels.scores(queries, keys, window)


def run_total(weights: Tensor, values: Tensor, window: int, back: bool) -> Tensor:
    """The operator's implementation; as ``reference.total``."""
    if not has_kernels(values.device):
        return reference.total(weights, values, window, back)

    from torchstone.ops.neighbourhood import triton_kernels

    return triton_kernels.total(weights, values, window, back)


scores = kernel_op("neighbour_scores", fake=_empty_scores, flops=_scores_flops)(run_scores)
total = kernel_op("neighbour_sum", fake=_empty_total, flops=_total_flops)(run_total)


def _keep_scores(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    *operands, ctx.window = inputs
    ctx.save_for_backward(*operands)


def _differentiate_scores(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    """``dq = total(ds, k)``, ``dk = total(ds, q, back)``."""
    queries, keys = ctx.saved_tensors
    wants_queries, wants_keys, _ = ctx.needs_input_grad
    return (
        total(gradient, keys, ctx.window, False).to(queries.dtype) if wants_queries else None,
        total(gradient, queries, ctx.window, True).to(keys.dtype) if wants_keys else None,
        None,
    )


def _keep_total(ctx: Any, inputs: tuple[Tensor, Tensor, int, bool], output: Tensor) -> None:
    weights, values, ctx.window, ctx.back = inputs
    ctx.save_for_backward(weights, values)


def _differentiate_total(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    """``dw = scores(dy, v)``, ``dv = total(w, dy, back)``; back, ``dw = scores(v, dy)``, ``dv = total(w, dy)``."""
    weights, values = ctx.saved_tensors
    wants_weights, wants_values, *_ = ctx.needs_input_grad
    pair = (values, gradient) if ctx.back else (gradient, values)
    return (
        scores(*pair, ctx.window).to(weights.dtype) if wants_weights else None,
        total(weights, gradient, ctx.window, not ctx.back).to(values.dtype) if wants_values else None,
        None,
        None,
    )


scores.register_autograd(_differentiate_scores, setup_context=_keep_scores)
total.register_autograd(_differentiate_total, setup_context=_keep_total)
