"""BiFormer's claim at small scale: attention routed by content costs less than full attention and beats fixed patterns.

Two parts. Cost, by counting on tensors without values: multiply-accumulates of routed attention (routing included)
while the number of regions grows as the paper derives, S^2 ~ (H W)^(2/3), beside full attention, over maps of 8 to 216
pixels a side. The part holds when the exponent of routed attention in the number of pixels is 4/3 at most (up to 0.01)
and that of full attention 2.

Accuracy: a narrow biformer_mini32 whose attention is all routed is trained on a part of CIFAR-10 with regions chosen by
content, the nearest regions (local windows), and random regions, as many in each case. Nothing else differs: protocol,
number of steps and seeds are the same, and the test images are read once, at the end. The part holds when routing by
content is more accurate than both others, by 95 % intervals of the differences (paired bootstrap over test images and
seeds) above zero.

The claim holds when both parts do, in part when one of them does.

    python benchmarks/claim_biformer.py --data FOLDER    # Parquet or image folders; cifar10 downloads

Killed, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "claims" / "biformer.json"
CONTENT, NEAREST, RANDOM = "content", "nearest", "random"
SMALL = {"dims": (32, 64), "depths": (1, 1), "topks": (4, 4), "stem_stride": 4}
CHANNELS, TOPK = 64, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="CIFAR-10 as a folder; 'cifar10' downloads it")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--limit", type=int, default=4000, help="training images")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="runs at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/claim_biformer"), help="folder of the run directories")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()

    cost = growth()
    print(f"cost grows with the pixels to the power of {cost['exponents']}", flush=True)
    accuracy = compare(options)
    parts = (cost["holds"], accuracy["holds"])
    changed = [
        f" --{name} {getattr(options, name)}"
        for name in ("seeds", "epochs", "limit", "jobs")
        if getattr(options, name) != parser.get_default(name)
    ]
    command = f"python benchmarks/claim_biformer.py --data FOLDER{''.join(changed)}"

    from torchstone.environment import write_result

    holds = "yes" if all(parts) else "partly" if any(parts) else "no"
    results = {"holds": holds, "cost": cost, "accuracy": accuracy}
    write_result(options.result, command=command, seeds=list(range(options.seeds)), results=results)
    for name, found in accuracy["differences"].items():
        low, high = found["95 % interval"]
        print(f"{name}: {found['mean']:+.4f} ({low:+.4f} to {high:+.4f})")
    print(f"the claim holds: {holds}")


def growth() -> dict[str, Any]:
    """Multiply-accumulates of attention over the number of pixels, and the exponents with which they grow."""
    import torch
    import torch.nn.functional as F
    from torch.utils.flop_counter import FlopCounterMode

    from torchstone.instruments.op_bench import slope
    from torchstone.ops import route_regions, routed_attention

    macs: dict[str, dict[int, int]] = {"routed attention": {}, "full attention": {}}
    for n in range(2, 7):  # a map of n^3 pixels a side in n^2 regions a side, each of n pixels a side
        pixels, regions = n**6, n**4
        tokens = torch.empty(1, regions, n * n, CHANNELS, device="meta")
        with FlopCounterMode(display=False) as counter:
            routes, _ = route_regions(tokens.mean(2), tokens.mean(2), TOPK)
            routed_attention(tokens, tokens, tokens, routes)
        macs["routed attention"][pixels] = counter.get_total_flops() // 2
        everything = tokens.view(1, 1, pixels, CHANNELS)
        with FlopCounterMode(display=False) as counter:
            F.scaled_dot_product_attention(everything, everything, everything)
        macs["full attention"][pixels] = counter.get_total_flops() // 2
    exponents = {name: slope(list(counts.items())) for name, counts in macs.items()}
    routed, full = (exponents[name] or 0.0 for name in ("routed attention", "full attention"))
    return {
        "holds": 0 < routed < 4 / 3 + 0.01 and abs(full - 2) < 0.01,
        "exponents": exponents,
        "multiply-accumulates by pixels": macs,
        "setting": {"channels": CHANNELS, "regions attended to": TOPK, "regions": "pixels^(2/3)"},
    }


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Train with every way of choosing regions and every seed; accuracies and what choosing by content gains."""
    from seeded_runs import accuracies, difference, scores_of, train_all

    from torchstone import create_model
    from torchstone.training import DataSpec, ModelSpec, Recipe, TrainSpec

    recipes = {
        router: Recipe(
            model=ModelSpec("biformer_mini32", {**SMALL, "router": router}),
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
        for router in (CONTENT, NEAREST, RANDOM)
    }
    correct = train_all(recipes, range(options.seeds), options.runs, options.jobs)
    scores = scores_of(correct)
    pairs = [(CONTENT, NEAREST), (CONTENT, RANDOM), (NEAREST, RANDOM)]
    protocol = recipes[CONTENT].to_dict()
    protocol["data"]["source"] = "CIFAR-10"
    network = create_model("biformer_mini32", num_classes=10, **SMALL)
    return {
        "holds": all(scores.difference(*pair).low > 0 for pair in pairs[:2]),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "routers": accuracies(correct, scores),
        "differences": {f"{a} - {b}": difference(scores, a, b) for a, b in pairs},
        "protocol": {name: protocol[name] for name in ("data", "train")} | {"network": SMALL},
    }


if __name__ == "__main__":
    main()
