"""What a domain means to training, comparison and prediction: its data, module, metric and views.

``train``, ``compare`` and ``predict`` know tasks only; a new domain is one more class here and one entry of
:data:`TASKS`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from torchstone.data.graph_sets import SUBSTRUCTURES, GraphSetData, is_graph_set, open_graph_set
from torchstone.data.graphs import SOURCES as GRAPH_SOURCES
from torchstone.data.graphs import GraphData, is_graph_source, open_graph
from torchstone.data.images import ImageData, open_images
from torchstone.data.inductive import hold_out
from torchstone.data.sequences import SEQUENCE_SOURCES, SequenceData, is_sequence_source, open_sequences
from torchstone.data.sources import IMAGE_SOURCES
from torchstone.errors import CallError, unknown_name
from torchstone.files import read_json
from torchstone.instruments.description import GraphDescription, GraphSetDescription, ModelDescription
from torchstone.models.registry import build_model
from torchstone.training.graphs import GraphClassifier, GraphRegressor
from torchstone.training.nodes import NodeClassifier
from torchstone.training.recipe import DataSpec, ModelSpec, Recipe, TrainSpec
from torchstone.training.runs import RunInfo, read_info
from torchstone.training.starting import start_from_run
from torchstone.training.supervised import Classification, Supervised, Trainable, has_unused_parameters


class TaskData(Protocol):
    """What training asks of a data module of any domain, ready to use when it is opened.

    With a trainer attached, the training loader of each process gives its share of every batch, in an order that
    follows from the epoch which its sampler was told.
    """

    trainer: Any
    source: Any
    fingerprint: str
    classes: list[str]

    def train_dataloader(self) -> DataLoader: ...
    def val_dataloader(self) -> DataLoader: ...
    def test_dataloader(self) -> DataLoader: ...
    def describe(self) -> dict[str, Any]: ...
    def preprocessing(self) -> dict[str, Any]: ...


class Task(ABC):
    """One domain.

    Attributes:
        name: as recipes give it.
        metric: the primary metric's name; rows of a run hold it as ``val_<metric>``.
        maximize: whether more of it is better.
        error_view: how a report shows the errors: ``"confusion"``, ...
        batch_sizes: of the inputs whose latency a comparison measures.
        peer_lr: where a comparison's learning rates start for models without a card.
        sources: data that are opened by name, and what they are; every other source is a path.
    """

    name: str
    metric: str
    maximize: bool
    error_view: str
    batch_sizes: tuple[int, ...] = (1, 32)
    peer_lr: float
    sources: Mapping[str, str]

    @abstractmethod
    def open_data(self, data: DataSpec, train: TrainSpec, seed: int, source: Any = None) -> Any:
        """Open the data module (:class:`TaskData`); its training batches hold ``batch_size / accumulate`` samples.

        Args:
            data: what to open.
            train: the protocol.
            seed: of the order and augmentation of training samples.
            source: ``.source`` of a data module that is open already, used instead of reading ``data.source`` again.
        """

    @abstractmethod
    def model_args(self, data: Any) -> dict[str, Any]:
        """The arguments that the data impose on every model: number of classes, channels, ..."""

    def headless_args(self, data: Any) -> dict[str, Any]:
        """The arguments that the data impose on a network without the part that depends on the classes: what a method
        trains, and what of a trained network other classes can start from. Where there is no such part to leave out
        they are :meth:`model_args`."""
        return self.model_args(data)

    @abstractmethod
    def module(self, model: nn.Module, recipe: Recipe, data: Any) -> Trainable:
        """Wrap a model for training and evaluation."""

    @abstractmethod
    def probe_inputs(self, data: Any, batch_size: int) -> tuple[Tensor, ...]:
        """Inputs of the right shape, to measure a model's cost."""

    def training_pairs(self, data: Any) -> Iterator[tuple[Any, Any]]:
        """The training batches (inputs, target) of the first epoch, for whatever learns from data before training."""
        loader = data.train_dataloader()
        loader.sampler.set_epoch(0)
        return iter(loader)

    def scored_on(self, data: Any, part: str) -> Any:
        """The data that a finished network is given to be scored on a part, ``val`` or ``test``."""
        return data

    def check_teacher(self, teacher: RunInfo, data: Any) -> None:  # noqa: B027 - most data are no secret to a teacher
        """Refuse a teacher that knows more of the data than a method's network may."""

    def check_weights(self, run: RunInfo, data: Any) -> None:  # noqa: B027 - nor to what a network starts from
        """Refuse to start from a run that knows what is held out of the data."""

    def description(self, spec: str, data: Any) -> ModelDescription:
        """A model and its inputs as something that another process can measure the cost of."""
        return ModelDescription(spec, tuple(self.probe_inputs(data, 1)[0].shape[1:]), self.model_args(data))

    def recognises(self, source: str) -> bool:
        """Whether a data source given by the user is this task's."""
        return source in self.sources

    def comparison_protocol(self, epochs: int, batch_size: int) -> TrainSpec:
        """How every candidate of a comparison is trained; only the learning rate is its own."""
        return TrainSpec(
            epochs=epochs,
            batch_size=batch_size,
            optimizer="adamw",
            weight_decay=0.05,
            schedule="cosine",
            warmup_epochs=epochs / 10,
            label_smoothing=0.1,
            clip_grad=1.0,
        )

    def training_batch(self, train: TrainSpec) -> int:
        """The batch of a training step whose cost is measured."""
        return train.batch_size

    @abstractmethod
    def predictions(self, outputs: Tensor) -> Tensor:
        """What the model decides, one row per sample."""

    @abstractmethod
    def per_sample_score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """A float per sample, shape (B,), whose mean is the metric."""

    def all_model_args(self, model: ModelSpec, data: Any, train: TrainSpec | None = None) -> dict[str, Any]:
        """Every argument the model is built with, so that the run can rebuild it.

        Raises:
            CallError: the same argument is given twice.
        """
        args = {**self.model_args(data), **model.args}
        if train is not None and train.drop_path is not None:
            if "drop_path_rate" in args:
                raise CallError("train.drop_path and model.args.drop_path_rate are the same setting; give one of them")
            args["drop_path_rate"] = train.drop_path
        return args

    def build_model(self, model: ModelSpec, data: Any, train: TrainSpec | None = None) -> nn.Module:
        """Build a recipe's model for the data.

        Raises:
            UnknownName: no such model.
            CallError: an argument that this model does not take.
        """
        args = self.all_model_args(model, data, train)
        run = model.local if model.local is not None and model.local.is_dir() else None
        try:
            built = build_model(model.name, pretrained=False if run else model.pretrained, **args)
            if run is not None:
                self.check_weights(read_info(run), data)
                full, body = args | self.model_args(data), args | self.headless_args(data)
                build = partial(build_model, model.name)
                start_from_run(built, run, model.name, lambda: build(**full), lambda: build(**body))
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            raise CallError(f"{model.name} does not take an argument of this recipe: {error}") from error
        return built

    # --- training

    def has_unused_parameters(self, model: nn.Module, data: Any) -> bool:
        """Whether the model that :meth:`build_model` built has trainable parameters that no gradient reaches."""
        return has_unused_parameters(model, self.probe_inputs(data, 2))

    def parts(self, state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """A trained model's state as the files of its run, by their names without ``.safetensors``."""
        return {"model": dict(state)}

    def illustrate(self, run: Path, recipe: Recipe, data: Any) -> None:  # noqa: B027 - most tasks have no pictures
        """Write pictures of what came out into a run directory whose weights are written."""


class ImageClassification(Task):
    """Images to one of a fixed list of classes."""

    name = "image-classification"
    metric = "accuracy"
    maximize = True
    error_view = "confusion"
    peer_lr = 2e-3
    sources = IMAGE_SOURCES

    def open_data(self, data: DataSpec, train: TrainSpec, seed: int, source: Any = None) -> ImageData:
        _refuse("data", data, ("split", "directed", "normalize", "hold_out"), "graphs", "images")
        return open_images(
            data.source if source is None else source,
            size=data.size,
            batch_size=train.batch_size // train.accumulate,
            seed=seed,
            split_seed=data.split_seed,
            val_fraction=data.val_fraction,
            test_fraction=data.test_fraction,
            workers=data.workers,
            augment=data.augment,
            limit=data.limit,
        )

    def model_args(self, data: ImageData) -> dict[str, Any]:
        return {"num_classes": data.num_classes, "in_chans": 3}

    def headless_args(self, data: ImageData) -> dict[str, Any]:
        return {**self.model_args(data), "num_classes": 0}

    def module(self, model: nn.Module, recipe: Recipe, data: ImageData) -> Classification:
        return Classification(
            model,
            recipe.train,
            seed=recipe.seed,
            steps_per_epoch=len(data.train_dataloader()) // recipe.train.accumulate,
            num_classes=data.num_classes,
        )

    def probe_inputs(self, data: ImageData, batch_size: int) -> tuple[Tensor, ...]:
        shape = (batch_size, 3, data.image_size, data.image_size)
        return (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def per_sample_score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) == targets).float()


class NodeClassification(Task):
    """Nodes of one graph to one of a fixed list of classes; all nodes are seen, the labels of some."""

    name = "node-classification"
    metric = "accuracy"
    maximize = True
    error_view = "confusion"
    batch_sizes = (1,)
    peer_lr = 1e-2
    sources = GRAPH_SOURCES

    def recognises(self, source: str) -> bool:
        return is_graph_source(source)

    def open_data(self, data: DataSpec, train: TrainSpec, seed: int, source: Any = None) -> GraphData:
        given = "a graph, which is one batch"
        _refuse("data", data, ("size", "workers", "augment", "limit"), "images", given)
        _refuse("train", train, ("batch_size", "accumulate", "loss", "mixup", "cutmix"), "images", given)
        if source is not None:
            if data.hold_out is not None and source.whole is None:
                raise CallError(
                    "data.hold_out: the graph that was given has no nodes held out; give what "
                    "torchstone.data.inductive.hold_out makes of it"
                )
            return GraphData(source)
        opened = open_graph(
            data.source,
            split=data.split,
            split_seed=data.split_seed,
            val_fraction=data.val_fraction,
            test_fraction=data.test_fraction,
            normalize=data.normalize,
            directed=data.directed,
        )
        return GraphData(opened if data.hold_out is None else hold_out(opened, data.hold_out, data.split_seed))

    def scored_on(self, data: GraphData, part: str) -> GraphData:
        whole = data.source.whole
        return data if part == "val" or whole is None else GraphData(whole)

    def check_teacher(self, teacher: RunInfo, data: GraphData) -> None:
        theirs, ours = _trained_on(teacher), data.source
        if _what_is_seen(theirs) != _what_is_seen(ours.describe()):
            raise CallError(
                f"the teacher {teacher.path} was trained on another graph or split than this recipe's, so it may know "
                "what is tested here; train it with the same keys of the section data"
            )
        if theirs["normalized"] != ours.normalized:
            answer = str(ours.normalized).lower()
            raise CallError(
                f"the teacher {teacher.path} was trained on features of another scale; train it with "
                f"data.normalize={answer}, or this recipe with data.normalize={str(theirs['normalized']).lower()}"
            )

    def check_weights(self, run: RunInfo, data: GraphData) -> None:
        if data.source.whole is not None and _what_is_seen(_trained_on(run)) != _what_is_seen(data.source.describe()):
            raise CallError(
                f"model.weights: the run {run.path} was not trained on this graph with the same nodes held out, so it "
                "may know what is tested here; train it with the same keys of the section data"
            )

    def model_args(self, data: GraphData) -> dict[str, Any]:
        return {"in_channels": data.graph.num_features, "out_channels": data.num_classes}

    def module(self, model: nn.Module, recipe: Recipe, data: GraphData) -> NodeClassifier:
        return NodeClassifier(model, recipe.train, seed=recipe.seed, data=data)

    def probe_inputs(self, data: GraphData, batch_size: int) -> tuple[Tensor, ...]:
        if batch_size != 1:
            raise CallError(f"a graph is one batch, got a batch size of {batch_size}")
        return data.graph.x, data.graph.edge_index

    def training_pairs(self, data: GraphData) -> Iterator[tuple[Any, Any]]:
        """One batch: the inputs, and the labels (N,) with -1 for nodes that are not trained on."""
        (mask,) = data.train_dataloader()
        return iter([((data.graph.x, data.graph.edge_index), data.graph.y.masked_fill(~mask, -1))])

    def description(self, spec: str, data: GraphData) -> GraphDescription:
        graph = data.graph
        return GraphDescription(
            spec, (graph.num_nodes, graph.num_features), self.model_args(data), data.fingerprint, graph.edge_index
        )

    def training_batch(self, train: TrainSpec) -> int:
        return 1

    def comparison_protocol(self, epochs: int, batch_size: int) -> TrainSpec:
        return TrainSpec(
            epochs=epochs,
            batch_size=batch_size,
            optimizer="adam",
            weight_decay=5e-4,  # as most graph networks are trained on citation graphs
            schedule="constant",
            select="best_loss",
            checkpoint_epochs=100,
        )

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def per_sample_score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) == targets).float()


class SequenceClassification(Task):
    """Sequences to one of a fixed list of classes: pixels of images in raster order.

    A model takes ``in_channels``, ``num_classes`` and ``max_length`` and maps (B, L, in_channels) to logits.
    """

    name = "sequence-classification"
    metric = "accuracy"
    maximize = True
    error_view = "confusion"
    peer_lr = 2e-3
    sources = SEQUENCE_SOURCES

    def recognises(self, source: str) -> bool:
        return is_sequence_source(source)

    def open_data(self, data: DataSpec, train: TrainSpec, seed: int, source: Any = None) -> SequenceData:
        _refuse("data", data, ("split", "directed", "normalize", "hold_out"), "graphs", "sequences")
        _refuse("train", train, ("mixup", "cutmix"), "images", "sequences")
        if data.augment not in ("auto", "none"):
            raise CallError(f"data.augment={data.augment} is for images; sequences are not augmented: remove it")
        return open_sequences(
            data.source,
            opened=source,
            size=data.size,
            batch_size=train.batch_size // train.accumulate,
            seed=seed,
            split_seed=data.split_seed,
            val_fraction=data.val_fraction,
            test_fraction=data.test_fraction,
            workers=data.workers,
            limit=data.limit,
        )

    def model_args(self, data: SequenceData) -> dict[str, Any]:
        return {"num_classes": data.num_classes, "in_channels": data.channels, "max_length": data.length}

    def module(self, model: nn.Module, recipe: Recipe, data: SequenceData) -> Classification:
        return Classification(
            model,
            recipe.train,
            seed=recipe.seed,
            steps_per_epoch=len(data.train_dataloader()) // recipe.train.accumulate,
            num_classes=data.num_classes,
        )

    def probe_inputs(self, data: SequenceData, batch_size: int) -> tuple[Tensor, ...]:
        shape = (batch_size, data.length, data.channels)
        return (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def per_sample_score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) == targets).float()


class GraphClassification(Task):
    """Whole graphs to one of a fixed list of classes.

    A model takes ``in_channels`` and ``out_channels`` and maps ``(x, edge_index, batch)`` to (B, out_channels). The
    nodes of PyG's networks are pooled, GIN's by their sum and others' by their mean.
    """

    name = "graph-classification"
    metric = "accuracy"
    maximize = True
    error_view = "confusion"
    peer_lr = 1e-3
    sources: Mapping[str, str] = {}
    regression = False

    def recognises(self, source: str) -> bool:
        return is_graph_set(source) and source.startswith(SUBSTRUCTURES) == self.regression

    def open_data(self, data: DataSpec, train: TrainSpec, seed: int, source: Any = None) -> GraphSetData:
        _refuse("data", data, ("size", "augment", "directed", "normalize", "hold_out"), "other data", "a set of graphs")
        _refuse("train", train, ("loss", "mixup", "cutmix"), "images", "graphs")
        if self.regression:
            _refuse("train", train, ("label_smoothing",), "classes", "numbers")
        return open_graph_set(
            data.source if source is None else source,
            batch_size=train.batch_size // train.accumulate,
            regression=self.regression,
            split=data.split,
            split_seed=data.split_seed,
            val_fraction=data.val_fraction,
            test_fraction=data.test_fraction,
            seed=seed,
            workers=data.workers,
            limit=data.limit,
        )

    def model_args(self, data: GraphSetData) -> dict[str, Any]:
        return {"in_channels": data.source.num_features, "out_channels": data.num_classes}

    def all_model_args(self, model: ModelSpec, data: GraphSetData, train: TrainSpec | None = None) -> dict[str, Any]:
        args = super().all_model_args(model, data, train)
        if model.name.startswith("pyg:"):
            args.setdefault("pool", "add" if model.name == "pyg:gin" else "mean")
        return args

    def module(self, model: nn.Module, recipe: Recipe, data: GraphSetData) -> Supervised:
        steps = len(data.train_dataloader()) // recipe.train.accumulate
        return GraphClassifier(
            model, recipe.train, seed=recipe.seed, steps_per_epoch=steps, num_classes=data.num_classes
        )

    def probe_inputs(self, data: GraphSetData, batch_size: int) -> tuple[Tensor, ...]:
        batch = data.first(batch_size)
        return batch.x, batch.edge_index, batch.batch

    def description(self, spec: str, data: GraphSetData) -> GraphSetDescription:
        args = self.all_model_args(ModelSpec(spec), data)
        with torch.device("meta"):
            takes = getattr(build_model(spec, **args), "takes_edge_attr", False)
        graphs = [data.source.graphs[index] for index in data.parts["train"][: self.batch_sizes[-1]]]
        return GraphSetDescription(
            spec,
            (data.source.num_features,),
            args,
            data.fingerprint,
            tuple((graph.num_nodes, graph.edge_index) for graph in graphs),
            data.source.edge_channels if takes else 0,
        )

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def per_sample_score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) == targets).float()


class GraphRegression(GraphClassification):
    """Numbers of whole graphs: their mean absolute error, over graphs and numbers."""

    name = "graph-regression"
    metric = "mae"
    maximize = False
    error_view = "none"
    regression = True

    def module(self, model: nn.Module, recipe: Recipe, data: GraphSetData) -> Supervised:
        steps = len(data.train_dataloader()) // recipe.train.accumulate
        return GraphRegressor(model, recipe.train, seed=recipe.seed, steps_per_epoch=steps, targets=data.num_classes)

    def comparison_protocol(self, epochs: int, batch_size: int) -> TrainSpec:
        return dataclasses.replace(super().comparison_protocol(epochs, batch_size), label_smoothing=0.0)

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs

    def per_sample_score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).abs().mean(1)


def _trained_on(run: RunInfo) -> dict[str, Any]:
    """What a run recorded of its graph."""
    found: dict[str, Any] = read_json(run.path / "data.json")
    return found


def _what_is_seen(described: Mapping[str, Any]) -> dict[str, Any]:
    """Of a graph's description, what says which nodes, edges and labels a training saw."""
    return {key: described.get(key) for key in ("nodes", "edges", "views", "fingerprint", "splits")}


def _refuse(section: str, spec: DataSpec | TrainSpec, keys: Sequence[str], kind: str, given: str) -> None:
    """Refuse settings that these data cannot have."""
    usual = {field.name: field.default for field in dataclasses.fields(spec)}
    for key in keys:
        if getattr(spec, key) != usual[key]:
            raise CallError(f"{section}.{key} is for {kind}; it means nothing for {given}: remove it")


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        ImageClassification(),
        NodeClassification(),
        SequenceClassification(),
        GraphClassification(),
        GraphRegression(),
    )
}


def task_of(source: str) -> Task:
    """The task that a data source is for: nodes for a graph, sequences where it says so, whole graphs for a
    folder of them, else image classification."""
    return next((task for task in TASKS.values() if task.recognises(source)), TASKS[ImageClassification.name])


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        UnknownName: there is none; the nearest are given.
    """
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    return TASKS[name]
