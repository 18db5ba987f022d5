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

All take ``(x, edge_index)`` and give logits; any default can be changed by a keyword argument of PyG's class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.errors import unknown_name
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


def build_peer(name: str, *, in_channels: int, out_channels: int, **kwargs: Any) -> nn.Module:
    """One of :data:`NAMES` for a graph.

    Args:
        name: the network.
        in_channels: features of a node.
        out_channels: classes.
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
    layers = {} if name == "appnp" else {"num_layers": 2}
    sizes = {"in_channels": in_channels, "out_channels": out_channels, "hidden_channels": 64, **layers}
    return network(**{**sizes, **usual, **kwargs})
