"""Speed of Neural Sheaf Diffusion beside the authors' networks and beside PyG's GCN, in alternated rounds.

    git clone https://github.com/twitter-research/neural-sheaf-diffusion OFFICIAL
    python benchmarks/speed_neural_sheaf.py --official OFFICIAL --data FOLDER

One training step (forward and backward) and one evaluation; FOLDER holds ``texas/texas.npz``, ``cornell/cornell.npz``
and ``cora/cora.npz``. Ours and the authors' networks have the same weights and give the same answers. The packages
torch_sparse, torch_scatter and torch_householder, which the authors' code imports, are stood in for by what they
compute: a gather and a scatter per stored element, a scatter, LAPACK's product of reflections. The tables of indices
that the authors' code builds for a graph are built before the clock starts; ours pairs the edges in every call. The
clock is this process's own time (one thread). Ratios below 1 mean that ours is faster.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rounds import alternate, ratio, spread
from torch import Tensor, nn

from torchstone import create_model
from torchstone.data.graphs import open_graph
from torchstone.environment import write_result
from torchstone.layers.adjacency import compressed
from torchstone.models.graph.peers import build_peer

RESULT = Path(__file__).parent / "results" / "speed" / "neural_sheaf.json"
SETTINGS: dict[str, tuple[str, str, dict[str, Any]]] = {  # graph, our network, its arguments
    "Texas, bundle (the authors' script)": ("texas", "neural_sheaf_texas", {}),
    "Cornell, diagonal (the authors' script)": ("cornell", "neural_sheaf_cornell", {}),
    "Texas, general maps": ("texas", "neural_sheaf_general", {"num_layers": 2, "hidden_channels": 20}),
    "Cora, bundle": ("cora", "neural_sheaf", {"num_layers": 2, "hidden_channels": 20}),
}
CLASSES = {"diagonal": "DiscreteDiagSheafDiffusion", "bundle": "DiscreteBundleSheafDiffusion"}
CLASSES["general"] = "DiscreteGeneralSheafDiffusion"


def stand_in(official: Path) -> None:
    """Make the authors' modules importable without the packages that need a compiler."""

    def scatter_add(source: Tensor, index: Tensor, dim: int, dim_size: int) -> Tensor:
        index = index.view(-1, *[1] * (source.ndim - 1)).expand_as(source)
        return source.new_zeros(dim_size, *source.shape[1:]).scatter_add(dim, index, source)

    def spmm(index: Tensor, value: Tensor, m: int, n: int, matrix: Tensor) -> Tensor:
        return scatter_add(matrix.index_select(0, index[1]) * value[:, None], index[0], 0, m)

    def orgqr(normals: Tensor) -> Tensor:
        return torch.linalg.householder_product(normals, 2 / normals.square().sum(-2))

    for name, functions in {
        "torch_scatter": {"scatter_add": scatter_add},
        "torch_sparse": {"spmm": spmm},
        "torch_householder": {"torch_householder_orgqr": orgqr},
    }.items():
        module = ModuleType(name)
        for function, value in functions.items():
            setattr(module, function, value)
        sys.modules[name] = module
    sys.path.insert(0, str(official))


class Official(nn.Module):
    """The authors' network for one graph, with our network's weights."""

    def __init__(self, ours: Any, edge_index: Tensor, nodes: int) -> None:
        super().__init__()
        from models import disc_models  # type: ignore[import-not-found]

        args = {"d": ours.stalk_dim, "layers": ours.num_layers, "normalised": True, "deg_normalised": False}
        args |= {"linear": False, "hidden_channels": ours.hidden_channels, "input_dropout": ours.input_dropout}
        args |= {"dropout": ours.dropout, "left_weights": True, "right_weights": True, "use_act": True, "max_t": 1.0}
        args |= {"sparse_learner": ours.pooled_maps, "input_dim": ours.in_channels, "output_dim": ours.out_channels}
        args |= {"sheaf_act": "tanh", "second_linear": False, "orth": "householder", "edge_weights": True}
        args |= {"add_lp": 1.0 in ours.fixed, "add_hp": -1.0 in ours.fixed, "device": "cpu", "graph_size": nodes}
        self.network = getattr(disc_models, CLASSES[ours.maps])(edge_index, args)
        self.network.load_state_dict(ours.state_dict())

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.network(x)


def calls(model: nn.Module, x: Tensor, edge_index: Tensor) -> dict[str, Callable[[], object]]:
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
    parser.add_argument("--official", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    stand_in(given.official)
    results: dict[str, Any] = {"rounds": given.rounds, "clock": "this process's time", "networks": {}}
    for label, (name, network, options) in SETTINGS.items():
        torch.manual_seed(0)
        graph = open_graph(str(given.data / name / f"{name}.npz"), split="fixed:0").graph
        edges = graph.edge_index[:, graph.edge_index[0] != graph.edge_index[1]]
        sizes = {"in_channels": graph.num_features, "out_channels": int(graph.y.max()) + 1}
        ours: Any = create_model(network, **sizes, **options)
        official = Official(ours, edges, graph.num_nodes)
        with torch.no_grad():
            torch.testing.assert_close(ours.eval()(graph.x, edges), official.eval()(graph.x, edges), rtol=0, atol=1e-4)
        width = {"hidden_channels": ours.total_dim * ours.hidden_channels, "num_layers": ours.num_layers}
        candidates = {
            "ours": (ours, graph.x),
            "ours, compressed features": (ours, compressed(graph.x)),
            "official": (official, graph.x),
            "PyG GCN of the same width and depth": (build_peer("gcn", **sizes, **width), graph.x),
        }
        found = results["networks"][label] = {}
        for kind in ("train", "eval"):
            steps = {key: calls(model, x, edges)[kind] for key, (model, x) in candidates.items()}
            seconds = alternate(steps, given.rounds, clock=time.process_time, short=0.05)
            found[kind] = {
                "milliseconds": {key: spread([1000 * value for value in values]) for key, values in seconds.items()},
                "times_official": {key: ratio(seconds, key, "official") for key in seconds},
            }
            print(label, kind, found[kind]["times_official"], flush=True)
    write_result(
        RESULT,
        command="python benchmarks/speed_neural_sheaf.py --official OFFICIAL --data FOLDER",
        seeds=[0],
        results=results,
    )


if __name__ == "__main__":
    main()
