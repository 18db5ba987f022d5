"""ECA-Net's claim at small scale: a channel gate of a few weights makes the same network more accurate.

Trains ecanet_mini32, a ResNet-20 in shape, on a part of CIFAR-10 with four attentions: none, squeeze-and-excitation
(r = 16), ECA (k = 3) and ECA-NS. Nothing else differs; protocol and seeds are the same for all, and the test images are
read once, at the end. The claim holds when ECA is more accurate than none and the 95 % interval of the difference
(paired bootstrap over test images and seeds) lies above zero; it holds in part when the interval includes zero.

    python benchmarks/claim_ecanet.py --data FOLDER    # Parquet or image folders; cifar10 downloads

About 20 minutes on two cores. Killed, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ATTENTIONS = {"none": "none", "se": "SE, r = 16", "eca": "ECA, k = 3", "eca_ns": "ECA-NS, k = 3"}
RESULT = Path(__file__).parent / "results" / "claims" / "ecanet.json"


def recipe(data: str, attention: str, seed: int, epochs: int, limit: int) -> Any:
    """One run: SGD with the usual settings of ResNets on CIFAR-10, and a short cosine schedule."""
    from torchstone.training import DataSpec, ModelSpec, Recipe, TrainSpec

    return Recipe(
        model=ModelSpec("ecanet_mini32", {"attention": attention}),
        data=DataSpec(data, limit=limit, val_fraction=0.02),
        train=TrainSpec(
            epochs=epochs,
            batch_size=64,
            optimizer="sgd",
            momentum=0.9,
            lr=0.05,
            weight_decay=5e-4,
            warmup_epochs=0.5,
        ),
        seed=seed,
    )


_source: Any = None


def _open(data: str, threads: int) -> None:
    """Prepare a worker: its threads, and the images, which all its runs share."""
    global _source
    import torch

    from torchstone.data import open_source

    torch.set_num_threads(threads)
    _source = open_source(data)


def run(data: str, attention: str, seed: int, epochs: int, limit: int, runs: Path) -> list[float]:
    """Train one network and say for every test image whether it was right (1.0 or 0.0)."""
    from torchstone.training.fit import evaluate, fit

    out = runs / f"{attention}-{seed}"
    fit(recipe(data, attention, seed, epochs, limit), out, device="cpu", source=_source)
    return evaluate(out, "test", device="cpu", source=_source).per_sample.tolist()


def summarize(correct: dict[str, dict[int, list[float]]]) -> dict[str, Any]:
    """Accuracies, parameters and the differences to ECA, with their intervals."""
    from torchstone import create_model
    from torchstone.reporting.statistics import bootstrap

    seeds = sorted(correct["eca"])
    accuracy = {name: [statistics.fmean(by_seed[seed]) for seed in seeds] for name, by_seed in correct.items()}
    params = {
        name: sum(p.numel() for p in create_model("ecanet_mini32", num_classes=10, attention=name).parameters())
        for name in correct
    }
    scores = bootstrap({name: [by_seed[seed] for seed in seeds] for name, by_seed in correct.items()})
    networks = {
        ATTENTIONS[name]: {
            "parameters": params[name],
            "added parameters": params[name] - params["none"],
            "accuracy by seed": accuracy[name],
            "mean accuracy": scores.intervals[name].value,
            "standard deviation": statistics.stdev(accuracy[name]) if len(seeds) > 1 else 0.0,
            "95 % interval": [scores.intervals[name].low, scores.intervals[name].high],
        }
        for name in correct
    }
    differences = {
        f"ECA - {ATTENTIONS[name]}": {
            "by seed": [ours - theirs for ours, theirs in zip(accuracy["eca"], accuracy[name], strict=True)],
            "mean": scores.difference("eca", name).value,
            "95 % interval": [scores.difference("eca", name).low, scores.difference("eca", name).high],
        }
        for name in correct
        if name != "eca"
    }
    gain = scores.difference("eca", "none")
    holds = "yes" if gain.low > 0 else "partly" if gain.value > 0 else "no"
    return {"holds": holds, "networks": networks, "differences": differences}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="CIFAR-10 as a folder; 'cifar10' downloads it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--limit", type=int, default=16000, help="training images")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="runs at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/claim_ecanet"), help="folder of the run directories")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()

    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the workers when they load torch
    seeds = list(range(options.seeds))
    correct: dict[str, dict[int, list[float]]] = {attention: {} for attention in ATTENTIONS}
    workers = ProcessPoolExecutor(
        options.jobs, multiprocessing.get_context("spawn"), initializer=_open, initargs=(options.data, threads)
    )
    try:
        protocol = (options.epochs, options.limit, options.runs)
        pending = {
            workers.submit(run, options.data, attention, seed, *protocol): (attention, seed)
            for seed in seeds
            for attention in ATTENTIONS
        }
        for future in as_completed(pending):
            attention, seed = pending[future]
            correct[attention][seed] = future.result()
            print(f"{ATTENTIONS[attention]}, seed {seed}: {statistics.fmean(correct[attention][seed]):.4f}", flush=True)
    finally:
        workers.shutdown(cancel_futures=True)

    from torchstone.environment import write_result

    results = summarize(correct)
    results["protocol"] = recipe("CIFAR-10", "eca", 0, options.epochs, options.limit).to_dict()
    results["runs at a time"] = options.jobs
    changed = [
        f" --{name} {getattr(options, name)}"
        for name in ("seeds", "epochs", "limit", "jobs")
        if getattr(options, name) != parser.get_default(name)
    ]
    command = f"python benchmarks/claim_ecanet.py --data FOLDER{''.join(changed)}"
    write_result(options.result, command=command, seeds=seeds, results=results)
    for name, difference in results["differences"].items():
        low, high = difference["95 % interval"]
        print(f"{name}: {difference['mean']:+.4f} ({low:+.4f} to {high:+.4f})")
    print(f"the claim holds: {results['holds']}")


if __name__ == "__main__":
    main()
