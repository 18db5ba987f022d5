"""The blocks: ConvFirst, MBConv and MLP, and the stack of them that the author's benchmark times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, cast

import torch
from jaxtyping import Float
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from torchstone.errors import CallError, unknown_name
from torchstone.models.registry import build_plain_model, register_model
from torchstone.ops.fused_block import fused_block


class Block(nn.Module):
    """A sequence of layers with a residual where the shapes agree: ``y = layers(x) [+ x]``.

    Args:
        layers: convolutions, norms and activations, in the order of the author's code.
        residual: add the input.
        drop_path: probability that a sample skips the layers while training.
    """

    def __init__(self, layers: list[nn.Module], residual: bool, drop_path: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.residual = residual
        self.drop_path = DropPath(drop_path) if drop_path and residual else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        y = self.drop_path(self.layers(x))
        return x + y if self.residual else y

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """Fold every batch norm into the convolution before it, in place; the block is set to eval mode.

        Returns:
            The block itself, or what computes the same faster.
        """
        self.eval()
        modules = list(self.layers)
        for index, (conv, norm) in enumerate(pairwise(modules)):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                self.layers[index] = fuse_conv_bn_eval(conv, norm)
                self.layers[index + 1] = nn.Identity()
        return self


class ConvFirst(Block):
    """``y = BN(W2 SiLU(BN(W1 BN(GroupConv(x))))) [+ x]``, the residual where ``stride == 1`` and C' = C.

    Args:
        in_channels: C, a multiple of ``group_width``.
        out_channels: C'.
        kernel_size: side k of the kernel, odd.
        stride: of the grouped convolution.
        group_width: channels g of a group of the convolution.
        expansion_ratio: hidden channels as a multiple e of C.
        drop_path: probability that a sample skips the layers while training.

    Shape:
        (B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))

    Raises:
        CallError: channels that the groups do not divide, or an even kernel.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        group_width: int = 8,
        expansion_ratio: float = 4,
        drop_path: float = 0.0,
    ) -> None:
        hidden = int(in_channels * expansion_ratio)
        super().__init__(
            [
                _grouped(in_channels, kernel_size, stride, group_width),
                nn.BatchNorm2d(in_channels),
                nn.Conv2d(in_channels, hidden, 1, bias=False),
                nn.BatchNorm2d(hidden),
                nn.SiLU(),
                nn.Conv2d(hidden, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
            ],
            residual=in_channels == out_channels and stride == 1,
            drop_path=drop_path,
        )

    def fuse(self) -> nn.Module:
        """The block's deploy form: batch norms folded, and one kernel where there is one (:class:`FusedConvFirst`)."""
        super().fuse()
        conv = self.layers[0]
        assert isinstance(conv, nn.Conv2d)
        return FusedConvFirst(self) if conv.stride == (1, 1) else self


class FusedConvFirst(nn.Module):
    """A ConvFirst block of stride 1 with folded batch norms, as one operation (:func:`torchstone.ops.fused_block`).

    Args:
        block: the block, its norms folded into its convolutions.
    """

    def __init__(self, block: ConvFirst) -> None:
        super().__init__()
        self.conv, self.expand, self.project = (cast(nn.Conv2d, block.layers[index]) for index in (0, 2, 5))
        self.residual = block.residual

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        weights = [tensor for layer in (self.conv, self.expand, self.project) for tensor in (layer.weight, layer.bias)]
        return fused_block(x, *cast(list[Tensor], weights), residual=self.residual)


class MBConv(Block):
    """``y = BN(W2 SE(SiLU(BN(GroupConv(SiLU(BN(W1 x))))))) [+ x]``, the residual where ``stride == 1`` and C' = C.

    Args:
        squeeze_excitation: called with the hidden channels; scales them by what it sees of the whole map. None leaves
            it out, as the author's code does.

    The other arguments, shapes and errors are those of :class:`ConvFirst`; the groups divide the hidden channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        group_width: int = 8,
        expansion_ratio: float = 4,
        drop_path: float = 0.0,
        squeeze_excitation: Callable[[int], nn.Module] | None = None,
    ) -> None:
        hidden = int(in_channels * expansion_ratio)
        activation: nn.Module = nn.SiLU()
        if squeeze_excitation is not None:
            activation = nn.Sequential(activation, squeeze_excitation(hidden))
        super().__init__(
            [
                nn.Conv2d(in_channels, hidden, 1, bias=False),
                nn.BatchNorm2d(hidden),
                nn.SiLU(),
                _grouped(hidden, kernel_size, stride, group_width),
                nn.BatchNorm2d(hidden),
                activation,
                nn.Conv2d(hidden, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
            ],
            residual=in_channels == out_channels and stride == 1,
            drop_path=drop_path,
        )


class MLPBlock(Block):
    """``y = BN(W2 SiLU(BN(W1 x))) [+ x]`` at every pixel, the residual where C' = C.

    Shape:
        (B, C, H, W) -> (B, C', H, W)
    """

    def __init__(self, in_channels: int, out_channels: int, expansion_ratio: float = 4, drop_path: float = 0.0) -> None:
        hidden = int(in_channels * expansion_ratio)
        super().__init__(
            [
                nn.Conv2d(in_channels, hidden, 1, bias=False),
                nn.BatchNorm2d(hidden),
                nn.SiLU(),
                nn.Conv2d(hidden, out_channels, 1, bias=False),
                nn.BatchNorm2d(out_channels),
            ],
            residual=in_channels == out_channels,
            drop_path=drop_path,
        )


BLOCKS: Mapping[str, type[ConvFirst] | type[MBConv]] = {"ConvFirst": ConvFirst, "MBConv": MBConv}


class StackedBlocks(nn.Module):
    """The author's benchmark: MLP blocks, ``depth`` blocks of one kind, MLP blocks, mean over the map.

    Args:
        num_channels: C.
        kernel_size, group_width, expansion_ratio: of the blocks.
        depth: how many.
        block: ``ConvFirst`` or ``MBConv``.
        extra_depth: MLP blocks; half of them, rounded up, come first.

    Shape:
        (B, C, H, W) -> (B, C, 1, 1)

    Raises:
        UnknownName: no such block.
    """

    def __init__(
        self,
        num_channels: int,
        kernel_size: int = 3,
        group_width: int = 8,
        expansion_ratio: float = 4,
        depth: int = 4,
        block: str = "ConvFirst",
        extra_depth: int = 2,
    ) -> None:
        super().__init__()
        if block not in BLOCKS:
            raise unknown_name("block", block, BLOCKS)
        before = (extra_depth + 1) // 2
        self.pre = nn.Sequential(*(MLPBlock(num_channels, num_channels, expansion_ratio) for _ in range(before)))
        self.blocks = nn.Sequential(
            *(
                BLOCKS[block](num_channels, num_channels, kernel_size, 1, group_width, expansion_ratio)
                for _ in range(depth)
            )
        )
        self.post = nn.Sequential(
            *(MLPBlock(num_channels, num_channels, expansion_ratio) for _ in range(extra_depth - before))
        )
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 1 1"]:
        return self.pool(self.post(self.blocks(self.pre(x))))

    @torch.no_grad()
    def fuse(self) -> StackedBlocks:
        """Bring every block to its deploy form, in place; returns the stack itself, in eval mode."""
        self.eval()
        for part in (self.pre, self.blocks, self.post):
            for name, module in list(part.named_children()):
                part.add_module(name, cast(Block, module).fuse())
        return self


def _grouped(channels: int, kernel_size: int, stride: int, group_width: int) -> nn.Conv2d:
    """A grouped convolution that keeps the channels, and with stride 1 height and width."""
    if channels % group_width:
        nearest = max(group_width, round(channels / group_width) * group_width)
        raise CallError(
            f"{channels} channels cannot be convolved in groups of {group_width}; the nearest number is {nearest}"
        )
    if kernel_size % 2 == 0:
        raise CallError(f"the kernel's side must be odd, got {kernel_size}")
    return nn.Conv2d(
        channels, channels, kernel_size, stride, kernel_size // 2, groups=channels // group_width, bias=False
    )


Overlay = Mapping[str, Any] | None


@register_model
def convfirst_block(pretrained: bool = False, *, pretrained_cfg_overlay: Overlay = None, **kwargs: Any) -> nn.Module:
    """One ConvFirst block; by default the author's benchmark of 64 channels."""
    arguments = {"in_channels": 64, "out_channels": 64, "expansion_ratio": 6, **kwargs}
    return build_plain_model(ConvFirst, pretrained, pretrained_cfg_overlay=pretrained_cfg_overlay, **arguments)


@register_model
def mbconv_block(pretrained: bool = False, *, pretrained_cfg_overlay: Overlay = None, **kwargs: Any) -> nn.Module:
    """One MBConv block of 64 channels."""
    arguments = {"in_channels": 64, "out_channels": 64, **kwargs}
    return build_plain_model(MBConv, pretrained, pretrained_cfg_overlay=pretrained_cfg_overlay, **arguments)
