"""The teacher, a graph network that writes surroundings as codes, and the student, a perceptron."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from torchstone.errors import ShapeError
from torchstone.layers.adjacency import check_graph, is_sparse, propagate_hops, sparse_linear
from torchstone.models.graph.vqgraph.codes import QUANTIZERS, Quantized
from torchstone.models.graph.vqgraph.edges import edge_loss, edge_loss_dense

DENSE_NODES = 1024
"""Up to this many nodes everything is computed as the equations say, with N x N matrices for the edges."""

MESSAGES = 2**22
"""Up to this many numbers, sums over neighbours are a gather and a scatter, for which no matrix has to be built."""


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
    """``W q + b`` of every node, (N, D). Of a large graph every code in use is decoded once, not every node."""
    vectors, codes = quantized.vectors, quantized.codes
    captured = torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
    if captured or len(codes) <= DENSE_NODES:
        return decoder(vectors)
    used, members = codes.unique(return_inverse=True)
    places = torch.arange(len(codes), device=codes.device)
    first = torch.full_like(used, len(codes)).scatter_reduce(0, members, places, "amin")  # of the nodes of every code
    return _OfEveryNode.apply(vectors, decoder(vectors[first].detach())[members], decoder.weight)


class _OfEveryNode(torch.autograd.Function):
    """``W q + b`` that was computed elsewhere; the gradient reaches it, and the q (N, D) that it is of, as ``g W``."""

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
        hidden: h (N, D), what is quantised.
        quantized: codes of the nodes.
        edges: q^e (N, D), codes decoded for the edges.
        nodes: q^n (N, D), codes decoded for the nodes.
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
        in_channels: F, features of a node.
        out_channels: C, classes.
        hidden_channels: H, width of the second convolution.
        code_channels: D, width of a code; in_channels, as the authors have it, when not given. The cost grows with its
            square.
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
        code_channels: int | None = None,
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
        width = in_channels if code_channels is None else code_channels
        self.conv1 = Convolution(in_channels, width)
        self.quantizer = QUANTIZERS[metric](width, num_codes, decay=decay, commitment=commitment, dead_below=dead_below)
        self.edge_decoder = nn.Linear(width, width)
        self.node_decoder = nn.Linear(width, width)
        self.conv2 = Convolution(width, hidden_channels)
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
            edges = edge_loss_dense(decoded, edge_index, tokens.quantized.codes)
        else:
            edges = edge_loss(decoded, edge_index, tokens.quantized.codes)
        return self.node_loss(tokens) + self.edge_weight * edges + tokens.quantized.commitment

    def training_loss(
        self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"], y: Int[Tensor, " n"], mask: Tensor
    ) -> Tensor:
        """The whole loss: labels of the nodes in a mask (N,), and the tokenizer's of all nodes."""
        return self.loss_of(self.tokenize(x, edge_index), edge_index, y, mask)

    def loss_of(self, tokens: Tokens, edge_index: Int[Tensor, "2 e"], y: Int[Tensor, " n"], mask: Tensor) -> Tensor:
        """:meth:`training_loss` of nodes that are tokenized already."""
        return F.cross_entropy(tokens.logits[mask].float(), y[mask]) + self.tokenizer_loss(tokens, edge_index)


class VQGraphSAGE(VQGraphGCN):
    """The teacher with a convolution of GraphSAGE: the mean over a node and its neighbours, all with one weight matrix.

    It is the aggregator known as ``gcn``, not ``mean``, which has a second matrix for the node itself. The authors'
    GraphSAGE teacher computes something else, graph convolutions of sampled blocks; its files are not read.

    Arguments and errors are those of :class:`VQGraphGCN`.
    """

    def scales(self, in_degree: Tensor, out_degree: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(out_degree), in_degree.reciprocal()


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
        self.layers = nn.ModuleList(nn.Linear(one, two) for one, two in pairwise(widths))
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
            assert isinstance(layer, nn.Linear)
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
