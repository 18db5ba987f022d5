"""InceptionNeXt's claims at small scale: it trains faster than ConvNeXt, and convolving few channels costs no accuracy.

    python benchmarks/claim_inceptionnext.py --data FOLDER         # CIFAR-10 as Parquet or images; cifar10 downloads
    python benchmarks/claim_inceptionnext.py --device cuda --part speed --result benchmarks/results/claims/FILE

Four statements are checked, each of them in direction:

* speed: a training step of InceptionNeXt-T takes less time than one of ConvNeXt-T (7x7), in every round;
* redundancy: a small ConvNeXt with 3x3 kernels on 1/4 of the channels is as accurate as with all channels convolved
  (the 95 % interval of the difference, a paired bootstrap over test images and seeds, reaches or passes zero);
* limit: with 1/16 of the channels it is less accurate (the interval lies below zero);
* accuracy: a small InceptionNeXt is at least as accurate as the small ConvNeXt with 7x7 kernels.

The claim holds when all four do, and in part when some do. About 7 minutes on two cores. Killed, the same command goes
on where it was.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "claims" / "inceptionnext.json"
TIMED = ("inceptionnext_tiny", "convnext_tiny", "convnext_tiny_k3", "convnext_tiny_k3_par1_4")
SIZES = {"cpu": (8, 128), "cuda": (128, 224)}  # images in a batch, their side in pixels

CONVNEXT, CONVNEXT_K3, QUARTER, SIXTEENTH = "ConvNeXt, 7x7", "ConvNeXt, 3x3", "3x3 on 1/4", "3x3 on 1/16"
INCEPTIONNEXT = "InceptionNeXt"
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    CONVNEXT: ("convnext_mini32", {}),
    CONVNEXT_K3: ("convnext_mini32", {"kernel_sizes": 3}),
    QUARTER: ("convnext_mini32", {"kernel_sizes": 3, "conv_ratios": 1 / 4}),
    SIXTEENTH: ("convnext_mini32", {"kernel_sizes": 3, "conv_ratios": 1 / 16}),
    INCEPTIONNEXT: ("inceptionnext_mini32", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="CIFAR-10 as a folder; 'cifar10' downloads it")
    parser.add_argument("--part", choices=["speed", "accuracy"], help="one part only")
    parser.add_argument("--device", choices=sorted(SIZES), default="cpu", help="of the speed part")
    parser.add_argument("--rounds", type=int, default=7, help="of the speed part")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--limit", type=int, default=6000, help="training images")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="runs at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/claim_inceptionnext"), help="folder of the runs")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()

    results: dict[str, Any] = {"statements": {}}
    if options.part != "accuracy":
        results["speed"] = speed_part(options.device, options.rounds, results["statements"])
    if options.part != "speed":
        results["accuracy"] = accuracy_part(options, results["statements"])
    held = list(results["statements"].values())
    results = {"holds": "yes" if all(held) else "partly" if any(held) else "no", **results}

    from torchstone.environment import write_result

    changed = [
        f" --{name} {getattr(options, name)}"
        for name in ("part", "device", "rounds", "seeds", "epochs", "limit", "jobs")
        if getattr(options, name) != parser.get_default(name)
    ]
    command = f"python benchmarks/claim_inceptionnext.py --data FOLDER{''.join(changed)}"
    write_result(options.result, command=command, seeds=list(range(options.seeds)), results=results)
    for name, holds in results["statements"].items():
        print(f"{name}: {'holds' if holds else 'does not hold'}")
    print(f"the claim holds: {results['holds']}")


def accuracy_part(options: argparse.Namespace, statements: dict[str, bool]) -> dict[str, Any]:
    """Train the small networks under one protocol and compare them."""
    from seeded_runs import accuracies, difference, scores_of, train_all

    from torchstone.training import DataSpec, ModelSpec, Recipe, TrainSpec

    recipes = {
        name: Recipe(
            model=ModelSpec(model, arguments),
            data=DataSpec(options.data, limit=options.limit, val_fraction=0.02),
            train=TrainSpec(epochs=options.epochs, batch_size=64, lr=3e-3, weight_decay=0.05, warmup_epochs=0.5),
        )
        for name, (model, arguments) in SMALL.items()
    }
    correct = train_all(recipes, range(options.seeds), options.runs, options.jobs)
    scores = scores_of(correct)
    pairs = [
        (CONVNEXT_K3, CONVNEXT),
        (QUARTER, CONVNEXT_K3),
        (SIXTEENTH, CONVNEXT_K3),
        (SIXTEENTH, QUARTER),
        (INCEPTIONNEXT, CONVNEXT),
    ]
    statements["redundancy: 1/4 of the channels is as accurate as all"] = (
        scores.difference(QUARTER, CONVNEXT_K3).high >= 0
    )
    statements["limit: 1/16 of the channels is less accurate"] = scores.difference(SIXTEENTH, CONVNEXT_K3).high < 0
    statements["accuracy: InceptionNeXt is at least as accurate as ConvNeXt"] = (
        scores.difference(INCEPTIONNEXT, CONVNEXT).high >= 0
    )
    protocol = next(iter(recipes.values())).to_dict()
    protocol["data"]["source"] = "CIFAR-10"
    return {
        "networks": accuracies(correct, scores),
        "differences": {f"{a} - {b}": difference(scores, a, b) for a, b in pairs},
        "protocol": {name: protocol[name] for name in ("data", "train")},
    }


def speed_part(device: str, rounds: int, statements: dict[str, bool]) -> dict[str, Any]:
    """Time training steps and inference of the full networks, all of our implementation, in alternated rounds."""
    import torch
    from rounds import alternate, ratio, spread

    from torchstone import create_model

    batch, size = SIZES[device]
    layouts = {"": torch.contiguous_format, ", channels last": torch.channels_last}
    calls = {"training step": {}, "inference": {}}
    for name in TIMED:
        for suffix, layout in layouts.items() if device == "cuda" else [("", torch.contiguous_format)]:
            torch.manual_seed(0)
            network = create_model(name).to(device, memory_format=layout)
            x = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=layout)
            optimizer = torch.optim.AdamW(network.parameters())
            calls["training step"][name + suffix] = lambda n=network, x=x, o=optimizer: train_step(n, x, o)
            calls["inference"][name + suffix] = lambda n=network, x=x: infer(n, x)

    found: dict[str, Any] = {"device": device, "batch": batch, "image size": size, "rounds": rounds}
    for kind, by_name in calls.items():
        seconds = alternate(by_name, rounds, device)
        better = {  # of the two layouts, as in the paper
            name: min(
                (key for key in seconds if key.partition(",")[0] == name),
                key=lambda key: statistics.median(seconds[key]),
            )
            for name in TIMED
        }
        times = {name: ratio(seconds, better[name], better["convnext_tiny"]) for name in TIMED}
        found[kind] = {
            "images per second": {
                key: spread([batch / value for value in values], 1) for key, values in seconds.items()
            },
            "time as a multiple of convnext_tiny": times,
        }
        if kind == "training step":
            statements["speed: InceptionNeXt-T trains faster than ConvNeXt-T"] = times["inceptionnext_tiny"]["high"] < 1
    return found


def train_step(network: Any, x: Any, optimizer: Any) -> None:
    network.train()
    optimizer.zero_grad()
    network(x).square().mean().backward()
    optimizer.step()


def infer(network: Any, x: Any) -> None:
    import torch

    network.eval()
    with torch.inference_mode():
        network(x)


if __name__ == "__main__":
    main()
