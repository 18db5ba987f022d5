"""A released file becomes safetensors in our layout, or an error."""

import pytest
import torch
from _toy import official_state
from safetensors.torch import load_file

from torchstone import create_model
from torchstone.errors import CallError, UnknownName, WriteFailed
from torchstone.verification.convert import convert


@pytest.fixture
def released(tmp_path, toy):
    torch.save({"state_dict": official_state()}, tmp_path / "released.pth")
    return tmp_path / "released.pth"


def test_a_released_file_is_written_in_our_layout(released, tmp_path):
    out = tmp_path / "ours.safetensors"
    assert convert("toy_base", released, out) == 4
    written, official = load_file(out), official_state()
    assert torch.equal(written["stem.weight"], official["conv.weight"])
    assert torch.equal(written["head.bias"], official["head.bias"])
    again = create_model("toy_base", pretrained=out)
    assert all(torch.equal(value, written[name]) for name, value in again.state_dict().items())


def test_the_classifier_is_never_made_up(released, tmp_path):
    with pytest.raises(CallError, match="the checkpoint has 10 classes, toy_mini32 has 5"):
        convert("toy_mini32", released, tmp_path / "ours.safetensors")
    assert not (tmp_path / "ours.safetensors").exists()


def test_calls_that_cannot_work_are_refused(released, tmp_path):
    with pytest.raises(UnknownName, match="toy_base"):
        convert("toy_bass", released, tmp_path / "ours.safetensors")
    with pytest.raises(CallError, match=r"must end in \.safetensors"):
        convert("toy_base", released, tmp_path / "ours.pth")
    with pytest.raises(CallError, match="no checkpoint file"):
        convert("toy_base", tmp_path / "nowhere.pth", tmp_path / "ours.safetensors")
    with pytest.raises(WriteFailed, match="cannot write"):
        convert("toy_base", released, tmp_path / "no" / "folder" / "ours.safetensors")
