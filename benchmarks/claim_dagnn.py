"""DAGNN's claim: it goes deep where a plain graph convolutional network fails.

Trains DAGNN with K hops and a plain GCN (Kipf and Welling) with K layers, K = 2 ... 64, on Cora's public split, by the
recipe ``dagnn_cora`` for both: nothing but the network differs. Its weight decay is ten times that of GCN's authors,
and GCN with two layers stays far below what they report, so its curve says less than DAGNN's. The claim holds when, at
the largest depth, DAGNN is within 3 points of its own best and GCN is 20 points or more below its own best.

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
RESULT = Path(__file__).parent / "results" / "claims" / "dagnn.json"
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "dagnn_depth.svg"
STEADY, FALLEN = 3.0, 20.0  # points


def recipe(network: str, depth: int, seed: int, data: Path, epochs: int) -> Recipe:
    """The recipe of one run; the networks differ in name and depth alone."""
    args = f"{{hops: {depth}, dropout: 0.8}}" if network == "dagnn" else f"{{num_layers: {depth}}}"
    name = "dagnn" if network == "dagnn" else "pyg:gcn"
    changes = [f"model.name={name}", f"model.args={args}", f"data.source={data}", f"seed={seed}"]
    return load_recipe("dagnn_cora", [*changes, f"train.epochs={epochs}"])


def results(scores: dict[str, dict[int, list[float]]]) -> dict[str, Any]:
    """Mean and spread of the test accuracy in per cent by depth, how far each network falls, and the verdict."""
    table = {
        name: [
            {
                "depth": depth,
                "mean": round(float(np.mean(found)), 2),
                "std": round(float(np.std(found, ddof=1)), 2),
                "scores": found,
            }
            for depth, found in by_depth.items()
        ]
        for name, by_depth in scores.items()
    }
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
    if given.data is not None:
        if given.seeds < 2:
            parser.error("--seeds must be at least 2: a depth has a spread")
        scores: dict[str, dict[int, list[float]]] = {"dagnn": {}, "gcn": {}}
        for network, by_depth in scores.items():
            for depth in DEPTHS:
                by_depth[depth] = []
                for seed in range(given.seeds):
                    one = recipe(network, depth, seed, given.data, given.epochs)
                    run = fit(one, given.runs / f"{network}-{depth}-{seed}", device="cpu")
                    score = 100 * evaluate(run.path, "test", device="cpu").score
                    by_depth[depth].append(round(score, 2))
                    print(f"{network}, depth {depth}, seed {seed}: {score:.1f} %", flush=True)
        command = f"python benchmarks/claim_dagnn.py --data cora.npz --seeds {given.seeds} --epochs {given.epochs}"
        write_result(RESULT, command=command, seeds=range(given.seeds), results=results(scores))
    accuracy = read_json(RESULT)["results"]["accuracy"]
    draw(
        FIGURE,
        {NAMES[name]: [Point(row["depth"], row["mean"], row["std"]) for row in accuracy[name]] for name in NAMES},
        title="Accuracy against depth on Cora, both trained by DAGNN's recipe",
        x="hops of DAGNN, layers of GCN",
        y="test accuracy, %",
    )


if __name__ == "__main__":
    main()
