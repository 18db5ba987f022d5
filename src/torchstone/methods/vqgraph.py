"""VQGraph - a perceptron is taught by a graph network, in class scores and in codes of the surroundings.

Yang et al., VQGraph: Rethinking Graph Representation Space for Bridging GNNs and MLPs, ICLR 2024, arXiv 2308.02117.

The teacher (:mod:`torchstone.models.graph.vqgraph`) is trained first; it has a codebook E (K, F) of surroundings. Once,
before the student trains, it is asked of every node v for log-probabilities y_v (C,) and for how near every code is,
r_v (K,). The student f sees the features of a node alone. With p its log-probabilities, s_v the scores of its projected
hidden state against the same codes, by the same measure, and tau a temperature:

    L = lambda mean_labelled(-p_v[label]) + (1 - lambda) mean_v KL(y_v || p_v)
      + beta mean_v tau^2 KL(softmax(r_v / tau) || softmax(s_v / tau))

Afterwards the student answers without edges and without neighbours' features, also for nodes that came later.
:func:`torchstone.data.inductive.hold_out` makes that case.

The published code computes another token loss; it is here by its name, :class:`ReleasedTokenDistillation`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.errors import CallError, ShapeError
from torchstone.layers.adjacency import compressed, is_mostly_zero
from torchstone.methods.method import Method
from torchstone.models.graph.vqgraph import (
    VQGraphGCN,
    VQGraphMLP,
    convert_official,
    cosine_scores,
    euclidean_scores,
    to_official,
)

__all__ = [
    "ReleasedTokenDistillation",
    "TokenDistillation",
    "VQGraph",
    "build",
    "convert_official",
    "read_released_targets",
    "released_token_divergence",
    "soft_label_divergence",
    "to_official",
    "token_divergence",
]

FINISHES = True

PROTOCOL = {
    "optimizer": "adam",
    "lr": 1e-2,
    "weight_decay": 5e-3,
    "decay_all": True,
    "schedule": "constant",
    "select": "best_score",
}

LOG_PROBABILITIES_SUM_TO_ONE = 1e-3
"""How far from 0 the logarithm of the sum of a row's released probabilities may be, for rounding."""

_SCORES = {"cosine": cosine_scores, "euclidean": euclidean_scores}
_TARGETS = ("soft_labels", "token_scores", "codebook", "metric_index")


# --- the parts of the loss


def soft_label_divergence(student: Float[Tensor, "n c"], teacher: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """``KL(teacher || student)`` of log-probabilities (N, C), for every node."""
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)


def token_divergence(
    student: Float[Tensor, "n k"], teacher: Float[Tensor, "n k"], temperature: float
) -> Float[Tensor, " n"]:
    """``KL(softmax(teacher / tau) || softmax(student / tau))`` of scores (N, K), for every node."""
    return soft_label_divergence((student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1))


def released_token_divergence(
    student: Float[Tensor, "n k"], teacher: Float[Tensor, "n k"], temperature: float
) -> Float[Tensor, " n"]:
    """``sum_k exp(p_k) (p_k - log q_k)`` with p, q the softmax of teacher's and student's scores (N, K) over tau.

    What the published code computes: it gives probabilities to a divergence that takes them for their logarithms. It is
    no divergence - it is large where both agree - and nearly constant for many codes.
    """
    probabilities = (teacher / temperature).softmax(-1)
    return soft_label_divergence((student / temperature).log_softmax(-1), probabilities)


class TokenDistillation:
    """The paper's token loss: ``tau^2 KL``, student and teacher compared with the codes by the same measure.

    Args:
        temperature: tau.
        metric: the measure of the teacher's codebook, ``cosine`` or ``euclidean``.

    Raises:
        ValueError: a temperature that is not positive, a metric that there is not.
    """

    weight = 1.0
    """beta, where it is not given."""

    def __init__(self, temperature: float = 4.0, metric: str = "cosine") -> None:
        if not temperature > 0:
            raise ValueError(f"the temperature must be positive, got {temperature}")
        if metric not in _SCORES:
            raise ValueError(f"metric must be {' or '.join(_SCORES)}, got {metric!r}")
        self.temperature, self.metric = temperature, metric

    def student_scores(self, projection: Float[Tensor, "n f"], codebook: Float[Tensor, "k f"]) -> Float[Tensor, "n k"]:
        """How near every code is to the student's projections."""
        return _SCORES[self.metric](projection, codebook)

    def __call__(
        self, projection: Float[Tensor, "n f"], codebook: Float[Tensor, "k f"], teacher: Float[Tensor, "n k"]
    ) -> Float[Tensor, " n"]:
        """The loss of every node, (N,); their mean is the loss."""
        scores = self.student_scores(projection, codebook)
        return self.temperature**2 * token_divergence(scores, teacher, self.temperature)


class ReleasedTokenDistillation(TokenDistillation):
    """The token loss of the published code: :func:`released_token_divergence`, and two more differences.

    The student's scores are negative distances, whatever measure the teacher's are; and the sum over nodes is divided
    by one, so that the mean of what this returns is the sum over nodes. The authors give it a weight of 1e-8, with
    which it has no influence.
    """

    weight = 1e-8

    def student_scores(self, projection: Float[Tensor, "n f"], codebook: Float[Tensor, "k f"]) -> Float[Tensor, "n k"]:
        return euclidean_scores(projection, codebook)

    def __call__(
        self, projection: Float[Tensor, "n f"], codebook: Float[Tensor, "k f"], teacher: Float[Tensor, "n k"]
    ) -> Float[Tensor, " n"]:
        scores = self.student_scores(projection, codebook)
        return len(scores) * self.temperature**2 * released_token_divergence(scores, teacher, self.temperature)


TOKEN_LOSSES: Mapping[str, type[TokenDistillation]] = {
    "paper": TokenDistillation,
    "released": ReleasedTokenDistillation,
}


# --- the method


class VQGraph(Method):
    """Teaches a student what a trained teacher makes of a graph.

    >>> method = VQGraph(VQGraphMLP(1433, 7), teacher=teacher)
    >>> method.prepare(data)  # data.graph: a PyG Data with x, edge_index, y
    >>> method.loss(data.graph.train_mask).backward()

    What the teacher said is kept with the method: ``soft_labels`` (N, C) log-probabilities, ``token_scores`` (N, K),
    ``codebook`` (K, F) and ``metric_index``, by which measure codes are near (0 cosine, 1 euclidean). A batch is a mask
    (N,) of nodes: the labels of a training batch's nodes are used, soft labels and codes are those of all nodes.

    Args:
        network: the student, a :class:`~torchstone.models.graph.vqgraph.VQGraphMLP`.
        teacher: a trained :class:`~torchstone.models.graph.vqgraph.VQGraphGCN` or ``VQGraphSAGE``; None where its
            answers are there already (:meth:`set_targets`, a state dict).
        tokens: the token loss: ``paper`` (:class:`TokenDistillation`) or ``released``
            (:class:`ReleasedTokenDistillation`).
        token_weight: beta; the token loss's own when not given.
        label_weight: lambda, the share of true labels; 0, as in the authors' configurations, uses none.
        temperature: tau.

    Raises:
        CallError: a network or teacher that is none, an unknown token loss, a weight or temperature out of range.
    """

    network: VQGraphMLP
    soft_labels: Tensor
    token_scores: Tensor
    codebook: Tensor
    metric_index: Tensor
    x: Tensor
    y: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        teacher: nn.Module | None = None,
        tokens: str = "paper",
        token_weight: float | None = None,
        label_weight: float = 0.0,
        temperature: float = 4.0,
    ) -> None:
        super().__init__(network)
        if not isinstance(network, VQGraphMLP):
            raise CallError(f"vqgraph trains a student, vqgraph_mlp; got a {type(network).__name__}")
        if teacher is not None and not isinstance(teacher, VQGraphGCN):
            raise CallError(
                f"the teacher must have a codebook: vqgraph_gcn or vqgraph_sage, got a {type(teacher).__name__}"
            )
        if tokens not in TOKEN_LOSSES:
            raise CallError(f"tokens must be {' or '.join(TOKEN_LOSSES)}, got {tokens!r}")
        if not 0 <= label_weight <= 1:
            raise CallError(f"label_weight is a share from 0 to 1, got {label_weight}")
        if token_weight is not None and token_weight < 0:
            raise CallError(f"token_weight cannot be negative, got {token_weight}")
        try:
            self.token_loss = TOKEN_LOSSES[tokens](temperature)
        except ValueError as error:
            raise CallError(str(error)) from error
        self.token_weight = self.token_loss.weight if token_weight is None else token_weight
        self.label_weight = label_weight
        self._teacher = (teacher,)  # within a tuple it is no part of the method: neither trained nor saved
        for name in _TARGETS:
            self.register_buffer(name, None)
        for name in ("x", "y"):
            self.register_buffer(name, None, persistent=False)

    # --- what the teacher says

    @torch.no_grad()
    def prepare(self, data: Any) -> None:
        """Take the graph that the student is taught on, and ask the teacher, where there is one, about it.

        Args:
            data: has ``graph``, a PyG ``Data`` with x (N, F), edge_index (2, E) and y (N,).

        Raises:
            CallError: there is neither a teacher nor what it said, or it was said of other nodes.
        """
        x, edge_index, y = data.graph.x, data.graph.edge_index, data.graph.y
        sparse = is_mostly_zero(x)
        self.x, self.y = (compressed(x) if sparse else x).to(self.device), y.to(self.device)
        (teacher,) = self._teacher
        if teacher is not None:
            teacher = copy.deepcopy(teacher).eval().to(self.device)  # the caller's stays as it is and where it is
            answers = teacher.tokenize(self.x, edge_index.to(self.device))
            self.set_targets(
                soft_labels=answers.logits.log_softmax(-1),
                token_scores=answers.quantized.scores,
                codebook=teacher.quantizer.codebook,
                metric=teacher.metric,
            )
        elif self.soft_labels is None:
            raise CallError("vqgraph needs a trained teacher: give the recipe method.teacher=RUN")
        if len(self.soft_labels) != len(x):
            raise CallError(f"the teacher spoke of {len(self.soft_labels)} nodes, the graph has {len(x)}")

    def set_targets(
        self,
        soft_labels: Float[Tensor, "n c"],
        token_scores: Float[Tensor, "n k"],
        codebook: Float[Tensor, "k f"],
        metric: str = "cosine",
    ) -> None:
        """Give what a teacher said of N nodes.

        Args:
            soft_labels: log-probabilities.
            token_scores: how near every code is.
            codebook: the codes.
            metric: by which measure codes are near, ``cosine`` or ``euclidean``.

        Raises:
            CallError: a metric that there is not.
            ShapeError: tensors that do not belong together, or not to the student.
        """
        if metric not in _SCORES:
            raise CallError(f"metric must be {' or '.join(_SCORES)}, got {metric!r}")
        classes, width = self.network.out_channels, self.network.projection.out_features
        nodes, codes = len(soft_labels), len(codebook)
        expected = ((nodes, classes), (nodes, codes), (codes, width))
        given = tuple(tuple(value.shape) for value in (soft_labels, token_scores, codebook))
        if given != expected:
            raise ShapeError(
                f"expected soft_labels, token_scores and codebook of shapes (N, {classes}), (N, K) and (K, {width}), "
                f"got {', '.join(map(str, given))}; the student's code_channels is the width of the teacher's codes"
            )
        metric_index = torch.tensor(list(_SCORES).index(metric))
        for name, value in zip(_TARGETS, (soft_labels, token_scores, codebook, metric_index), strict=True):
            setattr(self, name, value.detach().clone().to(self.device))
        self.token_loss.metric = metric

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """What the teacher said has the shapes that the file has."""
        for name in _TARGETS:
            value = state_dict.get(prefix + name)
            if value is not None:
                setattr(self, name, torch.empty_like(value, device=self.device))
        metric_index = state_dict.get(prefix + "metric_index")
        if metric_index is not None:
            self.token_loss.metric = list(_SCORES)[int(metric_index)]
        super()._load_from_state_dict(state_dict, prefix, *rest)

    # --- what the student learns

    def inputs(self, batch: Tensor) -> Tensor:
        """The features (n, F) of the nodes in a mask (N,)."""
        return self._prepared().to_dense()[batch]

    def outputs(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """The student's logits (n, C) and the labels (n,) of the nodes in a mask (N,)."""
        return self.network(self._prepared()).float()[batch], self.y[batch]

    def loss(self, batch: Tensor) -> Tensor:
        """Of all nodes what they should have in common with the teacher, and the labels of the nodes in the mask."""
        logits, distilled = self._distil()
        loss = distilled.mean()
        if self.label_weight:
            loss = loss + self.label_weight * F.cross_entropy(logits[batch], self.y[batch])
        return loss

    def evaluation_loss(self, batch: Tensor) -> Tensor:
        """The loss of every node in a mask, (n,)."""
        logits, distilled = self._distil()
        losses = distilled[batch]
        if self.label_weight:
            losses = losses + self.label_weight * F.cross_entropy(logits[batch], self.y[batch], reduction="none")
        return losses

    def _distil(self) -> tuple[Tensor, Tensor]:
        """The student's logits (N, C), and of every node the distance from the teacher, (N,)."""
        hidden = self.network.features(self._prepared())
        logits = self.network.layers[-1](hidden).float()
        losses = (1 - self.label_weight) * soft_label_divergence(logits.log_softmax(-1), self.soft_labels)
        if self.token_weight:
            projection = self.network.projection(hidden).float()
            with torch.autocast(projection.device.type, enabled=False):
                tokens = self.token_loss(projection, self.codebook, self.token_scores)
            losses = losses + self.token_weight * tokens
        return logits, losses

    def _prepared(self) -> Tensor:
        if self.x is None:
            raise CallError("the method has no graph yet: call prepare(data) first")
        return self.x


def build(model: nn.Module, teacher: nn.Module | None = None, **args: Any) -> VQGraph:
    """The method around a student; for the arguments see :class:`VQGraph`."""
    return VQGraph(model, teacher=teacher, **args)


def read_released_targets(folder: str | Path) -> dict[str, Tensor]:
    """What the authors' teachers said, from the three files of a data set that they released.

    >>> method.set_targets(**read_released_targets("cora"))

    Args:
        folder: holds ``codebook_embeddings.npz``, ``tea_soft_labels.npz`` and ``tea_soft_token_assignments.npz``.

    Returns:
        ``soft_labels`` (N, C), ``token_scores`` (N, K) and ``codebook`` (K, F).

    Raises:
        CallError: a file is missing or holds something else; soft labels that are no log-probabilities.
    """
    files = {
        "soft_labels": "tea_soft_labels.npz",
        "token_scores": "tea_soft_token_assignments.npz",
        "codebook": "codebook_embeddings.npz",
    }
    found = {name: _released_matrix(Path(folder) / file) for name, file in files.items()}
    total = found["soft_labels"].logsumexp(-1).abs().max().item()
    if not total < LOG_PROBABILITIES_SUM_TO_ONE:
        raise CallError(
            f"{files['soft_labels']} must hold log-probabilities, whose exponentials add up to 1 in every row; "
            f"here the logarithm of a sum is up to {total:.3g} from 0"
        )
    return found


def _released_matrix(path: Path) -> Tensor:
    """The array of a released file as a matrix; a leading axis of one, the published codebook's, is taken away."""
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            array = archive["arr_0"] if isinstance(archive, np.lib.npyio.NpzFile) else None
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise CallError(f"{path} is no .npz file with an array arr_0 ({error})") from error
    if array is None:
        raise CallError(f"{path} is a single array (.npy), not an .npz file with an array arr_0")
    shape = array.shape[1:] if array.ndim == 3 and len(array) == 1 else array.shape
    if len(shape) != 2 or 0 in shape or not np.issubdtype(array.dtype, np.number):
        raise CallError(f"{path} must hold a matrix of numbers, got {array.shape} of {array.dtype}")
    return torch.from_numpy(array.reshape(shape).astype(np.float32))
