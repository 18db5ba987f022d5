"""Training by a method's loss: mostly pre-training, into a run that a later training starts from.

    fit(load_recipe("spark_cifar10"), "runs/spark")
    fit(load_recipe("ecanet_cifar10", ["model.weights=runs/spark"]), "runs/tuned")

A recipe with a section ``method`` is trained by :func:`torchstone.training.fit.fit` as any other: same schedule, same
exact resume, same strategies. Its metric is the method's loss. ``model.safetensors`` of its run is the network,
``method.safetensors`` the rest of the method, ``pictures.png`` what the method makes of some validation images.

A method that finishes the task (``FINISHES`` of its module) trains the whole network, with the task's metric; its run
is evaluated and predicts as a run without a method does.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torchmetrics
from torch import Tensor, nn

from torchstone.errors import CallError, NonFiniteLoss
from torchstone.files import write_bytes
from torchstone.instruments.description import GraphDescription, ModelDescription
from torchstone.methods.method import Method
from torchstone.methods.registry import build_method, finishes
from torchstone.models.pretrained import read_checkpoint
from torchstone.models.registry import build_model
from torchstone.seeding import seed_everything_at
from torchstone.training.optimizers import learning_rate_scales
from torchstone.training.pictures import sheet
from torchstone.training.recipe import DataSpec, MethodSpec, ModelSpec, Recipe, TrainSpec
from torchstone.training.runs import RunDirectory, RunInfo, load_run, read_info
from torchstone.training.supervised import Trainable
from torchstone.training.tasks import Task, get_task

PICTURES = 8
NETWORK = "network."


class Pretrainer(Trainable):
    """A method trained by a protocol; its validation loss is the mean over all validation samples.

    Args:
        method: the network with what the method puts around it.
        train: the protocol.
        seed: of everything random in the steps.
        steps_per_epoch: optimizer steps in an epoch.
        score: of a method that finishes the task, a float for each sample from outputs and targets; the mean of them is
            the metric, which is the validation loss for every other method.
    """

    model: Method

    def __init__(
        self,
        method: Method,
        train: TrainSpec,
        *,
        seed: int,
        steps_per_epoch: int,
        score: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        metric = torchmetrics.MeanMetric(nan_strategy="disable") if score else None
        super().__init__(method, train, seed=seed, steps_per_epoch=steps_per_epoch, metric=metric)
        self.score = score

    def learning_rate_scales(self) -> dict[str, float]:
        """Layers are those of the network; what the method adds learns at the whole rate."""
        scales = learning_rate_scales(self.model.network, self.train_spec)
        return {NETWORK + name: scale for name, scale in scales.items()}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if batch_idx % self.train_spec.accumulate == 0:
            self.model.at_step(self.global_step / (self.train_spec.epochs * self.steps_per_epoch))

    def training_loss(self, batch: Any) -> Tensor:
        return self.model.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        kept: Any = self.kept
        losses = kept.evaluation_loss(batch).float()
        expected = (len(self.inputs(batch)),)
        if losses.shape != expected:
            name = type(self.model).__name__
            raise CallError(f"{name}.evaluation_loss returns a loss a sample, {expected}; got {tuple(losses.shape)}")
        mean = losses.mean().item()
        if not math.isfinite(mean):
            raise NonFiniteLoss(self._non_finite("validation", mean, batch, batch_idx))
        self.validation_loss.update(losses)
        if self.score is not None:
            self.metric.update(self.score(*kept.outputs(batch)))

    def inputs(self, batch: Any) -> Tensor:
        return self.model.inputs(batch)


class Pretraining(Task):
    """A task's data and networks, trained by a method in place of the task's targets.

    Args:
        task: whose data and networks they are.
        method: what trains.
    """

    def __init__(self, task: Task, method: MethodSpec) -> None:
        self.task = task
        self.method = method
        self.finishes = finishes(method.name)
        self.metric, self.maximize, self.error_view = (
            (task.metric, task.maximize, task.error_view) if self.finishes else ("loss", False, "none")
        )
        self.name, self.sources = task.name, task.sources
        self.batch_sizes, self.peer_lr = task.batch_sizes, task.peer_lr

    def open_data(self, data: DataSpec, train: TrainSpec, seed: int, source: Any = None) -> Any:
        for key in ("loss", "label_smoothing", "mixup", "cutmix"):
            if getattr(train, key) != getattr(TrainSpec(), key):
                raise CallError(f"train.{key} is about labels, and a method trains without them: remove it")
        opened = self.task.open_data(data, train, seed, source)
        if self.method.teacher is not None:
            self.task.check_teacher(read_info(self.method.teacher), opened)
        return opened

    def model_args(self, data: Any) -> dict[str, Any]:
        return self.task.model_args(data) if self.finishes else self.task.headless_args(data)

    def build_model(self, model: ModelSpec, data: Any, train: TrainSpec | None = None) -> Method:
        """Build a recipe's network for the data, and the method around it."""
        headless = dataclasses.replace(model, args={**self.model_args(data), **model.args})
        network = self.task.build_model(headless, data, train)
        return _around(network, self.method)

    def module(self, model: nn.Module, recipe: Recipe, data: Any) -> Pretrainer:
        assert isinstance(model, Method)
        seed_everything_at("prepare", recipe.seed)
        model.prepare(data)
        steps = len(data.train_dataloader()) // recipe.train.accumulate
        score = self.task.per_sample_score if self.finishes else None
        return Pretrainer(model, recipe.train, seed=recipe.seed, steps_per_epoch=steps, score=score)

    def has_unused_parameters(self, model: nn.Module, data: Any) -> bool:
        probed: Any = copy.deepcopy(model).train()
        probed.loss(next(iter(data.val_dataloader()))).backward()
        return any(parameter.requires_grad and parameter.grad is None for parameter in probed.parameters())

    def parts(self, state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        network = {key.removeprefix(NETWORK): value for key, value in state.items() if key.startswith(NETWORK)}
        return {"model": network, "method": {key: v for key, v in state.items() if not key.startswith(NETWORK)}}

    def illustrate(self, run: Path, recipe: Recipe, data: Any) -> None:
        """Write ``pictures.png``, of the first validation samples, where the method has pictures."""
        method = _method(run, recipe)
        if type(method).pictures is Method.pictures:
            return
        seed_everything_at("prepare", recipe.seed)
        method.prepare(data)
        batch = next(iter(data.val_dataloader()))
        if isinstance(batch, tuple | list):
            batch = tuple(part[:PICTURES] for part in batch)
        seed_everything_at("pictures", recipe.seed)
        with torch.no_grad():
            columns = method.pictures(batch)
        if columns:
            file = io.BytesIO()
            sheet(columns, data.preprocessing()).save(file, "PNG")
            write_bytes(run / "pictures.png", file.getvalue())

    # --- what a method leaves to the task

    def probe_inputs(self, data: Any, batch_size: int) -> tuple[Tensor, ...]:
        return self.task.probe_inputs(data, batch_size)

    def description(self, spec: str, data: Any) -> ModelDescription | GraphDescription:
        return self.task.description(spec, data)

    def predictions(self, outputs: Tensor) -> Tensor:
        if self.finishes:
            return self.task.predictions(outputs)
        raise CallError("a method predicts nothing: fine-tune its network (model.weights=RUN), or probe it")

    def per_sample_score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.task.per_sample_score(outputs, targets) if self.finishes else self.predictions(outputs)


def objective(recipe: Recipe) -> Task:
    """What a recipe trains for: its task, or its method on the task's data."""
    task = get_task(recipe.task)
    if recipe.method is None:
        return task
    if recipe.model.transforms:
        raise CallError("model.transforms: a method trains the network as it is; transform what starts from its run")
    return Pretraining(task, recipe.method)  # a name that is none is refused before anything is written


def load_method(run: str | Path) -> tuple[Method, RunInfo]:
    """Rebuild the trained method of a finished pre-training run.

    Returns:
        The method with its network and all weights, in eval mode on the CPU, and the run's facts.

    Raises:
        CallError: not a finished run, one without a method, or its weights are truncated.
    """
    info = read_info(run)
    if info.recipe.method is None:
        raise CallError(f"{run} is a run without a method; load it with load_run")
    return _method(info.path, info.recipe), info


def _method(run: Path, recipe: Recipe) -> Method:
    assert recipe.method is not None
    network = RunDirectory(run).network()
    built = build_model(network["name"], **network["args"])
    method = _around(built, recipe.method)
    state, rest = (read_checkpoint(run / f"{part}.safetensors") for part in ("model", "method"))
    method.load_state_dict({**{NETWORK + key: value for key, value in state.items()}, **rest})
    return method.eval()


def _around(network: nn.Module, spec: MethodSpec) -> Method:
    """A recipe's method around its network, with its teacher."""
    teacher = None if spec.teacher is None else load_run(spec.teacher)[0]
    return build_method(spec.name, network, teacher=teacher, **spec.args)
