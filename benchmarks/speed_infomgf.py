"""InfoMGF's speed beside the plain formulation of its equations, its encoder beside PyG's GCN; alternated rounds.

A training step (loss of InfoMGF-LA and its gradients), a step of the augmenter and the fused graph with its embeddings,
on a generated graph of two views. The plain formulation is the dossier's: dense matrices of all pairs, masked, added to
their transposes, normalised and multiplied. Both give the same loss, which is checked first. Times are those of this
process's own work, on one thread.

    python benchmarks/speed_infomgf.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rounds import alternate, ratio, spread
from torch import Tensor
from torch.nn import functional as F

from torchstone.environment import write_result
from torchstone.methods.infomgf import GraphEncoder, InfoMGF
from torchstone.models.graph.peers import build_peer

RESULT = Path(__file__).parent / "results" / "speed" / "infomgf.json"
FEATURES, EDGES, NEIGHBOURS = 256, 12, 15


class Dense:
    """A graph as its whole matrix."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def propagate(self, x: Tensor) -> Tensor:
        return self.matrix @ x


def normalised(matrix: Tensor) -> Tensor:
    scale = 1 / (matrix.sum(1).sqrt() + 1e-10)
    return scale[:, None] * matrix * scale


class Plain(InfoMGF):
    """The same method with its equations written down for dense matrices."""

    def _learned(self, learner: Any, features: Tensor) -> Any:
        h = F.normalize(learner(features))
        similarities = h @ h.t()
        top = similarities.topk(learner.neighbours + 1).indices
        kept = similarities * torch.zeros_like(similarities).scatter(1, top, 1.0)
        matrix = normalised(((kept + kept.t()) / 2).relu())
        return Dense(F.dropout(matrix, learner.edge_dropout, self.training))

    def refined_graphs(self) -> Any:
        features = zip(self.learners, self.view_features(), strict=True)
        return {name: self._learned(*pair) for name, pair in zip(self.views, features, strict=True)}

    def fused_graph(self) -> Any:
        return self._learned(self.fused_learner, torch.cat([*self.view_features(), self.x], 1))

    def _generated(self, parameters: dict[str, Tensor]) -> Any:
        assert self.augmenter is not None
        e = (self.x @ parameters["embedding.weight"].t() + parameters["embedding.bias"]).relu()
        weight, bias = parameters["edge.weight"], parameters["edge.bias"]
        found = {}
        for name, view in self.given_graphs().items():
            source, target = view.edge_index[:, ~view.structure.loops]
            forth, back = torch.cat([e[source], e[target]], 1), torch.cat([e[target], e[source]], 1)
            logits = ((forth @ weight.t() + bias + back @ weight.t() + bias) / 2)[:, 0]
            matrix = torch.eye(len(e)).index_put((target, source), self.augmenter.gate(logits))
            found[name] = Dense(normalised(matrix))
        return found

    def _bound(self, a: Tensor, b: Tensor) -> Tensor:
        lengths = a.norm(dim=1)[:, None] * b.norm(dim=1) + 1e-10
        m = (a @ b.t() / lengths / self.temperature).exp()
        rows, columns = (one / (one.sum(1, keepdim=True) + 1e-10) for one in (m, m.t()))
        return -(rows.diag().log() + columns.diag().log()) / 2


def generated(nodes: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Sparse binary features and two views of random edges, in both directions."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(nodes, FEATURES, generator=generator) < 0.1).float()
    x += 1e-3 * torch.rand(nodes, FEATURES, generator=generator)  # no two similarities are equal
    drawn = [torch.randint(nodes, (2, nodes * EDGES // 2), generator=generator) for _ in range(2)]
    return x, {name: torch.cat([one, one.flip(0)], 1) for name, one in zip("ab", drawn, strict=True)}


def calls(method: InfoMGF) -> dict[str, Callable[[], object]]:
    def train() -> None:
        method.train().zero_grad(set_to_none=True)
        method.loss(None).backward()

    def augment() -> None:
        parameters = {name: p.detach().requires_grad_() for name, p in method.eval().augmenter.named_parameters()}
        method.augmenter_loss(parameters).backward()

    def fuse() -> None:
        method.eval()
        with torch.no_grad():
            method.embeddings()

    return {"train": train, "augmenter": augment, "fused graph and embeddings": fuse}


def measure(candidates: dict[str, Callable[[], object]], base: str, rounds: int) -> dict[str, object]:
    seconds = alternate(candidates, rounds, clock=time.process_time)
    return {
        "milliseconds": {name: spread([1000 * value for value in values]) for name, values in seconds.items()},
        f"times_{base}": {name: ratio(seconds, name, base) for name in seconds},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nodes", type=int, default=1000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    x, views = generated(given.nodes)
    methods = {}
    for name, kind in (("ours", InfoMGF), ("plain", Plain)):
        torch.manual_seed(0)
        methods[name] = kind(GraphEncoder(FEATURES, 64), neighbours=NEIGHBOURS).eval()
        methods[name].observe(x, views)
    with torch.no_grad():
        for loss in ("loss", "augmenter_loss"):
            found = [getattr(method, loss)(None) for method in methods.values()]
            torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    found = {}
    for kind in calls(methods["ours"]):
        found[kind] = measure({name: calls(method)[kind] for name, method in methods.items()}, "plain", given.rounds)
        print(kind, found[kind], flush=True)
    edge_index = views["a"]
    encoders = {
        "ours": methods["ours"].network.eval(),
        "PyG GCN (peer)": build_peer("gcn", in_channels=FEATURES, out_channels=64, hidden_channels=128).eval(),
    }

    def forward(network: torch.nn.Module) -> Callable[[], object]:
        return lambda: network(x, edge_index)

    with torch.no_grad():
        candidates = {name: forward(network) for name, network in encoders.items()}
        found["encoder alone"] = measure(candidates, "PyG GCN (peer)", given.rounds)
    write_result(
        RESULT,
        command=f"python benchmarks/speed_infomgf.py --nodes {given.nodes}",
        seeds=[0],
        results={"rounds": given.rounds, "clock": "process time", "nodes": given.nodes, "features": FEATURES, **found},
    )


if __name__ == "__main__":
    main()
