"""Candidates that a method trains before the comparison does: ``method+model``.

The method sees the training split that every candidate is trained on, without its labels, once per seed; the network
that it leaves is then trained and tuned exactly as the others. So nothing but computation is added, which counts as
training time, and such a candidate is ranked among those from scratch.

A method that finishes the task (:func:`torchstone.methods.registry.finishes`) takes the place of the plain training
instead: its network is what is compared. A candidate's option ``teacher`` names the run that a method learns from.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torchstone import catalog
from torchstone.methods.registry import method_module
from torchstone.reporting.candidates import Candidate, Step
from torchstone.training.recipe import DataSpec, MethodSpec, ModelSpec, Recipe, TrainSpec

USUAL_LR = 1e-3


def pretraining_protocol(method: Step, epochs: int, batch_size: int) -> TrainSpec:
    """How a method is trained in a comparison.

    AdamW with a warmed-up cosine schedule, changed by what the method's module states as ``PROTOCOL``, keys of a
    recipe's section ``train``. The rate is the method's for a batch of 128 (``lr`` of its card or its ``PROTOCOL``,
    else 1e-3) times ``sqrt(batch_size / 128)``.

    Args:
        method: with its name.
        epochs: passes over the training data.
        batch_size: samples per step.
    """
    card = catalog.cards().get(method.name)
    settings: dict[str, Any] = {
        "lr": (card.lr if card else 0.0) or USUAL_LR,
        "optimizer": "adamw",
        "weight_decay": 0.05,
        "schedule": "cosine",
        "warmup_epochs": epochs / 10,
        "clip_grad": 1.0,
        **getattr(method_module(method.name), "PROTOCOL", {}),
    }
    settings["lr"] = float(f"{settings['lr'] * math.sqrt(batch_size / 128):.3g}")
    return TrainSpec.from_dict({"epochs": epochs, "batch_size": batch_size, **settings})


def pretraining_recipe(candidate: Candidate, data: DataSpec, task: str, seed: int, epochs: int, batch: int) -> Recipe:
    """The recipe of a candidate's pre-training.

    Args:
        candidate: with a method.
        data: of the comparison.
        task: its name.
        seed: of the run that starts from it.
        epochs: of the pre-training.
        batch: samples per step.
    """
    assert candidate.method is not None
    return Recipe(
        model=ModelSpec(candidate.model, weights=candidate.weights),
        method=method_spec(candidate),
        data=data,
        train=pretraining_protocol(candidate.method, epochs, batch),
        task=task,
        seed=seed,
    )


def method_spec(candidate: Candidate) -> MethodSpec:
    """A candidate's method as recipes name it."""
    assert candidate.method is not None
    options = dict(candidate.method.options)
    teacher = options.pop("teacher", None)
    return MethodSpec(candidate.method.name, options, None if teacher is None else str(teacher))


def describe(recipe: Recipe) -> dict[str, Any]:
    """A pre-training as the report lists it: what is not as usual, and what always matters."""
    usual = {field.name: field.default for field in dataclasses.fields(TrainSpec)}
    always = ("epochs", "batch_size", "optimizer", "lr")
    assert recipe.method is not None
    told = {
        name: value
        for name, value in dataclasses.asdict(recipe.train).items()
        if name in always or (name != "optimizer_args" and value != usual[name])
    }
    return {**told, **recipe.train.optimizer_args, **recipe.method.args}
