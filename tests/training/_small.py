"""A run that takes half a second, and ways to end it early."""

import dataclasses
import hashlib
import json
import os
import signal
from pathlib import Path

from torchstone.training.recipe import Recipe

# Everything random at once: order, augmentation, mixup, dropout, stochastic depth.
SMALL = {
    "model": {"name": "timm:test_convnext", "args": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "drop_rate": 0.1}},
    "data": {"source": "digits", "limit": 40, "augment": "light"},
    "train": {"epochs": 3, "batch_size": 8, "lr": 3e-3, "mixup": 0.2, "drop_path": 0.1},
}


def small(**changes) -> Recipe:
    """The small recipe with keys changed: ``small(train={"lr": 1.0}, seed=1)``."""
    content = {
        name: {**value, **changes.pop(name, {})} if isinstance(value, dict) else value for name, value in SMALL.items()
    }
    return Recipe.from_dict({**content, **changes})


def outcome(run: Path) -> dict:
    """All numbers of a finished run, times aside."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((run / "result.json").read_text())
    return {
        "weights": hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest(),
        "rows": [{name: value for name, value in row.items() if name != "seconds"} for row in rows],
        "result": {name: value for name, value in result.items() if name != "seconds"},
    }


def train(out: Path, workers: int = 0, killed: str = "") -> None:
    """Train the small recipe, killing this process at the moment named."""
    import multiprocessing

    import torch

    from torchstone.training.fit import fit

    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of the loader's workers, as in a program of its own
    recipe = small()
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, workers=workers))
    fit(recipe, out, device="cpu", progress=_MOMENTS[killed]() if killed else None)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _in_an_epoch():
    def progress(now):
        if (now.epoch, now.step) == (2, 3):
            _kill()

    return progress


def _in_a_checkpoint_write():
    """Once half of the second checkpoint of this process is on the disk."""
    from torchstone.training import runs

    write, started = runs._WatchedFile.write, []

    def killing(self, content):
        if self not in started:
            started.append(self)
        written = write(self, content)
        if len(started) == 2 and self.file.tell() > 50_000:
            self.file.flush()
            _kill()
        return written

    runs._WatchedFile.write = killing
    return


def _before_the_result():
    """When the weights are written and the result is not."""
    replace = os.replace

    def killing(source, target):
        if Path(target).name == "result.json":
            _kill()
        replace(source, target)

    os.replace = killing
    return


_MOMENTS = {
    "in an epoch": _in_an_epoch,
    "in a checkpoint write": _in_a_checkpoint_write,
    "before the result": _before_the_result,
}
