"""The harness passes what is right and fails everything else: each way of being wrong is tried."""

import random
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from _toy import Toy, convert, write_case
from torch import nn

import torchstone
from torchstone.catalog import Tolerance
from torchstone.errors import CallError
from torchstone.verification import check, load_state, read_case, record
from torchstone.verification.parity import bound_of, check_described, check_recorded, load_adapter, parity_folder, run


@pytest.fixture
def recorded(tmp_path):
    return read_case(write_case(tmp_path / "cases"))


def failures(recorded, got):
    return {item.output: item.problem for item in check(recorded.case, recorded.expected, got) if not item.ok}


def right(recorded):
    return {name: value.clone() for name, value in recorded.expected.items()}


def test_our_network_agrees_with_the_recorded_numbers(toy, recorded):
    checks = check_recorded(recorded, toy.adapter)
    assert sorted(item.output for item in checks) == ["label", "logits", "stem"]
    assert all(item.ok for item in checks)
    assert all(item.ratio is not None and item.ratio < 1 for item in checks if item.output != "label")


def test_a_float_within_the_tolerance_passes_and_beyond_it_fails(recorded):
    got = right(recorded)
    scale = recorded.expected["logits"].abs().max().item()
    assert scale > 0.1
    got["logits"][0, 3] += 0.9e-4 * scale
    assert failures(recorded, got) == {}
    got["logits"][0, 3] += 0.3e-4 * scale
    assert "exceeds" in failures(recorded, got)["logits"]


def test_one_wrong_number_fails_only_its_output(recorded):
    got = right(recorded)
    got["stem"][1, 2, 3, 4] *= 1.01
    assert set(failures(recorded, got)) == {"stem"}


def test_small_outputs_are_compared_at_an_absolute_floor(recorded):
    expected = {**recorded.expected, "logits": recorded.expected["logits"] * 1e-6}
    got = {**right(recorded), "logits": torch.zeros(2, 10)}
    assert all(item.ok for item in check(recorded.case, expected, got))
    got["logits"] += 2e-5
    assert [item.output for item in check(recorded.case, expected, got) if not item.ok] == ["logits"]


def test_one_wrong_integer_fails(recorded):
    got = right(recorded)
    got["label"][1] += 1
    assert failures(recorded, got) == {"label": "1 of 2 integers differ"}


def test_a_missing_output_fails(recorded):
    got = right(recorded)
    del got["stem"]
    assert "is missing (recorded: float32[2, 4, 6, 6])" in failures(recorded, got)["stem"]


def test_a_surplus_output_fails(recorded):
    got = {**right(recorded), "depth": torch.zeros(1)}
    assert failures(recorded, got) == {"depth": "is not among the recorded outputs"}


@pytest.mark.parametrize(
    ("output", "change"),
    [
        ("label", lambda value: value.float()),
        ("logits", lambda value: value.half()),
        ("logits", lambda value: value.bfloat16()),
        ("logits", lambda value: value.long()),
        ("logits", lambda value: value.to(torch.complex64)),
    ],
    ids=["float for integer", "half", "bfloat16", "integer for float", "complex"],
)
def test_another_dtype_fails(recorded, output, change):
    got = right(recorded)
    got[output] = change(got[output])
    assert "another dtype than recorded" in failures(recorded, got)[output]


def test_wider_floats_and_narrower_integers_are_what_was_recorded(recorded):
    got = right(recorded)
    got["logits"], got["label"] = got["logits"].double(), got["label"].int()
    assert failures(recorded, got) == {}


@pytest.mark.parametrize("change", [lambda value: value[0], lambda value: value[None], lambda value: value.T])
def test_another_shape_fails(recorded, change):
    got = right(recorded)
    got["logits"] = change(got["logits"])
    assert "has shape" in failures(recorded, got)["logits"]


def test_a_value_that_is_no_tensor_fails(recorded):
    got = {**right(recorded), "logits": [1.0]}
    assert "is a list, not a tensor" in failures(recorded, got)["logits"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_fails(recorded, value):
    got = right(recorded)
    got["logits"][0, 0] = value
    assert "NaN or infinity" in failures(recorded, got)["logits"]


@pytest.mark.parametrize(
    ("recorded_value", "ours", "passes"),
    [
        ("nan", "nan", True),
        ("inf", "inf", True),
        ("inf", "-inf", False),
        ("nan", "inf", False),
        ("nan", "0", False),
        ("inf", "1e38", False),
    ],
)
def test_recorded_nan_and_infinity_must_be_met_exactly(recorded, recorded_value, ours, passes):
    expected, got = right(recorded), right(recorded)
    expected["logits"][1, 1] = float(recorded_value)
    got["logits"][1, 1] = float(ours)
    assert all(item.ok for item in check(recorded.case, expected, got)) == passes
    got["logits"][0, 0] += 1.0  # the finite numbers beside it still count
    assert not all(item.ok for item in check(recorded.case, expected, got))


def test_names_and_shapes_are_compared_without_values(recorded):
    wrong = {name: torch.zeros(spec.shape, dtype=spec.dtype) for name, spec in recorded.case.outputs.items()}
    assert all(item.ok for item in check_described(recorded.case, wrong))
    del wrong["stem"]
    assert [item.output for item in check_described(recorded.case, wrong) if not item.ok] == ["stem"]


def test_another_bound_needs_the_words_of_the_case(toy, recorded):
    assert bound_of(recorded.case, toy.card) == 1e-4
    quoted = replace(toy.card, tolerance=(Tolerance("small", 1e-3, "compare at 1e-3 (solver tolerance)"),))
    assert bound_of(recorded.case, quoted) == 1e-3
    invented = replace(toy.card, tolerance=(Tolerance("small", 1e-3, "it would not pass otherwise"),))
    with pytest.raises(CallError, match="must be quoted"):
        bound_of(recorded.case, invented)
    with pytest.raises(CallError, match="must be quoted"):
        bound_of(recorded.case, replace(toy.card, tolerance=(Tolerance("small", 1e-3, ""),)))
    got = right(recorded)
    got["logits"][0, 0] += 5e-4 * recorded.expected["logits"].abs().max()
    assert not all(item.ok for item in check(recorded.case, recorded.expected, got))
    assert all(item.ok for item in check(recorded.case, recorded.expected, got, bound=1e-3))


def test_a_case_runs_from_a_fixed_seed_and_leaves_the_callers_randomness_alone(recorded):
    class Draws:
        @staticmethod
        def run(case):
            return {"torch": torch.rand(1), "python": random.random(), "numpy": numpy.random.rand()}  # noqa: NPY002

    torch.manual_seed(5)
    expected_next = torch.rand(1)
    torch.manual_seed(5)
    state = random.getstate()
    first, second = run(recorded.case, Draws), run(recorded.case, Draws)
    assert first == second
    assert torch.equal(torch.rand(1), expected_next)
    assert random.getstate() == state


def test_an_adapter_cannot_spoil_a_case(recorded):
    class Writes:
        @staticmethod
        def run(case):
            case.inputs["x"].zero_()
            case.state["conv.weight"].zero_()
            return {}

    run(recorded.case, Writes)
    assert recorded.case.inputs["x"].abs().sum() > 0
    assert recorded.case.state["conv.weight"].abs().sum() > 0


def test_an_installed_package_brings_its_adapters(monkeypatch, tmp_path):
    assert (parity_folder() / "test_parity.py").is_file()
    monkeypatch.setattr("torchstone.verification.parity._CHECKOUT", tmp_path / "no" / "checkout")
    assert parity_folder() == Path(torchstone.__file__).parent / "_parity"


def test_a_system_without_an_adapter_is_named():
    with pytest.raises(CallError, match="no_such_system has no parity adapter"):
        load_adapter("no_such_system")


def test_state_is_loaded_strictly_through_the_converter(recorded):
    model = load_state(Toy(), recorded.case, convert)
    assert torch.equal(model.stem.weight, recorded.case.state["conv.weight"])
    with pytest.raises(CallError, match=r"missing: stem\.weight"):
        load_state(Toy(), recorded.case)
    surplus = replace(recorded.case, state={**recorded.case.state, "head.scale": torch.ones(1)})
    with pytest.raises(CallError, match=r"unexpected: head\.scale"):
        load_state(Toy(), surplus, convert)


def test_fresh_weights_stay_where_no_state_is_told(recorded):
    model = Toy()
    before = model.stem.weight.clone()
    load_state(model, replace(recorded.case, state=None), convert)
    assert torch.equal(model.stem.weight, before)


@pytest.mark.parametrize(("mode", "training"), [("eval", False), ("train", True), ("train+eval", True)])
def test_the_mode_is_set_where_one_word_tells_it(recorded, mode, training):
    assert load_state(Toy().train(), replace(recorded.case, mode=mode), convert).training is training


def test_outputs_of_submodules_are_kept_as_they_were():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True))
    x = torch.randn(4, 3)
    seen = record(model, {"linear": model[0]}, x)
    assert seen.keys() == {"linear", "return"}
    assert torch.equal(seen["linear"], model[0](x))  # before the ReLU that works in place
    assert torch.equal(seen["return"], model[0](x).relu())
    assert not model[0]._forward_hooks


def test_a_module_that_is_not_called_exactly_once_is_named():
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(CallError, match="'other' was called 0 times"):
        record(model, {"other": nn.Linear(3, 3)}, torch.randn(1, 3))
    twice = nn.Sequential(model[0], model[0])
    with pytest.raises(CallError, match="'shared' was called 2 times"):
        record(twice, {"shared": model[0]}, torch.randn(1, 3))
