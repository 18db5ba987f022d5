"""SparK's claim at small scale: a convolutional network that has painted hidden patches learns more from few labels.

Pre-trains a small ConvNeXt (convnext_mini32) and a small ResNet (ecanet_mini32 without attention) on images of CIFAR-10
without their labels, then trains each from there and from scratch on a few labels, everything else equal: data,
schedule, seeds. A linear probe compares the frozen features with those of the untrained networks. The test images are
read once, at the end.
The claim holds when, for both networks, fine-tuning is more accurate than training from scratch and the 95 % interval
of the difference (paired bootstrap over test images and seeds) lies above zero; it holds in part when that is so for
one of them, or when both gain and an interval includes zero. Pre-training is run once a network, with seed 0; the
interval does not tell how other pre-trainings would do.

    python benchmarks/claim_spark.py --data FOLDER    # Parquet or image folders; cifar10 downloads

About 8 minutes on two cores. Killed, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchstone.training import ModelSpec, Recipe

RESULT = Path(__file__).parent / "results" / "claims" / "spark.json"
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "ConvNeXt": ("convnext_mini32", {}),
    "ResNet": ("ecanet_mini32", {"attention": "none"}),
}
SCRATCH, SPARK = "from scratch", "from SparK"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="CIFAR-10 as a folder; 'cifar10' downloads it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=8000, help="images without labels, for pre-training")
    parser.add_argument("--pretrain-epochs", type=int, default=3)
    parser.add_argument("--labels", type=int, default=500, help="images with labels")
    parser.add_argument("--epochs", type=int, default=12, help="of training with labels")
    parser.add_argument("--probe-labels", type=int, default=4000, help="images with labels for the linear probe")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="runs at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/claim_spark"), help="folder of the run directories")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()

    results = compare(options)
    changed = [
        f" --{name.replace('_', '-')} {getattr(options, name)}"
        for name in ("seeds", "images", "pretrain_epochs", "labels", "epochs", "probe_labels")
        if getattr(options, name) != parser.get_default(name)
    ]
    command = f"python benchmarks/claim_spark.py --data FOLDER{''.join(changed)}"

    from torchstone.environment import write_result

    write_result(options.result, command=command, seeds=list(range(options.seeds)), results=results)
    for name, found in results["fine-tuning"]["differences"].items():
        low, high = found["95 % interval"]
        print(f"{name}: {found['mean']:+.4f} ({low:+.4f} to {high:+.4f})")
    print(f"the claim holds: {results['holds']}")


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Pre-train, train with labels, probe; accuracies and what pre-training gains."""
    from seeded_runs import accuracies, difference, pretrain_all, scores_of, train_all

    before = {name: pretraining(name, options) for name in NETWORKS}
    losses = pretrain_all(before, options.runs / "pretraining", options.jobs)
    after = {
        f"{name}, {start}": finetuning(
            name, options, "" if start == SCRATCH else str(options.runs / f"pretraining/{name}")
        )
        for name in NETWORKS
        for start in (SCRATCH, SPARK)
    }
    correct = train_all(after, range(options.seeds), options.runs / "finetuning", options.jobs)
    scores = scores_of(correct)
    gains = {name: scores.difference(f"{name}, {SPARK}", f"{name}, {SCRATCH}") for name in NETWORKS}
    clear = [gain.low > 0 for gain in gains.values()]
    some = any(clear) or all(gain.value > 0 for gain in gains.values())
    return {
        "holds": "yes" if all(clear) else "partly" if some else "no",
        "pre-training": {name: {"validation loss by epoch": losses[name]} for name in NETWORKS},
        "fine-tuning": {
            "networks": accuracies(correct, scores),
            "differences": {
                f"{name}: {SPARK} - {SCRATCH}": difference(scores, f"{name}, {SPARK}", f"{name}, {SCRATCH}")
                for name in NETWORKS
            },
        },
        "linear probe": probes(options),
        "protocol": {
            "pre-training": protocol(before["ConvNeXt"]),
            "fine-tuning": protocol(after[f"ConvNeXt, {SCRATCH}"]),
        },
    }


def probes(options: argparse.Namespace) -> dict[str, Any]:
    """Test accuracy of logistic regression on each network's frozen features, with its interval over test images."""
    from torchstone import create_model
    from torchstone.data.images import open_images
    from torchstone.seeding import seed_everything_at
    from torchstone.training.probing import extract, linear_probe
    from torchstone.training.runs import load_run

    data = open_images(options.data, batch_size=128, augment="none", limit=options.probe_labels)
    found: dict[str, Any] = {"images with labels": options.probe_labels}
    for name, (model, args) in NETWORKS.items():
        seed_everything_at("weights", 0)
        networks = {
            "untrained": create_model(model, num_classes=0, **args),
            SPARK: load_run(options.runs / f"pretraining/{name}")[0],
        }
        for start, network in networks.items():
            score = linear_probe(extract(network, data))
            found[f"{name}, {start}"] = {"accuracy": score.test_accuracy, "95 % interval": [score.low, score.high]}
    return found


def network(name: str, weights: str = "") -> ModelSpec:
    from torchstone.training import ModelSpec

    model, args = NETWORKS[name]
    return ModelSpec(model, args, weights=weights or None)


def pretraining(name: str, options: argparse.Namespace) -> Recipe:
    from torchstone.training import DataSpec, MethodSpec, Recipe, TrainSpec

    return Recipe(
        model=network(name),
        method=MethodSpec("spark", {"width": 32}),
        data=DataSpec(options.data, limit=options.images, val_fraction=0.02),
        train=TrainSpec(
            epochs=options.pretrain_epochs,
            batch_size=64,
            lr=2e-3,
            weight_decay=0.04,
            weight_decay_end=0.2,
            schedule="cosine_last",
            warmup_epochs=0.2,
            warmup_lr=1e-5,
            min_lr=2e-6,
            clip_grad=5.0,
        ),
    )


def finetuning(name: str, options: argparse.Namespace, weights: str) -> Recipe:
    from torchstone.training import DataSpec, Recipe, TrainSpec

    return Recipe(
        model=network(name, weights),
        data=DataSpec(options.data, limit=options.labels, val_fraction=0.02),
        train=TrainSpec(epochs=options.epochs, batch_size=32, lr=1e-3, weight_decay=0.05, warmup_epochs=1),
    )


def protocol(recipe: Recipe) -> dict[str, Any]:
    told = recipe.to_dict()
    told["data"]["source"] = "CIFAR-10"
    return {name: told[name] for name in ("method", "data", "train") if told.get(name)}


if __name__ == "__main__":
    main()
