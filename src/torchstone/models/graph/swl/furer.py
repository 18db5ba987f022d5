"""Furer graphs: pairs of graphs that differ in one twist, and the pairs on which subgraph tests differ.

The base graphs below are ours, found by search; that the tests differ on their Furer graphs is checked by the tests of
this package, exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product

import torch
from jaxtyping import Int
from torch import Tensor

from torchstone.errors import CallError

Edges = tuple[tuple[int, int], ...]
Graph = tuple[Int[Tensor, "2 e"], int]

SIX_NODES_SEVEN_EDGES: Edges = ((0, 1), (0, 2), (0, 3), (1, 2), (3, 4), (3, 5), (4, 5))
SIX_NODES_EIGHT_EDGES: Edges = ((0, 1), (0, 5), (1, 2), (1, 5), (2, 3), (2, 4), (3, 4), (4, 5))
SIX_NODES_NINE_EDGES: Edges = ((0, 1), (0, 2), (0, 4), (0, 5), (1, 2), (1, 3), (1, 4), (3, 4), (4, 5))
SEVEN_NODES: Edges = ((0, 1), (0, 5), (1, 5), (1, 6), (2, 3), (2, 4), (2, 6), (3, 4), (4, 6), (5, 6))
NINE_NODES: Edges = (
    *((0, 1), (0, 2), (0, 3), (1, 2), (3, 4), (3, 5), (4, 5)),
    *((5, 6), (5, 7), (6, 7), (6, 8), (7, 8)),
)
THIRTEEN_NODES: Edges = (
    *((0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (1, 5), (1, 6), (2, 7), (2, 4), (3, 7)),
    *((5, 6), (6, 8), (6, 9), (8, 9), (9, 10), (9, 11), (10, 11), (10, 12), (11, 12)),
)

STEPS: Mapping[tuple[str, str], Edges] = {
    ("SWL(VS)", "SWL(SV)"): SIX_NODES_SEVEN_EDGES,
    ("SWL(VS)", "PSWL(VS)"): SIX_NODES_SEVEN_EDGES,
    ("SWL(SV)", "PSWL(SV)"): NINE_NODES,
    ("PSWL(VS)", "PSWL(SV)"): SEVEN_NODES,
    ("PSWL(SV)", "GSWL"): THIRTEEN_NODES,
    ("GSWL", "SSWL"): SIX_NODES_EIGHT_EDGES,
}
"""The strict steps of the hierarchy, the weaker class first: for each a base graph whose two Furer graphs the stronger
class tells apart and the weaker does not."""

SEPARATIONS: Mapping[tuple[str, str], Edges] = {
    **STEPS,
    # neither of these two is above the other
    ("SWL(SV)", "PSWL(VS)"): NINE_NODES,
    ("PSWL(VS)", "SWL(SV)"): SEVEN_NODES,
    ("SSWL", "LFWL(2)"): SIX_NODES_NINE_EDGES,
}
"""The same for any two tests, ordered or not: the second tells the pair apart and the first does not."""


def furer_graphs(base: Sequence[tuple[int, int]]) -> tuple[Graph, Graph]:
    """The two Furer graphs over a connected base graph, which are not isomorphic.

    Every base node v stands as the even subsets S of its neighbours. Of two linked base nodes u and v, (u, S) and
    (v, T) are linked where both or neither hold the other: ``(v in S) == (u in T)``. In the second graph the links of
    the first base edge are turned round, which can be moved to any other edge but never undone.

    Args:
        base: the edges of the base graph, each once, nodes numbered as one likes.

    Returns:
        ``(edge_index, num_nodes)`` of each, as :func:`distinguishes` takes them: both directions of every edge, and the
        sum over the base nodes of 2 to the power of their degree less one.

    Raises:
        CallError: no edges, a loop, an edge that is given twice, or a base graph in several pieces.

    Source:
        Furer, Weisfeiler-Lehman refinement requires at least a linear number of iterations, ICALP 2001; the paper's
        proofs of strictness use such pairs.
    """
    near: dict[int, set[int]] = {}
    for u, v in base:
        near.setdefault(u, set()).add(v)
        near.setdefault(v, set()).add(u)
    if not near or 2 * len(base) != sum(map(len, near.values())) or any(v in near[v] for v in near):
        raise CallError(f"expected the edges of a graph without loops, each once, got {list(base)}")
    reached = {base[0][0]}
    while grown := set().union(*(near[v] for v in reached)) - reached:
        reached |= grown
    if reached != near.keys():
        raise CallError(
            f"expected a connected base graph; nothing leads from {base[0][0]} to {min(near.keys() - reached)}"
        )
    subsets = {
        v: [frozenset(some) for size in range(0, len(near[v]) + 1, 2) for some in combinations(sorted(near[v]), size)]
        for v in sorted(near)
    }
    number = {key: index for index, key in enumerate((v, some) for v in subsets for some in subsets[v])}
    graphs = []
    for turned in (None, base[0]):
        edges = [
            (number[u, some], number[v, other])
            for u, v in base
            for some, other in product(subsets[u], subsets[v])
            if ((v in some) == (u in other)) != ((u, v) == turned)
        ]
        one_way = torch.tensor(edges).T
        graphs.append((torch.cat([one_way, one_way.flip(0)], 1), len(number)))
    return graphs[0], graphs[1]
