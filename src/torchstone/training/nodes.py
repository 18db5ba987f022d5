"""Classifying the nodes of one graph."""

from __future__ import annotations

from typing import Any

import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.data.graphs import GraphData, check_undirected
from torchstone.errors import CallError
from torchstone.layers.adjacency import compressed, is_mostly_zero
from torchstone.training.recipe import TrainSpec
from torchstone.training.supervised import Supervised


class NodeClassifier(Supervised):
    """Full-batch training on one graph: an epoch is one step, the loss is that of the nodes in the batch's mask.

    The model maps ``(x, edge_index)`` to logits or log-probabilities (N, C): cross entropy is the same for both, so it
    is the negative log likelihood of the papers. A model that has one is trained by its own
    ``training_loss(x, edge_index, y, mask)``, a scalar. The graph belongs to the module and moves with it to its
    device; a batch is a mask (N,).

    A model with ``precompute(x, edge_index) -> tuple``, what training does not change, and ``classify(*tuple)``, which
    makes its scores of that, is asked for the former once in a training, unless it has forward pre-hooks: those of a
    transform act on the whole forward only.

    Args:
        model: the network. ``takes_sparse_features``: it also takes features in compressed rows;
            ``needs_undirected``: it is defined for undirected graphs.
        train: the protocol.
        seed: of everything random in the steps.
        data: the graph.

    Raises:
        DataError: the graph is directed, the network needs an undirected one.
        CallError: ``train.label_smoothing`` is set for a model with a training loss of its own.
    """

    x: Tensor
    edge_index: Tensor
    y: Tensor

    def __init__(self, model: nn.Module, train: TrainSpec, *, seed: int, data: GraphData) -> None:
        accuracy = torchmetrics.classification.MulticlassAccuracy(
            data.num_classes, average="micro", validate_args=False
        )
        super().__init__(model, train, seed=seed, steps_per_epoch=1, metric=accuracy)
        x, edge_index = data.graph.x, data.graph.edge_index
        if getattr(model, "needs_undirected", False):
            check_undirected(edge_index, len(x))
        if getattr(model, "takes_sparse_features", False) and is_mostly_zero(x):
            x = compressed(x)
        self.num_classes = data.num_classes
        self.precomputed: tuple[Tensor, ...] | None = None
        self.own_loss = getattr(model, "training_loss", None)
        if self.own_loss is not None and train.label_smoothing:
            raise CallError(
                f"train.label_smoothing has no effect on {type(model).__name__}, which has a training loss of its own: "
                "remove it"
            )
        for name, tensor in (("x", x), ("edge_index", edge_index), ("y", data.graph.y)):
            self.register_buffer(name, tensor, persistent=False)

    def on_fit_start(self) -> None:
        precompute: Any = getattr(self.model, "precompute", None)
        if precompute is not None and not self.model._forward_pre_hooks:
            self.precomputed = precompute(self.x, self.edge_index)

    def on_fit_end(self) -> None:
        self.precomputed = None

    def scores(self) -> Tensor:
        """What the model makes of the graph."""
        if self.precomputed is None:
            return self(self.x, self.edge_index)
        network: Any = self.model if self.training else self.kept
        return network.classify(*self.precomputed)

    def training_loss(self, batch: Tensor) -> Tensor:
        if self.own_loss is not None:
            return self.own_loss(self.x, self.edge_index, self.y, batch)
        outputs, labels = self.outputs(batch)
        return F.cross_entropy(outputs, labels, label_smoothing=self.train_spec.label_smoothing)

    def outputs(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.scores()
        expected = (len(self.y), self.num_classes)
        if not isinstance(scores, Tensor) or scores.shape != expected:
            given = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
            raise CallError(f"a node classifier returns scores of shape {expected}; this model returns {given}")
        return scores.float()[batch], self.y[batch]

    def evaluation_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def inputs(self, batch: Tensor) -> Tensor:
        return self.x.to_dense()[batch]
