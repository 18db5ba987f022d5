"""Every transform keeps its input, says what it did in JSON, and comes back in another process with equal outputs."""

import copy
import json
import os
import subprocess
import sys

import _loading
import pytest
import torch
from _loading import load_and_answer
from _transform import IMAGES, TRANSFORMS, domain_of, first_that_fits, transformed
from safetensors.torch import load_file, save_file

from torchstone.errors import CallError, UnknownName
from torchstone.instruments.processes import in_process
from torchstone.transforms import apply, load_model, names, options_of, replay, save_model


@pytest.fixture(
    scope="module", params=[pytest.param(card, id=card.key, marks=pytest.mark.system(card.key)) for card in TRANSFORMS]
)
def card(request):
    return request.param


@pytest.fixture(scope="module")
def results(card, warm_timm):
    """Library -> the network's name, the network and what the transform made of it."""
    return {library: first_that_fits(card, library) for library in domain_of(card).libraries}


@pytest.fixture(scope="module", params=range(3), ids=["one", "two", "three"])
def one(request, results):
    return list(results.values())[request.param]


@pytest.fixture
def domain(card):
    return domain_of(card)


def test_the_input_stays_as_it_is(card, results):
    name, model, _ = list(results.values())[1]
    model.train()
    before = copy.deepcopy(model)
    transformed(card, model)
    assert repr(model) == repr(before)
    assert [module.training for module in model.modules()] == [module.training for module in before.modules()]
    assert vars(model).keys() == vars(before).keys()
    for (ours, value), (theirs, expected) in zip(model.state_dict().items(), before.state_dict().items(), strict=True):
        assert ours == theirs
        assert torch.equal(value, expected), f"{name}: {ours}"
    model.eval()


def test_the_result_is_of_the_same_class_and_shares_no_memory(one):
    _, model, result = one
    assert type(result.model) is type(model)
    assert {key for key in vars(model) if not key.startswith("_")} <= vars(result.model).keys()
    assert model.training == result.model.training
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values() if tensor.numel()}
    assert not own & {t.untyped_storage().data_ptr() for t in result.model.state_dict().values() if t.numel()}


def test_train_and_eval_reach_every_part(one):
    _, _, result = one
    model = copy.deepcopy(result.model)
    assert all(module.training for module in model.train().modules())
    assert not any(module.training for module in model.eval().modules())


def test_plan_and_report_are_json(card, one):
    _, _, result = one
    assert json.loads(json.dumps(result.plan, allow_nan=False)) == result.plan
    assert result.plan["transform"] == card.key
    told = result.report.to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["changed"], "what changed?"
    assert told["measured"], "what was measured?"


def test_a_plan_gives_the_structure_again_without_data(one):
    _, model, result = one
    again = replay(model, json.loads(json.dumps(result.plan)))
    assert again is not model
    shapes = {name: value.shape for name, value in result.model.state_dict().items()}
    assert {name: value.shape for name, value in again.state_dict().items()} == shapes
    assert repr(again) == repr(result.model)


def test_saved_and_loaded_in_another_process_the_outputs_are_equal(results, domain, tmp_path, warm_processes):
    inputs = domain.inputs(7)
    save_file({str(place): tensor for place, tensor in enumerate(inputs)}, tmp_path / "inputs.safetensors")
    folders = {}
    for library, (name, _, result) in results.items():
        folders[str(tmp_path / library)] = result.model
        save_model(tmp_path / library, result.model, name, domain.args_of(name), [result.plan])
        assert {path.name for path in (tmp_path / library).iterdir()} == {"model.json", "model.safetensors"}
    answers = tmp_path / "answers.safetensors"
    other = in_process(load_and_answer, tmp_path / "inputs.safetensors", answers, list(folders))
    assert other != os.getpid()
    loaded = load_file(answers)
    for folder, model in folders.items():
        with torch.no_grad():
            assert torch.equal(loaded[folder], copy.deepcopy(model).eval()(*inputs)), folder


def test_a_saved_model_needs_nothing_that_its_maker_had_imported(tmp_path):
    """Loaded by a fresh interpreter: the server of other tests' processes has imported the libraries of networks."""
    card = next(card for card in TRANSFORMS if domain_of(card) is IMAGES)
    name, _, result = first_that_fits(card, "ours")
    save_model(tmp_path / "model", result.model, name, IMAGES.args_of(name), [result.plan])
    (inputs,) = IMAGES.inputs(7)
    save_file({"0": inputs}, tmp_path / "inputs.safetensors")
    files = [str(tmp_path / file) for file in ("inputs.safetensors", "answers.safetensors", "model")]
    done = subprocess.run([sys.executable, _loading.__file__, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        answer = copy.deepcopy(result.model).eval()(inputs)
    assert torch.equal(load_file(tmp_path / "answers.safetensors")[files[2]], answer)


def test_the_result_can_be_copied_and_trained(one, domain):
    _, _, result = one
    model = copy.deepcopy(result.model).train()
    model(*domain.inputs(0)).square().sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trained)


def test_it_composes_with_every_transform(results, domain, tmp_path):
    """Whatever comes after either works, and is saved with both plans, or says why it cannot be done."""
    name, _, first = list(results.values())[1]
    inputs = domain.inputs(0)
    for other in TRANSFORMS:
        try:
            second = transformed(other, first.model, inputs)
        except CallError as error:
            refusal = str(error)
            assert type(first.model).__name__ in refusal, refusal
            continue
        save_model(tmp_path / other.key, second.model, name, domain.args_of(name), [first.plan, second.plan])
        with torch.no_grad():
            expected = copy.deepcopy(second.model).eval()(*inputs)
            assert torch.equal(load_model(tmp_path / other.key)(*inputs), expected)


def test_unknown_options_get_the_nearest(card):
    for option in options_of(card.key):
        with pytest.raises(UnknownName, match=f"unknown option of {card.key}.*did you mean.*{option}"):
            apply(card.key, torch.nn.Identity(), domain_of(card).inputs(0), options={f"{option}x": 1})


def test_a_plan_of_another_network_is_refused(one):
    _, _, result = one
    with pytest.raises(CallError):
        replay(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1)), result.plan)


def test_a_plan_without_a_known_transform_is_refused():
    with pytest.raises(UnknownName, match="did you mean"):
        replay(torch.nn.Identity(), {"transform": f"{names()[0]}x"})
    with pytest.raises(CallError, match="a plan is a mapping that names its transform"):
        replay(torch.nn.Identity(), {})


def test_a_damaged_folder_says_what_is_wrong(tmp_path):
    with pytest.raises(CallError, match="holds no model"):
        load_model(tmp_path)
    (tmp_path / "model.json").write_text('{"name')
    with pytest.raises(CallError, match="is damaged"):
        load_model(tmp_path)
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(CallError, match="describes no model"):
        load_model(tmp_path)
