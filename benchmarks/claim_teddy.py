"""TEDDY's claim: trimmed by degree, a graph keeps more of a network's accuracy than trimmed at random.

Trains the paper's five networks, narrower than there, on the public splits of Cora and CiteSeer. First the dense
network; all others are distilled from it and differ in one thing each.

Edges, all weights kept: those of the lowest scores trimmed (TEDDY), random ones, those of the highest scores; at two
sparsities TEDDY also without distillation. Weights, on the whole graph: projected gradient descent on the l0 ball
(TEDDY); the largest of the dense network, as they are and trained on with the others held at zero; random ones, trained
from the start with the others held at zero.

Adam with the paper's weight decay of 5e-4, for fewer epochs at a higher rate; the test accuracy is that of the epoch of
best validation accuracy, the latest of equals, as in the paper.

The claim has four parts: TEDDY over random trimming, random trimming over the reverse, distillation over none, and
projection over the dense network's largest weights trained on. A part holds when its mean difference is above two
standard errors. The unit is a network on a graph: seeds and sparsities are averaged first, because runs that share
them are not independent. The claim holds when all four do, partly when some do.

    python benchmarks/claim_teddy.py --data FOLDER

FOLDER holds ``cora/cora.npz`` and ``citeseer/citeseer.npz``. Killed, the same command goes on where it was; the result
is written after every network of a graph and seed. Without ``--data`` the figures are drawn anew from the result file.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import Point, draw
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.data.graphs import open_graph
from torchstone.environment import write_result
from torchstone.files import read_json, write_json
from torchstone.layers.adjacency import compressed
from torchstone.models.registry import create_model
from torchstone.transforms import teddy

RESULT = Path(__file__).parent / "results" / "claims" / "teddy.json"
FIGURES = Path(__file__).parents[1] / "docs" / "images"
GRAPHS = ("cora", "citeseer")
NETWORKS: dict[str, dict[str, Any]] = {
    "teddy_gcn": {"hidden_channels": 32},
    "teddy_gin": {"hidden_channels": 32},
    "teddy_gat": {"hidden_channels": 8, "heads": 4},
    "teddy_sage": {"hidden_channels": 32},
    "teddy_graph_transformer": {"hidden_channels": 8, "heads": 4},
}
EDGES = (0.15, 0.3, 0.45, 0.6)
"""Shares of the edges that are trimmed; the paper's go to 0.64."""
PLAIN = (0.3, 0.6)
"""Those at which TEDDY is also trained without distillation."""
WEIGHTS = (0.8, 0.9, 0.98)
"""Shares of the weights that are zero; the paper's go to 0.88."""
CRITERIA = {"degree": "TEDDY", "random": "random edges", "reverse": "reverse scores"}
SHORT = {"largest, as they are": "magnitude", "largest, trained on": "magnitude, tuned"}
"""What the figure calls the dense network's largest weights."""
DISTILL = 1.0
RATE = 0.03  # three times the paper's, for a fifth of its epochs


class Graph:
    """A graph with compressed features, and how a network is trained on it."""

    def __init__(self, path: Path, epochs: int) -> None:
        opened = open_graph(str(path), split="public")
        self.data, self.classes, self.epochs = opened.graph, opened.num_classes, epochs
        self.x = compressed(self.data.x)
        labels = self.data.y.masked_fill(~self.data.train_mask, -1)
        self.batches = [((self.data.x, self.data.edge_index), labels)]

    def accuracy(self, model: nn.Module, mask: Tensor) -> float:
        """Per cent of the nodes in a mask that are answered rightly."""
        with torch.no_grad():
            answers = model.eval()(self.x, self.data.edge_index).argmax(1)
        return round(100 * (answers == self.data.y)[mask].double().mean().item(), 2)

    def train(self, model: nn.Module, loss: Callable[[nn.Module, Any], Tensor] | None = None) -> nn.Module:
        """The network at the epoch of best validation accuracy, the latest of equals."""
        data = self.data
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE, weight_decay=5e-4)
        best, kept = -1.0, copy.deepcopy(model.state_dict())
        for _ in range(self.epochs):
            model.train()
            if loss is None:
                logits = model(self.x, data.edge_index)
                value = F.cross_entropy(logits[data.train_mask], data.y[data.train_mask])
            else:
                value = loss(model, None)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            score = self.accuracy(model, data.val_mask)
            if score >= best:
                best, kept = score, copy.deepcopy(model.state_dict())
        model.load_state_dict(kept)
        return model


def one(graph: Graph, network: str, seed: int) -> dict[str, Any]:
    """Test accuracies in per cent of one network on one graph from one seed."""
    torch.manual_seed(seed)
    data = graph.data
    sizes = {"in_channels": data.num_features, "out_channels": graph.classes}
    fresh = create_model(network, **sizes, **NETWORKS[network])
    torch.manual_seed(seed)
    dense = graph.train(copy.deepcopy(fresh))
    with torch.no_grad():
        answers = dense.eval()(graph.x, data.edge_index)

    def test(model: nn.Module) -> float:
        return graph.accuracy(model, data.test_mask)

    def transformed(**options: Any) -> float:
        torch.manual_seed(seed)
        loops = network == "teddy_gat"
        result = teddy.transform(
            fresh, graph.batches[0][0], data=graph.batches, finetune=graph.train, teacher=dense, self_loops=loops,
            seed=seed, **options,
        )  # fmt: skip
        return test(result.model)

    def held(model: nn.Module, masks: Iterable[Tensor]) -> float:
        """Trained as the others are, the weights outside of the masks held at zero."""
        torch.manual_seed(seed)
        for parameter, mask in zip(model.parameters(), masks, strict=True):
            parameter.data.mul_(mask)
            parameter.register_hook(mask.mul)

        def loss(net: nn.Module, _: Any) -> Tensor:
            logits = net(graph.x, data.edge_index)
            return teddy.sparse_training_loss(logits, data.y, data.train_mask, answers, DISTILL).total

        return test(graph.train(model, loss))

    found: dict[str, Any] = {"dense": test(dense), "edges": {}, "plain": {}, "weights": {}}
    for sparsity in EDGES:
        options = {"graph_sparsity": sparsity, "weight_sparsity": 0.0}
        found["edges"][str(sparsity)] = {
            words: transformed(distill=DISTILL, criterion=criterion, **options) for criterion, words in CRITERIA.items()
        }
        if sparsity in PLAIN:
            found["plain"][str(sparsity)] = transformed(distill=0.0, **options)
    for sparsity in WEIGHTS:
        largest = copy.deepcopy(dense)
        teddy.project_l0(largest.parameters(), sparsity)
        drawn = [torch.rand_like(parameter) for parameter in fresh.parameters()]
        teddy.project_l0(drawn, sparsity)
        found["weights"][str(sparsity)] = {
            "TEDDY": transformed(graph_sparsity=0.0, weight_sparsity=sparsity, distill=DISTILL),
            "largest, as they are": test(largest),
            "largest, trained on": held(largest, [(p != 0).float() for p in largest.parameters()]),
            "random weights": held(copy.deepcopy(fresh), [(p != 0).float() for p in drawn]),
        }
    return found


# --- the verdict


def summary(values: Iterable[float]) -> dict[str, float]:
    """Mean and spread over seeds."""
    values = list(values)
    spread = {"std": round(float(np.std(values, ddof=1)), 2)} if len(values) > 1 else {}
    return {"mean": round(float(np.mean(values)), 2), **spread}


def difference(cells: list[float]) -> dict[str, Any]:
    """The mean of the differences of all networks and graphs in points, its standard error, and whether it is sure."""
    mean = float(np.mean(cells))
    found = {"points": round(mean, 2), "above zero": sum(cell > 0 for cell in cells), "cells": len(cells)}
    if len(cells) < 2:
        return {**found, "above two standard errors": False}
    error = float(np.std(cells, ddof=1) / np.sqrt(len(cells)))
    return {**found, "standard_error": round(error, 2), "above two standard errors": mean > 2 * error}


def results(runs: dict[tuple[str, str], list[dict[str, Any]]], epochs: int) -> dict[str, Any]:
    """Means and spreads over seeds, the parts of the claim, and the verdict; runs by graph and network, one a seed."""

    def compare(kind: str, one: str, other: str, sparsities: Iterable[float]) -> dict[str, Any]:
        return difference(
            [
                float(np.mean([run[kind][str(s)][one] - run[kind][str(s)][other] for run in own for s in sparsities]))
                for own in runs.values()
            ]
        )

    def plain(own: list[dict[str, Any]]) -> float:
        return float(np.mean([run["edges"][s]["TEDDY"] - score for run in own for s, score in run["plain"].items()]))

    def lost(own: list[dict[str, Any]], kind: str, sparsity: float) -> float:
        return float(np.mean([run[kind][str(sparsity)]["TEDDY"] - run["dense"] for run in own]))

    def rows(own: list[dict[str, Any]], kind: str) -> dict[str, Any]:
        return {s: {name: summary(run[kind][s][name] for run in own) for name in own[0][kind][s]} for s in own[0][kind]}

    parts = {
        "TEDDY over random edges": compare("edges", "TEDDY", "random edges", EDGES),
        "random edges over reverse scores": compare("edges", "random edges", "reverse scores", EDGES),
        "distilled over not distilled, TEDDY": difference([plain(own) for own in runs.values()]),
        "projected weights over the largest, trained on": compare("weights", "TEDDY", "largest, trained on", WEIGHTS),
    }
    sure = [part["above two standard errors"] for part in parts.values()]
    return {
        "networks": NETWORKS,
        "epochs": epochs,
        "learning_rate": RATE,
        "distill": DISTILL,
        "accuracy": {
            f"{graph}, {network}": {
                "seeds": len(own),
                "dense": summary(run["dense"] for run in own),
                "graph_sparsity": rows(own, "edges"),
                "not distilled": {s: summary(run["plain"][s] for run in own) for s in own[0]["plain"]},
                "weight_sparsity": rows(own, "weights"),
            }
            for (graph, network), own in runs.items()
        },
        "parts": parts,
        "by sparsity": {
            f"{one} over {other}, {share:g} gone": compare(kind, one, other, [share])
            for kind, one, other, shares in (
                ("edges", "TEDDY", "random edges", EDGES),
                ("edges", "random edges", "reverse scores", EDGES),
                ("weights", "TEDDY", "largest, trained on", WEIGHTS),
            )
            for share in shares
        },
        "beside": {
            "projected weights over the largest, as they are": compare(
                "weights", "TEDDY", "largest, as they are", WEIGHTS
            ),
            "projected weights over random weights": compare("weights", "TEDDY", "random weights", WEIGHTS),
            **{
                f"TEDDY over the dense network, {share:g} of the {words} gone": difference(
                    [lost(own, kind, share) for own in runs.values()]
                )
                for kind, words, shares in (("edges", "edges", EDGES), ("weights", "weights", WEIGHTS))
                for share in shares
            },
        },
        "holds": "yes" if all(sure) else "partly" if any(sure) else "no",
    }


def draw_figures(found: dict[str, Any]) -> None:
    """What sparsity does to the accuracy of the dense network: mean and standard error over networks and graphs."""
    rows = list(found["accuracy"].values())

    def point(kind: str, sparsity: float, name: str) -> Point:
        lost = [row[kind][str(sparsity)][name]["mean"] - row["dense"]["mean"] for row in rows]
        error = float(np.std(lost, ddof=1) / np.sqrt(len(lost))) if len(lost) > 1 else 0.0
        return Point(round(100 * sparsity), float(np.mean(lost)), error)

    start = Point(0, 0.0, 0.0)  # the dense network
    for kind, sparsities, names, file, title, x, bottom in (
        ("graph_sparsity", EDGES, list(CRITERIA.values()), "teddy_sparsity.svg",
         "Accuracy on trimmed graphs, less that of the dense network", "edges trimmed, %", -8.0),
        ("weight_sparsity", WEIGHTS, list(next(iter(rows[0]["weight_sparsity"].values()))), "teddy_weights.svg",
         "Accuracy with few weights, less that of the dense network", "weights zero, %", -48.0),
    ):  # fmt: skip
        first = [start] if kind == "graph_sparsity" else []
        lines = {SHORT.get(name, name): [*first, *(point(kind, s, name) for s in sparsities)] for name in names}
        draw(
            FIGURES / file, lines, title=title, x=x, y="test accuracy, points", top=2.0,
            bottom=bottom, scale=float,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of cora and citeseer; without it only the figures are drawn")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--runs", type=Path, default=Path("runs/claim_teddy"))
    parser.add_argument("--first", type=int, help="only that many of all networks, graphs and seeds, in their order")
    given = parser.parse_args()
    if given.seeds < 1 or (given.first is not None and given.first < 1):
        parser.error("--seeds and --first must be at least 1")
    if given.data is not None:
        torch.set_num_threads(1)
        graphs = {name: Graph(given.data / name / f"{name}.npz", given.epochs) for name in GRAPHS}
        given.runs.mkdir(parents=True, exist_ok=True)
        planned = [(seed, name, network) for seed in range(given.seeds) for name in GRAPHS for network in NETWORKS]
        runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for count, (seed, name, network) in enumerate(planned[: given.first], start=1):
            kept = given.runs / f"{name}-{network}-{seed}-{given.epochs}.json"
            if not kept.is_file():
                write_json(kept, one(graphs[name], network, seed))
            runs.setdefault((name, network), []).append(read_json(kept))
            print(kept.stem, runs[name, network][-1], flush=True)
            command = f"python benchmarks/claim_teddy.py --data FOLDER --seeds {given.seeds} --epochs {given.epochs}"
            command += f" --first {count}" if count < len(planned) else ""
            write_result(RESULT, command=command, seeds=range(seed + 1), results=results(runs, given.epochs))
    draw_figures(read_json(RESULT)["results"])


if __name__ == "__main__":
    main()
