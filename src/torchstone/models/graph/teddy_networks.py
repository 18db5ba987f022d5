"""The five graph networks that TEDDY sparsifies: GCN, GIN, GAT, GraphSAGE and a graph transformer.

Seo, Yun and Yang, "TEDDY: Trimming Edges with Degree-based Discrimination strategY", ICLR 2024, arXiv 2402.01261; the
transform itself is :mod:`torchstone.transforms.teddy`.

All convolutions but the transformer's are without biases, so that a network is its matrices. With N(i) the sources of
the edges to i, and i itself where it says so, a layer maps h to

    GCN          h'_i = sum_(j in N(i) + i) W h_j / sqrt(d_i d_j)
    GIN          h'_i = relu( W ( sum_(j in N(i)) h_j + (1 + eps) h_i ) );   logits = ( V h' + h'' ) / 2
    GAT          h'_i = sum_(j in N(i) + i) a_ij W h_j,   a_ij = softmax_j leaky_relu( v_ij (s . W h_j + t . W h_i) )
    GraphSAGE    h'_i = W mean_(j in N(i)) h_j + U h_i
    transformer  h'_i = sum_(j in N(i)) a_ij V h_j + U h_i,   a_ij = softmax_j v_ij (Q h_i . K h_j) / sqrt(channels)

v_ij is the value of an edge in the soft mode of GAT and the transformer: 1 for an edge that is kept, 0 for one that is
pruned and stays as an edge of score 0. The hard mode leaves pruned edges out, and v_ij = 1.

Features in compressed rows (CSR) are taken too, several times faster where most of them are zero.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.extras import extra
from torchstone.layers.adjacency import check_graph, is_sparse, sparse_dropout
from torchstone.models.registry import build_plain_model, register_model

geometric: Any = extra("torch_geometric.nn", "graph")
utils: Any = extra("torch_geometric.utils", "graph")


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Dropout of dense features or of those in compressed rows."""
    return sparse_dropout(x, rate, training) if is_sparse(x) else F.dropout(x, rate, training)


def sum_over_neighbours(x: Float[Tensor, "n c"], edge_index: Int[Tensor, "2 e"]) -> Float[Tensor, "n c"]:
    """``sum over edges j -> i of x_j``, (N, C)."""
    return torch.zeros_like(x).index_add(0, edge_index[1], x[edge_index[0]])


# --- layers


class GINConv(nn.Module):
    """``W ( sum_j x_j + (1 + eps) x_i )`` with a trained eps; W is applied first, which is the same and cheaper.

    Args:
        in_channels: features of a node.
        out_channels: channels of the answer.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.lin = geometric.Linear(in_channels, out_channels, bias=False, weight_initializer="glorot")
        self.eps = nn.Parameter(torch.zeros(1))

    def forward(self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"]) -> Float[Tensor, "n c"]:
        x = self.lin(x)
        return sum_over_neighbours(x, edge_index) + (1 + self.eps) * x


class SAGEConv(nn.Module):
    """``W mean_j x_j + U x_i``, PyG's ``SAGEConv`` without bias; W is applied before the mean, which is the same.

    Args:
        in_channels: features of a node.
        out_channels: channels of the answer.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.lin_l = geometric.Linear(in_channels, out_channels, bias=False, weight_initializer="glorot")
        self.lin_r = geometric.Linear(in_channels, out_channels, bias=False, weight_initializer="glorot")

    def forward(self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"]) -> Float[Tensor, "n c"]:
        neighbours = self.lin_l(x)
        counted = neighbours.new_zeros(neighbours.shape[0]).index_add(
            0, edge_index[1], neighbours.new_ones(edge_index.shape[1])
        )
        return sum_over_neighbours(neighbours, edge_index) / counted.clamp(min=1)[:, None] + self.lin_r(x)


class SoftGATConv(geometric.GATConv):
    """PyG's graph attention whose score is multiplied by the value of its edge, given as ``edge_attr`` (E,)."""

    def edge_update(
        self,
        alpha_j: Tensor,
        alpha_i: Tensor,
        edge_attr: Tensor | None,
        index: Tensor,
        ptr: Tensor | None,
        dim_size: int | None,
    ) -> Tensor:
        alpha = alpha_j + alpha_i  # (E, heads)
        if edge_attr is not None:
            alpha = alpha * edge_attr[:, None]
        alpha = utils.softmax(F.leaky_relu(alpha, self.negative_slope), index, ptr, dim_size)
        return F.dropout(alpha, self.dropout, self.training)


class SoftTransformerConv(geometric.TransformerConv):
    """PyG's graph transformer layer whose score is multiplied by the value of its edge, given as ``edge_attr`` (E,)."""

    def message(
        self,
        query_i: Tensor,
        key_j: Tensor,
        value_j: Tensor,
        edge_attr: Tensor | None,
        index: Tensor,
        ptr: Tensor | None,
        size_i: int | None,
    ) -> Tensor:
        alpha = (query_i * key_j).sum(-1) / math.sqrt(self.out_channels)  # (E, heads)
        if edge_attr is not None:
            alpha = alpha * edge_attr[:, None]
        alpha = F.dropout(utils.softmax(alpha, index, ptr, size_i), self.dropout, self.training)
        return value_j * alpha[:, :, None]


# --- networks


class GraphNetwork(nn.Module):
    """What the five share: sizes, checks, and layers under ``convs``.

    Args:
        in_channels: features of a node.
        out_channels: classes.
        num_layers: layers, at least 2.
        dropout: rate before the layers, where the network's docstring says.

    Raises:
        ValueError: fewer than 2 layers, or a rate that is none.
    """

    takes_sparse_features = True

    def __init__(self, in_channels: int, out_channels: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        if num_layers < 2:
            raise ValueError(f"num_layers must be at least 2, got {num_layers}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is a rate from 0 up to, not including, 1, got {dropout}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.dropout = dropout
        self.convs = nn.ModuleList()

    def check(self, x: Tensor, edge_index: Tensor, edge_value: Tensor | None = None) -> None:
        check_graph(x, edge_index, self.in_channels, edge_value)


def widths(in_channels: int, hidden_channels: int, out_channels: int, num_layers: int) -> list[tuple[int, int]]:
    """In and out channels of every layer."""
    sizes = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
    return list(pairwise(sizes))


class GCN(GraphNetwork):
    """Graph convolutions (Kipf and Welling), without biases; relu and dropout behind every layer but the last.

    Args:
        in_channels: features of a node.
        out_channels: classes.
        hidden_channels: width.
        num_layers: layers.
        dropout: rate behind the hidden layers.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, hidden_channels: int = 512, num_layers: int = 2,
        dropout: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__(in_channels, out_channels, num_layers, dropout)
        for sizes in widths(in_channels, hidden_channels, out_channels, num_layers):
            self.convs.append(self.layer(*sizes))

    @staticmethod
    def layer(in_channels: int, out_channels: int) -> nn.Module:
        return geometric.GCNConv(in_channels, out_channels, bias=False)

    def forward(self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"]) -> Float[Tensor, "n c"]:
        """Node features (N, F) and edges (2, E) to logits (N, C)."""
        self.check(x, edge_index)
        for conv in self.convs[:-1]:
            x = F.dropout(conv(x, edge_index).relu(), self.dropout, self.training)
        return self.convs[-1](x, edge_index)


class SAGE(GCN):
    """GraphSAGE with the mean of the neighbours, without biases; relu and dropout behind every layer but the last.

    Its arguments are those of :class:`GCN`.
    """

    @staticmethod
    def layer(in_channels: int, out_channels: int) -> nn.Module:
        return SAGEConv(in_channels, out_channels)


class GIN(GraphNetwork):
    """A graph isomorphism network of two layers whose logits are the mean of both layers' predictions.

    The second layer predicts by itself, behind a relu; the first through a linear map.

    Args:
        in_channels: features of a node.
        out_channels: classes.
        hidden_channels: width.
        num_layers: 2; its readout is defined for no other number.
        dropout: rate behind the hidden layer.

    Raises:
        ValueError: another number of layers.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, hidden_channels: int = 512, num_layers: int = 2,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(in_channels, out_channels, num_layers, dropout)
        if num_layers != 2:
            raise ValueError(f"this GIN has 2 layers, got num_layers={num_layers}")
        self.convs.extend([GINConv(in_channels, hidden_channels), GINConv(hidden_channels, out_channels)])
        self.mlp = geometric.Linear(hidden_channels, out_channels, bias=False, weight_initializer="glorot")

    def forward(self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"]) -> Float[Tensor, "n c"]:
        """Node features (N, F) and edges (2, E) to logits (N, C)."""
        self.check(x, edge_index)
        first, second = self.convs
        hidden = F.dropout(first(x, edge_index).relu(), self.dropout, self.training)
        return (self.mlp(hidden) + second(hidden, edge_index).relu()) / 2


class GAT(GraphNetwork):
    """Graph attention (Velickovic et al.), without biases: heads side by side, elu; one head in the last layer.

    A node without a self-loop gets one, of value 1.

    Args:
        in_channels: features of a node.
        out_channels: classes.
        hidden_channels: width of a head.
        num_layers: layers.
        heads: of every layer but the last.
        dropout: rate on what every layer is given.
        attention_dropout: rate on the attention of every layer but the last; the same as ``dropout`` when not given.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, hidden_channels: int = 512, num_layers: int = 2, heads: int = 8,
        dropout: float = 0.6, attention_dropout: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(in_channels, out_channels, num_layers, dropout)
        rate = dropout if attention_dropout is None else attention_dropout
        shared: dict[str, Any] = {"bias": False, "fill_value": 1.0}
        for index in range(num_layers - 1):
            given = heads * hidden_channels if index else in_channels
            self.convs.append(SoftGATConv(given, hidden_channels, heads, dropout=rate, **shared))
        self.convs.append(SoftGATConv(heads * hidden_channels, out_channels, 1, concat=False, **shared))

    def forward(
        self,
        x: Float[Tensor, "n f"],
        edge_index: Int[Tensor, "2 e"],
        edge_value: Float[Tensor, " e"] | None = None,
    ) -> Float[Tensor, "n c"]:
        """Classify every node.

        Args:
            x: node features, (N, F).
            edge_index: edges, (2, E).
            edge_value: for the soft mode, (E,): 1 for kept edges, 0 for pruned ones.

        Returns:
            Logits, (N, C).

        Raises:
            ShapeError: features, edges or values that the network cannot take.
        """
        self.check(x, edge_index, edge_value)
        x = dropout(x, self.dropout, self.training)
        for conv in self.convs[:-1]:
            x = F.dropout(F.elu(conv(x, edge_index, edge_value)), self.dropout, self.training)
        return self.convs[-1](x, edge_index, edge_value)


class GraphTransformer(GraphNetwork):
    """Attention by queries and keys over neighbours (Shi et al., 2021): heads side by side, their mean in the last.

    Args:
        in_channels: features of a node.
        out_channels: classes.
        hidden_channels: width of a head.
        num_layers: layers.
        heads: of every layer.
        dropout: rate behind the hidden layers.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, hidden_channels: int = 512, num_layers: int = 2, heads: int = 8,
        dropout: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__(in_channels, out_channels, num_layers, dropout)
        for index in range(num_layers - 1):
            given = heads * hidden_channels if index else in_channels
            self.convs.append(SoftTransformerConv(given, hidden_channels, heads))
        self.convs.append(SoftTransformerConv(heads * hidden_channels, out_channels, heads, concat=False))

    def forward(
        self,
        x: Float[Tensor, "n f"],
        edge_index: Int[Tensor, "2 e"],
        edge_value: Float[Tensor, " e"] | None = None,
    ) -> Float[Tensor, "n c"]:
        """As :meth:`GAT.forward`."""
        self.check(x, edge_index, edge_value)
        for conv in self.convs[:-1]:
            x = F.dropout(conv(x, edge_index, edge_value).relu(), self.dropout, self.training)
        return self.convs[-1](x, edge_index, edge_value)


# --- factories


def _build(cls: Any, pretrained: bool, in_channels: int, out_channels: int, kwargs: dict[str, Any]) -> Any:
    return build_plain_model(cls, pretrained, in_channels=in_channels, out_channels=out_channels, **kwargs)


@register_model
def teddy_gcn(pretrained: bool = False, *, in_channels: int = 1433, out_channels: int = 7, **kwargs: Any) -> GCN:
    """The paper's GCN; the numbers of features and classes are Cora's unless given."""
    return _build(GCN, pretrained, in_channels, out_channels, kwargs)


@register_model
def teddy_gin(pretrained: bool = False, *, in_channels: int = 3703, out_channels: int = 6, **kwargs: Any) -> GIN:
    """The paper's GIN; the numbers of features and classes are CiteSeer's unless given."""
    return _build(GIN, pretrained, in_channels, out_channels, kwargs)


@register_model
def teddy_gat(pretrained: bool = False, *, in_channels: int = 1433, out_channels: int = 7, **kwargs: Any) -> GAT:
    """The paper's GAT; the numbers of features and classes are Cora's unless given."""
    return _build(GAT, pretrained, in_channels, out_channels, kwargs)


@register_model
def teddy_sage(pretrained: bool = False, *, in_channels: int = 1433, out_channels: int = 7, **kwargs: Any) -> SAGE:
    """The paper's GraphSAGE; the numbers of features and classes are Cora's unless given."""
    return _build(SAGE, pretrained, in_channels, out_channels, kwargs)


@register_model
def teddy_graph_transformer(
    pretrained: bool = False, *, in_channels: int = 1433, out_channels: int = 7, **kwargs: Any
) -> GraphTransformer:
    """The paper's graph transformer; the numbers of features and classes are Cora's unless given."""
    return _build(GraphTransformer, pretrained, in_channels, out_channels, kwargs)
