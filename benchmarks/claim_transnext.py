"""TransNeXt's claims at small scale: each part helps, and logits that follow the number of keys serve larger images.

Trains a narrow transnext_mini32 on a part of CIFAR-10: whole; with pooled keys alone, as networks of pooled attention
have them; without the query embedding; without the learnable tokens; with a GLU whose gate has no convolution; with an
MLP that has the convolution and no gate. Nothing else differs: protocol, number of steps and seeds are the same, and
the test images are read once, at the end. A part helps when the whole network is more accurate than the one without it,
by a 95 % interval of the difference (paired bootstrap over test images and seeds) above zero.

Then the whole networks read part of the test images enlarged to 1.5 and 2 times their size, once with the logits' scale
recomputed from the number of keys and once with the scale of training. Recomputing helps when it is more accurate at
both sizes, again by intervals above zero. All of these together are "yes", some of them "partly".

    python benchmarks/claim_transnext.py --data FOLDER    # Parquet or image folders; cifar10 downloads

Killed, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "claims" / "transnext.json"
SMALL = {"patch_size": 4, "dims": (24, 48, 96), "heads": (1, 2, 4), "depths": (1, 1, 1)}
WHOLE = "whole"
WITHOUT: dict[str, tuple[str, dict[str, Any]]] = {  # by part: the network without it, and its arguments
    "neighbours": ("pooled keys alone", {"windows": (None, None, None)}),
    "query embedding": ("no query embedding", {"learned": ("learnable_tokens",)}),
    "learnable tokens": ("no learnable tokens", {"learned": ("query_embedding",)}),
    "convolution of the gate": ("GLU", {"feed_forward": "glu"}),
    "gate": ("convolution and MLP", {"feed_forward": "conv_mlp"}),
}
SCALES = {"recomputed": "image", "of training": "trained"}
SIZES = (32, 48, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="CIFAR-10 as a folder; 'cifar10' downloads it")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--limit", type=int, default=12800, help="training images")
    parser.add_argument("--enlarged", type=int, default=2000, help="test images that are read at larger sizes")
    parser.add_argument("--parts", nargs="+", choices=list(WITHOUT), default=list(WITHOUT), help="those to leave out")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="runs at a time")
    parser.add_argument("--runs", type=Path, default=Path("runs/claim_transnext"), help="folder of the run directories")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()

    results = compare(options)
    results["larger images"] = enlarge(options)
    held = [*results["helps"].values(), results["larger images"]["recomputing helps"]]
    results = {"holds": "yes" if all(held) else "partly" if any(held) else "no", **results}
    changed = [
        f" --{name} {getattr(options, name)}"
        for name in ("seeds", "epochs", "limit", "enlarged", "jobs")
        if getattr(options, name) != parser.get_default(name)
    ]
    if options.parts != parser.get_default("parts"):
        changed.append(" --parts " + " ".join(f'"{part}"' for part in options.parts))
    command = f"python benchmarks/claim_transnext.py --data FOLDER{''.join(changed)}"

    from torchstone.environment import write_result

    write_result(options.result, command=command, seeds=list(range(options.seeds)), results=results)
    for found in (results["differences"], results["larger images"]["differences"]):
        for name, difference in found.items():
            low, high = difference["95 % interval"]
            print(f"{name}: {difference['mean']:+.4f} ({low:+.4f} to {high:+.4f})")
    print(f"the claim holds: {results['holds']}")


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Train every network with every seed; accuracies, parameters, and what the parts gain."""
    from seeded_runs import accuracies, difference, scores_of, train_all

    from torchstone import create_model
    from torchstone.training import DataSpec, ModelSpec, Recipe, TrainSpec

    without = {part: WITHOUT[part] for part in WITHOUT if part in options.parts}
    networks = {WHOLE: {}, **dict(without.values())}
    recipes = {
        name: Recipe(
            model=ModelSpec("transnext_mini32", {**SMALL, **changes}),
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
        for name, changes in networks.items()
    }
    correct = train_all(recipes, range(options.seeds), options.runs, options.jobs)
    scores = scores_of(correct)
    params = {
        name: sum(p.numel() for p in create_model("transnext_mini32", num_classes=10, **SMALL, **changes).parameters())
        for name, changes in networks.items()
    }
    protocol = recipes[WHOLE].to_dict()
    protocol["data"]["source"] = "CIFAR-10"
    return {
        "helps": {part: scores.difference(WHOLE, other).low > 0 for part, (other, _) in without.items()},
        "networks": {
            name: {"parameters": params[name], **found} for name, found in accuracies(correct, scores).items()
        },
        "differences": {f"{WHOLE} - {other}": difference(scores, WHOLE, other) for other, _ in without.values()},
        "protocol": {name: protocol[name] for name in ("data", "train")},
    }


def enlarge(options: argparse.Namespace) -> dict[str, Any]:
    """Accuracy of the whole networks on enlarged test images, with either scale of the logits."""
    from seeded_runs import accuracies, scores_of

    correct: dict[str, dict[int, list[float]]] = {}
    for seed in range(options.seeds):
        images, labels, state = trained(options, options.runs / f"0-{seed}")
        for size in SIZES:
            for name, scale in SCALES.items():
                right = answers_of(state, images, size, scale) == labels
                correct.setdefault(f"{size} pixels, scale {name}", {})[seed] = right.float().tolist()
    pairs = [tuple(f"{size} pixels, scale {name}" for name in SCALES) for size in SIZES if size != SIZES[0]]
    gains = {f"{a} - {b}": gain(correct[a], correct[b]) for a, b in pairs}
    return {
        "recomputing helps": all(found["95 % interval"][0] > 0 for found in gains.values()),
        "images": options.enlarged,
        "accuracies": accuracies(correct, scores_of(correct)),
        "differences": gains,
    }


def gain(ours: dict[int, list[float]], theirs: dict[int, list[float]]) -> dict[str, Any]:
    """By how much the answers of the same weights differ: a bootstrap of each seed's and image's difference."""
    import numpy as np

    from torchstone.reporting.statistics import bootstrap

    differences = np.array([ours[seed] for seed in ours]) - np.array([theirs[seed] for seed in ours])
    found = bootstrap({"gain": differences}, bounds=(-1.0, 1.0)).intervals["gain"]
    return {"mean": found.value, "95 % interval": [found.low, found.high]}


def trained(options: argparse.Namespace, run: Path) -> tuple[Any, Any, Any]:
    """The first test images as the run's network reads them, their labels, and its weights."""
    import torch

    from torchstone.training.runs import load_run
    from torchstone.training.tasks import get_task

    model, info = load_run(run)
    data = get_task(info.recipe.task).open_data(info.recipe.data, info.recipe.train, info.recipe.seed, None)
    images, labels, found = [], [], 0
    for batch, targets in data.test_dataloader():
        images.append(batch)
        labels.append(targets)
        found += len(batch)
        if found >= options.enlarged:
            break
    return torch.cat(images)[: options.enlarged], torch.cat(labels)[: options.enlarged], model.state_dict()


def answers_of(state: Any, images: Any, size: int, length_scale: str) -> Any:
    """Classes that the network of these weights sees in enlarged images."""
    import torch

    from torchstone import create_model

    model = create_model("transnext_mini32", num_classes=10, **SMALL, length_scale=length_scale).eval()
    model.load_state_dict(state)
    with torch.inference_mode():
        return torch.cat(
            [
                model(torch.nn.functional.interpolate(part, size=size, mode="bicubic")).argmax(1)
                for part in images.split(100)
            ]
        )


if __name__ == "__main__":
    main()
