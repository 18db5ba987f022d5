"""Random graphs, labelled with exact counts of small substructures: what a graph network can count, it can tell apart.

Counts are of subgraphs, induced or not, by closed formulas of the adjacency matrix A (d the degrees, t the triangles
at a node), so a batch of graphs costs a few products of matrices:

    triangle          tr A^3 / 6
    tailed-triangle   sum_v t_v (d_v - 2)                             a triangle and an edge at one of its nodes
    star              sum_v C(d_v, 3)                                 a node and three of its neighbours
    4-cycle           (tr A^4 - 4 sum_v C(d_v, 2) - 2 m) / 8
    5-cycle           (tr A^5 - 5 tr A^3 - 5 sum_v (d_v - 2) (A^3)_vv) / 10
    6-cycle           what remains of tr A^6 / 12 without the closed walks that run through smaller subgraphs

Source: Harary and Manvel, On the number of cycles in a graph, 1971; Alon, Yuster and Zwick, Finding and counting given
length cycles, 1997. As a benchmark of graph networks: Chen, Chen, Villar and Bruna, NeurIPS 2020.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import networkx
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from torchstone.errors import CallError, DataError, unknown_name
from torchstone.extras import extra

if TYPE_CHECKING:
    from torch_geometric.data import Data

KINDS = ("triangle", "tailed-triangle", "star", "4-cycle", "5-cycle", "6-cycle")
FAMILIES = ("erdos-renyi", "regular", "both")
EDGE_PROBABILITY = 0.3
DEGREES = (3, 4, 5, 6)

Adjacency = Bool[Tensor, "b n n"] | Float[Tensor, "b n n"]


def count_substructures(adjacency: Adjacency, kind: str) -> Int[Tensor, " b"]:
    """How often a substructure occurs in each graph.

    Args:
        adjacency: (B, n, n), symmetric, zeros on the diagonal; smaller graphs are filled up with nodes without edges.
        kind: one of :data:`KINDS`.

    Returns:
        (B,) of int64, exact up to about 2^50.

    Raises:
        UnknownName: no such substructure.
        DataError: matrices that are no undirected graphs without loops.
    """
    if kind not in KINDS:
        raise unknown_name("substructure", kind, KINDS)
    a = adjacency.double()
    if a.ndim != 3 or not torch.equal(a, a.mT) or a.diagonal(0, 1, 2).any() or not ((a == 0) | (a == 1)).all():
        raise DataError("expected adjacency matrices (B, n, n) of zeros and ones, symmetric, zeros on the diagonal")
    counts = {
        "triangle": lambda: _triangles(a).sum(-1) / 3,
        "tailed-triangle": lambda: (_triangles(a) * (a.sum(-1) - 2)).sum(-1),
        "star": lambda: _choose(a.sum(-1), 3).sum(-1),
        "4-cycle": lambda: _four_cycles(a).sum(-1) / 4,
        "5-cycle": lambda: _five_cycles(a),
        "6-cycle": lambda: _six_cycles(a),
    }
    return counts[kind]().round().long()


def _closed(matrix: Tensor) -> Tensor:
    """The diagonals, (B, n)."""
    return matrix.diagonal(0, 1, 2)


def _choose(n: Tensor, k: int) -> Tensor:
    return n * (n - 1) / 2 if k == 2 else n * (n - 1) * (n - 2) / 6


def _triangles(a: Tensor) -> Tensor:
    """At every node, (B, n)."""
    return _closed(a @ a @ a) / 2


def _four_cycles(a: Tensor) -> Tensor:
    """At every node, (B, n): of the closed walks v-x-y-z-v those with x = z or y = v are none."""
    degree, square = a.sum(-1), a @ a
    forth_and_back = degree.square() + (a * (degree - 1)[:, None]).sum(-1)
    return (_closed(square @ square) - forth_and_back) / 2


def _five_cycles(a: Tensor) -> Tensor:
    cube = a @ a @ a
    closed = _closed(cube)
    walks = _closed(cube @ a @ a).sum(-1)
    return (walks - 5 * closed.sum(-1) - 5 * ((a.sum(-1) - 2) * closed).sum(-1)) / 10


def _six_cycles(a: Tensor) -> Tensor:
    """Closed walks of length six, less those through each smaller subgraph, as many as there are ways to walk it."""
    degree, square = a.sum(-1), a @ a
    edges, triangles, four = degree.sum(-1) / 2, _triangles(a), _four_cycles(a)
    paths_of_two = _choose(degree, 2).sum(-1)
    paths_of_three = (a * (degree - 1)[:, None] * (degree - 1)[:, :, None]).sum((-1, -2)) / 2 - triangles.sum(-1)
    stars = _choose(degree, 3).sum(-1)
    diamonds = (a * _choose(square, 2)).sum((-1, -2)) / 2  # two triangles that share an edge
    bow_ties = _choose(triangles, 2).sum(-1) - 2 * diamonds  # two triangles that share a node only
    tailed_four = (four * (degree - 2)).sum(-1) - 2 * diamonds  # a cycle of four and an edge to a fifth node
    smaller = (
        2 * edges
        + 12 * paths_of_two
        + 6 * paths_of_three
        + 12 * stars
        + 24 * triangles.sum(-1) / 3
        + 48 * four.sum(-1) / 4
        + 36 * diamonds
        + 24 * bow_ties
        + 12 * tailed_four
    )
    return (_closed(square @ square @ square).sum(-1) - smaller) / 12


def random_adjacency(
    graphs: int, *, seed: int = 0, nodes: tuple[int, int] = (10, 16), family: str = "erdos-renyi"
) -> tuple[Bool[Tensor, "b n n"], Int[Tensor, " b"]]:
    """Random undirected graphs without loops, of different sizes.

    * ``erdos-renyi``: every edge with probability 0.3.
    * ``regular``: every node of a graph has the same degree, 3 to 6, one of those that its size allows.
    * ``both``: by turns.

    Args:
        graphs: B.
        seed: the same seed gives the same graphs.
        nodes: the smallest and the largest number of nodes; sizes are uniform between them.
        family: one of :data:`FAMILIES`.

    Returns:
        Adjacency (B, n, n), n the largest number of nodes, and the sizes (B,).

    Raises:
        UnknownName: no such family.
        CallError: no graphs, or sizes that do not fit.
    """
    if family not in FAMILIES:
        raise unknown_name("family of random graphs", family, FAMILIES)
    low, high = nodes
    if graphs < 1 or not 4 <= low <= high:
        raise CallError(f"expected at least one graph, and nodes (low, high) of at least 4, got {graphs} and {nodes}")
    generator = torch.Generator().manual_seed(seed)
    size = torch.randint(low, high + 1, (graphs,), generator=generator)
    drawn = torch.rand(graphs, high, high, generator=generator).triu(1)
    exists = torch.arange(high) < size[:, None]
    adjacency = (drawn > 1 - EDGE_PROBABILITY) & exists[:, None] & exists[:, :, None]
    adjacency = adjacency | adjacency.mT
    seeds = torch.randint(2**31, (graphs, 2), generator=generator).tolist()
    for index, (one, other) in enumerate(seeds):
        if family == "regular" or (family == "both" and index % 2):
            adjacency[index] = _regular(int(size[index]), high, one, other)
    return adjacency, size


def _regular(size: int, padded: int, one: int, other: int) -> Tensor:
    """A random regular graph as an adjacency matrix (padded, padded), from two random numbers."""
    degrees = [degree for degree in DEGREES if degree < size and degree * size % 2 == 0]
    graph = networkx.random_regular_graph(degrees[one % len(degrees)], size, seed=other)
    adjacency = torch.zeros(padded, padded, dtype=torch.bool)
    adjacency[:size, :size] = torch.from_numpy(networkx.to_numpy_array(graph, nodelist=range(size)) > 0)
    return adjacency


def substructure_graphs(
    kind: str,
    *,
    graphs: int = 1500,
    seed: int = 0,
    nodes: tuple[int, int] = (10, 16),
    family: str = "erdos-renyi",
) -> list[Data]:
    """Random graphs to learn counting from.

    Args:
        kind: what is counted, one of :data:`KINDS`.
        graphs, seed, nodes, family: see :func:`random_adjacency`.

    Returns:
        Graphs with ``x`` (n, 1) of ones, ``edge_index`` (2, E) in both directions, and ``y`` (1, 1): the count, divided
        by the standard deviation of the counts of all these graphs.

    Raises:
        UnknownName: no such substructure or family.
        CallError: no graphs, sizes that do not fit, or PyTorch Geometric is not installed.
        DataError: all graphs have the same count.
    """
    data = extra("torch_geometric.data", "graph").Data
    adjacency, size = random_adjacency(graphs, seed=seed, nodes=nodes, family=family)
    counts = count_substructures(adjacency, kind).double()
    deviation = counts.std(correction=0)
    if deviation == 0:
        raise DataError(
            f"all {graphs} graphs have {int(counts[0])} of {kind}: more graphs, or larger ones, would differ"
        )
    targets = (counts / deviation).float().view(-1, 1, 1)
    edges = [one.nonzero().T.contiguous() for one in adjacency]
    return [
        data(x=torch.ones(int(n), 1), edge_index=edge_index, y=y)
        for n, edge_index, y in zip(size, edges, targets, strict=True)
    ]
