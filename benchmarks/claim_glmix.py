"""GLMix's claim at small scale: convolution and slots together beat either alone, at a cost linear in the pixels.

Cost: counts the multiply-accumulates of one GLMix block and of one block with attention between all pixels, of 64
channels, on maps of 14 to 112 pixels a side. What does not depend on the pixels, the slots' own attention, is the
constant of a line through the first two; cost is linear when the others lie on it.

Accuracy: trains a small glmix_mini32 of GLMix blocks alone (maps of 8 and 4 pixels a side, 4 slots) on a part of
CIFAR-10 with both branches, without slots, and without convolution. Nothing else within the blocks mixes pixels, and
the feed-forward networks are widened until the three have about the same number of parameters. Protocol, number of
steps and seeds are the same, and the test images are read once, at the end.

The claim holds when cost is linear and both branches together are more accurate than each alone, by 95 % intervals of
the differences (paired bootstrap over test images and seeds) above zero; it holds in part when they are more accurate
than one of the two.

    python benchmarks/claim_glmix.py --data FOLDER    # Parquet or image folders; cifar10 downloads

Killed, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "claims" / "glmix.json"
BOTH, CONVOLUTION, SLOTS = "convolution and slots", "convolution alone", "slots alone"
SMALL = {"dims": [32, 64], "depths": [1, 2], "stem_stride": 4, "num_slots": 4, "mixing_modes": "glmix"}
SMALL |= {"cpe_ks": 0, "mlp_dw": False}
NETWORKS = {
    BOTH: {**SMALL, "mlp_ratios": 3},
    CONVOLUTION: {**SMALL, "mlp_ratios": 5, "num_slots": 0},
    SLOTS: {**SMALL, "mlp_ratios": 4, "local_dw_ks": 0},
}
CHANNELS, SIDES = 64, (14, 28, 56, 112)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="CIFAR-10 as a folder; 'cifar10' downloads it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--limit", type=int, default=8000, help="training images")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="runs at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/claim_glmix"), help="folder of the run directories")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()

    cost = costs()
    accuracy = compare(options)
    better = sum(found["95 % interval"][0] > 0 for found in accuracy["differences"].values())
    holds = {2: "yes", 1: "partly", 0: "no"}[better] if cost["linear in the pixels"] else "no"
    changed = [
        f" --{name} {getattr(options, name)}"
        for name in ("seeds", "epochs", "limit", "jobs")
        if getattr(options, name) != parser.get_default(name)
    ]

    from torchstone.environment import write_result

    write_result(
        options.result,
        command=f"python benchmarks/claim_glmix.py --data FOLDER{''.join(changed)}",
        seeds=list(range(options.seeds)),
        results={"holds": holds, "cost": cost, **accuracy},
    )
    for name, found in accuracy["differences"].items():
        low, high = found["95 % interval"]
        print(f"{name}: {found['mean']:+.4f} ({low:+.4f} to {high:+.4f})")
    print(f"the claim holds: {holds}")


def costs() -> dict[str, Any]:
    """Multiply-accumulates of a block by the map's side, with slots and with attention between all pixels."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from torchstone.models.image.glmix import AttentionBlock, GLMixBlock

    def macs(block: torch.nn.Module, side: int) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            block(torch.empty(1, CHANNELS, side, side, device="meta"))
        return counter.get_total_flops() // 2

    with torch.device("meta"):
        blocks = {"GLMix block": GLMixBlock(CHANNELS, 2), "attention between all pixels": AttentionBlock(CHANNELS, 2)}
    counted = {name: [macs(block, side) for side in SIDES] for name, block in blocks.items()}
    pixels = [side**2 for side in SIDES]
    first, second, *_ = slots = counted["GLMix block"]
    slope = (second - first) // (pixels[1] - pixels[0])
    line = [first + slope * (count - pixels[0]) for count in pixels]
    return {
        "linear in the pixels": slots == line,
        "channels": CHANNELS,
        "slots": 64,
        "side of the map in pixels": list(SIDES),
        "multiply-accumulates": counted,
        "attention as a multiple of GLMix": [round(a / b, 3) for a, b in zip(*reversed(counted.values()), strict=True)],
    }


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Train every network with every seed; accuracies, parameters, and what each branch adds."""
    from seeded_runs import accuracies, difference, scores_of, train_all

    from torchstone import create_model
    from torchstone.training import DataSpec, ModelSpec, Recipe, TrainSpec

    recipes = {
        name: Recipe(
            model=ModelSpec("glmix_mini32", args),
            data=DataSpec(options.data, limit=options.limit, val_fraction=0.02),
            train=TrainSpec(
                epochs=options.epochs,
                batch_size=64,
                lr=2e-3,
                weight_decay=0.05,
                warmup_epochs=1,
                min_lr=1e-5,
                clip_grad=5.0,
                label_smoothing=0.1,
            ),
        )
        for name, args in NETWORKS.items()
    }
    correct = train_all(recipes, range(options.seeds), options.runs, options.jobs)
    scores = scores_of(correct)
    params = {
        name: sum(p.numel() for p in create_model("glmix_mini32", num_classes=10, **args).parameters())
        for name, args in NETWORKS.items()
    }
    protocol = recipes[BOTH].to_dict()
    protocol["data"]["source"] = "CIFAR-10"
    return {
        "networks": {
            name: {"parameters": params[name], **found} for name, found in accuracies(correct, scores).items()
        },
        "differences": {f"{BOTH} - {name}": difference(scores, BOTH, name) for name in (CONVOLUTION, SLOTS)},
        "protocol": {name: protocol[name] for name in ("data", "train")},
    }


if __name__ == "__main__":
    main()
