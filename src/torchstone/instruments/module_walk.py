"""What every module of a network takes for itself, measured while one forward pass runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

Reading = tuple[float, ...]


@dataclass
class Visit:
    """What one module did in a forward pass.

    Attributes:
        own: what it took itself, without the modules that it called; as many numbers as the meter reads.
        output: shape of its (first) output tensor, of the last call.
        calls: how often it was called.
    """

    own: list[float]
    output: tuple[int, ...] | None = None
    calls: int = 0


@dataclass
class _Call:
    path: str
    entered: Reading
    inner: list[float] = field(default_factory=list)


@contextmanager
def module_walk(model: nn.Module, meter: Callable[[], Reading]) -> Iterator[dict[str, Visit]]:
    """Record the forward passes that run inside the context.

    Args:
        model: the network; the same module under two names is recorded under the first.
        meter: reads one or more growing counters. A module's own share is what they grow by while its forward runs,
            less what they grow by in the modules that it calls. The root's name is ``""``.

    Yields:
        The visits by module path, filled as passes run; modules that are not called are absent.
    """
    visits: dict[str, Visit] = {}
    calls: list[_Call] = []

    def enter(path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            reading = meter()
            calls.append(_Call(path, reading, [0.0] * len(reading)))

        return hook

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        call = calls.pop()
        grown = [now - then for now, then in zip(meter(), call.entered, strict=True)]
        visit = visits.setdefault(call.path, Visit([0] * len(grown)))
        visit.own = [own + all_ - inner for own, all_, inner in zip(visit.own, grown, call.inner, strict=True)]
        visit.output = _shape(output)
        visit.calls += 1
        if calls:
            calls[-1].inner = [inner + all_ for inner, all_ in zip(calls[-1].inner, grown, strict=True)]

    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(path), prepend=True))
        handles.append(module.register_forward_hook(leave))
    try:
        yield visits
    finally:
        for handle in handles:
            handle.remove()


def _shape(output: Any) -> tuple[int, ...] | None:
    """Shape of the first tensor in a module's output, however it is packed."""
    if isinstance(output, Tensor):
        return tuple(output.shape)
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return next((shape for shape in map(_shape, output) if shape is not None), None)
    return None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode with frozen parameters; modes and ``requires_grad`` come back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter in trained:
            parameter.requires_grad_(True)
