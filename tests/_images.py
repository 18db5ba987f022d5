"""A few generated images that a network can tell apart, as a folder tree."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, *, classes: int = 2, each: int = 12, side: int = 16) -> Path:
    """``folder/<class>/<n>.png``: noise around a bright patch whose place tells the class."""
    generator = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for index in range(each):
            pixels = generator.integers(0, 90, size=(side, side, 3), dtype=np.uint8)
            corner = label * side // classes
            pixels[corner : corner + side // classes] += 120
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{index:02d}.png")
    return folder
