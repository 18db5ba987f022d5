"""The two products of neighbourhood attention: scores of a pixel's neighbours, and weighted sums of them."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from torchstone.errors import CallError, ShapeError
from torchstone.ops.dispatch import check_operands
from torchstone.ops.neighbourhood import cuda, reference

__all__ = ["neighbour_scores", "neighbour_sum"]


def neighbour_scores(
    queries: Float[Tensor, "batch heads dim height width"],
    keys: Float[Tensor, "batch heads dim height width"],
    window: int = 3,
) -> Float[Tensor, "batch heads taps height width"]:
    """Products of every pixel's query with the keys of the w x w pixels around it.

    ``s[j, n] = sum_c q[c, n] k[c, n + o_j]``, the offsets ``o_j`` running row by row from (-(w//2), -(w//2)).

    Keys outside the map are zero, and so are their scores. Nothing of the size of w x w copies of the keys is ever
    made. The sums are in float32 (float64 for float64 operands); half-precision operands give a half-precision result.

    Args:
        queries: (B, h, d, H, W).
        keys: (B, h, d, H, W).
        window: w, pixels, odd.

    Returns:
        (B, h, w * w, H, W).

    Raises:
        ShapeError: a rank or a size that does not fit.
        CallError: a window that is not odd, numbers that are not real floating-point ones, tensors on other devices.

    Source:
        Shi, TransNeXt, CVPR 2024, Section 3.2 (pixel-focused attention).

    Example:
        >>> q, k = torch.randn(2, 3, 8, 5, 7), torch.randn(2, 3, 8, 5, 7)
        >>> neighbour_scores(q, k, 3).shape
        torch.Size([2, 3, 9, 5, 7])
    """
    _check_map("queries", queries)
    if keys.shape != queries.shape:
        raise ShapeError(f"keys must be as the queries, {tuple(queries.shape)}, got {tuple(keys.shape)}")
    _check_window(window)
    check_operands(queries=queries, keys=keys)
    scores = cuda.scores if cuda.takes(queries, keys, dim=queries.shape[2], window=window) else reference.scores
    return scores(queries, keys, window)


def neighbour_sum(
    weights: Float[Tensor, "batch heads taps height width"],
    values: Float[Tensor, "batch heads dim height width"],
    window: int = 3,
) -> Float[Tensor, "batch heads dim height width"]:
    """Sums of the values of the w x w pixels around every pixel, with weights of its own.

    ``y[c, n] = sum_j weights[j, n] values[c, n + o_j]``, the offsets as in :func:`neighbour_scores`.

    Values outside the map are zero. The sums are in float32 (float64 for float64 operands).

    Args:
        weights: (B, h, w * w, H, W).
        values: (B, h, d, H, W).
        window: w, pixels, odd.

    Returns:
        (B, h, d, H, W).

    Raises:
        ShapeError: a rank or a size that does not fit.
        CallError: a window that is not odd, numbers that are not real floating-point ones, tensors on other devices.

    Source:
        Shi, TransNeXt, CVPR 2024, Section 3.2 (pixel-focused attention).

    Example:
        >>> weights, values = torch.randn(2, 3, 9, 5, 7), torch.randn(2, 3, 8, 5, 7)
        >>> neighbour_sum(weights, values, 3).shape
        torch.Size([2, 3, 8, 5, 7])
    """
    _check_map("values", values)
    _check_window(window)
    expected = (*values.shape[:2], window**2, *values.shape[3:])
    if weights.shape != expected:
        raise ShapeError(
            f"weights of {window}x{window} neighbours must be {expected} for values of {tuple(values.shape)}, "
            f"got {tuple(weights.shape)}"
        )
    check_operands(weights=weights, values=values)
    total = cuda.total if cuda.takes(weights, values, dim=values.shape[2], window=window) else reference.total
    return total(weights, values, window, False)


def _check_map(name: str, x: Tensor) -> None:
    if x.ndim != 5:
        raise ShapeError(f"{name} must be (B, heads, dim, H, W), got a tensor of shape {tuple(x.shape)}")


def _check_window(window: int) -> None:
    if window < 1 or window % 2 == 0:
        raise CallError(f"the window must be an odd number of pixels, got {window}")
