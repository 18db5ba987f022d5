"""The claim: networks of fused ConvFirst blocks run about four times as fast as ConvNeXt, and are as accurate.

    python benchmarks/claim_conv_efficiency.py                     # on handwritten digits, which need no network
    python benchmarks/claim_conv_efficiency.py --data FOLDER       # any images, for example CIFAR-10
    python benchmarks/claim_conv_efficiency.py --part prediction   # one part only; the others keep their last result

The paper's figure is for a GPU. Without one it is predicted: the waterline of each network is held against the peak and
bandwidth that data sheets state, for float16 and batches of 128 images of 224x224 pixels. ConvNeXt is taken as a
compiler runs it (neighbouring operators without multiply-accumulates are one kernel), ConvFirst with one kernel per
residual block. The prediction knows of memory only, not of kernels that miss their own bound; ``benchmarks/gpu``
measures them.

Statements:

* prediction: per operation, fused ConvFirst is faster than ConvNeXt on every GPU;
* four times: it is so by a factor of at least 3;
* highest bound: fused, its attainable efficiency is higher than that of EfficientNet, ConvNeXt and itself unfused;
* CPU: measured here on one thread, ConvFirst computes at a higher efficiency than ConvNeXt;
* depth first: measured here, a ConvFirst stack is faster image by image, when its hidden tensors stay in the caches;
* accuracy: a small ConvFirst network is at least as accurate as the small ConvNeXt, trained alike (the 95 % interval of
  the difference, a paired bootstrap over test images and seeds, reaches or passes zero).

The claim holds when all do, in part when some do. About 12 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "claims" / "conv_efficiency.json"
PARTS = ("prediction", "cpu", "accuracy")
STATED = {  # operations per second of float16 with float32 sums, bytes per second, from the makers' data sheets
    "RTX A5000": (111.1e12, 768e9),
    "A100 80 GB": (312e12, 2039e9),
    "H100 SXM": (989e12, 3350e9),
}
NETWORKS = ("convfirst_tiny", "convnext_tiny", "timm:efficientnet_b0")
CONVFIRST, CONVNEXT, EFFICIENTNET = NETWORKS
SMALL = {"ConvFirst": "convfirst_mini32", "ConvNeXt": "convnext_mini32"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="digits, cifar10 or a folder")
    parser.add_argument("--part", choices=PARTS, help="renew one part of the result only")
    parser.add_argument("--rounds", type=int, default=5, help="of the CPU part")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--limit", type=int, help="training images; all by default")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="runs at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/claim_conv_efficiency"), help="folder of the runs")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()

    results: dict[str, Any] = {}
    if options.part and options.result.is_file():
        results = json.loads(options.result.read_text())["results"]
    if options.part in (None, "accuracy"):
        results["accuracy"] = accuracy_part(options)
    if options.part in (None, "prediction"):
        results["prediction"] = prediction_part()
    if options.part in (None, "cpu"):
        results["cpu"] = cpu_part(options.rounds)
    statements = {name: held for part in PARTS for name, held in results.get(part, {}).get("statements", {}).items()}
    held = list(statements.values())
    ordered = {part: results[part] for part in PARTS if part in results}
    results = {"holds": "yes" if all(held) else "partly" if any(held) else "no", "statements": statements, **ordered}

    from torchstone.environment import write_result

    data = "" if options.data == parser.get_default("data") else " --data FOLDER"
    command = f"python benchmarks/claim_conv_efficiency.py{data}"
    write_result(options.result, command=command, seeds=list(range(options.seeds)), results=results)
    for name, holds in statements.items():
        print(f"{name}: {'holds' if holds else 'does not hold'}")
    print(f"the claim holds: {results['holds']}")


def prediction_part() -> dict[str, Any]:
    """Bounds of the full networks on GPUs whose figures are stated."""
    from torchstone.instruments.conv_efficiency import waterline
    from torchstone.instruments.roofline import stated_roof

    found: dict[str, Any] = {"batch": 128, "image size": 224, "dtype": "float16", "gpus": {}}
    for gpu, (peak, bandwidth) in STATED.items():
        roof = stated_roof(peak, bandwidth, dtype="float16")
        lines = {name: waterline(name, batch_size=128, dtype="float16", roof=roof) for name in NETWORKS}
        compiled, fused = lines[CONVNEXT], lines[CONVFIRST]
        found["gpus"][gpu] = {
            "stated operations per second": peak,
            "stated bytes per second": bandwidth,
            "attainable efficiency": {
                name: {level: line.attainable_efficiency(level) for level in line.levels}
                for name, line in lines.items()
            },
            "attainable ms": {
                name: {level: line.attainable_ms(level) for level in line.levels} for name, line in lines.items()
            },
            "fused ConvFirst over compiled ConvNeXt": {
                "per operation": fused.attainable_efficiency("blocks") / compiled.attainable_efficiency("pointwise"),
                "per image": compiled.attainable_ms("pointwise") / fused.attainable_ms("blocks"),
            },
        }
        found["macs of an image"] = {name: line.macs / line.batch_size for name, line in lines.items()}
    gains = [row["fused ConvFirst over compiled ConvNeXt"]["per operation"] for row in found["gpus"].values()]
    bounds = [row["attainable efficiency"] for row in found["gpus"].values()]
    found["statements"] = {
        "prediction: per operation, fused ConvFirst is faster than compiled ConvNeXt on every GPU": min(gains) > 1,
        "four times: by a factor of at least 3": min(gains) >= 3,
        "highest bound: fused ConvFirst above EfficientNet, ConvNeXt and itself, unfused": all(
            row[CONVFIRST]["blocks"] > max(row[name]["pointwise"] for name in NETWORKS) for row in bounds
        ),
    }
    return found


def cpu_part(rounds: int) -> dict[str, Any]:
    """What this CPU shows: efficiencies of the full networks, and a stack layer by layer against image by image."""
    import torch
    from rounds import alternate, ratio, spread

    from torchstone import create_model
    from torchstone.instruments.macs import count_macs
    from torchstone.instruments.roofline import measure_roofline
    from torchstone.models.image.convfirst import StackedBlocks

    torch.manual_seed(0)
    torch.set_num_threads(1)
    batch, size = 2, 128
    images = torch.randn(batch, 3, size, size)
    networks = {name: create_model(name).eval().fuse() for name in (CONVFIRST, CONVNEXT)}
    stack = StackedBlocks(64, expansion_ratio=6, depth=4, extra_depth=2).fuse()  # the author's benchmark
    maps = torch.randn(8, 64, 64, 64)
    calls = {name: lambda network=network: network(images) for name, network in networks.items()}
    calls["layer by layer"] = lambda: stack(maps)
    calls["image by image"] = lambda: torch.cat([stack(one) for one in maps.split(1)])
    with torch.inference_mode():
        torch.testing.assert_close(calls["layer by layer"](), calls["image by image"](), rtol=1e-4, atol=1e-4)
        roof = measure_roofline().roofs[0]
        seconds = alternate(calls, rounds, clock=time.process_time)
    operations = {name: 2 * count_macs(network, images).total for name, network in networks.items()}
    efficiency = {
        name: [operations[name] / (roof.peak * value) for value in seconds[name]] for name in (CONVFIRST, CONVNEXT)
    }
    quotients = [a / b for a, b in zip(efficiency[CONVFIRST], efficiency[CONVNEXT], strict=True)]
    found = {
        "batch": batch,
        "image size": size,
        "rounds": rounds,
        "clock": "processor time of one thread",
        "measured peak, operations per second": roof.peak,
        "measured bandwidth, bytes per second": roof.bandwidth,
        "operations": operations,
        "seconds per call": {name: spread(values, 6) for name, values in seconds.items()},
        "efficiency": {name: spread(values) for name, values in efficiency.items()},
        "efficiency of ConvFirst over ConvNeXt": spread(quotients),
        "stack: time image by image over layer by layer": ratio(seconds, "image by image", "layer by layer"),
    }
    found["statements"] = {
        "CPU: ConvFirst computes at a higher efficiency than ConvNeXt": spread(quotients)["median"] > 1,
        "depth first: a ConvFirst stack is faster image by image": (
            found["stack: time image by image over layer by layer"]["median"] < 1
        ),
    }
    return found


def accuracy_part(options: argparse.Namespace) -> dict[str, Any]:
    """Train the small networks under one protocol and compare them."""
    from seeded_runs import accuracies, difference, scores_of, train_all

    from torchstone.training import DataSpec, ModelSpec, Recipe, TrainSpec

    recipes = {
        name: Recipe(
            model=ModelSpec(model),
            data=DataSpec(options.data, limit=options.limit, val_fraction=0.05),
            train=TrainSpec(epochs=options.epochs, batch_size=64, lr=2e-3, weight_decay=0.05, warmup_epochs=0.5),
        )
        for name, model in SMALL.items()
    }
    correct = train_all(recipes, range(options.seeds), options.runs, options.jobs)
    scores = scores_of(correct)
    protocol = next(iter(recipes.values())).to_dict()
    protocol["data"]["source"] = Path(options.data).name
    return {
        "networks": accuracies(correct, scores),
        "difference ConvFirst - ConvNeXt": difference(scores, "ConvFirst", "ConvNeXt"),
        "protocol": {name: protocol[name] for name in ("data", "train")},
        "statements": {
            "accuracy: ConvFirst is at least as accurate as ConvNeXt (small networks)": (
                scores.difference("ConvFirst", "ConvNeXt").high >= 0
            )
        },
    }


if __name__ == "__main__":
    main()
