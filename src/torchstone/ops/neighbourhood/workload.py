"""Neighbourhood attention by the two products, beside unfolded maps and convolution."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from torchstone.ops.neighbourhood import neighbour_scores, neighbour_sum, reference
from torchstone.ops.workload import Contender, Shapes, Workload

_HEAD, _WINDOW = 24, 3


def _shapes(side: int, settings: Mapping[str, int]) -> Shapes:
    return ((settings["batch"], settings["heads"], _HEAD, side, side),) * 3


def _products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return neighbour_sum(neighbour_scores(q, k, _WINDOW).softmax(2), v, _WINDOW)


def _definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return reference.total(reference.scores(q, k, _WINDOW).softmax(2), v, _WINDOW, False)


def _unfolded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Copies of keys and values for every offset, and a small matrix product for every pixel."""
    batch, heads, dim, height, width = q.shape
    keys, values = (
        F.unfold(x.flatten(1, 2), _WINDOW, padding=_WINDOW // 2).view(batch, heads, dim, -1, height * width)
        for x in (k, v)
    )  # (B, h, d, w * w, N)
    weights = (q.flatten(3).transpose(2, 3)[..., None, :] @ keys.permute(0, 1, 4, 2, 3)).softmax(-1)
    return (weights @ values.permute(0, 1, 4, 3, 2)).squeeze(3).transpose(2, 3).reshape(q.shape)


WORKLOAD = Workload(
    op="neighbourhood",
    summary=f"attention to {_WINDOW}x{_WINDOW} neighbours, heads of {_HEAD} channels",
    size="side",
    sizes=(7, 14, 28, 56),
    settings={"batch": 4, "heads": 4},
    shapes=_shapes,
    contenders={
        "neighbourhood": Contender(_products, True, "the two products; kernels on a GPU where they fit"),
        "reference": Contender(_definition, True, "their definition, one offset of the window after the other"),
        "unfold": Contender(_unfolded, True, "copies of the map for every offset, as code without an extension does"),
    },
)
