"""Parquet files of encoded images.

Columns: ``image`` (bytes of an encoded image, or a struct with ``bytes`` as Hugging Face writes it) and ``label``
(integers or class names). A folder's files whose names, or whose folders' names, begin with train, val or test give
the splits. Class names come from ``classes.json`` (a list) beside the files, else from the files' Hugging Face
metadata, else from the labels themselves. Encoded images are held in memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from torchstone.data.examination import Found
from torchstone.data.stores import EncodedStore
from torchstone.errors import DataError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "class", "fine_label")
SPLIT_NAME = re.compile(r"(train|val|test)")


def parquet_files(path: Path) -> list[Path]:
    """The Parquet file that ``path`` is, or those in the folder and its subfolders."""
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    return sorted([*path.glob("*.parquet"), *path.glob("*/*.parquet")])


def find_in_parquet(path: Path, files: Sequence[Path]) -> Found:
    """The images of Parquet files, in the order of files and rows.

    Raises:
        DataError: a damaged file, columns that are missing or of the wrong type, labels that are missing or out of
            range, fewer than two classes, files that belong to no split while others do.
    """
    folder = path if path.is_dir() else path.parent
    splits = _splits([file.relative_to(folder).as_posix() for file in files], path)
    tables = [_read(file) for file in files]
    classes, labels = _classes(folder, files, tables)
    counts = [len(table) for table in tables]
    row_splits = np.repeat(np.array(splits), counts)
    if len(labels) == 0:
        raise DataError(f"{path} has no rows")
    if len(classes) < 2:
        raise DataError(f"{path} has one class, {classes[0]!r}; a classifier needs at least two")
    untrained = [name for index, name in enumerate(classes) if not np.any((labels == index) & (row_splits == "train"))]
    if untrained:
        raise DataError(f"{path} has no training images of {', '.join(map(repr, untrained[:5]))}")
    return Found(
        name=path.resolve().stem if path.is_file() else path.resolve().name,
        where=str(path),
        classes=classes,
        labels=labels,
        splits=row_splits,
        names=[f"{file.name} row {row}" for file, count in zip(files, counts, strict=True) for row in range(count)],
        images=_store([table.column("image") for table in tables]),
    )


def _splits(names: Sequence[str], path: Path) -> list[str]:
    """The split of each file; all "train" when no name says one."""
    matches = [next(filter(None, map(SPLIT_NAME.match, name.lower().split("/"))), None) for name in names]
    if not any(matches) or path.is_file():
        return ["train"] * len(names)
    if unknown := [name for name, match in zip(names, matches, strict=True) if not match]:
        raise DataError(
            f"{path}: files whose names begin with train, val or test give the splits, so {unknown[0]} belongs to none"
        )
    splits = [match[1] for match in matches if match]
    if "train" not in splits:
        raise DataError(f"{path} has Parquet files for {' and '.join(sorted(set(splits)))} but none for train")
    return splits


def _read(file: Path) -> pa.Table:
    """The columns ``image`` (large_binary) and ``label`` of a file, with its metadata."""
    try:
        schema = pq.read_schema(file)
        image = _column(file, schema, IMAGE_COLUMNS, "encoded images")
        label = _column(file, schema, LABEL_COLUMNS, "integers or class names")
        table = pq.read_table(file, columns=[image, label], partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    images, labels = table.column(image), table.column(label)
    if pa.types.is_struct(images.type) and images.type.get_field_index("bytes") >= 0:
        images = pc.struct_field(images, "bytes")
    if not (pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type)):
        raise DataError(f"{file}: column {image!r} holds {images.type}; encoded images (bytes) are expected")
    if missing := np.flatnonzero(labels.is_null().to_numpy()).tolist():
        rows = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise DataError(f"{file}: column {label!r} has no value in {len(missing)} rows: {rows}")
    if pa.types.is_dictionary(labels.type):
        labels = labels.cast(labels.type.value_type)
    if not (pa.types.is_integer(labels.type) or _is_text(labels.type)):
        raise DataError(f"{file}: column {label!r} holds {labels.type}; integers or class names are expected")
    columns = {"image": pc.fill_null(images.cast(pa.large_binary()), b""), "label": labels}
    return pa.table(columns).replace_schema_metadata({**(schema.metadata or {}), b"label": label.encode()})


def _column(file: Path, schema: pa.Schema, names: Sequence[str], what: str) -> str:
    for name in names:
        if name in schema.names:
            return name
    raise DataError(f"{file} has no column {names[0]!r} ({what}); its columns are {', '.join(schema.names) or 'none'}")


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _classes(folder: Path, files: Sequence[Path], tables: Sequence[pa.Table]) -> tuple[list[str], NDArray[np.int64]]:
    """Class names and the label of every row."""
    if len({_is_text(table.column("label").type) for table in tables}) > 1:
        raise DataError(f"{folder}: some Parquet files have class names as labels, others integers")
    values = np.concatenate([table.column("label").to_numpy() for table in tables])
    named = _named_classes(folder, tables[0])
    if named is None:
        distinct, labels = np.unique(values, return_inverse=True)
        return [str(value) for value in distinct.tolist()], labels.astype(np.int64)
    if _is_text(tables[0].column("label").type):
        number = {name: index for index, name in enumerate(named)}
        labels = np.array([number.get(value, -1) for value in values], dtype=np.int64)
    else:
        labels = values.astype(np.int64)
    start = 0
    for file, table in zip(files, tables, strict=True):
        inside = labels[start : start + len(table)]
        if wrong := np.flatnonzero((inside < 0) | (inside >= len(named))).tolist():
            raise DataError(
                f"{file}: label {values[start + wrong[0]]!s} in row {wrong[0]} ({len(wrong)} such rows) is none of the "
                f"{len(named)} classes ({named[0]!r} = 0 ... {named[-1]!r} = {len(named) - 1})"
            )
        start += len(table)
    return named, labels


def _named_classes(folder: Path, table: pa.Table) -> list[str] | None:
    """Class names by ``classes.json`` or Hugging Face's metadata, in the order of the labels."""
    metadata = table.schema.metadata or {}
    if (file := folder / "classes.json").is_file():
        try:
            names = json.loads(file.read_text())
        except ValueError as error:
            raise DataError(f"{file} is not JSON: {error}") from error
        if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
            raise DataError(f"{file} must be a list of class names in the order of the labels")
        if len(set(names)) < len(names):
            raise DataError(f"{file} names a class twice")
        return names
    if b"huggingface" in metadata:
        features = json.loads(metadata[b"huggingface"]).get("info", {}).get("features", {})
        return features.get(metadata[b"label"].decode(), {}).get("names")
    return None


def _store(columns: Sequence[pa.ChunkedArray]) -> EncodedStore:
    """Arrow's buffers as one flat buffer; an image that is null has no bytes."""
    buffers: list[NDArray[np.uint8]] = []
    starts: list[NDArray[np.int64]] = []
    stops: list[NDArray[np.int64]] = []
    size = 0
    for chunk in (chunk for column in columns for chunk in column.chunks if len(chunk)):
        _, offsets_buffer, data = chunk.buffers()
        offsets = np.frombuffer(offsets_buffer, np.int64, count=chunk.offset + len(chunk) + 1)[chunk.offset :]
        first, last = offsets[0], offsets[-1]
        buffers.append(np.frombuffer(data, dtype=np.uint8)[first:last] if data else np.zeros(0, dtype=np.uint8))
        starts.append(offsets[:-1] - first + size)
        stops.append(offsets[1:] - first + size)
        size += last - first
    return EncodedStore(np.concatenate(buffers), np.concatenate(starts), np.concatenate(stops))
