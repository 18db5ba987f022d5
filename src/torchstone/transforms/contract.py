"""What every transform is: a function from a model to a model, a report and a plan.

    result = apply("tune_mode", model, images)
    result.model                              # the same class, transformed; the model that was given is untouched
    result.plan                               # JSON: every decision, resolved
    replay(fresh_model, result.plan)          # the same structure again, without data and without deciding anything

The module of a transform (``torchstone.transforms.<key>``) has two functions, ``transform(model, example_inputs, *,
data=None, finetune=None, teacher=None, <its options>) -> Result`` and ``replay(model, plan) -> model``.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol

from torch import Tensor, nn

from torchstone import catalog
from torchstone.errors import CallError, unknown_name

Plan = dict[str, Any]
"""JSON: the transform's key under ``transform``, and every decision that it made."""

Batches = Iterable[tuple[Any, Any]]
"""Training batches (inputs, target); can be gone through more than once."""

CONTRACT = ("model", "example_inputs", "data", "finetune", "teacher")
"""The parameters that every transform has; all others are its own options."""


class Finetune(Protocol):
    """Trains a model on the task's data and returns it; comes from :mod:`torchstone.training`."""

    def __call__(self, model: nn.Module, loss: Callable[[nn.Module, Any], Tensor] | None = None) -> nn.Module:
        """Train.

        Args:
            model: what to train.
            loss: ``loss(model, batch)`` of a training batch, a scalar; None is the task's own.
        """


@dataclass(frozen=True)
class Report:
    """What a transform did.

    Attributes:
        changed: sentences: what is different now.
        kept: sentences: what was left as it is although it might have been changed, and why.
        predicted: what follows from the structure, before anything was run: name -> value.
        measured: what was seen when the model ran on the example inputs: name -> value.
    """

    changed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    predicted: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "changed": list(self.changed),
            "kept": list(self.kept),
            "predicted": dict(self.predicted),
            "measured": dict(self.measured),
        }


@dataclass(frozen=True)
class Result:
    """What a transform returns: the new model, what happened, and how to build it again."""

    model: nn.Module
    report: Report
    plan: Plan


def names() -> list[str]:
    """The keys of the transforms there are."""
    return [card.key for card in catalog.cards().values() if card.kind == "transform"]


def module_of(name: str) -> ModuleType:
    """The module of a transform.

    Raises:
        UnknownName: there is none of that name; the nearest are given.
    """
    if name not in names():
        raise unknown_name("transform", name, names())
    return importlib.import_module(catalog.card(name).module)


def options_of(name: str) -> dict[str, Any]:
    """A transform's own options and their defaults."""
    parameters = inspect.signature(module_of(name).transform).parameters
    return {key: parameter.default for key, parameter in parameters.items() if key not in CONTRACT}


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an option that a transform does not have.

    Raises:
        UnknownName: no such transform or option; the nearest are given.
    """
    valid = options_of(name)
    for option in options:
        if option not in valid:
            raise unknown_name(f"option of {name}", option, valid)


def apply(
    name: str,
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    *,
    data: Batches | None = None,
    finetune: Finetune | None = None,
    teacher: nn.Module | None = None,
    options: Mapping[str, Any] | None = None,
) -> Result:
    """Apply a transform by name.

    Args:
        name: its key.
        model: what is transformed; it stays as it is.
        example_inputs: a batch, or one tensor per input.
        data: training batches, for transforms that learn from data.
        finetune: trains a model, for transforms that train in between.
        teacher: a model whose outputs are learned from.
        options: the transform's own options.

    Raises:
        UnknownName: no such transform or option.
        CallError: a model, option or input that the transform cannot take.
    """
    check_options(name, options or {})
    inputs = as_inputs(example_inputs)
    return module_of(name).transform(
        model, inputs, data=data, finetune=finetune, teacher=teacher, **dict(options or {})
    )


def replay(model: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
    """Build the structure that a plan describes, without data; the weights are those of the model as far as they fit.

    Args:
        model: a model like the one that was transformed; it stays as it is.
        plan: ``Result.plan``, as it is or read from JSON.

    Raises:
        CallError: a plan of no known transform, or of another model.
    """
    name = plan.get("transform") if isinstance(plan, Mapping) else None
    if not isinstance(name, str):
        raise CallError(f"a plan is a mapping that names its transform, got {json.dumps(plan, default=repr)[:80]}")
    return module_of(name).replay(model, dict(plan))


def as_inputs(example_inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The positional arguments that a model is called with.

    Raises:
        CallError: something else than tensors.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        raise CallError("example_inputs must be a batch (a tensor), or a sequence of one tensor per input of the model")
    return inputs
