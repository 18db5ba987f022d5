"""Classifying images, whole or as sequences, or the nodes of a graph, with a trained run or a model and its weights.

predict("runs/digits", ["scan.png"])
predict("timm:resnet18@pretrained", ["photos/"])
predict("runs/dagnn_cora", ["cora.npz"])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchstone.data.folders import EXTENSIONS
from torchstone.data.graph_sets import batch_of, read_graph_set
from torchstone.data.graphs import read_graph
from torchstone.data.preprocessing import preprocess
from torchstone.data.sequences import preprocess_sequences
from torchstone.errors import CallError, DataError
from torchstone.files import read_json
from torchstone.methods.registry import finishes
from torchstone.models.pretrained import read_checkpoint
from torchstone.models.registry import build_model
from torchstone.training.devices import resolve_device
from torchstone.training.graphs import graph_arguments
from torchstone.training.recipe import ModelSpec
from torchstone.training.runs import RunInfo, load_run, read_info
from torchstone.transforms.saving import load_model, read_structure


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image, node or graph.

    Args:
        path: the image, or the file or folder of the node or graph.
        label: the most probable class; empty when the image could not be read.
        probability: of that class.
        top: (class, probability), the most probable first.
        error: why the image could not be read; empty when it could.
        node: the node's number in its file or data set; None for anything else.
        graph: the number of a whole graph in its set; None for anything else.
        values: the numbers that are predicted of a graph, where there are no classes.
    """

    path: Path
    label: str = ""
    probability: float = 0.0
    top: tuple[tuple[str, float], ...] = ()
    error: str = ""
    node: int | None = None
    graph: int | None = None
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Classifier:
    """A model with what it takes to use it.

    Args:
        model: in eval mode.
        classes: name of each logit.
        preprocessing: how an image becomes its input.
        prepare: makes the input of images and the preprocessing.
    """

    model: nn.Module
    classes: list[str]
    preprocessing: dict[str, Any]
    prepare: Callable[[Path, dict[str, Any]], Tensor] = preprocess


def predict(
    run_or_model: str | Path,
    paths: Sequence[str | Path],
    *,
    device: str = "auto",
    batch_size: int = 32,
    top: int = 5,
    progress: Callable[[int, int], None] | None = None,
) -> list[Prediction]:
    """Classify images; or, with a run that was trained on a graph, all nodes of graphs; or say of whole graphs what a
    run that was trained on such learned.

    Args:
        run_or_model: a run directory, a transformed model's folder, or ``MODEL@WEIGHTS`` where the weights are
            ``pretrained``, a file or a URL.
        paths: image files, and folders whose images are all taken; or graphs (see :mod:`torchstone.data.graphs`), whose
            nodes need no labels.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        batch_size: images at a time.
        top: how many classes to name for each image.
        progress: called with the images (graphs) done and those in all.

    Returns:
        One prediction per image or node, in the order given; an image that cannot be read has the reason in ``error``.

    Raises:
        CallError: no such run, model, weights or path, or a folder without images.
    """
    if batch_size < 1 or top < 1:
        raise CallError(f"batch_size and top must be positive integers, got {batch_size} and {top}")
    where = resolve_device(device)
    task = _task_of(run_or_model) if Path(run_or_model).is_dir() else ""
    if task == "node-classification":
        return _predict_nodes(run_or_model, paths, where, top, progress)
    if task in ("graph-classification", "graph-regression"):
        return _predict_graphs(run_or_model, paths, where, batch_size, top, progress)
    images = find_images(paths)
    classifier = load_classifier(run_or_model)
    model = classifier.model.to(where)
    predictions: list[Prediction] = []
    with torch.inference_mode():
        for batch in _batches(images, classifier, batch_size):
            readable = [inputs for inputs in batch if isinstance(inputs, Tensor)]
            likely = iter(_most_probable(model, [torch.stack(readable).to(where)], top) if readable else [])
            for inputs in batch:
                path = images[len(predictions)]
                if isinstance(inputs, Tensor):
                    named = tuple((classifier.classes[index], probability) for index, probability in next(likely))
                    predictions.append(Prediction(path, *named[0], named))
                else:
                    predictions.append(Prediction(path, error=inputs))
            if progress is not None:
                progress(len(predictions), len(images))
    return predictions


def _predict_nodes(
    run: str | Path,
    graphs: Sequence[str | Path],
    device: torch.device,
    top: int,
    progress: Callable[[int, int], None] | None,
) -> list[Prediction]:
    """All nodes of each graph, in their order."""
    if not graphs:
        raise CallError("name at least one graph")
    if is_transformed(run):
        model, classes, preprocessing = load_model(run), *_side_files(Path(run))
    else:
        model, info = load_run(run)
        _check_finished(info)
        classes, preprocessing = info.classes, info.preprocessing
    model = model.to(device)
    predictions: list[Prediction] = []
    for index, path in enumerate(graphs, 1):
        graph = read_graph(str(path), **preprocessing)
        with torch.inference_mode():
            likely = _most_probable(model, (graph.x.to(device), graph.edge_index.to(device)), top)
        for node, found in zip(graph.n_id.tolist(), likely, strict=True):
            named = tuple((classes[label], probability) for label, probability in found)
            predictions.append(Prediction(Path(path), *named[0], named, node=node))
        if progress is not None:
            progress(index, len(graphs))
    return predictions


def _predict_graphs(
    run: str | Path,
    sets: Sequence[str | Path],
    device: torch.device,
    batch_size: int,
    top: int,
    progress: Callable[[int, int], None] | None,
) -> list[Prediction]:
    """All graphs of each set, in their order."""
    if not sets:
        raise CallError("name at least one set of graphs")
    model, info = load_run(run)
    _check_finished(info)
    model = model.to(device)
    opened = [read_graph_set(str(path), **info.preprocessing, labelled=False) for path in sets]
    in_all = sum(len(found.graphs) for found in opened)
    predictions: list[Prediction] = []
    for path, found in zip(sets, opened, strict=True):
        for start in range(0, len(found.graphs), batch_size):
            arguments = graph_arguments(model, batch_of(found.graphs[start : start + batch_size]).to(device))
            with torch.inference_mode():
                if info.recipe.task == "graph-classification":
                    said = [
                        {"label": named[0][0], "probability": named[0][1], "top": named}
                        for likely in _most_probable(model, arguments, top)
                        if (named := tuple((info.classes[label], probability) for label, probability in likely))
                    ]
                else:
                    said = [{"values": tuple(row)} for row in model(*arguments).float().tolist()]
            predictions += [
                Prediction(Path(path), graph=start + place, **what)  # type: ignore[arg-type]
                for place, what in enumerate(said)
            ]
            if progress is not None:
                progress(len(predictions), in_all)
    return predictions


def _most_probable(model: nn.Module, inputs: Sequence[Tensor], top: int) -> Iterator[list[tuple[int, float]]]:
    probabilities = model(*inputs).float().softmax(1)  # (B, classes)
    values, indices = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
    for row in zip(indices.tolist(), values.tolist(), strict=True):
        yield list(zip(*row, strict=True))


def _batches(images: list[Path], classifier: Classifier, batch_size: int) -> Iterator[list[Tensor | str]]:
    """Batches of prepared images, with the reason in place of one that cannot be read."""

    def prepare(path: Path) -> Tensor | str:
        try:
            return classifier.prepare(path, classifier.preprocessing)[0]
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(images), batch_size):
            yield list(pool.map(prepare, images[start : start + batch_size]))


def find_images(paths: Sequence[str | Path]) -> list[Path]:
    """The files that were named, and the images of the folders that were named, sorted, subfolders included.

    Raises:
        CallError: a path that is not there, a folder without images, or no path at all.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
            if not inside:
                raise CallError(f"there are no images in the folder {path}")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise CallError(f"there is no file or folder {path}")
    if not found:
        raise CallError("name at least one image or folder")
    return found


def _check_finished(info: RunInfo) -> None:
    """Refuse a run whose network nothing has trained for the task yet."""
    method = info.recipe.method
    if method is not None and not finishes(method.name):
        raise CallError(
            f"{info.path} is a pre-training run, whose network has no classifier yet: train one from it "
            f"(model.weights={info.path}), or torchstone probe {info.path}"
        )


def load_classifier(run_or_model: str | Path) -> Classifier:
    """Load a finished run's model, or a model with the weights named after ``@``.

    Raises:
        CallError: no such run, model or weights; a model without weights.
    """
    if Path(run_or_model).is_dir():
        if is_transformed(run_or_model):
            return Classifier(load_model(run_or_model), *_side_files(Path(run_or_model)))
        model, info = load_run(run_or_model)
        _check_finished(info)
        prepare = preprocess_sequences if info.recipe.task == "sequence-classification" else preprocess
        return Classifier(model, info.classes, info.preprocessing, prepare)
    name, _, weights = str(run_or_model).partition("@")
    if not weights:
        raise CallError(
            f"{run_or_model} is no run directory, and as a model it has no weights: "
            f"name a run, {name}@pretrained or {name}@FILE"
        )
    spec = ModelSpec(name, weights=weights)
    if name.startswith("torchvision:"):
        model = build_model(name, pretrained=spec.pretrained, **_torchvision_classes(spec)).eval()
        return Classifier(model, *_torchvision_facts(name.removeprefix("torchvision:"), model))
    model = build_model(name, pretrained=spec.pretrained).eval()
    trained_for = model.pretrained_cfg["num_classes"]  # type: ignore[index]
    if trained_for != model.num_classes:  # the weights have another classifier, which was left out
        model = build_model(name, pretrained=spec.pretrained, num_classes=trained_for).eval()
    return Classifier(model, *_timm_facts(model))


def _task_of(folder: str | Path) -> str:
    """The task of a run, or of a transformed model whose folder names a graph; empty for other folders."""
    if is_transformed(folder):
        return "node-classification" if "graph" in read_structure(folder) else ""
    return read_info(folder).recipe.task


def is_transformed(folder: str | Path) -> bool:
    """Whether a folder holds a model that ``transform`` wrote, which is no run."""
    return (Path(folder) / "report.json").is_file()


def _side_files(folder: Path) -> tuple[list[str], dict[str, Any]]:
    """The classes and the preprocessing of a transformed model."""
    return _side_file(folder, "classes.json"), _side_file(folder, "preprocessing.json")


def _side_file(folder: Path, name: str) -> Any:
    if not (folder / name).is_file():
        raise CallError(f"{folder} was made from a model without weights or data: there is no {name} to predict with")
    return read_json(folder / name)


def _torchvision_classes(spec: ModelSpec) -> dict[str, int]:
    """The number of classes that a weights file was trained for; torchvision's own weights say it themselves."""
    if spec.pretrained is True or not Path(str(spec.weights)).is_file():
        return {}
    last = list(build_model(spec.name).state_dict())[-1]  # the classifier's bias
    state = read_checkpoint(str(spec.weights))
    return {"num_classes": len(state[last])} if last in state else {}


def _timm_facts(model: nn.Module) -> tuple[list[str], dict[str, Any]]:
    """Classes and preprocessing from a model's pretrained configuration."""
    from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config

    config = resolve_data_config(model=model)
    preprocessing = {
        "size": config["input_size"][-1],
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "interpolation": config["interpolation"],
        "crop_pct": config["crop_pct"],
    }
    count: int = model.num_classes  # type: ignore[assignment]
    subset = infer_imagenet_subset(model) if count > 100 else None
    if subset is None:
        return _numbered(count), preprocessing
    names = ImageNetInfo(subset)
    return [names.index_to_description(index) for index in range(count)], preprocessing


def _torchvision_facts(name: str, model: nn.Module) -> tuple[list[str], dict[str, Any]]:
    """Classes and preprocessing from the weights that torchvision lists for a model."""
    from torchvision.models import get_model_weights

    released = get_model_weights(name).DEFAULT
    transforms = released.transforms()
    count = list(model.parameters())[-1].shape[0]
    categories = released.meta["categories"]
    return categories if len(categories) == count else _numbered(count), {
        "size": transforms.crop_size[0],
        "mean": list(transforms.mean),
        "std": list(transforms.std),
        "interpolation": transforms.interpolation.value,
        "crop_pct": transforms.crop_size[0] / transforms.resize_size[0],
    }


def _numbered(count: int) -> list[str]:
    return [f"class {index}" for index in range(count)]
