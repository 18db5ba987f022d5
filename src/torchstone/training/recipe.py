"""Recipes: an experiment as data - model, data, schedule, seed - in YAML that becomes frozen, checked dataclasses.

    about: Handwritten digits in under a minute.
    task: image-classification
    model: {name: inceptionnext_mini32}
    data: {source: digits}
    train: {epochs: 10, batch_size: 128, lr: 4e-3}
    seed: 0

Every key is checked where it is read: an unknown one is refused with the nearest valid key, a wrong value with the
key's name and what would be right.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml

from torchstone.errors import CallError, UnknownName, nearest, unknown_name
from torchstone.files import write_text

# --- what a key takes


@dataclass(frozen=True)
class _Rule:
    """What a key takes, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]
    number: bool = False

    def read(self, path: str, value: Any) -> Any:
        if not self.holds(value):
            shown = json.dumps(value) if isinstance(value, str) else repr(value)
            raise CallError(f"{path} must be {self.words}, got {shown}")
        return float(value) if self.number and value is not None else value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_integer(value) or isinstance(value, float)) and math.isfinite(value)


def _one_of(*values: str) -> _Rule:
    return _Rule("one of " + ", ".join(values), lambda value: value in values)


def _or_null(rule: _Rule) -> _Rule:
    return _Rule(f"{rule.words} or null", lambda value: value is None or rule.holds(value), rule.number)


_TEXT = _Rule("text", lambda value: isinstance(value, str))
_NAME = _Rule("a name", lambda value: isinstance(value, str) and bool(value.strip()))
_FLAG = _Rule("true or false", lambda value: isinstance(value, bool))
_POSITIVE_INTEGER = _Rule("a positive integer", lambda value: _is_integer(value) and value > 0)
_COUNT = _Rule("a non-negative integer", lambda value: _is_integer(value) and value >= 0)
_POSITIVE = _Rule("a positive number", lambda value: _is_number(value) and value > 0, number=True)
_NON_NEGATIVE = _Rule("a non-negative number", lambda value: _is_number(value) and value >= 0, number=True)
_SHARE = _Rule("a number between 0 and 1, exclusive", lambda v: _is_number(v) and 0 < v < 1, number=True)
_FRACTION = _Rule("a number from 0 up to, not including, 1", lambda v: _is_number(v) and 0 <= v < 1, number=True)
_FACTOR = _Rule("a number above 0, at most 1", lambda v: _is_number(v) and 0 < v <= 1, number=True)
_POSITIVE_INTEGERS = _Rule(
    "a list of positive integers",
    lambda value: isinstance(value, list | tuple) and bool(value) and all(_is_integer(v) and v > 0 for v in value),
)
_KEYWORDS = _Rule(
    "a mapping of argument names to values",
    lambda value: isinstance(value, dict) and all(isinstance(key, str) for key in value),
)
_STEPS = _Rule("a list of {name, args}", lambda value: isinstance(value, (list, tuple)))
_BOUNDS = _Rule(
    "a mapping of metrics to numbers",
    lambda value: isinstance(value, dict) and all(isinstance(k, str) and _is_number(v) for k, v in value.items()),
)
_DECAYS = _Rule(
    "a mapping of beginnings of parameters' names to non-negative numbers",
    lambda value: _KEYWORDS.holds(value) and all(_NON_NEGATIVE.holds(decay) for decay in value.values()),
)


def _key(rule: _Rule, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that takes what the rule says; without a default it is required."""
    if default is dict:
        return dataclasses.field(default_factory=dict, metadata={"rule": rule})
    return dataclasses.field(default=default, metadata={"rule": rule})


class _Checked:
    """A frozen dataclass whose fields are checked by their rules when it is made."""

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if "rule" in field.metadata:
                path = f"{self.section}.{field.name}" if self.section else field.name
                value = field.metadata["rule"].read(path, getattr(self, field.name))
                object.__setattr__(self, field.name, value)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Build from the mapping under this section's key.

        Raises:
            CallError: an unknown or missing key, or a value of another type or range.
        """
        if not isinstance(content, Mapping):
            raise CallError(f"{cls.section} must be a mapping of keys to values, got {content!r}")
        known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for name in content:
            if name not in known:
                raise _unknown_key(f"{cls.section}.{name}", [f"{cls.section}.{key}" for key in known])
        for name, field in known.items():
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if required and name not in content:
                raise CallError(f"{cls.section}.{name} is required: {field.metadata['rule'].words}")
        return cls(**content)


def _unknown_key(path: str, valid: Iterable[str]) -> UnknownName:
    valid = list(valid)
    close = nearest(path, valid)
    hint = f" did you mean {' or '.join(close)}?" if close else ""
    return UnknownName(f"unknown recipe key {path}:{hint} Valid keys: {', '.join(valid)}.")


# --- sections


@dataclass(frozen=True)
class TransformSpec(_Checked):
    """What is done to the network before it is trained.

    Args:
        name: a transform's key.
        args: its options.
    """

    section: ClassVar[str] = "model.transforms"

    name: str = _key(_NAME)
    args: Mapping[str, Any] = _key(_KEYWORDS, dict)


@dataclass(frozen=True)
class ModelSpec(_Checked):
    """Which network is trained.

    Args:
        name: a model of ours, ``timm:NAME``, ``torchvision:NAME``, ``pyg:NAME`` or ``torch:NAME``.
        args: the network's own arguments.
        weights: None (from scratch), ``"pretrained"`` (the released weights), a file's path or URL, or the directory of
            a finished run of the same network; a classifier for other classes, or none, starts anew.
        transforms: done to the network, with its weights, in this order: a list of ``{name, args}``.
    """

    section: ClassVar[str] = "model"

    name: str = _key(_NAME)
    args: Mapping[str, Any] = _key(_KEYWORDS, dict)
    weights: str | None = _key(_or_null(_NAME), None)
    transforms: tuple[TransformSpec, ...] = _key(_STEPS, ())

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = (step if isinstance(step, TransformSpec) else TransformSpec.from_dict(step) for step in self.transforms)
        object.__setattr__(self, "transforms", tuple(steps))

    @property
    def pretrained(self) -> bool | str:
        """The weights as the model registry's ``pretrained`` argument."""
        return self.weights == "pretrained" or self.weights or False

    @property
    def local(self) -> Path | None:
        """The file or run directory that the weights are in; None where that is nothing, released weights, a URL, or a
        path to nothing."""
        if self.weights is None or self.weights == "pretrained":
            return None
        return Path(self.weights) if Path(self.weights).exists() else None


@dataclass(frozen=True)
class MethodSpec(_Checked):
    """How the network is trained, where that is not by its task's targets.

    Args:
        name: a method of ours, or a module of yours, see :func:`torchstone.methods.registry.method_module`.
        args: the method's own arguments.
        teacher: the run directory of a trained network that the method learns from.
    """

    section: ClassVar[str] = "method"

    name: str = _key(_NAME)
    args: Mapping[str, Any] = _key(_KEYWORDS, dict)
    teacher: str | None = _key(_or_null(_NAME), None)


@dataclass(frozen=True)
class DataSpec(_Checked):
    """Which data, and how they are split and fed.

    Args:
        source: a built-in set's name or a path.
        size: side of the square images in pixels; None keeps the source's own size.
        val_fraction: part of the training data set aside for validation where the source has no such split.
        test_fraction: part of all data set aside for testing where the source has no such split.
        split_seed: seed of those splits.
        workers: loader processes; changes no result.
        augment: the augmentation's name.
        limit: train on at most this many samples.
        split: of a graph's nodes: ``public``, ``fixed:K``, ``per-class``, ``per-class-30`` or ``random``, see
            :func:`torchstone.data.graphs.open_graph`; of whole graphs: ``public``, ``fold:K`` or ``random``, see
            :func:`torchstone.data.graph_sets.open_graph_set`; ``auto`` takes what the source brings.
        directed: keep the directions of a graph's edges; otherwise the missing reverse edges are added.
        normalize: divide each row of a graph's features by its sum; None does so if no feature is negative.
        hold_out: share of a graph's test nodes that are not there, nor their edges, until training has finished; the
            test is of them, on the whole graph. ``split_seed`` draws them. None keeps all nodes, without labels.
    """

    section: ClassVar[str] = "data"

    source: str = _key(_NAME)
    size: int | None = _key(_or_null(_POSITIVE_INTEGER), None)
    val_fraction: float = _key(_SHARE, 0.1)
    test_fraction: float = _key(_SHARE, 0.2)
    split_seed: int = _key(_COUNT, 0)
    workers: int = _key(_COUNT, 0)
    augment: str = _key(_NAME, "auto")
    limit: int | None = _key(_or_null(_POSITIVE_INTEGER), None)
    split: str = _key(_NAME, "auto")
    directed: bool = _key(_FLAG, False)
    normalize: bool | None = _key(_or_null(_FLAG), None)
    hold_out: float | None = _key(_or_null(_SHARE), None)


@dataclass(frozen=True)
class TrainSpec(_Checked):
    """The training protocol.

    Args:
        epochs: passes over the training data.
        batch_size: samples per optimizer step, over all processes and accumulated parts.
        accumulate: parts that a batch is cut into to save memory; gradients are accumulated over them.
        lr: the peak learning rate.
        optimizer: a name of ``timm.optim``.
        optimizer_args: further arguments of the optimizer (``betas``, ``eps``, ...).
        weight_decay: not applied to one-dimensional parameters and those a model names in ``no_weight_decay()``.
        weight_decay_for: of some parameters, another weight decay, by what their names begin with (``sheaf_learners``).
        weight_decay_end: what the weight decay becomes, along half a cosine, by the last step; None keeps it.
        decay_all: apply it to every parameter.
        momentum: of optimizers that have one; None is the optimizer's usual value.
        layer_decay: factor of the learning rate from each layer to the one below it (1 is none): the head learns at
            ``lr``, a layer k below it at ``lr * layer_decay ** k``. The layers are those of the model's
            ``group_matcher()``: the stem, every block, the head.
        layer_blocks: for each stage, how many consecutive blocks make one such layer; None is one block each.
        ema_decay: what is evaluated and kept is the exponential moving average of all weights over the steps,
            average <- ema_decay * average + (1 - ema_decay) * weights; None is the weights themselves.
        schedule: ``cosine`` to ``min_lr``, which would follow the last step; ``cosine_last``, to ``min_lr`` in the last
            step; ``step`` (x ``decay_rate``, 0.1 unless given, every ``decay_epochs``);
            ``exponential`` (x ``decay_rate``, 0.98 unless given, every ``decay_epochs``, 1 unless given); ``constant``.
        warmup_epochs: linear warm-up to ``lr`` at the start; may be a fraction of an epoch.
        warmup_lr: the rate of the first step of the warm-up; None is ``lr`` by the number of its steps.
        min_lr: the schedule never falls below it.
        loss: of a classifier's training: ``cross_entropy``, or ``binary_cross_entropy`` of every class by itself.
        label_smoothing: of the training loss.
        mixup: alpha of mixup; 0 is off.
        cutmix: alpha of CutMix; 0 is off. With both, one of them is drawn for each batch.
        drop_path: the model's stochastic-depth rate; None leaves the model's own.
        clip_grad: largest norm of the gradient; None is no clipping.
        precision: ``32-true`` or ``bf16-mixed``.
        sync_batchnorm: share batch statistics between processes on CUDA. There is nothing to share in one process,
            and PyTorch has no such layer for the CPU, where each process keeps its own.
        select: which epoch's weights are the outcome: ``last``, ``best_loss``, the first of lowest validation loss, or
            ``best_score``, the first of best validation metric.
        stop_window: stop in the second half of the epochs when the validation loss exceeds the mean of so many epochs
            before it; None trains to the end.
        patience: stop after so many epochs in a row that are not better than the best by ``select``.
        checkpoint_epochs: epochs between two checkpoints; a run that is killed repeats fewer than that. More than 1
            suits epochs that are shorter than a write to the disk.
    """

    section: ClassVar[str] = "train"

    epochs: int = _key(_POSITIVE_INTEGER, 10)
    batch_size: int = _key(_POSITIVE_INTEGER, 128)
    accumulate: int = _key(_POSITIVE_INTEGER, 1)
    lr: float = _key(_POSITIVE, 1e-3)
    optimizer: str = _key(_NAME, "adamw")
    optimizer_args: Mapping[str, Any] = _key(_KEYWORDS, dict)
    weight_decay: float = _key(_NON_NEGATIVE, 0.05)
    weight_decay_end: float | None = _key(_or_null(_NON_NEGATIVE), None)
    weight_decay_for: Mapping[str, float] = _key(_DECAYS, dict)
    decay_all: bool = _key(_FLAG, False)
    layer_decay: float = _key(_FACTOR, 1.0)
    layer_blocks: Sequence[int] | None = _key(_or_null(_POSITIVE_INTEGERS), None)
    ema_decay: float | None = _key(_or_null(_FRACTION), None)
    momentum: float | None = _key(_or_null(_FRACTION), None)
    schedule: str = _key(_one_of("cosine", "cosine_last", "step", "exponential", "constant"), "cosine")
    warmup_epochs: float = _key(_NON_NEGATIVE, 0.0)
    warmup_lr: float | None = _key(_or_null(_NON_NEGATIVE), None)
    min_lr: float = _key(_NON_NEGATIVE, 0.0)
    decay_epochs: float | None = _key(_or_null(_POSITIVE), None)
    decay_rate: float | None = _key(_or_null(_POSITIVE), None)
    loss: str = _key(_one_of("cross_entropy", "binary_cross_entropy"), "cross_entropy")
    label_smoothing: float = _key(_FRACTION, 0.0)
    mixup: float = _key(_NON_NEGATIVE, 0.0)
    cutmix: float = _key(_NON_NEGATIVE, 0.0)
    drop_path: float | None = _key(_or_null(_FRACTION), None)
    clip_grad: float | None = _key(_or_null(_POSITIVE), None)
    precision: str = _key(_one_of("32-true", "bf16-mixed"), "32-true")
    sync_batchnorm: bool = _key(_FLAG, True)
    select: str = _key(_one_of("last", "best_loss", "best_score"), "last")
    stop_window: int | None = _key(_or_null(_POSITIVE_INTEGER), None)
    patience: int | None = _key(_or_null(_POSITIVE_INTEGER), None)
    checkpoint_epochs: int = _key(_POSITIVE_INTEGER, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warmup_epochs >= self.epochs:
            raise CallError(
                f"train.warmup_epochs must be less than train.epochs ({self.epochs}), got {self.warmup_epochs:g}"
            )
        if self.warmup_lr is not None and not (self.warmup_epochs and self.warmup_lr <= self.lr):
            raise CallError(
                f"train.warmup_lr needs train.warmup_epochs, and must not exceed train.lr ({self.lr:g}), "
                f"got {self.warmup_lr:g}"
            )
        if self.layer_blocks is not None and self.layer_decay == 1.0:
            raise CallError("train.layer_blocks means nothing without train.layer_decay; remove it or give both")
        if self.min_lr > self.lr:
            raise CallError(f"train.min_lr must not exceed train.lr ({self.lr:g}), got {self.min_lr:g}")
        if self.min_lr and self.schedule == "constant":
            raise CallError("train.min_lr means nothing with train.schedule=constant; remove one of them")
        if self.schedule == "step" and self.decay_epochs is None:
            raise CallError("train.schedule=step needs train.decay_epochs, the epochs between two steps")
        if self.schedule in ("cosine", "cosine_last", "constant"):
            for name in ("decay_epochs", "decay_rate"):
                if getattr(self, name) is not None:
                    raise CallError(f"train.{name} means nothing with train.schedule={self.schedule}; remove one")
        if self.patience is not None and self.select == "last":
            raise CallError("train.patience needs train.select=best_loss or best_score, which say what better is")
        if self.batch_size % self.accumulate:
            raise CallError(f"train.accumulate must divide train.batch_size ({self.batch_size}), got {self.accumulate}")


_SECTIONS: dict[str, type[ModelSpec | MethodSpec | DataSpec | TrainSpec]] = {
    spec.section: spec for spec in (ModelSpec, MethodSpec, DataSpec, TrainSpec)
}


@dataclass(frozen=True)
class Recipe(_Checked):
    """A runnable experiment.

    Args:
        model: the network.
        data: the data.
        train: the protocol.
        task: a name of :data:`torchstone.training.tasks.TASKS`.
        seed: of everything random in the run.
        about: one line for the list of recipes.
        expect: bounds that the kept epoch's validation values should reach: at least for a score, at most for a loss.
        method: trains the network by a method's loss. None is the task's own training.
    """

    model: ModelSpec
    data: DataSpec
    train: TrainSpec = TrainSpec()
    task: str = _key(_NAME, "image-classification")
    seed: int = _key(_COUNT, 0)
    about: str = _key(_TEXT, "")
    expect: Mapping[str, float] = _key(_BOUNDS, dict)
    method: MethodSpec | None = None

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Build from a mapping as YAML gives it.

        Raises:
            CallError: an unknown or missing key, or a value of another type or range.
        """
        if not isinstance(content, Mapping):
            raise CallError(f"a recipe is a mapping of keys to values, got {content!r}")
        known = [field.name for field in dataclasses.fields(cls)]
        for name in content:
            if name not in known:
                raise _unknown_key(str(name), known)
        for name in ("model", "data"):
            if name not in content:
                raise CallError(f"a recipe needs the section {name}")
        parts: dict[str, Any] = {
            name: _SECTIONS[name].from_dict(value) if name in _SECTIONS else value
            for name, value in content.items()
            if value is not None or name != "method"
        }
        return cls(**parts)

    def to_dict(self) -> dict[str, Any]:
        """The recipe with every key resolved, in the order it is read best."""
        content = dataclasses.asdict(self)
        content["model"]["transforms"] = list(content["model"]["transforms"])
        order = ("about", "task", "model", "method", "data", "train", "seed", "expect")
        return {name: content[name] for name in order if content[name] is not None}


# --- YAML


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads ``1e-3`` as a number, as YAML 1.2 does, and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [str(key.value) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            line = node.start_mark.line + 1
            raise CallError(f"recipe key {twice.pop()!r} is given twice in the mapping at line {line}")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, origin: str) -> Any:
    """Parse YAML; ``origin`` names it in errors."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise CallError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from error


def dump_yaml(content: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=120)


# --- files and overrides


def _packaged() -> dict[str, Any]:
    folder = resources.files("torchstone").joinpath("recipes")
    return {entry.name.removesuffix(".yaml"): entry for entry in folder.iterdir() if entry.name.endswith(".yaml")}


def recipe_names() -> dict[str, str]:
    """The packaged recipes: name -> its ``about`` line."""
    return {
        name: str(parse_yaml(entry.read_text(), name).get("about", "")) for name, entry in sorted(_packaged().items())
    }


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a packaged recipe or a YAML file, with keys changed.

    Args:
        name_or_path: a name of :func:`recipe_names`, or a path (it ends in .yaml or .yml, or holds a separator).
        overrides: ``"train.epochs=3"``, ``"model.args.drop_rate=0.1"``; the value is read as YAML.

    Raises:
        UnknownName: no such recipe or key; the nearest are given.
        CallError: a file that cannot be read, a missing key, a value of another type or range.
    """
    content = parse_yaml(_text(name_or_path), str(name_or_path))
    if not isinstance(content, dict):
        raise CallError(f"{name_or_path} is no recipe: a mapping of keys to values is expected")
    for override in overrides:
        _apply(content, override)
    return Recipe.from_dict(content)


def _text(name_or_path: str | Path) -> str:
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        try:
            return path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise CallError(f"cannot read the recipe {path}: {reason}") from error
    packaged = _packaged()
    if str(name_or_path) not in packaged:
        raise unknown_name("recipe", str(name_or_path), packaged)
    return packaged[str(name_or_path)].read_text()


def copy_recipe(name: str, to: str | Path) -> Path:
    """Copy a packaged recipe to edit it.

    Args:
        name: a name of :func:`recipe_names`.
        to: a file, or a folder that the recipe goes into under its own name.

    Raises:
        CallError: the file exists already, or there is no such folder.
    """
    packaged = _packaged()
    if name not in packaged:
        raise unknown_name("recipe", name, packaged)
    to = Path(to)
    to = to / f"{name}.yaml" if to.is_dir() else to
    if to.exists():
        raise CallError(f"{to} exists already; give another name")
    if not to.parent.is_dir():
        raise CallError(f"there is no folder {to.parent}")
    write_text(to, packaged[name].read_text())
    return to


def _apply(content: dict[str, Any], override: str) -> None:
    """Set one ``path=value`` in a recipe's mapping."""
    path, equals, text = override.partition("=")
    path = path.strip()
    if not equals or not path:
        raise CallError(f"{override!r} changes no recipe key; write KEY=VALUE, for example train.epochs=3")
    *parents, last = path.split(".")
    if not _is_key(path):
        raise _unknown_key(path, _key_paths())
    value = parse_yaml(text, f"the value of {path}")
    place = content
    for name in parents:
        if place.get(name) is None:
            place[name] = {}
        place = place[name]
        if not isinstance(place, dict):
            raise CallError(f"cannot set {path}: {name} is not a mapping in this recipe")
    place[last] = value


def _key_paths() -> list[str]:
    """Every key that an override may set."""
    own = [field.name for field in dataclasses.fields(Recipe) if field.name not in _SECTIONS]
    return [f"{name}.{field.name}" for name, spec in _SECTIONS.items() for field in dataclasses.fields(spec)] + own


_OPEN = ("model.args", "method.args", "train.optimizer_args", "expect")


def _is_key(path: str) -> bool:
    if path in _key_paths():
        return True
    return any(path.startswith(f"{mapping}.") and not path.endswith(".") for mapping in _OPEN)
