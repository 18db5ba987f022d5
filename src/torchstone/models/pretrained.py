"""Reading released checkpoints: never unpickled, converted strictly."""

from __future__ import annotations

import hashlib
import pickle
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from torchstone import catalog
from torchstone.errors import CallError

State = dict[str, Tensor]
Convert = Callable[[State, nn.Module], State]

_CONTAINERS = ("state_dict", "model", "model_state_dict", "module")


def read_checkpoint(path: str | Path, ignored: Collection[str] = (), entry: str = "") -> State:
    """Read the tensors of a checkpoint file without running anything in it.

    Safetensors, plain state dicts and the usual containers (``{"state_dict": ...}``, ``{"model": ...}``) are
    understood; the ``module.`` prefix that data-parallel training leaves is taken off.

    Args:
        path: a ``.safetensors`` file or one written by ``torch.save``.
        ignored: entries of the state dict that are no tensors and are left out.
        entry: the container to prefer in a file that has it, such as ``model_ema`` beside ``model``.

    Returns:
        The state dict, on the CPU.

    Raises:
        CallError: no such file, a truncated or foreign file, a pickle of more than tensors, or no tensors in it.
    """
    path = Path(path)
    if not path.is_file():
        raise CallError(f"there is no checkpoint file {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CallError(f"{path} is truncated or not a safetensors file ({error})") from error
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        named = f" ({found[1]})" if found else ""
        raise CallError(
            f"{path} was not read: it is damaged, or holds objects other than tensors{named}, which could run code "
            "when loaded. Extract its state dict with software you trust and save that."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CallError(f"{path} is truncated or not a PyTorch checkpoint ({_first_line(error)})") from error
    return _tensors(content, path, ignored, (entry, *_CONTAINERS))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _tensors(content: Any, path: Path, ignored: Collection[str], containers: Sequence[str]) -> State:
    while isinstance(content, Mapping):
        inner = [name for name in containers if isinstance(content.get(name), Mapping)]
        if not inner:
            break
        content = content[inner[0]]
    if not isinstance(content, Mapping) or not content:
        raise CallError(f"{path} holds no state dict")
    content = {name: value for name, value in content.items() if name not in ignored}
    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise CallError(f"{path} holds no state dict: entries such as {others[0]!r} are not tensors")
    if all(name.startswith("module.") for name in content):
        return {name.removeprefix("module."): value for name, value in content.items()}
    return dict(content)


def check_layout(model: nn.Module, state: Mapping[str, Tensor], adaptable: Iterable[str] = ()) -> None:
    """Check that a state dict has exactly the names and shapes of a model.

    Args:
        model: the network that is to take the weights.
        state: converted weights.
        adaptable: modules (first convolution, classifier) whose weights may have another shape: the caller adapts them.

    Raises:
        CallError: lists what is missing, unexpected and of another shape.
    """
    adapted = {f"{name}.{kind}" for name in adaptable for kind in ("weight", "bias")}
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own and name not in adapted]
    other_shape = [
        f"{name} is {tuple(value.shape)}, the model has {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape and name not in adapted
    ]
    lines = [
        f"{what}: {', '.join(names[:8])}" + (f", ... ({len(names)} in all)" if len(names) > 8 else "")
        for what, names in (("missing", missing), ("unexpected", unexpected), ("other shape", other_shape))
        if names
    ]
    if lines:
        raise CallError(f"these weights do not fit {type(model).__name__}:\n  " + "\n  ".join(lines))


def strict_filter(convert: Convert | None, first_conv: str, classifier: str) -> Convert:
    """The filter that timm's loader applies to a released file: our converter, then the strict check of its layout.

    timm adapts the first convolution to other channels and leaves out a classifier for other classes by comparing the
    model with what the pretrained configuration says of the file; the filter corrects that from the file itself.
    """

    def filter_state(state: State, model: nn.Module) -> State:
        state = convert(state, model) if convert else dict(state)
        check_layout(model, state, adaptable=(first_conv, classifier))
        facts: Any = model.pretrained_cfg
        facts["num_classes"] = state[f"{classifier}.weight"].shape[0]
        facts["input_size"] = (state[f"{first_conv}.weight"].shape[1], *facts["input_size"][1:])
        return state

    return filter_state


def released_file(name: str) -> Path:
    """Download (once) the file that the authors released for a variant.

    Raises:
        CallError: none was released, it has no direct link (the message says where to get it), or its hash differs.
    """
    from timm.models._hub import download_cached_file

    card = catalog.variants()[name]
    variant = card.variant(name)
    if not variant.weights:
        raise CallError(
            f"{name} has no weights with a direct link: {variant.where or 'none were released'}"
            + (f"; pass the file with pretrained=PATH, or {name}@PATH on the command line" if variant.where else "")
        )
    announce_licence(name)
    return _checked(Path(download_cached_file(variant.weights, progress=True)), variant.sha256)


def _checked(path: Path, sha256: str) -> Path:
    if sha256 and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise CallError(f"{path} is not the released file: its sha256 differs; delete it to download it again")
    return path


_announced: set[str] = set()


def announce_licence(name: str) -> None:
    """Say once per process under which licence a system's released weights are."""
    card = catalog.variants()[name]
    if card.official and card.official.weights_licence and card.key not in _announced:
        _announced.add(card.key)
        official = card.official
        print(f"{card.key}: released weights under {official.weights_licence}, {official.repository}", file=sys.stderr)
