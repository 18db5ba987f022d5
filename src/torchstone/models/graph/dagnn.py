"""DAGNN - Towards Deeper Graph Neural Networks.

Liu, Gao and Ji, KDD 2020, arXiv 2007.09296.

Deep graph networks fail because every layer both transforms and propagates. DAGNN transforms once, with a small
perceptron, then propagates for K hops without parameters, and lets every node weigh what it saw at each hop. Its
receptive field grows with K while the number of trained layers stays at two.

    Z   = MLP(x)                                             (N, C)
    H_0 = Z,   H_k = A H_(k-1),   A = D^-1/2 (A + I) D^-1/2  (N, C),  k = 1 .. K
    S   = sigmoid(stack(H_0 .. H_K) s)                       (N, K + 1)   the weight of each hop at each node
    out = softmax(sum_k S_k H_k)                             (N, C)

The weights of the hops are independent sigmoids, not a softmax. Training minimises the negative log likelihood of the
labelled nodes, with weight decay on all parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.layers.adjacency import (
    check_graph,
    is_sparse,
    normalized_adjacency,
    propagate_hops,
    sparse_dropout,
    sparse_linear,
)
from torchstone.models.registry import build_plain_model, register_model


class AdaptivePropagation(nn.Module):
    """K hops of propagation, each weighed anew at every node (equations 8 and 9).

    Args:
        channels: C, the channels that are propagated.
        hops: K.

    Raises:
        ValueError: hops below 0.
    """

    def __init__(self, channels: int, hops: int) -> None:
        super().__init__()
        if hops < 0:
            raise ValueError(f"the number of hops cannot be negative, got {hops}")
        self.hops = hops
        self.proj = nn.Linear(channels, 1)

    def forward(
        self, x: Float[Tensor, "n c"], edge_index: Int[Tensor, "2 e"], edge_weight: Float[Tensor, " e"]
    ) -> Float[Tensor, "n c"]:
        """(N, C) with normalised edges (2, E) and weights (E,) to (N, C)."""
        steps = propagate_hops(x, edge_index, edge_weight, self.hops)  # (N, K + 1, C)
        gates = self.gates(steps)  # (N, K + 1)
        return torch.einsum("nk,nkc->nc", gates, steps)

    def gates(self, steps: Float[Tensor, "n k c"]) -> Float[Tensor, "n k"]:
        """The weight of each hop at each node: (N, K + 1, C) to (N, K + 1), between 0 and 1."""
        return self.proj(steps).squeeze(-1).sigmoid()


class DAGNN(nn.Module):
    """Deep adaptive graph network for node classification.

    >>> model = DAGNN(1433, 7, hops=10, dropout=0.8)
    >>> log_probabilities = model(graph.x, graph.edge_index)  # (N, 7)

    Args:
        in_channels: F, features of a node.
        out_channels: C, classes.
        hidden_channels: width of the perceptron's hidden layer.
        hops: K, the size of the receptive field.
        dropout: rate before the second linear layer.
        input_dropout: rate on the features; the same as ``dropout`` when not given.
        batch_norm: normalise the hidden layer (the network for ogbn-arxiv).

    Raises:
        ValueError: hops below 0, or a rate that is none.
    """

    takes_sparse_features = True
    needs_undirected = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden_channels: int = 64,
        hops: int = 10,
        dropout: float = 0.5,
        input_dropout: float | None = None,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.dropout = dropout
        self.input_dropout = dropout if input_dropout is None else input_dropout
        for name, rate in (("dropout", self.dropout), ("input_dropout", self.input_dropout)):
            if not 0 <= rate < 1:
                raise ValueError(f"{name} is a rate from 0 up to, not including, 1, got {rate}")
        self.lin1 = nn.Linear(in_channels, hidden_channels)
        self.bn = nn.BatchNorm1d(hidden_channels) if batch_norm else nn.Identity()
        self.lin2 = nn.Linear(hidden_channels, out_channels)
        self.prop = AdaptivePropagation(out_channels, hops)

    def transform(self, x: Float[Tensor, "n f"]) -> Float[Tensor, "n c"]:
        """The perceptron: node features (N, F) to Z (N, C)."""
        if is_sparse(x):
            x = sparse_dropout(x, self.input_dropout, self.training)
            x = sparse_linear(x, self.lin1.weight, self.lin1.bias)
        else:
            x = self.lin1(F.dropout(x, self.input_dropout, self.training))
        x = self.bn(x).relu()
        return self.lin2(F.dropout(x, self.dropout, self.training))

    def forward(
        self,
        x: Float[Tensor, "n f"],
        edge_index: Int[Tensor, "2 e"],
        edge_weight: Float[Tensor, " e"] | None = None,
    ) -> Float[Tensor, "n c"]:
        """Classify every node.

        Args:
            x: node features, (N, in_channels), dense or in compressed rows (``x.to_sparse_csr()``), which is several
                times faster where most features are zero.
            edge_index: edges, (2, E), row 0 the sources, row 1 the targets; an undirected graph has both directions.
            edge_weight: (E,), ones when not given.

        Returns:
            Log-probabilities, (N, out_channels).

        Raises:
            ShapeError: features or edges that the network cannot take.
        """
        check_graph(x, edge_index, self.in_channels, edge_weight)
        edge_index, edge_weight = normalized_adjacency(edge_index, x.shape[0], edge_weight)
        return self.prop(self.transform(x), edge_index, edge_weight).log_softmax(-1)


@register_model
def dagnn(pretrained: bool = False, *, in_channels: int = 1433, out_channels: int = 7, **kwargs: Any) -> DAGNN:
    """DAGNN for any graph; the numbers of features and classes are Cora's unless given."""
    return build_plain_model(DAGNN, pretrained, in_channels=in_channels, out_channels=out_channels, **kwargs)


@register_model
def dagnn_cora(pretrained: bool = False, **kwargs: Any) -> DAGNN:
    """DAGNN as the paper trains it on Cora."""
    return dagnn(pretrained, **{"in_channels": 1433, "out_channels": 7, "hops": 10, "dropout": 0.8, **kwargs})


@register_model
def dagnn_citeseer(pretrained: bool = False, **kwargs: Any) -> DAGNN:
    """DAGNN as the paper trains it on CiteSeer."""
    return dagnn(pretrained, **{"in_channels": 3703, "out_channels": 6, "hops": 10, "dropout": 0.5, **kwargs})


@register_model
def dagnn_pubmed(pretrained: bool = False, **kwargs: Any) -> DAGNN:
    """DAGNN as the paper trains it on PubMed."""
    return dagnn(pretrained, **{"in_channels": 500, "out_channels": 3, "hops": 20, "dropout": 0.8, **kwargs})


@register_model
def dagnn_arxiv(pretrained: bool = False, **kwargs: Any) -> DAGNN:
    """DAGNN as the authors train it on ogbn-arxiv: wider, with batch normalisation and no dropout on the features."""
    arxiv = {"in_channels": 128, "out_channels": 40, "hidden_channels": 256, "hops": 16, "dropout": 0.2}
    return dagnn(pretrained, **{**arxiv, "input_dropout": 0.0, "batch_norm": True, **kwargs})
