import dataclasses
import json
import math
import random
import shutil

import numpy as np
import pytest
import torch
from _small import outcome, small
from torch.nn import functional as F

from torchstone.data.images import open_images
from torchstone.errors import CallError, NonFiniteLoss, UnknownName
from torchstone.models.pretrained import read_checkpoint
from torchstone.seeding import seed_everything_at
from torchstone.training.devices import Processes, check_strategy, resolve_device
from torchstone.training.fit import evaluate, fit
from torchstone.training.runs import RunDirectory, identity, load_run, read_info
from torchstone.training.supervised import Classification, has_unused_parameters
from torchstone.training.tasks import TASKS, ImageClassification, get_task

FILES = {
    "checkpoint",
    "classes.json",
    "data.json",
    "environment.json",
    "identity.json",
    "metrics.jsonl",
    "model.json",
    "model.safetensors",
    "preprocessing.json",
    "recipe.yaml",
    "result.json",
}


def test_a_run_writes_its_files_and_nothing_to_the_terminal(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = fit(small(train={"epochs": 1}), tmp_path / "run", device="cpu")
    assert {file.name for file in (tmp_path / "run").iterdir()} == FILES | {".lock"}
    assert [file.name for file in tmp_path.iterdir()] == ["run"]
    assert capfd.readouterr() == ("", "")
    assert result.trained == len(result.rows) == 1
    assert result.score == result.rows[-1]["val_accuracy"]
    assert set(result.rows[0]) == {"epoch", "step", "train_loss", "val_loss", "val_accuracy", "lr", "seconds"}


def test_progress_follows_every_step(tmp_path):
    seen = []
    fit(small(train={"epochs": 2}), tmp_path / "run", device="cpu", progress=seen.append)
    assert [(now.epoch, now.step) for now in seen] == [(epoch, step) for epoch in (1, 2) for step in (1, 2, 3, 4, 5, 5)]
    assert {(now.epochs, now.steps) for now in seen} == {(2, 5)}
    assert [now.score is None for now in seen] == [True] * 5 + [False] * 7
    assert all(math.isfinite(now.loss) for now in seen)


def test_the_callers_random_numbers_and_settings_are_left_alone(tmp_path):
    def state():
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    def seed():
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)

    seed()
    expected = state()
    seed()
    fit(small(train={"epochs": 1}), tmp_path / "run", device="cpu")
    assert state() == expected
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_it_learns(tmp_path):
    recipe = small(
        data={"limit": 600, "augment": "none"},
        model={"args": {"depths": [1, 1, 1, 1], "dims": [16, 16, 32, 32]}},
        train={"epochs": 5, "batch_size": 30, "lr": 5e-3, "mixup": 0.0, "drop_path": None, "optimizer": "adamw"},
        expect={"val_accuracy": 0.6, "val_loss": 0.01},
    )
    result = fit(recipe, tmp_path / "run", device="cpu")
    assert result.score > 0.6
    assert len(result.unmet) == 1
    assert result.unmet[0].endswith("at most 0.01 was expected")


def test_an_expectation_of_something_unmeasured_is_refused_before_any_work(tmp_path):
    with pytest.raises(CallError, match=r"expect.val_acuracy is not measured; .*val_accuracy"):
        fit(small(expect={"val_acuracy": 0.9}), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def layer_norm_recipe(**train):
    """Nothing random but the order, so that cutting a batch in parts changes nothing but rounding."""
    return small(
        model={"args": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}},
        train={"optimizer": "sgd", "lr": 0.05, "epochs": 2, "mixup": 0.0, "drop_path": None, **train},
    )


def test_accumulated_parts_train_like_whole_batches(tmp_path):
    whole = fit(layer_norm_recipe(), tmp_path / "whole", device="cpu")
    parts = fit(layer_norm_recipe(accumulate=4), tmp_path / "parts", device="cpu")
    assert [row["step"] for row in parts.rows] == [row["step"] for row in whole.rows] == [5, 10]
    assert [row["lr"] for row in parts.rows] == [row["lr"] for row in whole.rows]
    for a, b in zip(load_run(whole.path)[0].parameters(), load_run(parts.path)[0].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_bfloat16_and_clipping_train(tmp_path):
    result = fit(layer_norm_recipe(precision="bf16-mixed", clip_grad=1.0, epochs=1), tmp_path / "run", device="cpu")
    assert math.isfinite(result.rows[-1]["train_loss"])
    assert {value.dtype for value in load_run(result.path)[0].state_dict().values()} == {torch.float32}


def test_clipping_bounds_every_step(tmp_path):
    """With one step of plain SGD the weights move by at most lr times the largest norm."""
    recipe = layer_norm_recipe(
        optimizer="momentum",
        momentum=0.0,
        lr=1.0,
        epochs=1,
        batch_size=40,
        clip_grad=1e-3,
        weight_decay=0.0,
        schedule="constant",
    )
    fit(recipe, tmp_path / "run", device="cpu")
    after = load_run(tmp_path / "run")[0].state_dict()
    task = get_task(recipe.task)
    seed_everything_at("weights", recipe.seed)
    before = task.build_model(recipe.model, task.open_data(recipe.data, recipe.train, 0)).state_dict()
    moved = torch.cat([(after[name] - before[name]).flatten() for name in after]).norm()
    assert moved.item() == pytest.approx(1e-3, rel=1e-3)


# ------------------------------------------------------------------------------------------------------------- errors


class Broken(ImageClassification):
    """Digits with a NaN in one image of the second batch."""

    name = "broken"

    def __init__(self, split):
        self.split = split

    def open_data(self, data, train, seed, source=None):
        opened = super().open_data(data, train, seed, source)
        make = getattr(opened, f"{self.split}_dataloader")

        def broken():
            loader = make()
            collate, batches = loader.collate_fn, []

            def with_nan(samples):
                images, labels = collate(samples)
                batches.append(images)
                if len(batches) == 2:
                    images[3, 0, 5, 5] = math.nan
                return images, labels

            loader.collate_fn = with_nan
            return loader

        setattr(opened, f"{self.split}_dataloader", broken)
        return opened


@pytest.mark.parametrize(("split", "kind"), [("train", "training"), ("val", "validation")])
def test_nan_in_the_data_is_named_with_its_step(tmp_path, monkeypatch, split, kind):
    monkeypatch.setitem(TASKS, "broken", Broken(split))
    message = f"the {kind} loss became nan at epoch 1, step 2 .*: the inputs of 1 of its 8 samples hold NaN"
    with pytest.raises(NonFiniteLoss, match=message):
        fit(small(task="broken", train={"mixup": 0.0}), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_a_diverging_loss_is_named_with_its_step(tmp_path):
    recipe = small(train={"lr": 1e30, "optimizer": "sgd", "schedule": "constant"})
    with pytest.raises(NonFiniteLoss, match=r"epoch 1, step 2 \(optimizer step 2\): its inputs are finite; .*1e\+30"):
        fit(recipe, tmp_path / "run", device="cpu")


@pytest.mark.parametrize("place", ["file/run", "/proc/run"])
def test_a_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path, monkeypatch, place):
    (tmp_path / "file").touch()
    monkeypatch.setattr(ImageClassification, "open_data", None)
    with pytest.raises(CallError, match="cannot write to the folder"):
        fit(small(), tmp_path / place, device="cpu")


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(CallError, match=r"holds no run but other files \(thesis.tex, ...\)"):
        fit(small(), tmp_path, device="cpu")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "timm:test_convnxt"}}, "test_convnext"),
        ({"model": {"args": {"no_such_argument": 1}}}, "test_convnext does not take an argument .*no_such_argument"),
        ({"model": {"args": {"drop_path_rate": 0.2}}}, "train.drop_path and model.args.drop_path_rate are the same"),
        ({"model": {"name": "torchvision:resnet18", "args": {}}}, "resnet18 does not take .*drop_path_rate"),
        ({"train": {"optimizer": "adamm"}}, "did you mean"),
        ({"train": {"batch_size": 40, "accumulate": 40}}, "mixup and CutMix pair the samples .* 1 samples"),
        ({"task": "image-classificaton"}, "image-classification"),
        ({"data": {"source": "digitz"}}, "digits"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(tmp_path, changes, message):
    with pytest.raises(CallError, match=message):
        fit(small(**changes), tmp_path / "run", device="cpu")


class Features(ImageClassification):
    name = "features"

    def model_args(self, data):
        return {"num_classes": 0, "in_chans": 3}


def test_a_model_without_one_logit_per_class_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "features", Features())
    message = r"a classifier returns logits of shape \(8, 10\); this model returns shape \(8, 16\)"
    with pytest.raises(CallError, match=message):
        fit(small(task="features"), tmp_path / "run", device="cpu")


# ----------------------------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize(
    ("device", "message"),
    [("cdua", "did you mean 'cuda'"), ("cuda:x", "unknown device"), ("cpu:3", "has no device cpu:3; it has cpu")],
)
def test_a_wrong_device_is_refused(device, message):
    with pytest.raises(CallError, match=message):
        resolve_device(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_is_refused_without_cuda():
    with pytest.raises(CallError, match="this machine has no device cuda; it has cpu"):
        resolve_device("cuda")


ALONE = Processes(world=1, local=1, rank=0, environment="lightning")


@pytest.mark.parametrize(
    ("strategy", "message"), [("dpp", "did you mean 'ddp'"), ("fsdp", "fsdp needs CUDA devices, got cpu")]
)
def test_a_strategy_that_cannot_work_is_refused(strategy, message):
    with pytest.raises(CallError, match=message):
        check_strategy(torch.device("cpu"), ALONE, strategy)


def test_processes_are_what_the_launcher_started(monkeypatch):
    assert Processes.detect() == ALONE
    assert Processes.detect(2) == Processes(world=2, local=2, rank=0, environment="lightning")
    with pytest.raises(CallError, match="devices must be a positive integer, got 0"):
        Processes.detect(0)
    slurm = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2", "SLURM_PROCID": "5"}
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    assert Processes.detect() == Processes(world=8, local=4, rank=5, environment="slurm")
    assert not Processes.detect().first
    with pytest.raises(CallError, match="devices is 2, but slurm started 4 processes here"):
        Processes.detect(2)


# ---------------------------------------------------------------------------------------------------- loss and tasks


def test_unused_parameters_are_found_without_touching_the_model():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not has_unused_parameters(model, (torch.randn(2, 2),))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model[0].register_parameter("idle", torch.nn.Parameter(torch.zeros(1)))
    assert has_unused_parameters(model, (torch.randn(2, 2),))
    model[0].idle.requires_grad_(False)
    assert not has_unused_parameters(model, (torch.randn(2, 2),))


def classifier(**train):
    recipe = small(train={"mixup": 0.0, "drop_path": None, **train})
    return Classification(torch.nn.Identity(), recipe.train, seed=0, steps_per_epoch=1, num_classes=4)


def test_the_loss_is_cross_entropy_with_smoothed_targets():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    smoothed = 0.9 * F.one_hot(labels, 4) + 0.1 / 4
    expected = -(smoothed * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(classifier(label_smoothing=0.1).training_loss((logits, labels)), expected)
    torch.testing.assert_close(
        classifier(label_smoothing=0.1).evaluation_loss(logits, labels), F.cross_entropy(logits, labels)
    )


def test_mixup_mixes_inputs_and_targets_alike():
    np.random.seed(0)  # noqa: NPY002
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    module = classifier(mixup=1.0)
    share = np.random.RandomState(0)
    share.rand()  # whether to mix: always
    share = share.beta(1.0, 1.0)
    targets = F.one_hot(labels, 4).float()
    mixed, soft = (share * value + (1 - share) * value.flip(0) for value in (logits, targets))
    expected = -(soft * mixed.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(module.training_loss((logits.clone(), labels)), expected)


def test_scores_of_samples_average_to_the_metric():
    task = get_task("image-classification")
    outputs, targets = torch.eye(4)[[0, 1, 2, 2]], torch.tensor([0, 1, 2, 3])
    assert task.per_sample_score(outputs, targets).tolist() == [1, 1, 1, 0]
    assert task.predictions(outputs).tolist() == [0, 1, 2, 2]


def test_probe_inputs_have_the_datas_shape():
    task, recipe = get_task("image-classification"), small()
    data = task.open_data(recipe.data, recipe.train, seed=0)
    (images,) = task.probe_inputs(data, 3)
    assert images.shape == next(iter(data.val_dataloader()))[0][:3].shape


def test_an_unknown_task_gets_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'image-classification'"):
        get_task("image-clasification")


# --------------------------------------------------------------------------------------------------------- evaluation


def test_evaluation_agrees_with_the_model(finished):
    test = evaluate(finished, "test", device="cpu")
    model, info = load_run(finished)
    data = open_images("digits", batch_size=8, eval_batch_size=500, limit=40)
    images, labels = next(iter(data.test_dataloader()))
    with torch.inference_mode():
        predictions = model(images).argmax(1)
    assert torch.equal(test.predictions, predictions)
    assert torch.equal(test.targets, labels)
    assert torch.equal(test.per_sample, (predictions == labels).float())
    assert test.score == pytest.approx((predictions == labels).double().mean().item())
    assert test.classes == info.classes == [str(digit) for digit in range(10)]


def test_validation_scores_as_it_did_in_training(finished):
    assert evaluate(finished, "val", device="cpu").score == pytest.approx(read_info(finished).result["score"])


def test_an_evaluation_is_kept(finished, monkeypatch):
    first = evaluate(finished, "test", device="cpu")
    monkeypatch.setattr(ImageClassification, "open_data", None)
    again = evaluate(finished, "test", device="cpu")
    assert again.score == first.score
    assert torch.equal(again.predictions, first.predictions)


def test_equal_evaluations_are_equal_files(finished):
    evaluate(finished, "test", device="cpu")
    kept = finished / "test.safetensors"
    first = kept.read_bytes()
    kept.unlink()
    evaluate(finished, "test", device="cpu")
    assert kept.read_bytes() == first


def test_changed_data_are_refused(tmp_path):
    recipe = small(train={"epochs": 1})
    fit(recipe, tmp_path / "run", device="cpu")
    source = open_images("digits", batch_size=8).source
    with pytest.raises(CallError, match=r"the data of .* changed since it was trained"):
        evaluate(tmp_path / "run", "test", device="cpu", source=dataclasses.replace(source, fingerprint="another"))
    assert not (tmp_path / "run" / "test.safetensors").exists()


def test_a_damaged_evaluation_is_named(tmp_path):
    fit(small(train={"epochs": 1}), tmp_path / "run", device="cpu")
    evaluate(tmp_path / "run", "test", device="cpu")
    kept = tmp_path / "run" / "test.safetensors"
    kept.write_bytes(kept.read_bytes()[:50])
    with pytest.raises(CallError, match=r"test.safetensors is damaged .*; delete it to evaluate again"):
        evaluate(tmp_path / "run", "test", device="cpu")


def test_only_val_and_test_are_evaluated(finished):
    with pytest.raises(CallError, match="split must be val or test, got 'train'"):
        evaluate(finished, "train", device="cpu")


# ----------------------------------------------------------------------------------------------------- run directories


def test_identity_follows_from_what_the_numbers_follow_from(tmp_path):
    base = identity(small(), "data")
    weights = tmp_path / "weights"
    weights.write_bytes(b"1")
    other = [
        identity(small(), "other data"),
        identity(small(seed=1), "data"),
        identity(small(train={"epochs": 4}), "data"),
        identity(small(data={"augment": "none"}), "data"),
        identity(small(model={"name": "timm:test_resnet"}), "data"),
        identity(small(model={"weights": str(weights)}), "data"),
    ]
    weights.write_bytes(b"2")
    other.append(identity(small(model={"weights": str(weights)}), "data"))
    assert len({base, *other}) == len(other) + 1
    same = small(about="words", expect={"val_loss": 1.0}, data={"source": "elsewhere", "workers": 2})
    assert identity(same, "data") == base


def test_a_run_is_loaded_ready_to_use(finished):
    model, info = load_run(finished)
    assert not model.training
    assert info.recipe == small()
    assert info.preprocessing["size"] == 32
    assert info.result["metric"] == "accuracy"
    assert info.path == finished
    assert json.loads((finished / "data.json").read_text())["fingerprint"] == info.data_fingerprint


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def test_loading_says_what_is_wrong_with_a_directory(tmp_path, copy):
    with pytest.raises(CallError, match="there is no run directory"):
        load_run(tmp_path / "absent")
    with pytest.raises(CallError, match=r"is not a run directory: it has no identity.json"):
        load_run(tmp_path)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CallError, match=r"model.safetensors is truncated"):
        load_run(copy)
    (copy / "result.json").unlink()
    with pytest.raises(CallError, match=r"is not finished \(3 epochs done\); repeat the call that began it"):
        load_run(copy)
    (copy / "result.json").write_text("{")
    with pytest.raises(CallError, match=r"result.json cannot be read"):
        load_run(copy)


def test_shared_weights_are_written_once_each_and_read_back(tmp_path):
    run = RunDirectory(tmp_path / "run")
    weight = torch.randn(3, 2).t()
    with run.locked():
        run.keep({"model": {"a": weight, "b": weight}})
    state = read_checkpoint(run.weights)
    assert torch.equal(state["a"], weight)
    assert torch.equal(state["b"], weight)


def test_an_open_source_trains_the_same_run(tmp_path, uninterrupted, monkeypatch):
    source = open_images("digits", batch_size=8).source
    monkeypatch.setattr("torchstone.data.images.open_source", None)
    fit(small(), tmp_path / "run", device="cpu", source=source)
    assert outcome(tmp_path / "run") == uninterrupted
