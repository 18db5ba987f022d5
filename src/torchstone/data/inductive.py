"""Nodes that come later: a part of a graph's test nodes, and their edges, kept from all training."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from torchstone.data.graphs import GraphSplit
from torchstone.errors import CallError
from torchstone.extras import extra


def hold_out(opened: GraphSplit, share: float = 0.2, seed: int = 0) -> GraphSplit:
    """Set a share of the test nodes aside, as the inductive setting of GNN-to-MLP distillation does.

    >>> seen = hold_out(open_graph("cora.npz", split="per-class-30"))
    >>> run = fit(recipe, "runs/seen", source=seen)  # neither the held-out nodes nor their edges exist
    >>> evaluate("runs/seen", "test", source=seen).score  # of the held-out nodes, on the whole graph

    A recipe says the same by ``data.hold_out``.

    Args:
        opened: a graph with its split.
        share: of the test nodes, between 0 and 1.
        seed: of the draw.

    Returns:
        The graph without the held-out nodes, whose test mask has the remaining ones; in ``whole`` is the graph with all
        nodes, whose test mask has the held-out ones.

    Raises:
        CallError: a share that leaves no node on either side, or a graph of which nodes are held out already.

    Source:
        Zhang et al., Graph-less Neural Networks: Teaching Old MLPs New Tricks via Distillation, ICLR 2022, section 5.
    """
    if opened.whole is not None:
        raise CallError("nodes of this graph are held out already; hold_out takes the graph with all nodes")
    graph = opened.graph
    candidates = graph.test_mask.nonzero().squeeze(1)
    count = round(share * len(candidates)) if 0 <= share <= 1 else 0
    if not 0 < count < len(candidates):
        raise CallError(
            f"a share of {share} of {len(candidates)} test nodes leaves none on one side; 0.2 is the field's"
        )
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(candidates)))
    held_out = torch.zeros_like(graph.test_mask)
    held_out[candidates[order[:count]]] = True
    whole = graph.clone()
    whole.test_mask = held_out
    mark = f"{opened.split}, {share:g} of test unseen (seed {seed})"
    return dataclasses.replace(
        opened,
        graph=_without(graph, held_out),
        split=mark,
        whole=dataclasses.replace(opened, graph=whole, split=f"{mark}, these tested"),
    )


def _without(graph: Any, nodes: torch.Tensor) -> Any:
    """The graph that is left when nodes (N,) and their edges are gone; masks and rows are cut alike."""
    data = extra("torch_geometric.data", "graph").Data
    subgraph = extra("torch_geometric.utils", "graph").subgraph

    def left(edges: torch.Tensor) -> torch.Tensor:
        return subgraph(~nodes, edges, relabel_nodes=True, num_nodes=graph.num_nodes)[0]

    content = graph.to_dict()
    edge_index, views = left(content.pop("edge_index")), content.pop("views", {})
    found = data(edge_index=edge_index, **{name: value[~nodes] for name, value in content.items()})
    if views:
        found.views = {name: left(edges) for name, edges in views.items()}
    return found
