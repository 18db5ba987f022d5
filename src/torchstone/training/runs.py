"""The run directory: what training writes and every other verb reads.

    identity.json      what the run is: model, protocol, data fingerprint, seed, package version, and their hash
    recipe.yaml        the recipe, every key resolved
    model.json         the network: name, arguments, and the plans of its transforms
    classes.json       names of the classes
    preprocessing.json how inputs are prepared
    data.json          splits and sizes
    environment.json   hardware and versions of the last process that worked on it
    metrics.jsonl      one row per epoch
    checkpoint         all that the next epoch needs, as of the last epoch that was kept (``train.checkpoint_epochs``)
    model.safetensors  the final weights of the network
    method.safetensors those of the method around it (decoder, ...), in a pre-training run
    pictures.png       what the method makes of a few validation samples, in a pre-training run that has pictures
    result.json        the outcome; written last, so its presence says that the run is finished

Every file but ``metrics.jsonl`` is replaced whole; that one is only appended to, and cut back to the checkpoint's epoch
when a run is resumed. A process killed at any moment leaves a directory from which the same call goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pickle
import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor, nn

from torchstone import __version__, environment
from torchstone.data.sequences import COLOUR, GREY
from torchstone.errors import CallError
from torchstone.files import append_jsonl, read_json, write_json, write_text, writing
from torchstone.methods.registry import method_module
from torchstone.training.recipe import ModelSpec, Recipe, dump_yaml, parse_yaml
from torchstone.transforms.contract import Plan
from torchstone.transforms.saving import copies, load_model, structure

# --- identity


def identity_facts(recipe: Recipe, data_fingerprint: str) -> dict[str, Any]:
    """All that a run's numbers follow from, apart from machine and thread count.

    The data are named by their fingerprint, not by where they lie; local weights, in a file or a run, and a teacher's
    weights by their content; a method of the user's own by the content of its module.
    """
    facts = recipe.to_dict()
    for name in ("about", "expect"):
        del facts[name]
    for name in ("source", "workers"):
        del facts["data"][name]
    del facts["train"]["checkpoint_epochs"]
    for name in ("patience", "weight_decay_for"):
        if not facts["train"][name]:
            del facts["train"][name]
    if facts["data"]["hold_out"] is None:
        del facts["data"]["hold_out"]
    if not facts["model"]["transforms"]:
        del facts["model"]["transforms"]
    facts["data"]["fingerprint"] = data_fingerprint
    weights = local_weights(recipe.model)
    if weights is not None:
        facts["model"]["weights"] = _content(weights)
    if recipe.method is not None:
        if "." in recipe.method.name:
            facts["method"]["content"] = _content(method_module(recipe.method.name).__file__ or "")
        if recipe.method.teacher is None:
            del facts["method"]["teacher"]
        else:
            facts["method"]["teacher"] = _content(read_info(recipe.method.teacher).path / "model.safetensors")
    facts["version"] = __version__
    return facts


def local_weights(model: ModelSpec) -> Path | None:
    """The file that a recipe's network starts from; None where that is nothing, released weights or a URL."""
    path = model.local
    if path is not None and path.is_dir():
        path = RunDirectory(path).weights
    return path if path is not None and path.is_file() else None


def _content(path: str | Path) -> str:
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def identity(recipe: Recipe, data_fingerprint: str) -> str:
    """The hash that says whether two runs are the same run: of candidate, resolved protocol, data fingerprint, seed and
    package version - not of loader workers, device or where the files lie."""
    return _hash(identity_facts(recipe, data_fingerprint))


def _hash(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            lines.append(f"{prefix}{name}: {old!r} there, {new!r} now")
    return lines


# --- checkpoint


class _WatchedFile:
    """A file that remembers its own error: PyTorch's archive writer reports any failure as a bare RuntimeError."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def save_checkpoint(content: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint whole or not at all.

    Raises:
        WriteFailed: names the file and the reason; the checkpoint that stood there is untouched.
    """
    with writing(path) as file:
        watched = _WatchedFile(file)
        try:
            torch.save(dict(content), watched)  # type: ignore[arg-type]
        except RuntimeError:
            if watched.error is not None:
                raise watched.error from None
            raise


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint's tensors and plain values, on the CPU; nothing in the file is run.

    Raises:
        CallError: the file is truncated or no checkpoint; says what can be done.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CallError(
            f"the checkpoint {path} cannot be read; it is truncated or damaged ({reason}). Put back a copy of it, or "
            "delete it to train this run from its beginning"
        ) from error
    if not isinstance(content, dict) or "epochs_done" not in content:
        raise CallError(f"{path} is not a checkpoint of a torchstone run; delete it to train from the beginning")
    return content


# --- directory


class RunDirectory:
    """The files of one run.

    Args:
        path: the directory; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoint = self.path / "checkpoint"
        self.metrics = self.path / "metrics.jsonl"
        self.weights = self.path / "model.safetensors"

    # --- state

    @property
    def finished(self) -> bool:
        return (self.path / "result.json").is_file()

    def result(self) -> dict[str, Any]:
        return self._read("result.json")

    def network(self) -> dict[str, Any]:
        """What the network is built by: ``name`` and ``args``."""
        return self._read("model.json")

    def rows(self) -> list[dict[str, Any]]:
        """The whole rows of ``metrics.jsonl``; a last line that a kill tore is left out."""
        if not self.metrics.is_file():
            return []
        rows = []
        for line in self.metrics.read_text(errors="replace").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def _read(self, name: str) -> Any:
        try:
            return read_json(self.path / name)
        except (OSError, json.JSONDecodeError) as error:
            raise CallError(f"{self.path / name} cannot be read: {error}") from error

    # --- writing

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for this process alone, creating it when needed.

        The lock goes with the process, however that ends.

        Raises:
            CallError: the directory cannot be created or written, holds something else, or another process holds it.
        """
        if self.path.is_dir() and not (self.path / "identity.json").is_file():
            others = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
            if others:
                raise CallError(f"{self.path} holds no run but other files ({others[0]}, ...); name another folder")
        with locked_folder(self.path):
            yield

    def check_identity(self, facts: Mapping[str, Any]) -> None:
        """Refuse a directory that belongs to another run.

        Raises:
            CallError: lists what differs.
        """
        if not (self.path / "identity.json").is_file():
            return
        stored = self._read("identity.json")
        if stored["identity"] != _hash(facts):
            raise CallError(
                f"{self.path} holds another run; name another folder. It differs in\n  "
                + "\n  ".join(_differences(stored["facts"], facts))
            )

    def begin(
        self,
        recipe: Recipe,
        facts: Mapping[str, Any],
        *,
        model_args: Mapping[str, Any],
        plans: Sequence[Plan] = (),
        classes: list[str],
        preprocessing: Mapping[str, Any],
        data: Mapping[str, Any],
    ) -> None:
        """Write what describes the run. Writing it again, after a kill, changes nothing but the environment."""
        write_json(self.path / "identity.json", {"identity": _hash(facts), "facts": facts})
        write_text(self.path / "recipe.yaml", dump_yaml(recipe.to_dict()))
        write_json(self.path / "model.json", {"task": recipe.task, **structure(recipe.model.name, model_args, plans)})
        write_json(self.path / "classes.json", classes)
        write_json(self.path / "preprocessing.json", preprocessing)
        write_json(self.path / "data.json", data)
        write_json(self.path / "environment.json", environment.describe())

    def append(self, *rows: dict[str, Any]) -> None:
        append_jsonl(self.metrics, *rows)

    def plans(self) -> list[Plan]:
        """The plans of the network's transforms, as :meth:`begin` wrote them."""
        return self._read("model.json").get("plans", [])

    def resume(self) -> int:
        """Bring the directory to its last finished epoch: cut the metrics back to the checkpoint.

        Returns:
            The number of finished epochs.

        Raises:
            CallError: the checkpoint cannot be read, or rows of finished epochs are gone.
        """
        done = load_checkpoint(self.checkpoint)["epochs_done"] if self.checkpoint.is_file() else 0
        rows = self.rows()
        if [row.get("epoch") for row in rows[:done]] != list(range(1, done + 1)):
            raise CallError(
                f"{self.metrics} has lost rows of the {done} epochs that {self.checkpoint} has behind it; put back a "
                "copy of it, or delete both to train this run from its beginning"
            )
        if self.metrics.is_file():
            write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows[:done]))
        return done

    def keep(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write the final weights: name of a file, without ``.safetensors`` -> state dict."""
        for part, state in parts.items():
            with writing(self.path / f"{part}.safetensors") as file:
                file.write(safetensors.torch.save(copies(state)))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result, after all else."""
        write_json(self.path / "result.json", result)


@contextlib.contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    """Hold a folder for this process alone, creating it when needed, and clear away what a killed process was writing.

    Raises:
        CallError: the folder cannot be created or written, or another process holds it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = open(path / ".lock", "w")  # noqa: SIM115 - closed below
    except OSError as error:
        raise CallError(f"cannot write to the folder {path}: {error.strerror or error}") from error
    with file:
        try:
            _lock(file.fileno())
        except OSError as error:
            raise CallError(f"another process is working on {path}; wait for it or name another folder") from error
        for unfinished in path.glob(".*.part"):
            unfinished.unlink()
        yield


def _lock(descriptor: int) -> None:
    """Take a file's lock or raise OSError. It belongs to the process: loader workers do not inherit it."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- reading


@dataclass(frozen=True)
class RunInfo:
    """What a finished run says of itself."""

    path: Path
    identity: str
    data_fingerprint: str
    recipe: Recipe
    classes: list[str]
    preprocessing: dict[str, Any]
    result: dict[str, Any]


def read_info(path: str | Path) -> RunInfo:
    """Read what a finished run says of itself.

    Raises:
        CallError: no such folder, not a run, or an unfinished one.
    """
    run = RunDirectory(path)
    if not run.path.is_dir():
        raise CallError(f"there is no run directory {run.path}")
    if not (run.path / "identity.json").is_file():
        raise CallError(f"{run.path} is not a run directory: it has no identity.json")
    if not run.finished:
        done = len(run.rows())
        raise CallError(f"the run {run.path} is not finished ({done} epochs done); repeat the call that began it")
    recipe = Recipe.from_dict(parse_yaml((run.path / "recipe.yaml").read_text(), str(run.path / "recipe.yaml")))
    stored = run._read("identity.json")
    return RunInfo(
        path=run.path,
        identity=stored["identity"],
        data_fingerprint=stored["facts"]["data"]["fingerprint"],
        recipe=recipe,
        classes=run._read("classes.json"),
        preprocessing=run._read("preprocessing.json"),
        result=run.result(),
    )


def load_run(path: str | Path) -> tuple[nn.Module, RunInfo]:
    """Rebuild the trained model of a finished run.

    Returns:
        The model with its final weights, in eval mode on the CPU, and the run's facts.

    Raises:
        CallError: not a finished run, or its weights are truncated.
    """
    info = read_info(path)
    return load_model(info.path), info


def resolved(recipe: Recipe, named_sources: Container[str]) -> Recipe:
    """The recipe with its local paths made absolute, so that a run can be read from anywhere.

    Args:
        recipe: as the user gave it.
        named_sources: data sources that are names, whatever folders of that name there are.
    """
    data, model = recipe.data, recipe.model
    reading = next((prefix for prefix in (COLOUR, GREY) if data.source.startswith(prefix)), "")
    path = Path(data.source.removeprefix(reading))
    if data.source not in named_sources and path.exists():
        data = dataclasses.replace(data, source=f"{reading}{path.resolve()}")
    if model.local is not None:
        model = dataclasses.replace(model, weights=str(model.local.resolve()))
    method = recipe.method
    if method is not None and method.teacher is not None:
        method = dataclasses.replace(method, teacher=str(Path(method.teacher).resolve()))
    return dataclasses.replace(recipe, data=data, model=model, method=method)
