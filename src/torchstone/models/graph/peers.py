"""Well-known graph networks from PyTorch Geometric, in their usual two-layer form, to compare with.

====== ============================================================ ==========================================
name   network                                                      as its authors train it on citation graphs
====== ============================================================ ==========================================
gcn    graph convolutions (Kipf and Welling 2017)                   64 hidden channels, dropout 0.5
gat    graph attention (Velickovic et al. 2018)                     8 heads of 8 channels, dropout 0.6
sage   GraphSAGE with the mean of the neighbours (Hamilton 2017)    64 hidden channels, dropout 0.5
gin    graph isomorphism network (Xu et al. 2019)                   64 hidden channels, dropout 0.5
appnp  perceptron and personalised PageRank (Gasteiger et al. 2019) 64 hidden channels, dropout 0.5, K 10, 0.1
====== ============================================================ ==========================================

All take ``(x, edge_index)`` and give logits; any default can be changed by a keyword argument of PyG's class. For whole
graphs (``pool``) they have three layers with batch normalisation, pool the nodes of each graph and end with a linear
layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.errors import CallError, unknown_name
from torchstone.extras import extra

NAMES = ("appnp", "gat", "gcn", "gin", "sage")


class PerceptronThenAPPNP(nn.Module):
    """A perceptron whose predictions PyG's ``APPNP`` propagates.

    Args:
        in_channels: features of a node.
        out_channels: classes.
        hidden_channels: width of the perceptron's hidden layer.
        dropout: rate before both linear layers.
        K: steps of the propagation.
        alpha: share of the perceptron's own prediction in each step.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden_channels: int = 64,
        dropout: float = 0.5,
        K: int = 10,
        alpha: float = 0.1,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.lin1 = nn.Linear(in_channels, hidden_channels)
        self.lin2 = nn.Linear(hidden_channels, out_channels)
        self.prop = extra("torch_geometric.nn", "graph").APPNP(K, alpha)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """(N, in_channels) and (2, E) to logits (N, out_channels)."""
        x = self.lin1(F.dropout(x, self.dropout, self.training)).relu()
        return self.prop(self.lin2(F.dropout(x, self.dropout, self.training)), edge_index)


class Pooled(nn.Module):
    """A network of nodes, of whose outputs each graph's are pooled and mapped.

    Args:
        network: ``(x, edge_index)`` to (N, channels).
        channels: its outputs.
        out_channels: outputs for a graph.
        pool: ``add``, ``mean`` or ``max``.
    """

    def __init__(self, network: nn.Module, channels: int, out_channels: int, pool: str) -> None:
        super().__init__()
        if pool not in ("add", "mean", "max"):
            raise CallError(f"pool must be add, mean or max, got {pool!r}")
        self.network = network
        self.lin = nn.Linear(channels, out_channels)
        self.pool = pool

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        """(N, in_channels), (2, E) and the graph of each node (N,) to (B, out_channels)."""
        pool = getattr(extra("torch_geometric.nn", "graph"), f"global_{self.pool}_pool")
        return self.lin(pool(self.network(x, edge_index).relu(), batch))


def build_peer(
    name: str, *, in_channels: int, out_channels: int, pool: str | None = None, **kwargs: Any
) -> nn.Module:
    """One of :data:`NAMES` for a graph.

    Args:
        name: the network.
        in_channels: features of a node.
        out_channels: classes.
        pool: for whole graphs: how their nodes are pooled, ``add``, ``mean`` or ``max``.
        **kwargs: arguments of PyG's class.

    Raises:
        UnknownName: no such network.
        CallError: PyTorch Geometric is not installed.
    """
    if name not in NAMES:
        raise unknown_name("PyG model", name, NAMES)
    models = extra("torch_geometric.nn.models", "graph")
    networks: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
        "gcn": (models.GCN, {"dropout": 0.5}),
        "gat": (models.GAT, {"dropout": 0.6, "heads": 8}),
        "sage": (models.GraphSAGE, {"dropout": 0.5}),
        "gin": (models.GIN, {"dropout": 0.5}),
        "appnp": (PerceptronThenAPPNP, {}),
    }
    network, usual = networks[name]
    sizes: dict[str, Any] = {"in_channels": in_channels, "out_channels": out_channels, "hidden_channels": 64}
    if name != "appnp":
        sizes |= {"num_layers": 2} if pool is None else {"num_layers": 3, "norm": "batch_norm"}
    given = {**sizes, **usual, **kwargs}
    if pool is None:
        return network(**given)
    channels = given["hidden_channels"]
    return Pooled(network(**{**given, "out_channels": channels}), channels, out_channels, pool)
