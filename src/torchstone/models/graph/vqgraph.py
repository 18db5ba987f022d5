"""VQGraph's networks - a teacher that writes every node's surroundings as a code, and a student without a graph.

Yang et al., VQGraph: Rethinking Graph Representation Space for Bridging GNNs and MLPs, ICLR 2024, arXiv 2308.02117.

A few class scores say little of a node's neighbourhood, so a perceptron that imitates them learns little of the graph.
VQGraph's teacher is a tokenizer as well: what a graph convolution sees around a node is replaced by the nearest of K
learned codes, from which node and edges must be restored. The codebook is the space in which a perceptron is then
taught (:mod:`torchstone.methods.vqgraph`): with which codes is this node's surroundings alike, and how much?

    h      = dropout(ReLU(conv(x)))                          (N, F)    the surroundings of every node
    k_i    = argmax_k <h_i, E_k> / |h_i| |E_k|,  q_i = E_k_i (N, F)    the nearest code; gradients go straight to h
    q^e, q^n = W_e q + b_e,  W_n q + b_n                     (N, F)    decoded for edges and for nodes
    logits = W ReLU(conv(q^e)) + b                           (N, C)

    loss = CE(labelled) + lambda_n MSE(h, q^n) + lambda_e sqrt(MSE(A, minmax(q^e q^eT))) + beta MSE(sg(q), h)

A holds 0 and 1, self-loops included; ``minmax`` maps the smallest of all N x N entries to 0 and the largest to 1. The
codebook E (K, F) learns by moving averages, not by gradients. ``conv`` is ``D_in^-1/2 (A + I) D_out^-1/2 x W + b`` (GCN)
or the mean over a node and its neighbours, times W, plus b (GraphSAGE).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from torchstone.errors import CallError, ShapeError
from torchstone.layers.adjacency import check_graph, is_sparse, propagate_hops, sparse_linear
from torchstone.models.registry import build_plain_model, register_model

DENSE_NODES = 1024
"""Up to this many nodes the edge loss writes out its N x N matrices."""

BLOCK = 2048
"""Rows of the pairs that the edge loss holds at a time for larger graphs."""

MESSAGES = 2**22
"""Up to this many numbers, sums over neighbours are a gather and a scatter, for which no matrix has to be built."""


# --- codes


def cosine_scores(x: Float[Tensor, "n f"], codebook: Float[Tensor, "k f"]) -> Float[Tensor, "n k"]:
    """``<x_i, E_k> / |x_i| |E_k|``: how alike every row is to every code, from -1 to 1."""
    return F.normalize(x, dim=-1) @ F.normalize(codebook, dim=-1).t()


def euclidean_scores(x: Float[Tensor, "n f"], codebook: Float[Tensor, "k f"]) -> Float[Tensor, "n k"]:
    """``-|x_i - E_k|``: the negative distance of every row from every code."""
    return -torch.cdist(x[None], codebook[None])[0]


class Quantized(NamedTuple):
    """What a quantiser makes of N rows.

    Attributes:
        vectors: (N, F), the codes' vectors; in training their gradient goes to the rows as it is.
        codes: (N,), numbers of the codes.
        scores: (N, K), how near every code is, larger is nearer; without gradient.
        commitment: scalar, ``beta MSE(sg(vectors), rows)`` in training, else 0.
    """

    vectors: Tensor
    codes: Tensor
    scores: Tensor
    commitment: Tensor


class VectorQuantizer(nn.Module):
    """Replaces rows by the nearest of K learned vectors, which follow the rows they replace as moving averages.

    Every training call uses the codebook as it stands and then moves it. A code whose moving count of rows has fallen
    below ``dead_below`` is dead: it starts again at a random row of the call.

    Args:
        dim: F, width of a row.
        num_codes: K.
        decay: share of the old in a moving average.
        commitment: beta, weight of the loss that keeps rows near their codes.
        dead_below: the count below which a code is dead; 0, the authors' setting, lets dead codes be.

    Raises:
        ValueError: sizes below 1, a decay outside [0, 1), a negative weight or count.
    """

    codebook: Tensor
    cluster_size: Tensor

    def __init__(
        self, dim: int, num_codes: int, *, decay: float = 0.8, commitment: float = 0.25, dead_below: float = 0.0
    ) -> None:
        super().__init__()
        if dim < 1 or num_codes < 1:
            raise ValueError(f"a codebook holds at least one code of at least one number, got {num_codes} of {dim}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay is a share from 0 up to, not including, 1, got {decay}")
        if commitment < 0 or dead_below < 0:
            raise ValueError(f"commitment and dead_below cannot be negative, got {commitment} and {dead_below}")
        self.decay, self.commitment, self.dead_below = decay, commitment, dead_below
        self.register_buffer("codebook", self.first_codes(nn.init.kaiming_uniform_(torch.empty(num_codes, dim))))
        self.register_buffer("cluster_size", torch.ones(num_codes))

    def first_codes(self, drawn: Tensor) -> Tensor:
        """The codebook (K, F) to start from, made of a random draw."""
        return drawn

    @abstractmethod
    def scores(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n k"]:
        """How near every code is to every row; larger is nearer."""

    @abstractmethod
    def follow(self, x: Float[Tensor, "n f"], codes: Int[Tensor, " n"], counts: Float[Tensor, " k"]) -> None:
        """Move the codebook towards the rows (N, F) that were given its codes, ``counts`` (K,) of them to each."""

    @abstractmethod
    def restart(self, dead: Tensor, rows: Float[Tensor, "k f"]) -> None:
        """Put the codes of a mask (K,) at the rows of the same place."""

    def forward(self, x: Float[Tensor, "n f"]) -> Quantized:
        """Rows (N, F) to their codes.

        Raises:
            ShapeError: rows of another width.
        """
        if x.ndim != 2 or x.shape[1] != self.codebook.shape[1]:
            raise ShapeError(f"expected rows (N, {self.codebook.shape[1]}), got {tuple(x.shape)}")
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.codebook.dtype)
            with torch.no_grad():
                scores = self.scores(x)
                codes = scores.argmax(-1)
                vectors = self.codebook[codes]
            if not self.training:
                return Quantized(vectors, codes, scores, x.new_zeros(()))
            self._learn(x.detach(), codes)
            commitment = self.commitment * F.mse_loss(vectors, x)
            return Quantized(x + (vectors - x).detach(), codes, scores, commitment)

    @torch.no_grad()
    def _learn(self, x: Tensor, codes: Tensor) -> None:
        counts = torch.zeros_like(self.cluster_size).index_add(0, codes, x.new_ones(len(x)))
        self.cluster_size.copy_(self.decay * self.cluster_size + (1 - self.decay) * counts)
        self.follow(x, codes, counts)
        if self.dead_below > 0:
            dead = self.cluster_size < self.dead_below
            self.restart(dead, x[torch.randint(len(x), dead.shape, device=x.device)])
            self.cluster_size.copy_(torch.where(dead, self.dead_below, self.cluster_size))


class CosineQuantizer(VectorQuantizer):
    """Nearest by the cosine. With x^ and E^ rows of length one, and n_k rows at code k:

    ``E_k <- decay E_k + (1 - decay) t_k``, ``t_k = normalize(mean of the x^ at k)``, or ``E^_k`` where there is none.

    The codebook is not normalised again, and vectors are its rows as they are.
    """

    def first_codes(self, drawn: Tensor) -> Tensor:
        return F.normalize(drawn, dim=-1)

    def scores(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n k"]:
        return cosine_scores(x, self.codebook)

    def follow(self, x: Float[Tensor, "n f"], codes: Int[Tensor, " n"], counts: Float[Tensor, " k"]) -> None:
        sums = torch.zeros_like(self.codebook).index_add(0, codes, F.normalize(x, dim=-1))
        means = F.normalize(sums / counts.clamp(min=1)[:, None], dim=-1)
        targets = torch.where(counts[:, None] > 0, means, F.normalize(self.codebook, dim=-1))
        self.codebook.copy_(self.decay * self.codebook + (1 - self.decay) * targets)

    def restart(self, dead: Tensor, rows: Float[Tensor, "k f"]) -> None:
        self.codebook.copy_(torch.where(dead[:, None], F.normalize(rows, dim=-1), self.codebook))


class EuclideanQuantizer(VectorQuantizer):
    """Nearest by the distance. Moving averages of counts c_k and of sums s_k of the rows at a code:

    ``E_k = s_k / c~_k``, ``c~_k = (c_k + eps) / (sum_j c_j + K eps) * sum_j c_j``, ``eps = 1e-5``.

    Raises:
        ValueError: as :class:`VectorQuantizer`.
    """

    EPS = 1e-5
    code_sum: Tensor

    def __init__(self, dim: int, num_codes: int, **options: Any) -> None:
        super().__init__(dim, num_codes, **options)
        self.register_buffer("code_sum", self.codebook.clone())

    def scores(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n k"]:
        return euclidean_scores(x, self.codebook)

    def follow(self, x: Float[Tensor, "n f"], codes: Int[Tensor, " n"], counts: Float[Tensor, " k"]) -> None:
        sums = torch.zeros_like(self.codebook).index_add(0, codes, x)
        self.code_sum.copy_(self.decay * self.code_sum + (1 - self.decay) * sums)
        total = self.cluster_size.sum()
        smoothed = (self.cluster_size + self.EPS) / (total + len(counts) * self.EPS) * total
        self.codebook.copy_(self.code_sum / smoothed[:, None])

    def restart(self, dead: Tensor, rows: Float[Tensor, "k f"]) -> None:
        self.code_sum.copy_(torch.where(dead[:, None], rows * self.dead_below, self.code_sum))
        self.codebook.copy_(torch.where(dead[:, None], rows, self.codebook))


def perplexity(codes: Int[Tensor, " n"], num_codes: int) -> Tensor:
    """How many codes are in use: ``exp(-sum_k p_k log p_k)`` with p_k the share of rows at code k; from 1 to K."""
    shares = torch.bincount(codes, minlength=num_codes).double() / len(codes)
    return torch.special.entr(shares).sum().exp()


# --- restoring edges


def edge_loss_dense(decoded: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"]) -> Tensor:
    """``sqrt(MSE(A, (B - min B) / (max B - min B)))`` with ``B = q q^T``, written out; needs N x N numbers.

    Where B is constant - all nodes have one code - it says nothing of the edges and is taken as 0 everywhere, without a
    gradient; the published code divides zero by zero there.

    Args:
        decoded: q (N, F).
        edge_index: (2, E); each edge counts once, and every node is linked to itself whether listed or not.
    """
    nodes = len(decoded)
    adjacency = torch.eye(nodes, dtype=decoded.dtype, device=decoded.device)
    adjacency[edge_index[1], edge_index[0]] = 1
    product = decoded @ decoded.t()
    low, high = product.min(), product.max()
    return _root(F.mse_loss(adjacency, _scaled(product, low, high)))


def edge_loss(
    decoded: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"], codes: Int[Tensor, " n"] | None = None
) -> Tensor:
    """The value of :func:`edge_loss_dense` for any number of nodes: no N x N matrix is ever held.

    Nodes of one code have equal rows, so B has no more different entries than pairs of codes. With r the U different
    rows, n_u nodes at each, and B' the scaled B:

    ``sum_ij (A_ij - B'_ij)^2 = sum_uv n_u n_v B'_uv^2 + sum_(edges) (1 - 2 B'_ij)``.

    Pairs are visited in blocks of :data:`BLOCK` rows, twice: for the smallest and largest entry, and for the sum. The
    gradient is that of the dense form; where several entries are smallest (largest), as all pairs of nodes of two codes
    are, it is shared evenly among them, while the dense form leaves it to rounding which of them gets it.

    Args:
        decoded: q (N, F).
        edge_index: as in :func:`edge_loss_dense`.
        codes: (N,), numbers of nodes with equal rows are equal; None when rows may all differ.
    """
    nodes = len(decoded)
    loops = torch.arange(nodes, device=decoded.device)
    members = loops if codes is None else codes.unique(return_inverse=True)[1]
    counts = torch.bincount(members)
    sums = decoded.new_zeros(len(counts), decoded.shape[1]).index_add(0, members, decoded)
    rows = sums / counts[:, None]  # (U, F), each the row that its nodes have
    low, high = _extremes(rows.detach())
    smallest, largest = (rows[low[0]] * rows[low[1]]).sum(), (rows[high[0]] * rows[high[1]]).sum()

    def block(part: Tensor, weight: Tensor, rows: Tensor, smallest: Tensor, largest: Tensor) -> Tensor:
        scaled = _scaled(part @ rows.t(), smallest, largest)
        return (weight[:, None] * counts * scaled.square()).sum()

    total = decoded.new_zeros(())
    for part, weight in zip(rows.split(BLOCK), counts.split(BLOCK), strict=True):
        total = total + checkpoint(block, part, weight, rows, smallest, largest, use_reentrant=False)

    linked = torch.cat([edge_index[0] * nodes + edge_index[1], loops * nodes + loops]).unique()
    edges = torch.stack([linked // nodes, linked % nodes])
    around = propagate_hops(decoded, edges, torch.ones_like(linked, dtype=decoded.dtype), 1)[:, 1]
    mean = (around * decoded).sum() / len(linked)  # of B over the edges; scaling is linear, so it may be scaled itself
    total = total + len(linked) * (1 - 2 * _scaled(mean, smallest, largest))
    return _root(total / nodes**2)


def _extremes(rows: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Which pairs of rows have the smallest and the largest product."""
    lows, highs, places = [], [], []
    for start in range(0, len(rows), BLOCK):
        products = (rows[start : start + BLOCK] @ rows.t()).flatten()
        low, high = products.argmin(), products.argmax()
        lows.append(products[low])
        highs.append(products[high])
        places.append(torch.stack([low, high]) + start * len(rows))
    low = places[int(torch.stack(lows).argmin())][0]
    high = places[int(torch.stack(highs).argmax())][1]
    return (low // len(rows), low % len(rows)), (high // len(rows), high % len(rows))


def _scaled(product: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Products between 0 and 1; 0 where they are all the same but for rounding."""
    width = high - low
    flat = width <= 1e-6 * torch.maximum(high.abs(), low.abs())
    return torch.where(flat, 0.0, (product - low) / torch.where(flat, 1.0, width))


def _root(error: Tensor) -> Tensor:
    """The root of a mean square, whose gradient is 0, not infinite, where nothing is wrong."""
    return error.clamp(min=1e-12).sqrt()


# --- the teacher


class Structure(NamedTuple):
    """A graph with self-loops, ready for convolutions.

    Attributes:
        edge_index: (2, E + N).
        weight: (E + N,), 1, or 0 where a given self-loop is repeated.
        source_scale: (N, 1), by which a node's features are multiplied before they are summed.
        target_scale: (N, 1), by which the sums at a node are multiplied.
    """

    edge_index: Tensor
    weight: Tensor
    source_scale: Tensor
    target_scale: Tensor


class Convolution(nn.Module):
    """``S_target (A + I) S_source x W + b`` with the diagonal scales of a :class:`Structure`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(in_channels, out_channels)))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Float[Tensor, "n f"], graph: Structure) -> Float[Tensor, "n h"]:
        """(N, F), dense or in compressed rows, to (N, H); the narrower of both sides is summed over neighbours."""
        if is_sparse(x):
            mixed = graph.source_scale * sparse_linear(x, self.weight.t(), torch.zeros_like(self.bias))
            summed = _neighbour_sum(mixed, graph)
        elif self.weight.shape[0] <= self.weight.shape[1]:
            summed = _neighbour_sum(graph.source_scale * x, graph) @ self.weight
        else:
            summed = _neighbour_sum(graph.source_scale * x @ self.weight, graph)
        return summed * graph.target_scale + self.bias


def _neighbour_sum(x: Tensor, graph: Structure) -> Tensor:
    """The sum over every node's neighbours and itself, (N, F) to (N, F)."""
    captured = torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
    if captured or graph.edge_index.shape[1] * x.shape[1] <= MESSAGES:
        source, target = graph.edge_index
        return torch.zeros_like(x).index_add(0, target, graph.weight[:, None].to(x.dtype) * x[source])
    return propagate_hops(x, graph.edge_index, graph.weight, 1)[:, 1]


def _decode(decoder: nn.Linear, quantized: Quantized) -> Tensor:
    """``W q + b`` of every node, (N, F). Of a large graph every code in use is decoded once, not every node."""
    vectors, codes = quantized.vectors, quantized.codes
    captured = torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
    if captured or len(codes) <= DENSE_NODES:
        return decoder(vectors)
    used, members = codes.unique(return_inverse=True)
    one_of_each = torch.empty_like(used).scatter_(0, members, torch.arange(len(codes), device=codes.device))
    return _OfEveryNode.apply(vectors, decoder(vectors[one_of_each].detach())[members], decoder.weight)


class _OfEveryNode(torch.autograd.Function):
    """``W q + b`` that was computed elsewhere; the gradient reaches it, and the q (N, F) that it is of, as ``g W``."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, decoded: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = vectors.dtype
        return decoded.view_as(decoded)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        (weight,) = ctx.saved_tensors
        towards = (gradient.to(weight.dtype) @ weight).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        return towards, gradient, None


class Tokens(NamedTuple):
    """Everything the teacher computes of N nodes.

    Attributes:
        hidden: h (N, F), what is quantised.
        quantized: codes of the nodes.
        edges: q^e (N, F), codes decoded for the edges.
        nodes: q^n (N, F), codes decoded for the nodes.
        readout: (N, H), what the classifier sees.
        logits: (N, C).
    """

    hidden: Tensor
    quantized: Quantized
    edges: Tensor
    nodes: Tensor
    readout: Tensor
    logits: Tensor


class VQGraphGCN(nn.Module):
    """The teacher: a node classifier by graph convolutions whose first layer is written in codes.

    >>> model = VQGraphGCN(1433, 7, num_codes=512)
    >>> loss = model.training_loss(graph.x, graph.edge_index, graph.y, graph.train_mask)
    >>> codes = model.tokenize(graph.x, graph.edge_index).quantized.codes  # (N,)

    Args:
        in_channels: F, features of a node, and width of a code.
        out_channels: C, classes.
        hidden_channels: H, width of the second convolution.
        num_codes: K, size of the codebook.
        dropout: rate on what is quantised.
        node_weight: lambda_n, of the loss that restores nodes.
        edge_weight: lambda_e, of the loss that restores edges.
        commitment: beta.
        decay: of the codebook's moving averages.
        dead_below: see :class:`VectorQuantizer`.
        metric: which codes are near, ``cosine`` or ``euclidean``.

    Raises:
        ValueError: a metric that there is not, a rate that is none, a negative weight.

    Source:
        The paper's section 4.1; for the weights of the losses, the authors' configurations.
    """

    takes_sparse_features = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden_channels: int = 64,
        num_codes: int = 512,
        dropout: float = 0.8,
        node_weight: float = 0.001,
        edge_weight: float = 0.03,
        commitment: float = 0.25,
        decay: float = 0.8,
        dead_below: float = 0.0,
        metric: str = "cosine",
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is a rate from 0 up to, not including, 1, got {dropout}")
        if node_weight < 0 or edge_weight < 0:
            raise ValueError(f"node_weight and edge_weight cannot be negative, got {node_weight} and {edge_weight}")
        if metric not in QUANTIZERS:
            raise ValueError(f"metric must be {' or '.join(QUANTIZERS)}, got {metric!r}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.dropout, self.node_weight, self.edge_weight = dropout, node_weight, edge_weight
        self.metric = metric
        self.conv1 = Convolution(in_channels, in_channels)
        self.quantizer = QUANTIZERS[metric](
            in_channels, num_codes, decay=decay, commitment=commitment, dead_below=dead_below
        )
        self.edge_decoder = nn.Linear(in_channels, in_channels)
        self.node_decoder = nn.Linear(in_channels, in_channels)
        self.conv2 = Convolution(in_channels, hidden_channels)
        self.classifier = nn.Linear(hidden_channels, out_channels)

    def scales(self, in_degree: Tensor, out_degree: Tensor) -> tuple[Tensor, Tensor]:
        """What sources and targets are multiplied by, (N,) each; degrees count the self-loop."""
        return out_degree.pow(-0.5), in_degree.pow(-0.5)

    def structure(self, edge_index: Int[Tensor, "2 e"], nodes: int, dtype: torch.dtype) -> Structure:
        """The graph with one self-loop for every node, and its scales."""
        source, target = edge_index
        loops = torch.arange(nodes, device=edge_index.device)
        ones = torch.ones(nodes, dtype=dtype, device=edge_index.device)
        weight = torch.cat([(source != target).to(dtype), ones])
        source, target = torch.cat([source, loops]), torch.cat([target, loops])
        zeros = torch.zeros_like(ones)
        in_degree, out_degree = zeros.index_add(0, target, weight), zeros.index_add(0, source, weight)
        of_source, of_target = self.scales(in_degree, out_degree)
        return Structure(torch.stack([source, target]), weight, of_source[:, None], of_target[:, None])

    def tokenize(self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"]) -> Tokens:
        """Codes, reconstructions and logits of every node. In training a call moves the codebook.

        Args:
            x: node features (N, in_channels), dense or in compressed rows.
            edge_index: (2, E), row 0 the sources, row 1 the targets; self-loops are added.

        Raises:
            ShapeError: features or edges that the network cannot take.
        """
        check_graph(x, edge_index, self.in_channels)
        graph = self.structure(edge_index, x.shape[0], self.conv1.weight.dtype)
        hidden = F.dropout(self.conv1(x, graph).relu(), self.dropout, self.training)
        quantized = self.quantizer(hidden)
        edges, nodes = _decode(self.edge_decoder, quantized), _decode(self.node_decoder, quantized)
        readout = self.conv2(edges, graph).relu()
        return Tokens(hidden, quantized, edges, nodes, readout, self.classifier(readout))

    def forward(self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"]) -> Float[Tensor, "n c"]:
        """Logits (N, out_channels); arguments and errors as in :meth:`tokenize`."""
        return self.tokenize(x, edge_index).logits

    def node_loss(self, tokens: Tokens) -> Tensor:
        """``lambda_n MSE(h, q^n)``."""
        return self.node_weight * F.mse_loss(tokens.hidden, tokens.nodes.to(tokens.hidden.dtype))

    def tokenizer_loss(self, tokens: Tokens, edge_index: Int[Tensor, "2 e"]) -> Tensor:
        """What the codes lose of nodes and edges, and the commitment: all of the loss but the labels' part."""
        decoded = tokens.edges.to(tokens.quantized.vectors.dtype)  # not in the lower precision of autocast
        if len(decoded) <= DENSE_NODES:
            edges = edge_loss_dense(decoded, edge_index)
        else:
            edges = edge_loss(decoded, edge_index, tokens.quantized.codes)
        return self.node_loss(tokens) + self.edge_weight * edges + tokens.quantized.commitment

    def training_loss(
        self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"], y: Int[Tensor, " n"], mask: Tensor
    ) -> Tensor:
        """The whole loss: labels of the nodes in a mask (N,), and the tokenizer's of all nodes."""
        tokens = self.tokenize(x, edge_index)
        return F.cross_entropy(tokens.logits[mask].float(), y[mask]) + self.tokenizer_loss(tokens, edge_index)


class VQGraphSAGE(VQGraphGCN):
    """The teacher with GraphSAGE's convolution: the mean over a node and its neighbours.

    Arguments and errors are those of :class:`VQGraphGCN`.
    """

    def scales(self, in_degree: Tensor, out_degree: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(out_degree), in_degree.reciprocal()


QUANTIZERS: Mapping[str, type[VectorQuantizer]] = {"cosine": CosineQuantizer, "euclidean": EuclideanQuantizer}


# --- the student


class VQGraphMLP(nn.Module):
    """The student: a perceptron on the features of one node; the graph is not looked at.

    ``z_l = dropout(ReLU(norm(W_l z_(l-1) + b_l)))``, ``logits = W z_L + b``, ``projection = P z_L + p``. The projection
    lies in the space of the teacher's codes; it serves training alone.

    >>> student = VQGraphMLP(1433, 7)
    >>> logits = student(graph.x)  # (N, 7)

    Args:
        in_channels: F, features of a node.
        out_channels: C, classes.
        hidden_channels: width of the hidden layers.
        num_layers: linear layers, at least 2.
        dropout: rate after every hidden layer.
        norm: of hidden layers: ``none``, ``batch`` or ``layer``.
        code_channels: width of the teacher's codes; in_channels when not given.

    Raises:
        ValueError: fewer than 2 layers, a rate or norm that is none.
    """

    takes_sparse_features = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden_channels: int = 128,
        num_layers: int = 2,
        dropout: float = 0.6,
        norm: str = "none",
        code_channels: int | None = None,
    ) -> None:
        super().__init__()
        if num_layers < 2:
            raise ValueError(f"the student has a hidden layer, whose output is compared with codes; got {num_layers}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is a rate from 0 up to, not including, 1, got {dropout}")
        norms = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
        if norm not in ("none", *norms):
            raise ValueError(f"norm must be none, {' or '.join(norms)}, got {norm!r}")
        self.in_channels, self.out_channels, self.dropout = in_channels, out_channels, dropout
        widths = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
        self.layers = nn.ModuleList(nn.Linear(one, two) for one, two in zip(widths[:-1], widths[1:], strict=True))
        self.norms = nn.ModuleList(norms[norm](width) for width in widths[1:-1] if norm != "none")
        self.projection = nn.Linear(hidden_channels, in_channels if code_channels is None else code_channels)

    def features(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n h"]:
        """The last hidden state, (N, in_channels) to (N, hidden_channels).

        Raises:
            ShapeError: other features.
        """
        if x.ndim != 2 or x.shape[1] != self.in_channels or not x.is_floating_point():
            raise ShapeError(
                f"expected node features (N, {self.in_channels}) of a floating-point type, got {tuple(x.shape)} of "
                f"{x.dtype}"
            )
        for index, layer in enumerate(list(self.layers)[:-1]):
            x = sparse_linear(x, layer.weight, layer.bias) if is_sparse(x) else layer(x)
            if self.norms:
                x = self.norms[index](x)
            x = F.dropout(x.relu(), self.dropout, self.training)
        return x

    def forward(self, x: Float[Tensor, "n f"], edge_index: Tensor | None = None) -> Float[Tensor, "n c"]:
        """Logits (N, out_channels).

        Args:
            x: node features (N, in_channels), dense or in compressed rows.
            edge_index: taken, as every node classifier's, and not looked at.
        """
        return self.layers[-1](self.features(x))


# --- the authors' layout

_TEACHER = {
    "graph_layer_1.": "conv1.",
    "graph_layer_2.": "conv2.",
    "decoder_1.": "edge_decoder.",
    "decoder_2.": "node_decoder.",
    "linear.": "classifier.",
    "vq._codebook.": "quantizer.",
}
_LAYOUTS: Mapping[type[nn.Module], Mapping[str, str]] = {
    VQGraphGCN: _TEACHER,
    VQGraphMLP: {"linear.": "projection."},
    VectorQuantizer: {"_codebook.": ""},
}
_BUFFERS = {"embed": "codebook", "embed_avg": "code_sum", "cluster_size": "cluster_size"}


def convert_official(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The authors' state dict of a teacher, a student or a quantiser as ours.

    Their codebooks have a leading axis of one head and a flag ``initted``, which nothing here needs; a network that was
    saved within its wrapper has ``encoder.`` before every name.
    """
    converted = {}
    for name, value in state.items():
        ours = name.removeprefix("encoder.")
        for official, prefix in _prefixes(model).items():
            if ours.startswith(official):
                ours = prefix + ours.removeprefix(official)
                if official.endswith("_codebook."):
                    buffer = ours.rpartition(".")[2]
                    ours, value = prefix + _BUFFERS.get(buffer, buffer), value[0]
                break
        if not ours.endswith("initted"):
            converted[ours] = value
    return converted


def to_official(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a teacher, a student or a quantiser in the authors' layout."""
    official_of = {ours: official for official, ours in _BUFFERS.items()}
    converted: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        for official, prefix in _prefixes(model).items():
            rest = name.removeprefix(prefix)
            if name.startswith(prefix) and not official.endswith("_codebook."):
                name = official + rest
            elif name.startswith(prefix) and rest in official_of:
                name, value = official + official_of[rest], value[None]
                converted[official + "initted"] = torch.ones(1)
            else:
                continue
            break
        converted[name] = value
    return converted


def _prefixes(model: nn.Module) -> Mapping[str, str]:
    for kind, prefixes in _LAYOUTS.items():
        if isinstance(model, kind):
            return prefixes
    raise CallError(f"the authors have no layout of a {type(model).__name__}")


# --- factories


def _build(cls: type[nn.Module], pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_plain_model(cls, pretrained, convert=_either_layout, **kwargs)


def _either_layout(state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    return state if state.keys() == model.state_dict().keys() else convert_official(state, model)


@register_model
def vqgraph_gcn(pretrained: bool = False, *, in_channels: int = 1433, out_channels: int = 7, **kwargs: Any) -> nn.Module:
    """The teacher with graph convolutions, for any graph; sizes are Cora's unless given."""
    return _build(VQGraphGCN, pretrained, in_channels=in_channels, out_channels=out_channels, **kwargs)


@register_model
def vqgraph_sage(
    pretrained: bool = False, *, in_channels: int = 1433, out_channels: int = 7, **kwargs: Any
) -> nn.Module:
    """The teacher with GraphSAGE's convolutions, for any graph; sizes are Cora's unless given."""
    return _build(VQGraphSAGE, pretrained, in_channels=in_channels, out_channels=out_channels, **kwargs)


@register_model
def vqgraph_mlp(pretrained: bool = False, *, in_channels: int = 1433, out_channels: int = 7, **kwargs: Any) -> nn.Module:
    """The student, for any graph; sizes are Cora's unless given."""
    return _build(VQGraphMLP, pretrained, in_channels=in_channels, out_channels=out_channels, **kwargs)


@register_model
def vqgraph_gcn_cora(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The teacher as the authors' code trains it on Cora."""
    return vqgraph_gcn(pretrained, **{"hidden_channels": 64, "num_codes": 5000, "dropout": 0.8, **kwargs})


@register_model
def vqgraph_gcn_citeseer(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The teacher as the authors' code trains it on CiteSeer."""
    citeseer = {"in_channels": 3703, "out_channels": 6, "hidden_channels": 128, "num_codes": 5000, "dropout": 0.8}
    return vqgraph_gcn(pretrained, **{**citeseer, **kwargs})


@register_model
def vqgraph_mlp_cora(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The student as the authors' code trains it on Cora."""
    return vqgraph_mlp(pretrained, **{"hidden_channels": 128, "dropout": 0.6, **kwargs})


@register_model
def vqgraph_mlp_citeseer(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The student as the authors' code trains it on CiteSeer."""
    citeseer = {"in_channels": 3703, "out_channels": 6, "hidden_channels": 128, "dropout": 0.1}
    return vqgraph_mlp(pretrained, **{**citeseer, **kwargs})
