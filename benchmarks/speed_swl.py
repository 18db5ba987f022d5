"""Speed of the subgraph networks beside the naive formulation and beside PyG's GIN, in alternated rounds.

    python benchmarks/speed_swl.py

A training step (forward and backward) and an evaluation of a batch of random graphs. The naive formulation is that of
the paper's equations with the same weights, as the authors' description has it: distances by Floyd and Warshall's
algorithm, graph by graph; every sum over pairs by gathering the rows of all messages and adding them to their targets.
It makes its tables of indices before the clock starts, ours makes them in every call. The clock is this process's own
time (one thread). Ratios below 1 mean that ours is faster.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rounds import alternate, ratio, spread
from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.nn import global_add_pool

from torchstone import create_model
from torchstone.data.substructures import substructure_graphs
from torchstone.environment import write_result
from torchstone.models.graph.peers import build_peer
from torchstone.models.graph.swl import Pairs

RESULT = Path(__file__).parent / "results" / "speed" / "swl.json"
SETTINGS: dict[str, tuple[str, int, int, bool]] = {  # network, graphs, channels, edge types
    "SWL(VS), 32 graphs, 32 channels": ("swl_vs", 32, 32, False),
    "GNN-SSWL+, 32 graphs, 32 channels": ("gnn_sswl_plus", 32, 32, False),
    "GNN-SSWL+, 16 graphs, 96 channels, edge types": ("gnn_sswl_plus", 16, 96, True),
}
LAYERS = 3


class Naive(nn.Module):
    """The same network and weights, message by message."""

    def __init__(self, ours: Any, batch: Any) -> None:
        super().__init__()
        self.ours, self.batch = ours, batch
        self.pairs = Pairs(batch.edge_index, batch.num_nodes, batch.batch)
        self.ends = {scheme: self.pairs.ends(scheme) for scheme in ("uL", "vL")}

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor, edge_attr: Tensor | None = None) -> Tensor:
        pairs, ours = self.pairs, self.ours
        state = ours.encoder(x, self.distances(edge_index, batch), pairs)
        for layer in ours.layers:
            terms = [self.term(term, state, edge_attr) for term in layer.terms.values()]
            state = layer.norm(sum(terms[1:], terms[0])).relu()
        rows = torch.zeros(pairs.num_nodes, state.shape[1]).index_add(0, pairs.root, state)[pairs.root]
        state = ours.pool.norm(ours.pool.terms["uG"].mlp(rows)).relu()
        total = torch.zeros(pairs.num_graphs, state.shape[1]).index_add(0, pairs.graph, state)
        return ours.head(total / torch.bincount(pairs.graph)[:, None])

    def term(self, term: Any, state: Tensor, edge_attr: Tensor | None) -> Tensor:
        pairs = self.pairs
        if term.scheme == "vv":
            found = state[pairs.row(pairs.node, pairs.node)]
        else:
            target, source = self.ends[term.scheme]
            messages = state[source]
            if edge_attr is not None:
                messages = messages + term.edges(edge_attr)[pairs.edge_of]
            found = torch.zeros_like(state).index_add(0, target, messages.relu())
        return term.mlp((1 + term.epsilon) * state + found)

    def distances(self, edge_index: Tensor, batch: Tensor) -> Tensor:
        found: list[Tensor] = []
        first = 0
        for nodes in torch.bincount(batch).tolist():
            inside = (edge_index[0] >= first) & (edge_index[0] < first + nodes)
            distance = torch.full((nodes, nodes), float("inf")).fill_diagonal_(0)
            distance[tuple(edge_index[:, inside] - first)] = 1
            for k in range(nodes):
                distance = torch.minimum(distance, distance[:, k, None] + distance[k])
            found.append(distance.clamp(max=self.ours.max_distance).long())
            first += nodes
        return torch.cat([one.flatten() for one in found])


class GIN(nn.Module):
    """PyG's network with the sum over all nodes: plain message passing of the same width and depth."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.network = build_peer("gin", in_channels=1, out_channels=1, hidden_channels=channels, num_layers=LAYERS)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor, edge_attr: Tensor | None = None) -> Tensor:
        return global_add_pool(self.network(x, edge_index), batch)


def calls(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Callable[[], object]]:
    def train() -> None:
        model.train()
        model(*inputs).square().mean().backward()

    def evaluate() -> None:
        model.eval()
        with torch.inference_mode():
            model(*inputs)

    return {"train": train, "eval": evaluate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"rounds": given.rounds, "clock": "this process's time", "networks": {}}
    for label, (name, graphs, channels, typed) in SETTINGS.items():
        torch.manual_seed(0)
        batch: Any = Batch.from_data_list(substructure_graphs("triangle", graphs=graphs))
        types = torch.eye(4)[torch.randint(4, (batch.num_edges,))] if typed else None
        inputs = (batch.x, batch.edge_index, batch.batch, types)
        ours = create_model(name, hidden_channels=channels, num_layers=LAYERS, edge_channels=4 if typed else 0)
        naive = Naive(ours, batch)
        with torch.no_grad():
            torch.testing.assert_close(ours.eval()(*inputs), naive.eval()(*inputs), rtol=0, atol=1e-4)
        candidates = {"ours": ours, "naive": naive, "PyG GIN of the same width and depth": GIN(channels)}
        found = results["networks"][label] = {}
        for kind in ("train", "eval"):
            steps = {key: calls(model, inputs)[kind] for key, model in candidates.items()}
            seconds = alternate(steps, given.rounds, clock=time.process_time, short=0.05)
            found[kind] = {
                "milliseconds": {key: spread([1000 * value for value in values]) for key, values in seconds.items()},
                "times_naive": {key: ratio(seconds, key, "naive") for key in seconds},
            }
            print(label, kind, found[kind], flush=True)
    write_result(RESULT, command=f"python benchmarks/speed_swl.py --rounds {given.rounds}", seeds=[0], results=results)


if __name__ == "__main__":
    main()
