"""A method on one graph: a network's scores are to agree along edges and to stay apart. It needs no labels."""

import torch
from torch import Tensor

from torchstone.methods.method import Method

PROTOCOL = {"optimizer": "adam", "lr": 1e-2, "weight_decay": 0.0, "schedule": "constant"}


class Smoothing(Method):
    """The network's log-probabilities against the mean probabilities of a node's neighbours, with noisy features.

    Args:
        network: takes ``(x, edge_index)``.
        noise: what share of the features is dropped in training.
    """

    def __init__(self, network, *, noise=0.2):
        super().__init__(network)
        self.noise = noise
        self.temperature = torch.nn.Parameter(torch.ones(()))

    def prepare(self, data):
        graph = data.graph
        adjacency = torch.zeros(graph.num_nodes, graph.num_nodes)
        adjacency[graph.edge_index[1], graph.edge_index[0]] = 1
        for name, tensor in (("x", graph.x), ("edge_index", graph.edge_index), ("adjacency", adjacency)):
            self.register_buffer(name, tensor, persistent=False)

    def inputs(self, batch: Tensor) -> Tensor:
        return self.x[batch]

    def evaluation_loss(self, batch: Tensor) -> Tensor:
        x = torch.nn.functional.dropout(self.x, self.noise, self.training)
        scores = self.network(x, self.edge_index).float() * self.temperature
        around = self.adjacency @ scores.softmax(1) / self.adjacency.sum(1, keepdim=True).clamp(min=1)
        apart = scores.softmax(1).mean(0).square().sum()
        return (apart - (around * scores.log_softmax(1)).sum(1))[batch]


def build(model, **args):
    return Smoothing(model, **args)
