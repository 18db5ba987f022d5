"""What every operator must do, on calls of its own choosing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from torchstone.ops import (
    block_fft,
    fused_block,
    inverse_block_fft,
    long_conv,
    monarch_conv,
    neighbour_scores,
    neighbour_sum,
    route_regions,
    routed_attention,
)


@dataclass(frozen=True)
class OpCall:
    """A call of an operator: its operands by shape, batch first, and what else it is given.

    Attributes:
        op: the operator.
        shapes: of the operands.
        empty: other shapes, with nothing in them, that it takes as well.
        options: keyword arguments.
        batched: how many of the operands have a batch axis in front.
        float32_inside: whether half-precision operands are computed in float32 throughout; an operator of several
            matrix products may round what passes between them.
    """

    op: Callable[..., Tensor]
    shapes: tuple[tuple[int, ...], ...]
    empty: tuple[tuple[tuple[int, ...], ...], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    batched: int = 1
    float32_inside: bool = True

    def operands(self, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in self.shapes]

    def __call__(self, *operands: Tensor) -> Tensor:
        result = self.op(*operands, **self.options)
        return torch.stack([result.real, result.imag], -1) if result.is_complex() else result


class Calling(nn.Module):
    """An operator as a network, for what takes networks."""

    def __init__(self, call: OpCall) -> None:
        super().__init__()
        self.call = call

    def forward(self, *operands: Tensor) -> Tensor:
        return self.call(*operands)


def bi_level_attention(query: Tensor, key: Tensor, value: Tensor, count: int, heads: int, soft: bool) -> Tensor:
    """Regions routed by the means of their tokens, then attention: both operators in one call."""
    precise = torch.promote_types(query.dtype, torch.float32)
    routes, weights = route_regions(query.mean(2, dtype=precise), key.mean(2, dtype=precise), count)
    return routed_attention(query, key, value, routes, heads=heads, weights=weights if soft else None)


_NO_PIXELS = (((0, 2, 3, 4, 5),) * 2, ((2, 0, 3, 4, 5),) * 2, ((2, 2, 3, 0, 5),) * 2)
_EMPTY = (((0, 2, 7), (2, 7)), ((2, 0, 7), (0, 7)), ((2, 2, 0), (2, 7)), ((2, 2, 7), (2, 0)))


def _block(batch: int, channels: int, out: int | None = None) -> tuple[tuple[int, ...], ...]:
    """Shapes of a fused block's operands: groups of 2 channels, 6 hidden ones."""
    out = out or channels
    return (
        (batch, channels, 5, 5),
        (channels, 2, 3, 3),
        (channels,),
        (6, channels, 1, 1),
        (6,),
        (out, 6, 1, 1),
        (out,),
    )


OP_CALLS = {
    "long_conv, causal": OpCall(long_conv, ((2, 3, 11), (3, 11)), _EMPTY),
    "long_conv, bidirectional": OpCall(long_conv, ((2, 3, 9), (3, 14), (3, 5))),
    "long_conv, two kernels a channel": OpCall(long_conv, ((3, 2, 7), (2, 2, 7), (2, 2, 6))),
    "monarch_conv, causal": OpCall(monarch_conv, ((2, 2, 20), (2, 20)), _EMPTY),
    "monarch_conv, two kernels a channel": OpCall(monarch_conv, ((2, 2, 7), (2, 2, 9), (2, 2, 3))),
    "block_fft": OpCall(block_fft, ((2, 2, 20),), (((0, 2, 20),), ((2, 0, 20),))),
    "routed_attention": OpCall(
        bi_level_attention,
        ((2, 4, 3, 4), (2, 4, 2, 4), (2, 4, 2, 6)),
        (((0, 4, 3, 4), (0, 4, 2, 4), (0, 4, 2, 6)), ((2, 4, 0, 4), (2, 4, 2, 4), (2, 4, 2, 6))),
        {"count": 2, "heads": 2, "soft": False},
        batched=3,
    ),
    "routed_attention, weighted": OpCall(
        bi_level_attention,
        ((2, 4, 3, 4), (2, 4, 2, 4), (2, 4, 2, 6)),
        options={"count": 2, "heads": 2, "soft": True},
        batched=3,
    ),
    "fused_block": OpCall(fused_block, _block(2, 4), (_block(0, 4),), float32_inside=False),
    "fused_block, without residual": OpCall(
        fused_block, _block(3, 4, out=2), options={"residual": False}, float32_inside=False
    ),
    "inverse_block_fft": OpCall(inverse_block_fft, ((2, 2, 6),), (((0, 2, 6),),), {"points": 32}),
    "neighbour_scores": OpCall(neighbour_scores, ((2, 2, 3, 4, 5),) * 2, _NO_PIXELS, {"window": 3}, batched=2),
    "neighbour_sum": OpCall(
        neighbour_sum,
        ((2, 2, 9, 3, 5), (2, 2, 4, 3, 5)),
        (((0, 2, 9, 4, 5), (0, 2, 3, 4, 5)), ((2, 2, 9, 0, 5), (2, 2, 3, 0, 5))),
        {"window": 3},
        batched=2,
    ),
}
