"""The network of STABLE - Reliable Representations Make A Stronger Defender: Unsupervised Structure Refinement for
Robust GNN.

Li, Liu, Ao, Chi, Feng, Yang and He, KDD 2022, arXiv 2207.00012.

Someone has added edges to a graph so that a graph network trained on it fails. STABLE mends the graph before it
classifies: representations that are learned without labels (:mod:`torchstone.methods.stable_gnn`) tell which edges to
drop and which to add, and the classifier listens more to neighbours of high degree, since added edges mostly end at
nodes of low degree.

For features x (N, F), a symmetric adjacency A (N, N) and J, cos the likenesses of the two ends of an edge::

    rough prune   A_pre = A where J(x_i, x_j) >= t_J                       J: Jaccard index of the nonzero features
    encode        E = PReLU(D^-1/2 (A_pre + beta I) D^-1/2 x W + b)        (N, 512), frozen once it is pre-trained
    prune         A_c = A where cos(e_i, e_j) > t_c                        of the graph as it was given
    add           A_c[i, j] = 1 for the k nodes j most like i by cos, of those whose degree in A_c exceeds t_d
    normalise     A' = A_c + I,  w_ij = d_i^alpha A'_ij d_j^alpha,  w_ij / sum_j w_ij     d: degrees in A'
    classify      logits = w relu(w E W_1 + b_1) W_2 + b_2                 a graph convolutional network of two layers

The shares of a row sum to one, so alpha > 0 weighs neighbours of high degree more; alpha = -1/2 is the normalisation
of Kipf and Welling, whose rows are not divided. The rows that additions are written to are those of one end only: A_c
is not symmetric any more, and a node's k most similar nodes contain, as a rule, the node itself.

Nothing above the classifier depends on what supervised training changes, so :meth:`StableGCN.precompute` gives it once
and training calls :meth:`StableGCN.classify` alone. :class:`GCNJaccard`, the older defence that the paper compares
with, is a plain graph convolutional network behind the rough prune.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.errors import CallError, ShapeError
from torchstone.layers.adjacency import check_graph, is_sparse, normalized_adjacency, propagate, sparse_linear
from torchstone.models.graph.peers import build_peer
from torchstone.models.registry import build_plain_model, register_model

Graph = tuple[Tensor, Tensor]
"""Edges (2, E) and their weights (E,)."""

EDGES_AT_ONCE = 8192
ROWS_AT_ONCE = 1024


# Likeness of the ends of edges ----------------------------------------------------------------------------------------


def jaccard_index(x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"]) -> Float[Tensor, " e"]:
    """The Jaccard index of the nonzero features of both ends of every edge.

    J_ij = |x_i and x_j| / (|x_i| + |x_j| - |x_i and x_j|), where |x| counts nonzero features; NaN for two nodes without
    any.

    Args:
        x: features (N, F), dense or in compressed rows (CSR); the latter are compared by their nonzeros alone.
        edge_index: (2, E).

    Returns:
        (E,) of float64.
    """
    shared, union = _shared_and_union(x, edge_index)
    return shared.double() / union.double()


def _shared_and_union(x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
    """How many features both ends of each edge have, and how many either has, (E,)."""
    counts, shared = _shared_of_rows(x, edge_index) if is_sparse(x) else _shared_of_dense(x, edge_index)
    return shared, counts[edge_index[0]] + counts[edge_index[1]] - shared


def _shared_of_dense(x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
    nonzero = x != 0

    def shared(edges: slice) -> Tensor:
        source, target = edge_index[:, edges]
        return (nonzero[source] & nonzero[target]).sum(1)

    return nonzero.sum(1), _in_blocks(shared, edge_index.shape[1], EDGES_AT_ONCE)


def _shared_of_rows(x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
    """Nonzeros of each row, and those that each edge's ends share: every nonzero of a source is looked up among those
    of the target."""
    nodes, features = x.shape
    row = torch.repeat_interleave(torch.arange(nodes, device=x.device), x.crow_indices().diff())
    stored = x.values() != 0
    places = (row[stored] * features + x.col_indices()[stored]).sort().values  # (nonzeros,), row by row
    counts = torch.bincount(row[stored], minlength=nodes)
    source, target = edge_index
    length = counts[source]
    edge = torch.repeat_interleave(torch.arange(len(length), device=x.device), length)
    begin = counts.cumsum(0) - counts  # of each row among the places
    offset = torch.arange(len(edge), device=x.device) - (length.cumsum(0) - length)[edge]
    wanted = places[begin[source][edge] + offset] % features + target[edge] * features
    found = torch.searchsorted(places, wanted).clamp(max=max(len(places) - 1, 0))
    hit = (places[found] == wanted).to(torch.int64)
    return counts, torch.zeros_like(length).index_add(0, edge, hit)


def cosine_of_edges(embedding: Float[Tensor, "n c"], edge_index: Int[Tensor, "2 e"]) -> Float[Tensor, " e"]:
    """The cosine of both ends of every edge: e_i . e_j / (|e_i| |e_j| + 1e-8), so 0 where an embedding is 0.

    Args:
        embedding: (N, C).
        edge_index: (2, E).

    Returns:
        (E,).
    """
    length = embedding.norm(dim=1)

    def cosine(edges: slice) -> Tensor:
        source, target = edge_index[:, edges]
        return (embedding[source] * embedding[target]).sum(1) / (length[source] * length[target] + 1e-8)

    return _in_blocks(cosine, edge_index.shape[1], EDGES_AT_ONCE)


def prune_jaccard(x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"], threshold: float) -> Bool[Tensor, " e"]:
    """The rough prune: which edges stay, those with ``J >= threshold`` (:func:`jaccard_index`).

    An edge between two nodes without features stays.

    Returns:
        (E,).

    Source:
        Wu et al., Adversarial Examples on Graph Data: Deep Insights into Attack and Defense, IJCAI 2019.
    """
    shared, union = _shared_and_union(x, edge_index)
    return (shared.double() / union.clamp(min=1).double() >= threshold) | (union == 0)


def prune_cosine(
    embedding: Float[Tensor, "n c"], edge_index: Int[Tensor, "2 e"], threshold: float
) -> Bool[Tensor, " e"]:
    """The prune by representations: which edges stay, those with ``cos > threshold`` (:func:`cosine_of_edges`).

    Returns:
        (E,).
    """
    return cosine_of_edges(embedding, edge_index) > threshold


def _in_blocks(compute: Callable[[slice], Tensor], count: int, size: int) -> Tensor:
    """``compute`` over 0 ... count, some at a time so that memory stays bounded; at once while it is captured."""
    if _captured() or count <= size:
        return compute(slice(None))
    return torch.cat([compute(slice(start, start + size)) for start in range(0, count, size)])


def _captured() -> bool:
    return torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()


# Neighbours that are added, and the weights of all --------------------------------------------------------------------


def degrees(edge_index: Int[Tensor, "2 e"], present: Bool[Tensor, " e"], num_nodes: int) -> Int[Tensor, " n"]:
    """The number of edges (N,) that are present and end at each node."""
    return torch.zeros(num_nodes, dtype=torch.int64, device=present.device).index_add(
        0, edge_index[1], present.to(torch.int64)
    )


def reliable_neighbours(
    embedding: Float[Tensor, "n c"], candidate: Bool[Tensor, " n"], count: int
) -> Int[Tensor, "n k"]:
    """The ``count`` nodes that are most like each node.

    They are the largest of S_ij = cos(e_i, e_j) for candidates j and 0 for others, so a node that is no candidate can
    be among them only where too few candidates have a positive cosine. As a rule the node itself is one of them.

    Args:
        embedding: (N, C).
        candidate: (N,), who may be added.
        count: k.

    Returns:
        (N, k), the most similar first.

    Raises:
        ShapeError: fewer candidates than neighbours.
    """
    if not _captured() and int(candidate.sum()) < count:
        raise ShapeError(
            f"{count} neighbours are to be added to each node, but only {int(candidate.sum())} nodes of "
            f"{len(candidate)} are reliable: lower the number of neighbours or the degree that reliable ones exceed"
        )
    unit = F.normalize(embedding, dim=1)

    def most_similar(rows: slice) -> Tensor:
        return torch.where(candidate, unit[rows] @ unit.t(), 0).topk(count, dim=1).indices

    return _in_blocks(most_similar, embedding.shape[0], ROWS_AT_ONCE)


def add_neighbours(
    edge_index: Int[Tensor, "2 e"], kept: Bool[Tensor, " e"], neighbours: Int[Tensor, "n k"]
) -> tuple[Int[Tensor, "2 l"], Bool[Tensor, " l"]]:
    """The edges that stay and one from every neighbour to its node, each once and none of a node to itself.

    A[i, j] = 1 where j -> i is kept or j is a neighbour of i, and i != j. Nothing is added in the other direction.

    Args:
        edge_index: (2, E), row 0 the sources j, row 1 the targets i.
        kept: (E,).
        neighbours: (N, k).

    Returns:
        E + N k edges, ordered by target and source, and which of them there are: the shape follows from the inputs'
        shapes alone.
    """
    nodes, count = neighbours.shape
    own = torch.arange(nodes, device=edge_index.device)[:, None].expand(-1, count)
    source = torch.cat([edge_index[0], neighbours.reshape(-1)])
    target = torch.cat([edge_index[1], own.reshape(-1)])
    present = torch.cat([kept, torch.ones_like(neighbours, dtype=torch.bool).reshape(-1)]) & (source != target)
    absent = nodes * nodes
    place, order = torch.where(present, target * nodes + source, absent).sort()
    first = (place != F.pad(place, (1, 0), value=-1)[:-1]) & (place < absent)
    return torch.stack([source, target])[:, order], first


def degree_power_weights(
    edge_index: Int[Tensor, "2 e"], edge_weight: Float[Tensor, " e"], num_nodes: int, alpha: float
) -> tuple[Int[Tensor, "2 l"], Float[Tensor, " l"]]:
    """The advanced normalisation: self-loops, and neighbours weighed by a power of their degrees.

    With A' = A + I and d its row sums, w_ij = d_i^alpha A'_ij d_j^alpha, divided by its row's sum unless alpha is -1/2.

    Args:
        edge_index: (2, E), row 0 the sources j, row 1 the targets i.
        edge_weight: (E,), A_ij.
        num_nodes: N.
        alpha: above 0, neighbours of high degree count more than others.

    Returns:
        Edges (2, E + N) and weights (E + N,); without the division by rows for alpha = -1/2.
    """
    nodes = torch.arange(num_nodes, device=edge_index.device)
    edge_index = torch.cat([edge_index, nodes.expand(2, -1)], 1)
    weight = torch.cat([edge_weight, edge_weight.new_ones(num_nodes)])
    source, target = edge_index
    power = weight.new_zeros(num_nodes).index_add(0, target, weight).pow(alpha)
    weight = weight * power[source]
    if alpha == -0.5:
        return edge_index, power[target] * weight
    return edge_index, weight / weight.new_zeros(num_nodes).index_add(0, target, weight)[target]  # d_i^alpha cancels


# Encoder, and what it is trained with ---------------------------------------------------------------------------------


class GraphConvolution(nn.Module):
    """``out = A x W^T + b`` for any weighted edges: (N, in_channels) to (N, out_channels)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels))

    def project(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n c"]:
        """``x W^T``; features may be in compressed rows (CSR)."""
        return sparse_linear(x, self.weight) if is_sparse(x) else F.linear(x, self.weight)

    def gather(
        self, projected: Float[Tensor, "n c"], edge_index: Int[Tensor, "2 e"], edge_weight: Float[Tensor, " e"]
    ) -> Float[Tensor, "n c"]:
        """``A projected + b``."""
        return propagate(projected, edge_index, edge_weight) + self.bias

    def forward(
        self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"], edge_weight: Float[Tensor, " e"]
    ) -> Float[Tensor, "n c"]:
        return self.gather(self.project(x), edge_index, edge_weight)


class Encoder(nn.Module):
    """``E = PReLU(A x W^T + b)``, one slope for all channels.

    Args:
        in_channels: F.
        channels: C, of the representations.
    """

    def __init__(self, in_channels: int, channels: int = 512) -> None:
        super().__init__()
        self.conv = GraphConvolution(in_channels, channels)
        self.act = nn.PReLU()
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(
        self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"], edge_weight: Float[Tensor, " e"]
    ) -> Float[Tensor, "n c"]:
        """(N, F) with normalised edges (:func:`looped_adjacency`) to (N, C)."""
        return self.act(self.conv(x, edge_index, edge_weight))


def looped_adjacency(
    edge_index: Int[Tensor, "2 e"], edge_weight: Float[Tensor, " e"], num_nodes: int, beta: float
) -> tuple[Int[Tensor, "2 l"], Float[Tensor, " l"]]:
    """``D^-1/2 (A + beta I) D^-1/2``, 0 where a degree is 0.

    Args:
        edge_index: (2, E) without edges of a node to itself.
        edge_weight: (E,).
        num_nodes: N.
        beta: weight of a node's own features.

    Returns:
        Edges and weights, E + N of them, and N more with weight 0.
    """
    nodes = torch.arange(num_nodes, device=edge_index.device).expand(2, -1)
    weight = torch.cat([edge_weight, edge_weight.new_full((num_nodes,), beta)])
    return normalized_adjacency(torch.cat([edge_index, nodes], 1), num_nodes, weight)


class Discriminator(nn.Module):
    """``D(h, c) = h^T W c + b``: whether a node's representation h (N, C) belongs to a graph's summary c (C,)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bilinear = nn.Bilinear(channels, channels, 1)
        nn.init.xavier_uniform_(self.bilinear.weight)
        nn.init.zeros_(self.bilinear.bias)

    def forward(self, h: Float[Tensor, "n c"], summary: Float[Tensor, " c"]) -> Float[Tensor, " n"]:
        return h @ (self.bilinear.weight[0] @ summary) + self.bilinear.bias


def contrast_logits(
    encoder: Encoder,
    discriminator: Discriminator,
    x: Float[Tensor, "n f"],
    permutation: Int[Tensor, " n"],
    anchor: Graph,
    views: Sequence[Graph],
) -> Float[Tensor, "2 n"]:
    """How well true and false nodes fit the summaries of the views.

    h = g(x, A_0), h~ = g(x[permutation], A_0), c_k = sigmoid(mean_i g(x, A_k)_i); the logits are sum_k D(h, c_k) and
    sum_k D(h~, c_k).

    Args:
        encoder: g. Its product x W^T is computed once: that of permuted features is permuted.
        discriminator: D.
        x: (N, F).
        permutation: (N,), whose features the false nodes have.
        anchor: A_0, normalised.
        views: A_1, A_2, ..., normalised.

    Returns:
        (2, N): of true nodes, of false ones.
    """
    projected = encoder.conv.project(x)

    def encode(values: Tensor, graph: Graph) -> Tensor:
        return encoder.act(encoder.conv.gather(values, *graph))

    summaries = [encode(projected, view).mean(0).sigmoid() for view in views]
    nodes = (encode(projected, anchor), encode(projected[permutation], anchor))
    return torch.stack([sum(discriminator(h, c) for c in summaries) for h in nodes])


class ContrastiveEncoder(nn.Module):
    """Encoder and discriminator: all that pre-training changes. See :func:`contrast_logits`."""

    def __init__(self, in_channels: int, channels: int = 512) -> None:
        super().__init__()
        self.encoder = Encoder(in_channels, channels)
        self.discriminator = Discriminator(channels)

    def forward(
        self, x: Float[Tensor, "n f"], permutation: Int[Tensor, " n"], anchor: Graph, views: Sequence[Graph]
    ) -> Float[Tensor, "2 n"]:
        return contrast_logits(self.encoder, self.discriminator, x, permutation, anchor, views)


# Networks -------------------------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """Two graph convolutions: ``A drop(relu(A x W_1^T + b_1)) W_2^T + b_2``, (N, in_channels) to (N, out_channels)."""

    def __init__(self, in_channels: int, out_channels: int, *, hidden_channels: int = 16, dropout: float = 0.5) -> None:
        super().__init__()
        self.conv1 = GraphConvolution(in_channels, hidden_channels)
        self.conv2 = GraphConvolution(hidden_channels, out_channels)
        self.dropout = nn.Dropout(dropout)
        for conv in (self.conv1, self.conv2):
            bound = 1 / math.sqrt(len(conv.bias))
            nn.init.uniform_(conv.weight, -bound, bound)
            nn.init.uniform_(conv.bias, -bound, bound)

    def forward(
        self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"], edge_weight: Float[Tensor, " e"]
    ) -> Float[Tensor, "n c"]:
        hidden = self.dropout(self.conv1(x, edge_index, edge_weight).relu())
        return self.conv2(hidden, edge_index, edge_weight)


class StableGCN(nn.Module):
    """STABLE's network: it mends the graph by its representations and classifies the nodes of the mended one.

    >>> model = StableGCN(1433, 7, jaccard=0.03, cosine=0.25, neighbours=7, alpha=0.6)
    >>> logits = model(graph.x, graph.edge_index)  # (N, 7)

    The encoder is trained by the method ``stable_gnn``; here no gradient reaches it. Without that it is a random
    projection.

    Args:
        in_channels: F, features of a node.
        out_channels: classes.
        embedding_channels: C, of the representations.
        hidden_channels: width of the classifier's hidden layer.
        jaccard: t_J, the rough prune drops edges whose Jaccard index is below it; 0 drops none.
        cosine: t_c, edges stay whose ends' representations have a cosine above it.
        neighbours: k, the nodes most like each node, itself included, that become its neighbours; 0 adds none.
        degree: t_d, the number of kept edges that a node which is added as a neighbour must exceed.
        alpha: power of the degrees in the normalisation; the stronger the attack, the larger.
        beta: weight of a node's own features in the encoder.
        dropout: rate behind the classifier's hidden layer.

    Raises:
        CallError: an argument out of range.
    """

    takes_sparse_features = True
    needs_undirected = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding_channels: int = 512,
        hidden_channels: int = 16,
        jaccard: float = 0.03,
        cosine: float = 0.1,
        neighbours: int = 3,
        degree: int = 1,
        alpha: float = 0.3,
        beta: float = 2.0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        _check_range("jaccard", jaccard, 0, 1)
        _check_range("cosine", cosine, -1, 1)
        _check_range("neighbours", neighbours, 0, math.inf)
        _check_range("degree", degree, 0, math.inf)
        _check_range("alpha", alpha, -5, 5)
        _check_range("beta", beta, 0, math.inf)
        _check_range("dropout", dropout, 0, 1)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.jaccard, self.cosine, self.neighbours, self.degree = jaccard, cosine, neighbours, degree
        self.alpha, self.beta = alpha, beta
        self.encoder = Encoder(in_channels, embedding_channels)
        self.classifier = Classifier(embedding_channels, out_channels, hidden_channels=hidden_channels, dropout=dropout)

    def roughly_kept(self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"]) -> Bool[Tensor, " e"]:
        """The edges (E,) that the rough prune leaves; those of a node to itself are none of them."""
        return prune_jaccard(x, edge_index, self.jaccard) & (edge_index[0] != edge_index[1])

    def anchor(
        self, edge_index: Int[Tensor, "2 e"], kept: Bool[Tensor, " e"], num_nodes: int
    ) -> tuple[Int[Tensor, "2 l"], Float[Tensor, " l"]]:
        """A_0, the normalised graph that the encoder sees."""
        weight = kept.to(self.encoder.conv.weight.dtype)
        return looped_adjacency(edge_index, weight, num_nodes, self.beta)

    @torch.no_grad()
    def embed(self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"]) -> Float[Tensor, "n c"]:
        """The representations E (N, C)."""
        with torch.autocast(x.device.type, enabled=False):
            anchor = self.anchor(edge_index, self.roughly_kept(x, edge_index), x.shape[0])
            return self.encoder(x, *anchor)

    def kept(self, embedding: Float[Tensor, "n c"], edge_index: Int[Tensor, "2 e"]) -> Bool[Tensor, " e"]:
        """The edges (E,) that the prune by representations leaves, without those of a node to itself."""
        return prune_cosine(embedding, edge_index, self.cosine) & (edge_index[0] != edge_index[1])

    @torch.no_grad()
    def refine(
        self, embedding: Float[Tensor, "n c"], edge_index: Int[Tensor, "2 e"]
    ) -> tuple[Int[Tensor, "2 l"], Float[Tensor, " l"]]:
        """Prune, add and normalise: the edges (2, L) that the classifier sees, and their weights (L,).

        Raises:
            ShapeError: too few nodes of sufficient degree to add ``neighbours`` of them.
        """
        nodes = embedding.shape[0]
        with torch.autocast(embedding.device.type, enabled=False):
            kept = self.kept(embedding, edge_index)
            reliable = degrees(edge_index, kept, nodes) > self.degree
            closest = reliable_neighbours(embedding, reliable, self.neighbours)
            edges, present = add_neighbours(edge_index, kept, closest)
            if not _captured():  # what is not there costs nothing
                edges, present = edges[:, present], present[present]
            return degree_power_weights(edges, present.to(embedding.dtype), nodes, self.alpha)

    def precompute(
        self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"]
    ) -> tuple[Float[Tensor, "n c"], Int[Tensor, "2 l"], Float[Tensor, " l"]]:
        """All that supervised training does not change: what :meth:`classify` takes.

        Raises:
            ShapeError: features or edges that the network cannot take, or too few reliable nodes.
        """
        check_graph(x, edge_index, self.in_channels)
        embedding = self.embed(x, edge_index)
        return embedding, *self.refine(embedding, edge_index)

    def classify(
        self, embedding: Float[Tensor, "n c"], edge_index: Int[Tensor, "2 l"], edge_weight: Float[Tensor, " l"]
    ) -> Float[Tensor, "n c"]:
        """Representations (N, C) and the mended graph to logits (N, out_channels)."""
        return self.classifier(embedding, edge_index, edge_weight)

    def forward(self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"]) -> Float[Tensor, "n c"]:
        """Classify every node.

        Args:
            x: node features, (N, in_channels), dense or in compressed rows (``x.to_sparse_csr()``).
            edge_index: edges, (2, E), row 0 the sources, row 1 the targets, with both directions of each.

        Returns:
            Logits, (N, out_channels).

        Raises:
            ShapeError: features or edges that the network cannot take, or too few reliable nodes.
        """
        return self.classify(*self.precompute(x, edge_index))


class GCNJaccard(nn.Module):
    """A graph convolutional network on the edges that the rough prune leaves: GCN-Jaccard.

    Args:
        in_channels: features of a node.
        out_channels: classes.
        hidden_channels: width of the hidden layer.
        jaccard: edges whose Jaccard index is below it are dropped.
        dropout: rate behind the hidden layer.

    Source:
        Wu et al., Adversarial Examples on Graph Data: Deep Insights into Attack and Defense, IJCAI 2019.
    """

    needs_undirected = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden_channels: int = 16,
        jaccard: float = 0.03,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        _check_range("jaccard", jaccard, 0, 1)
        self.in_channels, self.out_channels, self.jaccard = in_channels, out_channels, jaccard
        self.classifier = build_peer(
            "gcn",
            in_channels=in_channels,
            out_channels=out_channels,
            hidden_channels=hidden_channels,
            dropout=dropout,
        )

    @torch.no_grad()
    def precompute(
        self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"]
    ) -> tuple[Float[Tensor, "n f"], Int[Tensor, "2 e"], Float[Tensor, " e"]]:
        """The features, and the edges with weight 1 where they stay and 0 where they do not."""
        check_graph(x, edge_index, self.in_channels)
        return x, edge_index, prune_jaccard(x, edge_index, self.jaccard).to(x.dtype)

    def classify(
        self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"], edge_weight: Float[Tensor, " e"]
    ) -> Float[Tensor, "n c"]:
        """Logits (N, out_channels) on weighted edges."""
        return self.classifier(x, edge_index, edge_weight)

    def forward(self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"]) -> Float[Tensor, "n c"]:
        """Node features (N, in_channels) and edges (2, E) to logits (N, out_channels)."""
        return self.classify(*self.precompute(x, edge_index))


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        upper = "" if high == math.inf else f" to {high}"
        raise CallError(f"{name} must be from {low}{upper}{' up' if not upper else ''}, got {value}")


# Factories ------------------------------------------------------------------------------------------------------------

SETTINGS: dict[str, dict[float, dict[str, Any]]] = {
    "cora": {
        0.0: {"alpha": -0.5, "beta": 2.0, "neighbours": 1, "jaccard": 0.0, "cosine": 0.1},
        0.05: {"alpha": -0.3, "beta": 2.0, "neighbours": 5, "jaccard": 0.03, "cosine": 0.1},
        0.1: {"alpha": 0.3, "beta": 2.0, "neighbours": 7, "jaccard": 0.03, "cosine": 0.1},
        0.15: {"alpha": 0.6, "beta": 2.0, "neighbours": 7, "jaccard": 0.03, "cosine": 0.2},
        0.2: {"alpha": 0.6, "beta": 2.0, "neighbours": 7, "jaccard": 0.03, "cosine": 0.25},
    },
    "citeseer": {
        0.0: {"alpha": -0.5, "beta": 2.0, "neighbours": 3, "jaccard": 0.0, "cosine": 0.1},
        0.05: {"alpha": -0.3, "beta": 2.0, "neighbours": 3, "jaccard": 0.02, "cosine": 0.1},
        0.1: {"alpha": -0.1, "beta": 2.0, "neighbours": 5, "jaccard": 0.02, "cosine": 0.1},
        0.15: {"alpha": -0.1, "beta": 2.0, "neighbours": 5, "jaccard": 0.04, "cosine": 0.1},
        0.2: {"alpha": 0.1, "beta": 2.0, "neighbours": 5, "jaccard": 0.03, "cosine": 0.1},
    },
    "polblogs": {
        0.0: {"alpha": -0.5, "beta": 2.0, "neighbours": 0, "jaccard": 0.0, "cosine": 0.1},
        0.05: {"alpha": 0.3, "beta": 1.0, "neighbours": 3, "jaccard": 0.0, "cosine": 0.1},
        0.1: {"alpha": 0.5, "beta": 1.0, "neighbours": 3, "jaccard": 0.0, "cosine": 0.1},
        0.15: {"alpha": 2.0, "beta": 2.0, "neighbours": 3, "jaccard": 0.0, "cosine": 0.1},
        0.2: {"alpha": 2.0, "beta": 2.0, "neighbours": 3, "jaccard": 0.0, "cosine": 0.1},
    },
}
"""The authors' arguments of :class:`StableGCN` by graph and share of edges that Metattack changed."""


def _on(graph: str, in_channels: int, out_channels: int, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments for a graph a fifth of whose edges Metattack changed, under what is given."""
    return {"in_channels": in_channels, "out_channels": out_channels, **SETTINGS[graph][0.2], **given}


@register_model
def stable_gcn(pretrained: bool = False, *, in_channels: int = 1433, out_channels: int = 7, **kwargs: Any) -> StableGCN:
    """STABLE's network for any graph, with the authors' defaults; the numbers of features and classes are Cora's."""
    return build_plain_model(StableGCN, pretrained, in_channels=in_channels, out_channels=out_channels, **kwargs)


@register_model
def stable_gcn_cora(pretrained: bool = False, **kwargs: Any) -> StableGCN:
    """STABLE's network as the authors set it on Cora, a fifth of whose edges Metattack changed."""
    return stable_gcn(pretrained, **_on("cora", 1433, 7, kwargs))


@register_model
def stable_gcn_citeseer(pretrained: bool = False, **kwargs: Any) -> StableGCN:
    """STABLE's network as the authors set it on CiteSeer, a fifth of whose edges Metattack changed."""
    return stable_gcn(pretrained, **_on("citeseer", 3703, 6, kwargs))


@register_model
def stable_gcn_polblogs(pretrained: bool = False, **kwargs: Any) -> StableGCN:
    """STABLE's network as the authors set it on PolBlogs, a fifth of whose edges Metattack changed."""
    return stable_gcn(pretrained, **_on("polblogs", 1222, 2, kwargs))


@register_model
def stable_gcn_contrast_cora(pretrained: bool = False, **kwargs: Any) -> ContrastiveEncoder:
    """Encoder and discriminator for Cora."""
    return build_plain_model(ContrastiveEncoder, pretrained, **{"in_channels": 1433, **kwargs})


@register_model
def stable_gcn_contrast_polblogs(pretrained: bool = False, **kwargs: Any) -> ContrastiveEncoder:
    """Encoder and discriminator for PolBlogs."""
    return build_plain_model(ContrastiveEncoder, pretrained, **{"in_channels": 1222, **kwargs})


@register_model
def stable_gcn_classifier_cora(pretrained: bool = False, **kwargs: Any) -> Classifier:
    """The classifier of representations for Cora's classes."""
    return build_plain_model(Classifier, pretrained, **{"in_channels": 512, "out_channels": 7, **kwargs})


@register_model
def stable_gcn_classifier_citeseer(pretrained: bool = False, **kwargs: Any) -> Classifier:
    """The classifier of representations for CiteSeer's classes."""
    return build_plain_model(Classifier, pretrained, **{"in_channels": 512, "out_channels": 6, **kwargs})


@register_model
def gcn_jaccard(
    pretrained: bool = False, *, in_channels: int = 1433, out_channels: int = 7, **kwargs: Any
) -> GCNJaccard:
    """GCN-Jaccard, the defence that prunes by features alone."""
    return build_plain_model(GCNJaccard, pretrained, in_channels=in_channels, out_channels=out_channels, **kwargs)
