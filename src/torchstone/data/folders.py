"""Folder trees of images.

    FOLDER/<class>/**/<image>                              one pool of images, or
    FOLDER/{train,val,test}/<class>/**/<image>             splits (val and test may be absent)

Hidden files and files that are no images by their extension are passed over, as are images beside the class folders.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np

from torchstone.data.examination import Found
from torchstone.data.stores import FileStore
from torchstone.errors import DataError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".pnm", ".tif", ".tiff", ".webp"})
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
EXPECTED = "expected FOLDER/<class>/<image>, or FOLDER/train/<class>/<image> with val and test beside train, or Parquet"


def find_in_folder(folder: Path) -> Found:
    """The images of a folder tree, in the order split, class, path.

    Raises:
        DataError: no images, one class, an empty class or split, classes that training does not have.
    """
    split_folders = _split_folders(folder)
    by_class = {
        (split, label.name): _images(label) for split, path in split_folders.items() for label in _subfolders(path)
    }
    if not any(by_class.values()):
        raise DataError(f"no images in class folders in {folder} ({_contents(folder)}); {EXPECTED}")
    for split, path in split_folders.items():
        if empty := [label for (its_split, label), images in by_class.items() if its_split == split and not images]:
            raise DataError(f"{path} has class folders without images: {_shown(empty)}")
        if not any(its_split == split for its_split, _ in by_class):
            raise DataError(f"{path} has no class folders ({_contents(path)}); {EXPECTED}")

    classes = sorted(label for split, label in by_class if split == "train")
    if strange := sorted({label for _, label in by_class} - set(classes)):
        raise DataError(f"{folder} has classes without a training folder: {_shown(strange)}")
    if len(classes) < 2:
        raise DataError(f"{folder} has one class, {classes[0]!r}; a classifier needs at least two ({EXPECTED})")

    number = {label: index for index, label in enumerate(classes)}
    rows = [
        (split, number[label], path.relative_to(folder).as_posix())
        for split in ("train", "val", "test")
        for label in classes
        for path in by_class.get((split, label), [])
    ]
    names = [name for _, _, name in rows]
    return Found(
        name=folder.resolve().name,
        where=str(folder),
        classes=classes,
        labels=np.array([label for _, label, _ in rows], dtype=np.int64),
        splits=np.array([split for split, _, _ in rows]),
        names=names,
        images=FileStore(folder, names),
    )


def _split_folders(folder: Path) -> dict[str, Path]:
    """The folder of each split; the folder itself is "train" when its subfolders are classes."""
    subfolders = _subfolders(folder)
    splits = {SPLIT_FOLDERS[path.name.lower()]: path for path in subfolders if path.name.lower() in SPLIT_FOLDERS}
    if "train" not in splits or not _subfolders(splits["train"]):  # a class may be called "train"
        return {"train": folder}
    named = [path.name for path in subfolders if path.name.lower() in SPLIT_FOLDERS]
    if len(named) > len(splits):
        raise DataError(f"{folder} has two folders for one split: {', '.join(named)}")
    if others := [path.name for path in subfolders if path not in splits.values() and _images(path)]:
        raise DataError(f"{folder} has split folders ({', '.join(named)}) and beside them images in {_shown(others)}")
    return splits


def _subfolders(folder: Path) -> list[Path]:
    return [folder / entry.name for entry in _scan(folder) if entry.is_dir() and _counts(entry.name)]


def _images(folder: Path) -> list[Path]:
    """All images below a folder, sorted by path."""
    found: list[Path] = []
    for entry in _scan(folder):
        if not _counts(entry.name):
            continue
        if entry.is_dir():
            found += _images(folder / entry.name)
        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
            found.append(folder / entry.name)
    return found


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error


def _counts(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _contents(folder: Path) -> str:
    """What lies directly in a folder, in words, for an error."""
    entries = [entry for entry in _scan(folder) if _counts(entry.name)]
    if not entries:
        return "it is empty"
    kinds = Counter("folder" if entry.is_dir() else Path(entry.name).suffix.lower() or "no suffix" for entry in entries)
    return "it holds " + ", ".join(
        f"{count} folder{'s' * (count > 1)}" if kind == "folder" else f"{count} {kind} file{'s' * (count > 1)}"
        for kind, count in kinds.most_common(4)
    )


def _shown(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
