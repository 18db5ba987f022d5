"""Images for a classifier: named data sets, folder trees and Parquet files as one Lightning data module."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from torchstone.data.augmentation import crops_at_random, resolve_augment, training_transform
from torchstone.data.datasets import Batch, EvaluationImages, Sample, TrainingImages
from torchstone.data.examination import ImageSource, Progress
from torchstone.data.preprocessing import evaluation_transform, imagenet_preprocessing
from torchstone.data.sampling import PositionSampler
from torchstone.data.sources import open_source
from torchstone.data.splits import Indices, index_hash, stratified
from torchstone.errors import CallError, DataError

Batches = DataLoader[Sample]  # which collates samples to (Tensor, Tensor)
SPLITS = ("train", "val", "test")
SMALLEST_SIZE = 8


def open_images(
    source: str | Path | ImageSource,
    *,
    batch_size: int,
    eval_batch_size: int | None = None,
    size: int | None = None,
    seed: int = 0,
    split_seed: int = 0,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    workers: int = 0,
    augment: str = "auto",
    limit: int | None = None,
    progress: Progress | None = None,
) -> ImageData:
    """Open a set of labelled images, split it and prepare its loaders.

    Splits that the data bring (folders or files called train, val, test) are kept. A missing test split is
    ``test_fraction`` of the training images, a missing validation split ``val_fraction`` of those that then remain;
    both are drawn by class, as a function of ``split_seed`` alone.

    Args:
        source: ``digits``, ``cifar10``, a folder tree, Parquet (:func:`torchstone.data.open_source`), or an
            :class:`ImageSource` that is open already.
        batch_size: training samples a step, over all processes. A smaller training set is one batch.
        eval_batch_size: samples a step and process in evaluation; ``batch_size`` by default.
        size: side of the network's input, pixels. By default what suits the data: 32 for digits and CIFAR-10;
            otherwise by the median shorter side, 32 up to 40 pixels, 64 up to 80, else 224.
        seed: of the order and augmentation of training samples.
        split_seed: of the splits and of ``limit``.
        val_fraction, test_fraction: between 0 and 1, exclusive.
        workers: loader processes.
        augment: ``auto``, ``none``, ``light``, ``flip``, ``standard`` or a RandAugment string
            (:mod:`torchstone.data.augmentation`).
        limit: use only so many training images, drawn by class.
        progress: called with (images looked into, images in all) while the data are opened.

    Raises:
        DataError: the data cannot be used; the message says what was found and what is expected.
        CallError: an option is out of range.
    """
    size = checked_size(size)
    loading = checked_loading(batch_size, eval_batch_size, workers, seed)
    check_split(val_fraction, test_fraction, limit)
    if not isinstance(source, ImageSource):
        resolve_augment(augment, size or 32)  # a mistyped name should not wait for the data
        source = open_source(source, progress)
    splits = split(source, split_seed, val_fraction, test_fraction, limit)
    return ImageData(source, splits, size or default_size(source), augment, loading)


def checked_size(size: int | None) -> Any:
    """The side of images in pixels, or None for what suits the data."""
    return _checked("size", size, SMALLEST_SIZE)


def checked_loading(batch_size: int, eval_batch_size: int | None, workers: int, seed: int) -> Loading:
    """How samples become batches, each number in its range."""
    return Loading(
        batch_size=_checked("batch_size", batch_size, 1),
        eval_batch_size=_checked("eval_batch_size", batch_size if eval_batch_size is None else eval_batch_size, 1),
        workers=_checked("workers", workers, 0),
        seed=seed,
    )


def check_split(val_fraction: float, test_fraction: float, limit: int | None) -> None:
    """Refuse parts and limits out of range before data are opened."""
    _checked("limit", limit, 1)
    for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 < fraction < 1:
            raise CallError(f"{name} must be between 0 and 1, exclusive; it is {fraction}")


@dataclass(frozen=True)
class Splits:
    """Indices of each split into a source, and how they came about.

    Attributes:
        indices: by split.
        origin: by split, in words.
        protocol: seed, fractions and limit that the splits follow from.
    """

    indices: dict[str, Indices]
    origin: dict[str, str]
    protocol: dict[str, Any]


@dataclass(frozen=True)
class Loading:
    """How samples become batches."""

    batch_size: int
    eval_batch_size: int
    workers: int
    seed: int


def split(
    source: ImageSource, seed: int, val_fraction: float, test_fraction: float, limit: int | None = None
) -> Splits:
    """Fix which images train, select and test, as :func:`open_images` says.

    Raises:
        DataError: too few images for three splits.
        CallError: ``limit`` below the number of classes.
    """
    indices = {name: np.flatnonzero(source.splits == name) for name in SPLITS}
    origin = dict.fromkeys(SPLITS, "the data's own")
    for name, fraction in (("test", test_fraction), ("val", val_fraction)):
        if len(indices[name]):
            continue
        train = indices["train"]
        drawn, rest = stratified(train, source.labels, max(1, round(fraction * len(train))), name, seed)
        if not len(drawn):
            raise DataError(
                f"{source.name} has too few images to split off a {name} set: {len(train)} for training in "
                f"{len(source.classes)} classes, and no class can spare one"
            )
        indices[name], indices["train"] = drawn, rest
        origin[name] = f"{fraction} of {len(train)} training images, by class"
    if limit is not None:
        if limit < len(source.classes):
            raise CallError(f"limit must be at least {len(source.classes)}, one image a class; it is {limit}")
        surplus = len(indices["train"]) - limit
        if surplus > 0:
            _, indices["train"] = stratified(indices["train"], source.labels, surplus, "limit", seed, least=0)
            origin["train"] = f"{limit} of {surplus + limit} training images, by class"
    protocol = {"split_seed": seed, "val_fraction": val_fraction, "test_fraction": test_fraction, "limit": limit}
    return Splits(indices, origin, protocol)


def default_size(source: ImageSource) -> int:
    """The network input that suits a source, in pixels."""
    if source.size:
        return source.size
    return 32 if source.shorter_side <= 40 else 64 if source.shorter_side <= 80 else 224


class ImageData(LightningDataModule):
    """Loaders of normalised batches (float32 (B, 3, size, size), int64 (B,)); made by :func:`open_images`.

    Training batches are a function of (seed, epoch, step) alone: the same with any number of workers, any number of
    processes (which share each batch) and any start epoch. Validation and test come in the order of the data; with
    several processes each evaluates every n-th image, without repeats, so the last ones may have one image fewer.

    Attributes:
        name: of the data set.
        source: the open data set; pass it to :func:`open_images` for other batches or seeds of the same data.
        classes: names in the order of the labels.
        num_classes: their number.
        image_size: side of the network's input, pixels.
        batch_size: of a training step over all processes; at most the number of training images.
        augment: the augmentation that ``auto`` came to.
        fingerprint: SHA-256 of the data's content, whatever their place.
        sizes: images in each split.
        skipped: images that could not be read and are left out.
        mean, std: of the normalisation, one number a channel.
    """

    def __init__(self, source: ImageSource, splits: Splits, size: int, augment: str, loading: Loading) -> None:
        super().__init__()
        self.source = source
        self.splits = splits
        self.loading = loading
        self.name = source.name
        self.classes = source.classes
        self.num_classes = len(source.classes)
        self.fingerprint = source.fingerprint
        self.skipped = list(source.skipped)
        self.sizes = {name: len(indices) for name, indices in splits.indices.items()}
        self.image_size = size
        self.augment = resolve_augment(augment, size, source.augment)
        self._preprocessing = imagenet_preprocessing(size, crop_pct=0.875 if crops_at_random(self.augment) else 1.0)
        self.mean: list[float] = self._preprocessing["mean"]
        self.std: list[float] = self._preprocessing["std"]
        self.batch_size = min(loading.batch_size, self.sizes["train"])
        if self.batch_size < loading.batch_size:
            warnings.warn(
                f"{self.name} has {self.sizes['train']} training images, fewer than a batch of {loading.batch_size}: "
                "all of them are one batch",
                stacklevel=3,
            )

    def preprocessing(self) -> dict[str, Any]:
        """What evaluation does to an image, as JSON; :func:`torchstone.data.preprocess` does the same with it."""
        return {**self._preprocessing, "mean": list(self.mean), "std": list(self.std)}

    def labels(self, split: str) -> NDArray[np.int64]:
        """(N,) the classes of a split's images, in the order of its loader (of the data, for "train")."""
        return self.source.labels[self.splits.indices[split]]

    def names(self, split: str) -> list[str]:
        """(N,) what the user knows a split's images by, in the same order."""
        return [self.source.names[index] for index in self.splits.indices[split]]

    def describe(self) -> dict[str, Any]:
        """All that fixes these data, as JSON: content, splits, protocol, preprocessing."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "classes": list(self.classes),
            "splits": {
                name: {
                    "size": self.sizes[name],
                    "origin": self.splits.origin[name],
                    "per_class": np.bincount(self.labels(name), minlength=self.num_classes).tolist(),
                    "indices_sha256": index_hash(self.splits.indices[name]),
                }
                for name in SPLITS
            },
            **self.splits.protocol,
            "augment": self.augment,
            "batch_size": self.batch_size,
            "preprocessing": self.preprocessing(),
            "skipped": dict(self.source.skipped),
        }

    def train_dataloader(self) -> Batches:
        rank, world = self._process()
        batch_size = self.batch_size // world * world if self.batch_size < self.loading.batch_size else self.batch_size
        indices = self.splits.indices["train"]
        dataset = TrainingImages(
            self.source.images.select(indices),
            self.source.labels[indices],
            training_transform(self.augment, self._preprocessing),
            self.loading.seed,
            random=self.augment != "none",
        )
        sampler = PositionSampler(len(dataset), batch_size, self.loading.seed, rank, world)
        return self._loader(dataset, batch_size // world, sampler)

    def val_dataloader(self) -> Batches:
        return self.evaluation_dataloader("val")

    def test_dataloader(self) -> Batches:
        return self.evaluation_dataloader("test")

    def evaluation_dataloader(self, split: str) -> Batches:
        """A split in the order of the data, without augmentation; the training split too, for what only looks at it."""
        rank, world = self._process()
        indices = self.splits.indices[split]
        dataset = EvaluationImages(
            self.source.images.select(indices), self.source.labels[indices], evaluation_transform(self._preprocessing)
        )
        sampler = None
        if world > 1:
            sampler = UnrepeatedDistributedSampler(dataset, num_replicas=world, rank=rank, shuffle=False)
        return self._loader(dataset, self.loading.eval_batch_size, sampler)

    def _loader(self, dataset: EvaluationImages, batch_size: int, sampler: Any) -> Batches:
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.loading.workers,
            persistent_workers=self.loading.workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=self.collate(),
            generator=torch.Generator(),  # or the loader would draw its workers' seed from the global generator
        )

    def collate(self) -> Callable[[Sequence[Sample]], tuple[Tensor, Tensor]]:
        """What makes a batch of samples."""
        return Batch(self._preprocessing)

    def _process(self) -> tuple[int, int]:
        """(rank, number of processes) of the training that this module is attached to."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def _checked(name: str, value: int | None, least: int) -> Any:
    """An optional whole number, at least ``least``."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise CallError(f"{name} must be a whole number of at least {least}; it is {value!r}")
    return value
