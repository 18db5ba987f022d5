"""The definition of the long convolution, by fast Fourier transforms long enough that nothing wraps round.

Taps are held by lag: ``taps = [backward reversed, kernel]``, the present at index ``ahead``, so that

    y[t] = sum_j taps[j] u[t + ahead - j].

The full convolution of ``u`` (L points) with ``taps`` (J) has L + J - 1 points, of which those from ``ahead`` to
``ahead + L`` are wanted. In a circular one of n points they are right when no other falls on them: from the left
n >= L + ahead, from the right n >= L + J - 1 - ahead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchstone.ops.dispatch import accurate


def by_lag(kernel: Tensor, backward: Tensor | None, length: int) -> tuple[Tensor, int]:
    """Both kernels as one, from the furthest tap ahead to the furthest back, and the index of the present.

    Args:
        kernel: (..., H, K).
        backward: (..., H, K') or None.
        length: of the sequence; taps that reach beyond it are left out.

    Returns:
        Taps (..., H, J) and the number of taps ahead of the present.
    """
    if isinstance(length, torch.SymInt):  # an export for any length: which taps reach beyond it is not known
        return (kernel, 0) if backward is None else (torch.cat([backward.flip(-1), kernel], -1), backward.shape[-1])
    kernel = kernel[..., :length]
    if backward is None or not length:
        return kernel, 0
    backward = backward[..., : length - 1]
    return torch.cat([backward.flip(-1), kernel], -1), backward.shape[-1]


def convolve(u: Tensor, taps: Tensor, ahead: int) -> Tensor:
    """The convolution with taps by lag.

    Args:
        u: (B, H, L).
        taps: (C, H, J).
        ahead: index of the tap of the present.

    Returns:
        (B, C, H, L).
    """
    length = u.shape[-1]
    dtype, result = accurate(u, taps), torch.promote_types(u.dtype, taps.dtype)
    if not isinstance(length, torch.SymInt) and not (u.numel() and taps.numel()):
        return torch.einsum("bhl,chj->bchl", u.to(result), taps.to(result))  # sums of nothing
    points = transform_length(length, taps.shape[-1], ahead)
    # The axis of the maps comes before the transform: ONNX has no views of complex tensors.
    spectrum = torch.fft.rfft(u.to(dtype)[:, None], points) * torch.fft.rfft(taps.to(dtype), points)  # (B, C, H, n/2+1)
    return torch.fft.irfft(spectrum, points)[..., ahead : ahead + length].to(result)


def convolve_backward(gradient: Tensor, u: Tensor, taps: Tensor, ahead: int) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`convolve`, written out: both are correlations, products with a conjugate spectrum.

    ``du[s] = sum_t gradient[t] taps[t - s + ahead]`` and ``dtaps[j] = sum_t gradient[t] u[t + ahead - j]``, summed over
    the kernels and over the batch.

    Args:
        gradient: of the output, (B, C, H, L).
        u: (B, H, L).
        taps: (C, H, J).
        ahead: index of the tap of the present.

    Returns:
        Gradients of ``u`` and ``taps``.
    """
    length, lags = u.shape[-1], taps.shape[-1]
    dtype = accurate(u, taps)
    points = transform_length(length, lags, ahead)
    spectra = (torch.fft.rfft(x.to(dtype), points) for x in (gradient, u, taps))
    gradient_spectrum, u_spectrum, taps_spectrum = spectra
    by_lag = torch.fft.irfft((gradient_spectrum * u_spectrum.conj()[:, None]).sum(0), points)
    by_time = torch.fft.irfft((gradient_spectrum * taps_spectrum.conj()).sum(1), points)
    u_gradient, taps_gradient = by_time.roll(ahead, -1)[..., :length], by_lag.roll(ahead, -1)[..., :lags]
    return u_gradient.to(u.dtype).contiguous(), taps_gradient.to(taps.dtype).contiguous()


def transform_length(length: int, taps: int, ahead: int) -> int:
    """Points of the Fourier transforms: enough that nothing wraps round, and a length that is transformed fast."""
    if isinstance(length, torch.SymInt):
        return length + taps - 1
    return fast_length(length + max(ahead, taps - 1 - ahead))


_ODD_FACTORS = (1, 3, 5, 9, 15, 25, 27, 45, 75, 81, 125, 135)


def fast_length(points: int) -> int:
    """The smallest number not below ``points`` that is a power of two, from 2 on, times few factors of 3 and 5."""
    return min(odd << max(1, (-(-points // odd) - 1).bit_length()) for odd in _ODD_FACTORS)
