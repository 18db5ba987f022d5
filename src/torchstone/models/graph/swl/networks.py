"""Node-based subgraph networks: embedded pairs, layers assembled from aggregation schemes, pooling and head."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from torchstone.errors import CallError, ShapeError, unknown_name
from torchstone.layers.adjacency import check_graph
from torchstone.models.graph.swl.pairs import (
    POLICIES,
    SCHEMES,
    Pairs,
    aggregate,
    apply_policy,
    check_batch,
)

LOCAL = ("uL", "vL")


class TypeEmbedding(nn.Module):
    """Sums of embedded types, with a table for each column of them: ``sum_k table_k[types[:, k]]``.

    Args:
        sizes: rows of each table.
        channels: C.
    """

    def __init__(self, sizes: Sequence[int], channels: int) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        tables = [nn.Embedding(size, channels) for size in self.sizes]
        for table in tables:
            if not table.weight.is_meta:
                nn.init.xavier_uniform_(table.weight)
        self.tables = nn.ModuleList(tables)

    def forward(self, types: Tensor) -> Float[Tensor, "k c"]:
        """Types (K,) or (K, columns), the first tables' if there are fewer columns than tables, or one-hot vectors of
        all tables side by side (K, sum of sizes), to (K, C)."""
        if types.is_floating_point():
            table = torch.cat(list(self.tables.parameters()))
            return types.to(table.dtype) @ table
        columns = _columns(types).unbind(1)
        embedded = [table(column) for table, column in zip(self.tables, columns, strict=False)]
        return torch.stack(embedded).sum(0) if len(embedded) > 1 else embedded[0]


def _columns(types: Tensor) -> Tensor:
    """Types (K,) or (K, columns) as (K, columns); K may be 0."""
    return types[:, None] if types.ndim == 1 else types


def check_types(types: Tensor, sizes: Sequence[int], what: str) -> None:
    """Check types that a :class:`TypeEmbedding` of these sizes is to take; ``what`` names them.

    Raises:
        ShapeError: another shape or type, or a type beyond its table.
    """
    if types.is_floating_point():
        if types.ndim != 2 or types.shape[1] != sum(sizes):
            raise ShapeError(f"expected one-hot {what} (*, {sum(sizes)}), got {tuple(types.shape)}")
        return
    if types.dtype != torch.int64:
        raise ShapeError(f"expected {what} of int64, or one-hot of a floating-point type, got {types.dtype}")
    if types.ndim not in (1, 2) or (types.ndim == 2 and not 1 <= types.shape[1] <= len(sizes)):
        raise ShapeError(f"expected {what} (*,) or up to {len(sizes)} columns of them, got {tuple(types.shape)}")
    if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export() or types.numel() == 0:
        return
    for column, size in zip(_columns(types).unbind(1), sizes, strict=False):
        low, high = column.aminmax()
        if low < 0 or high >= size:
            raise ShapeError(f"{what} go from {int(low)} to {int(high)}, the network was built for 0 to {size - 1}")


class PairEncoder(nn.Module):
    """The first state of a pair: ``x[u, v] = type(v) + label(u, v)``.

    Args:
        types: sizes of the tables of node types; None to leave them out (graphs without types).
        labels: how many labels the policy gives.
        channels: C.
    """

    def __init__(self, types: Sequence[int] | None, labels: int, channels: int) -> None:
        super().__init__()
        self.types = TypeEmbedding(types, channels) if types is not None else None
        self.label = nn.Embedding(labels, channels)

    def forward(self, x: Tensor, labels: Int[Tensor, " p"], pairs: Pairs) -> Float[Tensor, "p c"]:
        """Nodes (N, ...), labels (P,) and pairs to (P, C)."""
        state = self.label(labels)
        return state if self.types is None else state + pairs.of_nodes(self.types(x))


class AggregationTerm(nn.Module):
    """One scheme of a layer: ``MLP((1 + eps) x + aggregate(x))``.

    What uL and vL add up goes through ``relu(x + edge(type))`` first, ``relu(x)`` where edges have no types.

    Args:
        scheme: one of ``SCHEMES``.
        channels: C.
        edge_types: sizes of the tables of edge types, empty for none; used by uL and vL.
        own: add the pair's own state, with a learned ``eps``. The pooling layer does not; its ``eps``, which the
            authors' layout has, is fixed.
    """

    def __init__(self, scheme: str, channels: int, edge_types: Sequence[int] = (), own: bool = True) -> None:
        super().__init__()
        if scheme not in SCHEMES:
            raise unknown_name("aggregation scheme", scheme, SCHEMES)
        self.scheme, self.own = scheme, own
        self.epsilon = nn.Parameter(torch.zeros(1), requires_grad=own)
        self.edges = TypeEmbedding(edge_types, channels) if edge_types and scheme in LOCAL else None
        hidden = [nn.Linear(channels, channels), nn.BatchNorm1d(channels), nn.ReLU()]
        self.mlp = nn.Sequential(*hidden, nn.Linear(channels, channels))

    def forward(self, x: Float[Tensor, "p c"], pairs: Pairs, edge_attr: Tensor | None) -> Float[Tensor, "p c"]:
        """(P, C) to (P, C)."""
        found = self.aggregate(x, pairs, edge_attr)
        return self.mlp((1 + self.epsilon) * x + found if self.own else found)

    def aggregate(self, x: Float[Tensor, "p c"], pairs: Pairs, edge_attr: Tensor | None) -> Float[Tensor, "p c"]:
        """The scheme's sum of messages, (P, C)."""
        if self.scheme not in LOCAL:
            return aggregate(x, pairs, self.scheme)
        if self.edges is None or edge_attr is None:
            return aggregate(x.relu(), pairs, self.scheme)
        from_pairs, from_edges, to_pairs = pairs.messages(self.scheme)
        return to_pairs((from_pairs(x) + from_edges(self.edges(edge_attr))).relu())


class AggregationLayer(nn.Module):
    """A layer of any aggregation schemes: ``ReLU(BN(sum over schemes of their terms))``, BN over all pairs.

    Args:
        schemes: names from ``SCHEMES``, each once.
        channels: C.
        edge_types: see :class:`AggregationTerm`.
        own: see :class:`AggregationTerm`.

    Raises:
        CallError: no scheme, or one that is given twice.
        UnknownName: no such scheme.

    Source:
        The paper's general layer, as its experiments have it.
    """

    def __init__(self, schemes: Sequence[str], channels: int, edge_types: Sequence[int] = (), own: bool = True) -> None:
        super().__init__()
        if not schemes or len(set(schemes)) != len(schemes):
            raise CallError(f"expected aggregation schemes, each once, got {tuple(schemes)}; there are {SCHEMES}")
        self.terms = nn.ModuleDict({name: AggregationTerm(name, channels, edge_types, own) for name in schemes})
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Float[Tensor, "p c"], pairs: Pairs, edge_attr: Tensor | None = None) -> Float[Tensor, "p c"]:
        """(P, C) to (P, C)."""
        terms = [term(x, pairs, edge_attr) for term in self.terms.values()]
        return self.norm(sum(terms[1:], terms[0])).relu()


class SubgraphGNN(nn.Module):
    """A node-based subgraph network for whole graphs: the state of every pair (u, v), v in the subgraph of u.

    >>> model = SubgraphGNN(28, 1, schemes=("uL", "vL"))
    >>> model(batch.x, batch.edge_index, batch.batch)  # (B, 1)

    Cost: O(n m) for each of uL and vL and O(n^2) for every other scheme, a layer; memory O(n^2) states, and O(n m)
    messages where edges have types.

    Args:
        in_channels: node types; several numbers for several columns of types, whose embeddings are added.
        out_channels: answers for a graph.
        schemes: of every layer: any of uv, vu, uu, vv, uG, vG, uL, vL.
        pool: the last layer's scheme: ``uG`` pools the nodes of every subgraph first (VS), ``vG`` the subgraphs at
            every node (SV).
        policy: how subgraphs and their labels are made: ``distance`` (as the paper's experiments), ``marking``,
            ``deletion``, ``ego``, ``ego_marking`` or ``copies``.
        hidden_channels: C.
        num_layers: before the pooling layer.
        max_distance: distances from there on are alike.
        ego_hops: radius of the subgraphs of the two ego policies.
        edge_channels: edge types, 0 for none; several numbers for several columns of types. Graphs without edge types
            are answered all the same, as by the authors' counting networks, whose tables nothing uses.
        node_types: False leaves the node types out of the states: a pair is what the policy says of it.

    Raises:
        CallError, UnknownName: an argument that makes no network.
    """

    takes_edge_attr = True
    needs_undirected = True

    def __init__(
        self,
        in_channels: int | Sequence[int],
        out_channels: int,
        *,
        schemes: Sequence[str] = ("uL", "vL"),
        pool: str = "uG",
        policy: str = "distance",
        hidden_channels: int = 96,
        num_layers: int = 6,
        max_distance: int = 5,
        ego_hops: int = 3,
        edge_channels: int | Sequence[int] = 0,
        node_types: bool = True,
    ) -> None:
        super().__init__()
        if policy not in POLICIES:
            raise unknown_name("subgraph policy", policy, POLICIES)
        if pool not in ("uG", "vG"):
            raise CallError(f"pool is 'uG' (nodes first, VS) or 'vG' (subgraphs first, SV), got {pool!r}")
        numbers = {"num_layers": num_layers, "max_distance": max_distance, "ego_hops": ego_hops}
        for name, number in {**numbers, "hidden_channels": hidden_channels, "out_channels": out_channels}.items():
            if number < 1:
                raise CallError(f"{name} is at least 1, got {number}")
        types, edge_types = _sizes("in_channels", in_channels), _sizes("edge_channels", edge_channels or ())
        if edge_types and not set(schemes) & set(LOCAL):
            raise CallError(f"edge_channels has no effect without {' or '.join(LOCAL)} among schemes {tuple(schemes)}")
        self.in_channels, self.out_channels, self.edge_types = sum(types), out_channels, edge_types
        self.policy, self.max_distance, self.ego_hops = policy, max_distance, ego_hops
        labels = {"distance": max_distance + 1, "marking": 2, "ego_marking": 2}.get(policy, 1)
        self.encoder = PairEncoder(types if node_types else None, labels, hidden_channels)
        self.layers = nn.ModuleList(AggregationLayer(schemes, hidden_channels, edge_types) for _ in range(num_layers))
        self.pool = AggregationLayer((pool,), hidden_channels, own=False)
        self.head = nn.Sequential(
            nn.Linear(hidden_channels, 2 * hidden_channels), nn.ReLU(), nn.Linear(2 * hidden_channels, out_channels)
        )

    def subgraphs(
        self, edge_index: Int[Tensor, "2 e"], num_nodes: int, batch: Int[Tensor, " n"] | None = None
    ) -> tuple[Pairs, Int[Tensor, " p"]]:
        """The pairs of the graphs and their labels (P,), as the policy makes them."""
        pairs = Pairs(edge_index, num_nodes, batch)
        pairs, labels, _ = apply_policy(pairs, self.policy, max_distance=self.max_distance, ego_hops=self.ego_hops)
        return pairs, labels

    def forward(
        self,
        x: Tensor,
        edge_index: Int[Tensor, "2 e"],
        batch: Int[Tensor, " n"] | None = None,
        edge_attr: Tensor | None = None,
    ) -> Float[Tensor, "b o"]:
        """Answer for every graph.

        Args:
            x: node types: one-hot, (N, in_channels) of a floating-point type, or numbers (N,) or (N, columns) of int64.
                One-hot may be any features: they weigh the types' embeddings.
            edge_index: (2, E), both directions of every edge. Not checked: loops and single directions are summed as
                they are, which the theory does not cover; the colour tests refuse them.
            batch: (N,), the graph of each node, ascending; None for one graph.
            edge_attr: edge types, in the same two forms: (E, edge_channels) or (E,), (E, columns). Without them
                messages have no embedded edge.

        Returns:
            (B, out_channels).

        Raises:
            ShapeError: what the network cannot take.
        """
        self._check(x, edge_index, batch, edge_attr)
        pairs, labels = self.subgraphs(edge_index, x.shape[0], batch)
        state = self.encoder(x, labels, pairs)
        for layer in self.layers:
            state = layer(state, pairs, edge_attr)
        return self.head(pairs.mean_per_graph(self.pool(state, pairs)))

    def _check(self, x: Tensor, edge_index: Tensor, batch: Tensor | None, edge_attr: Tensor | None) -> None:
        if x.is_floating_point():
            check_graph(x, edge_index, self.in_channels)
        else:
            if self.encoder.types is not None:
                check_types(x, self.encoder.types.sizes, "node types")
            check_graph(x.new_empty(*x.shape[:1], 1, dtype=torch.float32), edge_index, 1)
        check_batch(edge_index, x.shape[0], batch)
        if edge_attr is not None:
            if not self.edge_types:
                raise ShapeError("the network was built without edge types (edge_channels=0), but was given edge_attr")
            if edge_attr.shape[:1] != edge_index.shape[1:]:
                raise ShapeError(f"expected types of {edge_index.shape[1]} edges, got {tuple(edge_attr.shape)}")
            check_types(edge_attr, self.edge_types, "edge types")


def _sizes(name: str, given: int | Sequence[int]) -> tuple[int, ...]:
    sizes = (given,) if isinstance(given, int) else tuple(given)
    if any(size < 1 for size in sizes) or (name == "in_channels" and not sizes):
        raise CallError(f"{name} is a number of types, or several for several columns, got {given}")
    return sizes


def convert_official(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict in the authors' layout, with our names."""
    last = len(model.layers)  # type: ignore[arg-type]

    def layer(match: re.Match[str]) -> str:
        return "pool." if int(match[1]) == last else f"layers.{match[1]}."

    found = {}
    for name, value in state.items():
        new = re.sub(r"^A(\d+)\.", layer, name)
        for pattern, replacement in _OFFICIAL.items():
            new = re.sub(pattern, replacement, new)
        found[new] = value
    return found


_OFFICIAL = {
    r"^encode\.embed_v\.atom_embedding_list\.": "encoder.types.tables.",
    r"^encode\.embed_d\.": "encoder.label.",
    r"\.eps\.(\w+)$": r".terms.\1.epsilon",
    r"\.enc\.(\w+)\.embed\.bond_embedding_list\.": r".terms.\1.edges.tables.",
    r"\.mlp\.(\w+)\.input\.": r".terms.\1.mlp.0.",
    r"\.mlp\.(\w+)\.input_nr\.bn\.": r".terms.\1.mlp.1.",
    r"\.mlp\.(\w+)\.output\.": r".terms.\1.mlp.3.",
    r"\.nr\.bn\.": ".norm.",
    r"^pool\.predict\.input\.": "head.0.",
    r"^pool\.predict\.output\.": "head.2.",
}
