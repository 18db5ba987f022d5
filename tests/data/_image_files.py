"""Small image sets, generated."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(seed: int, height: int = 12, width: int = 10) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_folder(root: Path, counts: dict[str, int], kind: str = "PNG", **shape) -> Path:
    """One folder a class (a path: "train/cat"), so many images in each, no two alike."""
    seed = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            (root / name / f"{index:03}.{kind.lower()}").write_bytes(encoded(picture(seed, **shape), kind))
            seed += 1
    return root


def write_parquet(
    file: Path, labels: list, *, images: list | None = None, metadata: dict | None = None, **names
) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [encoded(picture(seed)) for seed in range(len(labels))] if images is None else images
    table = pa.table({names.get("image", "image"): images, names.get("label", "label"): labels})
    pq.write_table(table.replace_schema_metadata(metadata), file)
    return file
