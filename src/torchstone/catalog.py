"""The catalogue of finished systems, read from their cards (``cards/<key>.toml``).

A card says what a system is, where it comes from, how ours differs, and which result files back what is said about it.
Reading cards needs neither torch nor any other heavy package.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from torchstone.errors import CallError, unknown_name

Kind = Literal["op", "model", "method", "transform", "instrument", "data"]
Proof = Literal["official", "port", "definition", "reconstruction"]

_PACKAGE = Path(__file__).parent
_CHECKOUT = _PACKAGE.parent.parent

PROOF_MEANING: Mapping[str, str] = {
    "official": "proved against the authors' code",
    "port": "proved against a port or a relative of the authors' code",
    "definition": "proved against the paper's equations",
    "reconstruction": "reconstructed: no code to prove against, details inferred",
}


@dataclass(frozen=True)
class Official:
    """The authors' repository, its licence and the licence of the released weights."""

    repository: str
    commit: str
    code_licence: str
    weights_licence: str = ""


@dataclass(frozen=True)
class Input:
    """What a model takes: smallest side in pixels, the divisor of every side, channels (``"any"`` or a count)."""

    min: int = 1
    multiple_of: int = 1
    in_chans: int | Literal["any"] = "any"


@dataclass(frozen=True)
class Variant:
    """One factory. ``weights`` is a direct link; ``where`` says in words where to get a file that has none.

    ``entry`` names the state dict to take from a file that holds several. A ``part`` is a block rather than a whole
    network: it is built by name, but not among the models that are listed.
    """

    name: str
    paper: bool
    weights: str = ""
    where: str = ""
    sha256: str = ""
    entry: str = ""
    keys: str = ""
    part: bool = False


@dataclass(frozen=True)
class Deviation:
    """One difference between paper, official code and ours."""

    what: str


@dataclass(frozen=True)
class UnusedParameters:
    """Parameters of the official layout that no output depends on."""

    pattern: str
    reason: str


@dataclass(frozen=True)
class Deferred:
    """A recorded case, or a list of official keys, that a later system brings."""

    case: str
    reason: str


@dataclass(frozen=True)
class Tolerance:
    """A recorded case whose notes justify another error bound than the common one."""

    case: str
    bound: float
    reason: str


@dataclass(frozen=True)
class Claim:
    """The paper's main claim, checked in direction at small scale by ``command``, which writes ``result``.

    ``figure`` names a picture of it in ``docs/images``.
    """

    text: str
    command: str
    result: str
    holds: Literal["yes", "no", "partly"]
    figure: str = ""


@dataclass(frozen=True)
class Card:
    """Everything the catalogue knows about one system.

    ``models`` is where the networks of a system of another kind live, such as ``models/image/convfirst``.
    """

    key: str
    title: str
    arxiv: str
    venue: str
    kind: Kind
    room: str
    proof: Proof
    summary: str
    official: Official | None = None
    task: str = ""
    lr: float = 0.0
    gpu: str = "not measured"
    parts: tuple[str, ...] = ()
    models: str = ""
    input: Input | None = None
    variants: tuple[Variant, ...] = ()
    deviations: tuple[Deviation, ...] = ()
    unused_parameters: tuple[UnusedParameters, ...] = ()
    deferred: tuple[Deferred, ...] = ()
    tolerance: tuple[Tolerance, ...] = ()
    claim: Claim | None = None
    results: Mapping[str, str] = field(default_factory=dict)

    @property
    def domain(self) -> str:
        """``image`` for ``models/image``; the room itself where it has no parts."""
        return self.room.rsplit("/", 1)[-1]

    @property
    def module(self) -> str:
        """The module that holds the system."""
        return f"torchstone.{self.room.replace('/', '.')}.{self.key}"

    @property
    def models_home(self) -> str:
        """The module or folder with the factories: of a system of another kind, its ``models``."""
        return self.models or f"{self.room}/{self.key}"

    @property
    def models_room(self) -> str:
        """The room that the factories live in, such as ``models/image``."""
        return self.models_home.rpartition("/")[0]

    @property
    def small_form(self) -> str:
        """The name that an image system's own small model has."""
        return f"{self.models_home.rpartition('/')[2]}_mini32"

    @property
    def networks(self) -> tuple[Variant, ...]:
        """The variants that are whole networks."""
        return tuple(variant for variant in self.variants if not variant.part)

    def variant(self, name: str) -> Variant:
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise unknown_name(f"variant of {self.key}", name, [variant.name for variant in self.variants])


@cache
def cards() -> Mapping[str, Card]:
    """Every card by key, in alphabetical order."""
    return {path.stem: read_card(path) for path in sorted((_PACKAGE / "cards").glob("*.toml"))}


def card(key: str) -> Card:
    """The card of one system.

    Raises:
        UnknownName: no such system; the nearest keys are named.
    """
    try:
        return cards()[key]
    except KeyError:
        raise unknown_name("system", key, cards()) from None


@cache
def variants() -> Mapping[str, Card]:
    """The card behind every model name."""
    return {variant.name: card for card in cards().values() for variant in card.variants}


def networks() -> list[str]:
    """The names of all whole networks, sorted."""
    return sorted(variant.name for card in cards().values() for variant in card.networks)


def system_of(model: str) -> Card | None:
    """The card of the system that a model name belongs to, or None when it is not ours."""
    return variants().get(model)


def read_card(path: Path) -> Card:
    """Read one card strictly.

    Raises:
        CallError: an unknown or missing key, a value of the wrong type, or a key that differs from the file name.
    """
    try:
        content = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise CallError(f"{path.name} is not valid TOML: {error}") from error
    card = _build(Card, content, path.name)
    if card.key != path.stem:
        raise CallError(f"{path.name}: key is {card.key!r}, it must be the file's name")
    return card


def result(name: str) -> dict[str, Any]:
    """A measured result that a card points to, for example ``"claims/ecanet.json"``.

    Raises:
        CallError: the file is neither in the checkout's ``benchmarks/results`` nor in the installed package.
    """
    for folder in (_CHECKOUT / "benchmarks" / "results", _PACKAGE / "results"):
        if (folder / name).is_file():
            return json.loads((folder / name).read_text())
    raise CallError(f"there is no result file {name!r}")


def _build(kind: Any, value: Any, where: str) -> Any:
    """Turn parsed TOML into the dataclass or plain type that a field declares."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise CallError(f"{where} must be a table")
        hints = typing.get_type_hints(kind)
        for name in value:
            if name not in hints:
                raise CallError(f"{where}: {unknown_name('key', name, hints)}")
        built = {name: _build(hints[name], item, f"{where}: {name}") for name, item in value.items()}
        missing = [f.name for f in dataclasses.fields(kind) if f.name not in built and _required(f)]
        if missing:
            raise CallError(f"{where}: missing {', '.join(missing)}")
        return kind(**built)
    if origin is tuple:
        if not isinstance(value, list):
            raise CallError(f"{where} must be a list")
        return tuple(_build(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if origin is Literal:
        if value not in arguments:
            raise CallError(f"{where} is {value!r}; it must be one of {', '.join(map(repr, arguments))}")
        return value
    if arguments and origin is not Mapping and type(None) in arguments:  # Optional[X]
        return _build(next(item for item in arguments if item is not type(None)), value, where)
    if kind == int | Literal["any"]:
        if value != "any" and type(value) is not int:
            raise CallError(f'{where} is {value!r}; it must be an integer or "any"')
        return value
    if origin is not None and issubclass(origin, typing.Mapping):
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            raise CallError(f"{where} must be a table of strings")
        return dict(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise CallError(f"{where} is {value!r}; it must be of type {kind.__name__}")
    return value


def _required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
