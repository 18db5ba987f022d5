"""STABLE - Reliable Representations Make A Stronger Defender: Unsupervised Structure Refinement for Robust GNN.

Li, Liu, Ao, Chi, Feng, Yang and He, KDD 2022, arXiv 2207.00012.

Edges that an attacker added to a graph can be told by representations of their ends, if those are learned without the
labels that the attack was made for, and from a graph that has been roughly cleaned. This method learns them: the
encoder of :class:`~torchstone.models.graph.stable_gcn.StableGCN` is trained to make nodes of the cleaned graph agree
with summaries of two views of it, to which some of the dropped edges have come back, and so to be insensitive to them.

For features x (N, F), A_pre the roughly pruned graph, R the dropped edges and g the encoder::

    anchor   A_0 = norm(A_pre + beta I)                                 norm(A) = D^-1/2 A D^-1/2
    views    A_k = norm(A_pre + a random share of R + (beta + 1) I)     k = 1, 2, drawn once
    summary  c_k = sigmoid(mean_i g(x, A_k)_i)                          (C,)
    logits   D(h, c_1) + D(h, c_2),   D(h, c) = h^T W c + b             of h = g(x, A_0) and of h~ = g(x[shuffled], A_0)
    loss     binary cross entropy: nodes h are true, shuffled nodes h~ false

A later, supervised run starts from this one: its network has the encoder, which it does not change, mends the graph by
it and trains the classifier::

    torchstone train stable_gnn_cora --out runs/encoder
    torchstone train stable_gcn_cora model.weights=runs/encoder --out runs/classifier

Reading order: :mod:`torchstone.models.graph.stable_gcn` (what is pruned, added, normalised; encoder, discriminator and
classifier), then this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.data.graphs import check_undirected
from torchstone.errors import CallError
from torchstone.layers.adjacency import check_graph, compressed, is_mostly_zero, is_sparse
from torchstone.methods.method import Method
from torchstone.models.graph.stable_gcn import (
    Discriminator,
    Graph,
    StableGCN,
    contrast_logits,
    looped_adjacency,
)

__all__ = ["PROTOCOL", "StableGNN", "build", "contrastive_loss", "convert_official", "recover_edges", "view_of"]

PROTOCOL = {
    "optimizer": "adam",
    "lr": 1e-3,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_epochs": 0.0,
    "clip_grad": None,
    "select": "best_score",
}


# Views and loss -------------------------------------------------------------------------------------------------------


def recover_edges(
    edge_index: Int[Tensor, "2 e"],
    kept: Bool[Tensor, " e"],
    share: float,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, " e"]:
    """Which edges a view has: those that are kept and a random share of the others, in both directions.

    Args:
        edge_index: (2, E), both directions of every edge; edges of a node to itself never come back.
        kept: (E,), equal for both directions.
        share: of the dropped edges, rounded down.
        generator: of the draw; None is the global one.

    Returns:
        (E,).
    """
    source, target = edge_index
    nodes = int(edge_index.max()) + 1 if edge_index.numel() else 0
    edge = torch.minimum(source, target) * nodes + torch.maximum(source, target)
    dropped = edge[~kept & (source < target)].unique()
    chosen = torch.randperm(len(dropped), generator=generator)[: int(len(dropped) * share)]
    return kept | torch.isin(edge, dropped[chosen.to(dropped.device)])


def view_of(edge_index: Int[Tensor, "2 e"], present: Bool[Tensor, " e"], num_nodes: int, beta: float) -> Graph:
    """A view as the encoder sees it: ``norm(A + (beta + 1) I)``, the node's own weight one more than in the anchor.

    Returns:
        Edges and their normalised weights.
    """
    return looped_adjacency(edge_index, present.to(torch.get_default_dtype()), num_nodes, beta + 1)


def contrastive_loss(logits: Tensor) -> Tensor:
    """Binary cross entropy of every node: the mean of a true and a false one.

    Args:
        logits: (2, N): of true nodes, of false ones.

    Returns:
        (N,).
    """
    return (F.softplus(-logits[0]) + F.softplus(logits[1])) / 2


# The method -----------------------------------------------------------------------------------------------------------


class StableGNN(Method):
    """Contrastive training of STABLE's encoder on one graph, without labels.

    Args:
        network: a :class:`~torchstone.models.graph.stable_gcn.StableGCN`; its classifier is left as it is.
        recover: share of the roughly pruned edges that each view has again.
        views: how many views there are.

    Raises:
        CallError: another network, or an argument out of range.
    """

    network: StableGCN
    x: Tensor
    anchor_edges: Tensor
    anchor_weights: Tensor

    def __init__(self, network: nn.Module, *, recover: float = 0.2, views: int = 2) -> None:
        super().__init__(network)
        if not isinstance(network, StableGCN):
            raise CallError(
                f"stable_gnn trains the encoder of STABLE's network (stable_gcn, stable_gcn_cora, ...), not a "
                f"{type(network).__name__}"
            )
        if not 0 <= recover <= 1:
            raise CallError(f"recover is a share from 0 to 1, got {recover}")
        if views < 1:
            raise CallError(f"views must be at least 1, got {views}")
        self.recover, self.views = recover, views
        self.discriminator = Discriminator(len(network.encoder.conv.bias))

    def prepare(self, data: Any) -> None:
        """Take the graph, prune it roughly and draw the views, from the global generator.

        Args:
            data: with ``graph``, PyG's ``Data`` with ``x`` (N, F) and ``edge_index`` (2, E).

        Raises:
            DataError: the graph is directed.
            ShapeError: the network was built for other features.
        """
        x, edge_index = data.graph.x, data.graph.edge_index
        nodes = len(x)
        check_graph(x, edge_index, self.network.in_channels)
        check_undirected(edge_index, nodes)
        if is_mostly_zero(x):
            x = x.to_sparse()  # coordinates: compressed rows cannot be copied
        self.register_buffer("x", x, persistent=False)
        kept = self.network.roughly_kept(self.features(), edge_index)
        self._keep_graph("anchor", self.network.anchor(edge_index, kept, nodes))
        for index in range(self.views):
            present = recover_edges(edge_index, kept, self.recover)
            self._keep_graph(f"view{index}", view_of(edge_index, present, nodes, self.network.beta))

    def features(self) -> Tensor:
        """The features (N, F), in compressed rows (CSR) where few are not zero."""
        return compressed(self.x) if is_sparse(self.x) else self.x

    def _keep_graph(self, name: str, graph: Graph) -> None:
        edges, weights = graph
        self.register_buffer(f"{name}_edges", edges[:, weights != 0], persistent=False)
        self.register_buffer(f"{name}_weights", weights[weights != 0], persistent=False)

    def graph(self, name: str) -> Graph:
        """A graph of the pre-training, ``anchor``, ``view0``, ``view1``, ...: normalised edges and weights."""
        return self.get_buffer(f"{name}_edges"), self.get_buffer(f"{name}_weights")

    def logits(self) -> Tensor:
        """Of true and of shuffled nodes, (2, N); the permutation is drawn from the global generator."""
        if not hasattr(self, "x"):
            raise CallError("the method has seen no graph yet: call prepare(data)")
        permutation = torch.randperm(self.x.shape[0], device=self.x.device)
        views = [self.graph(f"view{index}") for index in range(self.views)]
        return contrast_logits(
            self.network.encoder, self.discriminator, self.features(), permutation, self.graph("anchor"), views
        )

    # --- Method

    def loss(self, batch: Any) -> Tensor:
        """The loss of all nodes, whatever part the batch is: no label is seen."""
        return contrastive_loss(self.logits().float()).mean()

    def evaluation_loss(self, batch: Tensor) -> Tensor:
        """The loss of every node of a batch, the mask (N,) of its nodes."""
        return contrastive_loss(self.logits().float())[batch]

    def inputs(self, batch: Tensor) -> Tensor:
        """The features of a batch's nodes."""
        return (self.x.to_dense() if is_sparse(self.x) else self.x)[batch]


def build(model: nn.Module, **args: Any) -> StableGNN:
    """STABLE's pre-training around a network, for recipes; the arguments are those of :class:`StableGNN`."""
    return StableGNN(model, **args)


# The authors' state dicts ---------------------------------------------------------------------------------------------

_NAMES = {
    "gcn.fc.weight": "encoder.conv.weight",
    "gcn.bias": "encoder.conv.bias",
    "gcn.act.weight": "encoder.act.weight",
    "disc.f_k.weight": "discriminator.bilinear.weight",
    "disc.f_k.bias": "discriminator.bilinear.bias",
    "layers.0.weight": "conv1.weight",
    "layers.0.bias": "conv1.bias",
    "layers.3.weight": "conv2.weight",
    "layers.3.bias": "conv2.bias",
}


def convert_official(state: Mapping[str, Tensor], model: nn.Module | None = None) -> dict[str, Tensor]:
    """A state dict of the authors' ``DGI`` or ``GCN`` under our names.

    Args:
        state: theirs; the classifier's matrices are (in, out), ours (out, in). Other names stay.
        model: what the state is for; the names tell, so it is not looked at.
    """
    turned = {"layers.0.weight", "layers.3.weight"}
    return {_NAMES.get(name, name): value.t() if name in turned else value for name, value in state.items()}
