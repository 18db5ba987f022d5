"""Scores of a pixel's neighbours by shifted views and by unfolded copies of the map."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from torchstone.ops.neighbourhood import neighbour_scores, reference
from torchstone.ops.workload import Contender, Shapes, Workload

_HEAD, _WINDOW = 24, 3


def _shapes(side: int, settings: Mapping[str, int]) -> Shapes:
    return ((settings["batch"], settings["heads"], _HEAD, side, side),) * 2


def _definition(queries: Tensor, keys: Tensor) -> Tensor:
    return reference.scores(queries, keys, _WINDOW)


def _unfolded(queries: Tensor, keys: Tensor) -> Tensor:
    """Copies of the keys for every offset, and a small matrix product for every pixel."""
    batch, heads, dim, height, width = queries.shape
    copies = F.unfold(keys.flatten(1, 2), _WINDOW, padding=_WINDOW // 2).view(batch, heads, dim, -1, height * width)
    scores = queries.flatten(3).transpose(2, 3)[..., None, :] @ copies.permute(0, 1, 4, 2, 3)  # (B, h, N, 1, w * w)
    return scores.squeeze(3).transpose(2, 3).reshape(batch, heads, -1, height, width)


WORKLOAD = Workload(
    op="neighbour_scores",
    summary=f"products of queries with the keys of {_WINDOW}x{_WINDOW} neighbours, heads of {_HEAD} channels",
    size="side",
    sizes=(7, 14, 28, 56),
    settings={"batch": 4, "heads": 4},
    shapes=_shapes,
    contenders={
        "neighbour_scores": Contender(neighbour_scores, True, "kernels on a GPU where they fit, else its definition"),
        "reference": Contender(_definition, True, "its definition, one offset of the window after the other"),
        "unfold": Contender(_unfolded, True, "copies of the map for every offset, as code without an extension does"),
    },
)
