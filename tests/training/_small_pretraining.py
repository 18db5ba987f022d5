"""A pre-training run that takes a second, and a process that trains it and is killed."""

import hashlib
from pathlib import Path

from _small import _MOMENTS, outcome, small

# With everything that depends on a position: noise, order, augmentation, layers, average, schedules.
PRETRAINING = {
    "method": {"name": "_methods.denoising", "args": {"noise": 0.4}},
    "train": {
        "mixup": 0.0,
        "warmup_epochs": 1,
        "warmup_lr": 1e-4,
        "weight_decay_end": 0.2,
        "layer_decay": 0.8,
        "ema_decay": 0.9,
    },
}


def pretraining(**changes):
    """The small pre-training recipe with keys of ``train`` or whole sections changed."""
    train = {**PRETRAINING["train"], **changes.pop("train", {})}
    return small(**{**PRETRAINING, **changes, "train": train})


def pretraining_outcome(run: Path) -> dict:
    """All that came of a pre-training run, times aside."""
    others = {
        name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in ("method.safetensors", "pictures.png")
    }
    return {**outcome(run), **others}


def pretrain(out: Path, killed: str = "") -> None:
    """Train the small recipe, killing this process at the moment named."""
    import torch

    from torchstone.training.fit import fit

    torch.set_num_threads(1)
    fit(pretraining(), out, device="cpu", progress=_MOMENTS[killed]() if killed else None)
