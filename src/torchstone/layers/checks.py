"""Early errors for inputs that a network cannot take."""

from __future__ import annotations

from torch import Tensor

from torchstone.errors import ShapeError


def check_images(x: Tensor, in_chans: int, min_size: int = 1, multiple_of: int = 1) -> None:
    """Check a batch of images before the first layer meets it.

    Args:
        x: a batch of images, (B, in_chans, H, W).
        in_chans: the channels that the network was built for.
        min_size: the smallest height and width, in pixels.
        multiple_of: the number that height and width must be divisible by.

    Raises:
        ShapeError: says what was given and what would be right.
    """
    if x.ndim != 4:
        raise ShapeError(f"expected a batch of images (B, {in_chans}, H, W), got a tensor of shape {tuple(x.shape)}")
    channels, height, width = x.shape[1:]
    if channels != in_chans:
        raise ShapeError(
            f"this network takes {in_chans} channels, got {channels} in {tuple(x.shape)}; "
            f"build it with in_chans={channels} to use such images"
        )
    if min(height, width) < min_size:
        raise ShapeError(f"images must be at least {min_size} pixels high and wide, got {height}x{width}")
    if height % multiple_of or width % multiple_of:
        fitting = [max(min_size, round(side / multiple_of) * multiple_of) for side in (height, width)]
        raise ShapeError(
            f"height and width must be multiples of {multiple_of}, got {height}x{width}; "
            f"the nearest fitting size is {fitting[0]}x{fitting[1]}"
        )
