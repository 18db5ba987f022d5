"""The claim of long convolutions at small scale: regularised kernels classify unseen sequences better than free ones.

Trains longconv_mini, two layers of two-sided kernels, on handwritten digits read pixel by pixel, with the kernels free,
dropped at random, squashed (and dropped) with two thresholds, and squashed and smoothed. Nothing else differs; protocol
and seeds are the same for all, and the test sequences are read once, at the end. The claim holds when squashed kernels
are more accurate than free ones and the 95 % interval of the difference (paired bootstrap over test sequences and
seeds) lies above zero; it holds in part when the interval includes zero.

    python benchmarks/claim_longconv.py

Some minutes on two cores. Killed, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "claims" / "longconv.json"
FREE, DROPPED, SQUASHED, HARD, BOTH = "free", "dropped", "squashed", "squashed hard", "squashed and smoothed"
KERNELS: dict[str, dict[str, Any]] = {  # arguments of the network
    FREE: {"squash": 0.0, "kernel_dropout": 0.0},
    DROPPED: {"squash": 0.0, "kernel_dropout": 0.2},
    HARD: {"squash": 0.003, "kernel_dropout": 0.2},  # the threshold of most of the paper's experiments
    BOTH: {"squash": 0.001, "kernel_dropout": 0.2, "smooth": "time"},
    SQUASHED: {"squash": 0.001, "kernel_dropout": 0.2},  # the threshold of the paper's sequential CIFAR-10
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sequential-digits", help="a source of sequences")
    parser.add_argument("--size", type=int, default=8, help="side of the images, so that a sequence has its square")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--limit", type=int, default=1200, help="training sequences")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="runs at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/claim_longconv"), help="folder of the run directories")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()

    results = compare(options)
    changed = [
        f" --{name} {getattr(options, name)}"
        for name in ("data", "size", "seeds", "epochs", "limit", "jobs")
        if getattr(options, name) != parser.get_default(name)
    ]

    from torchstone.environment import write_result

    command = f"python benchmarks/claim_longconv.py{''.join(changed)}"
    write_result(options.result, command=command, seeds=list(range(options.seeds)), results=results)
    for name, found in results["differences"].items():
        low, high = found["95 % interval"]
        print(f"{name}: {found['mean']:+.4f} ({low:+.4f} to {high:+.4f})")
    print(f"the claim holds: {results['holds']}")


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Train every kind of kernels with every seed; accuracies, what the kernels look like, and what each kind gains."""
    from seeded_runs import accuracies, difference, scores_of, train_all

    from torchstone.training import DataSpec, ModelSpec, Recipe, TrainSpec

    recipes = {
        name: Recipe(
            model=ModelSpec("longconv_mini", kernels),
            data=DataSpec(options.data, size=options.size, limit=options.limit),
            train=TrainSpec(  # the authors' optimizer for sequential CIFAR-10, shortened
                epochs=options.epochs, batch_size=50, lr=1e-2, weight_decay=0.05, warmup_epochs=1
            ),
            task="sequence-classification",
        )
        for name, kernels in KERNELS.items()
    }
    correct = train_all(recipes, range(options.seeds), options.runs, options.jobs)
    scores = scores_of(correct)
    gain = scores.difference(SQUASHED, FREE)
    protocol = recipes[SQUASHED].to_dict()
    return {
        "holds": "yes" if gain.low > 0 else "partly" if gain.value > 0 else "no",
        "kernels": {
            name: {"arguments": KERNELS[name], **found, **_shape(options.runs, index, options.seeds)}
            for index, (name, found) in enumerate(accuracies(correct, scores).items())
        },
        "differences": {
            f"{name} - {other}": {
                **difference(scores, name, other),
                "by seed": [
                    (sum(ours) - sum(correct[other][seed])) / len(ours) for seed, ours in sorted(correct[name].items())
                ],
            }
            for name, other in ((SQUASHED, FREE), (HARD, FREE), (BOTH, FREE), (DROPPED, FREE), (SQUASHED, DROPPED))
        },
        "protocol": {name: protocol[name] for name in ("data", "train")},
    }


def _shape(runs: Path, index: int, seeds: int) -> dict[str, list[float]]:
    """Of the trained kernels of each seed: the share of taps that are zero, and how rough the spectra are, the mean
    change of magnitude from one frequency to the next as a share of the mean magnitude."""
    import torch

    from torchstone.models.sequence.longconv import LongConvKernel
    from torchstone.training.runs import load_run

    zero, rough = [], []
    for seed in range(seeds):
        model, _ = load_run(runs / f"{index}-{seed}")
        kernels = [module().detach() for module in model.modules() if isinstance(module, LongConvKernel)]
        zero.append(sum((kernel == 0).float().mean().item() for kernel in kernels) / len(kernels))
        spectra = [torch.fft.rfft(kernel).abs() for kernel in kernels]
        rough.append(sum((s.diff().abs().mean() / s.mean()).item() for s in spectra) / len(spectra))
    return {"zero taps": zero, "spectral roughness": rough}


if __name__ == "__main__":
    main()
