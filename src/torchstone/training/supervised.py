"""Training by a protocol: optimizer, schedule, randomness and checks around a loss; and training with targets.

Nothing in a step depends on the history of the process. The learning rate is a function of the step, and everything
random in a step is seeded from its position, so a run that starts again at an epoch's end repeats the same numbers.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
import torchmetrics
from lightning.pytorch import LightningModule
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.errors import CallError, NonFiniteLoss
from torchstone.seeding import seed_everything_at
from torchstone.training.optimizers import (
    create_optimizer,
    learning_rate_scales,
    own_decays,
    undecayed_parameters,
)
from torchstone.training.recipe import TrainSpec
from torchstone.training.schedules import learning_rate, weight_decay


class Trainable(LightningModule, ABC):
    """What is trained by a protocol: parameters, a training loss, a loss and a metric of the validation data.

    Args:
        model: what has the parameters; ``model.`` is its prefix in checkpoints.
        train: the protocol.
        seed: of everything random in the steps.
        steps_per_epoch: optimizer steps in an epoch.
        metric: the primary metric; None where that is the validation loss itself.
    """

    def __init__(
        self,
        model: nn.Module,
        train: TrainSpec,
        *,
        seed: int,
        steps_per_epoch: int,
        metric: torchmetrics.Metric | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.train_spec = train
        self.seed = seed
        self.steps_per_epoch = steps_per_epoch
        self.validation_loss = torchmetrics.MeanMetric(nan_strategy="disable")
        self.metric = metric or self.validation_loss
        self.undecayed = frozenset() if train.decay_all else undecayed_parameters(model)
        self.scales = self.learning_rate_scales()
        own_decays(model, train)  # a name that no parameter has is refused before a run begins
        self.average = _average(model, train.ema_decay)
        self.learning_rate = 0.0
        self.last_loss = math.nan
        self.epoch_loss = 0.0
        self.epoch_batches = 0

    @abstractmethod
    def training_loss(self, batch: Any) -> Tensor:
        """The loss of a training batch: a scalar, the mean over its samples."""

    @abstractmethod
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Update the validation loss and the metric by a batch."""

    @abstractmethod
    def inputs(self, batch: Any) -> Tensor:
        """The input tensor of a batch, to say whether a non-finite loss came with it."""

    @property
    def kept(self) -> nn.Module:
        """What is evaluated and kept: the model, or the moving average of its weights."""
        return self.model if self.average is None else self.average.module

    def forward(self, *inputs: Any) -> Any:
        return self.model(*inputs) if self.training else self.kept(*inputs)

    def learning_rate_scales(self) -> dict[str, float]:
        """Factor of the learning rate for every parameter whose factor is not 1."""
        return learning_rate_scales(self.model, self.train_spec)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return create_optimizer(self.model, self.train_spec, self.undecayed, self.scales)

    # --- training

    def on_train_epoch_start(self) -> None:
        self.epoch_loss, self.epoch_batches = 0.0, 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        seed_everything_at("train", self.seed, self.current_epoch, batch_idx, self.global_rank)
        self.learning_rate = learning_rate(self.train_spec, self.global_step, self.steps_per_epoch)
        decay = weight_decay(self.train_spec, self.global_step, self.steps_per_epoch)
        for group in self.optimizers(use_pl_optimizer=False).param_groups:  # type: ignore[union-attr]
            group["lr"] = self.learning_rate * group["lr_scale"]
            if group["own_decay"] is None:
                group["weight_decay"] = decay if group["decays"] else 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.training_loss(batch)
        self.last_loss = loss.item()
        if not math.isfinite(self.last_loss):
            raise NonFiniteLoss(self._non_finite("training", self.last_loss, batch, batch_idx))
        self.epoch_loss += self.last_loss
        self.epoch_batches += 1
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.average is not None and (batch_idx + 1) % self.train_spec.accumulate == 0:  # the optimizer has stepped
            self.average.update(self.model)

    def mean_epoch_loss(self) -> float:
        """The mean training loss of the epoch, over all processes."""
        mean = self.epoch_loss / self.epoch_batches
        if self.trainer.world_size == 1:
            return mean
        everyone = torch.tensor(mean, dtype=torch.float64, device=self.device)
        return self.trainer.strategy.reduce(everyone, reduce_op="mean").item()

    def _non_finite(self, kind: str, loss: float, batch: Any, batch_idx: int) -> str:
        inputs = self.inputs(batch)
        broken = (~torch.isfinite(inputs)).flatten(1).any(1).sum().item()
        cause = (
            f"the inputs of {broken} of its {len(inputs)} samples hold NaN or infinite values"
            if broken
            else f"its inputs are finite; try a lower learning rate (it was {self.learning_rate:g}) or train.clip_grad"
        )
        where = f"epoch {self.current_epoch + 1}, step {batch_idx + 1} (optimizer step {self.global_step + 1})"
        return f"the {kind} loss became {loss} at {where}: {cause}"

    # --- validation

    def on_validation_epoch_start(self) -> None:
        self.metric.reset()
        self.validation_loss.reset()

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        seed_everything_at("evaluate", self.seed, batch_idx)


def _average(model: nn.Module, decay: float | None) -> ModelEmaV3 | None:
    """The moving average of a model's parameters and buffers, which no optimizer and no gradient reaches."""
    return None if decay is None else ModelEmaV3(model, decay=decay).requires_grad_(False)


class Supervised(Trainable):
    """A model, its loss and its metric, trained with targets.

    A domain says how a batch becomes a training loss (:meth:`training_loss`) and a prediction with its target
    (:meth:`outputs`), and what the loss of a prediction is (:meth:`evaluation_loss`).

    Args:
        model: the network; ``model.`` is its prefix in checkpoints.
        train: the protocol.
        seed: of everything random in the steps.
        steps_per_epoch: optimizer steps in an epoch.
        metric: the primary metric, from outputs and targets.
    """

    metric: torchmetrics.Metric

    @abstractmethod
    def outputs(self, batch: Any) -> tuple[Tensor, Tensor]:
        """What the model makes of a batch without augmentation, and the targets; one row each per sample."""

    @abstractmethod
    def evaluation_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of :meth:`outputs`: a scalar, the mean over its samples."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        outputs, targets = self.outputs(batch)
        loss = self.evaluation_loss(outputs, targets)
        if not math.isfinite(loss.item()):
            raise NonFiniteLoss(self._non_finite("validation", loss.item(), batch, batch_idx))
        self.metric.update(outputs, targets)
        self.validation_loss.update(loss.expand(len(targets)))  # a weight is ignored with nan_strategy="disable"

    def predict_step(self, batch: Any, batch_idx: int) -> tuple[Tensor, Tensor]:
        seed_everything_at("evaluate", self.seed, batch_idx)
        return self.outputs(batch)


def has_unused_parameters(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether the model has trainable parameters that no gradient reaches. The model itself is left as it was."""
    probed = copy.deepcopy(model).train()
    probed(*inputs).float().sum().backward()
    return any(parameter.requires_grad and parameter.grad is None for parameter in probed.parameters())


class Classification(Supervised):
    """A classifier: cross entropy with label smoothing, mixup and CutMix; accuracy.

    The batch is ``(inputs, labels)``; the model maps inputs to logits of shape (B, num_classes). The training loss is
    cross entropy against targets smoothed by s, (1 - s) y + s / num_classes, after mixup or CutMix of the batch; or,
    of a model that has one, its own ``training_loss(inputs, targets)``, a scalar, with such targets (B, num_classes).

    Args:
        num_classes: number of logits.

    Raises:
        CallError: ``train.loss`` is set for a model with a training loss of its own.
    """

    def __init__(
        self, model: nn.Module, train: TrainSpec, *, seed: int, steps_per_epoch: int, num_classes: int
    ) -> None:
        accuracy = torchmetrics.classification.MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        super().__init__(model, train, seed=seed, steps_per_epoch=steps_per_epoch, metric=accuracy)
        self.num_classes = num_classes
        self.mix = _mixing(train, num_classes)
        self.own_loss = getattr(model, "training_loss", None)
        if self.own_loss is not None and train.loss != "cross_entropy":
            raise CallError(
                f"train.loss={train.loss} has no effect on {type(model).__name__}, which has its own: remove it"
            )

    def training_loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, targets = batch
        if self.mix is not None:
            images, targets = self.mix(images, targets)
        if self.own_loss is not None:
            return self.own_loss(images, self._smoothed(targets))
        logits = self._logits(images)
        if self.train_spec.loss == "cross_entropy":
            return F.cross_entropy(logits, targets, label_smoothing=self.train_spec.label_smoothing)
        return F.binary_cross_entropy_with_logits(logits, self._smoothed(targets))

    def _smoothed(self, targets: Tensor) -> Tensor:
        """(B, num_classes) shares of labels (B,) or of mixed targets, smoothed."""
        shares = targets if targets.ndim == 2 else F.one_hot(targets, self.num_classes)
        smoothing = self.train_spec.label_smoothing
        return shares * (1 - smoothing) + smoothing / self.num_classes

    def outputs(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, labels = batch
        return self._logits(images), labels

    def evaluation_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def inputs(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return batch[0]

    def _logits(self, images: Tensor) -> Tensor:
        logits = self(images)
        expected = (len(images), self.num_classes)
        if not isinstance(logits, Tensor) or logits.shape != expected:
            given = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise CallError(f"a classifier returns logits of shape {expected}; this model returns {given}")
        return logits.float()


def _mixing(train: TrainSpec, num_classes: int) -> Mixup | None:
    if not train.mixup and not train.cutmix:
        return None
    return Mixup(mixup_alpha=train.mixup, cutmix_alpha=train.cutmix, label_smoothing=0.0, num_classes=num_classes)
