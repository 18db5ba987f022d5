"""TEDDY's speed on Cora beside the plain formulations of its equations and beside PyG, in alternated rounds.

Trimming: scores and the edges that are kept, beside the same equations with the dense matrix of all pairs of nodes.
Projection: of a GCN of 512 channels on the l0 ball, beside sorting all magnitudes. Network: a training step and an
evaluation of that GCN, whole and transformed (four tenths of the edges trimmed, half of the weights zero), beside the
same layers with a message per edge and beside PyG's GCN. Time is the processor's, so that other work does not count.

    python benchmarks/speed_teddy.py --data cora.npz
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rounds import alternate, ratio, spread
from torch import Tensor, nn

from torchstone.data.graphs import open_graph
from torchstone.environment import write_result
from torchstone.layers.adjacency import compressed, normalized_adjacency
from torchstone.models.graph.peers import build_peer
from torchstone.models.graph.teddy_networks import GCN
from torchstone.transforms import teddy

RESULT = Path(__file__).parent / "results" / "speed" / "teddy.json"
SPARSITY = 0.4


def dense_trimming(edge_index: Tensor, nodes: int) -> Tensor:
    """The equations with matrices (N, N)."""
    adjacency = torch.zeros(nodes, nodes)
    adjacency[edge_index[1], edge_index[0]] = 1
    degree = adjacency.sum(1)
    near = (adjacency @ degree.clamp(min=1).rsqrt()) / degree.clamp(min=1)
    node = near / degree.clamp(min=1)
    score = (node[:, None] * node[None])[edge_index[1], edge_index[0]]
    return score.argsort()[int(len(score) * SPARSITY) :].sort().values


def sorting_projection(parameters: list[Tensor], sparsity: float) -> None:
    """Everything is sorted to find the threshold."""
    with torch.no_grad():
        magnitude = torch.cat([p.abs().flatten() for p in parameters])
        threshold = magnitude.sort().values[math.ceil(len(magnitude) * sparsity) - 1]
        for p in parameters:
            p.mul_(p.abs() > threshold)


class PlainGCN(nn.Module):
    """The same layers with dense features and a message per edge."""

    def __init__(self, like: GCN) -> None:
        super().__init__()
        self.weights = nn.ParameterList([conv.lin.weight.detach().clone() for conv in like.convs])

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        first, second = self.weights
        (source, target), weight = normalized_adjacency(edge_index, len(x))
        for index, matrix in enumerate((first, second)):
            x = x @ matrix.T
            x = torch.zeros_like(x).index_add(0, target, weight[:, None] * x[source])
            x = nn.functional.dropout(x.relu(), 0.5, self.training) if index == 0 else x
        return x


def steps(model: nn.Module, x: Tensor, edge_index: Tensor) -> dict[str, Callable[[], object]]:
    """A training step without optimizer, and an evaluation."""

    def train() -> None:
        model.train().zero_grad(set_to_none=True)
        model(x, edge_index).square().mean().backward()

    def evaluate() -> None:
        model.eval()
        with torch.no_grad():
            model(x, edge_index)

    return {"train": train, "eval": evaluate}


def measure(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, Any]:
    """Milliseconds, and how long each call takes as a multiple of the last."""
    seconds = alternate(calls, rounds, clock=time.process_time, short=0.05)
    last = list(calls)[-1]
    found = {
        "milliseconds": {name: spread([1000 * value for value in values]) for name, values in seconds.items()},
        f"as a multiple of {last}": {name: ratio(seconds, name, last) for name in seconds if name != last},
    }
    print(found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="cora.npz")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    graph = open_graph(given.data).graph
    x, edge_index, nodes = graph.x, graph.edge_index, graph.num_nodes
    sizes = {"in_channels": graph.num_features, "out_channels": int(graph.y.max()) + 1}
    torch.manual_seed(0)
    whole = GCN(**sizes)
    sparse = teddy.transform(whole, (x, edge_index), graph_sparsity=SPARSITY, weight_sparsity=0.5).model
    plain = PlainGCN(whole)
    with torch.no_grad():
        expected = plain.eval()(x, edge_index)
        torch.testing.assert_close(whole.eval()(compressed(x), edge_index), expected, rtol=0, atol=1e-4)
    weights = [parameter.detach().clone() for parameter in whole.parameters()]
    networks = {
        "ours, transformed, compressed features": (sparse, compressed(x)),
        "ours, compressed features": (whole, compressed(x)),
        "ours": (whole, x),
        "PyG's GCN": (build_peer("gcn", **sizes, hidden_channels=512), x),
        "the plain formulation": (plain, x),
    }
    results: dict[str, Any] = {"rounds": given.rounds, "graph": "Cora", "clock": "process_time"}
    results["trimming"] = measure(
        {
            "ours": lambda: teddy.kept_edges(edge_index, nodes, SPARSITY),
            "the dense matrix": lambda: dense_trimming(edge_index, nodes),
        },
        given.rounds,
    )
    results["projection"] = measure(
        {
            "ours": lambda: teddy.project_l0(copy.deepcopy(weights), 0.5),
            "sorting": lambda: sorting_projection(copy.deepcopy(weights), 0.5),
        },
        given.rounds,
    )
    for kind in ("train", "eval"):
        results[kind] = measure(
            {name: steps(model, features, edge_index)[kind] for name, (model, features) in networks.items()},
            given.rounds,
        )
    command = "python benchmarks/speed_teddy.py --data cora.npz"
    write_result(RESULT, command=command, seeds=[0], results=results)


if __name__ == "__main__":
    main()
