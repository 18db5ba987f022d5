"""Classifying whole graphs, and predicting numbers of them."""

from __future__ import annotations

from typing import Any

import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.errors import CallError
from torchstone.training.recipe import TrainSpec
from torchstone.training.supervised import Supervised


def graph_arguments(model: nn.Module, batch: Any) -> tuple[Tensor, ...]:
    """What a network of whole graphs is called with.

    Args:
        model: called with ``(x, edge_index, batch)``; with ``takes_edge_attr`` also with the features of the edges,
            where there are any.
        batch: PyG ``Batch``.
    """
    arguments = (batch.x, batch.edge_index, batch.batch)
    if getattr(model, "takes_edge_attr", False) and batch.edge_attr is not None:
        return (*arguments, batch.edge_attr)
    return arguments


class _Graphs(Supervised):
    """A network from graphs to (B, outputs)."""

    outputs_of_a_graph: int

    def outputs(self, batch: Any) -> tuple[Tensor, Tensor]:
        values = self(*graph_arguments(self.model, batch))
        expected = (batch.num_graphs, self.outputs_of_a_graph)
        if not isinstance(values, Tensor) or values.shape != expected:
            given = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise CallError(f"a network of graphs returns one row a graph, {expected}; this model returns {given}")
        return values.float(), batch.y

    def inputs(self, batch: Any) -> Tensor:
        return batch.x


class GraphClassifier(_Graphs):
    """Cross entropy, with label smoothing, and accuracy.

    Args:
        num_classes: number of logits.
    """

    def __init__(
        self, model: nn.Module, train: TrainSpec, *, seed: int, steps_per_epoch: int, num_classes: int
    ) -> None:
        accuracy = torchmetrics.classification.MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        super().__init__(model, train, seed=seed, steps_per_epoch=steps_per_epoch, metric=accuracy)
        self.outputs_of_a_graph = num_classes

    def training_loss(self, batch: Any) -> Tensor:
        logits, labels = self.outputs(batch)
        return F.cross_entropy(logits, labels, label_smoothing=self.train_spec.label_smoothing)

    def evaluation_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)


class GraphRegressor(_Graphs):
    """The mean absolute error, which is the metric and the loss.

    Args:
        targets: numbers T that are predicted of a graph.
    """

    def __init__(self, model: nn.Module, train: TrainSpec, *, seed: int, steps_per_epoch: int, targets: int) -> None:
        error = torchmetrics.MeanAbsoluteError()
        super().__init__(model, train, seed=seed, steps_per_epoch=steps_per_epoch, metric=error)
        self.outputs_of_a_graph = targets

    def training_loss(self, batch: Any) -> Tensor:
        return self.evaluation_loss(*self.outputs(batch))

    def evaluation_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.l1_loss(outputs, targets)
