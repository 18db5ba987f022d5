"""Convolution of a sequence with a kernel as long as itself, exactly, in O(L log L)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jaxtyping import Complex, Float
from torch import Tensor

from torchstone.errors import ShapeError
from torchstone.ops.dispatch import check_operands
from torchstone.ops.long_conv import cuda, reference
from torchstone.ops.long_conv.monarch import block_fft, convolve_by_blocks, inverse_block_fft

__all__ = ["block_fft", "inverse_block_fft", "long_conv", "monarch_conv"]


def long_conv(
    u: Float[Tensor, "batch channels length"],
    kernel: Float[Tensor, "*maps channels taps"],
    backward: Float[Tensor, "*maps channels taps_ahead"] | None = None,
) -> Float[Tensor, "batch *maps channels length"]:
    """Convolve each channel of a sequence with its own long kernel; nothing wraps round.

    ``y[t] = sum_{j >= 0} kernel[j] u[t - j] + sum_{j >= 0} backward[j] u[t + 1 + j]``,

    ``u`` being zero outside its length: a causal convolution, or with ``backward`` a bidirectional one. Any length and
    any number of taps will do; taps that reach beyond the sequence have no effect. The cost is O(L log L).

    Values and gradients are exact up to rounding in float32 (float64 for float64 operands); half-precision operands
    are computed in float32. The result has the type that the operands promote to.

    Args:
        u: the sequences, (B, H, L).
        kernel: taps for the present and the past, (H, K), tap ``j`` weighing what came ``j`` steps before; or
            (C, H, K), C kernels for each channel.
        backward: taps for the future, (H, K') or (C, H, K') as the kernel, tap ``j`` weighing what comes ``1 + j``
            steps later; none by default.

    Returns:
        (B, H, L), or (B, C, H, L) with C kernels for each channel.

    Raises:
        ShapeError: a rank or a size that does not fit.
        CallError: numbers that are not real floating-point ones, or tensors on different devices.

    Source:
        Fu et al., Simple Hardware-Efficient Long Convolutions for Sequence Modeling, ICML 2023, Section 2.

    Example:
        >>> u, kernel = torch.randn(2, 8, 1000), torch.randn(8, 1000)
        >>> long_conv(u, kernel).shape
        torch.Size([2, 8, 1000])
    """
    _check(u, kernel, backward)
    taps, ahead = reference.by_lag(kernel, backward, u.shape[-1])
    convolve = cuda.convolve if cuda.takes(u, taps, ahead) else reference.convolve
    if kernel.ndim == 2:
        return convolve(u, taps[None], ahead)[:, 0]
    return convolve(u, taps, ahead)


def monarch_conv(
    u: Float[Tensor, "batch channels length"],
    kernel: Float[Tensor, "*maps channels taps"],
    backward: Float[Tensor, "*maps channels taps_ahead"] | None = None,
    *,
    matrices: Mapping[int, Complex[Tensor, "*_channels _rows _columns"]] | None = None,
    kernel_matrices: Mapping[int, Complex[Tensor, "*_channels _rows _columns"]] | None = None,
    activation: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "batch *maps channels length"]:
    """The long convolution with its Fourier transforms as products with small matrices; optionally learned ones.

    With the exact matrices this is :func:`long_conv`, equal up to rounding, in another order of the same sums. With
    learned ones (the paper's butterfly extension) the sequence and the kernel are each transformed by their own block
    FFT, and the product of the two returns by the exact inverse transform:

    ``y = Re IDFT(block_fft(u, matrices) * block_fft(kernel, kernel_matrices))`` over the first power of two of points
    with which nothing wraps round.

    Args:
        u: the sequences, (B, H, L).
        kernel: as of :func:`long_conv`.
        backward: as of :func:`long_conv`.
        matrices: as of :func:`block_fft`, for the sequence.
        kernel_matrices: as of :func:`block_fft`, for the kernel.
        activation: as of :func:`block_fft`, for both.

    Returns:
        (B, H, L), or (B, C, H, L) with C kernels for each channel.

    Raises:
        ShapeError: a rank or a size that does not fit.
        CallError: numbers that are not real floating-point ones, tensors on different devices, matrices that are
            missing.

    Source:
        Fu et al., Simple Hardware-Efficient Long Convolutions for Sequence Modeling, ICML 2023, Section 3
        (FlashButterfly and its learned extension).
    """
    _check(u, kernel, backward)
    taps, ahead = reference.by_lag(kernel, backward, u.shape[-1])
    if kernel.ndim == 2:
        return convolve_by_blocks(u, taps[None], ahead, matrices, kernel_matrices, activation)[:, 0]
    return convolve_by_blocks(u, taps, ahead, matrices, kernel_matrices, activation)


def _check(u: Tensor, kernel: Tensor, backward: Tensor | None) -> None:
    if u.ndim != 3:
        raise ShapeError(f"u must be (B, H, L), got a tensor of shape {tuple(u.shape)}")
    if kernel.ndim not in (2, 3):
        raise ShapeError(f"kernel must be (H, K) or (C, H, K), got a tensor of shape {tuple(kernel.shape)}")
    if kernel.shape[-2] != u.shape[1]:
        raise ShapeError(
            f"kernel has {kernel.shape[-2]} channels and u has {u.shape[1]}: {tuple(kernel.shape)} and {tuple(u.shape)}"
        )
    if backward is None:
        check_operands(u=u, kernel=kernel)
        return
    if backward.shape[:-1] != kernel.shape[:-1]:
        raise ShapeError(
            f"backward must be as the kernel but for its taps, {(*kernel.shape[:-1], 'K')}, got {tuple(backward.shape)}"
        )
    check_operands(u=u, kernel=kernel, backward=backward)
