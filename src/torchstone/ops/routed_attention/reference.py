"""The definition of routed attention: rows of whole regions are gathered once, then all is dense matrix products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from torchstone.ops.dispatch import accurate


def affinity(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """``scale * query key^T`` in float32 at least, (B, R, D) and (B, S, D) -> (B, R, S)."""
    dtype, device = accurate(query, key), query.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return (query.to(dtype) * scale) @ key.to(dtype).mT
    return (query.to(dtype) * scale) @ key.to(dtype).mT


def attend(
    query: Tensor, key: Tensor, value: Tensor, routes: Tensor, heads: int, scale: float, weights: Tensor | None
) -> Tensor:
    """The attention; shapes as in :func:`torchstone.ops.routed_attention`."""
    q, k, v = (_precise(part) for part in heads_of(query, key, value, routes, heads, weights))
    mixed = F.scaled_dot_product_attention(q, k, v, scale=scale).to(value.dtype)  # (B R, h, T, c)
    return mixed.transpose(1, 2).flatten(2).unflatten(0, query.shape[:2])  # (B, R, T, C)


def probabilities(
    query: Tensor, key: Tensor, routes: Tensor, heads: int, scale: float, weights: Tensor | None
) -> Tensor:
    """The softmax that weighs the values, (B, R, h, T, K M), computed in float32 at least."""
    q, k, _ = heads_of(query, key, key, routes, heads, weights)
    dtype = accurate(q, k)
    logits = (q.to(dtype) * scale) @ k.to(dtype).mT
    return logits.softmax(-1).unflatten(0, query.shape[:2])


def heads_of(
    query: Tensor, key: Tensor, value: Tensor, routes: Tensor, heads: int, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of every region and what they attend to, by head: (B R, h, T, d), (B R, h, K M, d), (B R, h, K M, c)."""
    parts = query.flatten(0, 1), gather(key, routes, weights), gather(value, routes, weights)
    q, k, v = (part.unflatten(-1, (heads, part.shape[-1] // heads)).transpose(1, 2) for part in parts)
    return q, k, v


def gather(x: Tensor, routes: Tensor, weights: Tensor | None) -> Tensor:
    """Tokens of the routed regions, in the order of the routes: (B, S, M, C) and (B, R, K) -> (B R, K M, C).

    A row of the copy is a whole region, so that nothing is looked up token by token.
    """
    batch, regions = x.shape[:2]
    first = torch.arange(batch, device=x.device)[:, None, None] * regions
    rows = x.flatten(0, 1).index_select(0, (routes + first).flatten())
    if weights is not None:
        rows = _precise(rows)
        rows = rows * weights.to(rows.dtype).flatten()[:, None, None]
    return rows.unflatten(0, (batch * routes.shape[1], routes.shape[2])).flatten(1, 2)


def _precise(x: Tensor) -> Tensor:
    """Half precision becomes float32, except on GPUs, whose fused attention adds up in float32 itself."""
    return x if x.is_cuda else x.to(accurate(x))
