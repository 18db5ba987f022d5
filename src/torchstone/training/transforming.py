"""Transforms in training: a recipe's network is built, given its weights, transformed, then trained.

What a transform decided is kept as plans in the run's ``model.json``; a resumed run and a cost measurement replay them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from torchstone.errors import CallError
from torchstone.instruments.description import ModelDescription
from torchstone.seeding import seed_everything_at
from torchstone.training.recipe import Recipe, TransformSpec
from torchstone.training.tasks import Task
from torchstone.transforms.contract import Finetune, Plan, Report, apply, replay

EXAMPLES = 2
"""Samples in the batch that a transform is shown."""


@dataclass(frozen=True)
class Transformed:
    """A network after its transforms.

    Attributes:
        model: the network.
        plans: one per transform.
        reports: one per transform.
    """

    model: nn.Module
    plans: list[Plan]
    reports: list[Report]


@dataclass(frozen=True)
class TrainingBatches:
    """A task's training batches (inputs, target), the same ones every time they are gone through."""

    task: Task
    data: Any

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return self.task.training_pairs(self.data)


def transform_for(
    recipe: Recipe, model: nn.Module, task: Task, data: Any, device: torch.device | None = None
) -> Transformed:
    """Do a recipe's transforms.

    Args:
        recipe: whose ``model.transforms`` are done; its protocol is the one that a transform fine-tunes by.
        model: built, with its weights; it stays as it is.
        task, data: of the recipe.
        device: where a transform fine-tunes; by default the CPU.

    Raises:
        UnknownName: no such transform or option.
        CallError: a transform that cannot be done to this network.
    """
    teacher = model if recipe.model.weights is not None else None  # fresh weights teach nothing
    finetune = finetuner(recipe, task, data, device or torch.device("cpu"))
    batch = EXAMPLES if task.batch_sizes[-1] > 1 else 1
    plans, reports = [], []
    for index, step in enumerate(recipe.model.transforms):
        seed_everything_at("transform", recipe.seed, index)
        result = apply(
            step.name,
            model,
            task.probe_inputs(data, batch),
            data=TrainingBatches(task, data),
            finetune=finetune,
            teacher=teacher,
            options=step.args,
        )
        model = result.model
        plans.append(result.plan)
        reports.append(result.report)
    return Transformed(model, plans, reports)


def replay_all(model: nn.Module, plans: Sequence[Plan]) -> nn.Module:
    """Replay plans one after the other."""
    for plan in plans:
        model = replay(model, plan)
    return model


def finetuner(recipe: Recipe, task: Task, data: Any, device: torch.device) -> Finetune:
    """What a transform trains with: the recipe's protocol, from its first to its last epoch, in this process.

    A killed process repeats it; the run that follows is resumed exactly.
    """

    def finetune(model: nn.Module, loss: Callable[[nn.Module, Any], Tensor] | None = None) -> nn.Module:
        module = task.module(model, recipe, data)
        if loss is not None:
            module.training_loss = lambda batch: loss(model, batch)  # type: ignore[method-assign]
        trainer = Trainer(
            accelerator=device.type,
            devices=[device.index or 0] if device.type == "cuda" else 1,
            precision=recipe.train.precision,  # type: ignore[arg-type]
            max_epochs=recipe.train.epochs,
            limit_train_batches=module.steps_per_epoch * recipe.train.accumulate,
            accumulate_grad_batches=recipe.train.accumulate,
            gradient_clip_val=recipe.train.clip_grad,
            use_distributed_sampler=False,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module.train(), train_dataloaders=data.train_dataloader())
        return model.cpu()

    return finetune


@dataclass(frozen=True)
class TransformedDescription(ModelDescription):
    """A description of a network that plans are replayed on, for another process to measure.

    Args:
        base: the network before.
        plans: replayed in this order.
    """

    base: ModelDescription | None = None
    plans: tuple[Plan, ...] = ()

    @classmethod
    def of(cls, base: ModelDescription, plans: Sequence[Plan]) -> TransformedDescription:
        return cls(base.spec, base.input_shape, base.kwargs, base, tuple(plans))

    def facts(self) -> dict[str, Any]:
        assert self.base is not None
        return {**self.base.facts(), "plans": list(self.plans)}

    def build(self) -> nn.Module:
        assert self.base is not None
        return replay_all(self.base.build(), self.plans)

    def example_inputs(self, batch_size: int) -> tuple[Tensor, ...]:
        assert self.base is not None
        return self.base.example_inputs(batch_size)


def check_sync_batchnorm(steps: Sequence[TransformSpec], shared: bool) -> None:
    """Refuse to replace norms that a transform has tied to other layers.

    Raises:
        CallError: batch statistics would be shared between processes, and a transform is ``tune_mode``.
    """
    if shared and any(step.name == "tune_mode" for step in steps):
        raise CallError(
            "train.sync_batchnorm replaces the norms that tune_mode has tied to the layers before them; "
            "set train.sync_batchnorm=false"
        )
