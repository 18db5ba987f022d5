"""Learning rates as pure functions of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from torchstone.training.recipe import TrainSpec


def learning_rate(train: TrainSpec, step: int, steps_per_epoch: int) -> float:
    """The learning rate of one optimizer step.

    With w warm-up steps, n steps in all, peak lr and epoch e = step / steps_per_epoch::

        step < w:     lr (step + 1) / w
        cosine:       min_lr + (lr - min_lr) (1 + cos(pi (step - w) / (n - w))) / 2
        step:         lr decay_rate ** floor(e / decay_epochs)       decay_rate 0.1 unless given
        exponential:  lr decay_rate ** floor(e / decay_epochs)       0.98 every epoch unless given
        constant:     lr

    Args:
        train: the protocol.
        step: optimizer steps done before this one.
        steps_per_epoch: optimizer steps in an epoch.
    """
    warmup = round(train.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return train.lr * (step + 1) / warmup
    if train.schedule == "constant":
        return train.lr
    if train.schedule == "cosine":
        progress = (step - warmup) / (train.epochs * steps_per_epoch - warmup)
        return train.min_lr + (train.lr - train.min_lr) * (1 + math.cos(math.pi * progress)) / 2
    usual_rate, usual_epochs = (0.1, None) if train.schedule == "step" else (0.98, 1.0)
    rate = train.decay_rate or usual_rate
    epochs = train.decay_epochs or usual_epochs
    assert epochs is not None  # the recipe's check: a step schedule has decay_epochs
    decays = math.floor(step / steps_per_epoch / epochs)
    return max(train.min_lr, train.lr * rate**decays)
