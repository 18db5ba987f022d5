"""The fused block beside its layers one by one, and beside them image by image."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from torchstone.ops.fused_block import fused_block, reference
from torchstone.ops.workload import Contender, Shapes, Workload

_GROUP, _KERNEL = 8, 3


def _shapes(side: int, settings: Mapping[str, int]) -> Shapes:
    channels = settings["channels"]
    hidden = settings["expansion"] * channels
    return (
        (settings["batch"], channels, side, side),
        (channels, _GROUP, _KERNEL, _KERNEL),
        (channels,),
        (hidden, channels, 1, 1),
        (hidden,),
        (channels, hidden, 1, 1),
        (channels,),
    )


def _layers(*operands: Tensor) -> Tensor:
    return reference.fused_block(*operands, residual=True)


def _depth_first(x: Tensor, *weights: Tensor) -> Tensor:
    return torch.cat([reference.fused_block(image, *weights, residual=True) for image in x.split(1)])


WORKLOAD = Workload(
    op="fused_block",
    summary=f"a ConvFirst block, {_KERNEL}x{_KERNEL} kernels in groups of {_GROUP} channels, with its residual",
    size="side",
    sizes=(14, 28, 56, 112),
    settings={"batch": 8, "channels": 64, "expansion": 4},
    shapes=_shapes,
    contenders={
        "fused_block": Contender(fused_block, True, "one kernel on a GPU where it fits, else layer by layer"),
        "layers": Contender(_layers, True, "its definition: three convolutions and SiLU of the whole batch"),
        "image by image": Contender(_depth_first, True, "the layers of one image after another, to stay in the caches"),
    },
)
