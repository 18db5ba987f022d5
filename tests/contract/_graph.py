"""What the contract tests of graph models share: which systems there are, and how a model and its graph are made."""

import torch
from torch import nn

from torchstone import create_model
from torchstone.catalog import Card, cards

FEATURES, CLASSES, NODES = 6, 3, 12

SYSTEMS = [card for card in cards().values() if card.room == "models/graph"]


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
