"""The network of ConvFirst and MBConv stages, a reconstruction, and its variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import SEModule
from torch import Tensor, nn

from torchstone.errors import CallError, unknown_name
from torchstone.layers.backbone import Backbone
from torchstone.layers.checkpointing import BlockSequence
from torchstone.models.image.convfirst.blocks import BLOCKS, Block, MBConv
from torchstone.models.registry import build_image_model, register_model


class ConvFirstNet(Backbone):
    """A staged network of ConvFirst and MBConv blocks.

    Args:
        in_chans: channels of the image.
        num_classes: classes; 0 for no classifier.
        global_pool: ``avg``, ``max``, ``avgmax`` or ``catavgmax``; empty (with ``num_classes=0``) for the unpooled map.
        depths: blocks of each stage.
        dims: channels of each stage, multiples of ``group_width``.
        blocks: the kind of each stage's blocks, ``ConvFirst`` or ``MBConv``.
        expansion_ratios: hidden channels of each stage's blocks as a multiple.
        squeeze_excitation: whether the MBConv stages scale their hidden channels by squeeze-and-excitation; such a
            block cannot be one kernel, because it needs the whole map first.
        strides: of the stem, then of each stage's first block.
        head_dim: channels of the last map.
        kernel_size: side of the grouped kernels, odd.
        group_width: channels of a group.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first one.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes)

    Raises:
        CallError: arguments per stage whose number is not that of ``depths``, or channels that groups do not divide.
        UnknownName: no such block.
    """

    classifier_name = "classifier"

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Sequence[int] = (4, 4, 18, 8),
        dims: Sequence[int] = (64, 128, 256, 512),
        blocks: Sequence[str] = ("ConvFirst", "ConvFirst", "MBConv", "MBConv"),
        expansion_ratios: Sequence[float] = (6, 6, 4, 4),
        squeeze_excitation: bool = False,
        strides: Sequence[int] = (2, 2, 2, 2, 2),
        head_dim: int = 1024,
        kernel_size: int = 3,
        group_width: int = 8,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__(in_chans, drop_rate)
        given = {"dims": dims, "blocks": blocks, "expansion_ratios": expansion_ratios, "strides": strides[1:]}
        for name, values in given.items():
            if len(values) != len(depths):
                raise CallError(f"{name} has {len(values)} values for {len(depths)} stages (the length of depths)")
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, dims[0], 3, strides[0], 1, bias=False), nn.BatchNorm2d(dims[0]), nn.SiLU()
        )
        self.stages = nn.ModuleList()
        self.feature_info = []
        reduction, channels = strides[0], dims[0]
        for index, (depth, dim, kind) in enumerate(zip(depths, dims, blocks, strict=True)):
            build = _block(kind, squeeze_excitation, kernel_size, group_width, expansion_ratios[index])
            stage = BlockSequence()
            for number in range(depth):
                stride = strides[index + 1] if number == 0 else 1
                stage.append(build(channels, dim, stride=stride, drop_path=next(rates)))
                channels = dim
            reduction *= strides[index + 1]
            self.stages.append(stage)
            self.feature_info.append({"num_chs": dim, "reduction": reduction, "module": f"stages.{index}"})
        self.head = nn.Sequential(nn.Conv2d(channels, head_dim, 1, bias=False), nn.BatchNorm2d(head_dim), nn.SiLU())
        self.num_features = head_dim
        self.global_pool = None
        self._init_weights()
        self.reset_classifier(num_classes, global_pool)

    def _init_weights(self) -> None:
        """Convolutions keep the variance of what they sum; the last norm of a residual starts at zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if isinstance(module, Block) and module.residual:
                nn.init.zeros_(cast(nn.BatchNorm2d, module.layers[-1]).weight)

    def _stage(self, index: int, x: Tensor) -> Tensor:
        return self.stages[index](self.stem(x) if index == 0 else x)

    def _tail(self, x: Tensor) -> Tensor:
        return self.head(x)

    def _cut(self, last: int) -> None:
        self.stages = self.stages[: last + 1]
        self.feature_info = self.feature_info[: last + 1]
        self.head = nn.Sequential()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of parameter names by depth, for layer-wise learning rates."""
        fine = [(r"^stages\.(\d+)\.(\d+)", None), (r"^head", (99998,))]
        return {"stem": r"^stem", "blocks": [(r"^stages\.(\d+)", None), (r"^head", (99998,))] if coarse else fine}

    @torch.no_grad()
    def fuse(self) -> ConvFirstNet:
        """Turn the network, in place, into its deploy form: batch norms folded, ConvFirst blocks one operation each.

        The network is set to eval mode. Keep a copy to go on training: batch statistics are gone.

        Returns:
            The network itself.
        """
        for stage in self.stages:
            for name, block in list(cast(BlockSequence, stage).named_children()):
                if isinstance(block, Block):
                    stage.add_module(name, block.fuse())
        super().fuse()
        return self


def _block(kind: str, squeeze_excitation: bool, kernel_size: int, group_width: int, expansion_ratio: float) -> Any:
    """The class of a stage's blocks with what they have in common."""
    if kind not in BLOCKS:
        raise unknown_name("block", kind, BLOCKS)
    shared: dict[str, Any] = {
        "kernel_size": kernel_size,
        "group_width": group_width,
        "expansion_ratio": expansion_ratio,
    }
    if squeeze_excitation and BLOCKS[kind] is MBConv:
        shared["squeeze_excitation"] = partial(SEModule, rd_ratio=1 / 16)
    return partial(BLOCKS[kind], **shared)


# Factories ------------------------------------------------------------------------------------------------------------

Config = Mapping[str, Any]

IMAGENET_CFG: Config = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.95,
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "stem.0",
    "classifier": "classifier",
}
MINI32_CFG: Config = {**IMAGENET_CFG, "input_size": (3, 32, 32), "pool_size": (4, 4), "crop_pct": 1.0}


def _build(name: str, pretrained: bool, variant: Config, kwargs: Config, cfg: Config = IMAGENET_CFG) -> nn.Module:
    kwargs = {**variant, **kwargs}
    feature_cfg = {"out_indices": tuple(range(len(kwargs["depths"]))), "feature_cls": "getter"}
    return build_image_model(ConvFirstNet, name, pretrained, cfg=cfg, feature_cfg=feature_cfg, **kwargs)


@register_model
def convfirst_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """About half of ConvNeXt-T's arithmetic; a reconstruction."""
    return _build("convfirst_nano", pretrained, {"depths": (2, 2, 8, 4)}, kwargs)


@register_model
def convfirst_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """About ConvNeXt-T's arithmetic and parameters; a reconstruction."""
    return _build("convfirst_tiny", pretrained, {"depths": (4, 4, 18, 8)}, kwargs)


@register_model
def convfirst_mini32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A small network for 32x32 images; ours, not the paper's."""
    variant = {
        "depths": (2, 2, 2),
        "dims": (32, 64, 128),
        "blocks": ("ConvFirst", "ConvFirst", "MBConv"),
        "expansion_ratios": (4, 4, 4),
        "strides": (2, 1, 2, 2),
        "head_dim": 256,
    }
    return _build("convfirst_mini32", pretrained, variant, kwargs, MINI32_CFG)
