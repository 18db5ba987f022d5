"""MaxViT: Multi-Axis Vision Transformer (Tu, Talebi, Zhang, Yang, Milanfar, Bovik, Li; ECCV 2022, arXiv 2204.01697).

Attention over all pixels costs the square of their number. MaxViT splits it in two, each linear in the pixels: within
windows of neighbours, then within grids of pixels that span the whole map. After one block every pixel has seen every
other, at every resolution; a convolution in front of them gives the positions.

Block, for a map X (B, C, H, W), windows and grids of P x P pixels (Section 3)::

    X = shortcut(X) + W_c SE(GELU BN DWConv_3x3 GELU BN W_e BN(X))      MBConv, hidden channels 4C
    X = X + A_window(LN X),   X = X + FFN(LN X)
    X = X + A_grid(LN X),     X = X + FFN(LN X)

    A(Y) = W_o softmax(Q K^T / sqrt(d) + B) V within each group, heads of d = 32 channels, B the relative position bias
    window: P x P neighbours      grid: P x P pixels, H/P and W/P apart

Network, for an image (B, 3, H, W)::

    stem     3x3 convolution of stride 2, BN, GELU, 3x3 convolution              (B, stem_width, H/2, W/2)
    stage i  depths[i] blocks, the first with stride 2                           (B, dims[i], H/4/2^i, W/4/2^i)
    head     mean over H and W, LN, linear with tanh, linear                     (B, num_classes)

GELU is its tanh form throughout. Windows and grids have 7 x 7 pixels at 224 x 224, and grow with the image (1/32 of its
sides), so that the last stage is one window. Weights are trained with softmax cross-entropy, labels smoothed by 0.1 and
images mixed (the recipe ``maxvit_imagenet``).

Example:
    >>> import torch, torchstone
    >>> model = torchstone.create_model("maxvit_mini32", num_classes=10).eval()
    >>> model(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import lcm
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath
from torch import Tensor, nn

from torchstone.errors import CallError, ShapeError, unknown_name
from torchstone.layers.backbone import ClassifierHead, HeadedBackbone
from torchstone.layers.checkpointing import BlockSequence
from torchstone.layers.checks import check_images
from torchstone.layers.mbconv import MBConv, SameConv2d
from torchstone.layers.relative_position import RelativePositionBias, resize_bias_table
from torchstone.layers.windows import grid_merge, grid_partition, window_merge, window_partition
from torchstone.models.registry import build_image_model, register_model

__all__ = ["Attention", "AttentionBlock", "MaxViT", "MaxViTBlock", "convert_official"]

Size = tuple[int, int]

_GELU = partial(nn.GELU, approximate="tanh")
_ATTENTIONS = ("window", "grid")


# Blocks ---------------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Multi-head attention within groups of P x Q pixels, with a relative position bias.

    Args:
        dim: channels C, a multiple of ``head_dim``.
        window: (P, Q).
        head_dim: channels d of a head.

    Shape:
        (N, P, Q, C) -> (N, P, Q, C)

    Raises:
        CallError: channels that heads do not divide.
    """

    def __init__(self, dim: int, window: Size, head_dim: int = 32) -> None:
        super().__init__()
        if dim % head_dim:
            raise CallError(f"{dim} channels are not a multiple of the {head_dim} of a head")
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * dim)
        self.rel_pos = RelativePositionBias(window, dim // head_dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "n p q c"]) -> Float[Tensor, "n p q c"]:
        q, k, v = (
            self.qkv(x.flatten(1, 2)).unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        )  # (N, h, PQ, d)
        bias = self.rel_pos().to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(out.transpose(1, 2).reshape(x.shape))


class Mlp(nn.Module):
    """``W2 GELU(W1 x)`` with four times the channels between."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.act = _GELU()
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
        return self.fc2(self.act(self.fc1(x)))


class AttentionBlock(nn.Module):
    """``Y = X + A(LN X)``, ``Y + FFN(LN Y)``, with attention within windows or within grids.

    Args:
        dim: channels C.
        size: (P, Q), pixels of a window or grid.
        partition: ``window`` or ``grid``.
        head_dim: channels of a head.
        drop_path: probability that a sample skips a branch while training.

    Shape:
        (B, H, W, C) -> (B, H, W, C); P divides H and Q divides W.
    """

    def __init__(self, dim: int, size: Size, partition: str, head_dim: int = 32, drop_path: float = 0.0) -> None:
        super().__init__()
        self.size = size
        self.partition = partition
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.attn = Attention(dim, size, head_dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = Mlp(dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        _, height, width, _ = x.shape
        cut, merge = (grid_partition, grid_merge) if self.partition == "grid" else (window_partition, window_merge)
        groups = self.attn(cut(self.norm1(x), self.size))
        x = x + self.drop_path(merge(groups, height, width))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class MaxViTBlock(nn.Module):
    """MBConv, then attention within windows and within grids, each with its feed-forward network.

    Args:
        in_channels: channels of the input.
        dim: channels C of the output.
        stride: 1 or 2.
        window: (P, Q) of the windows.
        grid: (P, Q) of the grids.
        attentions: which of ``window`` and ``grid`` there are; the paper's ablations leave some out.
        head_dim: channels of a head.
        drop_path: probability that a sample skips a branch while training.
        momentum: of the batch norms' running statistics.

    Shape:
        (B, in_channels, H, W) -> (B, C, H / stride, W / stride)
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        stride: int,
        window: Size,
        grid: Size,
        attentions: Sequence[str] = _ATTENTIONS,
        head_dim: int = 32,
        drop_path: float = 0.0,
        momentum: float = 0.01,
    ) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=momentum)
        self.conv = MBConv(in_channels, dim, stride, norm=norm, act=_GELU, drop_path=drop_path)
        sizes = {"window": window, "grid": grid}
        self.attn_block, self.attn_grid = (
            AttentionBlock(dim, sizes[name], name, head_dim, drop_path) if name in attentions else nn.Identity()
            for name in _ATTENTIONS
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        x = self.conv(x).permute(0, 2, 3, 1)  # (B, H, W, C)
        return self.attn_grid(self.attn_block(x)).permute(0, 3, 1, 2)


# Network --------------------------------------------------------------------------------------------------------------


class Stem(nn.Module):
    """3x3 convolution of stride 2, batch norm, GELU, 3x3 convolution: (B, in_chans, H, W) -> (B, width, H/2, W/2)."""

    def __init__(self, in_chans: int, width: int, momentum: float) -> None:
        super().__init__()
        self.conv1 = SameConv2d(in_chans, width, stride=2)
        self.norm1 = nn.BatchNorm2d(width, eps=1e-3, momentum=momentum)
        self.act = _GELU()
        self.conv2 = SameConv2d(width, width)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        return self.conv2(self.act(self.norm1(self.conv1(x))))


class Stage(nn.Module):
    """Blocks of one resolution: (B, in_channels, H, W) -> (B, dim, H/2, W/2)."""

    def __init__(self, *blocks: MaxViTBlock) -> None:
        super().__init__()
        self.blocks = BlockSequence(*blocks)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        return self.blocks(x)


class Head(ClassifierHead):
    """``W2 tanh(W1 LN(mean X))``: (B, dim, H, W) -> (B, num_classes), or (B, hidden) before the classifier."""

    classifier = "fc"

    def __init__(self, dim: int, hidden: int, num_classes: int, drop_rate: float, global_pool: str) -> None:
        super().__init__(hidden, num_classes, drop_rate, global_pool, _init_weights)
        channels = dim * self.global_pool.feat_mult()
        self.norm = nn.LayerNorm(channels, eps=1e-5)
        self.pre_logits = nn.Sequential()
        self.pre_logits.add_module("fc", nn.Linear(channels, hidden).apply(_init_weights))
        self.pre_logits.add_module("act", nn.Tanh())

    def features(self, pooled: Float[Tensor, "b c"]) -> Float[Tensor, "b d"]:
        return self.pre_logits(self.norm(pooled))


class MaxViT(HeadedBackbone):
    """The MaxViT network.

    Args:
        img_size: the images' side, or height and width, in pixels; decides the windows where none are given.
        dims: channels of each stage, multiples of ``head_dim``.
        depths: blocks of each stage.
        stem_width: channels of the stem.
        head_hidden: channels of the head's hidden layer; those of the last stage by default.
        window_size: pixels of a window, one side or (height, width); by default those of the last stage's map.
        grid_size: pixels of a grid; by default as many as ``window_size`` has.
        attentions: which of ``window`` and ``grid`` the blocks have; the paper's ablations leave some out.
        head_dim: channels of an attention head.
        bn_momentum: of the running statistics, 0.01 as the authors have it.
        in_chans: channels of the image.
        num_classes: classes; 0 for no classifier.
        global_pool: ``avg``, ``max``, ``avgmax`` or ``catavgmax``; empty (with ``num_classes=0``) for the unpooled map.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth, of block i among n: ``drop_path_rate * i / n``.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes); windows and grids divide the last stage's map.

    Raises:
        CallError: an image size that the strides do not divide, channels that heads do not divide, other numbers of
            ``dims`` than of ``depths``.
        UnknownName: an unknown attention or pooling.
        ShapeError: on call, images of another rank, other channels, or a size that windows and grids do not divide.
    """

    classifier_name = "head.fc"

    def __init__(
        self,
        img_size: int | Size = 224,
        dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 5, 2),
        stem_width: int = 64,
        head_hidden: int | None = None,
        window_size: int | Size | None = None,
        grid_size: int | Size | None = None,
        attentions: Sequence[str] = _ATTENTIONS,
        head_dim: int = 32,
        bn_momentum: float = 0.01,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans, drop_rate)
        if len(dims) != len(depths):
            raise CallError(f"dims has {len(dims)} values for {len(depths)} stages (the length of depths)")
        for name in attentions:
            if name not in _ATTENTIONS:
                raise unknown_name("attention", name, _ATTENTIONS)
        self.reduction = 2 ** (len(dims) + 1)
        self.window = _pair(window_size) or _last_map(_pair(img_size) or (0, 0), self.reduction)
        self.grid = _pair(grid_size) or self.window
        self.feature_info = [{"num_chs": stem_width, "reduction": 2, "module": "stem"}]

        self.stem = Stem(in_chans, stem_width, bn_momentum)
        self.stages = nn.Sequential()
        channels, built, total = stem_width, 0, sum(depths)
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            blocks = [
                MaxViTBlock(
                    dim if j else channels,
                    dim,
                    stride=1 if j else 2,
                    window=self.window,
                    grid=self.grid,
                    attentions=attentions,
                    head_dim=head_dim,
                    drop_path=drop_path_rate * (built + j) / total,
                    momentum=bn_momentum,
                )
                for j in range(depth)
            ]
            self.stages.append(Stage(*blocks))
            self.feature_info.append({"num_chs": dim, "reduction": 2 ** (i + 2), "module": f"stages.{i}"})
            channels, built = dim, built + depth

        self.num_features = channels
        self._head_width = head_hidden or channels
        self.reset_classifier(num_classes, global_pool)
        self.apply(_init_weights)

    def _check(self, x: Tensor) -> None:
        check_images(x, self.in_chans)
        steps = [self.reduction * lcm(p, g) for p, g in zip(self.window, self.grid, strict=True)]
        sides = x.shape[-2:]
        if not all(side and side % step == 0 for side, step in zip(sides, steps, strict=True)):
            nearest = [max(round(side / step), 1) * step for side, step in zip(sides, steps, strict=True)]
            raise ShapeError(
                f"windows of {_times(self.window)} and grids of {_times(self.grid)} pixels need images whose height "
                f"and width are multiples of {_times(steps)}, got {_times(sides)}: the nearest are {_times(nearest)}; "
                f"build it with img_size for others (multiples of {self.reduction})"
            )

    def _stage(self, index: int, x: Tensor) -> Tensor:
        if index == 0:  # the blocks go back and forth between convolutions and linear layers: channels last costs least
            return self.stem(x.contiguous(memory_format=torch.channels_last))
        return self.stages[index - 1](x)

    def _tail(self, x: Tensor) -> Tensor:
        return x

    def _cut(self, last: int) -> None:
        self.stages = self.stages[:last]

    def _new_head(self, num_classes: int, global_pool: str) -> Head:
        return Head(self.num_features, self._head_width, num_classes, self.drop_rate, global_pool)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names by depth, for layer-wise learning rates."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.blocks\.(\d+)"}

    def no_weight_decay(self) -> set[str]:
        """The bias tables; norms and biases are one-dimensional, which timm's rule leaves out."""
        return {name for name, _ in self.named_parameters() if name.endswith("bias_table")}


def _pair(size: int | Sequence[int] | None) -> Size | None:
    if size is None or isinstance(size, int):
        return (size, size) if size else None
    height, width = size
    return height, width


def _last_map(image: Size, reduction: int) -> Size:
    """Height and width of the last stage's map."""
    if any(side < reduction or side % reduction for side in image):
        raise CallError(f"img_size must be multiples of {reduction}, got {_times(image)}")
    return image[0] // reduction, image[1] // reduction


def _times(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))


def _init_weights(module: nn.Module) -> None:
    """Normal weights of deviation 0.02, zero biases."""
    if isinstance(module, (nn.Conv2d, nn.Linear)) and not module.weight.is_meta:
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


# Official checkpoints -------------------------------------------------------------------------------------------------


def convert_official(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The released weights, as timm converted them from TensorFlow, for a model of the same or another image size.

    The names are the same. Bias tables of another size are resized, as the authors do for fine-tuning at 384 and 512.
    """
    own = model.state_dict()
    return {
        name: resize_bias_table(value, cast(Size, own[name].shape[1:]))
        if name.endswith("bias_table") and name in own and value.shape[1:] != own[name].shape[1:]
        else value
        for name, value in state.items()
    }


# Factories ------------------------------------------------------------------------------------------------------------

_CFG: Mapping[str, Any] = {
    "num_classes": 1000,
    "crop_pct": 0.95,
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "stem.conv1",
    "classifier": "head.fc",
}
_HALF: Mapping[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_LARGER: Mapping[str, Any] = {**_HALF, "crop_pct": 1.0, "crop_mode": "squash"}
_VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"dims": (64, 128, 256, 512), "depths": (2, 2, 5, 2), "stem_width": 64},
    "small": {"dims": (96, 192, 384, 768), "depths": (2, 2, 5, 2), "stem_width": 64},
    "base": {"dims": (96, 192, 384, 768), "depths": (2, 6, 14, 2), "stem_width": 64},
    "large": {"dims": (128, 256, 512, 1024), "depths": (2, 6, 14, 2), "stem_width": 128},
    "xlarge": {"dims": (192, 384, 768, 1536), "depths": (2, 6, 14, 2), "stem_width": 192},
}


def _build(
    name: str, pretrained: bool, variant: Mapping[str, Any], kwargs: dict[str, Any], cfg: Mapping[str, Any]
) -> nn.Module:
    kwargs = {**variant, **kwargs}
    height, width = _pair(kwargs["img_size"]) or (224, 224)
    stages = len(kwargs["depths"])
    reduction = 2 ** (stages + 1)
    cfg = {**cfg, "input_size": (3, height, width), "pool_size": (height // reduction, width // reduction)}
    features = {"out_indices": tuple(range(stages + 1)), "feature_cls": "getter"}
    return build_image_model(
        MaxViT, name, pretrained, cfg=cfg, convert=convert_official, feature_cfg=features, **kwargs
    )


def _official(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    _, size, side = name.split("_")
    cfg = _CFG if side == "224" else {**_CFG, **_LARGER}
    if name == "maxvit_xlarge_224":  # released as it left ImageNet-21k
        cfg = {**_CFG, **_HALF, "num_classes": 21843}
    return _build(name, pretrained, {**_VARIANTS[size], "img_size": int(side)}, kwargs, cfg)


@register_model
def maxvit_tiny_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaxViT-T at 224 x 224 pixels."""
    return _official("maxvit_tiny_224", pretrained, kwargs)


@register_model
def maxvit_tiny_384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaxViT-T at 384 x 384 pixels."""
    return _official("maxvit_tiny_384", pretrained, kwargs)


@register_model
def maxvit_tiny_512(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaxViT-T at 512 x 512 pixels."""
    return _official("maxvit_tiny_512", pretrained, kwargs)


@register_model
def maxvit_small_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaxViT-S at 224 x 224 pixels."""
    return _official("maxvit_small_224", pretrained, kwargs)


@register_model
def maxvit_small_384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaxViT-S at 384 x 384 pixels."""
    return _official("maxvit_small_384", pretrained, kwargs)


@register_model
def maxvit_small_512(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaxViT-S at 512 x 512 pixels."""
    return _official("maxvit_small_512", pretrained, kwargs)


@register_model
def maxvit_base_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaxViT-B at 224 x 224 pixels."""
    return _official("maxvit_base_224", pretrained, kwargs)


@register_model
def maxvit_base_384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaxViT-B at 384 x 384 pixels."""
    return _official("maxvit_base_384", pretrained, kwargs)


@register_model
def maxvit_base_512(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaxViT-B at 512 x 512 pixels."""
    return _official("maxvit_base_512", pretrained, kwargs)


@register_model
def maxvit_large_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaxViT-L at 224 x 224 pixels."""
    return _official("maxvit_large_224", pretrained, kwargs)


@register_model
def maxvit_large_384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaxViT-L at 384 x 384 pixels."""
    return _official("maxvit_large_384", pretrained, kwargs)


@register_model
def maxvit_large_512(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaxViT-L at 512 x 512 pixels."""
    return _official("maxvit_large_512", pretrained, kwargs)


@register_model
def maxvit_xlarge_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaxViT-XL at 224 x 224 pixels."""
    return _official("maxvit_xlarge_224", pretrained, kwargs)


@register_model
def maxvit_xlarge_384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaxViT-XL at 384 x 384 pixels."""
    return _official("maxvit_xlarge_384", pretrained, kwargs)


@register_model
def maxvit_xlarge_512(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MaxViT-XL at 512 x 512 pixels."""
    return _official("maxvit_xlarge_512", pretrained, kwargs)


@register_model
def maxvit_mini32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A small network for 32x32 images; ours, not the paper's."""
    variant = {"img_size": 32, "dims": (48, 96), "depths": (1, 2), "stem_width": 24, "head_dim": 16, "bn_momentum": 0.1}
    return _build("maxvit_mini32", pretrained, variant, kwargs, {**_CFG, "crop_pct": 1.0})
