"""Models by name: ours, timm's, torchvision's, and ours inside timm."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import torchstone
from torchstone.errors import CallError, UnknownName
from torchstone.models.registry import build_model, create_model, list_models

NAME = "inceptionnext_mini32"


def test_the_face_lists_and_builds():
    assert NAME in torchstone.list_models("*_mini32")
    assert torchstone.create_model(NAME, num_classes=4)(torch.zeros(2, 3, 32, 32)).shape == (2, 4)
    assert "inceptionnext" in torchstone.systems()
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = torchstone.nothing_here


@pytest.mark.parametrize("spec", ["timm:test_resnet", "torchvision:shufflenet_v2_x0_5"])
def test_the_other_libraries_models_are_built_by_their_prefix(spec):
    model = build_model(spec, num_classes=4).eval()
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 4)
    assert not type(model).__module__.startswith("torchstone")


@pytest.mark.parametrize(
    ("spec", "nearest"),
    [
        ("inceptionext_mini32", NAME),
        ("timm:resnet5", "resnet50"),
        ("torchvision:resnet5", "resnet50"),
        ("tim:x", "timm"),
    ],
)
def test_mistyped_names_get_the_nearest(spec, nearest):
    with pytest.raises(UnknownName, match=nearest):
        build_model(spec)


def test_an_argument_that_the_model_does_not_take_is_named():
    with pytest.raises(CallError, match="window_size"):
        create_model(NAME, window_size=7)
    with pytest.raises(CallError, match="3 channels"):
        build_model("torchvision:resnet18", in_chans=1)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file_are_taken_strictly_and_adapted(tmp_path, suffix):
    source = create_model(NAME, num_classes=10)
    state = source.state_dict()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    same = create_model(NAME, pretrained=path, num_classes=10)
    assert all(torch.equal(value, state[name]) for name, value in same.state_dict().items())
    grey = create_model(NAME, pretrained=path, num_classes=3, in_chans=1).state_dict()
    kept = [name for name, value in state.items() if grey[name].shape == value.shape]
    assert len(kept) == len(state) - 3  # first convolution, classifier weight and bias are adapted
    assert all(torch.equal(grey[name], state[name]) for name in kept)
    state.pop(next(iter(state)))
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(CallError, match="missing"):
        create_model(NAME, pretrained=tmp_path / "less.pth", num_classes=10)


def test_a_model_without_released_weights_says_so():
    with pytest.raises(CallError, match="no weights with a direct link"):
        create_model(NAME, pretrained=True)


def test_torchvision_takes_a_checkpoint_and_starts_another_classifier_anew(tmp_path):
    state = build_model("torchvision:shufflenet_v2_x0_5", num_classes=7).state_dict()
    torch.save(state, tmp_path / "tv.pth")
    model = build_model("torchvision:shufflenet_v2_x0_5", num_classes=4, pretrained=str(tmp_path / "tv.pth"))
    assert torch.equal(model.state_dict()["conv1.0.weight"], state["conv1.0.weight"])
    assert model.fc.weight.shape[0] == 4


def test_registering_with_timm_changes_nothing_that_timm_had():
    """In a process of its own: the registry is global."""
    script = """
import timm, torchstone
before = {name: timm.model_entrypoint(name) for name in timm.list_models()}
modules = set(timm.list_modules())
names = torchstone.register_with_timm()
assert names == torchstone.register_with_timm()
assert all(timm.model_entrypoint(name) is entry for name, entry in before.items())
assert modules <= set(timm.list_modules())
assert set(timm.list_models()) == set(before) | set(names.values())
assert names["inceptionnext_mini32"] == "inceptionnext_mini32"
assert names["convnext_tiny"] == "ts_convnext_tiny"
ours = timm.create_model("ts_convnext_mini32" if "convnext_mini32" in before else "convnext_mini32", num_classes=3)
assert type(ours).__module__.startswith("torchstone")
assert timm.create_model("inceptionnext_mini32", features_only=True).feature_info.channels()
"""
    subprocess.run([sys.executable, "-W", "error::UserWarning:timm.models", "-c", script], check=True)


def test_each_face_loads_only_what_it_needs():
    script = """
import sys, torchstone
assert not {"torch", "timm", "numpy"} & set(sys.modules), "importing torchstone is not quick"
torchstone.systems()
assert not {"torch", "timm", "numpy"} & set(sys.modules), "reading cards is not quick"
torchstone.list_models
assert not {"lightning", "sklearn", "plotly", "pandas", "torchvision"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    assert list_models("nothing*") == []
