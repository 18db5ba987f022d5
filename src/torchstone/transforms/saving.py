"""A model as a folder that holds no code: ``model.json`` (factory, arguments, plans) and ``model.safetensors``.

    save_model("folder", model, "timm:resnet18", {"num_classes": 10}, plans=[result.plan])
    model = load_model("folder")              # in any process: built, transformed by the plans, weights loaded strictly
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from torchstone.errors import CallError
from torchstone.files import read_json, write_bytes, write_json
from torchstone.models.pretrained import check_layout, read_checkpoint
from torchstone.models.registry import build_model
from torchstone.transforms.contract import Plan, replay

STRUCTURE, WEIGHTS = "model.json", "model.safetensors"


def save_model(
    folder: str | Path,
    model: nn.Module,
    name: str,
    args: Mapping[str, Any] | None = None,
    plans: Sequence[Plan] = (),
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write a model so that any process can load it.

    Args:
        folder: created when needed.
        model: built as ``build_model(name, **args)`` and transformed as the plans say.
        name: ``NAME``, ``timm:NAME``, ``torchvision:NAME``, ...
        args: the factory's arguments.
        plans: of the transforms, in the order in which they were applied.
        facts: further entries of ``model.json``; loading does not look at them.

    Raises:
        WriteFailed: the folder cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / WEIGHTS, safetensors.torch.save(copies(model.state_dict())))
    write_json(folder / STRUCTURE, {**(facts or {}), **structure(name, args or {}, plans)})


def copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as safetensors takes it: on the CPU, contiguous, each tensor with memory of its own."""
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}


def structure(name: str, args: Mapping[str, Any], plans: Sequence[Plan]) -> dict[str, Any]:
    """What ``model.json`` says of a model."""
    return {"name": name, "args": dict(args), **({"plans": list(plans)} if plans else {})}


def build_structure(told: Mapping[str, Any]) -> nn.Module:
    """Build what ``model.json`` describes, with fresh weights."""
    model = build_model(told["name"], **told.get("args", {}))
    for plan in told.get("plans", ()):
        model = replay(model, plan)
    return model


def load_model(folder: str | Path) -> nn.Module:
    """Load a model that :func:`save_model` or a training run wrote, in eval mode on the CPU.

    Raises:
        CallError: no such folder, a damaged file, a plan or weights that do not fit.
    """
    model = build_structure(read_structure(folder))
    state = read_checkpoint(Path(folder) / WEIGHTS)
    check_layout(model, state)
    model.load_state_dict(state)
    return model.eval()


def read_structure(folder: str | Path) -> dict[str, Any]:
    """The content of a folder's ``model.json``.

    Raises:
        CallError: it is not there or damaged.
    """
    path = Path(folder) / STRUCTURE
    try:
        told = read_json(path)
    except OSError as error:
        raise CallError(f"{folder} holds no model: {path} cannot be read ({error.strerror or error})") from error
    except json.JSONDecodeError as error:
        raise CallError(f"{path} is damaged: {error}") from error
    if not isinstance(told, dict) or not isinstance(told.get("name"), str):
        raise CallError(f"{path} describes no model: it names none")
    return told
