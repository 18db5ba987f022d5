"""Models as users name them - a run, a transformed model's folder, ``MODEL[@WEIGHTS]`` - transformed and exported.

    reports = transform_model("runs/digits", [TransformSpec("tune_mode")], "tuned")
    exported = export("tuned", "tuned.onnx")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from torchstone.errors import CallError
from torchstone.files import read_json, write_json
from torchstone.instruments.profile import usual_input_shape
from torchstone.seeding import seed_everything_at
from torchstone.training.devices import resolve_device
from torchstone.training.exporting import Exported, check_file, export_model
from torchstone.training.predict import load_classifier
from torchstone.training.recipe import DataSpec, ModelSpec, Recipe, TrainSpec, TransformSpec
from torchstone.training.runs import read_info
from torchstone.training.tasks import Task, get_task, task_of
from torchstone.training.transforming import EXAMPLES, finetuner
from torchstone.transforms.contract import Plan, Report, apply, check_options
from torchstone.transforms.saving import load_model, read_structure, save_model

NODES = "node-classification"

SIDE_FILES = ("classes.json", "preprocessing.json")
"""What prediction needs beside the model."""


@dataclass(frozen=True)
class OpenedModel:
    """A model with what is known of it.

    Attributes:
        model: in eval mode on the CPU.
        name, args, plans: how it is built again.
        example_inputs: inputs of the right shape, by batch size.
        recipe: what it was trained by, or what a transform may train it by; None when there are no data.
        side_files: names of files of :data:`SIDE_FILES` and their content.
    """

    model: nn.Module
    name: str
    args: Mapping[str, Any]
    plans: tuple[Plan, ...]
    example_inputs: Callable[[int], tuple[Tensor, ...]]
    recipe: Recipe | None = None
    side_files: Mapping[str, Any] = field(default_factory=dict)


def open_model(what: str | Path, *, data: str | None = None, size: int | None = None) -> OpenedModel:
    """Open a run, a transformed model's folder, or ``MODEL[@WEIGHTS]``.

    Args:
        what: the folder or the model; a model without weights gets fresh ones.
        data: with a model: the data set whose number of classes it is built for.
        size: side of the images; by default what the model was trained on or is usually given.

    Raises:
        CallError: no such folder or model, a folder without a model, an unfinished run, or ``data`` with a folder.
    """
    if Path(what).is_dir():
        if data is not None:
            raise CallError(f"{what} is a folder, whose model is built already; data are for a model given by name")
        return _open_folder(Path(what), size)
    name, at, weights = str(what).partition("@")
    if at and not weights:
        raise CallError(f"{what!r}: weights are expected after @: pretrained, a path or a URL")
    spec = ModelSpec(name, weights=weights or None)
    if data is not None:
        return _open_for_data(spec, data, size)
    seed_everything_at("weights", 0)
    if weights:
        classifier = load_classifier(what)
        told = {"num_classes": len(classifier.classes)}
        side = {"classes.json": classifier.classes, "preprocessing.json": classifier.preprocessing}
        given = size or classifier.preprocessing["size"]
        return OpenedModel(classifier.model, name, told, (), _images(3, given), None, side)
    from torchstone.models.registry import build_model

    channels, side_length, _ = usual_input_shape(name)
    return OpenedModel(build_model(name).eval(), name, {}, (), _images(channels, size or side_length))


def _open_folder(folder: Path, size: int | None) -> OpenedModel:
    told = read_structure(folder)
    recipe = read_info(folder).recipe if (folder / "identity.json").is_file() else _recipe_of(told)
    side = {name: read_json(folder / name) for name in SIDE_FILES if (folder / name).is_file()}
    if recipe is not None and recipe.task == NODES:
        inputs = _graph(recipe)
    else:
        known = size or side.get("preprocessing.json", {}).get("size") or told.get("size")
        if not known:
            raise CallError(f"{folder} does not say how large its images are; give their size")
        inputs = _images(told.get("args", {}).get("in_chans", 3), known)
    return OpenedModel(
        load_model(folder), told["name"], told.get("args", {}), tuple(told.get("plans", ())), inputs, recipe, side
    )


def _recipe_of(told: Mapping[str, Any]) -> Recipe | None:
    """What a transformed model's folder says of its graph and protocol; such a network has no example without them."""
    if "graph" not in told:
        return None
    train = TrainSpec(**told.get("train", {}))
    data = DataSpec(**told["graph"])
    return Recipe(model=ModelSpec(told["name"]), data=data, train=train, task=NODES, seed=told.get("seed", 0))


def _open_for_data(spec: ModelSpec, source: str, size: int | None) -> OpenedModel:
    task = task_of(source)
    recipe = Recipe(model=spec, data=DataSpec(source, size=size), task=task.name)
    data = task.open_data(recipe.data, recipe.train, recipe.seed)
    seed_everything_at("weights", 0)
    model = task.build_model(spec, data).eval()
    side = {"classes.json": data.classes, "preprocessing.json": data.preprocessing()}
    args = task.all_model_args(spec, data)
    return OpenedModel(model, spec.name, args, (), lambda batch: task.probe_inputs(data, batch), recipe, side)


def _images(channels: int, side: int) -> Callable[[int], tuple[Tensor, ...]]:
    def inputs(batch: int) -> tuple[Tensor, ...]:
        return (torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(0)),)

    return inputs


def _graph(recipe: Recipe) -> Callable[[int], tuple[Tensor, ...]]:
    task = get_task(recipe.task)
    data = task.open_data(recipe.data, recipe.train, recipe.seed)
    return lambda batch: task.probe_inputs(data, 1)


class _RecipeData:
    """A recipe's data, opened when a transform asks for them."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe = recipe
        self.device = device
        self.task: Task = get_task(recipe.task)

    @cached_property
    def data(self) -> Any:
        return self.task.open_data(self.recipe.data, self.recipe.train, self.recipe.seed)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return self.task.training_pairs(self.data)

    def finetune(self, model: nn.Module, loss: Any = None) -> nn.Module:
        return finetuner(self.recipe, self.task, self.data, self.device)(model, loss)


def transform_model(
    what: str | Path,
    transforms: Sequence[TransformSpec],
    out: str | Path,
    *,
    data: str | None = None,
    size: int | None = None,
    device: str = "auto",
) -> list[Report]:
    """Transform a model and write it as a folder that ``predict``, ``export`` and ``transform`` take.

    A run's own data and protocol are there for transforms that learn or fine-tune; a model given by name has those of
    ``data`` and the usual protocol.

    Args:
        what, data, size: see :func:`open_model`.
        transforms: in the order they are done.
        out: the folder; it must be new or empty.
        device: where a transform fine-tunes.

    Returns:
        One report per transform; they are written to ``report.json`` too.

    Raises:
        UnknownName: no such transform or option.
        CallError: a model that cannot be opened or transformed, or a folder with something in it.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CallError(f"{out} is there already; name a new folder")
    for step in transforms:
        check_options(step.name, step.args)
    with isolate_rng():
        opened = open_model(what, data=data, size=size)
        trained = Path(what).is_dir() or "@" in str(what)
        examples = 1 if opened.recipe is not None and opened.recipe.task == NODES else EXAMPLES
        batches = _RecipeData(opened.recipe, resolve_device(device)) if opened.recipe else None
        model, plans, reports = opened.model, list(opened.plans), []
        for index, step in enumerate(transforms):
            seed_everything_at("transform", 0, index)
            result = apply(
                step.name,
                model,
                opened.example_inputs(examples),
                data=batches,
                finetune=batches.finetune if batches else None,
                teacher=opened.model if trained else None,
                options=step.args,
            )
            model = result.model
            plans.append(result.plan)
            reports.append(result.report)
    facts: dict[str, Any] = {}
    if opened.recipe is not None and opened.recipe.task == NODES:
        graph, path = asdict(opened.recipe.data), Path(opened.recipe.data.source)
        if path.exists():
            graph["source"] = str(path.absolute())  # the folder may be opened from elsewhere
        facts = {"graph": graph, "train": asdict(opened.recipe.train), "seed": opened.recipe.seed}
    elif "preprocessing.json" not in opened.side_files:
        facts = {"size": opened.example_inputs(1)[0].shape[-1]}
    save_model(out, model, opened.name, opened.args, plans, facts)
    for name, content in opened.side_files.items():
        write_json(out / name, content)
    write_json(
        out / "report.json",
        [{"transform": step.name, **report.to_dict()} for step, report in zip(transforms, reports, strict=True)],
    )
    return reports


def export(
    what: str | Path,
    out: str | Path,
    *,
    size: int | None = None,
    batch: int | None = None,
    deploy: bool = True,
) -> Exported:
    """Export a model; see :func:`torchstone.training.exporting.export_model`.

    A network that was trained on a graph is exported for graphs of that graph's size.

    Args:
        what, size: see :func:`open_model`.
        out, batch, deploy: see there.
    """
    check_file(Path(out))
    opened = open_model(what, size=size)
    if opened.recipe is not None and opened.recipe.task == NODES:
        if batch not in (None, 1):
            raise CallError(f"a graph is one batch, got a batch size of {batch}")
        batch = 1
    return export_model(opened.model, opened.example_inputs, out, deploy=deploy, batch=batch)
