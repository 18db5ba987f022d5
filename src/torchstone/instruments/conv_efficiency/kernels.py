"""A forward pass as a sequence of kernels: what each computes, which tensors it reads and writes, how long it takes.

Run eagerly, every operator that is no view is a kernel. It reads its operands from memory and writes its results there,
each once; that is the least a kernel of its own can move.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from torchstone.errors import CallError, WorkError
from torchstone.instruments.mac_formulas import mac_formulas
from torchstone.instruments.macs import plain_attention
from torchstone.instruments.module_walk import evaluating
from torchstone.instruments.running import forward, one_line, synchronize

_NAMES = """
    alias detach empty empty_like empty_strided empty_permuted new_empty new_empty_strided lift_fresh local_scalar_dense
    set_ resize_ unsafe_split unsafe_split_with_sizes _reshape_alias _unsafe_view
"""
_MOVES_NOTHING = frozenset(_NAMES.split())


@dataclass(frozen=True)
class Access:
    """A part of a tensor's memory that a kernel reads or writes.

    Attributes:
        storage: number of the memory, in the order of its first appearance.
        view: which part: offset, sizes and strides.
        bytes: how much that is, elements that repeat counted once.
    """

    storage: int
    view: tuple[Any, ...]
    bytes: int


@dataclass(frozen=True)
class Kernel:
    """One operator of a forward pass.

    Attributes:
        module: path of the innermost module that runs it, ``""`` for the network itself.
        operator: its name, without namespace: ``convolution``.
        macs: multiply-accumulates.
        reads, writes: memory.
    """

    module: str
    operator: str
    macs: int
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]


@dataclass(frozen=True)
class Trace:
    """A forward pass.

    Attributes:
        kernels: in the order in which they run.
        outputs: numbers of the storages that the network answers.
        modules: path -> class of every module.
    """

    kernels: tuple[Kernel, ...]
    outputs: frozenset[int]
    modules: dict[str, str]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole pass."""
        return sum(kernel.macs for kernel in self.kernels)


def trace_kernels(model: nn.Module, inputs: Sequence[Tensor]) -> Trace:
    """Follow a forward pass in eval mode without computing it: it takes no memory and little time.

    Args:
        model: any network whose path does not depend on values; it stays as it is.
        inputs: the positional arguments.

    Raises:
        CallError: the model rejects the inputs, or decides by values.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    state: dict[str, Tensor] = {}
    state |= {name: fake.from_tensor(x.detach()) for name, x in chain(model.named_parameters(), model.named_buffers())}
    recorder = _Recorder()
    with evaluating(model), plain_attention(), torch.no_grad(), _module_paths(model, recorder):
        try:
            with fake, recorder, recorder.counter:
                output = functional_call(model, state, tuple(fake.from_tensor(x) for x in inputs))
        except Exception as error:
            shapes = ", ".join("x".join(map(str, x.shape)) for x in inputs)
            raise CallError(f"cannot follow {type(model).__name__} with inputs {shapes}: {one_line(error)}") from error
    outputs = frozenset(recorder.number(tensor) for tensor in _tensors(output))
    modules = {path: type(module).__name__ for path, module in model.named_modules()}
    return Trace(tuple(recorder.kernels), outputs, modules)


def time_kernels(
    model: nn.Module, inputs: Sequence[Tensor], trace: Trace, *, seconds: float = 1.0, least_passes: int = 5
) -> list[float]:
    """Seconds of each kernel of a trace, run eagerly on the inputs' device: the shortest of several passes.

    Args:
        model: the network, on the inputs' device.
        inputs: as the trace's, with values.
        trace: of :func:`trace_kernels`.
        seconds: about how long to measure.
        least_passes: so many passes are timed at least.

    Raises:
        WorkError: the pass runs other kernels than the trace.
    """
    expected = [(kernel.module, kernel.operator) for kernel in trace.kernels]
    shortest = [float("inf")] * len(expected)
    passes, spent = 0, 0.0
    with evaluating(model), plain_attention(), torch.no_grad():
        forward(model, inputs)
        while passes < least_passes or spent < seconds:
            recorder = _Recorder(timing=inputs[0].device)
            started = time.perf_counter()
            with _module_paths(model, recorder), recorder, recorder.counter:
                model(*inputs)
            spent += time.perf_counter() - started
            passes += 1
            found = [(kernel.module, kernel.operator) for kernel in recorder.kernels]
            if found != expected:
                raise WorkError(f"the network runs {len(found)} kernels, {len(expected)} were expected from its shapes")
            shortest = [min(pair) for pair in zip(shortest, recorder.seconds, strict=True)]
    return shortest


class _Recorder(TorchDispatchMode):
    """Notes every operator that moves memory; inside the FLOP counter, which takes composite operators apart."""

    def __init__(self, timing: torch.device | None = None) -> None:
        super().__init__()
        self.counter = FlopCounterMode(display=False, custom_mapping=mac_formulas())
        self.timing = timing
        self.kernels: list[Kernel] = []
        self.seconds: list[float] = []
        self.paths: list[str] = [""]
        self.numbers: dict[int, int] = {}
        self.count = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = operator._overloadpacket.__name__
        read = _tensors((args, kwargs))
        if self.timing is not None:
            synchronize(self.timing)
        started = time.perf_counter()
        output = operator(*args, **kwargs)
        if self.timing is not None:
            synchronize(self.timing)
        taken = time.perf_counter() - started
        written = _tensors(output)
        owners = {_storage(tensor) for tensor in read}
        for tensor in written:
            if _storage(tensor) not in owners:  # fresh memory, though its address may have been another's
                self.numbers.pop(_storage(tensor), None)
        if operator.is_view or name in _MOVES_NOTHING or not written:
            return output
        formula = self.counter.flop_registry.get(operator._overloadpacket)
        macs = formula(*args, **kwargs, out_val=output) // 2 if formula is not None else 0
        kernel = Kernel(self.paths[-1], name, macs, tuple(map(self._access, read)), tuple(map(self._access, written)))
        unchanged = not macs and not operator._schema.is_mutable
        if unchanged and all(access in kernel.reads for access in kernel.writes):  # it answered what it was given
            return output
        self.kernels.append(kernel)
        self.seconds.append(taken)
        return output

    def number(self, tensor: Tensor) -> int:
        """The number of a tensor's memory."""
        storage = _storage(tensor)
        if storage not in self.numbers:
            self.numbers[storage] = self.count
            self.count += 1
        return self.numbers[storage]

    def _access(self, tensor: Tensor) -> Access:
        sides = [(size, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
        elements = prod(size for size, _ in sides) if tensor.numel() else 0
        view = (tensor.storage_offset(), *sorted(side for side in sides if side[0] > 1))
        return Access(self.number(tensor), view, elements * tensor.element_size())


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor) and value.layout == torch.strided]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def _module_paths(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Tell the recorder which module is at work."""

    def enter(path: str) -> Callable[..., None]:
        return lambda *_: recorder.paths.append(path)

    def leave(*_: Any) -> None:
        recorder.paths.pop()

    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(path), prepend=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
