"""Running a model on inputs: devices, precision, deploy form, and errors that say what was tried."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchstone.errors import CallError, WorkError, unknown_name

_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
_COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_DEPLOY_METHODS = ("fuse", "reparameterize", "switch_to_deploy")


class OutOfMemory(WorkError):
    """The device has not enough memory for what was asked."""


@dataclass(frozen=True)
class Conditions:
    """How a model runs while its cost is measured: eval, inference mode, and

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``float64``, of weights and inputs.
        compile: a mode of ``torch.compile`` (``default``, ``reduce-overhead``, ...); empty runs the model eagerly.
        threads: threads of the CPU; None takes this process's ``torch.get_num_threads()``.
        deploy: whether the model is brought to its deploy form first (:func:`deploy_form`).

    Raises:
        UnknownName: no such precision or compile mode.
        CallError: a device that this machine does not have.
    """

    device: str = "cpu"
    dtype: str = "float32"
    compile: str = ""
    threads: int | None = None
    deploy: bool = True

    def __post_init__(self) -> None:
        check_device(self.device)
        if self.dtype not in _DTYPES:
            raise unknown_name("precision", self.dtype, _DTYPES)
        if self.compile and self.compile not in _COMPILE_MODES:
            raise unknown_name("compile mode", self.compile, _COMPILE_MODES)
        if self.threads is not None and self.threads < 1:
            raise CallError(f"threads must be positive, got {self.threads}")
        if self.threads is None:
            object.__setattr__(self, "threads", torch.get_num_threads())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def prepare(self) -> None:
        """Set this process up; for processes that do nothing else."""
        torch.set_num_threads(self.threads or 1)
        os.environ.setdefault(
            "TORCHINDUCTOR_COMPILE_THREADS", "1"
        )  # the compiler starts no processes that outlive this

    def place(self, model: nn.Module) -> nn.Module:
        """The model in eval mode, on the device, in the precision; the same object."""
        return model.eval().to(self.device, _DTYPES[self.dtype])

    def place_inputs(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The inputs on the device; those with a fraction in the precision."""
        dtype = _DTYPES[self.dtype]
        return tuple(x.to(self.device, dtype if x.is_floating_point() else x.dtype) for x in inputs)

    def compiled(self, model: nn.Module) -> Callable[..., Any]:
        return torch.compile(model, mode=self.compile) if self.compile else model

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision's context for training, where weights stay in float32."""
        if self.dtype in ("float32", "float64"):
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, _DTYPES[self.dtype])

    def synchronize(self) -> None:
        """Wait until the device has done all that it was given."""
        synchronize(self.device)


def synchronize(device: str | torch.device) -> None:
    """Wait until a device has done all that it was given; a CPU always has."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


def check_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        CallError: no such device here; those that this machine has are listed.
    """
    present = ["cpu"]
    present += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    present += ["mps"] if torch.backends.mps.is_available() else []
    if name in present or (name == "cuda" and "cuda:0" in present):
        return torch.device(name)
    raise CallError(f"no device {name!r} here; this machine has {', '.join(present)}")


def as_inputs(inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The positional arguments that a model is called with."""
    return (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)


def forward(model: Callable[..., Any], inputs: Tensor | Sequence[Tensor]) -> Any:
    """Call a model, for the first time with inputs of this shape.

    Raises:
        OutOfMemory: the inputs fit the model, but not the memory.
        CallError: the model rejects the inputs; says what was tried and why not.
    """
    inputs = as_inputs(inputs)
    try:
        return model(*inputs)
    except Exception as error:
        shapes = ", ".join("x".join(map(str, x.shape)) or "scalar" for x in inputs)
        name = type(model).__name__
        if is_out_of_memory(error):
            raise OutOfMemory(f"{name} ran out of memory with inputs of shape {shapes}") from error
        raise CallError(f"{name} does not take inputs of shape {shapes}: {one_line(error)}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is torch's way of saying that there is no memory left."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def one_line(error: BaseException) -> str:
    """An error's message in one line, with its type where the message alone says little."""
    message = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, (CallError, WorkError)):
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def deploy_form(model: nn.Module, *, inplace: bool = False) -> nn.Module | None:
    """The model's deploy form: the same function with fewer operations.

    A network, or the parts of it, say how by ``fuse()``, ``reparameterize()`` or ``switch_to_deploy()``: in place, or
    by returning what is to stand in their place. Parts that a transform put into a network which says how for itself
    become again, by their ``restore()``, what that network knows.

    Args:
        model: any network.
        inplace: change the model itself instead of a copy.

    Returns:
        The deploy form in eval mode; None for a model that has none (it is left as it is).
    """
    if not any(_deploy_method(module) for module in model.modules()):
        return None
    with torch.no_grad():
        return _deployed((model if inplace else deepcopy(model)).eval())


def _deployed(module: nn.Module) -> nn.Module:
    method = _deploy_method(module)
    if method is not None:
        for part in list(module.modules())[1:]:
            restore = getattr(part, "restore", None)
            if inspect.ismethod(restore):
                restore()
        result = method()
        if isinstance(result, nn.Module) and result is not module:
            return result
        if method.__name__ == "fuse":  # speaks for all that is inside
            return module
    for name, child in list(module.named_children()):
        deployed = _deployed(child)
        if deployed is not child:
            setattr(module, name, deployed)
    return module


def _deploy_method(module: nn.Module) -> Callable[[], Any] | None:
    for name in _DEPLOY_METHODS:
        method = getattr(module, name, None)
        if inspect.ismethod(method) and _needs_nothing(method):
            return method
    return None


def _needs_nothing(method: Callable[..., Any]) -> bool:
    parameters = inspect.signature(method).parameters.values()
    return all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
