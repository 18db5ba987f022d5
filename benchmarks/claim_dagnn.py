"""DAGNN's claim: it goes deep where a plain graph convolutional network fails.

Trains DAGNN with K hops and a plain GCN (Kipf and Welling) with K layers, K = 2 ... 64, on Cora's public split: Adam at
a rate of 0.01, the recipe's early stopping, the weights of the epoch of lowest validation loss. Each network has its
authors' dropout, and at every depth the better of the two papers' weight decays, chosen by the validation accuracy of
seed 0. The claim holds when, at the largest depth, DAGNN is within 3 points of its own best and GCN is 20 points or
more below its own best.

    python benchmarks/claim_dagnn.py --data cora.npz

Killed, the same command goes on where it was. Without ``--data`` the figure is drawn anew from the result file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from figures import Point, draw

from torchstone.environment import write_result
from torchstone.files import read_json
from torchstone.training import Recipe, load_recipe
from torchstone.training.fit import evaluate, fit

DEPTHS = (2, 4, 8, 16, 32, 64)
NAMES = {"dagnn": "DAGNN", "gcn": "GCN"}
DECAYS = (5e-3, 5e-4)  # that of DAGNN's authors and that of GCN's, on Cora
RESULT = Path(__file__).parent / "results" / "claims" / "dagnn.json"
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "dagnn_depth.svg"
STEADY, FALLEN = 3.0, 20.0  # points


def recipe(network: str, depth: int, decay: float, seed: int, data: Path, epochs: int) -> Recipe:
    """The recipe of one run."""
    args = f"{{hops: {depth}, dropout: 0.8}}" if network == "dagnn" else f"{{num_layers: {depth}}}"
    changes = {
        "model.name": "dagnn" if network == "dagnn" else "pyg:gcn",
        "model.args": args,
        "data.source": data,
        "train.weight_decay": decay,
        "train.epochs": epochs,
        "seed": seed,
    }
    return load_recipe("dagnn_cora", [f"{key}={value}" for key, value in changes.items()])


def at_depth(network: str, depth: int, given: argparse.Namespace) -> dict[str, Any]:
    """Accuracies in per cent of one network at one depth, with the weight decay that validation chose."""

    def train(decay: float, seed: int) -> Any:
        one = recipe(network, depth, decay, seed, given.data, given.epochs)
        return fit(one, given.runs / f"{network}-{depth}-{decay:g}-{seed}", device="cpu")

    trials = {decay: train(decay, 0).score for decay in DECAYS}
    decay = max(trials, key=lambda value: trials[value])
    runs = [train(decay, seed) for seed in range(given.seeds)]
    scores = [round(100 * evaluate(run.path, "test", device="cpu").score, 2) for run in runs]
    print(f"{network}, depth {depth}, weight decay {decay:g}: {scores}", flush=True)
    return {
        "depth": depth,
        "mean": round(float(np.mean(scores)), 2),
        "std": round(float(np.std(scores, ddof=1)), 2),
        "weight_decay": decay,
        "scores": scores,
    }


def results(table: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The accuracies, how far each network falls, and the verdict."""
    falls = {name: max(row["mean"] for row in rows) - rows[-1]["mean"] for name, rows in table.items()}
    steady, fallen = falls["dagnn"] <= STEADY, falls["gcn"] >= FALLEN
    return {
        "accuracy": table,
        "points_lost_at_the_largest_depth": {name: round(fall, 2) for name, fall in falls.items()},
        "holds": "yes" if steady and fallen else "partly" if steady or fallen else "no",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="cora.npz; without it only the figure is drawn")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--runs", type=Path, default=Path("runs/claim_dagnn"))
    given = parser.parse_args()
    if given.seeds < 2:
        parser.error("--seeds must be at least 2: a depth has a spread")
    if given.data is not None:
        table = {name: [at_depth(name, depth, given) for depth in DEPTHS] for name in NAMES}
        command = f"python benchmarks/claim_dagnn.py --data cora.npz --seeds {given.seeds} --epochs {given.epochs}"
        write_result(RESULT, command=command, seeds=range(given.seeds), results=results(table))
    accuracy = read_json(RESULT)["results"]["accuracy"]
    draw(
        FIGURE,
        {NAMES[name]: [Point(row["depth"], row["mean"], row["std"]) for row in accuracy[name]] for name in NAMES},
        title="Accuracy against depth on Cora, public split",
        x="hops of DAGNN, layers of GCN",
        y="test accuracy, %",
    )


if __name__ == "__main__":
    main()
