"""TEDDY's claim: trimmed by degree, a graph keeps more of a network's accuracy than trimmed at random.

Trains the paper's five networks, narrower than there, on the public splits of Cora and CiteSeer: the dense network
first, then sparse ones with the edges of the lowest scores trimmed, random edges, and the edges of the highest scores,
all distilled from the dense one. For GCN and GIN also TEDDY without distillation, and the weights alone: projected
gradient descent on the l0 ball beside the dense network's weights of largest magnitude, untrained. Adam with the
paper's weight decay of 5e-4, for fewer epochs at a higher rate; the test accuracy is that of the epoch of best
validation accuracy, the latest of equals, as in the paper.

The claim holds when TEDDY is more accurate than random trimming, and random trimming than the reverse, each by more
than the standard error over all networks, graphs, sparsities and seeds.

    python benchmarks/claim_teddy.py --data FOLDER

FOLDER holds ``cora/cora.npz`` and ``citeseer/citeseer.npz``. Killed, the same command goes on where it was. Without
``--data`` the figure is drawn anew from the result file.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
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
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "teddy_sparsity.svg"
GRAPHS = ("cora", "citeseer")
NETWORKS: dict[str, dict[str, Any]] = {
    "teddy_gcn": {"hidden_channels": 32},
    "teddy_gin": {"hidden_channels": 32},
    "teddy_gat": {"hidden_channels": 8, "heads": 4},
    "teddy_sage": {"hidden_channels": 32},
    "teddy_graph_transformer": {"hidden_channels": 8, "heads": 4},
}
SPARSITIES = (0.3, 0.6)
WEIGHTS = (0.9, 0.98)
ALSO = ("teddy_gcn", "teddy_gin")
"""Networks that are also trained without distillation, and with few weights on the whole graph."""
CRITERIA = {"degree": "TEDDY", "random": "random edges", "reverse": "reverse scores"}
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
        return 100 * (answers == self.data.y)[mask].float().mean().item()

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
    sizes = {"in_channels": graph.data.num_features, "out_channels": graph.classes}
    fresh = create_model(network, **sizes, **NETWORKS[network])
    test = graph.data.test_mask

    def sparse(**options: Any) -> float:
        torch.manual_seed(seed)
        loops = network == "teddy_gat"
        result = teddy.transform(
            fresh, graph.batches[0][0], data=graph.batches, finetune=graph.train, teacher=dense, self_loops=loops,
            seed=seed, **options,
        )  # fmt: skip
        return graph.accuracy(result.model, test)

    torch.manual_seed(seed)
    dense = graph.train(copy.deepcopy(fresh))
    found: dict[str, Any] = {"dense": graph.accuracy(dense, test), "edges": [], "weights": []}
    for sparsity in SPARSITIES:
        for criterion in CRITERIA:
            options = {"graph_sparsity": sparsity, "weight_sparsity": 0.0, "criterion": criterion}
            row = {"sparsity": sparsity, "criterion": criterion}
            row["distilled"] = sparse(distill=DISTILL, **options)
            if criterion == "degree" and network in ALSO:
                row["plain"] = sparse(distill=0.0, **options)
            found["edges"].append(row)
    for sparsity in WEIGHTS if network in ALSO else ():
        cut = copy.deepcopy(dense)
        teddy.project_l0(cut.parameters(), sparsity)
        trained = sparse(graph_sparsity=0.0, weight_sparsity=sparsity, distill=DISTILL)
        found["weights"].append({"sparsity": sparsity, "TEDDY": trained, "magnitude": graph.accuracy(cut, test)})
    return found


# --- the verdict


def difference(pairs: list[tuple[float, float]]) -> dict[str, Any]:
    """The mean of the differences in points, and its standard error."""
    values = np.array([one - other for one, other in pairs])
    return {
        "points": round(float(values.mean()), 2),
        "standard_error": round(float(values.std(ddof=1) / np.sqrt(len(values))), 2),
        "wins": int((values > 0).sum()),
        "pairs": len(values),
    }


def results(runs: dict[str, dict[str, Any]], epochs: int) -> dict[str, Any]:
    """Means and spreads over seeds, differences over all runs, and the verdict."""

    def edge(run: dict[str, Any], sparsity: float, criterion: str, column: str = "distilled") -> float:
        return next(r[column] for r in run["edges"] if (r["sparsity"], r["criterion"]) == (sparsity, criterion))

    def paired(one: tuple[str, str], other: tuple[str, str]) -> dict[str, Any]:
        chosen = [run for key, run in runs.items() if "plain" not in (one + other) or key.split("-")[1] in ALSO]
        cells = [(run, sparsity) for run in chosen for sparsity in SPARSITIES]
        return difference([(edge(run, s, *one), edge(run, s, *other)) for run, s in cells])

    def summary(values: list[float]) -> dict[str, float]:
        spread = {"std": round(float(np.std(values, ddof=1)), 2)} if len(values) > 1 else {}
        return {"mean": round(float(np.mean(values)), 2), **spread}

    table: dict[str, Any] = {}
    for graph in GRAPHS:
        for network in NETWORKS:
            own = [run for key, run in runs.items() if key.startswith(f"{graph}-{network}-")]
            if not own:
                continue
            table[f"{graph}, {network}"] = {
                "dense": summary([run["dense"] for run in own]),
                "graph_sparsity": {
                    str(sparsity): {
                        f"{name}{words}": summary([edge(run, sparsity, criterion, column) for run in own])
                        for criterion, name in CRITERIA.items()
                        for column, words in (("distilled", ""), ("plain", ", not distilled"))
                        if column == "distilled" or (criterion == "degree" and network in ALSO)
                    }
                    for sparsity in SPARSITIES
                },
                "weight_sparsity": {
                    str(sparsity): {
                        name: summary([run["weights"][place][name] for run in own]) for name in ("TEDDY", "magnitude")
                    }
                    for place, sparsity in enumerate(WEIGHTS if network in ALSO else ())
                },
            }
    over_random = paired(("degree", "distilled"), ("random", "distilled"))
    over_reverse = paired(("random", "distilled"), ("reverse", "distilled"))
    weights = [(row["TEDDY"], row["magnitude"]) for run in runs.values() for row in run["weights"]]
    sure = [found["points"] > found["standard_error"] for found in (over_random, over_reverse)]
    return {
        "networks": NETWORKS,
        "epochs": epochs,
        "learning_rate": RATE,
        "distill": DISTILL,
        "accuracy": table,
        "TEDDY over random edges": over_random,
        "random edges over reverse scores": over_reverse,
        "distilled over not distilled, TEDDY": paired(("degree", "distilled"), ("degree", "plain")),
        "TEDDY over the dense network": {
            str(s): difference([(edge(run, s, "degree"), run["dense"]) for run in runs.values()]) for s in SPARSITIES
        },
        "projected weights over the largest of the dense network": difference(weights),
        "holds": "yes" if all(sure) else "partly" if any(sure) else "no",
    }


def draw_figure(found: dict[str, Any]) -> None:
    """What trimming does to the accuracy of the dense network, the mean over networks and graphs."""
    rows = list(found["accuracy"].values())
    lines = {}
    for words in CRITERIA.values():
        lines[words] = [
            Point(
                round(100 * (1 - s)),
                float(np.mean([row["graph_sparsity"][str(s)][words]["mean"] - row["dense"]["mean"] for row in rows])),
                float(np.mean([row["graph_sparsity"][str(s)][words].get("std", 0.0) for row in rows])),
            )
            for s in reversed(SPARSITIES)
        ]
    draw(
        FIGURE,
        lines,
        title="Accuracy of networks on trimmed graphs, less that of the dense ones",
        x="edges kept, %",
        y="test accuracy, points",
        top=2.0,
        bottom=-8.0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of cora and citeseer; without it only the figure is drawn")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--runs", type=Path, default=Path("runs/claim_teddy"))
    parser.add_argument("--first", type=int, help="only that many of all networks, graphs and seeds, in their order")
    parser.add_argument("--at-most", type=int, help="train that many networks that are missing, then stop")
    given = parser.parse_args()
    if given.seeds < 1:
        parser.error("--seeds must be at least 1")
    if given.data is not None:
        torch.set_num_threads(1)
        graphs = {name: Graph(given.data / name / f"{name}.npz", given.epochs) for name in GRAPHS}
        given.runs.mkdir(parents=True, exist_ok=True)
        runs = {}
        planned = [(seed, name, network) for seed in range(given.seeds) for name in GRAPHS for network in NETWORKS]
        for seed, name, network in planned[: given.first]:
            key = f"{name}-{network}-{seed}-{given.epochs}"
            kept = given.runs / f"{key}.json"
            if not kept.is_file():
                if given.at_most == 0:
                    return
                given.at_most = given.at_most and given.at_most - 1
                write_json(kept, one(graphs[name], network, seed))
            runs[key] = read_json(kept)
            print(key, runs[key], flush=True)
        command = f"python benchmarks/claim_teddy.py --data FOLDER --seeds {given.seeds} --epochs {given.epochs}"
        command += f" --first {given.first}" if given.first else ""
        write_result(RESULT, command=command, seeds=range(given.seeds), results=results(runs, given.epochs))
    draw_figure(read_json(RESULT)["results"])


if __name__ == "__main__":
    main()
