"""A sheet of pictures: a row for each sample, a column for each thing to see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from torchstone.errors import CallError

GAP, LEAST_SIDE = 4, 96


def sheet(columns: Mapping[str, Tensor], preprocessing: Mapping[str, Any]) -> Image.Image:
    """Draw columns of images with their names above.

    Args:
        columns: name -> (N, 3, H, W), normalised; the same N, H and W in all.
        preprocessing: holds ``mean`` and ``std`` of the normalisation, which is undone: x * std + mean.

    Raises:
        CallError: columns of different shapes, or no images.
    """
    shapes = {name: tuple(images.shape) for name, images in columns.items()}
    if len(set(shapes.values())) != 1 or any(len(shape) != 4 or shape[1] != 3 for shape in shapes.values()):
        raise CallError(f"the columns of a sheet are images (N, 3, H, W) of one shape; got {shapes}")
    mean, std = (torch.tensor(preprocessing[name]).view(3, 1, 1) for name in ("mean", "std"))
    rows, _, height, width = next(iter(shapes.values()))
    zoom = max(1, -(-LEAST_SIDE // min(height, width)))
    height, width = height * zoom, width * zoom
    font = ImageFont.load_default(size=14)
    top = 20 + GAP
    size = GAP + len(columns) * (width + GAP), top + rows * (height + GAP)
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    for column, (name, images) in enumerate(columns.items()):
        left = GAP + column * (width + GAP)
        draw.text((left, GAP), name, fill="black", font=font)
        pixels = (images.float().cpu() * std + mean).clamp(0, 1).mul(255).round().byte()
        for row, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):  # (H, W, 3)
            picture = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
            page.paste(picture, (left, top + row * (height + GAP)))
    return page
