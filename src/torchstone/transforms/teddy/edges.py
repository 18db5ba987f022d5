"""Which edges of a graph matter, from degrees alone, and which are left when the others are trimmed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchstone.errors import CallError, unknown_name

CRITERIA = ("degree", "random", "reverse")

SIMULATIONS = 20
"""The paper's sparsities are those of 1 to 20 simulations."""


class Sparsity(NamedTuple):
    """Shares of the graph's edges and of the network's weights that are removed."""

    graph: float
    weight: float


def schedule(simulation: int, *, graph_rate: float = 0.05, weight_rate: float = 0.1) -> Sparsity:
    """The sparsities of one of the paper's simulations: ``1 - (1 - rate)^p``.

    The edges that one simulation trims are among those that the next one trims, since scores are not computed anew.

    Args:
        simulation: p, from 1 to 20.
        graph_rate: share of the edges that are left which each further simulation removes.
        weight_rate: the same of weights.

    Raises:
        CallError: another number.

    Source:
        Section 5 of the paper.
    """
    if not 1 <= simulation <= SIMULATIONS:
        raise CallError(f"the paper's simulations are 1 to {SIMULATIONS}, got {simulation}")
    return Sparsity(1 - (1 - graph_rate) ** simulation, 1 - (1 - weight_rate) ** simulation)


def edge_scores(edge_index: Int[Tensor, "2 e"], num_nodes: int, *, self_loops: bool = False) -> Float[Tensor, " e"]:
    """How much every edge matters, by the degrees of its ends and of their neighbours.

    With d_i the number of edges to node i and N(i) their sources (0 where a degree is 0):

        n_i = (1 / d_i) sum_(j in N(i)) d_j^(-1/2)          the mean inverse square root degree of the neighbours
        score(i, j) = (n_i / d_i) (n_j / d_j)

    Edges between hubs score lowest. The score of an edge is that of its reverse; equal edges count as often as given.

    Args:
        edge_index: (2, E), row 0 the sources, row 1 the targets; the paper's graphs are undirected.
        num_nodes: N.
        self_loops: count a loop at every node that has none, as the paper does for GAT.

    Returns:
        (E,), float32.

    Source:
        Section 4.1.
    """
    source, target = edge_index
    dtype = _float(edge_index.device)  # equal sums in any order of the edges
    zeros = torch.zeros(num_nodes, dtype=dtype, device=edge_index.device)
    added = _missing_loops(edge_index, num_nodes).to(dtype) if self_loops else zeros
    degree = zeros.index_add(0, target, torch.ones_like(target, dtype=dtype)) + added
    inverse = torch.where(degree > 0, 1 / degree.clamp(min=1), 0)
    root = inverse.sqrt()
    mean = inverse * (zeros.index_add(0, target, root[source]) + added * root)  # n
    node = mean * inverse
    return (node[source] * node[target]).float()


def rank_edges(
    edge_index: Int[Tensor, "2 e"],
    num_nodes: int,
    *,
    criterion: str = "degree",
    self_loops: bool = False,
    seed: int = 0,
) -> Int[Tensor, " e"]:
    """The positions of all edges, the first to be trimmed first.

    Self-loops come last. Of equal scores the edge between the nodes of lower number comes first, and both its
    directions follow one another: a graph's ranking does not depend on the order of its edges.

    Args:
        edge_index: (2, E).
        num_nodes: N.
        criterion: ``degree`` (:func:`edge_scores`); to compare with, ``reverse`` (the highest scores first) or
            ``random`` (by a hash of the two nodes).
        self_loops: see :func:`edge_scores`.
        seed: of ``random``.

    Returns:
        (E,), a permutation.

    Raises:
        UnknownName: no such criterion.
    """
    if criterion not in CRITERIA:
        raise unknown_name("criterion of teddy", criterion, CRITERIA)
    source, target = edge_index
    pair = torch.minimum(source, target) * num_nodes + torch.maximum(source, target)
    if criterion == "random":
        score = _hash(pair, seed)
    else:
        score = edge_scores(edge_index, num_nodes, self_loops=self_loops)
        score = -score if criterion == "reverse" else score
    score = torch.where(source == target, torch.inf, score)
    order = torch.argsort(2 * pair + (source > target), stable=True)
    return order[torch.argsort(score[order], stable=True)]


def kept_edges(
    edge_index: Int[Tensor, "2 e"],
    num_nodes: int,
    sparsity: float,
    *,
    criterion: str = "degree",
    self_loops: bool = False,
    seed: int = 0,
) -> Int[Tensor, " k"]:
    """The positions of the edges that are left when the first ``int(E sparsity)`` of :func:`rank_edges` are trimmed.

    The two directions of an edge count as two. With ``self_loops`` E counts the missing loops too, which none of the
    edges given stand for.

    Args:
        edge_index: (2, E).
        num_nodes: N.
        sparsity: the share that is trimmed, from 0 to 1.
        criterion, self_loops, seed: see :func:`rank_edges`.

    Returns:
        (K,), ascending.

    Raises:
        CallError: a sparsity that is no share.
    """
    check_share("graph_sparsity", sparsity)
    order = rank_edges(edge_index, num_nodes, criterion=criterion, self_loops=self_loops, seed=seed)
    edges = edge_index.shape[1]
    if not self_loops:
        removed = torch.sym_int(edges * sparsity)  # int() would fix the number of edges of a network that is exported
        return order[removed:].sort().values
    counted = edges + _missing_loops(edge_index, num_nodes).sum()
    cut = (counted.to(_float(edge_index.device)) * sparsity).long()  # a tensor, for export knows no number of loops
    return order[torch.arange(edges, device=order.device) >= cut].sort().values


def prune_edges(
    edge_index: Int[Tensor, "2 e"],
    num_nodes: int,
    sparsity: float,
    *,
    criterion: str = "degree",
    self_loops: bool = False,
    seed: int = 0,
) -> Int[Tensor, "2 k"]:
    """The edges that :func:`kept_edges` keeps, in the order given."""
    return edge_index[
        :, kept_edges(edge_index, num_nodes, sparsity, criterion=criterion, self_loops=self_loops, seed=seed)
    ]


def edge_values(kept: Int[Tensor, " k"], edges: int) -> Float[Tensor, " e"]:
    """1 for every edge that is kept and 0 for the others, (E,): the values of the soft mode."""
    return torch.zeros(edges, device=kept.device).index_fill(0, kept, 1.0)


def remaining_percent(values: Float[Tensor, " e"]) -> Float[Tensor, ""]:
    """Per cent of the edges that are kept."""
    return 100 * (values != 0).float().mean()


def check_share(name: str, value: float) -> None:
    """Refuse what is no share from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise CallError(f"{name} is a share from 0 to 1, got {value!r}")


def _float(device: torch.device) -> torch.dtype:
    """Double precision where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _missing_loops(edge_index: Tensor, num_nodes: int) -> Tensor:
    """Whether each node (N,) has no self-loop."""
    source, target = edge_index
    loops = torch.zeros(num_nodes, dtype=torch.int64, device=edge_index.device)
    return loops.index_add(0, target, (source == target).long()) == 0


def _hash(pair: Int[Tensor, " e"], seed: int) -> Float[Tensor, " e"]:
    """Numbers that look drawn by lot, the same for the same pair of nodes and seed (splitmix64 of their number)."""
    mixed = pair + (seed + 1) * 0x1E3779B97F4A7C15 % 2**62
    for shift, factor in ((30, 0x3F58476D1CE4E5B9), (27, 0x14D049BB133111EB)):
        mixed = (mixed ^ ((mixed >> shift) & (2 ** (64 - shift) - 1))) * factor  # the shift of a number without sign
    mixed = mixed ^ ((mixed >> 31) & (2**33 - 1))
    return (mixed >> 11).double()
