"""Efficient channel attention (Wang, Wu, Zhu, Li, Zuo, Hu; CVPR 2020, arXiv 1910.03151): a channel gate of k weights.

Both layers scale every channel of a map by a gate that is computed from the channels' means. They keep the shape, need
no argument but the number of channels, and fit behind any convolution, also as timm's ``attn_layer``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from torchstone.errors import CallError, ShapeError


def adaptive_kernel_size(channels: int, gamma: float = 2.0, b: float = 1.0) -> int:
    """The number of neighbouring channels that a gate looks at (Section 3.2).

    ::

        k = |log2(C) / gamma + b / gamma|_odd

    ``|t|_odd`` is the odd number nearest to t, the larger one when t is even.

    Args:
        channels: C.
        gamma: of the channels that k goes with, ``C = 2^(gamma k - b)``.
        b: as above.

    Raises:
        CallError: less than one channel, or gamma not positive.

    Example:
        >>> [adaptive_kernel_size(channels) for channels in (64, 128, 256, 512, 1024, 2048)]
        [3, 5, 5, 5, 5, 7]
    """
    if channels < 1:
        raise CallError(f"channels must be at least 1, got {channels}")
    if gamma <= 0:
        raise CallError(f"gamma must be positive, got {gamma}")
    return int(abs(math.log2(channels) + b) / gamma) | 1


class _ChannelGate(nn.Module):
    """Scales every channel by ``sigmoid(correlate(y))`` of the channels' means y.

    Args:
        channels: C.
        kernel_size: k, odd; None for :func:`adaptive_kernel_size`.
        gamma: of the adaptive kernel size.
        b: of the adaptive kernel size.
        device, dtype: of the weights.
    """

    shared: bool  # one row of weights for all channels, or a row for each

    def __init__(
        self,
        channels: int,
        kernel_size: int | None = None,
        gamma: float = 2.0,
        b: float = 1.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        k = adaptive_kernel_size(channels, gamma, b) if kernel_size is None else kernel_size
        if k < 1 or k % 2 == 0:
            below = max(k - 1, 1)
            raise CallError(f"kernel_size must be odd and positive, got {k}; the nearest are {below} and {below + 2}")
        rows = 1 if self.shared else channels
        self.channels = channels
        self.conv = nn.Conv1d(rows, rows, k, padding=k // 2, groups=rows, bias=False, device=device, dtype=dtype)

    def correlate(self, y: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        """The correlation of the weights with every channel's neighbours."""
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ShapeError(f"expected maps (B, {self.channels}, H, W), got a tensor of shape {tuple(x.shape)}")
        gate = self.correlate(x.mean((2, 3))).sigmoid()
        return x * gate[:, :, None, None]

    def extra_repr(self) -> str:
        return f"channels={self.channels}"


class EfficientChannelAttention(_ChannelGate):
    """ECA: a gate from a 1-D convolution over the channels' means (Section 3.2).

    With k weights w that all channels share, and y zero outside of its C channels::

        y_c   = mean of x_c over height and width
        out_c = x_c * sigmoid(sum_j w_j y_(c + j - (k-1)/2)),   j = 0 ... k-1

    Args:
        channels: C.
        kernel_size: k, odd; None for :func:`adaptive_kernel_size`.
        gamma: of the adaptive kernel size.
        b: of the adaptive kernel size.
        device, dtype: of the weights.

    Attributes:
        conv: holds the weights; ``conv.weight`` is (1, 1, k), as in the released checkpoints and in timm.

    Shape:
        (B, C, H, W) -> (B, C, H, W)

    Raises:
        CallError: a kernel size that is not odd and positive.
        ShapeError: an input of another rank or number of channels.

    Example:
        >>> attention = EfficientChannelAttention(256)
        >>> attention.conv.weight.shape
        torch.Size([1, 1, 5])
        >>> attention(torch.zeros(2, 256, 14, 14)).shape
        torch.Size([2, 256, 14, 14])
    """

    shared = True

    def correlate(self, y: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        # The batch as the rows of one image: one convolution, several times faster than B short ones.
        return F.conv2d(y[None, None], self.conv.weight[:, :, None], padding=(0, self.conv.kernel_size[0] // 2))[0, 0]


class EfficientChannelAttentionNS(_ChannelGate):
    """ECA-NS: every channel has k weights of its own, not shared (Section 3.2).

    With y zero outside of its C channels::

        y_c   = mean of x_c over height and width
        out_c = x_c * sigmoid(sum_j w_cj y_(c + j - (k-1)/2)),   j = 0 ... k-1

    With equal rows of w it is :class:`EfficientChannelAttention`; with k = 1 it is the paper's SE-Var2.

    Args:
        channels: C.
        kernel_size: k, odd; None for :func:`adaptive_kernel_size`.
        gamma: of the adaptive kernel size.
        b: of the adaptive kernel size.
        device, dtype: of the weights.

    Attributes:
        conv: holds the weights; ``conv.weight`` is (C, 1, k), as in the authors' code.

    Shape:
        (B, C, H, W) -> (B, C, H, W)

    Raises:
        CallError: a kernel size that is not odd and positive.
        ShapeError: an input of another rank or number of channels.
    """

    shared = False

    def correlate(self, y: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        (k,) = self.conv.kernel_size
        windows = F.pad(y, (k // 2, k // 2)).unfold(1, k, 1)  # (B, C, k): every channel with its neighbours
        return torch.einsum("bck,ck->bc", windows, self.conv.weight[:, 0])
