"""VQGraph's speed: a training step beside the plain formulation, and the student's inference beside its teacher's.

Training on Cora: ours (codes decoded once, pairs of codes for the edges, sparse features) beside the equations written
down (every node decoded, dense N x N matrices, dense features); same weights, same loss.

Inference: the whole graph at once, and one node - of which the teacher has to see the neighbours of its neighbours, the
student nothing but its features. PyG's GCN and GraphSAGE of the same sizes run in the same rounds.

    python benchmarks/speed_vqgraph.py --data cora.npz
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rounds import alternate, ratio, spread
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.utils import k_hop_subgraph

from torchstone.data.graphs import open_graph
from torchstone.environment import write_result
from torchstone.layers.adjacency import compressed
from torchstone.models.graph.peers import build_peer
from torchstone.models.graph.vqgraph import Tokens, VQGraphGCN, VQGraphMLP, edge_loss_dense

RESULT = Path(__file__).parent / "results" / "speed" / "vqgraph.json"


class Plain(VQGraphGCN):
    """The same teacher with its equations written down."""

    def tokenize(self, x: Tensor, edge_index: Tensor) -> Tokens:
        adjacency = torch.eye(len(x))
        adjacency[edge_index[1], edge_index[0]] = 1
        scale = adjacency.sum(1).rsqrt()
        mix = scale[:, None] * adjacency * scale
        hidden = F.dropout((mix @ x @ self.conv1.weight + self.conv1.bias).relu(), self.dropout, self.training)
        quantized = self.quantizer(hidden)
        edges, nodes = self.edge_decoder(quantized.vectors), self.node_decoder(quantized.vectors)
        readout = (mix @ edges @ self.conv2.weight + self.conv2.bias).relu()
        return Tokens(hidden, quantized, edges, nodes, readout, self.classifier(readout))

    def tokenizer_loss(self, tokens: Tokens, edge_index: Tensor) -> Tensor:
        edges = edge_loss_dense(tokens.edges, edge_index)
        return self.node_loss(tokens) + self.edge_weight * edges + tokens.quantized.commitment


def inference(model: nn.Module, *inputs: Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.inference_mode():
            return model(*inputs)

    return call


def measured(calls: dict[str, Callable[[], object]], rounds: int, base: str) -> dict[str, object]:
    seconds = alternate(calls, rounds, clock=time.process_time)
    found = {
        "milliseconds": {name: spread([1000 * value for value in values]) for name, values in seconds.items()},
        f"times {base}": {name: ratio(seconds, name, base) for name in seconds},
    }
    print(found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="cora.npz")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    graph = open_graph(given.data, split="per-class-30", normalize=False).graph
    x, edge_index, rows = graph.x, graph.edge_index, compressed(graph.x)
    torch.manual_seed(0)
    sizes = {"in_channels": graph.num_features, "out_channels": int(graph.y.max()) + 1}
    teacher = {**sizes, "code_channels": 256, "num_codes": 512, "dropout": 0.0}
    ours, plain = VQGraphGCN(**teacher), Plain(**teacher)
    plain.load_state_dict(ours.state_dict())
    losses = {}
    for name, model, features in (("ours", ours, rows), ("plain", plain, x)):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        losses[name] = model.train().training_loss(features, edge_index, graph.y, graph.train_mask)
        model.load_state_dict(before)
    torch.testing.assert_close(losses["ours"], losses["plain"], rtol=1e-4, atol=1e-4)

    def step(model: VQGraphGCN, features: Tensor) -> Callable[[], None]:
        def call() -> None:
            model.train().zero_grad()
            model.training_loss(features, edge_index, graph.y, graph.train_mask).backward()

        return call

    training = {"ours": step(ours, rows), "plain formulation": step(plain, x)}
    found: dict[str, object] = {"training step": measured(training, given.rounds, "plain formulation")}

    student = VQGraphMLP(**sizes, code_channels=256).eval()
    peers = {f"PyG {name.upper()}": build_peer(name, **sizes).eval() for name in ("gcn", "sage")}
    ours.eval()
    plain.eval()
    whole = {"student": inference(student, rows), "teacher": inference(ours, rows, edge_index)}
    whole |= {"student, dense features": inference(student, x), "teacher, plain": inference(plain, x, edge_index)}
    whole |= {name: inference(model, x, edge_index) for name, model in peers.items()}
    found["whole graph"] = measured(whole, given.rounds, "student")

    node = int(torch.bincount(edge_index[1]).sort().indices[len(x) // 2])  # of median degree

    def around(model: nn.Module) -> Callable[[], object]:
        def call() -> object:
            nodes, edges, place, _ = k_hop_subgraph(node, 2, edge_index, relabel_nodes=True, num_nodes=len(x))
            with torch.inference_mode():
                return model(x[nodes], edges)[place]

        return call

    one = {"student": inference(student, x[node : node + 1]), "teacher": around(ours)}
    one |= {name: around(model) for name, model in peers.items()}
    found["one node"] = measured(one, given.rounds, "student")
    write_result(
        RESULT,
        command="python benchmarks/speed_vqgraph.py --data cora.npz",
        seeds=[0],
        results={"rounds": given.rounds, "graph": "Cora, largest component", "codes": "512 of 256 numbers", **found},
    )


if __name__ == "__main__":
    main()
