"""MaxViT's claim at small scale: windows and grids together beat either alone, and those beat convolution alone.

Trains a narrow maxvit_mini32 on a part of CIFAR-10 with both attentions, without the grids, without the windows, and
without either. Nothing else differs: protocol, number of steps and seeds are the same, and the test images are read
once, at the end. The claim holds when the whole network is more accurate than each of the others and each single
attention more accurate than none, all by 95 % intervals of the differences (paired bootstrap over test images and
seeds) above zero; it holds in part when the whole network beats convolution alone.

    python benchmarks/claim_maxvit.py --data FOLDER    # Parquet or image folders; cifar10 downloads

Killed, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "claims" / "maxvit.json"
WHOLE, NONE = "windows and grids", "convolution alone"
SMALL = {"dims": (32, 64), "stem_width": 16}
NETWORKS = {WHOLE: ["window", "grid"], "windows alone": ["window"], "grids alone": ["grid"], NONE: []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="CIFAR-10 as a folder; 'cifar10' downloads it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--limit", type=int, default=8000, help="training images")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="runs at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/claim_maxvit"), help="folder of the run directories")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()

    results = compare(options)
    changed = [
        f" --{name} {getattr(options, name)}"
        for name in ("seeds", "epochs", "limit", "jobs")
        if getattr(options, name) != parser.get_default(name)
    ]
    command = f"python benchmarks/claim_maxvit.py --data FOLDER{''.join(changed)}"

    from torchstone.environment import write_result

    write_result(options.result, command=command, seeds=list(range(options.seeds)), results=results)
    for name, found in results["differences"].items():
        low, high = found["95 % interval"]
        print(f"{name}: {found['mean']:+.4f} ({low:+.4f} to {high:+.4f})")
    print(f"the claim holds: {results['holds']}")


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Train every network with every seed; accuracies, parameters, and what each attention gains."""
    from seeded_runs import accuracies, difference, scores_of, train_all

    from torchstone import create_model
    from torchstone.training import DataSpec, ModelSpec, Recipe, TrainSpec

    recipes = {
        name: Recipe(
            model=ModelSpec("maxvit_mini32", {**SMALL, "attentions": attentions}),
            data=DataSpec(options.data, limit=options.limit, val_fraction=0.02),
            train=TrainSpec(
                epochs=options.epochs,
                batch_size=64,
                lr=2e-3,
                weight_decay=0.05,
                warmup_epochs=1,
                min_lr=1e-5,
                clip_grad=1.0,
                label_smoothing=0.1,
            ),
        )
        for name, attentions in NETWORKS.items()
    }
    correct = train_all(recipes, range(options.seeds), options.runs, options.jobs)
    scores = scores_of(correct)
    params = {
        name: sum(
            p.numel()
            for p in create_model("maxvit_mini32", num_classes=10, **SMALL, attentions=attentions).parameters()
        )
        for name, attentions in NETWORKS.items()
    }
    pairs = [(WHOLE, name) for name in NETWORKS if name != WHOLE]
    pairs += [(name, NONE) for name in NETWORKS if name not in (WHOLE, NONE)]
    sure = {pair: scores.difference(*pair).low > 0 for pair in pairs}
    protocol = recipes[WHOLE].to_dict()
    protocol["data"]["source"] = "CIFAR-10"
    return {
        "holds": "yes" if all(sure.values()) else "partly" if sure[WHOLE, NONE] else "no",
        "networks": {
            name: {"parameters": params[name], **found} for name, found in accuracies(correct, scores).items()
        },
        "differences": {f"{a} - {b}": difference(scores, a, b) for a, b in pairs},
        "protocol": {name: protocol[name] for name in ("data", "train")},
    }


if __name__ == "__main__":
    main()
