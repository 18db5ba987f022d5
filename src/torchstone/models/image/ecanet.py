"""ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks (Wang, Wu, Zhu, Li, Zuo, Hu; CVPR 2020,
arXiv 1910.03151).

Squeeze-and-excitation predicts a gate for every channel from all channels, through a bottleneck of two dense layers.
ECA-Net finds that the bottleneck hurts and that near channels suffice: a gate is a correlation of k weights with the
means of the k nearest channels. A ResNet-50 gains accuracy from 80 more weights.

Efficient channel attention (Section 3.2; :mod:`torchstone.layers.channel_attention`), y the channels' means::

    ECA(x)_c = x_c * sigmoid(sum_j w_j y_(c + j - (k-1)/2)),   j = 0 ... k-1

It scales the residual branch of every block, behind its last batch norm and before the addition::

    basic block       out = ReLU(ECA(BN conv3x3 ReLU BN conv3x3(x)) + shortcut(x))
    bottleneck        out = ReLU(ECA(BN conv1x1 ReLU BN conv3x3 ReLU BN conv1x1(x)) + shortcut(x))
    inverted residual out = ECA(BN conv1x1 ReLU6 BN dwconv3x3 ReLU6 BN conv1x1(x)) [+ x]

Networks, for an image (B, 3, H, W): ResNet-18/34/50/101/152 of width 64 and MobileNetV2, each with ECA in every block::

    ResNet       stem 7x7 convolution of stride 2, 3x3 max pooling of stride 2    (B, 64, H/4, W/4)
                 stages of 64, 128, 256, 512 planes (four times as many channels
                 with bottlenecks), halving the map from the second on            (B, 512 or 2048, H/32, W/32)
                 mean over H and W, linear                                        (B, num_classes)
    MobileNetV2  3x3 convolution of stride 2, 17 inverted residuals,
                 1x1 convolution                                                  (B, 1280, H/32, W/32)
                 mean over H and W, dropout, linear                               (B, num_classes)

The kernel sizes k of the paper's rule (Section 3.2) follow from the channels; the released networks have others, one
per stage, which are the defaults here. Those of another checkpoint are read off its weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, SEModule, create_classifier
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from torchstone.errors import CallError, unknown_name
from torchstone.layers.channel_attention import EfficientChannelAttention, EfficientChannelAttentionNS
from torchstone.layers.checkpointing import BlockSequence
from torchstone.layers.checks import check_images
from torchstone.models.registry import build_image_model, register_model

# Channel gates --------------------------------------------------------------------------------------------------------


def _squeeze_excitation(channels: int, kernel_size: int | None) -> nn.Module:
    """SE with the reduction of 16 that the paper compares with; it looks at all channels, whatever the kernel size."""
    return SEModule(channels, rd_channels=max(1, channels // 16))


def _no_attention(channels: int, kernel_size: int | None) -> nn.Module:
    return nn.Identity()


_ATTENTION = {
    "eca": EfficientChannelAttention,
    "eca_ns": EfficientChannelAttentionNS,
    "se": _squeeze_excitation,
    "none": _no_attention,
}


def _channel_gate(attention: str, channels: int, kernel_size: int | None) -> nn.Module:
    if attention not in _ATTENTION:
        raise unknown_name("attention", attention, _ATTENTION)
    return _ATTENTION[attention](channels, kernel_size)


# Blocks ---------------------------------------------------------------------------------------------------------------


def _projection(in_channels: int, channels: int, stride: int) -> nn.Module:
    """The shortcut: the input itself where its shape fits, else a 1x1 convolution and batch norm."""
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


class ECABasicBlock(nn.Module):
    """Two 3x3 convolutions with ECA (ResNet-18 and 34).

    Args:
        in_channels: channels that come in.
        planes: channels that go out.
        stride: of the first convolution.
        k_size: kernel size of the attention; None for the adaptive one.
        attention: ``eca``, or for comparison ``eca_ns``, ``se`` (r = 16), ``none``.
        drop_path: rate of stochastic depth.

    Shape:
        (B, in_channels, H, W) -> (B, planes, ceil(H / stride), ceil(W / stride))
    """

    expansion: ClassVar[int] = 1

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int = 1,
        k_size: int | None = None,
        attention: str = "eca",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.eca = _channel_gate(attention, planes, k_size)
        self.act = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, planes, stride)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        branch = self.act(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        branch = self.drop_path(self.eca(branch))
        branch += self.downsample(x)
        return self.act(branch)


class ECABottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution with ECA on the wide end (ResNet-50, 101 and 152).

    Args:
        in_channels: channels that come in.
        planes: channels of the 3x3 convolution; four times as many go out.
        stride: of the 3x3 convolution.
        k_size: kernel size of the attention; None for the adaptive one.
        attention: ``eca``, or for comparison ``eca_ns``, ``se`` (r = 16), ``none``.
        drop_path: rate of stochastic depth.

    Shape:
        (B, in_channels, H, W) -> (B, 4 planes, ceil(H / stride), ceil(W / stride))
    """

    expansion: ClassVar[int] = 4

    def __init__(
        self,
        in_channels: int,
        planes: int,
        stride: int = 1,
        k_size: int | None = None,
        attention: str = "eca",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        channels = planes * self.expansion
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.eca = _channel_gate(attention, channels, k_size)
        self.act = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, channels, stride)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        branch = self.act(self.bn1(self.conv1(x)))
        branch = self.act(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        branch = self.drop_path(self.eca(branch))
        branch += self.downsample(x)
        return self.act(branch)


def _conv_bn_relu6(
    in_channels: int, channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU6(inplace=True),
    )


class ECAInvertedResidual(nn.Module):
    """MobileNetV2's block with ECA behind its linear bottleneck; with a shortcut where the shape stays.

    Args:
        in_channels: channels that come in.
        channels: channels that go out.
        stride: of the depthwise convolution.
        expand_ratio: channels of the depthwise convolution as a multiple of ``in_channels``.
        k_size: kernel size of the attention; None for the adaptive one.
        attention: ``eca``, or for comparison ``eca_ns``, ``se`` (r = 16), ``none``.
        drop_path: rate of stochastic depth; it acts only where there is a shortcut.

    Shape:
        (B, in_channels, H, W) -> (B, channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        expand_ratio: int = 6,
        k_size: int | None = None,
        attention: str = "eca",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = in_channels * expand_ratio
        self.conv = nn.Sequential(
            *([_conv_bn_relu6(in_channels, hidden, 1)] if expand_ratio != 1 else []),
            _conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            _channel_gate(attention, channels, k_size),
        )
        self.has_shortcut = stride == 1 and in_channels == channels
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        if self.has_shortcut:
            return x + self.drop_path(self.conv(x))
        return self.conv(x)


# Networks -------------------------------------------------------------------------------------------------------------


_POOLINGS = ("", "avg", "max", "avgmax", "catavgmax")


class _Backbone(nn.Module, ABC):
    """timm's interface over the stages of a network; what both networks share."""

    classifier_name: ClassVar[str]

    num_classes: int
    num_features: int
    head_hidden_size: int
    global_pool: Any
    feature_info: list[dict[str, Any]]

    def __init__(self, in_chans: int, drop_rate: float) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.drop_rate = drop_rate

    @abstractmethod
    def _stage(self, index: int, x: Tensor) -> Tensor:
        """From the map of the stage before (stage 0: the image) to the one that ``feature_info[index]`` describes."""

    @abstractmethod
    def _tail(self, x: Tensor) -> Tensor:
        """From the last stage's map to the last map."""

    @abstractmethod
    def _cut(self, last: int) -> None:
        """Remove what is behind this stage."""

    def forward_features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        """The last map: (B, in_chans, H, W) -> (B, num_features, ceil(H / reduction), ceil(W / reduction))."""
        check_images(x, self.in_chans)
        for index in range(len(self.feature_info)):
            x = self._stage(index, x)
        return self._tail(x)

    def forward_head(self, x: Float[Tensor, "b c h w"], pre_logits: bool = False) -> Float[Tensor, "b ..."]:
        """Logits of a map, or with ``pre_logits`` what the classifier sees: (B, head_hidden_size)."""
        x = F.dropout(self.global_pool(x), self.drop_rate, self.training)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b ..."]:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Float[Tensor, "b c h w"],
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps of chosen stages, which ``feature_info`` describes.

        Args:
            x: images (B, in_chans, H, W).
            indices: the last n stages if an integer, these stages if a list, all if None.
            norm: has no effect: the network has no norm of its own behind a stage.
            stop_early: leave out what is behind the last chosen stage.
            output_fmt: ``NCHW``.
            intermediates_only: return the list alone.

        Returns:
            The last map computed and the list of maps, or that list alone.
        """
        if output_fmt != "NCHW":
            raise CallError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        check_images(x, self.in_chans)
        stages = len(self.feature_info)
        chosen, last = feature_take_indices(stages, indices)
        maps = []
        for index in range(last + 1 if stop_early or intermediates_only else stages):
            x = self._stage(index, x)
            if index in chosen:
                maps.append(x)
        if intermediates_only:
            return maps
        return (x if stop_early else self._tail(x)), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages behind the last chosen one, and the head; returns the chosen stages."""
        chosen, last = feature_take_indices(len(self.feature_info), indices)
        self._cut(last)
        if prune_head:
            self.num_features = self.feature_info[last]["num_chs"]
            self.reset_classifier(0, "")
        return chosen

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Start a new classifier.

        Args:
            num_classes: classes; 0 for none: the network then answers (B, head_hidden_size).
            global_pool: another pooling; empty for none: the network then answers the unpooled map.
        """
        pooling = self.global_pool.pool_type if global_pool is None else global_pool
        if pooling not in _POOLINGS:
            raise unknown_name("pooling", pooling, _POOLINGS)
        if num_classes and not pooling:
            raise CallError(f"a classifier for {num_classes} classes needs pooled features; give a global_pool")
        like = next(self.parameters())
        self.num_classes = num_classes
        self.global_pool, classifier = create_classifier(
            self.num_features, num_classes, pooling, device=like.device, dtype=like.dtype
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.add_module(self.classifier_name, classifier)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the blocks' inputs for the backward pass and compute the rest again."""
        for module in self.modules():
            if isinstance(module, BlockSequence):
                module.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Nothing by name: norms and biases are one-dimensional, which timm's rule leaves out."""
        return set()

    @torch.no_grad()
    def fuse(self) -> _Backbone:
        """Turn the network, in place, into its deploy form: batch norms go into the convolutions before them.

        The network is set to eval mode. Keep a copy to go on training: batch statistics are gone.

        Returns:
            The network itself.
        """
        self.eval()
        for module in list(self.modules()):
            for (first, conv), (second, norm) in pairwise(list(module.named_children())):
                if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                    module.add_module(first, fuse_conv_bn_eval(conv, norm))
                    module.add_module(second, nn.Identity())
        return self


class ECAResNet(_Backbone):
    """ResNet with ECA in every block.

    Args:
        block: :class:`ECABasicBlock` or :class:`ECABottleneck`.
        layers: blocks of each stage.
        k_size: kernel size of the attention in each stage; None for the adaptive ones.
        attention: ``eca``, or for comparison ``eca_ns``, ``se`` (r = 16), ``none``.
        width: planes of the first stage; they double from stage to stage.
        stem_stride: 4 for the 7x7 convolution of stride 2 and the max pooling; 2 or 1 for a 3x3 convolution of that
            stride, as ResNets for small images have it.
        num_classes: classes; 0 for no classifier.
        in_chans: channels of the image.
        global_pool: ``avg``, ``max``, ``avgmax`` or ``catavgmax``; empty (with ``num_classes=0``) for the unpooled map.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first one.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes); any H and W.

    Raises:
        CallError: kernel sizes whose number is not that of ``layers`` or that are not odd, an unknown stem stride.
        UnknownName: an unknown attention or pooling.
        ShapeError: images of another rank or other channels.
    """

    classifier_name = "fc"

    def __init__(
        self,
        block: type[ECABasicBlock] | type[ECABottleneck],
        layers: Sequence[int],
        k_size: Sequence[int] | None = None,
        attention: str = "eca",
        width: int = 64,
        stem_stride: int = 4,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans, drop_rate)
        if stem_stride not in (1, 2, 4):
            raise CallError(f"stem_stride must be 1, 2 or 4, got {stem_stride}")
        kernel_sizes = _kernel_sizes(k_size, len(layers), "one for each stage")
        rates = _drop_path_rates(drop_path_rate, sum(layers))
        if stem_stride == 4:
            self.conv1 = nn.Conv2d(in_chans, width, 7, 2, padding=3, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_chans, width, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem_stride == 4 else nn.Identity()
        self.feature_info = [{"num_chs": width, "reduction": min(stem_stride, 2), "module": "act"}]

        channels = width
        for stage, (depth, k) in enumerate(zip(layers, kernel_sizes, strict=True)):
            planes, blocks = width * 2**stage, []
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(block(channels, planes, stride, k, attention, next(rates)))
                channels = planes * block.expansion
            name = f"layer{stage + 1}"
            self.add_module(name, BlockSequence(*blocks))
            self.feature_info.append({"num_chs": channels, "reduction": stem_stride * 2**stage, "module": name})

        self.num_features = channels
        self.reset_classifier(num_classes, global_pool)
        _init_convolutions(self)

    def _stage(self, index: int, x: Tensor) -> Tensor:
        if index == 0:
            return self.act(self.bn1(self.conv1(x)))
        return self.get_submodule(f"layer{index}")(self.maxpool(x) if index == 1 else x)

    def _tail(self, x: Tensor) -> Tensor:
        return x

    def _cut(self, last: int) -> None:
        for info in self.feature_info[last + 1 :]:
            self.add_module(info["module"], nn.Identity())

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names by depth, for layer-wise learning rates."""
        return {"stem": r"^(?:conv1|bn1)\.", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}


_MOBILENET_V2 = (  # expansion, channels, blocks, stride
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class ECAMobileNetV2(_Backbone):
    """MobileNetV2 with ECA in every block.

    Args:
        width_mult: factor of all channels, rounded down; the last 1280 are only ever widened.
        k_size: kernel size of the attention in blocks of less than 96 channels (before ``width_mult``) and in the
            others; None for the adaptive ones.
        attention: ``eca``, or for comparison ``eca_ns``, ``se`` (r = 16), ``none``.
        num_classes: classes; 0 for no classifier.
        in_chans: channels of the image.
        global_pool: ``avg``, ``max``, ``avgmax`` or ``catavgmax``; empty (with ``num_classes=0``) for the unpooled map.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first one.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes); any H and W.

    Raises:
        CallError: not two kernel sizes, an even one, or a width that leaves a layer without channels.
        UnknownName: an unknown attention or pooling.
        ShapeError: images of another rank or other channels.
    """

    classifier_name = "classifier"

    def __init__(
        self,
        width_mult: float = 1.0,
        k_size: Sequence[int] | None = (1, 3),
        attention: str = "eca",
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.25,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans, drop_rate)
        if int(16 * width_mult) < 1:
            raise CallError(f"width_mult must be at least 1/16, or a layer has no channels; got {width_mult:g}")
        narrow, wide = _kernel_sizes(k_size, 2, "one for blocks of less than 96 channels and one for the others")
        rates = _drop_path_rates(drop_path_rate, sum(blocks for _, _, blocks, _ in _MOBILENET_V2))

        channels, reduction = int(32 * width_mult), 2
        features: list[nn.Module] = [_conv_bn_relu6(in_chans, channels, 3, stride=2)]
        self.feature_info = []
        for expansion, base, blocks, first_stride in _MOBILENET_V2:
            if first_stride == 2:  # the map before it is the last one of its resolution
                self.feature_info.append(_feature(channels, reduction, features))
                reduction *= 2
            for i in range(blocks):
                width, stride = int(base * width_mult), first_stride if i == 0 else 1
                k = narrow if base < 96 else wide
                features.append(ECAInvertedResidual(channels, width, stride, expansion, k, attention, next(rates)))
                channels = width
        self.feature_info.append(_feature(channels, reduction, features))
        self.num_features = int(1280 * max(1.0, width_mult))
        features.append(_conv_bn_relu6(channels, self.num_features, 1))
        self.features = BlockSequence(*features)
        self.reset_classifier(num_classes, global_pool)
        _init_convolutions(self)
        classifier = self.get_classifier()
        if isinstance(classifier, nn.Linear):
            nn.init.normal_(classifier.weight, std=0.01)
            nn.init.zeros_(classifier.bias)

    def forward_features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        """The last map: (B, in_chans, H, W) -> (B, num_features, ceil(H / 32), ceil(W / 32))."""
        check_images(x, self.in_chans)
        return self.features(x)

    def _bounds(self) -> list[int]:
        """Index of the first module of every stage, and of what is behind the last one."""
        return [0, *(int(info["module"].removeprefix("features.")) + 1 for info in self.feature_info)]

    def _stage(self, index: int, x: Tensor) -> Tensor:
        return self.features(x, *self._bounds()[index : index + 2])

    def _tail(self, x: Tensor) -> Tensor:
        return self.features(x, self._bounds()[-1])

    def _cut(self, last: int) -> None:
        self.features = BlockSequence(*list(self.features)[: self._bounds()[last + 1]])

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names by depth, for layer-wise learning rates."""
        stages = [
            (rf"^features\.(?:{'|'.join(map(str, range(start, end)))})\.", (stage,))
            for stage, (start, end) in enumerate(pairwise([1, *self._bounds()[1:], len(self.features)]))
        ]
        return {"stem": r"^features\.0\.", "blocks": stages if coarse else r"^features\.(\d+)"}


def _feature(channels: int, reduction: int, features: list[nn.Module]) -> dict[str, Any]:
    return {"num_chs": channels, "reduction": reduction, "module": f"features.{len(features) - 1}"}


def _kernel_sizes(k_size: Sequence[int] | None, count: int, meaning: str) -> Sequence[int | None]:
    if k_size is None:
        return [None] * count
    if not isinstance(k_size, (list, tuple)) or len(k_size) != count:
        raise CallError(f"k_size must be a list of {count} odd numbers, {meaning}, or None; got {k_size!r}")
    return k_size


def _drop_path_rates(last: float, blocks: int) -> Iterator[float]:
    """From 0 at the first block to ``last`` at the last one."""
    return (last * i / max(blocks - 1, 1) for i in range(blocks))


def _init_convolutions(network: nn.Module) -> None:
    """Normal weights of variance 2 / (kernel height x kernel width x output channels), as the authors have it."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


# Official checkpoints -------------------------------------------------------------------------------------------------


def convert_official(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Turn a state dict of the authors' layout into ours; ours passes unchanged.

    MobileNetV2's classifier has lost the dropout before it. Files of PyTorch before 0.4.1 do not count batches; the
    counts, which no output depends on, start at zero.
    """
    converted = {name.replace("classifier.1.", "classifier."): value for name, value in state.items()}
    if not any(name.endswith("num_batches_tracked") for name in converted):
        own = model.state_dict()
        converted |= {name: torch.zeros_like(own[name]) for name in own if name.endswith("num_batches_tracked")}
    return converted


def _trained_kernel_sizes(kwargs: dict[str, Any], attention: list[str]) -> dict[str, list[int]]:
    """The argument ``k_size`` read off the weights that a network is built for.

    Args:
        kwargs: of the factory; the weights are where timm's loader finds them.
        attention: names of modules that stand for the kernel sizes.

    Returns:
        Nothing when there are no weights, or none of these modules in them.
    """
    state = (kwargs.get("pretrained_cfg_overlay") or {}).get("state_dict") or {}
    names = [f"{module}.conv.weight" for module in attention]
    return {"k_size": [state[name].shape[-1] for name in names]} if all(name in state for name in names) else {}


# Factories ------------------------------------------------------------------------------------------------------------

_CFG = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "interpolation": "bilinear",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
}


def _resnet(
    name: str, pretrained: bool, kwargs: dict[str, Any], cfg: dict[str, Any] | None = None, **variant: Any
) -> ECAResNet:
    stages = range(1, len(kwargs.get("layers", variant["layers"])) + 1)
    trained = _trained_kernel_sizes(kwargs, [f"layer{stage}.0.eca" for stage in stages])
    return build_image_model(
        ECAResNet,
        name,
        pretrained,
        convert=convert_official,
        cfg={**_CFG, "first_conv": "conv1", "classifier": "fc", **(cfg or {})},
        feature_cfg={"out_indices": (0, *stages), "feature_cls": "getter"},
        **{**variant, **trained, **kwargs},
    )


@register_model
def eca_resnet18(pretrained: bool = False, **kwargs: Any) -> ECAResNet:
    """ECA-Net18, kernel sizes 3, 5, 7, 7."""
    return _resnet("eca_resnet18", pretrained, kwargs, block=ECABasicBlock, layers=(2, 2, 2, 2), k_size=(3, 5, 7, 7))


@register_model
def eca_resnet34(pretrained: bool = False, **kwargs: Any) -> ECAResNet:
    """ECA-Net34, kernel sizes 3, 3, 5, 7."""
    return _resnet("eca_resnet34", pretrained, kwargs, block=ECABasicBlock, layers=(3, 4, 6, 3), k_size=(3, 3, 5, 7))


@register_model
def eca_resnet50(pretrained: bool = False, **kwargs: Any) -> ECAResNet:
    """ECA-Net50, kernel sizes 3, 5, 5, 7."""
    return _resnet("eca_resnet50", pretrained, kwargs, block=ECABottleneck, layers=(3, 4, 6, 3), k_size=(3, 5, 5, 7))


@register_model
def eca_resnet101(pretrained: bool = False, **kwargs: Any) -> ECAResNet:
    """ECA-Net101, kernel sizes 3, 3, 5, 7."""
    return _resnet("eca_resnet101", pretrained, kwargs, block=ECABottleneck, layers=(3, 4, 23, 3), k_size=(3, 3, 5, 7))


@register_model
def eca_resnet152(pretrained: bool = False, **kwargs: Any) -> ECAResNet:
    """ECA-Net152, kernel sizes 3, 3, 5, 7."""
    return _resnet("eca_resnet152", pretrained, kwargs, block=ECABottleneck, layers=(3, 8, 36, 3), k_size=(3, 3, 5, 7))


@register_model
def eca_mobilenet_v2(pretrained: bool = False, **kwargs: Any) -> ECAMobileNetV2:
    """ECA-MobileNetV2, kernel size 1 below 96 channels and 3 from there on."""
    trained = _trained_kernel_sizes(kwargs, ["features.1.conv.3", "features.17.conv.4"])
    return build_image_model(
        ECAMobileNetV2,
        "eca_mobilenet_v2",
        pretrained,
        convert=convert_official,
        cfg={**_CFG, "first_conv": "features.0.0", "classifier": "classifier"},
        feature_cfg={"feature_cls": "getter"},
        **{**trained, **kwargs},
    )


@register_model
def ecanet_mini32(pretrained: bool = False, **kwargs: Any) -> ECAResNet:
    """A small ECA-ResNet of three stages for 32x32 images; ours, not the paper's."""
    return _resnet(
        "ecanet_mini32",
        pretrained,
        kwargs,
        {"input_size": (3, 32, 32), "pool_size": (4, 4), "crop_pct": 1.0},
        block=ECABasicBlock,
        layers=(3, 3, 3),
        width=24,
        stem_stride=2,
    )
