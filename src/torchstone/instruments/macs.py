"""Parameters, multiply-accumulates and activations of a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from torchstone.instruments.free_operators import is_free
from torchstone.instruments.mac_formulas import mac_formulas
from torchstone.instruments.module_walk import evaluating, module_walk
from torchstone.instruments.running import forward

_WRITES_ACTIVATIONS = frozenset(
    {
        "aten::convolution",
        "aten::_convolution",
        "aten::conv_tbc",
        "aten::mkldnn_convolution",
        "aten::mm",
        "aten::addmm",
        "aten::_addmm_activation",
        "aten::_int_mm",
        "aten::_scaled_mm",
        "aten::mkldnn_linear",
        "aten::mkldnn_rnn_layer",
        "aten::_cudnn_rnn",
        "torchvision::deform_conv2d",
    }
)
_BATCHED_PRODUCTS = frozenset({"aten::bmm", "aten::baddbmm"})


@dataclass(frozen=True)
class ModuleCount:
    """What one module does itself in a forward pass, without the modules inside it.

    Attributes:
        macs: multiply-accumulates.
        activations: elements written by its convolutions and linear maps.
        output: shape of its output; None if that is no tensor.
        calls: how often it runs.
    """

    macs: int
    activations: int
    output: tuple[int, ...] | None
    calls: int


@dataclass(frozen=True)
class MacCount:
    """Multiply-accumulates of one forward pass.

    Attributes:
        total: all of them.
        by_module: each module's own part, by module path (``""`` is the network itself); they add up to ``total``.
        uncounted: operators that compute, or may compute, and have no formula, with the number of their calls. Empty
            when the count is complete.
        activations: elements written by convolutions and linear maps.
        modules: all that is known of each module that ran.
    """

    total: int
    by_module: dict[str, int]
    uncounted: dict[str, int]
    activations: int
    modules: dict[str, ModuleCount]


def count_parameters(model: nn.Module, *, trainable: bool = False) -> int:
    """Number of a model's parameters; shared ones once, buffers not.

    Args:
        model: any network.
        trainable: only those that require gradients.
    """
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad or not trainable)


def own_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters that each module holds itself, by module path; a shared one belongs to the first that has it."""
    seen: set[int] = set()
    counts: dict[str, int] = {}
    for path, module in model.named_modules():
        own = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in seen]
        seen.update(id(parameter) for parameter in own)
        counts[path] = sum(parameter.numel() for parameter in own)
    return counts


def count_macs(model: nn.Module, inputs: Tensor | Sequence[Tensor]) -> MacCount:
    """Count the multiply-accumulates (MACs) of one forward pass in eval mode.

    MACs are half of ``FlopCounterMode``'s FLOPs, with the operators of ``torchstone.instruments.mac_formulas`` added; a
    real Fourier transform of n points is 1.25 n log2 n of them. Element-wise arithmetic, reductions, normalisation,
    pooling and copies are none, by convention. Fused fast paths of ``nn.MultiheadAttention`` are off while counting.
    The model may be on the ``meta`` device.

    Activations follow Radosavovic et al. (Designing Network Design Spaces, 2020, Section 3): the elements that
    convolutions and linear maps write. Here these are the outputs of convolutions, of recurrent layers, and of matrix
    products that are not batched or have a parameter as a factor; the products inside attention are not among them.

    Args:
        model: any network; its mode and weights stay as they are.
        inputs: what it is called with: a tensor, or the positional arguments. The count is for the whole batch.

    Returns:
        The count, which is the same each time.

    Raises:
        CallError: the model rejects the inputs.
    """
    counter = FlopCounterMode(display=False, custom_mapping=mac_formulas())
    watch = _Watch(counter.flop_registry, model)

    def meter() -> tuple[int, int]:
        return counter.get_total_flops() // 2, watch.activations

    with evaluating(model), plain_attention(), torch.inference_mode():
        with module_walk(model, meter) as visits, watch, counter:
            forward(model, inputs)
        total, activations = meter()
    modules = {
        path: ModuleCount(int(visit.own[0]), int(visit.own[1]), visit.output, visit.calls)
        for path, visit in visits.items()
    }
    return MacCount(
        total=total,
        by_module={path: module.macs for path, module in modules.items()},
        uncounted=dict(watch.uncounted),
        activations=activations,
        modules=modules,
    )


class _Watch(TorchDispatchMode):
    """Sees the operators that the FLOP counter lets run: adds up activations, notes what nobody counts."""

    def __init__(self, counted: Any, model: nn.Module) -> None:
        super().__init__()
        self.counted = counted
        self.weights = {_storage(parameter) for parameter in model.parameters()}
        self.activations = 0
        self.uncounted: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = operator(*args, **(kwargs or {}))
        packet = operator._overloadpacket
        name = packet._qualified_op_name
        if packet not in self.counted:
            if not is_free(operator):
                self.uncounted[str(packet)] += 1
        elif name in _WRITES_ACTIVATIONS or (name in _BATCHED_PRODUCTS and self._has_weight(args)):
            self.activations += (output if isinstance(output, Tensor) else output[0]).numel()
        return output

    def _has_weight(self, args: Sequence[Any]) -> bool:
        return any(_storage(arg) in self.weights for arg in args if isinstance(arg, Tensor))


def _storage(tensor: Tensor) -> int:
    """Identity of the memory that a tensor is a view of, also on the ``meta`` device."""
    return tensor.untyped_storage()._cdata


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention layers take the path whose operators are counted, not the fused one."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
