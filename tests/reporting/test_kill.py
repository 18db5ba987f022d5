"""A comparison killed at any moment goes on to the same weights and results as one that was left alone."""

import hashlib
import io
import json
import multiprocessing
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from _images import write_images
from safetensors.torch import load_file

import torchstone.reporting.compare as comparing
from torchstone.reporting.measuring import Measurement
from torchstone.reporting.results import load_comparison
from torchstone.training import runs

MODELS = ["timm:test_efficientnet", "timm:test_mambaout"]
TRAINED = 2 * (2 + 2 - 1)  # candidates, each with two rates and two seeds, of which one run is both


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_step(state: comparing.Progress) -> None:
    """While the first candidate trains its second epoch, with the second rate."""
    if state.run and state.run.epoch == 2 and "learning rate 0.000158" in state.doing:
        kill()


def in_a_checkpoint_write(content, file, save=torch.save) -> None:
    """With half of a checkpoint written: of the first candidate's second seed, after its second epoch."""
    buffer = io.BytesIO()
    save(content, buffer)
    second_seed = "seed1" in Path(file.file.name).parent.name
    if second_seed and content["epochs_done"] == 2:
        file.write(buffer.getvalue()[: buffer.tell() // 2])
        file.flush()
        kill()
    file.write(buffer.getvalue())


def before_the_last_test(path, split, *, evaluate=comparing.evaluate, **options):
    """With everything trained, when the last run is to be tested."""
    if "mambaout" in str(path) and "seed1" in path.name:
        kill()
    return evaluate(path, split, **options)


def compare(data: Path, out: Path, workers: int, moment: str) -> None:
    """One process: compares, and kills itself at a moment. What models cost is none of this test's business."""
    torch.set_num_threads(1)
    comparing.measure = lambda models, **_: {name: Measurement({"params": 1e5}) for name in models}
    if moment == "checkpoint":
        runs.torch.save = in_a_checkpoint_write
    if moment == "test":
        comparing.evaluate = before_the_last_test
    comparing.compare(
        str(data),
        MODELS,
        out=out,
        tune=2,
        seeds=2,
        epochs=2,
        batch_size=8,
        size=16,
        workers=workers,
        device="cpu",
        progress=in_a_step if moment == "step" else None,
    )


def nursery(pipe) -> None:
    """A process that imports torch once and forks a child for each comparison; it tells how each child ended."""
    multiprocessing.set_start_method("fork", force=True)  # for the loader's workers: as in a program of its own
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        child = os.fork()
        if child == 0:
            compare(*arguments)
            os._exit(0)
        pipe.send(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


@pytest.fixture(scope="module")
def run_once():
    """Runs :func:`compare` in a new process and gives its exit code."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=nursery, args=(theirs,))
    process.start()
    theirs.close()

    def run(*arguments) -> int:
        ours.send(arguments)
        return ours.recv()

    yield run
    ours.close()
    process.join()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def undisturbed(run_once, data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert run_once(data, out, 0, "") == 0
    return out


def outcome(out: Path) -> dict[str, object]:
    """Hashes of all weights and predictions, and the results without times and places."""
    hashes = {
        f"{path.relative_to(out)}: {name}": hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
        for path in [*out.glob("runs/*/*/model.safetensors"), *out.glob("runs/*/*/test.safetensors")]
        for name, tensor in load_file(path).items()
    }
    results = load_comparison(out).to_dict()
    for name in ("created", "command", "environment"):
        del results[name]
    for candidate in results["candidates"]:
        del candidate["reproduce"]
        candidate["dominated"].pop("train_seconds", None)
        for run in candidate["runs"]:
            del run["seconds"]
    return {**hashes, "results": results}


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_three_times_a_comparison_ends_as_if_it_had_not_been(run_once, data, undisturbed, tmp_path, workers):
    out = tmp_path / "out"
    finished = partial(lambda: len(list(out.glob("runs/*/*/result.json"))))

    assert run_once(data, out, workers, "step") == -signal.SIGKILL
    assert finished() == 1

    assert run_once(data, out, workers, "checkpoint") == -signal.SIGKILL
    assert finished() == 2
    (half_written,) = out.glob("runs/*/*/.checkpoint.*.part")
    whole = runs.load_checkpoint(half_written.with_name("checkpoint"))
    assert whole["epochs_done"] == 1
    assert 0 < half_written.stat().st_size < half_written.with_name("checkpoint").stat().st_size

    assert run_once(data, out, workers, "test") == -signal.SIGKILL
    assert finished() == TRAINED
    assert len(list(out.glob("runs/*/*/test.safetensors"))) == 3

    weights = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*/model.safetensors")}
    assert run_once(data, out, workers, "") == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*/model.safetensors")} == weights
    assert outcome(out) == outcome(undisturbed)
    assert not list(out.rglob("*.part"))
    assert len(json.loads((out / "results.json").read_text())["candidates"]) == len(MODELS)
