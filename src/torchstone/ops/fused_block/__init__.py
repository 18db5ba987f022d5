"""A ConvFirst block, its batch norms folded, as one operation."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from torchstone.errors import CallError, ShapeError
from torchstone.ops.dispatch import check_operands, takes_kernels
from torchstone.ops.fused_block import reference

__all__ = ["fused_block"]


def fused_block(
    x: Float[Tensor, "batch channels height width"],
    conv_weight: Float[Tensor, "channels group_width k k"],
    conv_bias: Float[Tensor, " channels"],
    expand_weight: Float[Tensor, "hidden channels 1 1"],
    expand_bias: Float[Tensor, " hidden"],
    project_weight: Float[Tensor, "out hidden 1 1"],
    project_bias: Float[Tensor, " out"],
    *,
    residual: bool = True,
) -> Float[Tensor, "batch out height width"]:
    """A grouped convolution, an expansion, SiLU and a projection, whose hidden tensor is never written to memory.

    ``y = W2 SiLU(W1 (GroupConv(x) + b0) + b1) + b2 [+ x]``

    On CUDA devices one Triton kernel computes the whole block: a tile of pixels is convolved, then slice by slice of
    the hidden channels expanded, activated and projected, with the sums in float32. Elsewhere, and for shapes beyond
    the kernel (more than 256 channels, groups that do not divide 16, sides above 7), it is computed layer by layer. The
    kernels do not keep the hidden tensor for the backward pass either, but compute it again.

    Args:
        x: the map, (B, C, H, W).
        conv_weight: kernels (C, g, k, k) of C / g groups, k odd; the map is padded with zeros to keep its size.
        conv_bias: b0, (C,).
        expand_weight: W1, (E, C, 1, 1).
        expand_bias: b1, (E,).
        project_weight: W2, (O, E, 1, 1).
        project_bias: b2, (O,).
        residual: add x; then O = C.

    Returns:
        (B, O, H, W).

    Raises:
        ShapeError: a rank or size that does not fit.
        CallError: tensors of different types or devices, or a residual between different numbers of channels.

    Source:
        Lavin, On the Efficiency of Convolutional Neural Networks, 2024 (block fusion).

    Example:
        >>> x = torch.randn(2, 16, 8, 8)
        >>> conv, expand, project = torch.randn(16, 8, 3, 3), torch.randn(64, 16, 1, 1), torch.randn(16, 64, 1, 1)
        >>> fused_block(x, conv, torch.zeros(16), expand, torch.zeros(64), project, torch.zeros(16)).shape
        torch.Size([2, 16, 8, 8])
    """
    operands = (x, conv_weight, conv_bias, expand_weight, expand_bias, project_weight, project_bias)
    _check(*operands, residual=residual)
    if takes_kernels(*operands, dtypes=reference.KERNEL_DTYPES) and reference.fits_kernels(conv_weight, project_weight):
        from torchstone.ops.fused_block.triton_kernels import fused_block_kernel

        return fused_block_kernel(*operands, residual)
    return reference.fused_block(*operands, residual=residual)


def _check(
    x: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    *,
    residual: bool,
) -> None:
    if x.ndim != 4:
        raise ShapeError(f"x must be a map (B, C, H, W), got a tensor of shape {tuple(x.shape)}")
    channels = x.shape[1]
    if conv_weight.ndim != 4 or conv_weight.shape[0] != channels or channels % conv_weight.shape[1]:
        raise ShapeError(
            f"conv_weight must be (C, g, k, k), C = {channels} and g a divisor of it, got {tuple(conv_weight.shape)}"
        )
    side = conv_weight.shape[-1]
    if conv_weight.shape[-2] != side or side % 2 == 0:
        raise ShapeError(f"the kernel must be square with an odd side, got {tuple(conv_weight.shape[-2:])}")
    if expand_weight.shape[1:] != (channels, 1, 1):
        raise ShapeError(f"expand_weight must be (E, {channels}, 1, 1), got {tuple(expand_weight.shape)}")
    hidden = expand_weight.shape[0]
    if project_weight.shape[1:] != (hidden, 1, 1):
        raise ShapeError(f"project_weight must be (O, {hidden}, 1, 1), got {tuple(project_weight.shape)}")
    out = project_weight.shape[0]
    for name, bias, size in (
        ("conv_bias", conv_bias, channels),
        ("expand_bias", expand_bias, hidden),
        ("project_bias", project_bias, out),
    ):
        if bias.shape != (size,):
            raise ShapeError(f"{name} must be ({size},), got {tuple(bias.shape)}")
    if residual and out != channels:
        raise CallError(f"a residual needs as many channels out as in, got {channels} in and {out} out")
    check_operands(
        x=x,
        conv_weight=conv_weight,
        conv_bias=conv_bias,
        expand_weight=expand_weight,
        expand_bias=expand_bias,
        project_weight=project_weight,
        project_bias=project_bias,
    )
