"""Attention of regions to the few regions that suit them, as bi-level routing attention has it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchstone.errors import CallError, ShapeError
from torchstone.ops.dispatch import check_operands
from torchstone.ops.routed_attention import reference

__all__ = ["route_regions", "routed_attention", "routed_attention_probabilities"]


def route_regions(
    query: Float[Tensor, "batch regions channels"],
    key: Float[Tensor, "batch others channels"],
    count: int,
    *,
    scale: float = 1.0,
) -> tuple[Int[Tensor, "batch regions count"], Float[Tensor, "batch regions count"]]:
    """For every region the regions whose descriptors agree best with its own.

    ``A = scale * query key^T``; the routes of region r are the ``count`` largest entries of ``A[r]``, largest first.
    The product is computed in float32 at least, under autocast too: a rounding error could choose another region.

    Args:
        query: descriptors of the regions that ask, (B, R, D).
        key: descriptors of the regions that are asked, (B, S, D).
        count: K, from 1 to S.
        scale: of the products; it decides the weights, not the routes.

    Returns:
        The routes, integers below S, (B, R, K), which carry no gradient; and the softmax over each region's K products,
        (B, R, K), which carries that of the descriptors.

    Raises:
        ShapeError: a rank or a size that does not fit.
        CallError: a count outside 1 to S, or numbers that are not real floating-point ones on one device.

    Source:
        Zhu et al., BiFormer: Vision Transformer with Bi-Level Routing Attention, CVPR 2023, Equations 3 and 4.

    Example:
        >>> routes, weights = route_regions(torch.randn(2, 16, 8), torch.randn(2, 16, 8), 3)
        >>> routes.shape
        torch.Size([2, 16, 3])
    """
    if query.ndim != 3 or key.ndim != 3 or query.shape[0] != key.shape[0] or query.shape[2] != key.shape[2]:
        raise ShapeError(
            f"descriptors must be (B, R, D) and (B, S, D), got {tuple(query.shape)} and {tuple(key.shape)}"
        )
    if not 1 <= count <= key.shape[1]:
        raise CallError(f"{count} of {key.shape[1]} regions cannot be chosen: give a count from 1 to {key.shape[1]}")
    check_operands(query=query, key=key)
    best, routes = reference.affinity(query, key, scale).topk(count, -1)
    return routes, best.softmax(-1)


def routed_attention(
    query: Float[Tensor, "batch regions tokens channels"],
    key: Float[Tensor, "batch others keys channels"],
    value: Float[Tensor, "batch others keys width"],
    routes: Int[Tensor, "batch regions count"],
    *,
    heads: int = 1,
    scale: float | None = None,
    weights: Float[Tensor, "batch regions count"] | None = None,
) -> Float[Tensor, "batch regions tokens width"]:
    """Attention of every region's tokens to all tokens of the regions that it is routed to.

    ``y[r] = softmax(scale * query[r] Kg^T) Vg`` with ``Kg = concat(key[s] for s in routes[r])``, ``Vg`` likewise, for
    every head; heads are equal chunks of the channels. With all regions as routes it is full attention. Each region
    costs T K M pairs of tokens instead of T S M.

    Regions are gathered once, as whole rows, and one fused attention does the rest: no loop over regions and nothing
    of size T K M is kept. Half-precision operands are computed in float32 (on a GPU by kernels that add up in float32).

    Args:
        query: T tokens of each of R regions, (B, R, T, D).
        key: M tokens of each of S regions, (B, S, M, D).
        value: (B, S, M, C).
        routes: for every region of the queries the regions it attends to, integers below S, (B, R, K).
        heads: h, a divisor of D and C.
        scale: of the logits; D^-1/2 by default, the inverse root of the channels of all heads together, as the paper's
            released weights have it.
        weights: factors of each routed region's keys and values, (B, R, K); none by default.

    Returns:
        (B, R, T, C).

    Raises:
        ShapeError: a rank or a size that does not fit.
        CallError: routes that are no integers, heads that do not divide the channels, tensors of different types or on
            different devices.

    Source:
        Zhu et al., BiFormer: Vision Transformer with Bi-Level Routing Attention, CVPR 2023, Equations 5 and 6.

    Example:
        >>> q, k, v = (torch.randn(2, 16, 9, 8) for _ in range(3))  # 4 x 4 regions of 3 x 3 tokens
        >>> routes, _ = route_regions(q.mean(2), k.mean(2), 3)
        >>> routed_attention(q, k, v, routes, heads=2).shape
        torch.Size([2, 16, 9, 8])
    """
    _check(query, key, value, routes, heads, weights)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return reference.attend(query, key, value, routes, heads, scale, weights)


def routed_attention_probabilities(
    query: Float[Tensor, "batch regions tokens channels"],
    key: Float[Tensor, "batch others keys channels"],
    routes: Int[Tensor, "batch regions count"],
    *,
    heads: int = 1,
    scale: float | None = None,
    weights: Float[Tensor, "batch regions count"] | None = None,
) -> Float[Tensor, "batch regions heads tokens attended"]:
    """What :func:`routed_attention` weighs values by, to look at: (B, R, h, T, K M), each row adding up to 1.

    Column ``j M + m`` belongs to token m of region ``routes[b, r, j]``. Arguments and errors are those of
    :func:`routed_attention`.
    """
    _check(query, key, key, routes, heads, weights)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return reference.probabilities(query, key, routes, heads, scale, weights)


def _check(query: Tensor, key: Tensor, value: Tensor, routes: Tensor, heads: int, weights: Tensor | None) -> None:
    if query.ndim != 4 or key.ndim != 4 or value.ndim != 4:
        raise ShapeError(
            "expected query (B, R, T, D), key (B, S, M, D) and value (B, S, M, C), got "
            f"{tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
        )
    if key.shape[:3] != value.shape[:3] or query.shape[0] != key.shape[0] or query.shape[-1] != key.shape[-1]:
        raise ShapeError(
            "key and value must agree in regions and tokens, query and key in batch and channels, got "
            f"{tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
        )
    if routes.ndim != 3 or routes.shape[:2] != query.shape[:2]:
        raise ShapeError(f"routes must be {(*query.shape[:2], 'K')}, got {tuple(routes.shape)}")
    if routes.dtype not in (torch.int32, torch.int64):
        raise CallError(f"routes must be integers, got {routes.dtype}")
    if weights is not None and weights.shape != routes.shape:
        raise ShapeError(f"weights must be as the routes, {tuple(routes.shape)}, got {tuple(weights.shape)}")
    if heads < 1 or query.shape[-1] % heads or value.shape[-1] % heads:
        raise CallError(f"{heads} heads do not divide {query.shape[-1]} and {value.shape[-1]} channels")
    check_operands(query=query, key=key, value=value)
    if not query.dtype == key.dtype == value.dtype:
        raise CallError(f"query, key and value must be of one type, got {query.dtype}, {key.dtype} and {value.dtype}")
