"""What an attention knows of its map: where pooled cells lie, which neighbours are there, how many keys that makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from torchstone.errors import CallError, unknown_name

Size = tuple[int, int]

POSITIONS = ("extrapolate", "interpolate")
LENGTHS = ("image", "trained")


@dataclass(frozen=True)
class RelativePositions:
    """Where pooled keys lie, seen from every query.

    Attributes:
        table: log-spaced coordinates (down, right) of all offsets that occur, (U, V, 2).
        rows: for key row k and query row q the first index into ``table``, (K_h, Q_h).
        columns: for key column k and query column q the second, (K_w, Q_w).
        strides: by axis, table entries from a cell to the next where queries are one apart and cells evenly spaced,
            else None.
    """

    table: Float[Tensor, "u v 2"]
    rows: Int[Tensor, "kh qh"]
    columns: Int[Tensor, "kw qw"]
    strides: tuple[int | None, int | None]

    @property
    def index(self) -> Int[Tensor, " pairs"]:
        """For every query, and of it every key, the row of ``table.flatten(0, 1)``; maps are read row by row."""
        rows, columns = self.rows.t()[:, None, :, None], self.columns.t()[None, :, None, :]
        return (rows * self.table.shape[1] + columns).flatten()

    def spread(self, values: Float[Tensor, "heads u v"]) -> Float[Tensor, "heads qh qw kh kw"]:
        """What a function of the offsets, given on the table, is for all pairs; keys run from the last to the first.

        Offsets grow with the query and fall with the key. Against the order of keys they grow with both, so that the
        pairs of evenly spaced cells are overlapping windows of the table, of which nothing is copied.
        """
        for axis, (index, stride) in enumerate(zip((self.rows, self.columns), self.strides, strict=True), start=1):
            if stride:
                values = values.unfold(axis, index.shape[1], stride)
            else:
                chosen = values.index_select(axis, index.flip(0).flatten())
                values = chosen.unflatten(axis, index.shape).movedim(axis + 1, -1)
        return values.permute(0, 3, 4, 1, 2)


def relative_positions(queries: Size, keys: Size, trained: Size, device: Any = None) -> RelativePositions:
    """Log-spaced offsets between the pixels of a map and the cells of the same map pooled.

    ``sign(r) log2(1 + |r|) / 3`` with ``r = 8 (q - k) / (T - 1)``: q is a pixel's row, k the mean row of a cell, T the
    rows of the map in training; columns alike. A larger map has the same coordinates among its inner offsets, and ones
    beyond, so that a function of them extends to it.

    Args:
        queries: height and width of the map.
        keys: of the pooled map, at most as large (cells as of ``adaptive_avg_pool2d``).
        trained: of the map that the network was trained with, at least 2 x 2.
        device: where the result lies.

    Raises:
        CallError: sizes that do not fit.

    Source:
        Shi, TransNeXt, CVPR 2024, Section 3.4, after Swin Transformer V2.
    """
    if any(t < 2 for t in trained):
        raise CallError(f"offsets are measured in trained maps of at least 2x2 pixels, got {times(trained)}")
    if any(not 1 <= k <= q for q, k in zip(queries, keys, strict=True)):
        raise CallError(f"a map of {times(queries)} pixels cannot be pooled to {times(keys)}")
    axes = [_axis_offsets(q, k, t, device) for q, k, t in zip(queries, keys, trained, strict=True)]
    (down, rows, first), (right, columns, second) = axes
    table = torch.stack(torch.meshgrid(down, right, indexing="ij"), -1)
    return RelativePositions(table, rows, columns, (first, second))


def _axis_offsets(queries: int, keys: int, trained: int, device: Any) -> tuple[Tensor, Tensor, int | None]:
    """Of one axis: coordinates of all offsets, (U,), ascending; which one key k and query q have, (K, Q); stride."""
    cells = [(k * queries // keys, -(-(k + 1) * queries // keys)) for k in range(keys)]
    doubled = [first + end - 1 for first, end in cells]  # twice the mean of a cell's pixels
    step = 2 if len({mean % 2 for mean in doubled}) == 1 else 1
    lowest = -doubled[-1]
    highest = 2 * (queries - 1) - doubled[0]
    offsets = torch.arange(lowest, highest + 1, step, dtype=torch.float32, device=device) / 2
    r = offsets / (trained - 1) * 8
    first = torch.tensor([(-mean - lowest) // step for mean in doubled], device=device)
    index = first[:, None] + torch.arange(queries, device=device) * (2 // step)
    gaps = {(after - before) // step for before, after in pairwise(doubled)} or {1}
    stride = gaps.pop() if step == 2 and len(gaps) == 1 else None
    return r.sign() * (r.abs() + 1).log2() / 3, index, stride


class Gaze(nn.Module):
    """What the attentions of a stage need to know of their map's geometry; the blocks of a stage share one.

    What belongs to the trained size is kept; what belongs to another is computed when a map of it comes.

    Args:
        trained: height and width of the map at the network's image size.
        unit: of the map at the image size of pre-training, in whose units offsets are measured.
        pool: pixels of a pooled cell's side; 1 for global attention.
        window: side of the neighbourhood, odd; 0 for none.
        pooled: side of the pooled map, whatever the map's size, or the map's where that is smaller; by default the
            map's over ``pool``, at least 1.
        positions: ``extrapolate``: the bias of a map of another size is that of its own offsets; ``interpolate``: it is
            that of the trained map, resized.
        length_scale: ``image``: logits are scaled by the keys that there are; ``trained``: by those of the trained map.

    Raises:
        CallError: a window that is neither odd nor 0, cells without pixels, a pooled map larger than the map.
        UnknownName: unknown ``positions`` or ``length_scale``.
    """

    table: Tensor
    rows: Tensor
    columns: Tensor
    length: Tensor
    beyond: Tensor

    def __init__(
        self,
        trained: Size,
        unit: Size,
        pool: int = 1,
        window: int = 0,
        pooled: int | None = None,
        positions: str = "extrapolate",
        length_scale: str = "image",
    ) -> None:
        super().__init__()
        if window and (window < 0 or window % 2 == 0):
            raise CallError(f"a window's side must be odd, or 0 for no window, got {window}")
        if pool < 1:
            raise CallError(f"a pooled cell has at least 1 pixel a side (1 is global attention), got pool {pool}")
        if pooled is not None and not 1 <= pooled <= min(trained):
            raise CallError(
                f"a map of {times(trained)} pixels cannot be pooled to {pooled}x{pooled}: "
                f"pooled must be 1 to {min(trained)}, or None for a side that grows with the map"
            )
        if positions not in POSITIONS:
            raise unknown_name("positions", positions, POSITIONS)
        if length_scale not in LENGTHS:
            raise unknown_name("length_scale", length_scale, LENGTHS)
        self.trained, self.unit, self.pool, self.window, self.fixed = trained, unit, pool, window, pooled
        self.positions, self.length_scale = positions, length_scale
        found = relative_positions(trained, self.pooled(trained), unit)
        self.strides = found.strides
        measured = {"table": found.table, "rows": found.rows, "columns": found.columns}
        measured["length"] = self._lengths(trained)
        if window:
            measured["beyond"] = self._outside(trained)
        for name, value in measured.items():
            self.register_buffer(name, value, persistent=False)

    def pooled(self, size: Size) -> Size:
        """Height and width of the pooled map."""
        height, width = (min(self.fixed, side) if self.fixed else max(side // self.pool, 1) for side in size)
        return height, width

    def offsets(self, size: Size) -> RelativePositions:
        """Offsets between pixels and pooled cells."""
        if size == self.trained:
            return RelativePositions(self.table, self.rows, self.columns, self.strides)
        found = relative_positions(size, self.pooled(size), self.unit, self.table.device)
        return replace(found, table=found.table.to(self.table.dtype))

    def lengths(self, size: Size) -> Float[Tensor, "h w"]:
        """The logarithm of how many keys a pixel has: its neighbours on the map and all pooled cells."""
        return self.length if size == self.trained else self._lengths(size, self.length.device).to(self.length.dtype)

    def outside(self, size: Size) -> Float[Tensor, "taps h w"]:
        """-inf where a neighbour is not on the map, 0 elsewhere."""
        return self.beyond if size == self.trained else self._outside(size, self.length.device).to(self.length.dtype)

    def _lengths(self, size: Size, device: Any = None) -> Tensor:
        cells = prod(self.pooled(self.trained if self.length_scale == "trained" else size))
        neighbours = self._on_map(size, device).sum(0) if self.window else torch.zeros(size, device=device)
        return (neighbours + cells).log()

    def _outside(self, size: Size, device: Any = None) -> Tensor:
        return torch.zeros((), device=device).where(self._on_map(size, device) > 0, float("-inf"))

    def _on_map(self, size: Size, device: Any) -> Tensor:
        """1 where the neighbour of a pixel is on the map, 0 elsewhere: (w * w, H, W)."""
        reach = torch.arange(self.window, device=device)[:, None] - self.window // 2
        there = [reach + torch.arange(side, device=device) for side in size]
        down, right = (((x >= 0) & (x < side)).float() for x, side in zip(there, size, strict=True))  # (w, H), (w, W)
        return (down[:, None, :, None] * right[None, :, None, :]).flatten(0, 1)


def times(sides: Sequence[int]) -> str:
    """Sides as they are written: 8x8."""
    return "x".join(map(str, sides))
