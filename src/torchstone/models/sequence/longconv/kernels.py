"""Kernels as long as the sequence, and what keeps them trainable: squash, smooth, dropout, their own learning rate.

A free kernel of thousands of taps overfits. Two regularisers act on it on its way to the convolution (in this order;
k is a kernel of K taps)::

    smooth     k_j <- 1/w sum_|i| <= w/2 k_(j + i)                    mean over a window of w taps, zeros outside
        or     K_f <- sum_|n| <= w/2 exp(-n^2 / 2) K_(f + n)          Gaussian window over the kernel's spectrum
    squash     k_j <- sign(k_j) max(|k_j| - lambda, 0)                soft threshold: small taps become exactly zero

and the taps that are left are dropped at random while training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchstone.errors import CallError, unknown_name


def squash(kernel: Tensor, threshold: float) -> Tensor:
    """Soft threshold, sign(k) max(|k| - threshold, 0), of any shape; its gradient is one where a tap is left."""
    return F.softshrink(kernel, threshold)


def smooth_in_time(kernel: Tensor, window: int) -> Tensor:
    """Moving average of ``window`` (odd) taps, zeros beyond both ends: (..., K) to (..., K)."""
    flat = kernel.reshape(1, -1, kernel.shape[-1])
    return F.avg_pool1d(flat, window, stride=1, padding=window // 2).view_as(kernel)


def smooth_in_frequency(kernel: Tensor, window: int) -> Tensor:
    """The spectrum weighed by an unnormalised Gaussian of variance 1 over ``window`` bins: (..., K) to (..., K).

    The spectrum is taken as zero beyond its ends. Smoothing a spectrum is weighing the taps: late ones are damped.
    """
    taps = kernel.shape[-1]
    spectrum = torch.view_as_real(torch.fft.rfft(kernel))  # (..., K/2 + 1, 2)
    parts = spectrum.movedim(-1, 0).reshape(-1, 1, spectrum.shape[-2])  # real and imaginary parts, one row each
    offsets = torch.arange(window, dtype=kernel.dtype, device=kernel.device) - window // 2
    weights = torch.exp(-0.5 * offsets.square()).view(1, 1, -1)
    smoothed = F.conv1d(parts, weights, padding="same").view(2, *spectrum.shape[:-1])
    return torch.fft.irfft(torch.complex(smoothed[0], smoothed[1]), n=taps)


SMOOTHINGS: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "time": smooth_in_time,
    "frequency": smooth_in_frequency,
}


def _normal(maps: int, channels: int, taps: int) -> Tensor:
    return 0.002 * torch.randn(maps, channels, taps)


def _double_exponential(maps: int, channels: int, taps: int) -> Tensor:
    """Noise that decays along the taps, at a rate that grows from channel to channel:
    0.02 N(0, 1) exp(-(j / K) floor(H / 2)^(i / H)) for tap j of channel i."""
    rates = torch.tensor(float(channels // 2)) ** (torch.arange(channels) / channels)
    decay = torch.exp(-torch.outer(rates, torch.arange(taps) / taps))  # (H, K)
    return 0.02 * torch.randn(maps, channels, taps) * decay


INITIALISERS: Mapping[str, Callable[[int, int, int], Tensor]] = {
    "random": _normal,
    "double_exp": _double_exponential,
}


class LongConvKernel(nn.Module):
    """A bank of regularised kernels.

    Args:
        maps: M, kernels of each channel.
        channels: H.
        taps: K, the kernels' length.
        squash: lambda, the threshold below which a tap is zero; 0 is no squashing. Taps below it get no gradient, so
            it should leave some of a fresh kernel; smoothing over w taps makes fresh ones smaller by sqrt(w).
        dropout: rate at which taps are dropped while training (what is left is scaled by 1 / (1 - rate)).
        smooth: None, ``"time"`` or ``"frequency"``.
        window: w, the width of the smoothing: taps (odd) or bins.
        init: ``"random"``, 0.002 N(0, 1), or ``"double_exp"``, noise that decays.
        lr: learning rate of the taps; None is the recipe's, 0 keeps them as they are. They never decay.

    Raises:
        CallError: a value out of range, or an even window in time.
        UnknownName: a smoothing or initialisation that does not exist.
    """

    def __init__(
        self,
        maps: int,
        channels: int,
        taps: int,
        *,
        squash: float = 0.003,
        dropout: float = 0.0,
        smooth: str | None = None,
        window: int = 7,
        init: str = "random",
        lr: float | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("maps", maps), ("channels", channels), ("taps", taps), ("window", window)):
            if value < 1:
                raise CallError(f"{name} must be at least 1, got {value}")
        if squash < 0:
            raise CallError(f"squash is a threshold, 0 or more, got {squash}")
        if not 0 <= dropout < 1:
            raise CallError(f"dropout must be at least 0 and below 1, got {dropout}")
        if lr is not None and lr < 0:
            raise CallError(f"lr must not be negative, got {lr}")
        if smooth is not None and smooth not in SMOOTHINGS:
            raise unknown_name("smoothing", smooth, SMOOTHINGS)
        if smooth == "time" and window % 2 == 0:
            raise CallError(f"a moving average has a middle, so its window is odd: got {window}, take {window + 1}")
        if init not in INITIALISERS:
            raise unknown_name("initialisation", init, INITIALISERS)
        self.squash, self.dropout, self.smooth, self.window, self.lr = squash, dropout, smooth, window, lr
        kernel = INITIALISERS[init](maps, channels, taps)  # (M, H, K)
        self.kernel: Tensor
        if lr == 0:
            self.register_buffer("kernel", kernel)
        else:
            self.kernel = nn.Parameter(kernel)

    def parameter_settings(self) -> dict[str, dict[str, Any]]:
        """How the optimizer treats the taps: their own learning rate, no weight decay."""
        return {} if self.lr == 0 else {"kernel": {"lr": self.lr, "weight_decay": 0.0}}

    def forward(self) -> Tensor:
        """The kernels as the convolution takes them, (M, H, K)."""
        kernel = self.kernel
        if self.smooth is not None:
            kernel = SMOOTHINGS[self.smooth](kernel, self.window)
        return F.dropout(squash(kernel, self.squash), self.dropout, self.training)

    @torch.no_grad()
    def sparsity(self) -> float:
        """The share of taps that are exactly zero after smoothing and squashing."""
        kernel = self.kernel if self.smooth is None else SMOOTHINGS[self.smooth](self.kernel, self.window)
        return (squash(kernel, self.squash) == 0).float().mean().item()

    def extra_repr(self) -> str:
        maps, channels, taps = self.kernel.shape
        smooth = f", smooth={self.smooth}, window={self.window}" if self.smooth else ""
        return f"maps={maps}, channels={channels}, taps={taps}, squash={self.squash}, dropout={self.dropout}{smooth}"
