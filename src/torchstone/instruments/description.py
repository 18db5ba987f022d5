"""What stands for a model where the model itself cannot go: into another process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from torchstone.errors import CallError
from torchstone.models.registry import build_model


@dataclass(frozen=True)
class ModelDescription:
    """A model by name and the inputs that it takes, small enough to be pickled.

    Another kind of input (graphs, tokens) is a subclass with its own ``example_inputs``.

    Args:
        spec: what :func:`torchstone.models.registry.build_model` takes: ``NAME``, ``timm:NAME``, ``torchvision:NAME``.
        input_shape: the shape of one sample, without the batch: (channels, height, width).
        kwargs: ``num_classes``, ``in_chans`` and the model's own arguments.
    """

    spec: str
    input_shape: tuple[int, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """What costs follow from, as plain values."""
        return {"spec": self.spec, "input_shape": list(self.input_shape), "kwargs": dict(self.kwargs)}

    def build(self) -> nn.Module:
        return build_model(self.spec, **self.kwargs)

    def example_inputs(self, batch_size: int) -> tuple[Tensor, ...]:
        """Normally distributed samples, always the same."""
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(batch_size, *self.input_shape, generator=generator),)


@dataclass(frozen=True)
class GraphDescription(ModelDescription):
    """A graph network and the graph it runs on: its real edges, and features of its size.

    Args:
        fingerprint: of the graph.
        edge_index: its edges (2, E); not part of the facts that :meth:`facts` gives, the fingerprint stands for them.
    """

    fingerprint: str = ""
    edge_index: Tensor = field(default_factory=lambda: torch.empty(2, 0, dtype=torch.int64), compare=False, repr=False)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "fingerprint": self.fingerprint}

    def example_inputs(self, batch_size: int) -> tuple[Tensor, ...]:
        """Features (N, F), always the same, and the edges.

        Raises:
            CallError: more than one graph is asked for.
        """
        if batch_size != 1:
            raise CallError(f"a graph network runs on one graph at a time, not on {batch_size}")
        generator = torch.Generator().manual_seed(0)
        return torch.rand(self.input_shape, generator=generator), self.edge_index


@dataclass(frozen=True)
class GraphSetDescription(ModelDescription):
    """A network of whole graphs and the graphs that it runs on: their real edges, and features of their size.

    Args:
        fingerprint: of the set of graphs.
        graphs: the number of nodes and the edges (2, E) of some graphs; not part of the facts, the fingerprint stands
            for them.
        edge_channels: D, features of an edge that the network is called with; 0 for none.
    """

    fingerprint: str = ""
    graphs: tuple[tuple[int, Tensor], ...] = field(default=(), compare=False, repr=False)
    edge_channels: int = 0

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "fingerprint": self.fingerprint, "edge_channels": self.edge_channels}

    def example_inputs(self, batch_size: int) -> tuple[Tensor, ...]:
        """Features (N, F), always the same, the edges, the graph of each node, perhaps features of the edges (E, D);
        the graphs are those that there are, again and again where more are asked for."""
        generator = torch.Generator().manual_seed(0)
        chosen = [self.graphs[index % len(self.graphs)] for index in range(batch_size)]
        nodes = torch.tensor([count for count, _ in chosen])
        first = (nodes.cumsum(0) - nodes).tolist()
        edge_index = torch.cat([edges + start for start, (_, edges) in zip(first, chosen, strict=True)], 1)
        x = torch.rand(int(nodes.sum()), *self.input_shape, generator=generator)
        inputs = (x, edge_index, torch.arange(batch_size).repeat_interleave(nodes))
        if not self.edge_channels:
            return inputs
        return (*inputs, torch.rand(edge_index.shape[1], self.edge_channels, generator=generator))
