"""Layers that two or more systems share, or that anybody's network can use."""

from torchstone.layers.channel_attention import (
    EfficientChannelAttention,
    EfficientChannelAttentionNS,
    adaptive_kernel_size,
)
from torchstone.layers.checks import check_images
from torchstone.layers.mbconv import MBConv
from torchstone.layers.relative_position import RelativePositionBias
from torchstone.layers.windows import grid_merge, grid_partition, window_merge, window_partition

__all__ = [
    "EfficientChannelAttention",
    "EfficientChannelAttentionNS",
    "MBConv",
    "RelativePositionBias",
    "adaptive_kernel_size",
    "check_images",
    "grid_merge",
    "grid_partition",
    "window_merge",
    "window_partition",
]
