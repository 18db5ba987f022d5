"""The definition of the fused block, layer by layer, and which shapes the kernels take."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CHUNK = 16
"""Channels that the kernel convolves at a time; groups lie within a chunk."""
_MOST_CHANNELS = 256
_LARGEST_KERNEL = 7


def fused_block(
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    *,
    residual: bool,
) -> Tensor:
    """``W2 SiLU(W1 (GroupConv(x) + b0) + b1) + b2 [+ x]``; shapes as in :func:`torchstone.ops.fused_block`."""
    u = grouped_convolution(x, conv_weight, conv_bias)
    hidden = F.silu(F.conv2d(u, expand_weight, expand_bias))
    y = F.conv2d(hidden, project_weight, project_bias)
    return x + y if residual else y


def grouped_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Groups as wide as the weight's second dimension; the map keeps its size."""
    channels, group_width, side, _ = weight.shape
    return F.conv2d(x, weight, bias, padding=side // 2, groups=channels // group_width)


def fits_kernels(conv_weight: Tensor, project_weight: Tensor) -> bool:
    """Whether the kernels are made for these sizes."""
    channels, group_width, side, _ = conv_weight.shape
    return (
        CHUNK % group_width == 0
        and max(channels, project_weight.shape[0]) <= _MOST_CHANNELS
        and side <= _LARGEST_KERNEL
    )


def macs(x: tuple[int, ...], conv: tuple[int, ...], expand: tuple[int, ...], project: tuple[int, ...]) -> int:
    """Multiply-accumulates of the block, from the shapes of the map and the weights."""
    batch, channels, height, width = x
    per_pixel = channels * conv[1] * conv[2] * conv[3] + expand[0] * channels + project[0] * expand[0]
    return batch * height * width * per_pixel
