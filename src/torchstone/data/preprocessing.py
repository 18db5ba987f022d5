"""What happens to an image before a network sees it, when nothing about it is random.

A preprocessing is a JSON dictionary that a run keeps, so that prediction treats an image exactly as evaluation did:

    {"size": 32, "mean": [...], "std": [...], "interpolation": "bicubic", "crop_pct": 1.0}

The shorter side is resized to size / crop_pct, the central size x size square is cut out, and
x <- (x / 255 - mean) / std in each channel (timm's evaluation transform).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor

from torchstone.data.decoding import UnreadableImage, decode, to_rgb
from torchstone.errors import CallError, DataError

INTERPOLATION = "bicubic"
KEYS = ("size", "mean", "std", "interpolation", "crop_pct")

ImageTransform = Callable[[Image.Image], Tensor]
AnyImage = str | Path | bytes | Image.Image | np.ndarray


def imagenet_preprocessing(size: int, crop_pct: float) -> dict[str, Any]:
    """The preprocessing with ImageNet's channel statistics, which pretrained networks expect."""
    return {
        "size": size,
        "mean": list(IMAGENET_DEFAULT_MEAN),
        "std": list(IMAGENET_DEFAULT_STD),
        "interpolation": INTERPOLATION,
        "crop_pct": crop_pct,
    }


def evaluation_transform(preprocessing: dict[str, Any]) -> ImageTransform:
    """timm's evaluation transform up to bytes: RGB image -> uint8 (3, size, size); :class:`Normalise` does the rest."""
    return create_transform(
        preprocessing["size"],
        interpolation=preprocessing["interpolation"],
        crop_pct=preprocessing["crop_pct"],
        normalize=False,
    )


class Normalise:
    """uint8 (B, 3, H, W) -> float32, x <- (x / 255 - mean) / std: timm's arithmetic, once a batch."""

    def __init__(self, preprocessing: dict[str, Any]) -> None:
        self.mean = torch.tensor(preprocessing["mean"]).view(3, 1, 1)
        self.std = torch.tensor(preprocessing["std"]).view(3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().div_(255).sub_(self.mean).div_(self.std)


def preprocess(images: AnyImage | Sequence[AnyImage], preprocessing: dict[str, Any]) -> Tensor:
    """Images as a trained network wants to see them.

    Args:
        images: one image or several: paths, encoded bytes, PIL images, or uint8 arrays (H, W) or (H, W, 3).
        preprocessing: what :meth:`torchstone.data.ImageData.preprocessing` recorded.

    Returns:
        float32 (B, 3, size, size).

    Raises:
        DataError: a file that is missing or is no image.
        CallError: keys of ``preprocessing`` are missing or unknown; no images.
    """
    prepared = pixels(images, preprocessing)
    return Normalise(preprocessing)(prepared)


def pixels(images: AnyImage | Sequence[AnyImage], preprocessing: dict[str, Any]) -> Tensor:
    """Images as :func:`preprocess` takes them, resized and cut: uint8 (B, 3, size, size)."""
    if set(preprocessing) != set(KEYS):
        raise CallError(f"a preprocessing has the keys {', '.join(KEYS)}; this one has {', '.join(preprocessing)}")
    several: Sequence[Any] = [images] if isinstance(images, str | Path | bytes | Image.Image | np.ndarray) else images
    if not len(several):
        raise CallError("no images to preprocess")
    transform = evaluation_transform(preprocessing)
    return torch.stack([transform(_picture(image)) for image in several])


def _picture(image: AnyImage) -> Image.Image:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
            raise DataError(f"an array must be uint8 (H, W) or (H, W, 3); it is {image.dtype} {image.shape}")
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if not isinstance(image, bytes) and not Path(image).is_file():
        raise DataError(f"no such image file: {image}")
    try:
        return decode(image if isinstance(image, bytes) else Path(image))
    except UnreadableImage as error:
        name = "the given bytes" if isinstance(image, bytes) else image
        raise DataError(f"{name} cannot be read as an image: {error}") from error
