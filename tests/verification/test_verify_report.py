"""``verify``: runs what is there, says what it found, writes what the card shows."""

import io
from dataclasses import replace

import pytest
import torch
from _toy import official_state, write_case, write_layouts
from rich.console import Console
from safetensors.torch import load_file, save_file

from torchstone.catalog import Deferred
from torchstone.errors import CallError, UnknownName
from torchstone.files import read_json
from torchstone.verification import verify


def shown(report):
    console = Console(file=io.StringIO(), width=140)
    console.print(report)
    return console.file.getvalue()


@pytest.fixture
def recordings(tmp_path, toy):
    """A folder as the recorded cases come: parity/<key>/<case>, keys/<key>.json beside it."""
    write_case(tmp_path / "parity" / "toy", "first")
    write_case(tmp_path / "parity" / "toy", "second")
    write_layouts(tmp_path / "keys" / "toy.json")
    return tmp_path / "parity"


def spoil(recordings, case="second"):
    path = recordings / "toy" / f"{case}.safetensors"
    tensors = load_file(path)
    tensors["output/logits"][0, 0] += 1
    save_file(tensors, path)


@pytest.mark.parametrize("inside", ["", "toy"])
def test_the_cases_of_a_folder_are_run(recordings, inside):
    report = verify("toy", recordings / inside)
    assert report.ok
    assert report.cases == ("first", "second")
    assert sorted((item.case, item.output) for item in report.checks) == [
        (case, output) for case in ("first", "second") for output in ("label", "logits", "stem")
    ]
    assert [item.variant for item in report.layouts] == ["toy_base", "toy_grey"]
    assert 0 <= report.worst_ratio < 1


def test_a_wrong_number_is_found_and_shown(recordings):
    spoil(recordings)
    report = verify("toy", recordings)
    assert not report.ok
    assert [(item.case, item.output) for item in report.checks if not item.ok] == [("second", "logits")]
    assert report.worst_ratio > 1
    text = shown(report)
    assert "exceeds" in text
    assert "2 cases, 6 outputs: 1 failed" in text


def test_an_adapter_that_fails_fails_its_case_and_the_rest_goes_on(recordings, toy, monkeypatch):
    whole = toy.adapter.run

    def run(case):
        if case.name == "first":
            raise RuntimeError("no such entry")
        return whole(case)

    monkeypatch.setattr(toy.adapter, "run", run)
    report = verify("toy", recordings)
    assert [(item.case, item.problem) for item in report.checks if not item.ok] == [
        ("first", "RuntimeError: no such entry")
    ]
    assert len(report.checks) == 4


def test_a_layout_that_differs_fails_the_report(recordings, tmp_path):
    layouts = read_json(tmp_path / "keys" / "toy.json")
    layouts["base"]["params"] += 1
    write_layouts(tmp_path / "keys" / "toy.json", base=layouts["base"])
    report = verify("toy", recordings)
    assert not report.ok
    assert "the official network has" in shown(report)


def test_the_report_is_written_with_how_it_was_made(recordings, tmp_path):
    report = verify("toy", recordings)
    report.write(tmp_path / "parity.json", command="torchstone verify toy")
    written = read_json(tmp_path / "parity.json")
    assert written["command"] == "torchstone verify toy"
    assert written["hardware"]
    assert written["versions"]["torch"]
    results = written["results"]
    assert results["ok"]
    assert results["cases"] == 2
    assert results["outputs"] == 6
    assert results["worst_ratio"] == report.worst_ratio
    logits = next(row for row in results["checks"] if row["output"] == "logits")
    assert logits["ratio"] == logits["error"] / logits["tolerance"]
    label = next(row for row in results["checks"] if row["output"] == "label")
    assert label["tolerance"] == 0


def test_a_failing_report_can_be_written(recordings, tmp_path):
    spoil(recordings)
    verify("toy", recordings).write(tmp_path / "parity.json", command="torchstone verify toy")
    assert read_json(tmp_path / "parity.json")["results"]["failed"] == 1


def test_deferred_cases_are_named_and_not_run(recordings, toy, monkeypatch):
    spoil(recordings)
    deferring = replace(toy.card, deferred=(Deferred("second", "comes with another system"),))
    monkeypatch.setattr("torchstone.catalog.cards", lambda: {"toy": deferring})
    report = verify("toy", recordings)
    assert report.ok
    assert report.cases == ("first",)
    assert "not compared: second (comes with another system)" in shown(report)


def test_a_released_file_is_loaded_into_its_variant(recordings, tmp_path):
    torch.save({"state_dict": official_state()}, tmp_path / "released.pth")
    report = verify("toy", recordings, tmp_path / "released.pth")
    assert report.checkpoint == {"file": "released.pth", "variant": "toy_base"}
    assert "released.pth loads strictly as toy_base" in shown(report)
    with pytest.raises(CallError, match="the checkpoint has 3 input channels, toy_grey has 1"):
        verify("toy", recordings, tmp_path / "released.pth", variant="toy_grey")


def test_calls_that_cannot_work_are_refused(recordings, tmp_path, toy):
    with pytest.raises(UnknownName, match="did you mean 'toy'"):
        verify("tov")
    with pytest.raises(CallError, match="there is no folder"):
        verify("toy", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CallError, match="no recorded cases of toy"):
        verify("toy", tmp_path / "empty")
    with pytest.raises(CallError, match="no recorded cases of toy"):
        verify("toy")
    write_case(tmp_path / "others", system="other")
    with pytest.raises(CallError, match="holds cases of 'other'"):
        verify("toy", tmp_path / "others")
