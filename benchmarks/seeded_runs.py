"""Training several candidates with several seeds, side by side, and saying how sure their differences are."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchstone.reporting.statistics import Scores
    from torchstone.training import Recipe

Correct = dict[str, dict[int, list[float]]]
"""Candidate -> seed -> for every test image whether it was right (1.0 or 0.0)."""

_source: Any = None


def train_all(recipes: Mapping[str, Recipe], seeds: Sequence[int], runs: Path, jobs: int = 2) -> Correct:
    """Train every recipe with every seed on the CPU and read the test images once; finished runs are not repeated.

    Args:
        recipes: by candidate; they differ in the model only, so that the data are opened once per process.
        seeds: replace the recipe's own.
        runs: folder of the run directories.
        jobs: runs at a time, which share the cores (OMP_NUM_THREADS, where set, says otherwise).
    """
    workers = _workers(next(iter(recipes.values())).data.source, jobs)
    correct: Correct = {name: {} for name in recipes}
    try:
        pending = {
            workers.submit(_run, dataclasses.replace(recipe, seed=seed), runs / f"{index}-{seed}"): (name, seed)
            for seed in seeds
            for index, (name, recipe) in enumerate(recipes.items())
        }
        for future in as_completed(pending):
            name, seed = pending[future]
            correct[name][seed] = future.result()
            print(f"{name}, seed {seed}: {statistics.fmean(correct[name][seed]):.4f}", flush=True)
    finally:
        workers.shutdown(cancel_futures=True)
    return correct


def pretrain_all(recipes: Mapping[str, Recipe], runs: Path, jobs: int = 2) -> dict[str, list[float]]:
    """Run every pre-training recipe once, on the CPU; finished runs are not repeated.

    Returns:
        By name the validation loss of every epoch. The run of a name is in ``runs / name``.
    """
    with _workers(next(iter(recipes.values())).data.source, jobs) as workers:
        pending = {name: workers.submit(_pretrain, recipe, runs / name) for name, recipe in recipes.items()}
        return {name: future.result() for name, future in pending.items()}


def _pretrain(recipe: Recipe, out: Path) -> list[float]:
    from torchstone.training.fit import fit

    return [row["val_loss"] for row in fit(recipe, out, device="cpu", source=_source).rows]


def _workers(data: str, jobs: int) -> ProcessPoolExecutor:
    """Processes that share the cores and have opened the data."""
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // jobs))
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the workers when they load torch
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_open, initargs=(data, threads))


def _open(data: str, threads: int) -> None:
    """Prepare a worker: its threads, and the images, which all its runs share."""
    global _source
    import torch

    from torchstone.data import open_source
    from torchstone.data.sequences import image_source_of, is_sequence_source

    torch.set_num_threads(threads)
    _source = open_source(image_source_of(data)[0] if is_sequence_source(data) else data)


def _run(recipe: Recipe, out: Path) -> list[float]:
    from torchstone.training.fit import evaluate, fit

    fit(recipe, out, device="cpu", source=_source)
    return evaluate(out, "test", device="cpu", source=_source).per_sample.tolist()


def scores_of(correct: Correct) -> Scores:
    """Accuracies with intervals, by a paired bootstrap over test images and seeds."""
    from torchstone.reporting.statistics import bootstrap

    return bootstrap({name: [by_seed[seed] for seed in sorted(by_seed)] for name, by_seed in correct.items()})


def accuracies(correct: Correct, scores: Scores) -> dict[str, Any]:
    """Mean accuracy, its interval and the accuracy of each seed, by candidate."""
    return {
        name: {
            "mean accuracy": scores.intervals[name].value,
            "95 % interval": [scores.intervals[name].low, scores.intervals[name].high],
            "accuracy by seed": [statistics.fmean(by_seed[seed]) for seed in sorted(by_seed)],
        }
        for name, by_seed in correct.items()
    }


def difference(scores: Scores, a: str, b: str) -> dict[str, Any]:
    """Accuracy of a minus accuracy of b, with its paired interval."""
    found = scores.difference(a, b)
    return {"mean": found.value, "95 % interval": [found.low, found.high]}
