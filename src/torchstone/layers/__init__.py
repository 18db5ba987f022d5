"""Layers that two or more systems share, or that anybody's network can use."""

from torchstone.layers.channel_attention import (
    EfficientChannelAttention,
    EfficientChannelAttentionNS,
    adaptive_kernel_size,
)
from torchstone.layers.checks import check_images

__all__ = [
    "EfficientChannelAttention",
    "EfficientChannelAttentionNS",
    "adaptive_kernel_size",
    "check_images",
]
