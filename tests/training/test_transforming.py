"""A recipe's transforms: done before training, kept as plans, replayed on resume and where costs are measured."""

import dataclasses
import json

import pytest
import torch
from _small import outcome, small
from torch import nn

from torchstone.errors import CallError, UnknownName
from torchstone.instruments.description import ModelDescription
from torchstone.training import transforming
from torchstone.training.fit import evaluate, fit
from torchstone.training.recipe import ModelSpec, Recipe, TransformSpec, dump_yaml, parse_yaml
from torchstone.training.runs import identity, load_run
from torchstone.training.tasks import TASKS
from torchstone.training.transforming import (
    TrainingBatches,
    TransformedDescription,
    check_sync_batchnorm,
    finetuner,
)
from torchstone.transforms import apply, tune_mode
from torchstone.transforms.tune_mode.modules import TuneLayer

STEPS = [{"name": "tune_mode", "args": {"freeze": True}}]
NET = {"name": "timm:test_resnet", "args": {"stem_width": 8, "channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}}


def recipe(**changes) -> Recipe:
    quiet = {"mixup": 0.0, "drop_path": None}
    plain = small(train={**quiet, **changes.pop("train", {})}, **changes)
    return dataclasses.replace(plain, model=ModelSpec(NET["name"], NET["args"], transforms=STEPS))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "tuned"
    fit(recipe(), path, device="cpu")
    return path


def test_a_recipes_transforms_are_read_written_and_named_in_errors():
    told = recipe()
    assert told.model.transforms == (TransformSpec("tune_mode", {"freeze": True}),)
    assert Recipe.from_dict(parse_yaml(dump_yaml(told.to_dict()), "text")) == told
    with pytest.raises(UnknownName, match=r"unknown recipe key model\.transforms\.nmae"):
        ModelSpec("x", transforms=[{"nmae": "tune_mode"}])
    with pytest.raises(CallError, match=r"model\.transforms must be a list of \{name, args\}"):
        ModelSpec("x", transforms="tune_mode")


def test_a_recipe_without_transforms_is_the_run_that_it_always_was():
    plain = small()
    with_one = dataclasses.replace(plain, model=dataclasses.replace(plain.model, transforms=STEPS))
    assert "transforms" not in json.dumps(transforming_facts(plain))
    assert identity(plain, "data") != identity(with_one, "data")


def transforming_facts(told: Recipe) -> dict:
    from torchstone.training.runs import identity_facts

    return identity_facts(told, "data")


def test_an_unknown_transform_or_option_stops_before_anything_is_written(tmp_path):
    for step, message in (
        ({"name": "tune_mod"}, "unknown transform 'tune_mod': did you mean 'tune_mode'"),
        ({"name": "tune_mode", "args": {"freez": True}}, "unknown option of tune_mode 'freez': did you mean 'freeze'"),
    ):
        wrong = dataclasses.replace(recipe(), model=ModelSpec(NET["name"], NET["args"], transforms=[step]))
        with pytest.raises(UnknownName, match=message):
            fit(wrong, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_trained_run_holds_its_plans_and_loads_with_them(run):
    told = json.loads((run / "model.json").read_text())
    (plan,) = told["plans"]
    assert plan["transform"] == "tune_mode"
    model, info = load_run(run)
    assert sum(isinstance(module, TuneLayer) for module in model.modules()) == len(plan["pairs"]) > 0
    assert info.recipe.model.transforms == recipe().model.transforms
    assert evaluate(run, "test", device="cpu").per_sample.numel() > 0


def test_frozen_norms_stay_frozen_through_training(run):
    state = load_run(run)[0].state_dict()
    counters = [value for name, value in state.items() if name.endswith("num_batches_tracked")]
    assert counters
    assert not any(counters)


def test_a_run_that_was_stopped_replays_its_plans_and_ends_with_the_same_numbers(run, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(now):
        if (now.epoch, now.step) == (3, 1):
            raise Stopped

    with pytest.raises(Stopped):
        fit(recipe(), tmp_path / "run", device="cpu", progress=stop)
    decided = []
    monkeypatch.setattr(transforming, "apply", lambda *_, **__: decided.append(1))
    fit(recipe(), tmp_path / "run", device="cpu")
    assert not decided, "a run with a checkpoint replays"
    assert outcome(tmp_path / "run") == outcome(run)


def test_a_description_builds_the_transformed_network_in_another_process():
    base = ModelDescription(NET["name"], (3, 16, 16), {"num_classes": 4, **NET["args"]})
    plan = apply("tune_mode", base.build(), base.example_inputs(2), options={"mode": "deploy"}).plan
    described = TransformedDescription.of(base, [plan])
    assert not any(isinstance(module, nn.BatchNorm2d) for module in described.build().modules())
    assert described.facts() != base.facts()
    assert described.spec == base.spec
    assert torch.equal(described.example_inputs(3)[0], base.example_inputs(3)[0])


def test_a_transform_gets_batches_that_can_be_gone_through_again():
    told = recipe()
    task = TASKS[told.task]
    batches = TrainingBatches(task, task.open_data(told.data, told.train, told.seed))
    first, second = list(batches), list(batches)
    assert len(first) == 40 // 8
    for (images, labels), (again, same) in zip(first, second, strict=True):
        assert images.shape == (8, 3, 32, 32)
        assert torch.equal(images, again)
        assert torch.equal(labels, same)


@pytest.mark.parametrize("own", [False, True], ids=["the task's loss", "a loss of one's own"])
def test_fine_tuning_for_a_transform_changes_the_weights_by_the_recipes_protocol(own):
    told = recipe(train={"epochs": 1})
    task = TASKS[told.task]
    data = task.open_data(told.data, told.train, told.seed)
    model = task.build_model(told.model, data)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []

    def loss(network, batch):
        seen.append(len(batch[0]))
        return network(batch[0]).square().mean()

    tuned = finetuner(told, task, data, torch.device("cpu"))(model, loss if own else None)
    assert any(not torch.equal(value, before[name]) for name, value in tuned.state_dict().items())
    assert seen == ([8] * 5 if own else [])


def test_shared_batch_statistics_and_tied_norms_exclude_each_other():
    steps = recipe().model.transforms
    with pytest.raises(CallError, match=r"set train\.sync_batchnorm=false"):
        check_sync_batchnorm(steps, shared=True)
    check_sync_batchnorm(steps, shared=False)
    check_sync_batchnorm((), shared=True)


def test_weights_are_loaded_before_the_transform(run, tmp_path):
    weights = tmp_path / "weights.pth"
    told = recipe(train={"epochs": 1})
    task = TASKS[told.task]
    data = task.open_data(told.data, told.train, told.seed)
    trained = task.build_model(dataclasses.replace(told.model, transforms=()), data)
    torch.save(trained.state_dict(), weights)
    spec = dataclasses.replace(told.model, weights=str(weights))
    start = task.build_model(spec, data)
    result = transforming.transform_for(dataclasses.replace(told, model=spec), start, task, data)
    images = task.probe_inputs(data, 2)
    torch.testing.assert_close(result.model.eval()(*images), trained.eval()(*images), rtol=1e-4, atol=1e-5)
    assert tune_mode.replay(trained, result.plans[0]).state_dict().keys() == trained.state_dict().keys()
