"""A bias of attention logits for every offset between two pixels of a window."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class RelativePositionBias(nn.Module):
    """``B[h, i, j] = table[h, y_j - y_i + P - 1, x_j - x_i + Q - 1]`` for pixels i (query), j (key) of a P x Q window.

    Args:
        window: (P, Q), pixels.
        heads: attention heads.

    Shape:
        () -> (heads, P Q, P Q)
    """

    offsets: Tensor

    def __init__(self, window: tuple[int, int], heads: int) -> None:
        super().__init__()
        p, q = window
        self.relative_position_bias_table = nn.Parameter(torch.empty(heads, 2 * p - 1, 2 * q - 1))
        nn.init.normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("offsets", _offsets(p, q), persistent=False)

    def forward(self) -> Float[Tensor, "h n n"]:
        return self.relative_position_bias_table.flatten(1)[:, self.offsets]


def resize_bias_table(table: Float[Tensor, "h p q"], size: tuple[int, int]) -> Float[Tensor, "h r s"]:
    """A bias table for windows of another size, bilinearly interpolated between the centres of its cells.

    Args:
        table: (heads, 2P - 1, 2Q - 1).
        size: the (2P' - 1, 2Q' - 1) of the new table.
    """
    return F.interpolate(table[None], size=size, mode="bilinear", align_corners=False)[0]


def _offsets(p: int, q: int) -> Tensor:
    """Index of every pair's cell in the flattened table, (P Q, P Q)."""
    y, x = (side.flatten() for side in torch.meshgrid(torch.arange(p), torch.arange(q), indexing="ij"))
    return (y[None] - y[:, None] + p - 1) * (2 * q - 1) + x[None] - x[:, None] + q - 1
