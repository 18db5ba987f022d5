"""Where images come from: a data set's name, a folder tree or Parquet files."""

from __future__ import annotations

import difflib
import hashlib
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from torchstone.data.examination import ImageSource, Progress, examine, fingerprint
from torchstone.data.stores import PixelStore
from torchstone.errors import DataError

IMAGE_SOURCES = {
    "digits": "scikit-learn's 1797 handwritten digits, 8 x 8 pixels, 10 classes; bundled, no network",
    "cifar10": "60,000 photographs, 32 x 32 pixels, 10 classes; downloaded once through torchvision",
}
CACHE_VARIABLE = "TORCHSTONE_DATA"
CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def open_source(source: str | Path, progress: Progress | None = None) -> ImageSource:
    """Open a data set by name or path and look into every image.

    Args:
        source: ``digits``, ``cifar10`` (a folder of that name is reached as ``./digits``), a folder tree
            (:mod:`torchstone.data.folders`), or a Parquet file or folder (:mod:`torchstone.data.parquet`).
        progress: called with (images looked into, images in all).

    Raises:
        DataError: it does not exist, cannot be read, or is no data set for a classifier; the message says what was
            found and what is expected.
    """
    if source == "digits":
        return _digits()
    if source == "cifar10":
        return _cifar10()
    path = Path(source).expanduser()
    if not os.path.lexists(path):
        raise DataError(_not_there(str(source), path))

    from torchstone.data.folders import EXPECTED, find_in_folder
    from torchstone.data.parquet import find_in_parquet, parquet_files

    if files := parquet_files(path):
        return examine(find_in_parquet(path, files), progress)
    if not path.is_dir():
        raise DataError(f"{path} is a file and not Parquet; {EXPECTED}")
    return examine(find_in_folder(path), progress)


def _not_there(source: str, path: Path) -> str:
    siblings: list[str] = []
    with suppress(OSError):  # a parent that is not there, or that may not be read, has no better name to offer
        siblings = os.listdir(path.parent)
    close = difflib.get_close_matches(path.name, [*IMAGE_SOURCES, *siblings], n=1, cutoff=0.6)
    hint = f"; did you mean {str(path.parent / close[0])!r}?" if close else ""
    return f"no data set {source!r}: neither a name ({', '.join(IMAGE_SOURCES)}) nor a path that exists{hint}"


def _digits() -> ImageSource:
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (N, 8, 8), from 0..16
    return _of_arrays(
        "digits",
        classes=[str(digit) for digit in range(10)],
        images=np.repeat(grey[..., None], 3, axis=-1),
        labels=digits.target.astype(np.int64),
        splits=np.full(len(grey), "train"),
        size=32,
        augment="light",
    )


def _cifar10() -> ImageSource:
    from filelock import FileLock
    from torchvision.datasets import CIFAR10

    folder = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "torchstone" / "data")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "cifar10.lock"):  # several processes may want it at once
            train, test = (CIFAR10(folder, train=train, download=True) for train in (True, False))
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"cifar10 is not in {folder} and could not be downloaded ({error}). Without a network, give a folder of "
            f"Parquet files with image and label columns instead of the name, or set {CACHE_VARIABLE} to a folder "
            "that holds torchvision's cifar-10-batches-py"
        ) from error
    return _of_arrays(
        "cifar10",
        classes=CIFAR10_CLASSES,
        images=np.concatenate([train.data, test.data]),
        labels=np.array([*train.targets, *test.targets], dtype=np.int64),
        splits=np.repeat(["train", "test"], [len(train), len(test)]),
        size=32,
        augment="flip",
    )


def _of_arrays(
    name: str,
    *,
    classes: list[str],
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    splits: NDArray[np.str_],
    size: int,
    augment: str,
) -> ImageSource:
    """A data set that comes as one array (N, H, W, 3)."""
    return ImageSource(
        name=name,
        classes=classes,
        labels=labels,
        splits=splits,
        names=[f"{name} {index}" for index in range(len(labels))],
        images=PixelStore.of_array(images),
        fingerprint=fingerprint(classes, labels, splits, hashlib.sha256(images.tobytes()).digest()),
        shorter_side=min(images.shape[1:3]),
        size=size,
        augment=augment,
    )
