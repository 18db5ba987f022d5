"""A run that is killed and repeated ends with the numbers of a run that nobody disturbed."""

import errno
import json
import os
import resource
import signal

import pytest
import torch
from _small import outcome, small, train

from torchstone.errors import CallError, WriteFailed
from torchstone.training import runs
from torchstone.training.fit import fit


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_three_times_it_ends_with_the_same_bits(tmp_path, processes, uninterrupted, workers):
    run = tmp_path / "run"
    moments = {"in an epoch": 1, "in a checkpoint write": 2, "before the result": 3}  # epochs that survive each kill
    for moment, survives in moments.items():
        process = processes.Process(target=train, args=(run, workers, moment))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, moment
        assert torch.load(run / "checkpoint")["epochs_done"] == survives, moment
        assert not (run / "result.json").exists()
    assert (run / "model.safetensors").exists()
    assert list(run.glob(".checkpoint.*.part")) == []

    process = processes.Process(target=train, args=(run, workers))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert outcome(run) == uninterrupted


def test_half_a_checkpoint_beside_the_whole_one_is_cleared_away(tmp_path, processes):
    run = tmp_path / "run"
    process = processes.Process(target=train, args=(run, 0, "in a checkpoint write"))
    process.start()
    process.join()
    assert len(list(run.glob(".checkpoint.*.part"))) == 1
    with runs.RunDirectory(run).locked():
        assert list(run.glob(".*.part")) == []


class Stop(Exception):
    pass


def stop_after(epoch):
    """A progress callback that ends the run in the middle of the next epoch."""

    def progress(now):
        if (now.epoch, now.step) == (epoch + 1, 2):
            raise Stop

    return progress


@pytest.fixture
def stopped(tmp_path):
    """A run stopped in its second epoch."""
    with pytest.raises(Stop):
        fit(small(), tmp_path / "run", device="cpu", progress=stop_after(1))
    return tmp_path / "run"


def test_metrics_are_cut_back_to_the_checkpoint(stopped, uninterrupted):
    with open(stopped / "metrics.jsonl", "a") as file:  # a row without its checkpoint, and half a row
        file.write(json.dumps({"epoch": 2, "train_loss": 0.0}) + '\n{"epoch": 3, "tra')
    assert fit(small(), stopped, device="cpu").trained == 2
    assert outcome(stopped) == uninterrupted


def test_lost_metrics_are_an_error(stopped):
    (stopped / "metrics.jsonl").write_text("")
    with pytest.raises(CallError, match=r"metrics.jsonl has lost rows of the 1 epochs"):
        fit(small(), stopped, device="cpu")


def test_a_truncated_checkpoint_is_an_error_that_says_what_to_do(stopped, uninterrupted):
    checkpoint = stopped / "checkpoint"
    content = checkpoint.read_bytes()[:1000]
    checkpoint.write_bytes(content)
    with pytest.raises(CallError, match=r"run/checkpoint cannot be read; it is truncated or damaged .* delete it"):
        fit(small(), stopped, device="cpu")
    assert checkpoint.read_bytes() == content

    checkpoint.unlink()
    assert fit(small(), stopped, device="cpu").trained == 3
    assert outcome(stopped) == uninterrupted


class Opens:
    """Unpickled, it would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_checkpoint_that_would_run_code_does_not(stopped, tmp_path):
    torch.save({"epochs_done": Opens(str(tmp_path / "opened"))}, stopped / "checkpoint")
    with pytest.raises(CallError, match="cannot be read"):
        fit(small(), stopped, device="cpu")
    assert not (tmp_path / "opened").exists()


def disk_full(monkeypatch):
    write = runs._WatchedFile.write

    def failing(self, content):
        if self.file.tell() > 20_000:
            self.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise self.error
        return write(self, content)

    monkeypatch.setattr(runs._WatchedFile, "write", failing)
    return "No space left on device"


def quota_reached(monkeypatch):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    return "File too large"


@pytest.mark.parametrize("cause", [disk_full, quota_reached])
def test_a_failed_checkpoint_write_names_the_file_and_leaves_the_last_one(tmp_path, monkeypatch, uninterrupted, cause):
    run = tmp_path / "run"

    def progress(now):
        if (now.epoch, now.step) == (2, 1):
            progress.reason = cause(monkeypatch)

    try:
        with pytest.raises(WriteFailed) as failure:
            fit(small(), run, device="cpu", progress=progress)
    finally:
        monkeypatch.undo()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert str(failure.value) == f"cannot write {run}/checkpoint: {progress.reason}"
    assert torch.load(run / "checkpoint")["epochs_done"] == 1
    assert list(run.glob(".*.part")) == []

    assert fit(small(), run, device="cpu").trained == 2
    assert outcome(run) == uninterrupted


def test_another_recipe_is_refused_with_what_differs(stopped):
    with pytest.raises(CallError, match=r"holds another run") as refusal:
        fit(small(train={"lr": 1e-2}, seed=5), stopped, device="cpu")
    assert "seed: 0 there, 5 now" in str(refusal.value)
    assert "train.lr: 0.003 there, 0.01 now" in str(refusal.value)
    assert "train.epochs" not in str(refusal.value)


def test_loader_workers_are_no_part_of_the_identity(stopped, uninterrupted):
    assert fit(small(data={"workers": 1}), stopped, device="cpu").trained == 2
    assert outcome(stopped) == uninterrupted


def test_a_finished_run_is_returned_at_once(finished):
    before = {file.name: file.stat().st_mtime_ns for file in finished.iterdir() if file.name != ".lock"}
    result = fit(small(), finished, device="cpu")
    assert result.trained == 0
    assert len(result.rows) == 3
    assert {file.name: file.stat().st_mtime_ns for file in finished.iterdir() if file.name != ".lock"} == before


def hold(path, held, release):
    with runs.RunDirectory(path).locked():
        held.set()
        release.wait()


def test_two_processes_never_write_one_run(tmp_path, processes):
    held, release = processes.Event(), processes.Event()
    process = processes.Process(target=hold, args=(tmp_path / "run", held, release))
    process.start()
    try:
        assert held.wait(60)
        with pytest.raises(CallError, match="another process is working on"):
            fit(small(), tmp_path / "run", device="cpu")
    finally:
        release.set()
        process.join()


def test_ctrl_c_is_ctrl_c(tmp_path, uninterrupted):
    def interrupt(now):
        if (now.epoch, now.step) == (3, 1):
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(small(), tmp_path / "run", device="cpu", progress=interrupt)
    assert signal.getsignal(signal.SIGINT) is handler
    fit(small(), tmp_path / "run", device="cpu")
    assert outcome(tmp_path / "run") == uninterrupted


def test_sigterm_ends_the_run_within_a_step(tmp_path):
    steps = []

    def terminate(now):
        steps.append((now.epoch, now.step))
        if steps[-1] == (1, 2):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as end:
        fit(small(), tmp_path / "run", device="cpu", progress=terminate)
    assert end.value.code == 128 + signal.SIGTERM
    assert steps[-1] == (1, 2)
