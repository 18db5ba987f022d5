"""TransNeXt: Robust Foveal Visual Perception for Vision Transformers (Shi; CVPR 2024, arXiv 2311.17132).

An eye sees sharply where it looks and coarsely everywhere else, and it moves. Here every pixel is such a gaze: in one
softmax it attends to its neighbours one by one and to the whole map in pooled cells. So each block sees everything at
a cost that is linear in the pixels times the pooled cells, without windows that cut the image.

Aggregated attention of a map X (B, H, W, C), per head, for a pixel n with the neighbours N(n) in a w x w window and the
pooled map Z = LN(AvgPool(GELU(W_z X))) of P cells (Section 3)::

    q = W_q X / |W_q X|,   (k, v) = W_kv X,  k / |k|;    (k', v') = W_kv Z,  k' / |k'|       unit queries and keys
    a = softmax_{N(n) and Z} [ (q + E) . k * softplus(t) * log(|N(n)| + P) + bias ]          one softmax over both
    y = sum_{m in N(n)} (a_m + q . T_m + b_m) v_m + sum_{Z} a_z v'_z,    W_o y

E is the query embedding, T and b the learnable tokens of the window's offsets (positional attention), t a temperature.
Logits are cosines scaled by the logarithm of how many keys there are, so that the softmax keeps its entropy at other
image sizes (length-scaled cosine attention). A window's bias is learned for each offset; that of pooled keys is an MLP
of the offset, log-spaced in units of the training image (log-CPB), and so is known at any image size. The last stage,
whose map is small, attends to all pixels (global attention: the same logits, no window).

Convolutional GLU: ``W2 (GELU(DWConv_3x3(U)) * V)`` with ``(U, V) = W1 X``: the gate sees the neighbourhood.

Network, for an image (B, 3, H, W)::

    stage i  3x3 convolution of stride 2 (first 7x7, stride 4), LN, depths[i] blocks, LN  (B, dims[i], H/4/2^i, W/4/2^i)
    block    X = X + Attention(LN X),   X = X + ConvGLU(LN X)
    head     mean over H and W, linear                                                    (B, num_classes)

Weights are trained with soft-target cross-entropy, images mixed (the recipe ``transnext_imagenet``).

Example:
    >>> import torch, torchstone
    >>> model = torchstone.create_model("transnext_mini32", num_classes=10).eval()
    >>> model(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import expm1, log, prod
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn

from torchstone.errors import CallError, ShapeError, unknown_name
from torchstone.layers.backbone import Backbone
from torchstone.layers.checkpointing import BlockSequence
from torchstone.layers.checks import check_images
from torchstone.models.registry import build_image_model, register_model
from torchstone.ops import neighbour_scores, neighbour_sum

__all__ = [
    "AggregatedAttention",
    "ContinuousPositionBias",
    "ConvolutionalGLU",
    "Gaze",
    "GlobalAttention",
    "TransNeXt",
    "convert_official",
    "relative_positions",
]

Size = tuple[int, int]

_LEARNED = ("query_embedding", "learnable_tokens")
_POSITIONS = ("extrapolate", "interpolate")
_LENGTHS = ("image", "trained")
_HIDDEN = 512  # of the MLP of the position bias
_UNDECAYED = ("query_embedding", "window_bias", "position", "temperature")


# Positions ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RelativePositions:
    """Where pooled keys lie, seen from every query.

    Attributes:
        table: log-spaced coordinates (down, right) of all offsets that occur, (U, V, 2).
        rows: for key row k and query row q the first index into ``table``, (K_h, Q_h).
        columns: for key column k and query column q the second, (K_w, Q_w).
    """

    table: Float[Tensor, "u v 2"]
    rows: Int[Tensor, "kh qh"]
    columns: Int[Tensor, "kw qw"]

    @property
    def index(self) -> Int[Tensor, " pairs"]:
        """For every query, and of it every key, the row of ``table.flatten(0, 1)``; maps are read row by row."""
        rows, columns = self.rows.t()[:, None, :, None], self.columns.t()[None, :, None, :]
        return (rows * self.table.shape[1] + columns).flatten()


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
        raise CallError(f"offsets are measured in trained maps of at least 2x2 pixels, got {_times(trained)}")
    if any(not 1 <= k <= q for q, k in zip(queries, keys, strict=True)):
        raise CallError(f"a map of {_times(queries)} pixels cannot be pooled to {_times(keys)}")
    (down, rows), (right, columns) = (
        _axis_offsets(q, k, t, device) for q, k, t in zip(queries, keys, trained, strict=True)
    )
    table = torch.stack(torch.meshgrid(down, right, indexing="ij"), -1)
    return RelativePositions(table, rows, columns)


def _axis_offsets(queries: int, keys: int, trained: int, device: Any) -> tuple[Tensor, Tensor]:
    """Coordinates of all offsets along one axis, ascending, and which one key k and query q have: (U,), (K, Q)."""
    cells = [(k * queries // keys, -(-(k + 1) * queries // keys)) for k in range(keys)]
    doubled = [first + end - 1 for first, end in cells]  # twice the mean of a cell's pixels
    step = 2 if len({mean % 2 for mean in doubled}) == 1 else 1
    lowest = -doubled[-1]
    highest = 2 * (queries - 1) - doubled[0]
    offsets = torch.arange(lowest, highest + 1, step, dtype=torch.float32, device=device) / 2
    r = offsets / (trained - 1) * 8
    first = torch.tensor([(-mean - lowest) // step for mean in doubled], device=device)
    index = first[:, None] + torch.arange(queries, device=device) * (2 // step)
    return r.sign() * (r.abs() + 1).log2() / 3, index


class Gaze(nn.Module):
    """What the attentions of a stage need to know of their map's geometry; the blocks of a stage share one.

    What belongs to the trained size is kept; what belongs to another is computed when a map of it comes.

    Args:
        trained: height and width of the map at the network's image size.
        unit: of the map at the image size of pre-training, in whose units offsets are measured.
        pool: pixels of a pooled cell's side; 1 for global attention.
        window: side of the neighbourhood, odd; 0 for none.
        pooled: side of the pooled map, whatever the map's size; by default the map's over ``pool``.
        positions: ``extrapolate``: the bias of a map of another size is that of its own offsets; ``interpolate``: it is
            that of the trained map, resized.
        length_scale: ``image``: logits are scaled by the keys that there are; ``trained``: by those of the trained map.

    Raises:
        CallError: a window that is neither odd nor 0, a pooled map larger than the map.
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
        if positions not in _POSITIONS:
            raise unknown_name("positions", positions, _POSITIONS)
        if length_scale not in _LENGTHS:
            raise unknown_name("length_scale", length_scale, _LENGTHS)
        self.trained, self.unit, self.pool, self.window, self.fixed = trained, unit, pool, window, pooled
        self.positions, self.length_scale = positions, length_scale
        for name, value in self._measured(trained).items():
            self.register_buffer(name, value, persistent=False)

    def pooled(self, size: Size) -> Size:
        """Height and width of the pooled map."""
        return (self.fixed, self.fixed) if self.fixed else (size[0] // self.pool, size[1] // self.pool)

    def offsets(self, size: Size) -> RelativePositions:
        """Offsets between pixels and pooled cells."""
        if size == self.trained:
            return RelativePositions(self.table, self.rows, self.columns)
        found = relative_positions(size, self.pooled(size), self.unit, self.table.device)
        return replace(found, table=found.table.to(self.table.dtype))

    def lengths(self, size: Size) -> Float[Tensor, "h w"]:
        """The logarithm of how many keys a pixel has: its neighbours on the map and all pooled cells."""
        return self.length if size == self.trained else self._lengths(size, self.length.device).to(self.length.dtype)

    def outside(self, size: Size) -> Float[Tensor, "taps h w"]:
        """-inf where a neighbour is not on the map, 0 elsewhere."""
        return self.beyond if size == self.trained else self._outside(size, self.length.device).to(self.length.dtype)

    def _measured(self, size: Size) -> dict[str, Tensor]:
        found = relative_positions(size, self.pooled(size), self.unit)
        measured = {"table": found.table, "rows": found.rows, "columns": found.columns, "length": self._lengths(size)}
        return {**measured, "beyond": self._outside(size)} if self.window else measured

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


class ContinuousPositionBias(nn.Module):
    """A bias of attention logits as a function of the offset: ``W2 ReLU(W1 r)``, r its log-spaced coordinates.

    Args:
        heads: attention heads.
        gaze: the geometry.

    Shape:
        (H, W) of a map -> (heads, P, H * W), P pooled cells

    Source:
        Shi, TransNeXt, CVPR 2024, Section 3.4.
    """

    def __init__(self, heads: int, gaze: Gaze) -> None:
        super().__init__()
        self.gaze = gaze
        self.fc1 = _linear(2, _HIDDEN)
        self.fc2 = _linear(_HIDDEN, heads)

    def forward(self, size: Size) -> Float[Tensor, "heads cells pixels"]:
        if self.gaze.positions == "extrapolate" or size == self.gaze.trained:
            return self._of(size)
        return _resized(self._of(self.gaze.trained), self.gaze, size)

    def _of(self, size: Size) -> Tensor:
        offsets = self.gaze.offsets(size)
        bias = self.fc2(F.relu(self.fc1(offsets.table))).permute(2, 0, 1)  # (heads, U, V)
        bias = bias.index_select(2, offsets.columns.flatten()).index_select(1, offsets.rows.flatten())
        bias = bias.unflatten(2, offsets.columns.shape).unflatten(1, offsets.rows.shape)  # (heads, Kh, Qh, Kw, Qw)
        return bias.transpose(2, 3).reshape(len(bias), -1, prod(size))


class FixedPositionBias(nn.Module):
    """The bias of the trained map, computed once: the deploy form of :class:`ContinuousPositionBias`."""

    bias: Tensor

    def __init__(self, position: ContinuousPositionBias) -> None:
        super().__init__()
        self.gaze = position.gaze
        self.register_buffer("bias", position(self.gaze.trained).detach())

    def forward(self, size: Size) -> Float[Tensor, "heads cells pixels"]:
        if size == self.gaze.trained:
            return self.bias
        if self.gaze.positions == "extrapolate":
            raise ShapeError(
                f"the fused network has the positions of maps of {_times(self.gaze.trained)}, got {_times(size)}: give "
                "images of the size that it was built for, or do not fuse it"
            )
        return _resized(self.bias, self.gaze, size)


def _resized(bias: Tensor, gaze: Gaze, size: Size) -> Tensor:
    """The bias (heads, P, H * W) of the trained map for a map of another size: bilinear over keys and over queries."""
    cells, pixels = gaze.pooled(gaze.trained), gaze.trained
    bias = bias.transpose(1, 2).unflatten(2, cells)  # (heads, HW, Kh, Kw)
    bias = F.interpolate(bias, size=gaze.pooled(size), mode="bilinear").flatten(2)
    bias = bias.transpose(1, 2).unflatten(2, pixels)  # (heads, P, H, W)
    return F.interpolate(bias, size=size, mode="bilinear").flatten(2)


# Blocks ---------------------------------------------------------------------------------------------------------------


class CosineAttention(nn.Module):
    """What both attentions have: temperatures, query embeddings, the position bias and the output's projection.

    Args:
        dim: channels C.
        heads: attention heads h, a divisor of C.
        gaze: the geometry of the stage.
        embedding: whether there is a query embedding.
        attn_drop: dropout of the attention weights.
        proj_drop: dropout of the output.

    Raises:
        CallError: channels that heads do not divide.
    """

    def __init__(
        self, dim: int, heads: int, gaze: Gaze, embedding: bool = True, attn_drop: float = 0.0, proj_drop: float = 0.0
    ) -> None:
        super().__init__()
        if dim % heads:
            raise CallError(f"{dim} channels are not a multiple of {heads} heads")
        self.heads, self.head_dim = heads, dim // heads
        self.gaze = gaze
        self.attn_drop = attn_drop
        self.temperature = nn.Parameter(torch.full((heads, 1, 1), log(expm1(1 / 0.24))))  # softplus gives 1 / 0.24
        self.query_embedding = nn.Parameter(torch.empty(heads, 1, self.head_dim)) if embedding else None
        if self.query_embedding is not None:
            _init(self.query_embedding)
        self.position: ContinuousPositionBias | FixedPositionBias = ContinuousPositionBias(heads, gaze)
        self.proj = _linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def scaled(self, q: Float[Tensor, "b heads n d"], lengths: Float[Tensor, "*n 1"]) -> Float[Tensor, "b heads n d"]:
        """Unit queries made ready for products with unit keys: ``(q + E) softplus(t) s``."""
        q = q if self.query_embedding is None else q + self.query_embedding
        return q * (F.softplus(self.temperature) * lengths)


class GlobalAttention(CosineAttention):
    """Length-scaled cosine attention between all pixels.

    ``softmax((q + E) . k * softplus(t) * log(N) + bias) v`` with unit queries and keys, N pixels.

    Args:
        dim: channels C.
        heads: attention heads.
        gaze: the geometry of the stage.
        embedding: whether there is a query embedding E.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        attn_drop: dropout of the attention weights.
        proj_drop: dropout of the output.

    Shape:
        (B, H, W, C) -> (B, H, W, C)
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        gaze: Gaze,
        embedding: bool = True,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, heads, gaze, embedding, attn_drop, proj_drop)
        self.qkv = _linear(dim, 3 * dim, qkv_bias)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        _, height, width, _ = x.shape
        q, k, v = self.qkv(x).flatten(1, 2).unflatten(-1, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        q = self.scaled(F.normalize(q, dim=-1), self.gaze.lengths((height, width)).flatten()[:, None])
        k = F.normalize(k, dim=-1)
        bias = self.position((height, width)).transpose(1, 2).to(v.dtype)  # (heads, N queries, N keys)
        dropout = self.attn_drop if self.training else 0.0
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, bias, dropout, scale=1.0)
        return self.proj_drop(self.proj(y.transpose(1, 2).reshape(x.shape)))


class AggregatedAttention(CosineAttention):
    """Attention to the neighbours and to the pooled map in one softmax; pixels are the last axis inside.

    Args:
        dim: channels C.
        heads: attention heads.
        gaze: the geometry of the stage: pooled cells and window.
        embedding: whether there is a query embedding E.
        tokens: whether there are learnable tokens T (and b) of the window's offsets.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        attn_drop: dropout of the attention weights.
        proj_drop: dropout of the output.

    Shape:
        (B, H, W, C) -> (B, H, W, C)

    Source:
        Shi, TransNeXt, CVPR 2024, Section 3.3.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        gaze: Gaze,
        embedding: bool = True,
        tokens: bool = True,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, heads, gaze, embedding, attn_drop, proj_drop)
        self.q = _linear(dim, dim, qkv_bias)
        self.kv = _linear(dim, 2 * dim, qkv_bias)
        self.sr = nn.Linear(dim, dim)
        _init(self.sr.weight, (2 / dim) ** 0.5)
        _init(self.sr.bias, 0)
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        taps = gaze.window**2
        self.window_bias = nn.Parameter(torch.empty(heads, taps)) if taps else None
        self.learnable_tokens = nn.Parameter(torch.empty(heads, self.head_dim, taps)) if tokens and taps else None
        self.learnable_bias = nn.Parameter(torch.zeros(heads, 1, taps)) if tokens and taps else None
        for parameter, std in ((self.window_bias, 0.0004), (self.learnable_tokens, 0.02)):
            if parameter is not None:
                _init(parameter, std)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        _, height, width, _ = x.shape
        size = (height, width)
        q = F.normalize(self._split(self.q(x), 1)[0], dim=2)  # (B, h, d, N)
        keys, values = self._split(self.kv(x), 2)
        pooled_keys, pooled_values = self._split(self.kv(self._pooled(x)), 2)  # (B, h, d, P)
        lengths = self.gaze.lengths(size).flatten()[:, None]
        scaled = self.scaled(q.transpose(2, 3), lengths).transpose(2, 3)

        cells = F.normalize(pooled_keys, dim=2).transpose(2, 3) @ scaled + self.position(size)  # (B, h, P, N)
        if self.window_bias is None:
            return self._merged(pooled_values @ self._weights(cells), size)
        window = self.gaze.window
        near = neighbour_scores(scaled.unflatten(-1, size), F.normalize(keys, dim=2).unflatten(-1, size), window)
        near = near + (self.window_bias[..., None, None] + self.gaze.outside(size))
        weights = self._weights(torch.cat([near.flatten(3), cells], 2))
        near, cells = weights.split([window**2, cells.shape[2]], 2)
        if self.learnable_tokens is not None and self.learnable_bias is not None:
            near = near + self.learnable_tokens.transpose(1, 2) @ q + self.learnable_bias.transpose(1, 2)
        y = neighbour_sum(near.unflatten(-1, size), values.unflatten(-1, size), window)
        return self._merged(y.flatten(3) + pooled_values @ cells, size)

    def _pooled(self, x: Tensor) -> Tensor:
        """``LN(AvgPool(GELU(W_z X)))``: (B, H, W, C) -> (B, Kh, Kw, C)."""
        z = F.gelu(self.sr(x)).permute(0, 3, 1, 2)
        z = F.adaptive_avg_pool2d(z, self.gaze.pooled((x.shape[1], x.shape[2])))
        return self.norm(z.permute(0, 2, 3, 1))

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Heads of each part, pixels last: (B, H, W, parts * C) -> parts of (B, h, d, H * W)."""
        x = x.flatten(1, 2).transpose(1, 2).contiguous()
        return x.unflatten(1, (parts, self.heads, self.head_dim)).unbind(1)

    def _weights(self, logits: Tensor) -> Tensor:
        """Softmax over the keys, (B, h, keys, N)."""
        return F.dropout(logits.softmax(2), self.attn_drop, self.training)

    def _merged(self, y: Tensor, size: Size) -> Tensor:
        """The projected map of all heads: (B, h, d, H * W) -> (B, H, W, C)."""
        return self.proj_drop(self.proj(y.flatten(1, 2).transpose(1, 2))).unflatten(1, size)


class ConvolutionalGLU(nn.Module):
    """``W2 (GELU(DWConv_3x3(U)) * V)`` with ``(U, V) = W1 X``: a gated linear unit whose gate sees the neighbours.

    Args:
        dim: channels C.
        ratio: hidden channels as a multiple of C, before they are cut to two thirds for the gate's sake.
        drop: dropout of the hidden channels and of the output.

    Shape:
        (B, H, W, C) -> (B, H, W, C)
    """

    def __init__(self, dim: int, ratio: float, drop: float = 0.0) -> None:
        super().__init__()
        hidden = int(2 * int(dim * ratio) / 3)
        self.fc1 = _linear(dim, 2 * hidden)
        self.dwconv = _conv(hidden, hidden, 3, groups=hidden)
        self.fc2 = _linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        gate, value = self.fc1(x).chunk(2, -1)
        gate = self.dwconv(gate.contiguous().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.drop(self.fc2(self.drop(F.gelu(gate) * value)))


class Block(nn.Module):
    """``X = X + Attention(LN X)``, ``X = X + ConvGLU(LN X)``: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(
        self, dim: int, attn: CosineAttention, mlp_ratio: float, eps: float, drop: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = ConvolutionalGLU(dim, mlp_ratio, drop)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


# Network --------------------------------------------------------------------------------------------------------------


class PatchEmbed(nn.Module):
    """A convolution whose patches overlap, and LN: (B, in_channels, H, W) -> (B, H / stride, W / stride, C)."""

    def __init__(self, in_channels: int, dim: int, stride: int) -> None:
        super().__init__()
        self.proj = _conv(in_channels, dim, 2 * stride - 1, stride)
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b p q c"]:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Stage(nn.Module):
    """Patches, the blocks of one resolution, LN: (B, in_channels, H, W) -> (B, C, H / stride, W / stride)."""

    def __init__(self, patch_embed: PatchEmbed, blocks: BlockSequence, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.blocks = blocks
        self.norm = norm

    def forward(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c p q"]:
        return self.norm(self.blocks(self.patch_embed(x))).permute(0, 3, 1, 2)


class TransNeXt(Backbone):
    """The TransNeXt network. It takes images of any size above a smallest one.

    Args:
        img_size: the images' side, or height and width, in pixels, a multiple of the last stage's stride; geometry of
            this size is kept ready, and ``positions="interpolate"`` starts from it.
        pretrain_size: the image size of pre-training, in whose units offsets are measured, 224 for the released
            weights; by default ``img_size``.
        dims: channels of each stage.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        mlp_ratios: hidden channels of each stage's feed-forward network, as of :class:`ConvolutionalGLU`.
        windows: side of the neighbourhood in each stage, odd; None or 0 for pooled cells alone (or global attention).
        pools: pixels of a pooled cell's side in each stage; 1 for global attention.
        pooled: side of the pooled map, for every image size (the paper's linear inference mode); None: it grows.
        positions: ``extrapolate``: maps of another size have the bias of their own offsets; ``interpolate``: that of
            the map at ``img_size``, resized, as the authors' detectors have it by default.
        length_scale: ``image``: logits are scaled by the keys that there are; ``trained``: by those at ``img_size``.
        learned: which of ``query_embedding`` and ``learnable_tokens`` there are; the paper's ablations leave some out.
        patch_size: stride of the first convolution, pixels.
        qkv_bias: whether queries, keys and values have a bias.
        norm_eps: of the LNs of blocks and stages.
        in_chans: channels of the image.
        num_classes: classes; 0 for no classifier.
        global_pool: ``avg``, ``max``, ``avgmax`` or ``catavgmax``; empty (with ``num_classes=0``) for the unpooled map.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout of the attentions' outputs and within the feed-forward networks.
        attn_drop_rate: dropout of the attention weights.
        drop_path_rate: stochastic depth of the last block; it rises linearly from 0.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes)

    Raises:
        CallError: an image size that the strides do not divide, a pre-training size too small to measure offsets in,
            channels that heads do not divide, lists of different lengths, an even window.
        UnknownName: unknown ``positions``, ``length_scale``, ``learned`` or pooling.
        ShapeError: on call, images of another rank or other channels, or too small to pool.
    """

    classifier_name = "head"

    def __init__(
        self,
        img_size: int | Size = 224,
        pretrain_size: int | Size | None = None,
        dims: Sequence[int] = (72, 144, 288, 576),
        depths: Sequence[int] = (2, 2, 15, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        mlp_ratios: Sequence[float] = (8, 8, 4, 4),
        windows: Sequence[int | None] = (3, 3, 3, None),
        pools: Sequence[int] = (8, 4, 2, 1),
        pooled: int | None = None,
        positions: str = "extrapolate",
        length_scale: str = "image",
        learned: Sequence[str] = _LEARNED,
        patch_size: int = 4,
        qkv_bias: bool = True,
        norm_eps: float = 1e-6,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans, drop_rate)
        lists = {"depths": depths, "heads": heads, "mlp_ratios": mlp_ratios, "windows": windows, "pools": pools}
        for name, values in lists.items():
            if len(values) != len(dims):
                raise CallError(f"{name} has {len(values)} values for {len(dims)} stages (the length of dims)")
        for name in learned:
            if name not in _LEARNED:
                raise unknown_name("learned part", name, _LEARNED)
        image = _pair(img_size)
        unit = _pair(pretrain_size) if pretrain_size else image
        strides = [patch_size * 2**i for i in range(len(dims))]
        _check_sizes(image, unit, strides[-1])
        sides = [max(pool, pooled or 1) if pool > 1 else 1 for pool in pools]
        self.min_size = max(stride * (side - 1) + 1 for stride, side in zip(strides, sides, strict=True))
        self.feature_info = []

        self.stages = nn.Sequential()
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        for i, (dim, stride) in enumerate(zip(dims, strides, strict=True)):
            gaze = Gaze(
                trained=(image[0] // stride, image[1] // stride),
                unit=(unit[0] // stride, unit[1] // stride),
                pool=pools[i],
                window=(windows[i] or 0) if pools[i] > 1 else 0,
                pooled=pooled if pools[i] > 1 else None,
                positions=positions,
                length_scale=length_scale,
            )
            attention = partial(
                GlobalAttention if pools[i] == 1 else partial(AggregatedAttention, tokens=_LEARNED[1] in learned),
                dim,
                heads[i],
                gaze,
                embedding=_LEARNED[0] in learned,
                qkv_bias=qkv_bias,
                attn_drop=attn_drop_rate,
                proj_drop=proj_drop_rate,
            )
            blocks = [
                Block(dim, attention(), mlp_ratios[i], norm_eps, proj_drop_rate, next(rates)) for _ in range(depths[i])
            ]
            embed = PatchEmbed(dims[i - 1] if i else in_chans, dim, 2 if i else patch_size)
            self.stages.append(Stage(embed, BlockSequence(*blocks), nn.LayerNorm(dim, eps=norm_eps)))
            self.feature_info.append({"num_chs": dim, "reduction": stride, "module": f"stages.{i}"})

        self.num_features = dims[-1]
        self.reset_classifier(num_classes, global_pool)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Start a new classifier; arguments and errors as of :meth:`Backbone.reset_classifier`."""
        super().reset_classifier(num_classes, global_pool)
        classifier = self.get_classifier()
        if isinstance(classifier, nn.Linear):
            _init(classifier.weight)
            _init(classifier.bias, 0)

    def _check(self, x: Tensor) -> None:
        check_images(x, self.in_chans, min_size=self.min_size)

    def _stage(self, index: int, x: Tensor) -> Tensor:
        if index == 0:  # maps are channels last throughout
            x = x.contiguous(memory_format=torch.channels_last)
        return self.stages[index](x)

    def _tail(self, x: Tensor) -> Tensor:
        return x

    def _cut(self, last: int) -> None:
        self.stages = self.stages[: last + 1]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names by depth, for layer-wise learning rates."""
        return {
            "stem": r"^stages\.0\.patch_embed",
            "blocks": r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.patch_embed", (-1,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.norm", (99999,)),
            ],
        }

    def no_weight_decay(self) -> set[str]:
        """Temperatures, query embeddings and position biases; norms and other biases are left out by timm's rule."""
        return {name for name, _ in self.named_parameters() if any(part in name for part in _UNDECAYED)}

    @torch.no_grad()
    def fuse(self) -> TransNeXt:
        """Turn the network, in place, into its deploy form: position biases of ``img_size`` are computed once.

        The network is set to eval mode. With ``positions="extrapolate"`` it then takes images of ``img_size`` only.

        Returns:
            The network itself.
        """
        self.eval()
        for module in self.modules():
            if isinstance(module, CosineAttention) and isinstance(module.position, ContinuousPositionBias):
                module.position = FixedPositionBias(module.position)
        return self


def _check_sizes(image: Size, unit: Size, stride: int) -> None:
    if any(side < stride or side % stride for side in image):
        raise CallError(f"img_size must be multiples of {stride}, got {_times(image)}")
    if any(side < 2 * stride for side in unit):
        raise CallError(
            f"offsets are measured in images of at least {2 * stride} pixels, got {_times(unit)}: give a pretrain_size"
        )


def _pair(size: int | Sequence[int]) -> Size:
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


def _times(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))


def _init(parameter: Tensor, std: float = 0.02) -> None:
    """A truncated normal distribution, or zeros."""
    if parameter.is_meta:
        return
    if std:
        trunc_normal_(parameter, std=std)
    else:
        nn.init.zeros_(parameter)


def _linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(in_features, out_features, bias)
    _init(layer.weight)
    if bias:
        _init(layer.bias, 0)
    return layer


def _conv(in_channels: int, channels: int, side: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution with bias, its weights normal by what each one writes."""
    layer = nn.Conv2d(in_channels, channels, side, stride, side // 2, groups=groups)
    if not layer.weight.is_meta:
        nn.init.normal_(layer.weight, std=(2 * groups / (side**2 * channels)) ** 0.5)
    if layer.bias is not None:
        _init(layer.bias, 0)
    return layer


# Official checkpoints -------------------------------------------------------------------------------------------------

_RENAMED = (
    (r"^(patch_embed|norm)(\d+)(\.)", r"stages.\2.\1\3"),
    (r"^block(\d+)\.", r"stages.\1.blocks."),
    (r"\.relative_pos_bias_local$", ".window_bias"),
    (r"\.cpb_fc", ".position.fc"),
    (r"\.dwconv\.dwconv\.", ".dwconv."),
)


def convert_official(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The released weights under our names; they fit a model of any image size.

    The 1x1 convolution in front of the pooling is a linear map here. A state dict in our layout is left as it is.
    """
    converted = {}
    for name, value in state.items():
        if name.startswith("stages."):
            converted[name] = value
            continue
        for pattern, new in _RENAMED:
            name = re.sub(pattern, new, name)
        name = re.sub(r"^stages\.(\d+)", lambda found: f"stages.{int(found[1]) - 1}", name)
        converted[name] = value.flatten(1) if name.endswith("attn.sr.weight") else value
    return converted


# Factories ------------------------------------------------------------------------------------------------------------

_CFG: Mapping[str, Any] = {
    "num_classes": 1000,
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "stages.0.patch_embed.proj",
    "classifier": "head",
}
_TINY: Mapping[str, Any] = {"dims": (72, 144, 288, 576), "heads": (3, 6, 12, 24)}
_VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "micro": {"dims": (48, 96, 192, 384), "heads": (2, 4, 8, 16), "depths": (2, 2, 15, 2)},
    "tiny": {**_TINY, "depths": (2, 2, 15, 2)},
    "small": {**_TINY, "depths": (5, 5, 22, 5)},
    "base": {"dims": (96, 192, 384, 768), "heads": (4, 8, 16, 32), "depths": (5, 5, 23, 5)},
}


def _build(name: str, pretrained: bool, variant: Mapping[str, Any], kwargs: dict[str, Any]) -> nn.Module:
    kwargs = {**variant, **kwargs}
    height, width = _pair(kwargs.get("img_size", 224))
    stages = len(kwargs["dims"])
    reduction = kwargs.get("patch_size", 4) * 2 ** (stages - 1)
    cfg = {**_CFG, "input_size": (3, height, width), "pool_size": (height // reduction, width // reduction)}
    features = {"out_indices": tuple(range(stages)), "feature_cls": "getter"}
    return build_image_model(
        TransNeXt, name, pretrained, cfg=cfg, convert=convert_official, feature_cfg=features, **kwargs
    )


@register_model
def transnext_micro(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """TransNeXt-Micro at 224 x 224 pixels."""
    return _build("transnext_micro", pretrained, _VARIANTS["micro"], kwargs)


@register_model
def transnext_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """TransNeXt-Tiny at 224 x 224 pixels."""
    return _build("transnext_tiny", pretrained, _VARIANTS["tiny"], kwargs)


@register_model
def transnext_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """TransNeXt-Small at 224 x 224 pixels."""
    return _build("transnext_small", pretrained, _VARIANTS["small"], kwargs)


@register_model
def transnext_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """TransNeXt-Base at 224 x 224 pixels."""
    return _build("transnext_base", pretrained, _VARIANTS["base"], kwargs)


@register_model
def transnext_small_384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """TransNeXt-Small, pre-trained at 224 and fine-tuned at 384 x 384 pixels."""
    larger = {**_VARIANTS["small"], "img_size": 384, "pretrain_size": 224}
    return _build("transnext_small_384", pretrained, larger, kwargs)


@register_model
def transnext_base_384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """TransNeXt-Base, pre-trained at 224 and fine-tuned at 384 x 384 pixels."""
    larger = {**_VARIANTS["base"], "img_size": 384, "pretrain_size": 224}
    return _build("transnext_base_384", pretrained, larger, kwargs)


@register_model
def transnext_micro_AAAA(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """TransNeXt-Micro with aggregated attention in all stages, at 256 x 256 pixels."""
    everywhere = {**_VARIANTS["micro"], "img_size": 256, "windows": (3, 3, 3, 3), "pools": (16, 8, 4, 2)}
    return _build("transnext_micro_AAAA", pretrained, everywhere, kwargs)


@register_model
def transnext_mini32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A small network for 32x32 images; ours, not the paper's."""
    variant = {
        "img_size": 32,
        "dims": (48, 96, 192),
        "depths": (1, 1, 2),
        "heads": (2, 4, 8),
        "mlp_ratios": (4, 4, 4),
        "windows": (3, 3, None),
        "pools": (4, 2, 1),
        "patch_size": 2,
    }
    return _build("transnext_mini32", pretrained, variant, kwargs)
