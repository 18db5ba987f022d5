"""InceptionNeXt's claims at small scale: it trains faster than ConvNeXt, and convolving few channels costs no accuracy.

    python benchmarks/claim_inceptionnext.py --data FOLDER         # CIFAR-10 as Parquet or images; cifar10 downloads
    python benchmarks/claim_inceptionnext.py --device cuda --part speed --result benchmarks/results/claims/FILE

Four statements are checked, each of them in direction:

* speed: a training step of InceptionNeXt-T takes less time than one of ConvNeXt-T (7x7), ours and timm's, in every
  round;
* redundancy: a small ConvNeXt with 3x3 kernels on 1/4 of the channels is as accurate as with all channels convolved;
* limit: with 1/16 of the channels it is less accurate;
* accuracy: a small InceptionNeXt is at least as accurate as the small ConvNeXt with 7x7 kernels.

The small networks have the same depths and channels, and are trained by one protocol, without stochastic depth. One is
less accurate than another where the 95 % interval of the difference (paired bootstrap over test images and seeds) lies
below zero, and as accurate where it does not and the mean is at most one point lower; what is neither is undecided.

The training must not be too short: under LayerNorm the convolved channels of a partial convolution start at a sixth of
the others' scale (their kernels start small, and the norm is over all channels), so that the first few hundred steps
tell of the initialisation alone.

The claim holds when all four do, and in part when some do. About 25 minutes of one core. Killed, the same command goes
on where it was.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchstone.reporting.statistics import Interval

RESULT = Path(__file__).parent / "results" / "claims" / "inceptionnext.json"
OURS, PLAIN, TIMMS = "inceptionnext_tiny", "convnext_tiny", "timm:convnext_tiny"
TIMED = (OURS, PLAIN, TIMMS, "convnext_tiny_k3", "convnext_tiny_k3_par1_4")
SIZES = {"cpu": (8, 128), "cuda": (128, 224)}  # images in a batch, their side in pixels

CONVNEXT, CONVNEXT_K3, QUARTER, SIXTEENTH = "ConvNeXt, 7x7", "ConvNeXt, 3x3", "3x3 on 1/4", "3x3 on 1/16"
INCEPTIONNEXT = "InceptionNeXt"
SHAPE = {"depths": [3, 5], "dims": [32, 64], "patch_size": 4}  # maps of 8x8 and 4x4, for the CPU's sake
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    CONVNEXT: ("convnext_mini32", SHAPE),
    CONVNEXT_K3: ("convnext_mini32", {**SHAPE, "kernel_sizes": 3}),
    QUARTER: ("convnext_mini32", {**SHAPE, "kernel_sizes": 3, "conv_ratios": 1 / 4}),
    SIXTEENTH: ("convnext_mini32", {**SHAPE, "kernel_sizes": 3, "conv_ratios": 1 / 16}),
    INCEPTIONNEXT: ("inceptionnext_mini32", SHAPE),
}
HOLDS, NOT, UNDECIDED = "holds", "does not hold", "undecided"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="CIFAR-10 as a folder; 'cifar10' downloads it")
    parser.add_argument("--part", choices=["speed", "accuracy"], help="one part only")
    parser.add_argument("--device", choices=sorted(SIZES), default="cpu", help="of the speed part")
    parser.add_argument("--rounds", type=int, default=7, help="of the speed part")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
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
    held = [found == HOLDS for found in results["statements"].values()]
    results = {"holds": "yes" if all(held) else "partly" if any(held) else "no", **results}

    from torchstone.environment import write_result

    changed = [
        f" --{name} {getattr(options, name)}"
        for name in ("part", "device", "rounds", "seeds", "epochs", "limit", "jobs")
        if getattr(options, name) != parser.get_default(name)
    ]
    command = f"python benchmarks/claim_inceptionnext.py --data FOLDER{''.join(changed)}"
    write_result(options.result, command=command, seeds=list(range(options.seeds)), results=results)
    for name, found in results["statements"].items():
        print(f"{name}: {found}")
    print(f"the claim holds: {results['holds']}")


def accuracy_part(options: argparse.Namespace, statements: dict[str, str]) -> dict[str, Any]:
    """Train the small networks under one protocol and compare them."""
    from seeded_runs import accuracies, difference, scores_of, train_all

    from torchstone import create_model
    from torchstone.training import DataSpec, ModelSpec, Recipe, TrainSpec

    recipes = {
        name: Recipe(
            model=ModelSpec(model, arguments),
            data=DataSpec(options.data, limit=options.limit, val_fraction=0.02),
            train=TrainSpec(epochs=options.epochs, batch_size=32, lr=2e-3, weight_decay=0.05, warmup_epochs=0.5),
        )
        for name, (model, arguments) in SMALL.items()
    }
    correct = train_all(recipes, range(options.seeds), options.runs, options.jobs)
    scores = scores_of(correct)
    statements["redundancy: 1/4 of the channels is as accurate as all"] = as_accurate(
        scores.difference(QUARTER, CONVNEXT_K3)
    )
    statements["limit: 1/16 of the channels is less accurate"] = less_accurate(
        scores.difference(SIXTEENTH, CONVNEXT_K3)
    )
    statements["accuracy: InceptionNeXt is at least as accurate as ConvNeXt"] = as_accurate(
        scores.difference(INCEPTIONNEXT, CONVNEXT)
    )
    protocol = next(iter(recipes.values())).to_dict()
    protocol["data"]["source"] = "CIFAR-10"
    networks = accuracies(correct, scores)
    for name, (model, arguments) in SMALL.items():
        parameters = create_model(model, num_classes=10, **arguments).parameters()
        networks[name] = {"parameters": sum(parameter.numel() for parameter in parameters), **networks[name]}
    pairs = [
        (CONVNEXT_K3, CONVNEXT),
        (QUARTER, CONVNEXT_K3),
        (SIXTEENTH, CONVNEXT_K3),
        (SIXTEENTH, QUARTER),
        (INCEPTIONNEXT, CONVNEXT),
    ]
    return {
        "networks": networks,
        "differences": {f"{a} - {b}": difference(scores, a, b) for a, b in pairs},
        "protocol": {"shape of the networks": SHAPE, "data": protocol["data"], "train": protocol["train"]},
    }


def as_accurate(found: Interval) -> str:
    return NOT if found.high < 0 else HOLDS if found.value >= -0.01 else UNDECIDED


def less_accurate(found: Interval) -> str:
    return HOLDS if found.high < 0 else NOT if found.value >= 0 else UNDECIDED


def speed_part(device: str, rounds: int, statements: dict[str, str]) -> dict[str, Any]:
    """Time training steps and inference of the full networks, all of our implementation, in alternated rounds."""
    import torch
    from rounds import alternate, ratio, spread

    from torchstone.models.registry import build_model

    batch, size = SIZES[device]
    layouts = {"": torch.contiguous_format, ", channels last": torch.channels_last}
    calls = {"training step": {}, "inference": {}}
    for name in TIMED:
        for suffix, layout in layouts.items() if device == "cuda" else [("", torch.contiguous_format)]:
            torch.manual_seed(0)
            network = build_model(name).to(device, memory_format=layout)
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
        multiples = {
            of: {name: ratio(seconds, better[name], better[of]) for name in TIMED if name != of}
            for of in (PLAIN, TIMMS)
        }
        found[kind] = {
            "images per second": {
                key: spread([batch / value for value in values], 1) for key, values in seconds.items()
            },
            **{f"time as a multiple of {of}": times for of, times in multiples.items()},
        }
        if kind == "training step":
            ours = [times[OURS] for times in multiples.values()]
            slower = any(times["median"] >= 1 for times in ours)
            faster = all(times["high"] < 1 for times in ours)
            verdict = NOT if slower else HOLDS if faster else UNDECIDED
            statements["speed: InceptionNeXt-T trains faster than ConvNeXt-T"] = verdict
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
