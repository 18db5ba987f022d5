"""Recorded cases: what the authors' code was given, and what it answered.

A case is a pair of files. ``<case>.json`` says which official object was built (``entry``, ``kwargs``), how it was
called (``call``, ``mode``) and what a reader has to know (``notes``); ``<case>.safetensors`` holds the tensors under
``state/NAME``, ``input/NAME`` and ``output/NAME``. The official code ran in float32 (some functions in float64) and
every answer was stored as float32 or int64.

:func:`read_case` splits a pair in two: a :class:`Case`, which is all that an adapter may see - of the outputs only
names, shapes and dtypes - and the recorded answers, which stay with the harness.

Held-out cases are described without numbers. :func:`draw_held_out` draws inputs and weights for such a description,
so that an adapter can be run and the names and shapes of its outputs be compared.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from torchstone.errors import CallError

_DTYPES = {"F32": torch.float32, "I64": torch.int64}
_FIELDS = ("system", "entry", "kwargs", "call", "mode", "notes")


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor whose values are not told."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


@dataclass(frozen=True)
class Case:
    """One call of official code, as an adapter sees it.

    Attributes:
        system: key of the system.
        name: the case's name, unique within the system (for reports; adapters do not branch on it).
        entry: the official object that was built.
        kwargs: the arguments it was built with.
        call: how it was called.
        mode: ``"eval"``, ``"train"``, or a sentence where one word does not tell it.
        notes: what else a reader has to know.
        state: the official weights by their official names; ``None`` when only names and shapes are compared and the
            fresh weights are kept.
        inputs: the official inputs by name.
        outputs: the recorded outputs by name: shapes and dtypes, never values.
    """

    system: str
    name: str
    entry: str
    kwargs: dict[str, Any]
    call: str
    mode: str
    notes: str
    state: dict[str, Tensor] | None
    inputs: dict[str, Tensor]
    outputs: dict[str, TensorSpec]


@dataclass(frozen=True)
class RecordedCase:
    """A case together with the official answers."""

    case: Case
    expected: dict[str, Tensor]


def read_case(description: str | Path) -> RecordedCase:
    """Read one recorded case.

    Args:
        description: path of ``<case>.json``; ``<case>.safetensors`` lies beside it.

    Raises:
        CallError: a file is missing or damaged, or the two files do not list the same inputs and outputs.
    """
    path = Path(description)
    try:
        told = json.loads(path.read_text())
    except OSError as error:
        raise CallError(f"cannot read the recorded case {path}: {error.strerror}") from error
    except ValueError as error:
        raise CallError(f"{path} is not JSON: {error}") from error
    missing = [field for field in (*_FIELDS, "inputs", "outputs") if field not in told]
    if missing:
        raise CallError(f"{path} is not a recorded case: it lacks {', '.join(missing)}")

    parts: dict[str, dict[str, Tensor]] = {"state": {}, "input": {}, "output": {}}
    for name, tensor in _read_tensors(path.with_suffix(".safetensors")).items():
        part, _, rest = name.partition("/")
        if part not in parts:
            raise CallError(f"{path.with_suffix('.safetensors')} holds {name!r}: expected state/, input/ or output/")
        parts[part][rest] = tensor
    for part in ("input", "output"):
        differing = set(told[f"{part}s"]) ^ set(parts[part])
        if differing:
            raise CallError(f"{path}: its {part}s are not those of its tensor file: {', '.join(sorted(differing))}")

    case = Case(
        **{field: told[field] for field in _FIELDS},
        name=path.stem,
        state=parts["state"],
        inputs=parts["input"],
        outputs={name: TensorSpec(tuple(value.shape), value.dtype) for name, value in parts["output"].items()},
    )
    return RecordedCase(case, parts["output"])


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except Exception as error:  # safetensors has its own error type, the file system another
        raise CallError(f"cannot read the recorded tensors {path}: {error}") from error


def case_files(folder: str | Path) -> list[Path]:
    """The descriptions in a system's folder, by name."""
    return sorted(Path(folder).glob("*.json"))


def read_held_out(path: str | Path, system: str) -> list[dict[str, Any]]:
    """The held-out descriptions of one system (an empty list when there are none)."""
    return [told for told in json.loads(Path(path).read_text()) if told["system"] == system]


def draw_held_out(
    told: Mapping[str, Any],
    examples: Iterable[Case] = (),
    structured: Callable[[Case], dict[str, Tensor]] | None = None,
) -> Case:
    """A case to run for a held-out description, its values drawn at random (the same ones every time).

    An input takes its values from the input of that name in ``examples`` (so masks stay masks and labels stay labels),
    permutations and edge lists are drawn as such, and an unknown input is normal or, if integer, 0 or 1. Weights are
    drawn when their shapes are told; otherwise ``state`` is ``None``.

    Args:
        told: one entry of the list of held-out descriptions.
        examples: the system's recorded cases.
        structured: an adapter's ``example(case) -> {"input/NAME" or "state/NAME": tensor}`` for values that cannot be
            drawn independently (the bytes of a file, a constant that the official state carries).

    Raises:
        CallError: ``structured`` answers another name, shape or dtype than the description.
    """
    examples = list(examples)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{told['system']}/{told['case']}".encode()))
    specs = {name: TensorSpec(tuple(shape), _DTYPES[dtype]) for name, (shape, dtype) in told["inputs"].items()}
    case = Case(
        **{field: told[field] for field in _FIELDS},
        name=told["case"],
        state=_draw_state(told["state"], examples, generator),
        inputs={name: _draw_input(name, spec, specs, examples, generator) for name, spec in specs.items()},
        outputs={name: TensorSpec(tuple(shape), _DTYPES[dtype]) for name, (shape, dtype) in told["outputs"].items()},
    )
    return case if structured is None else _put(case, structured(case))


def _put(case: Case, values: Mapping[str, Tensor]) -> Case:
    """The case with some of its drawn tensors replaced by given ones."""
    tensors = {f"input/{name}": value for name, value in case.inputs.items()}
    tensors |= {f"state/{name}": value for name, value in (case.state or {}).items()}
    for name, value in values.items():
        if name not in tensors:
            raise CallError(f"{case.system}/{case.name}: example() gives {name!r}, which the description does not have")
        if value.shape != tensors[name].shape:
            raise CallError(
                f"{case.system}/{case.name}: example() gives {name!r} as {list(value.shape)}, "
                f"described is {list(tensors[name].shape)}"
            )
    tensors |= values
    inputs = {name: tensors[f"input/{name}"] for name in case.inputs}
    state = None if case.state is None else {name: tensors[f"state/{name}"] for name in case.state}
    return replace(case, inputs=inputs, state=state)


def _draw_input(
    name: str, spec: TensorSpec, siblings: Mapping[str, TensorSpec], examples: list[Case], generator: torch.Generator
) -> Tensor:
    if spec.dtype == torch.int64 and re.search(r"(edge_index|edges)$", name):
        nodes = _node_count(name, siblings)
        if nodes is not None:
            return torch.randint(nodes, spec.shape, generator=generator)
    like = _same_name(name, [case.inputs for case in examples])
    if like is None or like.numel() == 0:
        if spec.dtype == torch.int64:
            return torch.randint(2, spec.shape, generator=generator)
        return torch.randn(spec.shape, generator=generator)
    if _is_permutation(like):
        return torch.randperm(spec.shape[0], generator=generator)
    drawn = torch.randint(like.numel(), (max(1, _numel(spec.shape)),), generator=generator)
    values = like.flatten()[drawn][: _numel(spec.shape)].to(spec.dtype)
    if like.dim() == 1 and like.numel() > 2 and not like.is_floating_point() and bool((like.diff() >= 0).all()):
        values = values.sort().values  # the graph of each node, a growing table of steps
    return values.reshape(spec.shape)


def _draw_state(told: Any, examples: list[Case], generator: torch.Generator) -> dict[str, Tensor] | None:
    """Weights of the told shapes; a text instead of shapes means that they are not told."""
    if isinstance(told, str):
        return None
    state = {}
    for name, shape in told.items():
        like = _same_name(name, [case.state or {} for case in examples])
        if name.endswith("num_batches_tracked") or (like is not None and not like.is_floating_point()):
            state[name] = torch.zeros(shape, dtype=torch.int64)
        elif name.endswith("running_var"):
            state[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            state[name] = torch.randn(shape, generator=generator) * 0.1
    return state


def _same_name(name: str, places: Iterable[Mapping[str, Tensor]]) -> Tensor | None:
    """The first tensor of that name, counting ``g0.x`` and ``g2.x`` as one name."""
    pattern = re.sub(r"\d+", "#", name)
    for place in places:
        for other, tensor in place.items():
            if re.sub(r"\d+", "#", other) == pattern:
                return tensor
    return None


def _node_count(name: str, siblings: Mapping[str, TensorSpec]) -> int | None:
    """Rows of the node features that go with an edge list: the inputs of the same graph that are not about edges."""
    prefix = name.rpartition(".")[0]
    rows = [
        spec.shape[0]
        for other, spec in siblings.items()
        if other.rpartition(".")[0] == prefix and len(spec.shape) >= 2 and "edge" not in other
    ]
    return min(rows) if rows else None


def _is_permutation(values: Tensor) -> bool:
    return (
        values.dim() == 1
        and values.numel() > 2
        and not values.is_floating_point()
        and bool((values.sort().values == torch.arange(values.numel())).all())
    )


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
