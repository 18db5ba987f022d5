"""Routed attention beside other ways to compute it, and beside attention that chooses otherwise."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from torchstone.ops.routed_attention import route_regions, routed_attention
from torchstone.ops.workload import Contender, Shapes, Workload

TOPK = 4
"""Regions that each region attends to."""
HEAD = 32
"""Channels of a head, at most."""


def _shapes(tokens: int, settings: Mapping[str, int]) -> Shapes:
    shape = settings["batch"], settings["regions"] ** 2, tokens, settings["channels"]
    return shape, shape, shape


def _heads(query: Tensor) -> int:
    channels = query.shape[-1]
    return channels // HEAD if channels % HEAD == 0 else 1


def _routes(query: Tensor, key: Tensor) -> Tensor:
    return route_regions(query.mean(2), key.mean(2), min(TOPK, key.shape[1]))[0]


def route_and_attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The operator behind the routes that the regions' means give."""
    return routed_attention(query, key, value, _routes(query, key), heads=_heads(query))


def _windows(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    own = torch.arange(query.shape[1], device=query.device).expand(query.shape[0], -1)[..., None]
    return routed_attention(query, key, value, own, heads=_heads(query))


def _by_element(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Keys and values looked up element by element, and a softmax that is kept: the usual formulation."""
    batch, regions, tokens, channels = query.shape
    routes = _routes(query, key)
    count, heads = routes.shape[-1], _heads(query)
    both = torch.cat([key, value], -1)
    index = routes.view(batch, regions, count, 1, 1).expand(-1, -1, -1, tokens, 2 * channels)
    found = both[:, None].expand(-1, regions, -1, -1, -1).gather(2, index).flatten(2, 3)  # (B, R, K T, 2 C)
    q, k, v = (
        x.unflatten(-1, (heads, channels // heads)).transpose(2, 3)
        for x in (query, found[..., :channels], found[..., channels:])
    )
    mixed = ((q * channels**-0.5) @ k.mT).softmax(-1) @ v  # (B, R, h, T, d)
    return mixed.transpose(2, 3).flatten(3)


def _masked(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Full attention with all that is not routed masked out."""
    tokens, heads, scale = query.shape[2], _heads(query), query.shape[-1] ** -0.5
    routes = _routes(query, key)
    allowed = torch.zeros(*routes.shape[:2], key.shape[1], dtype=torch.bool, device=query.device)
    allowed = allowed.scatter(2, routes, True).repeat_interleave(tokens, 1).repeat_interleave(tokens, 2)
    q, k, v = (_by_head(x, heads) for x in (query, key, value))
    mixed = F.scaled_dot_product_attention(q, k, v, allowed[:, None], scale=scale)
    return mixed.transpose(1, 2).flatten(2).view_as(value)


def _full(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    heads = _heads(query)
    q, k, v = (_by_head(x, heads) for x in (query, key, value))
    mixed = F.scaled_dot_product_attention(q, k, v)
    return mixed.transpose(1, 2).flatten(2).view_as(value)


def _by_head(x: Tensor, heads: int) -> Tensor:
    return x.flatten(1, 2).unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, h, R T, d)


WORKLOAD = Workload(
    op="routed_attention",
    summary="attention of each region's tokens to those of the four regions that suit it, routing included",
    size="tokens a region",
    sizes=(4, 16, 64, 144),
    settings={"batch": 1, "channels": 64, "regions": 7},
    shapes=_shapes,
    contenders={
        "routed_attention": Contender(route_and_attend, True, "whole regions gathered once, fused attention"),
        "element by element": Contender(_by_element, True, "torch.gather and a softmax that is kept, the usual way"),
        "masked": Contender(_masked, True, "full attention with a mask, the square of all tokens"),
        "windows": Contender(_windows, False, "each region attends to itself alone"),
        "full attention": Contender(_full, False, "all tokens attend to all"),
    },
)
