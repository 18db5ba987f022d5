"""Learning rate and weight decay as pure functions of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from torchstone.training.recipe import TrainSpec


def learning_rate(train: TrainSpec, step: int, steps_per_epoch: int) -> float:
    """The learning rate of one optimizer step.

    With w warm-up steps, n steps in all, peak lr and epoch e = step / steps_per_epoch::

        step < w:     lr (step + 1) / w,   with warmup_lr:   warmup_lr + (lr - warmup_lr) step / w
        cosine:       min_lr + (lr - min_lr) (1 + cos(pi (step - w) / (n - w))) / 2
        cosine_last:  the same with n - 1 for n: min_lr is the rate of the last step
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
        if train.warmup_lr is None:
            return train.lr * (step + 1) / warmup
        return train.warmup_lr + (train.lr - train.warmup_lr) * step / warmup
    if train.schedule == "constant":
        return train.lr
    if train.schedule in ("cosine", "cosine_last"):
        last = train.epochs * steps_per_epoch - (train.schedule == "cosine_last")
        return _half_cosine(train.lr, train.min_lr, (step - warmup) / max(1, last - warmup))
    usual_rate, usual_epochs = (0.1, None) if train.schedule == "step" else (0.98, 1.0)
    rate = train.decay_rate or usual_rate
    epochs = train.decay_epochs or usual_epochs
    assert epochs is not None  # the recipe's check: a step schedule has decay_epochs
    decays = math.floor(step / steps_per_epoch / epochs)
    return max(train.min_lr, train.lr * rate**decays)


def weight_decay(train: TrainSpec, step: int, steps_per_epoch: int) -> float:
    """The weight decay of one optimizer step: constant, or with ``weight_decay_end`` e, from wd in the first of n steps
    to e in the last::

        e + (wd - e) (1 + cos(pi step / (n - 1))) / 2

    Args:
        train: the protocol.
        step: optimizer steps done before this one.
        steps_per_epoch: optimizer steps in an epoch.
    """
    if train.weight_decay_end is None:
        return train.weight_decay
    last = train.epochs * steps_per_epoch - 1
    return _half_cosine(train.weight_decay, train.weight_decay_end, step / max(1, last))


def _half_cosine(start: float, end: float, progress: float) -> float:
    """From ``start`` at progress 0 to ``end`` at progress 1."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
