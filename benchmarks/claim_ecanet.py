"""ECA-Net's claim at small scale: a channel gate of a few weights makes the same network more accurate.

Trains a ResNet-20 of the usual width for CIFAR-10 (16; the stem has stride 2, for the CPU's sake) on a part of
CIFAR-10, once plain and once with ECA (k = 3) in every block. Nothing else differs: protocol, number of steps and seeds
are the same, and the test images are read once, at the end. With --peers also squeeze-and-excitation (r = 16) and
ECA-NS. The claim holds when ECA is more accurate than none and the 95 % interval of the difference (paired bootstrap
over test images and seeds) lies above zero; it holds in part when the interval includes zero.

    python benchmarks/claim_ecanet.py --data FOLDER    # Parquet or image folders; cifar10 downloads

About 20 minutes of one core. Killed, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "claims" / "ecanet.json"
PLAIN, SE, ECA, ECA_NS = "none", "SE, r = 16", "ECA, k = 3", "ECA-NS, k = 3"
ATTENTIONS = {PLAIN: "none", ECA: "eca"}  # the network's argument
PEERS = {SE: "se", ECA_NS: "eca_ns"}
NETWORK = ("ecanet_mini32", {"width": 16})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="CIFAR-10 as a folder; 'cifar10' downloads it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--limit", type=int, default=10000, help="training images")
    parser.add_argument("--peers", action="store_true", help="train SE and ECA-NS as well")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="runs at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/claim_ecanet"), help="folder of the run directories")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()

    results = compare(options)
    changed = [
        f" --{name} {getattr(options, name)}"
        for name in ("seeds", "epochs", "limit", "jobs")
        if getattr(options, name) != parser.get_default(name)
    ]
    peers = " --peers" if options.peers else ""
    command = f"python benchmarks/claim_ecanet.py --data FOLDER{peers}{''.join(changed)}"

    from torchstone.environment import write_result

    write_result(options.result, command=command, seeds=list(range(options.seeds)), results=results)
    for name, found in results["differences"].items():
        low, high = found["95 % interval"]
        print(f"{name}: {found['mean']:+.4f} ({low:+.4f} to {high:+.4f})")
    print(f"the claim holds: {results['holds']}")


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Train every attention with every seed; accuracies, parameters, and what ECA gains over the others."""
    from seeded_runs import accuracies, difference, scores_of, train_all

    from torchstone import create_model
    from torchstone.training import DataSpec, ModelSpec, Recipe, TrainSpec

    network, arguments = NETWORK
    attentions = ATTENTIONS | (PEERS if options.peers else {})
    recipes = {
        name: Recipe(
            model=ModelSpec(network, {**arguments, "attention": attention}),
            data=DataSpec(options.data, limit=options.limit, val_fraction=0.02),
            train=TrainSpec(  # SGD with the usual settings of ResNets on CIFAR-10, and a short cosine schedule
                epochs=options.epochs,
                batch_size=64,
                optimizer="sgd",
                momentum=0.9,
                lr=0.05,
                weight_decay=5e-4,
                warmup_epochs=0.5,
            ),
        )
        for name, attention in attentions.items()
    }
    correct = train_all(recipes, range(options.seeds), options.runs, options.jobs)
    scores = scores_of(correct)
    params = {}
    for name, recipe in recipes.items():
        model = create_model(network, num_classes=10, **recipe.model.args)
        params[name] = sum(parameter.numel() for parameter in model.parameters())
    gain = scores.difference(ECA, PLAIN)
    protocol = recipes[ECA].to_dict()
    protocol["data"]["source"] = "CIFAR-10"
    protocol["model"] = {"name": network, "args": arguments}
    return {
        "holds": "yes" if gain.low > 0 else "partly" if gain.value > 0 else "no",
        "networks": {
            name: {"parameters": params[name], "parameters of the attention": params[name] - params[PLAIN], **found}
            for name, found in accuracies(correct, scores).items()
        },
        "differences": {
            f"{ECA} - {other}": {
                **difference(scores, ECA, other),
                "by seed": [
                    (sum(ours) - sum(correct[other][seed])) / len(ours) for seed, ours in sorted(correct[ECA].items())
                ],
            }
            for other in attentions
            if other != ECA
        },
        "protocol": {name: protocol[name] for name in ("model", "data", "train")},
    }


if __name__ == "__main__":
    main()
