"""Images read as sequences: their pixels in raster order, row by row from the top left, one step a pixel.

A sequence has one channel (``grey``: luma, 0.299 R + 0.587 G + 0.114 B) or three. Splits, order and decoding are those
of the image data set; nothing is augmented, because what moves an image scatters its sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchstone.data.datasets import Sample
from torchstone.data.examination import ImageSource, Progress
from torchstone.data.images import ImageData, Loading, Splits, check_split, checked_loading, checked_size, split
from torchstone.data.preprocessing import AnyImage, imagenet_preprocessing, pixels
from torchstone.data.sources import open_source
from torchstone.errors import CallError, unknown_name

SEQUENCE_SOURCES = {
    "sequential-digits": "scikit-learn's 1797 handwritten digits, 64 steps of one channel, 10 classes; bundled",
    "sequential-cifar10": "60,000 photographs, 1024 steps of three channels, 10 classes; downloaded once",
    "sequential-cifar10-grey": "the same in grey, one channel, as in the Long Range Arena",
}
COLOUR, GREY = "sequential:", "sequential-grey:"
"""What stands before the path of an image data set that is to be read as sequences."""

_NAMED = {
    "sequential-digits": ("digits", 1),
    "sequential-cifar10": ("cifar10", 3),
    "sequential-cifar10-grey": ("cifar10", 1),
}
_LUMA = (0.299, 0.587, 0.114)
_LARGEST_DEFAULT = 32  # pixels: 1024 steps


def is_sequence_source(source: str) -> bool:
    """Whether a name or path means images as sequences; a mistyped name does, too."""
    return source.startswith((COLOUR, GREY)) or (source.startswith("sequential-") and not Path(source).exists())


def image_source_of(source: str) -> tuple[str, int]:
    """The image data set behind a source of sequences, and the channels of a step.

    Raises:
        UnknownName: it is no source of sequences; the nearest are given.
        CallError: the path is missing.
    """
    if source in _NAMED:
        return _NAMED[source]
    for prefix, channels in ((COLOUR, 3), (GREY, 1)):
        if source.startswith(prefix) and source != prefix:
            return source.removeprefix(prefix), channels
    if source in (COLOUR, GREY):
        raise CallError(f"{source!r} needs the path of an image data set behind it: {source}PATH")
    raise unknown_name("source of sequences", source, [*SEQUENCE_SOURCES, f"{COLOUR}PATH", f"{GREY}PATH"])


def open_sequences(
    source: str,
    *,
    batch_size: int,
    eval_batch_size: int | None = None,
    size: int | None = None,
    seed: int = 0,
    split_seed: int = 0,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    workers: int = 0,
    limit: int | None = None,
    opened: ImageSource | None = None,
    progress: Progress | None = None,
) -> SequenceData:
    """Open a set of labelled images as sequences, split it and prepare its loaders.

    Args:
        source: a name of :data:`SEQUENCE_SOURCES`, ``sequential:PATH`` or ``sequential-grey:PATH``.
        size: side of the images in pixels, so that a sequence has size^2 steps; by default their own up to 32.
        opened: the images, where they are open already.
        others: as in :func:`torchstone.data.open_images`.

    Raises:
        DataError: the data cannot be used; the message says what was found and what is expected.
        CallError: an option is out of range.
    """
    path, channels = image_source_of(source)
    size = checked_size(size)
    loading = checked_loading(batch_size, eval_batch_size, workers, seed)
    check_split(val_fraction, test_fraction, limit)
    images = open_source(path, progress) if opened is None else opened
    splits = split(images, split_seed, val_fraction, test_fraction, limit)
    return SequenceData(images, splits, size or min(images.shorter_side, _LARGEST_DEFAULT), channels, loading)


class SequenceData(ImageData):
    """Loaders of normalised batches (float32 (B, L, C), int64 (B,)); made by :func:`open_sequences`.

    Attributes:
        length: L, steps of a sequence: the pixels of an image.
        channels: C, 1 or 3.
        others: as in :class:`torchstone.data.ImageData`.
    """

    def __init__(self, source: ImageSource, splits: Splits, size: int, channels: int, loading: Loading) -> None:
        super().__init__(source, splits, size, "none", loading)
        self.name = f"sequential-{source.name}"
        self.length, self.channels = size * size, channels
        self._preprocessing = sequence_preprocessing(size, channels)
        self.mean, self.std = self._preprocessing["mean"], self._preprocessing["std"]

    def collate(self) -> RasterBatch:
        return RasterBatch(self._preprocessing)


def sequence_preprocessing(size: int, channels: int) -> dict[str, Any]:
    """ImageNet's statistics as for images; in grey the mean over the channels."""
    usual = imagenet_preprocessing(size, crop_pct=1.0)
    if channels == 3:
        return usual
    return {**usual, **{name: [sum(usual[name]) / len(usual[name])] for name in ("mean", "std")}}


class RasterBatch:
    """Collates uint8 images (3, H, W) with labels to (float32 (B, H W, C) normalised, int64 (B,)).

    Args:
        preprocessing: C is the number of its means.
    """

    def __init__(self, preprocessing: dict[str, Any]) -> None:
        self.mean = torch.tensor(preprocessing["mean"])
        self.std = torch.tensor(preprocessing["std"])
        self.luma = torch.tensor(_LUMA)

    def sequences(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to float32 (B, H W, C)."""
        steps = images.flatten(2).transpose(1, 2).float().div_(255)  # (B, H W, 3)
        if len(self.mean) == 1:
            steps = steps @ self.luma.unsqueeze(1)
        return ((steps - self.mean) / self.std).contiguous()

    def __call__(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        images, labels = zip(*samples, strict=True)
        return self.sequences(torch.stack(images)), torch.tensor(labels)


def preprocess_sequences(images: AnyImage | Sequence[AnyImage], preprocessing: dict[str, Any]) -> Tensor:
    """Images as a network trained on sequences wants to see them: float32 (B, L, C).

    Args:
        images: as :func:`torchstone.data.preprocess` takes them.
        preprocessing: what :meth:`SequenceData.preprocessing` recorded.

    Raises:
        DataError: a file that is missing or is no image.
        CallError: keys of ``preprocessing`` are missing or unknown; no images.
    """
    return RasterBatch(preprocessing).sequences(pixels(images, preprocessing))
