"""The token mixers: bi-level routing attention in its two published forms, and what stands in its place in some stages.

Maps are (B, H, W, C) except where a name ends in ``2d``: those take and give (B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from torchstone.errors import CallError, ShapeError, unknown_name
from torchstone.layers.windows import Size, window_merge, window_partition
from torchstone.ops import route_regions, routed_attention
from torchstone.ops.routed_attention import routed_attention_probabilities

CONVOLUTION, FULL, FULL_LEPE = 0, -1, -2
"""What stands for another token mixer than routing attention where ``topks`` says how many regions are chosen."""
ROUTERS = ("content", "nearest", "random")
_POOLS: Mapping[str, Callable[[int], nn.Module]] = {
    "identity": lambda _: nn.Identity(),
    "ada_avgpool": nn.AdaptiveAvgPool2d,
    "ada_maxpool": nn.AdaptiveMaxPool2d,
    "avgpool": nn.AvgPool2d,
    "maxpool": nn.MaxPool2d,
}
_PROJECTIONS = ("qkvo", "qkv")


@dataclass(frozen=True)
class Routed:
    """What happens inside routed attention.

    Attributes:
        output: as of a plain call.
        routes: for every region, row by row, the regions that it attends to, best first, (B, R, K).
        weights: softmax of the K products of descriptors, (B, R, K).
        attention: softmax over the K M tokens of the routed regions, (B, R, h, T, K M).
    """

    output: Tensor
    routes: Tensor
    weights: Tensor
    attention: Tensor


class BiLevelRoutingAttention(nn.Module):
    """Bi-level routing attention: every region attends to the tokens of the few regions that suit it.

    With a map cut into S x S regions of T tokens, ``q``, ``k``, ``v`` linear in the tokens and means over regions::

        A = s mean(q) mean(k)^T,   routes[r] = the topk largest of A[r]          no gradient, by default
        out[r] = softmax(s q[r] concat(k[routes[r]])^T) concat(v[routes[r]])     by head
        y = W_o (out + depthwise(v))                                             s = qk_dim^-1/2, not by head

    Args:
        dim: channels C.
        num_heads: h, a divisor of C and ``qk_dim``.
        regions: S, regions a side.
        topk: regions that each region attends to, from 1 to S^2.
        qk_dim: channels of q and k, those of the map by default.
        side_dwconv: side of the depthwise convolution of the values (local enhancement), odd; 0 for none.
        auto_pad: pad maps whose sides S does not divide with zeros at the right and lower border, before the
            projection: padding takes part in attention, with the projection's bias as key and value. Otherwise such
            maps are refused.
        kv_downsample_mode: what each region's keys and values are pooled by: ``identity``, ``ada_avgpool`` or
            ``ada_maxpool`` to ``kv_per_win`` a side, ``avgpool`` or ``maxpool`` by ``kv_downsample_ratio``.
        kv_per_win: see there.
        kv_downsample_ratio: see there.
        param_attention: ``qkvo``, or ``qkv`` for no W_o.
        soft_routing: multiply keys and values by the softmax of each region's ``topk`` entries of A.
        diff_routing: let gradients through that softmax; needs ``soft_routing``.
        param_routing: pass both means through a linear layer of their own first; needs ``diff_routing``.
        router: ``content`` as above; ``nearest`` or ``random`` regions whatever the content, the same for all images,
            to measure what routing is worth (ours, not the paper's).

    Shape:
        (B, H, W, C) -> (B, H, W, C)

    Raises:
        CallError: heads, counts, sizes of pooling or options that do not go together.
        UnknownName: an unknown pooling, projection or router.
        ShapeError: on call, sides that S does not divide, without ``auto_pad``.

    Source:
        Zhu et al., BiFormer, CVPR 2023, Section 3.2.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        regions: int = 7,
        topk: int = 4,
        *,
        qk_dim: int | None = None,
        side_dwconv: int = 3,
        auto_pad: bool = False,
        kv_downsample_mode: str = "identity",
        kv_per_win: int = 4,
        kv_downsample_ratio: int = 4,
        param_attention: str = "qkvo",
        soft_routing: bool = False,
        diff_routing: bool = False,
        param_routing: bool = False,
        router: str = "content",
    ) -> None:
        super().__init__()
        qk_dim = dim if qk_dim is None else qk_dim
        _check_heads(num_heads, dim, qk_dim)
        _check_counts(regions, topk)
        if diff_routing and not soft_routing:
            raise CallError("diff_routing needs soft_routing: routes themselves have no gradient, their weights have")
        if param_routing and not diff_routing:
            raise CallError("param_routing needs diff_routing: without it nothing would train the router")
        if param_attention not in _PROJECTIONS:
            raise unknown_name("param_attention", param_attention, _PROJECTIONS)
        self.num_heads, self.regions, self.topk, self.auto_pad = num_heads, regions, topk, auto_pad
        self.sizes = [qk_dim, qk_dim, dim]
        self.soft_routing, self.diff_routing = soft_routing, diff_routing
        self.fixed_routes = _fixed_routes(router, regions, topk)
        self.lepe = local_enhancement(dim, side_dwconv)
        self.emb = nn.Linear(qk_dim, qk_dim) if param_routing else nn.Identity()
        self.qkv = nn.Linear(dim, 2 * qk_dim + dim)
        self.wo = nn.Linear(dim, dim) if param_attention == "qkvo" else nn.Identity()
        self.kv_down = _pool(kv_downsample_mode, kv_per_win, kv_downsample_ratio)
        self.least_region = kv_downsample_ratio if kv_downsample_mode in ("avgpool", "maxpool") else 1

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        height, width = x.shape[1:3]
        region = self._region(height, width)
        q, k, v = self._project(x, region)
        routes, weights = self._route(q, k)
        out = routed_attention(
            q,
            self._pooled(k, region),
            self._pooled(v, region),
            routes,
            heads=self.num_heads,
            weights=weights if self.soft_routing else None,
        )
        values, mixed = (self._map(tokens, region) for tokens in (v, out))
        enhancement = self.lepe(values.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.wo((mixed + enhancement)[:, :height, :width])

    def trace(self, x: Float[Tensor, "b h w c"]) -> Routed:
        """The output together with routes and attention, to look at."""
        region = self._region(*x.shape[1:3])
        q, k, _ = self._project(x, region)
        routes, weights = self._route(q, k)
        factors = weights if self.soft_routing else None
        keys = self._pooled(k, region)
        attention = routed_attention_probabilities(q, keys, routes, heads=self.num_heads, weights=factors)
        return Routed(self(x), routes, weights, attention)

    def _region(self, height: int, width: int) -> Size:
        """Height and width of a region, of the padded map where that is needed."""
        region = -(-height // self.regions), -(-width // self.regions)
        padded = region[0] * self.regions, region[1] * self.regions
        if padded != (height, width) and not self.auto_pad:
            raise ShapeError(
                f"{self.regions} regions a side do not divide a map of {height}x{width}; "
                f"give one of {padded[0]}x{padded[1]}, or build with auto_pad=True"
            )
        if min(region) < self.least_region:
            raise ShapeError(f"regions of {region[0]}x{region[1]} cannot be pooled by {self.least_region}")
        return region

    def _project(self, x: Tensor, region: Size) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v by region, (B, S^2, T, .)."""
        batch, height, width, _ = x.shape
        below, right = region[0] * self.regions - height, region[1] * self.regions - width
        if below or right:
            x = F.pad(x, (0, 0, 0, right, 0, below))
        tokens = window_partition(x, region).flatten(1, 2).unflatten(0, (batch, self.regions**2))  # (B, S^2, T, C)
        q, k, v = self.qkv(tokens).split(self.sizes, -1)
        return q, k, v

    def _map(self, tokens: Tensor, region: Size) -> Tensor:
        """The padded map of its regions: (B, S^2, T, c) -> (B, H', W', c)."""
        windows = tokens.flatten(0, 1).unflatten(1, region)
        return window_merge(windows, region[0] * self.regions, region[1] * self.regions)

    def _route(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Routes and their weights, (B, S^2, topk) both."""
        if self.fixed_routes is not None:
            return _same_for_all(self.fixed_routes, q)
        means = [x.mean(2, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (q, k)]
        if not self.diff_routing:
            means = [mean.detach() for mean in means]
        return route_regions(self.emb(means[0]), self.emb(means[1]), self.topk, scale=self.sizes[0] ** -0.5)

    def _pooled(self, tokens: Tensor, region: Size) -> Tensor:
        """Keys or values of every region, pooled within it: (B, S^2, T, c) -> (B, S^2, M, c)."""
        if isinstance(self.kv_down, nn.Identity):
            return tokens
        maps = tokens.flatten(0, 1).unflatten(1, region).permute(0, 3, 1, 2)  # (B S^2, c, h, w)
        return self.kv_down(maps).flatten(2).mT.unflatten(0, tokens.shape[:2])


class BiLevelRoutingAttention2d(nn.Module):
    """The authors' later form of bi-level routing attention, for maps (B, C, H, W) of any size.

    Regions have ``floor(H / S) x floor(W / S)`` tokens; where that does not divide the map there are more than S a
    side, and the last ones are padded with zeros after the projection: padding takes part in attention, with zeros as
    key and value, but not in the means that decide the routes. On other maps both forms compute the same.

    Args:
        dim: channels C.
        num_heads: h, a divisor of C.
        regions: S, regions a side.
        topk: regions that each region attends to, from 1 to S^2.
        side_dwconv: side of the depthwise convolution of the values, odd; 0 for none.

    Shape:
        (B, C, H, W) -> (B, C, H, W), H >= S and W >= S.

    Raises:
        CallError: heads that do not divide the channels, a count outside 1 to S^2.
        ShapeError: on call, maps smaller than S x S.
    """

    def __init__(self, dim: int, num_heads: int = 8, regions: int = 7, topk: int = 4, *, side_dwconv: int = 3) -> None:
        super().__init__()
        _check_heads(num_heads, dim)
        _check_counts(regions, topk)
        self.num_heads, self.regions, self.topk = num_heads, regions, topk
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.lepe = local_enhancement(dim, side_dwconv)
        self.wo = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        q, k, v = self.qkv(x).chunk(3, 1)
        region = self._region(*x.shape[-2:])
        routes, _ = self._route(q, k, region)
        q, k, values = (_tokens(part, region) for part in (q, k, v))
        out = routed_attention(q, k, values, routes, heads=self.num_heads, scale=x.shape[1] ** -0.5)
        height, width = x.shape[-2:]
        padded = [-(-side // step) * step for side, step in zip((height, width), region, strict=True)]
        merged = window_merge(out.flatten(0, 1).unflatten(1, region), padded[0], padded[1])[:, :height, :width]
        return self.wo(merged.permute(0, 3, 1, 2) + self.lepe(v))

    def trace(self, x: Float[Tensor, "b c h w"]) -> Routed:
        """The output together with routes and attention, to look at; R is the number of regions there are."""
        q, k, _ = self.qkv(x).chunk(3, 1)
        region = self._region(*x.shape[-2:])
        routes, weights = self._route(q, k, region)
        q, k = _tokens(q, region), _tokens(k, region)
        attention = routed_attention_probabilities(q, k, routes, heads=self.num_heads, scale=x.shape[1] ** -0.5)
        return Routed(self(x), routes, weights, attention)

    def _region(self, height: int, width: int) -> Size:
        """Height and width of a region."""
        if min(height, width) < self.regions:
            raise ShapeError(f"{self.regions} regions a side need a map of as many pixels, got {height}x{width}")
        return height // self.regions, width // self.regions

    def _route(self, q: Tensor, k: Tensor, region: Size) -> tuple[Tensor, Tensor]:
        """Routes by the means over what is there of each region."""
        pool = partial(F.avg_pool2d, kernel_size=region, ceil_mode=True, count_include_pad=False)
        dtype = torch.promote_types(q.dtype, torch.float32)
        means = [pool(x.detach().to(dtype)).flatten(2).mT for x in (q, k)]  # (B, R, C)
        return route_regions(means[0], means[1], self.topk)


class Attention(nn.Module):
    """Attention among all pixels of a map, as the authors have it: 8 heads, no bias in q, k and v, scaled by head.

    Args:
        dim: channels C, a multiple of ``num_heads``.
        num_heads: h.

    Shape:
        (B, H, W, C) -> (B, H, W, C)
    """

    def __init__(self, dim: int, num_heads: int = 8) -> None:
        super().__init__()
        _check_heads(num_heads, dim)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        return self.proj(self._mix(x))

    def _mix(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(1, 2)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).unflatten(1, x.shape[1:3])


class AttentionLePE(Attention):
    """Attention among all pixels with a depthwise convolution beside it: ``W_o (attention(x) + depthwise(x))``.

    The convolution reads the attention's input, not its values; released weights depend on it.
    """

    def __init__(self, dim: int, num_heads: int = 8, side_dwconv: int = 5) -> None:
        super().__init__(dim, num_heads)
        self.lepe = local_enhancement(dim, side_dwconv)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        return self.proj(self._mix(x) + self.lepe(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class AttentionLePE2d(nn.Module):
    """Attention among all pixels of a map, with a depthwise convolution of the values beside it.

    ``W_o (attention(x) + depthwise(v))``, 8 heads, no bias in q, k and v, scaled by head.

    Shape:
        (B, C, H, W) -> (B, C, H, W)
    """

    def __init__(self, dim: int, num_heads: int = 8, side_dwconv: int = 5) -> None:
        super().__init__()
        _check_heads(num_heads, dim)
        self.num_heads = num_heads
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.proj = nn.Conv2d(dim, dim, 1)
        self.lepe = local_enhancement(dim, side_dwconv)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        parts = self.qkv(x).chunk(3, 1)
        q, k, v = (y.flatten(2).mT.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in parts)  # (B, h, HW, d)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, HW, C)
        return self.proj(mixed.mT.unflatten(-1, x.shape[-2:]) + self.lepe(parts[2]))


class ConvolutionMixer(nn.Module):
    """Convolutions in the place of attention: 1x1, depthwise 5x5, 1x1; (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj_in = nn.Conv2d(dim, dim, 1)
        self.dwconv = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.proj_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        return self.proj_out(self.dwconv(self.proj_in(x.permute(0, 3, 1, 2)))).permute(0, 2, 3, 1)


def unrouted(dim: int, kind: int, side_dwconv: int) -> nn.Module:
    """The token mixer (B, H, W, C) -> (B, H, W, C) that a number below 1 in ``topks`` stands for."""
    mixers: Mapping[int, Callable[[], nn.Module]] = {
        CONVOLUTION: lambda: ConvolutionMixer(dim),
        FULL: lambda: Attention(dim),
        FULL_LEPE: lambda: AttentionLePE(dim, side_dwconv=side_dwconv),
    }
    if kind not in mixers:
        raise CallError(f"a value of topks must be positive, 0, -1 or -2, got {kind}")
    return mixers[kind]()


class _Nothing(nn.Module):
    """No local enhancement."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def local_enhancement(dim: int, side: int) -> nn.Module:
    """The depthwise convolution (LePE) of an odd side that keeps a map's size; a side of 0 gives zeros."""
    if side < 0 or (side and side % 2 == 0):
        raise CallError(f"side_dwconv must be odd, or 0 for none, got {side}")
    return nn.Conv2d(dim, dim, side, padding=side // 2, groups=dim) if side else _Nothing()


def fixed_routes(router: str, regions: int, count: int) -> list[list[int]]:
    """Routes that do not look at the content: for each of S x S regions, row by row, ``count`` regions.

    Args:
        router: ``nearest``, a region and those whose centres are closest; or ``random``, drawn once and for all.
        regions: S.
        count: from 1 to S^2.
    """
    if router == "random":
        generator = torch.Generator().manual_seed(0)
        draw = torch.rand(regions**2, regions**2, generator=generator, device="cpu")
        return draw.topk(count, -1).indices.tolist()
    places = [(y, x) for y in range(regions) for x in range(regions)]
    return [
        sorted(range(regions**2), key=lambda r: (places[r][0] - y) ** 2 + (places[r][1] - x) ** 2)[:count]
        for y, x in places
    ]


def _fixed_routes(router: str, regions: int, count: int) -> list[list[int]] | None:
    if router not in ROUTERS:
        raise unknown_name("router", router, ROUTERS)
    return None if router == "content" else fixed_routes(router, regions, count)


def _same_for_all(routes: list[list[int]], like: Tensor) -> tuple[Int[Tensor, "b r k"], Float[Tensor, "b r k"]]:
    found = torch.tensor(routes, device=like.device).expand(like.shape[0], -1, -1)
    return found, torch.full_like(found, 1 / found.shape[-1], dtype=like.dtype)


def _pool(mode: str, per_window: int, ratio: int) -> nn.Module:
    if mode not in _POOLS:
        raise unknown_name("kv_downsample_mode", mode, _POOLS)
    name, size = ("kv_per_win", per_window) if mode.startswith("ada") else ("kv_downsample_ratio", ratio)
    if mode != "identity" and size < 1:
        raise CallError(f"{name} must be positive for {mode}, got {size}")
    return _POOLS[mode](size)


def _tokens(x: Tensor, region: Size) -> Tensor:
    """Tokens of each region, zeros where the map ends: (B, c, H, W) -> (B, R, T, c)."""
    pads = [-x.shape[axis] % step for axis, step in zip((-2, -1), region, strict=True)]
    if any(pads):
        x = F.pad(x, (0, pads[1], 0, pads[0]))
    return window_partition(x.permute(0, 2, 3, 1), region).flatten(1, 2).unflatten(0, (x.shape[0], -1))


def _check_heads(heads: int, *channels: int) -> None:
    for width in channels:
        if heads < 1 or width % heads:
            raise CallError(f"{width} channels are not a multiple of the number of heads, {heads}")


def _check_counts(regions: int, topk: int) -> None:
    if regions < 1:
        raise CallError(f"there must be at least one region a side, got regions={regions}")
    if not 1 <= topk <= regions**2:
        raise CallError(f"of {regions}x{regions} regions topk must be from 1 to {regions**2}, got {topk}")
