"""Recorded cases are read whole; their answers never reach an adapter."""

import json

import pytest
import torch
from _shared import requires_shared, shared
from _toy import write_case

from torchstone.errors import CallError
from torchstone.verification.cases import Case, case_files, draw_held_out, read_case, read_held_out


def test_a_case_is_split_into_what_the_adapter_sees_and_the_answers(tmp_path):
    recorded = read_case(write_case(tmp_path))
    assert recorded.case.name == "small"
    assert recorded.case.kwargs["width"] == 4
    assert recorded.case.state.keys() == {"conv.weight", "conv.bias", "head.weight", "head.bias"}
    assert {name: str(spec) for name, spec in recorded.case.outputs.items()} == {
        "label": "int64[2]",
        "logits": "float32[2, 10]",
        "stem": "float32[2, 4, 6, 6]",
    }
    assert recorded.expected.keys() == recorded.case.outputs.keys()


def test_nothing_an_adapter_can_reach_holds_an_answer(tmp_path):
    recorded = read_case(write_case(tmp_path))
    answers = [value.data_ptr() for value in recorded.expected.values()]
    reachable = [*recorded.case.state.values(), *recorded.case.inputs.values()]
    assert not {value.data_ptr() for value in reachable} & set(answers)
    assert not hasattr(recorded.case, "values")
    assert "expected" not in vars(recorded.case)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda path: path.write_text("{"), "not JSON"),
        (lambda path: path.write_text("{}"), "lacks system, entry"),
        (lambda path: path.with_suffix(".safetensors").write_bytes(b"half"), "cannot read the recorded tensors"),
        (lambda path: path.with_suffix(".safetensors").unlink(), "cannot read the recorded tensors"),
        (lambda path: path.unlink(), "cannot read the recorded case"),
        (lambda path: path.write_text(path.read_text().replace('label"]', 'depth"]')), "outputs are not those.*depth"),
    ],
    ids=["not json", "fields", "truncated", "no tensors", "no file", "other outputs"],
)
def test_a_damaged_case_is_refused_by_name(tmp_path, break_it, message):
    path = write_case(tmp_path)
    break_it(path)
    with pytest.raises(CallError, match=message) as error:
        read_case(path)
    assert "small" in str(error.value)


@requires_shared("parity")
def test_every_recorded_case_can_be_read():
    folders = [folder for folder in sorted(shared("parity").iterdir()) if folder.is_dir()]
    for folder in folders:
        paths = case_files(folder)
        assert paths, f"{folder.name} has no case"
        for path in paths:
            recorded = read_case(path)
            assert recorded.case.system == folder.name
            assert recorded.expected, f"{path} records no output"


@requires_shared("parity/HELDOUT.json")
def test_every_held_out_description_can_be_drawn():
    path = shared("parity/HELDOUT.json")
    for system in sorted({told["system"] for told in json.loads(path.read_text())}):
        folder = shared(f"parity/{system}")
        examples = [read_case(file).case for file in case_files(folder)] if folder else []
        for told in read_held_out(path, system):
            case = draw_held_out(told, examples)
            assert {name: list(value.shape) for name, value in case.inputs.items()} == {
                name: shape for name, (shape, _) in told["inputs"].items()
            }
            for name, (_, dtype) in told["inputs"].items():
                assert case.inputs[name].is_floating_point() == dtype.startswith("F"), f"{system}/{case.name}: {name}"
            if isinstance(told["state"], dict):
                assert {name: list(value.shape) for name, value in case.state.items()} == told["state"]
            else:
                assert case.state is None
            assert case.outputs.keys() == told["outputs"].keys()


def described(inputs, state="(as in the open cases)"):
    return {
        "system": "toy",
        "case": "b",
        "entry": "toy.Toy",
        "kwargs": {},
        "call": "forward",
        "mode": "eval",
        "notes": "",
        "inputs": inputs,
        "outputs": {"y": [[2], "F32"]},
        "state": state,
    }


def example(**inputs):
    return Case("toy", "a", "toy.Toy", {}, "forward", "eval", "", {"flag": torch.tensor(1)}, inputs, {})


def test_drawn_inputs_stay_in_the_range_of_the_recorded_ones():
    mask = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    labels = torch.tensor([7, 3, 5, 3])
    told = described({"mask": [[8, 9], "F32"], "g1.labels": [[40], "I64"]})
    case = draw_held_out(told, [example(mask=mask, **{"g0.labels": labels})])
    assert set(case.inputs["mask"].unique().tolist()) == {0.0, 1.0}
    assert set(case.inputs["g1.labels"].tolist()) == {3, 5, 7}


def test_permutations_graphs_and_batches_are_drawn_as_such():
    told = described(
        {"perm": [[9], "I64"], "edge_index": [[2, 400], "I64"], "x": [[5, 3], "F32"], "batch": [[30], "I64"]}
    )
    like = {"perm": [2, 0, 1, 3], "edge_index": [[17], [4]], "batch": [0, 0, 1, 2]}
    case = draw_held_out(told, [example(**{name: torch.tensor(values) for name, values in like.items()})])
    assert case.inputs["perm"].sort().values.tolist() == list(range(9))
    assert set(case.inputs["edge_index"].unique().tolist()) == set(range(5))
    assert (case.inputs["batch"].diff() >= 0).all()
    assert set(case.inputs["batch"].tolist()) == {0, 1, 2}


def test_the_same_description_gives_the_same_numbers():
    told = described({"x": [[5, 3], "F32"]}, state={"w": [4, 2]})
    first, second = draw_held_out(told), draw_held_out(told)
    assert torch.equal(first.inputs["x"], second.inputs["x"])
    assert torch.equal(first.state["w"], second.state["w"])


def test_weights_are_drawn_where_their_shapes_are_told():
    told = described({}, state={"bn.running_var": [6], "bn.num_batches_tracked": [], "w": [3, 2], "flag": []})
    state = draw_held_out(told, [example()]).state
    assert (state["bn.running_var"] > 0).all()
    assert state["bn.num_batches_tracked"].dtype == torch.int64
    assert state["flag"].dtype == torch.int64
    assert state["w"].shape == (3, 2)
    assert draw_held_out(described({})).state is None


def test_an_adapter_supplies_values_that_cannot_be_drawn():
    told = described({"bytes": [[4], "I64"], "x": [[2], "F32"]}, state={"k": []})
    case = draw_held_out(told, structured=lambda case: {"input/bytes": torch.tensor([80, 75, 3, 4])})
    assert case.inputs["bytes"].tolist() == [80, 75, 3, 4]
    assert case.inputs["x"].shape == (2,)
    with pytest.raises(CallError, match="described is \\[4\\]"):
        draw_held_out(told, structured=lambda case: {"input/bytes": torch.tensor([80])})
    with pytest.raises(CallError, match="input/byte'"):
        draw_held_out(told, structured=lambda case: {"input/byte": torch.tensor([80])})
