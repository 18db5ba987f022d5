"""Operators: functions of tensors without parameters.

Each has a reference in ordinary PyTorch, which is its definition and runs everywhere, and kernels that CUDA tensors
take where they fit (:mod:`torchstone.ops.dispatch`). Both give the same values and gradients.
"""

from torchstone.ops.fused_block import fused_block
from torchstone.ops.long_conv import block_fft, inverse_block_fft, long_conv, monarch_conv
from torchstone.ops.neighbourhood import neighbour_scores, neighbour_sum
from torchstone.ops.routed_attention import route_regions, routed_attention, routed_attention_probabilities

__all__ = [
    "block_fft",
    "fused_block",
    "inverse_block_fft",
    "long_conv",
    "monarch_conv",
    "neighbour_scores",
    "neighbour_sum",
    "route_regions",
    "routed_attention",
    "routed_attention_probabilities",
]
