"""What the contract tests of graph models share: which systems there are, and how a model and its graph are made."""

import torch
from torch import nn

from torchstone import create_model
from torchstone.catalog import Card, cards

FEATURES, CLASSES, NODES = 6, 3, 12

SYSTEMS = [card for card in cards().values() if card.room == "models/graph" and card.task == "node-classification"]
WHOLE_GRAPH_SYSTEMS = [card for card in cards().values() if card.room == "models/graph" and card not in SYSTEMS]


def build_graph_model(card: Card, seed: int = 0, **kwargs) -> nn.Module:
    """The system's network for any graph, from a seed."""
    torch.manual_seed(seed)
    return create_model(card.key, in_channels=FEATURES, out_channels=CLASSES, hidden_channels=16, **kwargs)


def graph(nodes: int = NODES, edges: int = 15, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (N, F) and undirected edges (2, E) without loops; the last node has no edge."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(nodes - 1, (edges,), generator=generator)
    target = (source + torch.randint(1, nodes - 1, (edges,), generator=generator)) % (nodes - 1)
    one_way = torch.stack([torch.minimum(source, target), torch.maximum(source, target)]).unique(dim=1)
    return torch.randn(nodes, FEATURES, generator=generator), torch.cat([one_way, one_way.flip(0)], 1)


def small_form(card: Card) -> str:
    """A system's own small network, where it has one."""
    name = f"{card.key}_mini"
    return name if any(variant.name == name for variant in card.variants) else card.key


def build_whole_graph_model(card: Card, seed: int = 0, **kwargs) -> nn.Module:
    """The system's network that answers for whole graphs, from a seed."""
    torch.manual_seed(seed)
    return create_model(small_form(card), in_channels=FEATURES, out_channels=CLASSES, **kwargs)


def batch_of_graphs(*sizes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One-hot types (N, F), edges (2, E) and the graph of each node (N,) of a batch of graphs of these sizes."""
    graphs = [graph(nodes, 2 * nodes, seed + index) for index, nodes in enumerate(sizes)]
    generator = torch.Generator().manual_seed(seed)
    types = torch.randint(FEATURES, (sum(sizes),), generator=generator)
    start = [sum(sizes[:index]) for index in range(len(sizes))]
    edges = torch.cat([edge_index + first for (_, edge_index), first in zip(graphs, start, strict=True)], 1)
    return torch.eye(FEATURES)[types], edges, torch.repeat_interleave(torch.tensor(sizes))
