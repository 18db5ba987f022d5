"""DAGNN's table: test accuracy on Cora and CiteSeer, the public split and 20 random nodes a class.

    python benchmarks/table_dagnn.py --data FOLDER [--seeds 20]

FOLDER holds ``cora/cora.npz`` and ``citeseer/citeseer.npz``. Every run is one of the recipes that come with the
package, with its own seed and, for random splits, its own split. Runs are kept in ``--runs``: the command goes on where
it stopped, and more seeds add to those that are there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from torchstone.environment import write_result
from torchstone.training import load_recipe
from torchstone.training.fit import evaluate, fit

RESULT = Path(__file__).parent / "results" / "tables" / "dagnn.json"
PAPER = {  # per cent, mean and standard deviation of 100 runs: Tables 3 and 4
    "dagnn_cora": (84.4, 0.5),
    "dagnn_citeseer": (73.3, 0.6),
    "dagnn_cora_random": (83.7, 1.4),
    "dagnn_citeseer_random": (71.2, 1.4),
}


def accuracy(name: str, seed: int, data: Path, runs: Path) -> float:
    """Test accuracy in per cent of one run of a recipe."""
    graph = name.split("_")[1]
    recipe = load_recipe(name, [f"data.source={data / graph / graph}.npz", f"data.split_seed={seed}", f"seed={seed}"])
    run = fit(recipe, runs / name / str(seed), device="cpu")
    return 100 * evaluate(run.path, "test", device="cpu").score


def summary(scores: list[float], name: str) -> dict[str, object]:
    """Ours beside the paper's."""
    mean, spread = float(np.mean(scores)), float(np.std(scores, ddof=1))
    paper_mean, paper_spread = PAPER[name]
    return {
        "paper": {"mean": paper_mean, "std": paper_spread, "runs": 100},
        "ours": {"mean": round(mean, 2), "std": round(spread, 2), "runs": len(scores)},
        "difference": round(mean - paper_mean, 2),
        "within_the_papers_spread": abs(mean - paper_mean) <= paper_spread,
        "scores": [round(score, 2) for score in scores],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--runs", type=Path, default=Path("runs/table_dagnn"))
    given = parser.parse_args()
    if given.seeds < 2:
        parser.error("--seeds must be at least 2: the table has a spread")
    scores: dict[str, list[float]] = {name: [] for name in PAPER}
    for seed in range(given.seeds):
        for name, found in scores.items():
            found.append(accuracy(name, seed, given.data, given.runs))
            print(f"{name}, seed {seed}: {found[-1]:.1f} %", flush=True)
    write_result(
        RESULT,
        command=f"python benchmarks/table_dagnn.py --data FOLDER --seeds {given.seeds}",
        seeds=range(given.seeds),
        results={name: summary(found, name) for name, found in scores.items()},
    )


if __name__ == "__main__":
    main()
