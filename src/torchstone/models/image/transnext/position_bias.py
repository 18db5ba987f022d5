"""The bias of pooled keys as a function of where they lie (log-CPB), and its deploy form, which keeps its values."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from torchstone.errors import ShapeError
from torchstone.models.image.transnext.gaze import Gaze, RelativePositions, Size, times
from torchstone.models.image.transnext.initialization import linear

HIDDEN = 512
"""Channels of the MLP."""


class PositionBias(nn.Module):
    """A bias of attention logits that depends on the offset from query to key alone.

    Args:
        gaze: the geometry.

    Shape:
        (H, W) of a map -> (1, heads, H * W, P + spare): P pooled cells *from the last to the first*
        (as :meth:`RelativePositions.spread` has them), then ``spare`` columns of zeros for keys that are no cells.
    """

    def __init__(self, gaze: Gaze) -> None:
        super().__init__()
        self.gaze = gaze

    def forward(self, size: Size, spare: int = 0, dtype: torch.dtype | None = None) -> Float[Tensor, "1 h n keys"]:
        own = self.gaze.positions == "extrapolate" or size == self.gaze.trained
        offsets = self.gaze.offsets(size if own else self.gaze.trained)
        pairs = offsets.spread(self.values(offsets))
        return _laid_out(pairs if own else _resized(pairs, self.gaze.pooled(size), size), spare, dtype)

    def values(self, offsets: RelativePositions) -> Float[Tensor, "heads u v"]:
        """The bias of every offset in the table."""
        raise NotImplementedError


class ContinuousPositionBias(PositionBias):
    """The bias is an MLP of the offset: ``W2 ReLU(W1 r)``, r its log-spaced coordinates.

    Args:
        heads: attention heads.
        gaze: the geometry.

    Source:
        Shi, TransNeXt, CVPR 2024, Section 3.4.
    """

    def __init__(self, heads: int, gaze: Gaze) -> None:
        super().__init__(gaze)
        self.fc1 = linear(2, HIDDEN)
        self.fc2 = linear(HIDDEN, heads)

    def values(self, offsets: RelativePositions) -> Float[Tensor, "heads u v"]:
        return self.fc2(F.relu(self.fc1(offsets.table), inplace=True)).permute(2, 0, 1).contiguous()


class FixedPositionBias(PositionBias):
    """The deploy form: the bias of the trained map's offsets, computed once; the pairs are still views of it."""

    table: Tensor

    def __init__(self, position: ContinuousPositionBias) -> None:
        super().__init__(position.gaze)
        self.register_buffer("table", position.values(self.gaze.offsets(self.gaze.trained)).detach())

    def forward(self, size: Size, spare: int = 0, dtype: torch.dtype | None = None) -> Float[Tensor, "1 h n keys"]:
        if self.gaze.positions == "extrapolate" and size != self.gaze.trained:
            raise ShapeError(
                f"the fused network has the positions of maps of {times(self.gaze.trained)}, got {times(size)}: give "
                "images of the size that it was built for, or do not fuse it"
            )
        return super().forward(size, spare, dtype)

    def values(self, offsets: RelativePositions) -> Float[Tensor, "heads u v"]:
        return self.table


def _laid_out(pairs: Float[Tensor, "heads qh qw kh kw"], spare: int, dtype: torch.dtype | None) -> Tensor:
    """Queries and keys each on one axis, as fused attention reads them; the views of the table are copied once."""
    heads, height, width, *keys = pairs.shape
    cells = prod(keys)
    bias = pairs.new_empty((1, heads, height * width, cells + spare), dtype=dtype or pairs.dtype)
    bias[..., :cells].unflatten(3, keys).unflatten(2, (height, width)).copy_(pairs)
    bias[..., cells:] = 0
    return bias


def _resized(pairs: Float[Tensor, "heads qh qw kh kw"], keys: Size, size: Size) -> Tensor:
    """The bias of one map's pairs for a map of another size: bilinear over keys and over queries."""
    pixels = pairs.shape[1:3]
    bias = F.interpolate(pairs.flatten(1, 2), size=keys, mode="bilinear")  # (heads, Qh * Qw, Kh', Kw')
    bias = bias.flatten(2).transpose(1, 2).unflatten(2, pixels)
    bias = F.interpolate(bias, size=size, mode="bilinear")  # (heads, Kh' * Kw', Qh', Qw')
    return bias.unflatten(1, keys).permute(0, 3, 4, 1, 2)
