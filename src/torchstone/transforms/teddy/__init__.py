"""TEDDY: graph lottery tickets in one training - edges trimmed by degree, weights by projection.

Seo, Yun and Yang, "TEDDY: Trimming Edges with Degree-based Discrimination strategY", ICLR 2024, arXiv 2402.01261.

Idea. A graph network on a large graph costs what its edges and its weights cost. Which edges matter can be told from
degrees alone: edges between hubs carry least, for each of their ends has many others. So a graph is trimmed once,
before any training, and the sparse network is trained once, by projected gradient descent on the l0 ball, to answer
like the dense network at all nodes.

    n_i = (1 / d_i) sum_(j in N(i)) d_j^(-1/2)                        degree of the neighbourhood
    score(i, j) = (n_i / d_i) (n_j / d_j)                             the int(E s_g) lowest are trimmed
    loss = CE(labelled nodes) + distill KL(dense || sparse; all nodes)
    theta <- the ceil(P s_w) smallest magnitudes of step(theta) zeroed, all parameters together, after every step

A transformed network trims the edges of every graph that it is given, and keeps its weights on the l0 ball by whatever
loop it is trained further. Since the score depends on the graph alone, nothing about a particular graph is kept.

    from torchstone.transforms import teddy
    sparse = teddy.transform(model, (x, edge_index), graph_sparsity=0.4).model    # the same class
    sparse(x, edge_index)                                                          # 40 % of the edges are not looked at

The paper's five networks are in :mod:`torchstone.models.graph.teddy_networks`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchstone.errors import CallError, unknown_name
from torchstone.layers.adjacency import check_graph, compressed, is_mostly_zero
from torchstone.transforms.contract import Batches, Finetune, Plan, Report, Result, as_inputs
from torchstone.transforms.teddy.edges import (
    CRITERIA,
    SIMULATIONS,
    Sparsity,
    check_share,
    edge_scores,
    edge_values,
    kept_edges,
    prune_edges,
    rank_edges,
    remaining_percent,
    schedule,
)
from torchstone.transforms.teddy.hooks import TrimEdges, graph_inputs, project, sparsify
from torchstone.transforms.teddy.weights import (
    Losses,
    distillation_loss,
    project_l0,
    sparse_training_loss,
    zero_share,
)

__all__ = [
    "CRITERIA",
    "SIMULATIONS",
    "Losses",
    "Sparsity",
    "distillation_loss",
    "edge_scores",
    "edge_values",
    "kept_edges",
    "project",
    "project_l0",
    "prune_edges",
    "rank_edges",
    "remaining_percent",
    "replay",
    "schedule",
    "sparse_training_loss",
    "transform",
    "zero_share",
]

TEACHER = "teddy_teacher"
"""The buffer of a network that is still to be trained: the dense network's logits (N, C)."""


def transform(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    *,
    data: Batches | None = None,
    finetune: Finetune | None = None,
    teacher: nn.Module | None = None,
    graph_sparsity: float = 0.2,
    weight_sparsity: float = 0.2,
    distill: float = 1.0,
    train: bool = True,
    criterion: str = "degree",
    self_loops: bool = False,
    soft: bool = False,
    seed: int = 0,
) -> Result:
    """Make a network that trims the graphs it is given and has few weights.

    The dense network is the teacher, or, where there is none, the model trained by ``finetune``. The sparse network
    starts from the model's weights and is trained by ``finetune``; without it its weights are projected as they are.

    Args:
        model: a network ``forward(x, edge_index, ...)`` that classifies the nodes of a graph; it stays as it is.
        example_inputs: a graph: features (N, F) and edges (2, E).
        data: the graph to train on and its labels, one batch ``((x, edge_index), labels)``; -1 for nodes without one.
        finetune: trains a network.
        teacher: the dense network, trained.
        graph_sparsity: s_g, the share of the edges that is trimmed.
        weight_sparsity: s_w, the share of all parameters that is zero.
        distill: the weight of the distillation; 0 for none.
        train: train the sparse network here. False leaves that to what follows: the network then carries the dense
            one's logits, and trains by its own ``training_loss``.
        criterion: ``degree``; ``random`` and ``reverse`` are what it is measured against.
        self_loops: count a loop at every node in the degrees, as the paper does for GAT.
        soft: while training, trimmed edges stay with score 0; for networks with an input ``edge_value``.
        seed: of ``random``.

    Returns:
        The network, of the same class. The plan holds no edges: the same trimming fits any graph.

    Raises:
        UnknownName: no such criterion.
        CallError: a network, graph, data or option that it cannot take; a network with a ``training_loss`` of its own,
            which would train it by other calls than of its forward, on the whole graph and off the ball.
    """
    inputs = as_inputs(example_inputs)
    names = graph_inputs(model)
    if len(inputs) != 2:
        raise CallError(f"{type(model).__name__}: teddy takes a graph, (x, edge_index), got {len(inputs)} inputs")
    check_graph(*inputs, inputs[0].shape[-1])
    plan: Plan = {
        "transform": "teddy",
        "graph_sparsity": graph_sparsity,
        "weight_sparsity": weight_sparsity,
        "criterion": criterion,
        "self_loops": self_loops,
        "soft": soft,
        "seed": seed,
        "distill": None,
    }
    _check(plan, model, names)
    if not isinstance(distill, int | float) or not 0 <= distill < float("inf"):
        raise CallError(f"distill is the weight of a loss, 0 or more, got {distill!r}")
    kept = []
    graph, labels = _training_graph(model, data, inputs)
    can_distill = distill > 0 and (teacher is not None or finetune is not None)
    if can_distill and hasattr(model, "training_loss"):
        raise CallError(f"{type(model).__name__} is to be trained by an earlier distillation: distill=0")
    if can_distill and train and finetune is not None and labels is None:
        raise CallError("distillation trains on a graph with labels: give data, or distill=0")
    logits = _teacher_logits(model, graph, finetune, teacher) if can_distill else None
    if distill and not can_distill:
        kept.append("nothing is distilled: there is neither a dense teacher nor a way to train one")

    if not train and logits is not None:
        plan["distill"] = {"weight": distill, "shape": list(logits.shape)}
    sparse = replay(model, plan)
    if not train and logits is not None:
        getattr(sparse, TEACHER).copy_(logits)
    elif train and finetune is not None:
        loss = None
        if logits is not None:
            assert labels is not None  # checked above
            loss = _Loss(graph, labels, logits, distill)
        sparse = finetune(sparse, loss)
        sparse.zero_grad(set_to_none=True)
        for ours, theirs in zip(sparse.modules(), model.modules(), strict=True):
            ours.training = theirs.training
    else:
        kept.append("the sparse weights were not trained" + ("" if train else "; whatever follows trains them"))
    project(sparse)
    return Result(sparse, _report(plan, inputs, model, sparse, logits, graph, tuple(kept)), plan)


def replay(model: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
    """Make a network trim its graphs and keep its weights on the l0 ball, as a plan says.

    Args:
        model: a graph network; it stays as it is. Its weights are projected when it is called first.
        plan: of :func:`transform`.

    Raises:
        CallError: the network takes no graph, has a training loss of its own, or the plan has wrong values.
    """
    names = graph_inputs(model)
    _check(plan, model, names)
    model = copy.deepcopy(model)
    trim = TrimEdges(
        names,
        sparsity=plan["graph_sparsity"],
        criterion=plan["criterion"],
        self_loops=plan["self_loops"],
        seed=plan["seed"],
        soft=plan["soft"],
    )
    sparsify(model, trim=trim, weight_sparsity=plan["weight_sparsity"])
    if plan["distill"] is not None:
        device = next((parameter.device for parameter in model.parameters()), None)
        model.register_buffer(TEACHER, torch.zeros(plan["distill"]["shape"], device=device))
        model.training_loss = partial(_training_loss, model, plan["distill"]["weight"])  # type: ignore[assignment]
    return model


def _check(plan: Mapping[str, Any], model: nn.Module, names: Sequence[str]) -> None:
    own = getattr(model, "training_loss", None)
    if own is not None and getattr(own, "func", None) is not _training_loss:
        raise CallError(
            f"{type(model).__name__} has a training_loss of its own, which does not go through the trimmed forward: "
            "teddy takes networks that are trained by calls of their forward"
        )
    check_share("graph_sparsity", plan["graph_sparsity"])
    check_share("weight_sparsity", plan["weight_sparsity"])
    for name in ("self_loops", "soft"):
        if not isinstance(plan[name], bool):
            raise CallError(f"{name} is true or false, got {plan[name]!r}")
    seed = plan["seed"]
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise CallError(f"seed is an integer, 0 or more, got {seed!r}")
    if plan["criterion"] not in CRITERIA:
        raise unknown_name("criterion of teddy", plan["criterion"], CRITERIA)
    if plan["soft"] and "edge_value" not in names:
        raise CallError("soft trimming needs a network with an input edge_value: teddy_gat, teddy_graph_transformer")


def _training_loss(model: nn.Module, distill: float, x: Tensor, edge_index: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """The loss of a sparse network that is trained after the transform; called as ``(x, edge_index, y, mask)``."""
    teacher: Any = getattr(model, TEACHER)
    return sparse_training_loss(model(x, edge_index).float(), y, mask, teacher, distill).total


class _Loss:
    """The same for ``finetune``, on the whole graph, whatever device the network is trained on."""

    def __init__(self, graph: tuple[Tensor, Tensor], labels: Tensor, logits: Tensor, distill: float) -> None:
        self.tensors: tuple[Tensor, ...] = (*graph, labels, labels >= 0, logits)
        self.distill = distill

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        device = next(model.parameters()).device
        if self.tensors[1].device != device:
            self.tensors = tuple(tensor.to(device) for tensor in self.tensors)
        x, edge_index, labels, train, teacher = self.tensors
        return sparse_training_loss(model(x, edge_index).float(), labels, train, teacher, self.distill).total


def _training_graph(
    model: nn.Module, data: Batches | None, inputs: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
    """The graph that is trained on, as the model likes its features, and its labels; without data the example."""
    batches: list[Any] = [(inputs, None)] if data is None else list(data)
    try:
        (((x, edge_index), labels),) = batches
    except (TypeError, ValueError):
        raise CallError(
            f"teddy learns from one graph, a single batch ((x, edge_index), labels); the data have {len(batches)}"
        ) from None
    if getattr(model, "takes_sparse_features", False) and is_mostly_zero(x):
        x = compressed(x)
    return (x, edge_index), labels


def _teacher_logits(
    model: nn.Module, graph: tuple[Tensor, Tensor], finetune: Finetune | None, teacher: nn.Module | None
) -> Tensor:
    """The dense network's answers at all nodes, (N, C); it is trained first where none is given."""
    if teacher is None:
        assert finetune is not None
        teacher = finetune(copy.deepcopy(model))
    return _answers(teacher, *graph)


@torch.no_grad()
def _answers(model: nn.Module, x: Tensor, edge_index: Tensor) -> Tensor:
    """A network's answers in eval mode; its modules stay in the modes they are in."""
    modes = {module: module.training for module in model.modules()}
    try:
        return model.eval()(x, edge_index).float()
    finally:
        for module, mode in modes.items():
            module.training = mode


def _report(
    plan: Plan,
    inputs: tuple[Tensor, ...],
    model: nn.Module,
    sparse: nn.Module,
    logits: Tensor | None,
    graph: tuple[Tensor, Tensor],
    kept: tuple[str, ...],
) -> Report:
    x, edge_index = inputs
    edges = edge_index.shape[1]
    options = {name: plan[name] for name in ("criterion", "self_loops", "seed")}
    left = prune_edges(edge_index, len(x), plan["graph_sparsity"], **options)
    forth, back = left[0] * len(x) + left[1], left[1] * len(x) + left[0]
    parameters = list(sparse.parameters())
    dense = _answers(model, *graph) if logits is None else logits
    same = (_answers(sparse, *graph).argmax(-1) == dense.argmax(-1)).float().mean().item()
    words = {"degree": "of the lowest degree scores", "random": "chosen at random", "reverse": "of the highest scores"}
    changed = [
        f"of every graph the {plan['graph_sparsity']:.1%} of the edges {words[plan['criterion']]} are trimmed",
        f"{plan['weight_sparsity']:.1%} of the weights are zero, and stay so in number when the network is trained",
    ]
    if plan["distill"] is not None:
        changed.append("it trains by cross entropy and the dense network's answers at all nodes of this graph")
    return Report(
        changed=tuple(changed),
        kept=kept,
        predicted={
            "share of edges trimmed": plan["graph_sparsity"],
            "zero weights": math.ceil(sum(p.numel() for p in parameters) * plan["weight_sparsity"]),
        },
        measured={
            "edges before": edges,
            "edges now": left.shape[1],
            "edges left in one direction only": int((~torch.isin(forth, back)).sum()),
            "share of weights that are zero": zero_share(parameters),
            "share of nodes answered as by the dense network": same,
        },
    )
