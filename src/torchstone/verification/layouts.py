"""The layouts of released checkpoints: our variants accept exactly their names and shapes.

``keys/<key>.json`` lists, for full-size official networks, the parameter count and every name and shape of the state
dict. A variant of ours is built on the meta device (no memory, no arithmetic) and loads a state dict of that layout the
way a released file is loaded: through the public converter, strictly.
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchstone import catalog
from torchstone.errors import CallError
from torchstone.models.pretrained import check_layout, read_checkpoint
from torchstone.models.registry import create_model, factories, local_file


@dataclass(frozen=True)
class Layout:
    """What a released checkpoint looks like: parameter count, and shape by name."""

    name: str
    params: int
    shapes: dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class LayoutCheck:
    """One variant against a layout; ``problem`` is empty when it loads strictly and has the same parameter count."""

    variant: str
    layout: str
    params: int
    problem: str = ""

    @property
    def ok(self) -> bool:
        return not self.problem


def read_layouts(path: str | Path) -> dict[str, Layout]:
    """Read ``keys/<key>.json``."""
    told = json.loads(Path(path).read_text())
    return {
        name: Layout(name, entry["params"], {key: tuple(shape) for key, shape in entry["state"].items()})
        for name, entry in told.items()
    }


def check_layouts(key: str, layouts: Mapping[str, Layout]) -> list[LayoutCheck]:
    """Check every variant of a system whose card names a layout."""
    checks = []
    for variant in catalog.card(key).variants:
        if variant.keys in layouts:
            checks.append(check_variant(key, variant.name, layouts[variant.keys]))
        elif variant.keys:
            checks.append(LayoutCheck(variant.name, variant.keys, 0, f"no layout is called {variant.keys!r}"))
    return checks


def check_variant(key: str, name: str, layout: Layout) -> LayoutCheck:
    """Check that a variant loads a layout strictly and has its parameter count."""
    state = {key: torch.empty(shape, device="meta") for key, shape in layout.shapes.items()}
    try:
        model = load_on_meta(key, name, state)
    except CallError as error:
        return LayoutCheck(name, layout.name, layout.params, str(error))
    params = sum(parameter.numel() for parameter in model.parameters())
    problem = "" if params == layout.params else f"{params:,} parameters, the official network has {layout.params:,}"
    return LayoutCheck(name, layout.name, layout.params, problem)


def load_on_meta(key: str, name: str, state: dict[str, Tensor]) -> nn.Module:
    """Build a variant on the meta device and load an official state dict of meta tensors into it.

    An image model loads it the way a released file is loaded; such a file may have other classes or input channels than
    the model, its layout may not. Elsewhere the converter is the ``convert_official(state, model)`` of the system's
    module, if it has one.

    Raises:
        CallError: the converted names or shapes differ from the model's.
    """
    card, factory = catalog.card(key), factories(key)[name]
    try:
        with torch.device("meta"):
            if card.room == "models/image":
                return _same_ends(factory(pretrained=True, pretrained_cfg_overlay={"state_dict": state}), name)
            model = factory()
        convert = getattr(importlib.import_module(card.module), "convert_official", None)
        check_layout(model, convert(state, model) if convert else state)
        return model
    except (RuntimeError, LookupError) as error:  # what a converter or the loader says of foreign names and shapes
        raise CallError(f"{type(error).__name__}: {error}") from error


def _same_ends(model: nn.Module, name: str) -> nn.Module:
    """Refuse a file whose first convolution or classifier was adapted: the loader notes on the model what it has."""
    file: Any = model.pretrained_cfg
    for module, axis, found, what in (
        (file["classifier"], 0, file["num_classes"], "classes"),
        (file["first_conv"], 1, file["input_size"][0], "input channels"),
    ):
        built = model.get_submodule(module).weight.shape[axis]  # type: ignore[index]
        if found != built:
            raise CallError(f"the checkpoint has {found} {what}, {name} has {built}")
    return model


def load_checkpoint(key: str, checkpoint: str | Path, variant: str | None = None) -> tuple[str, nn.Module]:
    """Load a file that the authors released, strictly, into the variant it belongs to.

    Args:
        key: the system.
        checkpoint: the released file, a path or URL.
        variant: the variant; None to find the one whose layout fits.

    Returns:
        The variant's name and the model with its weights.

    Raises:
        CallError: no variant fits (the differences are listed), or the file cannot be read.
    """
    card = catalog.card(key)
    candidates = [card.variant(variant).name] if variant else [entry.name for entry in card.variants]
    file = local_file(str(checkpoint))
    state = {name: value.to("meta") for name, value in read_checkpoint(file).items()}
    problems = {}
    for name in candidates:
        try:
            load_on_meta(key, name, dict(state))
        except CallError as error:
            problems[name] = str(error)
        else:
            return name, create_model(name, pretrained=file)
    closest = max(candidates, key=lambda name: _shared_shapes(key, name, state))
    fits = closest if variant else f"any variant of {key}; closest is {closest}"
    raise CallError(f"{checkpoint} does not fit {fits}: {problems[closest]}")


def _shared_shapes(key: str, name: str, state: Mapping[str, Tensor]) -> int:
    """How many tensors of a file and a variant have the same shape, whatever their names."""
    with torch.device("meta"):
        model = factories(key)[name]()
    file, ours = (Counter(value.shape for value in tensors.values()) for tensors in (state, model.state_dict()))
    return (file & ours).total()
