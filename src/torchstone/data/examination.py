"""From images that were found to images that can be used: decoded or verified, the unreadable ones set aside."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from torchstone.data.decoding import UnreadableImage, decode, image_size, verify
from torchstone.data.stores import EncodedImages, ImageStore, PixelStore
from torchstone.errors import DataError

IN_MEMORY_BYTES = 1 << 30  # a set whose pixels take no more is decoded once and kept
UNREADABLE_FRACTION = 0.1  # more than this is no accident
PROBED = 128  # images whose headers tell the usual size
CHUNK = 64  # images that a thread takes at a time
SHOWN = 3  # names in a message

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Found:
    """Images as they lie in a folder or a table, not looked into yet.

    Attributes:
        name: of the data set.
        where: what to call it in messages.
        classes: names, in the order of the labels.
        labels: (N,) int64.
        splits: (N,) of "train", "val", "test".
        names: (N,) what the user knows each image by.
        images: the files or encoded bytes.
    """

    name: str
    where: str
    classes: list[str]
    labels: NDArray[np.int64]
    splits: NDArray[np.str_]
    names: Sequence[str]
    images: EncodedImages


@dataclass(frozen=True)
class ImageSource:
    """Readable images with their classes, and with the splits that the data set brings itself.

    Attributes:
        name, classes, labels, splits, names: as in :class:`Found`, the readable images only.
        images: gives image i in RGB.
        fingerprint: SHA-256 of classes, labels, splits and content; the place where the data lie does not matter.
            Content is the bytes of the images or, where files are too many to be read, their names and sizes.
        shorter_side: its median, in pixels.
        size: the network input that suits the data, if the data set knows.
        augment: what the augmentation ``auto`` means, if the data set knows.
        skipped: unreadable images with the reason.
    """

    name: str
    classes: list[str]
    labels: NDArray[np.int64]
    splits: NDArray[np.str_]
    names: Sequence[str]
    images: ImageStore
    fingerprint: str
    shorter_side: int
    size: int | None = None
    augment: str | None = None
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Chunk:
    digest: bytes
    pixels: NDArray[np.uint8]  # flat, of the readable images one after the other; empty where they are not kept
    shapes: list[tuple[int, int]]
    unreadable: dict[int, str]


def examine(found: Found, progress: Progress | None = None) -> ImageSource:
    """Look into every image: decode all if they fit into memory, else verify them (:func:`decoding.verify`).

    Args:
        found: at least one image.
        progress: called with (images done, images in all).

    Raises:
        DataError: more than 10 % of the images are unreadable, or a class or split has no readable image left.
    """
    total = len(found.images)
    shorter_side, pixels = _probe(found.images)
    keep = 3 * pixels * total <= IN_MEMORY_BYTES
    starts = range(0, total, CHUNK)
    stops = [min(start + CHUNK, total) for start in starts]
    chunks: list[_Chunk] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for stop, chunk in zip(stops, threads.map(partial(_look, found.images, keep=keep), starts, stops), strict=True):
            chunks.append(chunk)
            if progress:
                progress(stop, total)

    unreadable = {index: reason for chunk in chunks for index, reason in chunk.unreadable.items()}
    skipped = {found.names[index]: reason for index, reason in unreadable.items()}
    good = np.setdiff1d(np.arange(total), np.array(list(unreadable), dtype=np.int64))
    labels, splits = found.labels[good], found.splits[good]
    _report(found, skipped, labels, splits)

    images: ImageStore = found.images.select(good)
    if keep:
        shapes = np.array([shape for chunk in chunks for shape in chunk.shapes], dtype=np.int64)
        images = PixelStore.of_flat(np.concatenate([chunk.pixels for chunk in chunks]), shapes)
    content = hashlib.sha256(b"".join(chunk.digest for chunk in chunks)).digest()
    return ImageSource(
        name=found.name,
        classes=found.classes,
        labels=labels,
        splits=splits,
        names=[found.names[index] for index in good],
        images=images,
        fingerprint=fingerprint(found.classes, labels, splits, content),
        shorter_side=shorter_side,
        skipped=skipped,
    )


def fingerprint(classes: Sequence[str], labels: NDArray[np.int64], splits: NDArray[np.str_], content: bytes) -> str:
    """SHA-256 of a data set's identity; ``content`` stands for the images in their order."""
    digest = hashlib.sha256(json.dumps([list(classes), splits.tolist()]).encode())
    digest.update(labels.astype("<i8").tobytes())
    digest.update(content)
    return digest.hexdigest()


def _probe(images: EncodedImages) -> tuple[int, float]:
    """Median shorter side and mean number of pixels, from the headers of images spread over the set."""
    sizes = []
    for index in np.unique(np.linspace(0, len(images) - 1, PROBED).astype(np.int64)).tolist():
        try:
            sizes.append(image_size(images.source(index)))
        except UnreadableImage:  # met again, and reported, when every image is looked into
            continue
    if not sizes:
        return 0, 0.0
    heights_widths = np.array(sizes, dtype=np.int64)
    return int(np.median(heights_widths.min(axis=1))), float(heights_widths.prod(axis=1).mean())


def _look(images: EncodedImages, start: int, stop: int, keep: bool) -> _Chunk:
    """Decode (``keep``) or verify the images start..stop-1."""
    pixels: list[NDArray[np.uint8]] = []
    unreadable: dict[int, str] = {}
    digest = hashlib.sha256()
    for index in range(start, stop):
        try:
            if keep:
                identity = images.encoded(index)
                pixels.append(np.asarray(decode(identity)))
            else:
                identity = images.identity(index)
                verify(images.source(index))
        except UnreadableImage as error:
            unreadable[index] = str(error)
        except OSError as error:
            unreadable[index] = error.strerror or str(error)
        else:
            digest.update(len(identity).to_bytes(8, "little"))
            digest.update(identity)
    flat = np.concatenate([image.reshape(-1) for image in pixels]) if pixels else np.zeros(0, dtype=np.uint8)
    return _Chunk(digest.digest(), flat, [image.shape[:2] for image in pixels], unreadable)


def _report(found: Found, skipped: dict[str, str], labels: NDArray[np.int64], splits: NDArray[np.str_]) -> None:
    """One warning for a few unreadable images, an error where they are many or leave nothing of a class or split."""
    if not skipped:
        return
    shown = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:SHOWN])
    more = f"; and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else ""
    message = f"{found.where}: {len(skipped)} of {len(found.images)} images cannot be read ({shown}{more})"
    if len(skipped) > UNREADABLE_FRACTION * len(found.images):
        raise DataError(f"{message}. That is more than {UNREADABLE_FRACTION:.0%}: repair or remove them")
    for split in np.unique(found.splits).tolist():
        if split not in splits:
            raise DataError(f"{message}. No image of the {split} split is left")
    for label, name in enumerate(found.classes):
        if not np.any((labels == label) & (splits == "train")):
            raise DataError(f"{message}. No training image of class {name!r} is left")
    warnings.warn(f"{message}; they are left out", stacklevel=2)
