"""DAGNN's speed beside the plain formulation of its equations and beside PyG's APPNP, in alternated rounds.

One training step (forward and backward) and one evaluation on Cora: ours with dense and with compressed features; the
equations written down with a message per edge and one product per hop; and PyG's APPNP of the same sizes, whose
propagation is the same but for the gate.

    python benchmarks/speed_dagnn.py --data cora.npz
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from rounds import alternate, ratio, spread
from torch import Tensor, nn

from torchstone.data.graphs import open_graph
from torchstone.environment import write_result
from torchstone.layers.adjacency import compressed, normalized_adjacency
from torchstone.models.graph.dagnn import DAGNN
from torchstone.models.graph.peers import build_peer

RESULT = Path(__file__).parent / "results" / "speed" / "dagnn.json"


class Plain(DAGNN):
    """The same network with its equations written down: gather, weigh and scatter at every hop, then the gate."""

    def forward(self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
        (source, target), weight = normalized_adjacency(edge_index, len(x), edge_weight)
        hop = self.transform(x)
        hops = [hop]
        for _ in range(self.prop.hops):
            hop = torch.zeros_like(hop).index_add(0, target, weight[:, None] * hop[source])
            hops.append(hop)
        gated = [self.prop.proj(hop).sigmoid() * hop for hop in hops]
        return torch.stack(gated).sum(0).log_softmax(1)


def calls(model: nn.Module, x: Tensor, edge_index: Tensor) -> dict[str, Callable[[], object]]:
    """A training step and an evaluation."""

    def train() -> None:
        model.train()
        model(x, edge_index).square().mean().backward()

    def evaluate() -> None:
        model.eval()
        with torch.inference_mode():
            model(x, edge_index)

    return {"train": train, "eval": evaluate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="cora.npz")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    graph = open_graph(given.data).graph
    torch.manual_seed(0)
    sizes = {"in_channels": graph.num_features, "out_channels": int(graph.y.max()) + 1}
    ours, plain = DAGNN(**sizes, dropout=0.8), Plain(**sizes, dropout=0.8)
    plain.load_state_dict(ours.state_dict())
    with torch.no_grad():
        expected = plain.eval()(graph.x, graph.edge_index)
        torch.testing.assert_close(ours.eval()(graph.x, graph.edge_index), expected, rtol=0, atol=1e-4)
    candidates = {
        "ours": (ours, graph.x),
        "ours, compressed features": (ours, compressed(graph.x)),
        "plain formulation": (plain, graph.x),
        "PyG APPNP": (build_peer("appnp", **sizes, dropout=0.8), graph.x),
    }
    found = {}
    for kind in ("train", "eval"):
        seconds = alternate(
            {name: calls(model, x, graph.edge_index)[kind] for name, (model, x) in candidates.items()}, given.rounds
        )
        found[kind] = {
            "milliseconds": {name: spread([1000 * value for value in values]) for name, values in seconds.items()},
            "times_the_plain_formulation": {name: ratio(seconds, name, "plain formulation") for name in seconds},
            "times_appnp": {name: ratio(seconds, name, "PyG APPNP") for name in seconds},
        }
        print(kind, found[kind], flush=True)
    write_result(
        RESULT,
        command="python benchmarks/speed_dagnn.py --data cora.npz",
        seeds=[0],
        results={"rounds": given.rounds, "graph": "Cora", **found},
    )


if __name__ == "__main__":
    main()
