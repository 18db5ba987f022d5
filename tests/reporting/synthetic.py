"""Made-up comparisons with the shape of real ones, for the tests of the report."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from torchstone.reporting.ranking import judge
from torchstone.reporting.results import CandidateResult, Comparison, SeedRun, Trial

FOUR = ("inceptionnext_mini32", "ecanet_mini32", "timm:mobilenetv3_small_050", "torchvision:shufflenet_v2_x0_5")
TWELVE = (
    "inceptionnext_mini32",
    "ecanet_mini32",
    "efficientvim_mini32",
    "glnet_mini32",
    "unireplknet_mini32",
    "spark+inceptionnext_mini32+nvit:flops=0.5",
    "timm:mobilenetv3_small_050.lamb_in1k",
    "timm:efficientnet_lite0",
    "timm:resnet18",
    "timm:convnext_atto",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:squeezenet1_1",
)
PROOFS = ("official", "official", "port", "definition", "reconstruction", "official")


def comparison(
    names: tuple[str, ...] = FOUR,
    *,
    classes: int = 10,
    samples: int = 360,
    seeds: int = 2,
    epochs: int = 20,
    start: str = "scratch",
    skill: float = 2.6,
    extra: tuple[CandidateResult, ...] = (),
    seed: int = 0,
) -> Comparison:
    """A comparison whose candidates were all trained, except ``extra``."""
    candidates, correct = trained(
        names, classes=classes, samples=samples, seeds=seeds, epochs=epochs, start=start, skill=skill, seed=seed
    )
    return wrap(judge([*candidates, *extra], correct), classes=classes, samples=samples, seeds=seeds, epochs=epochs)


def wrap(
    candidates: list[CandidateResult], *, classes: int = 10, samples: int = 360, seeds: int = 2, epochs: int = 20
) -> Comparison:
    labels = (
        [str(c) for c in range(10)]
        if classes == 10
        else [f"{ANIMALS[c % len(ANIMALS)]}_{c:02d}" for c in range(classes)]
    )
    names = " ".join(candidate.name for candidate in candidates)
    return Comparison(
        data={
            "name": "digits" if classes == 10 else "animals100",
            "classes": labels,
            "sizes": {"train": 4 * samples, "val": samples // 2, "test": samples},
            "split_seed": 0,
            "indices_hash": "5f0c2ab1d9e34c77",
            "fingerprint": "a8c1f06e2b",
            "image_size": 32,
        },
        task="image-classification",
        metric="accuracy",
        maximize=True,
        protocol={
            "epochs": epochs,
            "batch_size": 128,
            "optimizer": "adamw",
            "weight_decay": 0.05,
            "schedule": "cosine, 2 warm-up epochs",
            "augment": "auto: shift and rotate",
            "label_smoothing": 0.1,
            "seeds": list(range(seeds)),
            "trials": 3,
        },
        candidates=candidates,
        environment={
            "device": "cpu",
            "platform": "Linux-6.8-x86_64",
            "processor": "Example CPU @ 2.80GHz",
            "cores": 2,
            "threads": 2,
            "python": "3.11.9",
            "versions": {"torchstone": "0.1.0", "torch": "2.15.0", "timm": "1.0.31", "lightning": "2.6.6"},
        },
        command=f"torchstone compare --data digits --models {names} --tune 3 --seeds {seeds} --out runs/digits",
        created="2026-03-14T09:26:53+00:00",
        version="0.1.0",
    )


def trained(
    names: tuple[str, ...],
    *,
    classes: int,
    samples: int,
    seeds: int,
    epochs: int,
    start: str,
    skill: float,
    seed: int = 0,
) -> tuple[list[CandidateResult], dict[str, np.ndarray]]:
    """Candidates without a verdict, and the correctness of every prediction, (seeds, samples)."""
    rng = np.random.default_rng(seed)
    targets = np.arange(samples) % classes
    ease = skill + rng.normal(0, 0.8, samples) + rng.normal(0, 0.5, classes)[targets]
    candidates, correct = [], {}
    for index, name in enumerate(names):
        gift = 0.9 - 0.16 * index + rng.normal(0, 0.12)
        runs, predictions = [], []
        for run in range(seeds):
            right = ease + gift + rng.normal(0, 0.05) + rng.logistic(0, 1, samples) > 0
            mistaken = (targets + 1 + (rng.exponential(classes / 6, samples)).astype(int)) % classes
            predictions.append(np.where(right, targets, mistaken))
            accuracy = float((predictions[-1] == targets).mean())
            runs.append(
                SeedRun(run, accuracy, _curves(rng, accuracy, epochs, classes), 38.0 + 9 * index, f"runs/{run}")
            )
        correct[name] = np.stack([prediction == targets for prediction in predictions]).astype(float)
        confusion = np.zeros((classes, classes), dtype=int)
        for prediction in predictions:
            np.add.at(confusion, (targets, prediction), 1)
        lr = (4e-3, 2e-3, 1e-3)[index % 3]
        candidates.append(
            CandidateResult(
                name=name,
                model=name.rpartition(":")[2],
                start=start,
                status="trained",
                proof=PROOFS[index % len(PROOFS)] if ":" not in name.split("+")[0] else "",
                source=name.partition(":")[0] if name.startswith(("timm:", "torchvision:")) else "torchstone",
                cost=_cost(rng, index),
                lr=lr,
                trials=[Trial(lr / 3, 0.91), Trial(lr, 0.955), Trial(3 * lr, None, "loss became NaN at step 214")],
                runs=runs,
                confusion=confusion.tolist(),
                reproduce=f"torchstone compare --data digits --models '{name}' --tune 3 --seeds {seeds} --out runs/one",
            )
        )
    return candidates, correct


def not_trained(name: str, status: str, reason: str, **values: Any) -> CandidateResult:
    return CandidateResult(
        name=name,
        model=name,
        start="scratch",
        status=status,
        reason=reason,
        cost={"params": 11.2e6, "macs": 5.6e8},
        **values,
    )


_ANIMALS = "aardvark badger camel dolphin eagle ferret gecko hamster ibex jackal koala lemur marmot newt panda quail"
ANIMALS = _ANIMALS.split()


def _curves(rng: np.random.Generator, accuracy: float, epochs: int, classes: int) -> dict[str, list[float]]:
    time = np.arange(1, epochs + 1)
    rise = 1 - np.exp(-5 * time / epochs)
    noise = rng.normal(0, 0.012, (3, epochs))
    worst = math.log(classes)
    return {
        "epoch": time.tolist(),
        "train_loss": (worst * (1 - 0.97 * rise) + abs(noise[0])).tolist(),
        "val_loss": (worst * (1 - accuracy * rise) + 0.1 + noise[1]).tolist(),
        "val_accuracy": np.clip(accuracy * rise + noise[2], 0, 1).tolist(),
        "lr": (4e-3 * 0.5 * (1 + np.cos(np.pi * time / epochs))).tolist(),
    }


def _cost(rng: np.random.Generator, index: int) -> dict[str, float | None]:
    size = float(np.exp(rng.normal(0, 0.7)))
    latency = 2.2 * size**0.6 * float(np.exp(rng.normal(0, 0.35)))
    return {
        "params": round(1.1e6 * size),
        "macs": round(38e6 * size**1.2),
        "latency_ms_1": latency,
        "latency_ms_32": 11 * latency,
        "throughput": 32_000 / (11 * latency),
        "memory_mb": 58 + 21 * size,
        "train_memory_mb": 310 + 190 * size,
    }
