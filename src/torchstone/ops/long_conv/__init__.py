"""Long convolutions (placeholder of the branch; the op itself is merged from its own)."""

from __future__ import annotations

import torch
from torch import Tensor


def long_conv(u: Tensor, kernel: Tensor, backward: Tensor | None = None) -> Tensor:
    """y[t] = sum_j kernel[j] u[t-j] + sum_j backward[j] u[t+1+j]."""
    squeeze = kernel.dim() == 2
    length = u.shape[-1]
    forward = (kernel[None] if squeeze else kernel)[..., :length].float()
    n = 2 * length
    spectrum = torch.fft.rfft(forward, n=n)
    if backward is not None:
        behind = (backward[None] if squeeze else backward)[..., : length - 1].float()
        both = torch.nn.functional.pad(forward, (0, n - forward.shape[-1])) + torch.nn.functional.pad(
            behind.flip(-1), (n - behind.shape[-1], 0)
        )
        spectrum = torch.fft.rfft(both, n=n)
    y = torch.fft.irfft(torch.fft.rfft(u.float(), n=n)[:, None] * spectrum, n=n)[..., :length].to(u.dtype)
    return y[:, 0] if squeeze else y
