"""All ordered pairs of nodes of each graph, sums over them, and what a subgraph policy says of a pair."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from torchstone.errors import ShapeError, unknown_name

SCHEMES = ("uv", "vu", "uu", "vv", "uG", "vG", "uL", "vL")
POLICIES = ("distance", "marking", "deletion", "ego", "ego_marking", "copies")


class Once:
    """Keeps what was made under a name (``functools.cached_property`` cannot be captured)."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What ``make`` returned the first time."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]


class PairSum(Once):
    """``y[t] = sum of x[source[k]] over the k with target[k] = t``: a matrix of zeros and ones times x.

    Args:
        target: (K,), rows of y; None for y[k] = x[source[k]].
        source: (K,), rows of x; None for y[t] = sum of x[k].
        rows: of y.
        columns: rows of x.
        weight: (K,), factors of the summands, ones when not given.
    """

    def __init__(
        self,
        target: Int[Tensor, " k"] | None,
        source: Int[Tensor, " k"] | None,
        rows: int,
        columns: int,
        weight: Float[Tensor, " k"] | None = None,
    ) -> None:
        super().__init__()
        self.target, self.source, self.rows, self.columns, self.weight = target, source, rows, columns, weight

    def __call__(self, x: Float[Tensor, "p c"]) -> Float[Tensor, "q c"]:
        """(columns, C) to (rows, C)."""
        return self._by_messages(x, False) if _captured() else _Sum.apply(x, self, False)

    def back(self, x: Float[Tensor, "q c"]) -> Float[Tensor, "p c"]:
        """The transposed sum: (rows, C) to (columns, C)."""
        return self._by_messages(x, True) if _captured() else _Sum.apply(x, self, True)

    def compute(self, x: Tensor, back: bool) -> Tensor:
        """Either of the two without a gradient: rows are picked, or summed by a sparse matrix, as the case may be."""
        target, source, _, _ = self._ends(back)
        if target is None and self.weight is None:
            return x if source is None else x.index_select(0, source)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32  # sparse products know no other precision
        matrix = self.once(f"{dtype} {back}", lambda: self._compress(dtype, back))
        with torch.autocast(x.device.type, enabled=False):
            return torch.sparse.mm(matrix, x.to(dtype)).to(x.dtype)

    def _ends(self, back: bool) -> tuple[Tensor | None, Tensor | None, int, int]:
        if back:
            return self.source, self.target, self.columns, self.rows
        return self.target, self.source, self.rows, self.columns

    def _by_messages(self, x: Tensor, back: bool) -> Tensor:
        target, source, rows, _ = self._ends(back)
        summands = x if source is None else x[source]
        if self.weight is not None:
            summands = summands * self.weight[:, None].to(x.dtype)
        return summands if target is None else x.new_zeros(rows, x.shape[1]).index_add(0, target, summands)

    def _compress(self, dtype: torch.dtype, back: bool) -> Tensor:
        """The matrix in compressed rows."""
        target, source, rows, columns = self._ends(back)
        given = target if target is not None else source
        assert given is not None, "neither end is named: nothing to compute"
        order = each = torch.arange(len(given), device=given.device)
        if target is None:
            target = each
        else:
            order = target.argsort(stable=True)
        ends = torch.bincount(target, minlength=rows).cumsum(0)
        place = order if source is None else source[order]
        values = torch.ones_like(order, dtype=dtype) if self.weight is None else self.weight[order].to(dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            return torch.sparse_csr_tensor(
                torch.cat([ends.new_zeros(1), ends]), place, values, (rows, columns), check_invariants=False
            )


class _Sum(torch.autograd.Function):
    """A :class:`PairSum`, either way; the gradient goes the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pair_sum: PairSum, back: bool) -> Tensor:
        ctx.pair_sum, ctx.back = pair_sum, back
        return pair_sum.compute(x, back)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.pair_sum.compute(gradient, not ctx.back), None, None


class Pairs(Once):
    """The ordered pairs (u, v) of nodes of the same graph, for one graph or a batch: P = sum of n_i^2 of them.

    They stand graph by graph, then by the root u (whose subgraph it is), then by v. For a batch in which every node
    knows its graph, ``row(u, v) = start[u] + v``; nothing is padded.

    Args:
        edge_index: (2, E), both directions of every edge.
        num_nodes: N, of all graphs together.
        batch: (N,), the graph of each node, ascending; None for one graph.

    Attributes:
        root, node: (P,), u and v of each pair.
        graph: (P,), the number of the pair's graph.
        num_graphs: B.
        inside: (P,), whether v belongs to the subgraph of u; None where all do (see :meth:`restricted`).
    """

    def __init__(self, edge_index: Int[Tensor, "2 e"], num_nodes: int, batch: Int[Tensor, " n"] | None = None) -> None:
        super().__init__()
        self.edge_index, self.num_nodes, self.batch = edge_index, num_nodes, batch
        self.inside: Tensor | None = None
        nodes = torch.arange(num_nodes, device=edge_index.device)
        if batch is None:
            self.num_graphs, self.count = 1, num_nodes * num_nodes
            self.start = nodes * num_nodes
            self.root = self.start.new_zeros(num_nodes, num_nodes).add(nodes[:, None]).flatten()
            self.node = self.start.new_zeros(num_nodes, num_nodes).add(nodes).flatten()
        else:
            last: Any = batch[-1].item()  # not int(...), which cannot be exported
            self.num_graphs = last + 1
            size = torch.zeros(self.num_graphs, dtype=torch.int64, device=batch.device)
            size = size.index_add(0, batch, torch.ones_like(batch))
            first = size.cumsum(0) - size  # the first node of each graph
            self.size, self.first = size[batch], first[batch]  # of each node's graph
            self.start = self.size.cumsum(0) - self.size - self.first  # pairs before u's own, less the first node
            self.root = nodes.repeat_interleave(self.size)
            self.count = self.root.shape[0]
            torch._check(self.count > 0)  # for export, which does not know how many there are
            self.node = torch.arange(self.count, device=batch.device) - self.start[self.root]

    @property
    def graph(self) -> Int[Tensor, " p"]:
        return torch.zeros_like(self.root) if self.batch is None else self.batch[self.root]

    def row(self, u: Int[Tensor, " k"], v: Int[Tensor, " k"]) -> Int[Tensor, " k"]:
        """Where the pairs (u, v) stand; u and v are nodes of the same graph."""
        return self.start[u] + v

    def restricted(self, inside: Bool[Tensor, " p"]) -> Pairs:
        """The same pairs, with edges in the subgraph of u only between nodes v that are inside it.

        Args:
            inside: (P,); symmetric, ``inside[u, v] = inside[v, u]``, as it is for all node-based policies here.
        """
        other = Pairs(self.edge_index, self.num_nodes, self.batch)
        other.inside = inside
        return other

    @property
    def edge_of(self) -> Int[Tensor, " m"]:
        """(M,), the edges, each as often as its graph has nodes: M = sum of n_i m_i."""
        return self.once("messages", self._messages)[0]

    @property
    def beside(self) -> Int[Tensor, " m"]:
        """(M,), the third node of each message, next to the two ends of ``edge_of``: all nodes of the graph in turn."""
        return self.once("messages", self._messages)[1]

    def _messages(self) -> tuple[Tensor, Tensor]:
        source, nodes = self.edge_index[0], torch.arange(self.num_nodes, device=self.edge_index.device)
        edges = torch.arange(self.edge_index.shape[1], device=source.device)
        if self.batch is None:
            grid = edges.new_zeros(self.edge_index.shape[1], self.num_nodes)
            return (grid + edges[:, None]).flatten(), (grid + nodes).flatten()
        size = self.size[source]
        edge_of = edges.repeat_interleave(size)
        offset = self.first[source] - (size.cumsum(0) - size)  # first node, less the messages of earlier edges
        return edge_of, torch.arange(edge_of.shape[0], device=source.device) + offset[edge_of]

    def ends(self, scheme: str) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"]]:
        """Rows (target, source) of the messages of uL or vL, both (M,)."""
        one, other = self.edge_index[:, self.edge_of]
        if scheme == "uL":
            return self.row(self.beside, one), self.row(self.beside, other)
        return self.row(one, self.beside), self.row(other, self.beside)

    def sums(self, scheme: str) -> tuple[Callable[[Tensor], Tensor], ...]:
        """The steps, the first one first, that make up a scheme's sum over pairs; made once.

        Raises:
            UnknownName: no such scheme.
        """
        return self.once(f"sums {scheme}", lambda: self._make(scheme))

    def _make(self, scheme: str) -> tuple[Callable[[Tensor], Tensor], ...]:
        count = self.count
        if scheme == "uv":
            return ()
        if scheme in ("vu", "uu", "vv"):
            u, v = {"vu": (self.node, self.root), "uu": (self.root,) * 2, "vv": (self.node,) * 2}[scheme]
            return (PairSum(None, self.row(u, v), count, count),)
        if scheme in ("uG", "vG"):
            kept = self.root if scheme == "uG" else self.node
            inward = PairSum(kept, None, self.num_nodes, count)
            return (inward, inward.back)
        if scheme in ("uL", "vL"):
            target, source = self.ends(scheme)
            return (PairSum(target, source, count, count, self._edge_weight(target, source)),)
        raise unknown_name("aggregation scheme", scheme, SCHEMES)

    def _edge_weight(self, target: Tensor, source: Tensor) -> Tensor | None:
        if self.inside is None:
            return None
        return (self.inside[target] & self.inside[source]).float()

    def messages(self, scheme: str) -> tuple[PairSum, PairSum, PairSum]:
        """uL or vL in three steps: pairs to messages, edges to messages, messages to pairs; made once."""
        return self.once(f"messages {scheme}", lambda: self._steps(scheme))

    def _steps(self, scheme: str) -> tuple[PairSum, PairSum, PairSum]:
        target, source = self.ends(scheme)
        count = target.shape[0]
        return (
            PairSum(None, source, count, self.count),
            PairSum(None, self.edge_of, count, self.edge_index.shape[1]),
            PairSum(target, None, self.count, count, self._edge_weight(target, source)),
        )

    @property
    def of_nodes(self) -> PairSum:
        """Nodes to pairs, (N, C) to (P, C): every pair (u, v) gets what its v has."""
        return self.once("of nodes", lambda: PairSum(None, self.node, self.count, self.num_nodes))

    @property
    def mean_per_graph(self) -> PairSum:
        """Pairs to graphs, (P, C) to (B, C): the mean over all n^2 pairs of a graph."""
        return self.once("mean", self._mean)

    def _mean(self) -> PairSum:
        graph = self.graph
        size = graph.new_zeros(self.num_graphs).index_add(0, graph, torch.ones_like(graph))
        return PairSum(graph, None, self.num_graphs, self.count, size[graph].double().reciprocal())


def aggregate(x: Float[Tensor, "p c"], pairs: Pairs, scheme: str) -> Float[Tensor, "p c"]:
    """The sum of a scheme over the pairs of a graph, for every pair (u, v).

    ====== ========================================= ======
    scheme what is added up                          cost
    ====== ========================================= ======
    uv     x[u, v]                                   n^2
    vu     x[v, u]                                   n^2
    uu     x[u, u]                                   n^2
    vv     x[v, v]                                   n^2
    uG     x[u, w] for all w                         n^2
    vG     x[w, v] for all w                         n^2
    uL     x[u, w] for all neighbours w of v         n m
    vL     x[w, v] for all neighbours w of u         n m
    ====== ========================================= ======

    Neighbours are those in the subgraph of u (uL) or v (vL).

    Args:
        x: (P, C).
        pairs: of the graphs.
        scheme: one of :data:`SCHEMES`.

    Returns:
        (P, C).

    Raises:
        UnknownName: no such scheme.

    Source:
        The paper's definition of the atomic aggregations.
    """
    for step in pairs.sums(scheme):
        x = step(x)
    return x


def pair_distances(pairs: Pairs, limit: int) -> Int[Tensor, " p"]:
    """Shortest-path distances d[u, v], cut off at a limit: ``limit`` steps of breadth-first search from all nodes.

    d[u, v] is the number of k = 0 .. limit - 1 within which v is not reached from u; pairs that no path joins are at
    the limit. A limit of N cuts nothing off. Cost: O(n m) a step, no more steps than the longest distance and one.

    Returns:
        (P,) of int64.
    """
    reached = (pairs.root == pairs.node).float()[:, None]
    distance = torch.zeros_like(pairs.root)
    for hops in range(limit):
        if hops > 0:
            before, reached = reached, (reached + aggregate(reached, pairs, "uL") > 0).float()
            if not _captured() and torch.equal(before, reached):  # the rest is never reached
                return distance + (limit - hops) * (reached[:, 0] == 0)
        distance = distance + (reached[:, 0] == 0)
    return distance


def apply_policy(
    pairs: Pairs, policy: str, *, max_distance: int = 5, ego_hops: int = 3
) -> tuple[Pairs, Int[Tensor, " p"], int]:
    """The subgraphs that a node-based policy makes of every graph: one for each node u, on all its nodes.

    =========== ==================================== ==========================
    policy      label of v in the subgraph of u      edges of the subgraph
    =========== ==================================== ==========================
    distance    min(d[u, v], max_distance)           all
    marking     0 for u itself, 1 for all others     all
    deletion    none                                 all but those of u
    ego         none                                 within ego_hops of u
    ego_marking as marking                           within ego_hops of u
    copies      none (no better than the 1-WL test)  all
    =========== ==================================== ==========================

    Returns:
        The pairs with the edges of the subgraphs; the labels, (P,) of int64; how many labels there are.

    Raises:
        UnknownName: no such policy.

    Source:
        The paper's node-based policies; it shows that marking is as strong as any of them.
    """
    none = torch.zeros_like(pairs.root)
    marks = (pairs.root != pairs.node).long()
    if policy == "distance":
        return pairs, pair_distances(pairs, max_distance), max_distance + 1
    if policy == "marking":
        return pairs, marks, 2
    if policy == "deletion":
        return pairs.restricted(marks > 0), none, 1
    if policy in ("ego", "ego_marking"):
        within = pairs.restricted(pair_distances(pairs, ego_hops + 1) <= ego_hops)
        return (within, none, 1) if policy == "ego" else (within, marks, 2)
    if policy == "copies":
        return pairs, none, 1
    raise unknown_name("subgraph policy", policy, POLICIES)


def check_batch(edge_index: Int[Tensor, "2 e"], num_nodes: int, batch: Tensor | None) -> None:
    """Check that there are nodes and that they and their edges belong to the graphs of a batch.

    Raises:
        ShapeError: says what was given and what would be right.
    """
    if num_nodes == 0:
        raise ShapeError("expected at least one node, got none")
    if batch is None:
        return
    if batch.shape != (num_nodes,) or batch.dtype != torch.int64:
        raise ShapeError(f"expected batch ({num_nodes},) of int64, got {tuple(batch.shape)} of {batch.dtype}")
    if _captured():
        return
    if batch[0] != 0 or ((batch.diff() != 0) & (batch.diff() != 1)).any():
        raise ShapeError("expected batch to number the graphs of the nodes 0, 1, ..., ascending and without a gap")
    one, other = batch[edge_index]
    if (one != other).any():
        edge = int((one != other).nonzero()[0])
        raise ShapeError(f"edge {edge} joins node {edge_index[0, edge]} of graph {one[edge]} to graph {other[edge]}")


def check_undirected(edge_index: Int[Tensor, "2 e"], num_nodes: int) -> None:
    """Check that every edge is there in both directions, and that none joins a node to itself.

    Raises:
        ShapeError: names an edge that is wrong.
    """
    one, other = edge_index
    if (one == other).any():
        edge = int((one == other).nonzero()[0])
        raise ShapeError(f"edge {edge} joins node {one[edge]} to itself; the tests take no loops")
    if not torch.equal((one * num_nodes + other).sort().values, (other * num_nodes + one).sort().values):
        raise ShapeError("expected both directions of every edge; torch_geometric.utils.to_undirected adds them")


def _captured() -> bool:
    """Whether a network is being captured, where sparse matrices cannot be and values are unknown."""
    return torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
