"""The parts of a MetaNeXt network: token mixers, block, stage and heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeGuard, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchstone.errors import CallError
from torchstone.layers.backbone import ClassifierHead
from torchstone.layers.checkpointing import BlockSequence

Layer = Callable[..., nn.Module]

_layer_norm = partial(nn.LayerNorm, eps=1e-6)


# Token mixers ---------------------------------------------------------------------------------------------------------


class InceptionDWConv2d(nn.Module):
    """Inception depthwise convolution: three depthwise branches beside an identity.

    The first ``dim - 3g`` channels pass unchanged; ``g = floor(dim * branch_ratio)`` channels each meet a square, a
    band along the width and a band along the height. It equals one dense depthwise convolution whose kernels are zero
    outside these taps.

    Args:
        dim: channels C.
        square_kernel_size: side of the square kernel, odd.
        band_kernel_size: length of the bands, odd.
        branch_ratio: share of the channels in each of the three branches, at most 1/3.

    Shape:
        (B, C, H, W) -> (B, C, H, W)

    Raises:
        CallError: an even kernel size, or a ratio that leaves a branch without channels or gives the three more than C.
    """

    def __init__(
        self, dim: int, square_kernel_size: int = 3, band_kernel_size: int = 11, branch_ratio: float = 1 / 8
    ) -> None:
        super().__init__()
        width = int(dim * branch_ratio)
        if width < 1 or 3 * width > dim:
            raise CallError(
                f"branch_ratio={branch_ratio:g} gives each of three branches {width} of {dim} channels; "
                f"it must be between {1 / dim:.3g} and {1 / 3:.3g}"
            )
        self.widths = (dim - 3 * width, width, width, width)
        self.dwconv_hw = _depthwise(width, (square_kernel_size, square_kernel_size))
        self.dwconv_w = _depthwise(width, (1, band_kernel_size))
        self.dwconv_h = _depthwise(width, (band_kernel_size, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        identity, square, row, column = x.split(self.widths, dim=1)
        return torch.cat((identity, self.dwconv_hw(square), self.dwconv_w(row), self.dwconv_h(column)), dim=1)


class PartialConv2d(nn.Module):
    """Depthwise convolution of a part of the channels: the last ``floor(dim * conv_ratio)`` ones.

    Args:
        dim: channels C.
        kernel_size: side of the kernel, odd.
        conv_ratio: share of the channels that is convolved; 1 is ConvNeXt's depthwise convolution.

    Shape:
        (B, C, H, W) -> (B, C, H, W)

    Raises:
        CallError: an even kernel size, or a ratio that leaves no channel to convolve or asks for more than there are.
    """

    def __init__(self, dim: int, kernel_size: int = 7, conv_ratio: float = 1.0) -> None:
        super().__init__()
        width = int(dim * conv_ratio)
        if not 1 <= width <= dim:
            raise CallError(
                f"conv_ratio={conv_ratio:g} convolves {width} of {dim} channels; it must be between {1 / dim:.3g} and 1"
            )
        self.widths = (dim - width, width)
        self.conv = _depthwise(width, (kernel_size, kernel_size))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if self.widths[0] == 0:
            return self.conv(x)
        identity, convolved = x.split(self.widths, dim=1)
        return torch.cat((identity, self.conv(convolved)), dim=1)


def _depthwise(width: int, kernel_size: tuple[int, int]) -> nn.Conv2d:
    """A depthwise convolution that keeps height and width."""
    height, breadth = kernel_size
    if height % 2 == 0 or breadth % 2 == 0:
        raise CallError(f"a kernel that keeps height and width has odd sides, got {height}x{breadth}")
    return nn.Conv2d(width, width, kernel_size, padding=(height // 2, breadth // 2), groups=width)


# Block and stage ------------------------------------------------------------------------------------------------------


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution; on the CPU a matrix product over channels-last memory, which is faster there.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, H, W)
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        if x.is_cuda:
            return super().forward(x)
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class ConvMlp(nn.Module):
    """The block's MLP at every pixel: ``W2 act(W1 x)``.

    Shape:
        (B, dim, H, W) -> (B, dim, H, W)
    """

    def __init__(self, dim: int, hidden: int, act_layer: Layer = nn.GELU) -> None:
        super().__init__()
        self.fc1 = PointwiseConv2d(dim, hidden)
        self.act = act_layer()
        self.fc2 = PointwiseConv2d(hidden, dim)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.fc2(self.act(self.fc1(x)))


class MetaNeXtBlock(nn.Module):
    """``Y = X + gamma * MLP(Norm(mixer(X)))``.

    Args:
        dim: channels C.
        token_mixer: called with ``dim``; mixes positions and keeps the shape.
        norm_layer: called with ``dim``; normalises a map.
        mlp_ratio: hidden channels of the MLP as a multiple of C.
        act_layer: activation of the MLP.
        ls_init_value: start value of gamma; None or 0 for no layer scale.
        drop_path: probability that a sample skips the branch while training.

    Shape:
        (B, C, H, W) -> (B, C, H, W)
    """

    def __init__(
        self,
        dim: int,
        token_mixer: Layer = InceptionDWConv2d,
        norm_layer: Layer = nn.BatchNorm2d,
        mlp_ratio: float = 4,
        act_layer: Layer = nn.GELU,
        ls_init_value: float | None = 1e-6,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.token_mixer = token_mixer(dim)
        self.norm = norm_layer(dim)
        self.mlp = ConvMlp(dim, int(mlp_ratio * dim), act_layer)
        self.gamma = nn.Parameter(torch.full((dim,), float(ls_init_value))) if ls_init_value else None
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        branch = self.drop_path(self.mlp(self.norm(self.token_mixer(x))))
        if self.gamma is None:
            return x + branch
        return torch.addcmul(x, branch, self.gamma[:, None, None])

    @torch.no_grad()
    def fuse(self) -> None:
        """Fold a batch norm into the MLP's first layer and gamma into its second."""
        self.norm = fold_batch_norm(self.norm, self.mlp.fc1)
        if self.gamma is not None:
            for parameter in self.mlp.fc2.parameters():  # (C, hidden, 1, 1) and (C,)
                parameter.mul_(self.gamma.view(-1, *[1] * (parameter.ndim - 1)))
            self.gamma = None


class MetaNeXtStage(nn.Module):
    """Blocks of one resolution, behind the layers that lead to it.

    Args:
        in_dim: channels of the stage before, which norm and a 2x2 convolution of stride 2 lead on from; None for the
            first stage, which takes the map as it is.
        dim: channels C.
        norm_layer: the norm before that convolution, called with ``in_dim``.
        blocks: the stage's blocks, in order.

    Shape:
        (B, in_dim, H, W) -> (B, C, H // 2, W // 2), or (B, C, H, W) -> (B, C, H, W) for the first stage
    """

    def __init__(self, in_dim: int | None, dim: int, norm_layer: Layer, blocks: Iterable[MetaNeXtBlock]) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if in_dim is not None:
            self.downsample = nn.Sequential(norm_layer(in_dim), nn.Conv2d(in_dim, dim, kernel_size=2, stride=2))
        self.blocks = BlockSequence(*blocks)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        return self.blocks(self.downsample(x))

    def fuse(self) -> None:
        """Fold every batch norm into the convolution that follows it."""
        if isinstance(self.downsample, nn.Sequential):
            norm, conv = self.downsample
            self.downsample[0] = fold_batch_norm(norm, cast(nn.Conv2d, conv))
        for block in self.blocks:
            cast(MetaNeXtBlock, block).fuse()


def has_running_statistics(norm: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether a norm is a fixed affine function of each channel in eval mode."""
    return isinstance(norm, _BatchNorm) and norm.running_mean is not None


@torch.no_grad()
def fold_batch_norm(norm: nn.Module, conv: nn.Conv2d) -> nn.Module:
    """Fold a batch norm in eval mode into the unpadded convolution behind it.

    With ``norm(x) = s x + t`` per channel: ``W (s x + t) + b = (W s) x + (b + sum_cij W_cij t_c)``.

    Returns:
        What takes the norm's place: an identity, or the norm itself where it is no batch norm with running statistics.
    """
    if not has_running_statistics(norm):
        return norm
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -scale * norm.running_mean
    if norm.bias is not None:
        shift = shift + norm.bias
    assert conv.bias is not None
    conv.bias.copy_(conv.bias + torch.einsum("ocij,c->o", conv.weight.double(), shift))
    conv.weight.copy_(conv.weight * scale[:, None, None])
    return nn.Identity()


# Heads ----------------------------------------------------------------------------------------------------------------


class MlpHead(ClassifierHead):
    """``W2 LayerNorm(GELU(W1 mean(X)))``: the norm comes after the activation.

    Args:
        dim: channels C of the map.
        num_classes: classes; 0 for no classifier.
        mlp_ratio: hidden channels as a multiple of C.
        act_layer: activation.
        norm_layer: called with the hidden channels.
        drop_rate: dropout before the classifier.
        global_pool: ``avg``, ``max`` or ``avgmax``.
    """

    classifier = "fc2"

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        mlp_ratio: float = 3,
        act_layer: Layer = nn.GELU,
        norm_layer: Layer = _layer_norm,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__(int(mlp_ratio * dim), num_classes, drop_rate, global_pool, init_weights)
        self.fc1 = nn.Linear(dim, self.hidden_size)
        self.act = act_layer()
        self.norm = norm_layer(self.hidden_size)

    def features(self, pooled: Float[Tensor, "b c"]) -> Float[Tensor, "b d"]:
        return self.norm(self.act(self.fc1(pooled)))


class NormHead(ClassifierHead):
    """``W LayerNorm(mean(X))``, ConvNeXt's head; arguments as in :class:`MlpHead`."""

    classifier = "fc"

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        norm_layer: Layer = _layer_norm,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__(dim, num_classes, drop_rate, global_pool, init_weights)
        self.norm = norm_layer(dim)

    def features(self, pooled: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        return self.norm(pooled)


def init_weights(module: nn.Module) -> None:
    """Truncated normal weights of standard deviation 0.02 and zero biases, for convolutions and linear layers."""
    if isinstance(module, (nn.Conv2d, nn.Linear)) and not module.weight.is_meta:  # where no values are, draw none
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
