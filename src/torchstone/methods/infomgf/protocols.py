"""How InfoMGF's outcome is judged: clusters of its embeddings, and a classifier on its graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from torchstone.errors import CallError, ShapeError
from torchstone.methods.infomgf.graphs import WeightedGraph
from torchstone.methods.infomgf.networks import GraphClassifier


@dataclass(frozen=True)
class Scores:
    """Scores by name, one value a seed, each in [0, 1] (the adjusted Rand index in [-0.5, 1])."""

    values: dict[str, list[float]]

    @property
    def mean(self) -> dict[str, float]:
        return {name: float(np.mean(values)) for name, values in self.values.items()}

    @property
    def std(self) -> dict[str, float]:
        """The sample standard deviation; 0 for one seed."""
        return {name: float(np.std(v, ddof=1)) if len(v) > 1 else 0.0 for name, v in self.values.items()}

    def to_dict(self) -> dict[str, Any]:
        return {name: {"mean": self.mean[name], "std": self.std[name], "values": v} for name, v in self.values.items()}


def cluster(embeddings: Float[Tensor, "n c"], y: Int[Tensor, " n"], seeds: Sequence[int] = range(10)) -> Scores:
    """Cluster embeddings by k-means, k being the number of classes, and compare clusters with classes.

    Rows are divided by their lengths. Accuracy and macro F1 are those of the best assignment of clusters to classes.

    Args:
        embeddings: (N, C).
        y: labels (N,), -1 where there is none; such nodes are clustered, and not scored.
        seeds: of k-means.

    Returns:
        ``nmi``, ``ari``, ``accuracy`` and ``f1``.

    Raises:
        ShapeError: not a label a node.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score, f1_score, normalized_mutual_info_score

    _check_labels(embeddings, y)
    rows = F.normalize(embeddings.detach().float()).cpu().numpy()
    labels = y.cpu().numpy()
    known = labels >= 0
    if not known.any():
        raise ShapeError("no node has a label (all are -1): there is nothing to compare clusters with")
    labels = np.unique(labels[known], return_inverse=True)[1]
    classes = labels.max() + 1
    values: dict[str, list[float]] = {"nmi": [], "ari": [], "accuracy": [], "f1": []}
    for seed in seeds:
        found = KMeans(classes, n_init=10, random_state=seed).fit_predict(rows)[known]
        counts = np.zeros((classes, classes), int)
        np.add.at(counts, (found, labels), 1)
        _, best = linear_sum_assignment(counts, maximize=True)
        assigned = best[found]
        values["nmi"].append(float(normalized_mutual_info_score(labels, found)))
        values["ari"].append(float(adjusted_rand_score(labels, found)))
        values["accuracy"].append(float((assigned == labels).mean()))
        values["f1"].append(float(f1_score(labels, assigned, average="macro")))
    return Scores(values)


def classify(
    graph: WeightedGraph,
    x: Float[Tensor, "n f"],
    y: Int[Tensor, " n"],
    train: Bool[Tensor, " n"],
    val: Bool[Tensor, " n"],
    test: Bool[Tensor, " n"],
    *,
    seeds: Sequence[int] = range(5),
    hidden_channels: int = 64,
    dropout: float = 0.5,
    edge_dropout: float = 0.25,
    epochs: int = 200,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    check_every: int = 10,
    patience: int = 10,
) -> Scores:
    """Train a fresh graph convolutional network of two layers on a graph, once a seed.

    Every ``check_every`` epochs it is looked at; the test scores are those at the best validation accuracy. It ends
    after ``patience`` looks without a better one.

    Args:
        graph: a normalised graph, for example ``method.fused_graph()``.
        x: node features, (N, F).
        y: labels, (N,).
        train, val, test: masks, (N,).
        seeds: of weights and dropout; the state of torch's own generator is left as it was.
        hidden_channels, dropout, edge_dropout: of :class:`GraphClassifier`.
        epochs, lr, weight_decay: of Adam, full batch.

    Returns:
        ``accuracy``, which is the micro F1 as well, and ``macro_f1`` on the nodes of ``test``.

    Raises:
        ShapeError: not a label or a mask a node, or a node in a mask has no label.
        CallError: no epoch, no look or no patience.
    """
    from sklearn.metrics import f1_score

    _check_labels(x, y)
    for name, count in (("epochs", epochs), ("check_every", check_every), ("patience", patience)):
        if count < 1:
            raise CallError(f"{name} must be at least 1, got {count}")
    for mask in (train, val, test):
        if mask.shape == y.shape and mask.dtype == torch.bool and (y[mask] < 0).any():
            raise ShapeError("a node in a mask has no label (-1); leave it out of the masks")
        if mask.shape != y.shape or mask.dtype != torch.bool or not mask.any():
            raise ShapeError(f"expected masks (N,) = {tuple(y.shape)} that hold a node, got {tuple(mask.shape)}")
    graph = graph.detach()
    values: dict[str, list[float]] = {"accuracy": [], "macro_f1": []}
    for seed in seeds:
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(seed)
            options: dict[str, Any] = {
                "hidden_channels": hidden_channels,
                "dropout": dropout,
                "edge_dropout": edge_dropout,
            }
            network = GraphClassifier(x.shape[1], int(y.max()) + 1, **options).to(x.device)
            optimizer = torch.optim.Adam(network.parameters(), lr=lr, weight_decay=weight_decay)
            best, since, predicted = -1.0, 0, torch.full_like(y, -1)
            for epoch in range(1, epochs + 1):
                optimizer.zero_grad()
                F.cross_entropy(network.train()(x, graph)[train], y[train]).backward()
                optimizer.step()
                if epoch % check_every and epoch != epochs:
                    continue
                with torch.no_grad():
                    found = network.eval()(x, graph).argmax(1)
                right = float((found[val] == y[val]).float().mean())
                since += 1
                if right > best:
                    best, since, predicted = right, 0, found
                if since >= patience:
                    break
        truth, found = y[test].cpu().numpy(), predicted[test].cpu().numpy()
        values["accuracy"].append(float((truth == found).mean()))
        values["macro_f1"].append(float(f1_score(truth, found, average="macro")))
    return Scores(values)


def _check_labels(rows: Tensor, y: Tensor) -> None:
    if rows.ndim != 2 or y.shape != rows.shape[:1] or y.dtype.is_floating_point:
        raise ShapeError(f"expected rows (N, C) and integer labels (N,), got {tuple(rows.shape)} and {tuple(y.shape)}")
