"""A variant takes the layout of its authors' file, and no other."""

import json
import sys
import types
from dataclasses import replace

import pytest
import torch
from _toy import Toy, convert, official_state, write_layouts

from torchstone import catalog
from torchstone.errors import CallError, UnknownName
from torchstone.models import registry
from torchstone.verification.layouts import Layout, check_layouts, check_variant, load_checkpoint, read_layouts


@pytest.fixture
def layouts(tmp_path, toy):
    write_layouts(tmp_path / "toy.json")
    return read_layouts(tmp_path / "toy.json")


def test_every_variant_with_a_layout_loads_it_strictly(layouts):
    checks = check_layouts("toy", layouts)
    assert [(item.variant, item.layout, item.ok) for item in checks] == [
        ("toy_base", "base", True),
        ("toy_grey", "grey", True),
    ]
    assert checks[0].params == 3 * 4 * 9 + 4 + 4 * 10 + 10


def without(name):
    return lambda shapes: {key: shape for key, shape in shapes.items() if key != name}


@pytest.mark.parametrize(
    "change",
    [
        without("conv.weight"),
        without("conv.bias"),
        without("head.weight"),
        without("head.bias"),
        lambda shapes: {**shapes, "head.scale": (1,)},
        lambda shapes: {**shapes, "extra": (1,)},
        lambda shapes: {**shapes, "conv.bias": (5,)},
        lambda shapes: {**shapes, "conv.weight": (4, 1, 3, 3)},
        lambda shapes: {**shapes, "conv.weight": (4, 3, 5, 5)},
        lambda shapes: {**shapes, "head.weight": (11, 4), "head.bias": (11,)},
        lambda shapes: {**shapes, "head.weight": (10, 5)},
        lambda shapes: {**shapes, "head.bias": (11,)},
    ],
)
def test_any_other_name_or_shape_is_a_failure(layouts, change):
    layout = layouts["base"]
    changed = Layout("base", layout.params, change(layout.shapes))
    assert not check_variant("toy", "toy_base", changed).ok


def test_another_parameter_count_is_a_failure(layouts):
    layout = layouts["base"]
    problem = check_variant("toy", "toy_base", Layout("base", layout.params + 1, layout.shapes)).problem
    assert problem == f"{layout.params} parameters, the official network has {layout.params + 1}"


def test_a_variant_that_names_no_layout_is_a_failure(layouts):
    del layouts["grey"]
    assert "no layout is called 'grey'" in check_layouts("toy", layouts)[1].problem


@pytest.mark.parametrize(("variant", "in_chans"), [("toy_base", 3), ("toy_grey", 1)])
def test_a_released_file_finds_its_variant(tmp_path, toy, variant, in_chans):
    torch.save({"state_dict": official_state(in_chans=in_chans)}, tmp_path / "released.pth")
    name, model = load_checkpoint("toy", tmp_path / "released.pth")
    assert name == variant
    assert torch.equal(model.stem.weight, official_state(in_chans=in_chans)["conv.weight"])


def test_a_released_file_is_tried_on_the_variant_that_is_named(tmp_path, toy):
    torch.save(official_state(), tmp_path / "released.pth")
    assert load_checkpoint("toy", tmp_path / "released.pth", "toy_base")[0] == "toy_base"
    with pytest.raises(UnknownName, match="toy_base"):
        load_checkpoint("toy", tmp_path / "released.pth", "toy_bass")


def test_a_file_that_fits_no_variant_says_what_differs(tmp_path, toy):
    torch.save({**official_state(), "conv.scale": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(CallError, match=r"any variant of toy; closest is toy_base.*\s+unexpected: stem\.scale"):
        load_checkpoint("toy", tmp_path / "other.pth")
    with pytest.raises(CallError, match=r"does not fit toy_grey.*\s+unexpected: stem\.scale"):
        load_checkpoint("toy", tmp_path / "other.pth", "toy_grey")


def test_layouts_are_read_as_they_were_listed(tmp_path):
    written = write_layouts(tmp_path / "toy.json")
    read = read_layouts(tmp_path / "toy.json")
    assert {name: {key: list(shape) for key, shape in item.shapes.items()} for name, item in read.items()} == {
        name: item["state"] for name, item in written.items()
    }
    assert json.loads((tmp_path / "toy.json").read_text())["base"]["params"] == read["base"].params


def test_outside_the_image_room_the_module_converts(monkeypatch, toy, layouts):
    def toy_graph(pretrained=False, **kwargs):
        return Toy(**kwargs)

    toy_graph.__module__ = "torchstone.models.graph.toy"
    module = types.ModuleType(toy_graph.__module__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(registry, "_factories", {"toy_graph": toy_graph})
    monkeypatch.setattr(catalog, "cards", lambda: {"toy": replace(toy.card, room="models/graph")})
    assert "missing: stem.weight" in check_variant("toy", "toy_graph", layouts["base"]).problem
    module.convert_official = convert
    assert check_variant("toy", "toy_graph", layouts["base"]).ok
    assert "other shape: stem.weight" in check_variant("toy", "toy_graph", layouts["grey"]).problem
