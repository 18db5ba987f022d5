"""Cutting a map into groups of pixels for attention within each group: windows, and grids of distant pixels."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

Size = tuple[int, int]


def window_partition(x: Float[Tensor, "b h w c"], size: Size) -> Float[Tensor, "n p q c"]:
    """Windows: groups of P x Q neighbouring pixels.

    Args:
        x: a map (B, H, W, C); P divides H and Q divides W.
        size: (P, Q).

    Returns:
        (B * H/P * W/Q, P, Q, C): the windows of an image row by row, image after image.
    """
    _, height, width, channels = x.shape
    p, q = size
    x = x.unflatten(2, (width // q, q)).unflatten(1, (height // p, p))  # (B, H/P, P, W/Q, Q, C)
    return x.transpose(2, 3).reshape(-1, p, q, channels)


def window_merge(windows: Float[Tensor, "n p q c"], height: int, width: int) -> Float[Tensor, "b h w c"]:
    """The map of its windows; the inverse of :func:`window_partition`."""
    _, p, q, channels = windows.shape
    x = windows.reshape(-1, height // p, width // q, p, q, channels).transpose(2, 3)
    return x.reshape(-1, height, width, channels)


def grid_partition(x: Float[Tensor, "b h w c"], size: Size) -> Float[Tensor, "n p q c"]:
    """Grids: groups of P x Q pixels that lie H/P and W/Q apart and span the whole map.

    Args:
        x: a map (B, H, W, C); P divides H and Q divides W.
        size: (P, Q).

    Returns:
        (B * H/P * W/Q, P, Q, C): the grids of an image by the offset of their first pixel, image after image.
    """
    _, height, width, channels = x.shape
    p, q = size
    x = x.unflatten(2, (q, width // q)).unflatten(1, (p, height // p))  # (B, P, H/P, Q, W/Q, C)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, p, q, channels)


def grid_merge(grids: Float[Tensor, "n p q c"], height: int, width: int) -> Float[Tensor, "b h w c"]:
    """The map of its grids; the inverse of :func:`grid_partition`."""
    _, p, q, channels = grids.shape
    x = grids.reshape(-1, height // p, width // q, p, q, channels).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(-1, height, width, channels)
