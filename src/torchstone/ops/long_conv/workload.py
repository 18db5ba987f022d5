"""The long convolution beside what else mixes a sequence."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from torchstone.ops.long_conv import long_conv, monarch_conv, reference
from torchstone.ops.workload import Contender, Shapes, Workload

_HEAD = 64
"""Channels of an attention head, at most."""


def _shapes(length: int, settings: Mapping[str, int]) -> Shapes:
    channels = settings["channels"]
    return (settings["batch"], channels, length), (channels, length)


def _definition(u: Tensor, kernel: Tensor) -> Tensor:
    return reference.convolve(u, kernel[None], 0)[:, 0]


def _textbook(u: Tensor, kernel: Tensor) -> Tensor:
    points = 2 * u.shape[-1]
    spectrum = torch.fft.rfft(u.float(), points) * torch.fft.rfft(kernel.float(), points)
    return torch.fft.irfft(spectrum, points)[..., : u.shape[-1]].to(u.dtype)


def _direct(u: Tensor, kernel: Tensor) -> Tensor:
    return F.conv1d(F.pad(u, (kernel.shape[-1] - 1, 0)), kernel.flip(-1)[:, None], groups=kernel.shape[0])


def _attention(u: Tensor, kernel: Tensor) -> Tensor:
    batch, channels, length = u.shape
    size = _HEAD if channels % _HEAD == 0 else channels
    tokens = u.view(batch, channels // size, size, length).transpose(-1, -2)
    mixed = F.scaled_dot_product_attention(tokens, tokens, tokens, is_causal=True)
    return mixed.transpose(-1, -2).reshape(u.shape)


WORKLOAD = Workload(
    op="long_conv",
    summary="causal convolution of every channel with a kernel as long as the sequence",
    size="length",
    sizes=(1 << 10, 1 << 12, 1 << 14, 1 << 16),
    settings={"batch": 4, "channels": 64},
    shapes=_shapes,
    contenders={
        "long_conv": Contender(long_conv, True, "kernels on a GPU where the length fits on chip, else the reference"),
        "reference": Contender(_definition, True, "its definition by torch.fft, at the next fast length"),
        "monarch_conv": Contender(monarch_conv, True, "its block decomposition, products with small matrices"),
        "torch.fft, 2L points": Contender(_textbook, True, "the usual three lines with torch.fft, in float32"),
        "direct": Contender(_direct, True, "torch's depthwise convolution with the reversed kernel, O(L^2)"),
        "attention": Contender(_attention, False, "causal self-attention without its projections, O(L^2)"),
    },
)
