"""Checkpoints: read without running anything in them, taken strictly."""

import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from torchstone.errors import CallError
from torchstone.models.pretrained import check_layout, read_checkpoint, strict_filter


@pytest.fixture
def state():
    return {"conv.weight": torch.randn(2, 3, 1, 1), "head.weight": torch.randn(5, 2), "head.bias": torch.randn(5)}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "arch": "x"},
        lambda state: {"model": state},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    ],
    ids=["plain", "state_dict", "model", "data-parallel"],
)
def test_the_usual_containers_are_understood(tmp_path, state, wrap):
    torch.save(wrap(state), tmp_path / "c.pth")
    read = read_checkpoint(tmp_path / "c.pth")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_an_entry_is_preferred_where_a_file_has_it(tmp_path, state):
    averaged = {name: value + 1 for name, value in state.items()}
    torch.save({"model": state, "model_ema": averaged}, tmp_path / "both.pth")
    torch.save({"model": state}, tmp_path / "one.pth")
    for file, entry, expected in (
        ("both", "model_ema", averaged),
        ("both", "", state),
        ("one", "model_ema", state),
    ):
        assert torch.equal(read_checkpoint(tmp_path / f"{file}.pth", entry=entry)["head.bias"], expected["head.bias"])


def test_safetensors_are_read(tmp_path, state):
    save_file(state, tmp_path / "c.safetensors")
    assert read_checkpoint(tmp_path / "c.safetensors").keys() == state.keys()


class RunsCode:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_would_run_code_does_not_run(tmp_path, state, modern):
    marker = tmp_path / "ran"
    bad = {"state_dict": state, "args": RunsCode(marker)}
    torch.save(bad, tmp_path / "bad.pth", _use_new_zipfile_serialization=modern)
    with pytest.raises(CallError, match="could run code"):
        read_checkpoint(tmp_path / "bad.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(bad["args"]))
    with pytest.raises(CallError, match=r"raw\.pth"):
        read_checkpoint(tmp_path / "raw.pth")
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.98])
def test_a_truncated_file_is_refused_by_name(tmp_path, state, suffix, keep):
    path = tmp_path / f"cut{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    with pytest.raises(CallError, match=r"cut\."):
        read_checkpoint(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(CallError, match="no checkpoint file"):
        read_checkpoint(tmp_path / "missing.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(CallError, match="not tensors"):
        read_checkpoint(tmp_path / "empty.pth")
    with zipfile.ZipFile(tmp_path / "foreign.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CallError, match="foreign"):
        read_checkpoint(tmp_path / "foreign.pth")


class Small(nn.Module):
    def __init__(self, in_chans=3, classes=5):
        super().__init__()
        self.conv = nn.Conv2d(in_chans, 2, 1, bias=False)
        self.head = nn.Linear(2, classes)
        self.pretrained_cfg = {"num_classes": 1000, "input_size": (3, 8, 8)}


def test_a_layout_that_differs_is_listed(state):
    check_layout(Small(), state)
    del state["head.bias"]
    state["extra"] = torch.zeros(1)
    state["conv.weight"] = torch.zeros(4, 3, 1, 1)
    with pytest.raises(CallError) as error:
        check_layout(Small(), state)
    message = str(error.value)
    assert "missing: head.bias" in message
    assert "unexpected: extra" in message
    assert "conv.weight is (4, 3, 1, 1), the model has (2, 3, 1, 1)" in message


def test_only_first_convolution_and_classifier_may_have_another_shape(state):
    model = Small(in_chans=1, classes=7)
    take = strict_filter(None, "conv", "head")
    assert take(state, model).keys() == state.keys()
    assert model.pretrained_cfg["num_classes"] == 5  # what the file has, so that timm adapts the head by it
    assert model.pretrained_cfg["input_size"] == (3, 8, 8)
    with pytest.raises(CallError, match="missing"):
        take({name: value for name, value in state.items() if name != "conv.weight"}, model)


def test_the_converter_runs_before_the_check(state):
    renamed = {f"old.{name}": value for name, value in state.items()}
    take = strict_filter(lambda s, m: {name.removeprefix("old."): value for name, value in s.items()}, "conv", "head")
    assert take(renamed, Small()).keys() == state.keys()
