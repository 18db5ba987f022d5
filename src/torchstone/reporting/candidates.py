"""Candidates of a comparison: how they are written, and what a written one stands for.

    candidate = [ method "+" ] model { "+" transform }       steps in the order they run
    model     = [ library ":" ] name [ "@" weights ]          library: timm, torchvision, pyg, torch; else it is ours
    method, transform = name { ":" key "=" value }
    weights   = "pretrained" | file | run directory | URL

PyTorch Geometric's networks (gcn, gat, ...) need no ``pyg:`` before them; PyTorch's own sequence networks are
``torch:transformer``, ``torch:lstm`` and ``torch:gru``. A model's name may be a glob (``*_mini32``,
``timm:resnet1*``), which stands for one candidate per model that matches.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torchstone import catalog
from torchstone.errors import CallError, unknown_name
from torchstone.reporting.results import STARTS
from torchstone.training.recipe import TransformSpec
from torchstone.transforms.contract import check_options

LIBRARIES = ("timm", "torchvision", "pyg", "torch")
PRETRAINED = "pretrained"

GRAPH_PEERS = ("appnp", "gat", "gcn", "gin", "sage")
"""Networks of PyTorch Geometric that are known without ``pyg:``."""

SEQUENCE_PEERS = ("gru", "lstm", "transformer")
"""Sequence networks of PyTorch, after ``torch:``."""

_PREFIXES = tuple(f"{library}:" for library in LIBRARIES)
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Step:
    """A method or transform with its options."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Candidate:
    """One candidate.

    Attributes:
        name: as the user wrote it, globs expanded.
        model: what :func:`torchstone.models.registry.build_model` takes: ``NAME``, ``timm:NAME``, ...
        weights: None (from scratch), ``pretrained``, a file's path or URL, or a run directory.
        method: how the model is trained; None is plain supervised training.
        transforms: what is done to the model, in order.
    """

    name: str
    model: str
    weights: str | None = None
    method: Step | None = None
    transforms: tuple[Step, ...] = ()

    @property
    def start(self) -> str:
        return "scratch" if self.weights is None else "pretrained"

    @property
    def pretrains(self) -> bool:
        """Whether a method trains the network before the task's own training does."""
        from torchstone.methods.registry import finishes

        return self.method is not None and not finishes(self.method.name)

    @property
    def source(self) -> str:
        """Where the model comes from: ``torchstone``, ``timm``, ``torchvision``, ``pyg`` or ``torch``."""
        return self.model.rpartition(":")[0] or "torchstone"

    @property
    def steps(self) -> tuple[TransformSpec, ...]:
        """The transforms as a recipe takes them."""
        return tuple(TransformSpec(step.name, dict(step.options)) for step in self.transforms)

    @property
    def card(self) -> catalog.Card | None:
        """The card of the model's system, None for models of other libraries."""
        return catalog.system_of(self.model)


@dataclass(frozen=True)
class _Part:
    """One of the steps between the plus signs, and where it begins in the candidate (from 1)."""

    text: str
    character: int

    @property
    def is_model(self) -> bool:
        name = self.text.partition("@")[0]
        written = name != self.text or name.startswith(_PREFIXES) or bool(_GLOB.search(name))
        return written or name in catalog.variants() or name in GRAPH_PEERS


def parse_candidates(texts: Sequence[str], start: str = "scratch") -> tuple[list[Candidate], list[str]]:
    """Read candidates and expand their globs.

    Args:
        texts: as the user wrote them.
        start: what a candidate without ``@weights`` starts from: ``scratch`` or ``pretrained``.

    Returns:
        The candidates in the order given, each once, and a note for each that was named again.

    Raises:
        UnknownName: no such model, library, method or transform; the nearest are given.
        CallError: a malformed candidate, a missing file, or released weights that do not exist.
    """
    if start not in STARTS:
        raise unknown_name("start", start, STARTS)
    if not texts:
        raise CallError("name at least one model to compare; torchstone list shows ours, timm:NAME is timm's")
    seen: dict[Candidate, str] = {}
    notes = []
    for text in texts:
        for candidate in _parse(text):
            if candidate.weights is None and start == PRETRAINED:
                candidate = replace(candidate, weights=PRETRAINED)
            identity = replace(candidate, name="")
            if identity in seen:
                notes.append(f"{candidate.name} is named more than once ({text}); it is compared once")
            else:
                seen[identity] = candidate.name
    candidates = [replace(identity, name=name) for identity, name in seen.items()]
    for candidate in candidates:
        _check_weights(candidate)
    return candidates, notes


def _parse(text: str) -> list[Candidate]:
    """One written candidate as one or, with a glob, several."""
    parts = _parts(text)
    index = next((index for index, part in enumerate(parts) if part.is_model), None)
    if index is None:  # no model is recognised: it is said of the step where one should be
        index = int(len(parts) > 1 and _is_method(parts[0].text.partition(":")[0]))
    before, model, after = parts[:index], parts[index], parts[index + 1 :]
    if len(before) > 1:
        raise CallError(f"candidate {text!r}: one method at most may stand before the model {model.text!r}")
    method = None
    for part in before:
        with _placed(text, part):
            method = _step("method", part.text)
    with _placed(text, model):
        names, weights = _models(model.text)
    transforms = []
    for part in after:
        with _placed(text, part):
            transforms.append(parse_transform(part.text))
    written = model.text.partition("@")[0]
    return [
        Candidate(
            name="+".join(part.text.replace(written, name, 1) if part is model else part.text for part in parts),
            model=name,
            weights=weights,
            method=method,
            transforms=tuple(transforms),
        )
        for name in names
    ]


def _parts(text: str) -> list[_Part]:
    parts, character = [], 1
    for piece in text.split("+"):
        if not piece.strip():
            raise CallError(f"candidate {text!r}, character {character}: a name is missing: [method+]model[+transform]")
        parts.append(_Part(piece, character))
        character += len(piece) + 1
    return parts


@contextmanager
def _placed(text: str, part: _Part) -> Iterator[None]:
    """Say where in a candidate of several steps an error lies."""
    try:
        yield
    except CallError as error:
        if part.text == text:
            raise
        raise type(error)(f"candidate {text!r}, character {part.character}: {error}") from None


def _known(kind: str) -> list[str]:
    return [card.key for card in catalog.cards().values() if card.kind == kind]


def _is_method(name: str) -> bool:
    return name in _known("method") or "." in name  # with a dot: a module of the user's own


def _look_up(kind: str, name: str) -> str:
    known = _known(kind)
    if kind == "method" and "." in name:
        from torchstone.methods.registry import method_module

        method_module(name)
    elif name not in known:
        raise unknown_name(kind, name, known)
    return name


def parse_transform(text: str) -> Step:
    """Read a transform with its options, ``name:key=value:...``.

    Raises:
        UnknownName: no such transform or option; the nearest are given.
        CallError: a malformed option.
    """
    return _step("transform", text)


def _step(kind: str, text: str) -> Step:
    from torchstone.training.recipe import parse_yaml

    name, *options = text.split(":")
    _look_up(kind, name)
    values: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not key or not equals or not value:
            raise CallError(f"{option!r} is no option of {name}; options are written :key=value")
        if key in values:
            raise CallError(f"option {key} of {name} is given twice")
        values[key] = parse_yaml(value, f"option {key} of {name}")
        if not isinstance(values[key], bool | int | float | str):
            raise CallError(f"option {key} of {name} is {value!r}; it must be a number, true, false or text")
    if kind == "transform":
        check_options(name, values)
    return Step(name, tuple(values.items()))


# --------------------------------------------------------------------------------------------------- models and weights


def _models(text: str) -> tuple[list[str], str | None]:
    """The models that ``[library:]name[@weights]`` names, and the weights."""
    specification, at, weights = text.partition("@")
    if at and not weights:
        raise CallError(f"{text!r}: weights are expected after @: {PRETRAINED}, a path or a URL")
    if specification in GRAPH_PEERS:
        specification = f"pyg:{specification}"
    library, _, name = specification.rpartition(":")
    if library and library not in LIBRARIES:
        raise unknown_name("library", library, LIBRARIES)
    prefix = f"{library}:" if library else ""
    if _GLOB.search(name):
        names = fnmatch.filter(_names(library), name)
    else:
        names = [name] if _has(library, name) else []
    if not names:
        elsewhere = [] if library else [f"{other}:{name}" for other in LIBRARIES if _has(other, name)]
        raise unknown_name("model", specification, elsewhere or [f"{prefix}{known}" for known in _names(library)])
    return [f"{prefix}{name}" for name in names], weights or None


def _names(library: str) -> list[str]:
    if library == "timm":
        import timm

        return timm.list_models()
    if library == "torchvision":
        from torchvision import models

        return models.list_models(module=models)
    peers = {"pyg": GRAPH_PEERS, "torch": SEQUENCE_PEERS}
    return list(peers[library]) if library in peers else catalog.networks()


def _has(library: str, name: str) -> bool:
    if library == "timm":
        import timm

        return timm.is_model(name)  # also with a tag of its weights: resnet18.a1_in1k
    return name in _names(library)


def _check_weights(candidate: Candidate) -> None:
    """Refuse released weights that do not exist and files that are not there, before anything is trained."""
    weights = candidate.weights
    if weights is None or weights.startswith(("http://", "https://")):
        return
    if weights != PRETRAINED:
        if Path(weights).is_dir():
            from torchstone.training.runs import read_info

            read_info(weights)
        elif not Path(weights).is_file():
            raise CallError(f"{candidate.name}: there is no weights file or run {weights}")
        return
    missing = _missing_weights(candidate)
    if missing:
        raise CallError(f"{candidate.name} cannot start from pretrained weights: {missing}")


def _missing_weights(candidate: Candidate) -> str:
    """Why there are no released weights to start from; empty when there are."""
    name = candidate.model.rpartition(":")[2]
    if candidate.source == "timm":
        from timm.models import get_pretrained_cfg

        cfg = get_pretrained_cfg(name)
        return "" if cfg is not None and cfg.has_weights else "timm has none for it"
    if candidate.source == "torchvision":
        from torchvision import models

        return "" if len(models.get_model_weights(name)) else "torchvision has none for it"
    if candidate.source == "pyg":
        return "PyTorch Geometric has none for it"
    if candidate.source == "torch":
        return "PyTorch has none for it"
    assert candidate.card is not None
    variant = candidate.card.variant(name)
    if variant.weights:
        return ""
    return f"get the file and write {name}@PATH ({variant.where})" if variant.where else "none were released"
