"""Graph classification on the ten official folds of MUTAG: a small GNN-SSWL beside PyG's GIN and GCN.

    python benchmarks/folds_swl.py --data FOLDER [--folds 10]

FOLDER holds ``tu_MUTAG``. Every run is the recipe ``swl_mutag`` that comes with the package on one fold, as it is and
with the network changed; the epoch is chosen on graphs drawn from the training part, the fold's own are read once. A
difference is that of both networks on the same fold. Runs are kept in ``--runs``: the command goes on where it stopped.
The result is written after every fold, and says how many there are.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchstone.environment import write_result
from torchstone.training import load_recipe
from torchstone.training.fit import evaluate, fit

RESULT = Path(__file__).parent / "results" / "tables" / "swl_mutag.json"
NETWORKS = {"swl_mini": "GNN-SSWL, small", "pyg:gin": "PyG GIN", "pyg:gcn": "PyG GCN"}


def accuracy(network: str, fold: int, data: Path, runs: Path) -> float:
    """Per cent of the fold's test graphs."""
    changes = [f"data.source={data / 'tu_MUTAG'}", f"data.split=fold:{fold}", f"model.name={network}"]
    run = fit(load_recipe("swl_mutag", changes), runs / f"mutag-{network.replace(':', '_')}-{fold}", device="cpu")
    return 100 * evaluate(run.path, "test", device="cpu").score


def row(scores: list[float]) -> dict[str, Any]:
    """As the table of a system's page has it; the paper has no such figure."""
    mean, spread = round(float(np.mean(scores)), 2), round(float(np.std(scores, ddof=1)), 2)
    return {
        "paper": None,
        "ours": {"mean": mean, "std": spread, "folds": len(scores)},
        "scores": [round(score, 2) for score in scores],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folds", type=int, default=10, choices=range(2, 11), metavar="2..10")
    parser.add_argument("--runs", type=Path, default=Path("runs/folds_swl"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    scores: dict[str, list[float]] = {network: [] for network in NETWORKS}
    for fold in range(given.folds):
        for network in NETWORKS:
            scores[network].append(accuracy(network, fold, given.data, given.runs))
        print(f"fold {fold}: {[round(values[-1], 1) for values in scores.values()]}", flush=True)
        if fold:
            ours = scores["swl_mini"]
            results = {label: row(scores[network]) for network, label in NETWORKS.items()}
            for network in ("pyg:gin", "pyg:gcn"):
                above = [one - other for one, other in zip(ours, scores[network], strict=True)]
                results[f"{NETWORKS['swl_mini']}, above {NETWORKS[network]}"] = row(above)
            command = f"python benchmarks/folds_swl.py --data FOLDER --folds {fold + 1}"
            write_result(RESULT, command=command, seeds=[0], results=results)


if __name__ == "__main__":
    main()
