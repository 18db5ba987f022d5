"""A method trains a network into a run, exactly, and a later training starts from it."""

import dataclasses
import json
import signal
import subprocess
import sys

import pytest
import torch
from _small import small
from _small_pretraining import pretrain, pretraining, pretraining_outcome
from PIL import Image
from test_two_processes import _environment

from torchstone.errors import CallError, UnknownName
from torchstone.models.pretrained import read_checkpoint
from torchstone.models.registry import build_model
from torchstone.seeding import seed_everything_at
from torchstone.training.fit import evaluate, fit
from torchstone.training.predict import load_classifier
from torchstone.training.pretraining import Pretraining, load_method, objective
from torchstone.training.recipe import ModelSpec, Recipe
from torchstone.training.runs import RunDirectory, identity, identity_facts, load_run
from torchstone.training.tasks import TASKS

TASK = TASKS["image-classification"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished pre-training run, to be read only."""
    path = tmp_path_factory.mktemp("runs") / "pretrained"
    fit(pretraining(), path, device="cpu")
    return path


@pytest.fixture(scope="module")
def data():
    recipe = small(train={"mixup": 0.0})
    return TASK.open_data(recipe.data, recipe.train, 0)


def build(data, weights=None, **changes):
    """The small network for the digits' classes."""
    seed_everything_at("weights", 7)
    spec = small().model
    return TASK.build_model(ModelSpec(spec.name, {**spec.args, **changes}, weights and str(weights)), data)


# ------------------------------------------------------------------------------ the run


def test_a_run_holds_the_network_the_rest_of_the_method_and_pictures(run):
    result = json.loads((run / "result.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert (result["metric"], result["maximize"]) == ("loss", False)
    assert result["score"] == rows[-1]["val_loss"]
    assert set(rows[0]) == {"epoch", "step", "train_loss", "val_loss", "lr", "seconds"}
    network, info = load_run(run)
    assert network.num_classes == 0
    assert info.recipe.method.name == "_methods.denoising"
    assert read_checkpoint(run / "model.safetensors").keys() == network.state_dict().keys()
    assert read_checkpoint(run / "method.safetensors").keys() == {"decoder.weight", "decoder.bias", "reached"}
    with Image.open(run / "pictures.png") as sheet:  # columns: image, noisy, restored
        assert sheet.size == (4 + 3 * 100, 24 + 8 * 100)
        assert len(set(sheet.get_flattened_data() if hasattr(sheet, "get_flattened_data") else sheet.getdata())) > 50


def test_the_loss_falls_and_what_is_kept_is_the_average_that_was_validated(run, data):
    rows = RunDirectory(run).rows()
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    method, _ = load_method(run)
    losses = []
    with torch.no_grad():
        for index, batch in enumerate(data.val_dataloader()):
            seed_everything_at("evaluate", 0, index)
            losses.append(method.evaluation_loss(batch))
    assert torch.cat(losses).mean().item() == pytest.approx(rows[-1]["val_loss"], rel=1e-5)


def test_the_method_is_told_how_far_training_is(run):
    steps = RunDirectory(run).rows()[-1]["step"]
    reached = read_checkpoint(run / "method.safetensors")["reached"].item()
    assert 0 < reached < (steps - 1) / steps  # an average with ema_decay of the share before each step


def test_killed_three_times_it_ends_with_the_same_bits(tmp_path, processes, run):
    killed = tmp_path / "run"
    for moment, survives in {"in an epoch": 1, "in a checkpoint write": 2, "before the result": 3}.items():
        process = processes.Process(target=pretrain, args=(killed, moment))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, moment
        assert torch.load(killed / "checkpoint")["epochs_done"] == survives, moment
    process = processes.Process(target=pretrain, args=(killed,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert pretraining_outcome(killed) == pretraining_outcome(run)


SCRIPT = """
import os
import sys
import torch
from test_pretraining import SHARED
from _small_pretraining import pretraining
from torchstone.training.fit import fit

torch.set_num_threads(1)
trained = fit(pretraining(**SHARED), sys.argv[1], device="cpu").trained
os.write(1, f"trained {trained}\\n".encode())  # in one piece
"""

# Noise that every process draws alike, and nothing else random but the order.
SHARED = {
    "method": {"name": "_methods.denoising", "args": {"fixed": True}},
    "model": {"args": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "drop_rate": 0.0}},
    "train": {"epochs": 2, "optimizer": "sgd", "lr": 0.05, "drop_path": None, "clip_grad": 1.0},
}


def test_two_processes_under_torchrun_train_what_one_does(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    shared = subprocess.run(
        [*torchrun, tmp_path / "script.py", tmp_path / "shared"],
        env={**_environment(), "PYTHONPATH": ":".join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert (shared.returncode, shared.stderr) == (0, "")
    assert shared.stdout.splitlines() == ["trained 2"] * 2
    alone = fit(pretraining(**SHARED), tmp_path / "alone", device="cpu")
    for row, expected in zip(RunDirectory(tmp_path / "shared").rows(), alone.rows, strict=True):
        assert row == pytest.approx({**expected, "seconds": row["seconds"]}, rel=1e-5)
    for part in ("model", "method"):
        ours, expected = (read_checkpoint(tmp_path / name / f"{part}.safetensors") for name in ("shared", "alone"))
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------------ starting from a run


def test_a_training_starts_from_the_network_with_a_classifier_of_its_own(run, data):
    trained, fresh = build(data, run).state_dict(), build(data).state_dict()
    state = read_checkpoint(run / "model.safetensors")
    assert {name for name in trained if name not in state} == {"head.fc.weight", "head.fc.bias"}
    assert all(torch.equal(trained[name], state[name]) for name in state)
    assert all(torch.equal(trained[name], fresh[name]) for name in ("head.fc.weight", "head.fc.bias"))


def test_a_run_with_a_classifier_gives_it_to_the_same_classes_only(finished, data):
    state = read_checkpoint(finished / "model.safetensors")
    same = build(data, finished).state_dict()
    assert all(torch.equal(same[name], state[name]) for name in state)
    for classes in (0, 3):
        other = build(data, finished, num_classes=classes).state_dict()
        assert all(torch.equal(value, state[name]) for name, value in other.items() if "head.fc" not in name)
    assert other["head.fc.weight"].shape[0] == 3


def test_a_torchvision_network_starts_from_one_without_classes(tmp_path):
    from torchstone.training.starting import start_from_run

    def resnet(classes):
        return build_model("torchvision:resnet18", num_classes=classes)

    source = tmp_path / "run"
    recipe = Recipe.from_dict({**small().to_dict(), "model": {"name": "torchvision:resnet18"}})
    run = RunDirectory(source)
    with run.locked():
        facts = identity_facts(recipe, "none")
        args = {"num_classes": 0}
        run.begin(recipe, facts, model_args=args, classes=[], preprocessing={}, data={})
        bare = resnet(0)
        run.keep({"model": bare.state_dict()})
        run.finish({})
    model = resnet(4)
    start_from_run(model, source, "torchvision:resnet18", lambda: resnet(10), lambda: resnet(0))
    assert torch.equal(model.layer4[1].conv2.weight, bare.layer4[1].conv2.weight)
    assert model.fc.weight.shape == (4, 512)


def test_weights_that_do_not_fit_are_refused(run, data, tmp_path):
    with pytest.raises(CallError, match=r"the run .* trained timm:test_convnext, not timm:test_resnet"):
        TASK.build_model(ModelSpec("timm:test_resnet", weights=str(run)), data)
    with pytest.raises(CallError, match=r"do not fit ConvNeXt:\n  missing: stages\.0\.blocks\.1"):
        build(data, run, depths=[2, 1, 1, 1])
    (tmp_path / "identity.json").write_text("{}")
    with pytest.raises(CallError, match="is not finished"):
        build(data, tmp_path)


def test_the_identity_names_the_weights_by_their_content(run, tmp_path):
    facts = identity_facts(small(model={"weights": str(run)}), "data")
    assert facts["model"]["weights"].startswith("sha256:")
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    assert identity_facts(small(model={"weights": str(moved)}), "data") == facts
    (moved / "model.safetensors").write_bytes(b"other")
    assert identity_facts(small(model={"weights": str(moved)}), "data") != facts


def test_pretrained_means_released_weights_whatever_folder_has_that_name(run, tmp_path, monkeypatch):
    (tmp_path / "pretrained").symlink_to(run)
    monkeypatch.chdir(tmp_path)
    assert ModelSpec("x", weights="pretrained").local is None
    assert ModelSpec("x", weights="./pretrained").local.is_dir()
    assert ModelSpec("x").local is None


def test_the_identity_knows_a_method_its_arguments_and_its_module():
    facts = identity_facts(pretraining(), "data")
    assert facts["method"]["content"].startswith("sha256:")
    other = {"name": "_methods.denoising", "args": {"noise": 0.2}}
    assert len({identity(recipe, "data") for recipe in (small(), pretraining(), pretraining(method=other))}) == 3


# ------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        ({"name": "denoise"}, UnknownName, "unknown method 'denoise'"),
        ({"name": "_methods.nothing"}, CallError, r"there is no module _methods\.nothing .* PYTHONPATH"),
        ({"name": "torch.nn"}, CallError, r"torch\.nn is no method: it has no function build"),
        ({"name": "_methods.denoising", "args": {"nois": 1}}, CallError, "does not take this argument.*nois"),
        ({"name": "_methods.denoising", "args": {"noise": -1}}, CallError, "noise must not be negative"),
    ],
)
def test_a_method_that_cannot_be_is_refused(tmp_path, method, error, message):
    with pytest.raises(error, match=message):
        fit(pretraining(method=method), tmp_path / "run", device="cpu")


@pytest.mark.parametrize("key", ["label_smoothing", "mixup", "cutmix"])
def test_what_is_about_labels_is_refused(tmp_path, key):
    with pytest.raises(CallError, match=f"train.{key} is about labels"):
        fit(pretraining(train={key: 0.1}), tmp_path / "run", device="cpu")


def test_a_pre_training_run_predicts_nothing(run):
    with pytest.raises(CallError, match=r"has no classifier yet: train one from it \(model.weights="):
        load_classifier(run)
    with pytest.raises(CallError, match="is a pre-training run, which predicts nothing"):
        evaluate(run, "test")


def test_a_run_without_a_method_has_none_to_load(finished):
    with pytest.raises(CallError, match="is a run without a method"):
        load_method(finished)


class Scalar:
    """Mixed into the test method: a loss that is none of each sample."""

    def evaluation_loss(self, batch):
        return super().evaluation_loss(batch).mean()


def test_a_loss_that_is_not_one_of_each_sample_is_refused(tmp_path, monkeypatch):
    from _methods import denoising

    wrong = type("Wrong", (Scalar, denoising.Denoising), {})
    monkeypatch.setattr(denoising, "build", lambda model, **args: wrong(model, **args))
    with pytest.raises(CallError, match=r"Wrong.evaluation_loss returns a loss a sample, \(8,\); got \(\)"):
        fit(pretraining(train={"epochs": 2}), tmp_path / "run", device="cpu")


def test_a_recipe_without_a_method_is_its_tasks_own():
    assert objective(small()) is TASK
    assert isinstance(objective(pretraining()), Pretraining)
    assert "method" not in small().to_dict()
    assert Recipe.from_dict(pretraining().to_dict()) == pretraining()
    assert dataclasses.replace(pretraining(), method=None).to_dict().keys() == small().to_dict().keys()
