"""The subgraph Weisfeiler-Lehman tests: refinement of integer colours of pairs, exact, for small graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from torchstone.errors import CallError, ShapeError, unknown_name
from torchstone.layers.adjacency import check_graph
from torchstone.models.graph.swl.pairs import SCHEMES, Pairs, apply_policy, check_batch, check_undirected

LARGEST = 4_000_000
"""Pairs times collected pairs that a test is run on: a few hundred megabytes."""


@dataclass(frozen=True)
class ColourTest:
    """What a pair's colour is refined by, and which of its two nodes is pooled over first.

    Attributes:
        schemes: those of ``SCHEMES``, as multisets of colours; ``fwl`` and ``lfwl`` are the multisets of the pairs of
            colours (x[u, w], x[w, v]), of 2-FWL (all w) and of its localised form (neighbours w of v).
        pool: ``uG`` for VS, ``vG`` for SV.
    """

    schemes: tuple[str, ...]
    pool: str = "uG"


TESTS: Mapping[str, ColourTest] = {
    "SWL(VS)": ColourTest(("uL",)),
    "SWL(SV)": ColourTest(("uL",), "vG"),
    "PSWL(VS)": ColourTest(("uL", "vv")),
    "PSWL(SV)": ColourTest(("uL", "vv"), "vG"),
    "GSWL": ColourTest(("uL", "vG")),
    "SSWL": ColourTest(("uL", "vL")),
    "LFWL(2)": ColourTest(("lfwl",)),
    "2-FWL": ColourTest(("fwl",)),
}
"""The six classes; and 2-FWL, the bound of all of them, with its localised form, which tells pairs apart that no class
does."""


def pair_colours(
    edge_index: Int[Tensor, "2 e"],
    num_nodes: int,
    batch: Int[Tensor, " n"] | None = None,
    *,
    schemes: Sequence[str] = ("uL", "vL"),
    policy: str | None = None,
    ego_hops: int = 3,
    types: Int[Tensor, " n"] | None = None,
) -> tuple[Pairs, Int[Tensor, " p"]]:
    """The stable colours of all pairs: those of different graphs of a batch are comparable.

    A colour starts as (label, type of v) and becomes ``(x[u, v], {{x[..]}}_a for all schemes a)`` until no class
    splits. Equal colours are equal exactly: nothing is hashed.

    Args:
        edge_index: (2, E), both directions of every edge.
        num_nodes: N, of all graphs together.
        batch: (N,), the graph of each node, ascending; None for one graph.
        schemes: see :class:`ColourTest`; the pair's own colour is always among them.
        policy: see :func:`apply_policy`; ``marking`` unless given. ``fwl`` and ``lfwl`` have no subgraphs and take
            none: they start with whether u and v are equal, linked or neither, as they have to know the edges.
        ego_hops: radius of the subgraphs of the two ego policies.
        types: (N,), node types.

    Returns:
        The pairs, and their colours (P,), numbered from 0.

    Raises:
        ShapeError: no graph, or one too large for exact multisets.
        CallError: a policy for ``fwl`` or ``lfwl``.
        UnknownName: no such scheme.

    Source:
        The paper's definitions of SWL and of localised Folklore WL.
    """
    check_graph(torch.empty(num_nodes, 1, device=edge_index.device), edge_index, 1)
    check_batch(edge_index, num_nodes, batch)
    check_undirected(edge_index, num_nodes)
    for scheme in schemes:
        if scheme not in (*SCHEMES, "fwl", "lfwl"):
            raise unknown_name("scheme of a test", scheme, (*SCHEMES, "fwl", "lfwl"))
    pairs = Pairs(edge_index, num_nodes, batch)
    folklore = {"fwl", "lfwl"} & set(schemes)
    if folklore and policy is not None:
        raise CallError(f"the policy {policy!r} has no effect: {' and '.join(sorted(folklore))} sees no subgraphs")
    if folklore:
        pairs, colours, _ = apply_policy(pairs, "distance", max_distance=2)
    else:
        pairs, colours, _ = apply_policy(pairs, policy or "marking", max_distance=num_nodes, ego_hops=ego_hops)
    if types is not None:
        _, types = types.unique(return_inverse=True)
        colours = colours * (int(types.max()) + 1) + types[pairs.node]
    if folklore:  # a pair of nodes has two types
        colours = _number(torch.stack([colours, colours[pairs.row(pairs.node, pairs.root)]], 1))
    collected = [_collect(pairs, scheme) for scheme in schemes]
    colours = _number(colours[:, None])
    while True:
        refined = _number(torch.stack([colours, *(item(colours) for item in collected)], 1))
        if int(refined.max()) == int(colours.max()):
            return pairs, refined
        colours = refined


def graph_colours(
    edge_index: Int[Tensor, "2 e"],
    num_nodes: int,
    batch: Int[Tensor, " n"] | None = None,
    *,
    test: str = "SSWL",
    policy: str | None = None,
    ego_hops: int = 3,
    types: Int[Tensor, " n"] | None = None,
) -> Int[Tensor, " b"]:
    """The colour that a test gives to each graph of a batch: equal for graphs that it cannot tell apart.

    Args:
        edge_index, num_nodes, batch, policy, ego_hops, types: as for :func:`pair_colours`.
        test: one of :data:`TESTS`.

    Returns:
        (B,) of int64: the multiset, over the one node, of the multisets, over the other, of stable colours.

    Raises:
        UnknownName: no such test.
    """
    if test not in TESTS:
        raise unknown_name("test", test, TESTS)
    schemes, pool = TESTS[test].schemes, TESTS[test].pool
    options: Any = {"schemes": schemes, "policy": policy, "ego_hops": ego_hops, "types": types}
    pairs, colours = pair_colours(edge_index, num_nodes, batch, **options)
    rows = torch.arange(pairs.count, device=colours.device)
    kept = pairs.root if pool == "uG" else pairs.node
    nodes = _Multisets(kept, rows, num_nodes)(colours)
    graph = pairs.batch if pairs.batch is not None else torch.zeros_like(nodes)
    return _Multisets(graph, torch.arange(num_nodes, device=colours.device), pairs.num_graphs)(nodes)


def distinguishes(
    test: str,
    one: tuple[Int[Tensor, "2 e"], int],
    other: tuple[Int[Tensor, "2 f"], int],
    *,
    policy: str | None = None,
    ego_hops: int = 3,
) -> bool:
    """Whether a test tells two graphs apart.

    Args:
        test: one of :data:`TESTS`.
        one, other: ``(edge_index, num_nodes)``.
        policy, ego_hops: as for :func:`pair_colours`.

    Raises:
        ShapeError: edges that are none of their graph.
        UnknownName: no such test.
    """
    for edge_index, size in (one, other):
        check_graph(torch.empty(size, 1), edge_index, 1)
    nodes = one[1] + other[1]
    batch = (torch.arange(nodes) >= one[1]).long()
    edges = torch.cat([one[0], other[0] + one[1]], 1)
    first, second = graph_colours(edges, nodes, batch, test=test, policy=policy, ego_hops=ego_hops).tolist()
    return first != second


class _Multisets:
    """For every target the multiset of the values of its sources, numbered so that equal ones have equal numbers.

    Args:
        target: (K,), from 0 to ``count`` - 1.
        source: (K,).
        count: of targets.
    """

    def __init__(self, target: Tensor, source: Tensor, count: int) -> None:
        order = target.argsort(stable=True)
        size = torch.zeros(count, dtype=torch.int64, device=target.device).index_add(0, target, torch.ones_like(target))
        place = torch.arange(len(target), device=target.device) - (size.cumsum(0) - size)[target[order]]
        self.width = int(size.max()) if len(target) else 0
        _check_size(count, self.width)
        self.source, self.slot, self.count = source[order], target[order] * self.width + place, count

    def __call__(self, values: Tensor) -> Int[Tensor, " t"]:
        table = values.new_full((self.count * self.width,), -1)  # -1 fills up what is smaller than the largest
        table[self.slot] = values[self.source]
        return _number(table.view(self.count, self.width).sort(1).values)


class _Gathered:
    """The value of one other pair for every pair."""

    def __init__(self, source: Tensor) -> None:
        self.source = source

    def __call__(self, values: Tensor) -> Int[Tensor, " p"]:
        return values[self.source]


class _Shared:
    """A multiset that all pairs with the same node have."""

    def __init__(self, multisets: _Multisets, node: Tensor) -> None:
        self.multisets, self.node = multisets, node

    def __call__(self, values: Tensor) -> Int[Tensor, " p"]:
        return self.multisets(values)[self.node]


class _Joint:
    """For every pair the multiset of (x[u, w], x[w, v]) over some w.

    Args:
        target: (K,), the pairs (u, v).
        left, right: (K,), the pairs (u, w) and (w, v).
        count: of pairs.
    """

    def __init__(self, target: Tensor, left: Tensor, right: Tensor, count: int) -> None:
        self.left, self.right = left, right
        self.multisets = _Multisets(target, torch.arange(len(target), device=target.device), count)

    def __call__(self, values: Tensor) -> Int[Tensor, " p"]:
        return self.multisets(values[self.left] * (int(values.max()) + 1) + values[self.right])


def _collect(pairs: Pairs, scheme: str) -> _Multisets | _Gathered | _Shared | _Joint:
    """What a scheme adds to the colour of every pair, as a function of all colours."""
    rows = torch.arange(pairs.count, device=pairs.root.device)
    if scheme in ("uv", "vu", "uu", "vv"):
        ends = {"u": pairs.root, "v": pairs.node}
        return _Gathered(pairs.row(ends[scheme[0]], ends[scheme[1]]))
    if scheme in ("uG", "vG"):
        kept = pairs.root if scheme == "uG" else pairs.node
        return _Shared(_Multisets(kept, rows, pairs.num_nodes), kept)
    if scheme == "fwl":
        size = torch.full_like(rows, pairs.num_nodes) if pairs.batch is None else pairs.size[pairs.root]
        _check_size(pairs.count, int(size.max()))
        target = rows.repeat_interleave(size)
        u, v = pairs.root[target], pairs.node[target]
        first = torch.zeros_like(u) if pairs.batch is None else pairs.first[u]
        w = first + torch.arange(len(target), device=rows.device) - (size.cumsum(0) - size)[target]
        return _Joint(target, pairs.row(u, w), pairs.row(w, v), pairs.count)
    target, source = pairs.ends("uL" if scheme == "lfwl" else scheme)
    if scheme == "lfwl":  # (u, w) and (w, v) for the neighbours w of v
        u, v, w = pairs.root[target], pairs.node[target], pairs.node[source]
        return _Joint(target, pairs.row(u, w), pairs.row(w, v), pairs.count)
    if pairs.inside is not None:
        kept = pairs.inside[target] & pairs.inside[source]
        target, source = target[kept], source[kept]
    return _Multisets(target, source, pairs.count)


def _check_size(count: int, width: int) -> None:
    if count * width > LARGEST:
        raise ShapeError(f"these graphs are too large for exact colours: {count} multisets of up to {width}")


def _number(rows: Tensor) -> Int[Tensor, " k"]:
    """Equal rows get equal numbers, from 0."""
    return rows.unique(dim=0, return_inverse=True)[1]
