"""The definition of the two products, one offset of the window after the other.

Each offset is a shifted view of a map padded with zeros, so that w x w copies of it (what ``unfold`` makes) never
exist. A graph that is being captured gets all offsets as one strided view instead, in a few operators that a compiler
fuses. With :func:`scores` and both directions of :func:`total` the gradients are products of the same kinds::

    s[j, n] = sum_c q[c, n] k[c, n + o_j]      dq = total(ds, k)             dk = total(ds, q, back=True)
    y[c, n] = sum_j w[j, n] v[c, n + o_j]      dw = scores(dy, v)            dv = total(w, dy, back=True)
    z[c, n] = sum_j w[j, n - o_j] v[c, n - o_j]      (back=True)
                                               dw = scores(v, dz)            dv = total(w, dz)
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from torchstone.ops.dispatch import accurate


def scores(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    """``s[j, n] = sum_c q[c, n] k[c, n + o_j]``: (B, h, d, H, W) twice -> (B, h, w * w, H, W)."""
    dtype = accurate(queries, keys)
    q, k = queries.to(dtype), _framed(keys.to(dtype), window)
    if torch.compiler.is_compiling():
        found = (q[:, :, :, None, None] * _windows(k, q.shape)).sum(2).flatten(2, 3)
    else:
        found = torch.stack([(q * _moved(k, tap, window)).sum(2) for tap in range(window**2)], 2)
    return found.to(torch.promote_types(queries.dtype, keys.dtype))


def total(weights: Tensor, values: Tensor, window: int, back: bool) -> Tensor:
    """``y[c, n] = sum_j w[j, n] v[c, n + o_j]``, or with ``back`` what each pixel gets from those that weigh it.

    Args:
        weights: (B, h, w * w, H, W).
        values: (B, h, d, H, W).
        window: w.
        back: ``y[c, n] = sum_j w[j, n - o_j] v[c, n - o_j]`` instead.

    Returns:
        (B, h, d, H, W).
    """
    dtype = accurate(weights, values)
    w, v = weights.to(dtype), values.to(dtype)
    taps = range(window**2)
    if back:
        opposite = window**2 - 1
        y = torch.zeros_like(v)
        for tap in taps:
            y = y + _moved(_framed(w[:, :, tap : tap + 1] * v, window), opposite - tap, window)
    elif torch.compiler.is_compiling():
        y = (w.unflatten(2, (1, window, window)) * _windows(_framed(v, window), v.shape)).sum((3, 4))
    else:
        framed = _framed(v, window)
        y = w[:, :, :1] * _moved(framed, 0, window)
        for tap in taps[1:]:
            y = torch.addcmul(y, w[:, :, tap : tap + 1], _moved(framed, tap, window))
    return y.to(torch.promote_types(weights.dtype, values.dtype))


def macs(values: Sequence[int], taps: int) -> int:
    """Multiply-accumulates of either product, from the shape of the map and w * w."""
    return prod(values) * taps


def _framed(x: Tensor, window: int) -> Tensor:
    """The map with as many zeros around it as the window reaches."""
    return F.pad(x, (window // 2,) * 4)


def _windows(framed: Tensor, shape: Sequence[int]) -> Tensor:
    """What lies at every tap's offset from every pixel, a view of the framed map: (B, h, d, w, w, H, W)."""
    return framed.unfold(3, shape[3], 1).unfold(4, shape[4], 1)


def _moved(framed: Tensor, tap: int, window: int) -> Tensor:
    """What lies at a tap's offset from every pixel, a view of the framed map."""
    height, width = (side - window + 1 for side in framed.shape[-2:])
    down, right = divmod(tap, window)
    return framed[..., down : down + height, right : right + width]
