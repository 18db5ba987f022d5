"""Length-scaled cosine attention: to all pixels, and to the neighbours and the pooled map in one softmax."""

from __future__ import annotations

from math import expm1, log

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from torchstone.errors import CallError
from torchstone.models.image.transnext.gaze import Gaze, Size
from torchstone.models.image.transnext.initialization import init, linear
from torchstone.models.image.transnext.position_bias import ContinuousPositionBias, PositionBias
from torchstone.ops import neighbour_scores, neighbour_sum


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
            init(self.query_embedding)
        self.position: PositionBias = ContinuousPositionBias(heads, gaze)
        self.proj = linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def scaled(self, q: Float[Tensor, "b heads n d"], size: Size) -> Float[Tensor, "b heads n d"]:
        """Unit queries of a map's pixels made ready for products with unit keys: ``(q + E) softplus(t) s``."""
        q = q if self.query_embedding is None else q + self.query_embedding
        return q * (F.softplus(self.temperature) * self.gaze.lengths(size).flatten()[:, None])

    def attended(
        self, queries: Float[Tensor, "b heads n d"], keys: Tensor, values: Float[Tensor, "b heads p d"], size: Size
    ) -> Float[Tensor, "b heads n d"]:
        """``softmax(queries . keys + bias) values``, keys and values being of the cells from the last to the first."""
        dropout = self.attn_drop if self.training else 0.0
        return _fused(queries, keys, values, self.position(size, dtype=values.dtype), dropout)

    def split(self, x: Float[Tensor, "b h w c"], parts: int = 1) -> tuple[Float[Tensor, "b heads n d"], ...]:
        """Heads of each part: (B, H, W, parts * C) -> parts of (B, h, H * W, d)."""
        return x.flatten(1, 2).unflatten(-1, (parts, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind()

    def merged(self, y: Float[Tensor, "b heads n d"], x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """The heads' outputs together, projected, in the shape of x."""
        return self.proj_drop(self.proj(y.transpose(1, 2).reshape(x.shape)))


def _fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float) -> Tensor:
    return F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, bias, dropout, scale=1.0)


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
        self.qkv = linear(dim, 3 * dim, qkv_bias)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        size = (x.shape[1], x.shape[2])
        q, k, v = self.split(self.qkv(x), 3)
        q = self.scaled(F.normalize(q, dim=-1), size)
        return self.merged(self.attended(q, F.normalize(k, dim=-1).flip(2), v.flip(2), size), x)


class AggregatedAttention(CosineAttention):
    """Attention to the neighbours and to the pooled map in one softmax.

    Pooled cells go through fused attention, of which no logits are kept, and where the neighbours of a pixel are
    together one more key: its logit is the logarithm of the sum of their exponentials, so that its weight is the share
    of the softmax that the neighbours have. They divide it among themselves. Pixels are the last axis of all that
    concerns neighbours.

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
        self.q = linear(dim, dim, qkv_bias)
        self.kv = linear(dim, 2 * dim, qkv_bias)
        self.sr = nn.Linear(dim, dim)
        init(self.sr.weight, (2 / dim) ** 0.5)
        init(self.sr.bias, 0)
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        taps = gaze.window**2
        self.window_bias = nn.Parameter(torch.empty(heads, taps)) if taps else None
        self.learnable_tokens = nn.Parameter(torch.empty(heads, self.head_dim, taps)) if tokens and taps else None
        self.learnable_bias = nn.Parameter(torch.zeros(heads, 1, taps)) if tokens and taps else None
        for parameter, std in ((self.window_bias, 0.0004), (self.learnable_tokens, 0.02)):
            if parameter is not None:
                init(parameter, std)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        size, window = (x.shape[1], x.shape[2]), self.gaze.window
        (q,) = self.split(self.q(x))
        q = F.normalize(q, dim=-1)
        scaled = self.scaled(q, size)
        pooled_keys, pooled_values = self.split(self.kv(self._pooled(x).flip(1, 2)), 2)  # (B, h, P, d)
        pooled_keys = F.normalize(pooled_keys, dim=-1)
        if self.window_bias is None:
            return self.merged(self.attended(scaled, pooled_keys, pooled_values, size), x)

        keys, values = self.split(self.kv(x), 2)
        near = neighbour_scores(_map(scaled, size), _map(F.normalize(keys, dim=-1), size), window)
        near = (near + (self.window_bias[..., None, None] + self.gaze.outside(size))).flatten(3)  # (B, h, w * w, N)
        together = near.logsumexp(2, keepdim=True)
        y, share = self.attended_with(together.transpose(2, 3), scaled, pooled_keys, pooled_values, size)
        weights = F.dropout((near - together).exp() * share.transpose(2, 3), self.attn_drop, self.training)
        if self.learnable_tokens is not None and self.learnable_bias is not None:
            tokens = self.learnable_tokens.transpose(1, 2) @ q.transpose(2, 3)
            weights = weights + tokens + self.learnable_bias.transpose(1, 2)
        y = y + neighbour_sum(weights.unflatten(-1, size), _map(values, size), window).flatten(3).transpose(2, 3)
        return self.merged(y, x)

    def attended_with(
        self,
        other: Float[Tensor, "b heads n 1"],
        queries: Float[Tensor, "b heads n d"],
        keys: Float[Tensor, "b heads p d"],
        values: Float[Tensor, "b heads p d"],
        size: Size,
    ) -> tuple[Float[Tensor, "b heads n d"], Float[Tensor, "b heads n 1"]]:
        """Attention to pooled cells, as :meth:`attended`, and to one more key of the logit ``other`` and the value 0.

        The logit is a channel of the queries in which the further key alone has a 1; it has one among the values too,
        and finds its weight there. A second channel adds what half precision cuts off the logit, and zeros fill the
        channels up to the multiple of 8 that fused attention asks for.

        Returns:
            The sum of values, and the weight of the further key.
        """
        dtype, dim = values.dtype, values.shape[-1]
        room = (-dim - 2) % 8 + 2
        rounded = other.to(dtype)
        fill = rounded.new_zeros(1).expand(*rounded.shape[:3], room - 2)
        q = torch.cat([queries.to(dtype), rounded, (other - rounded).to(dtype), fill], -1)
        further = F.pad(rounded.new_ones(2), (dim, room - 2))
        k, v = (F.pad(part.to(dtype), (0, room, 0, 1)) for part in (keys, values))
        k[:, :, -1] = v[:, :, -1] = further
        bias = self.position(size, spare=1, dtype=dtype)
        found = _fused(q, k, v, bias, 0.0)
        share = found[..., dim : dim + 1]
        if self.training and self.attn_drop:  # of the cells alone
            found = _fused(q, k, v, bias, self.attn_drop)
        return found[..., :dim], share

    def _pooled(self, x: Tensor) -> Tensor:
        """``LN(AvgPool(GELU(W_z X)))``: (B, H, W, C) -> (B, Kh, Kw, C)."""
        z = F.gelu(self.sr(x)).permute(0, 3, 1, 2)
        z = F.adaptive_avg_pool2d(z, self.gaze.pooled((x.shape[1], x.shape[2])))
        return self.norm(z.permute(0, 2, 3, 1))


def _map(x: Float[Tensor, "b heads n d"], size: Size) -> Float[Tensor, "b heads d h w"]:
    """Pixels on the last axes, as the products with neighbours read them."""
    return x.transpose(2, 3).contiguous().unflatten(-1, size)
