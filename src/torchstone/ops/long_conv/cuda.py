"""The kernels as operators of PyTorch: ``torchstone::long_conv`` and ``torchstone::long_conv_backward``."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from typing import Any

import torch
from torch import Tensor

from torchstone.ops.dispatch import has_kernels, kernel_op, takes_kernels
from torchstone.ops.long_conv import reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_TRANSFORM = 1024
"""Points that the registers of a block hold: compiled for 4096 (Ampere, float32), a kernel spills 44 kB of them."""


def takes(u: Tensor, taps: Tensor, ahead: int) -> bool:
    """Whether this convolution stays on chip: supported tensors, and transforms that are short enough."""
    return (
        takes_kernels(u, taps, dtypes=DTYPES)
        and max(u.shape[-1] + max(ahead, taps.shape[-1] - 1 - ahead), taps.shape[-1]) <= LARGEST_TRANSFORM
    )


def _output(u: Tensor, taps: Tensor, ahead: int) -> Tensor:
    batch, channels, length = u.shape
    dtype = torch.promote_types(u.dtype, taps.dtype)
    return u.new_empty(batch, taps.shape[0], channels, length, dtype=dtype)


def _gradients(
    gradient: Tensor, u: Tensor, taps: Tensor, ahead: int, wants_u: bool, wants_taps: bool
) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape if wants_u else 0), taps.new_empty(taps.shape if wants_taps else 0)


def _transforms_flops(u: Sequence[int], taps: Sequence[int], ahead: int, transforms: int) -> int:
    """As the reference is counted: 2.5 n log2 n for each real transform of n points."""
    points = reference.transform_length(u[-1], taps[-1], ahead)
    return round(2.5 * transforms * points * log2(points))


def _flops(u: Sequence[int], taps: Sequence[int], ahead: int, *args: Any, **kwargs: Any) -> int:
    """Transforms of the sequences and the kernels, and back."""
    batch, maps, channels = u[0], taps[0], u[1]
    return _transforms_flops(u, taps, ahead, channels * (batch + maps + batch * maps))


def _backward_flops(
    gradient: Sequence[int],
    u: Sequence[int],
    taps: Sequence[int],
    ahead: int,
    wants_u: bool,
    wants_taps: bool,
    *args: Any,
    **kwargs: Any,
) -> int:
    """Transforms of the gradient, of the other factor and of each result."""
    batch, maps, channels = u[0], taps[0], u[1]
    transforms = (wants_u or wants_taps) * batch * maps + (wants_u + wants_taps) * (batch + maps)
    return _transforms_flops(u, taps, ahead, channels * transforms)


def run(u: Tensor, taps: Tensor, ahead: int) -> Tensor:
    """The operator's implementation; as ``reference.convolve``."""
    if not has_kernels(u.device):
        return reference.convolve(u, taps, ahead)

    from torchstone.ops.long_conv import triton_kernels

    return triton_kernels.convolve(u, taps, ahead)


def run_backward(
    gradient: Tensor, u: Tensor, taps: Tensor, ahead: int, wants_u: bool, wants_taps: bool
) -> tuple[Tensor, Tensor]:
    """Its gradient's; an empty tensor for a gradient that is not wanted."""
    if not has_kernels(u.device):
        u_gradient, taps_gradient = reference.convolve_backward(gradient, u, taps, ahead)
        return u_gradient if wants_u else u.new_empty(0), taps_gradient if wants_taps else taps.new_empty(0)

    from torchstone.ops.long_conv import triton_kernels

    return triton_kernels.convolve_backward(gradient, u, taps, ahead, wants_u, wants_taps)


convolve = kernel_op("long_conv", fake=_output, flops=_flops)(run)
convolve_backward = kernel_op("long_conv_backward", fake=_gradients, flops=_backward_flops)(run_backward)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    u, taps, ctx.ahead = inputs
    ctx.save_for_backward(u, taps)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    wants_u, wants_taps, _ = ctx.needs_input_grad
    u_gradient, taps_gradient = convolve_backward(gradient, *ctx.saved_tensors, ctx.ahead, wants_u, wants_taps)
    return u_gradient if wants_u else None, taps_gradient if wants_taps else None, None


convolve.register_autograd(_differentiate, setup_context=_keep)
