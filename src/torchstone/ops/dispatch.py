"""Which calls of an operator take its kernels.

The reference is the definition: ordinary aten operations, so a CPU, ``torch.export`` and ONNX never meet anything else.
Kernels are Triton's, behind a ``torch.library.custom_op`` that exists for CUDA only; nothing is built beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from torchstone.errors import CallError

F = TypeVar("F", bound=Callable[..., Any])

_AMPERE = (8, 0)
"""The oldest NVIDIA architecture whose matrix units take float32 operands."""


def takes_kernels(*tensors: Tensor, dtypes: Collection[torch.dtype]) -> bool:
    """Whether a call may take the operator with kernels.

    It may when nothing is exported and all tensors are on a CUDA device, of one of the types, and not empty. Whether
    the sizes fit is for the operator to add; whether the device is recent enough, for the operator's implementation
    (:func:`has_kernels`), since a graph that is being captured cannot ask.

    Args:
        tensors: the operands of the call.
        dtypes: the types that the kernels read.
    """
    if torch.compiler.is_exporting():
        return False
    return all(x.is_cuda and x.dtype in dtypes and x.numel() > 0 for x in tensors)


@cache
def has_kernels(device: torch.device) -> bool:
    """Whether Triton's kernels run on a device; where not, an operator's implementation is its reference."""
    if device.type != "cuda" or torch.version.cuda is None or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= _AMPERE


def kernel_op(name: str, *, fake: Callable[..., Any], flops: Callable[..., int]) -> Callable[[F], Any]:
    """Decorator: a function of CUDA tensors as the operator ``torchstone::<name>``.

    Args:
        name: the operator's name.
        fake: shapes and types of the outputs, without values, for ``torch.compile``.
        flops: floating-point operations, two for a multiply-accumulate, from the arguments with shapes for tensors.
    """

    def register(function: F) -> Any:
        operator = torch.library.custom_op(f"torchstone::{name}", function, mutates_args=(), device_types="cuda")
        operator.register_fake(fake)
        register_flop_formula(getattr(torch.ops.torchstone, name))(flops)
        return operator

    return register


def check_operands(**operands: Tensor) -> None:
    """Real floating-point tensors on one device.

    Raises:
        CallError: which operand is none, or where they are.
    """
    for name, x in operands.items():
        if not x.dtype.is_floating_point:
            raise CallError(f"{name} must hold real floating-point numbers, got {x.dtype}")
    devices = {name: x.device for name, x in operands.items()}
    if len(set(devices.values())) > 1:
        where = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise CallError(f"all operands must be on one device, got {where}")


def accurate(*tensors: Tensor) -> torch.dtype:
    """The type to compute in: what the operands promote to, float32 at least."""
    dtype = torch.float32
    for x in tensors:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype
