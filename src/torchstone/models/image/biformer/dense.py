"""The backbone for detection and segmentation."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from torchstone.errors import CallError
from torchstone.layers.checkpointing import BlockSequence
from torchstone.models.image.biformer.network import BiFormer, check_sides
from torchstone.models.registry import create_model


class DenseBiFormer(nn.Module):
    """The backbone for detection and segmentation: a map of every stage, each through a layer norm of its own.

    The norms stand beside the trunk, which goes on without them. See :func:`dense_backbone`.

    Args:
        network: takes over its stages; its head is not used any more.

    Shape:
        (B, in_chans, H, W) -> maps (B, C_i, H/4/2^i, W/4/2^i), sides rounded up; any H and W if the network pads.

    Raises:
        CallError: another network than a BiFormer.
        ShapeError: on call, images that the network cannot take.
    """

    def __init__(self, network: BiFormer) -> None:
        super().__init__()
        if not isinstance(network, BiFormer):
            name = type(network).__name__
            raise CallError(f"{name} is no BiFormer: take biformer_tiny, biformer_small or biformer_base")
        self.downsample_layers, self.stages = network.downsample_layers, network.stages
        self.feature_info, self.in_chans, self.step = network.feature_info, network.in_chans, network.step
        self.extra_norms = nn.ModuleList(LayerNorm2d(info["num_chs"], eps=1e-6) for info in self.feature_info)

    def forward(self, x: Float[Tensor, "b c h w"]) -> list[Tensor]:
        check_sides(x, self.in_chans, self.step, self.step)
        x, maps = x.contiguous(memory_format=torch.channels_last), []
        for shrink, stage, norm in zip(self.downsample_layers, self.stages, self.extra_norms, strict=True):
            x = stage(shrink(x))
            maps.append(norm(x))
        return maps

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the blocks' inputs for the backward pass and compute the rest again."""
        for module in self.modules():
            if isinstance(module, BlockSequence):
                module.grad_checkpointing = enable


def dense_backbone(name: str = "biformer_small", *, regions: int = 8, **kwargs: Any) -> DenseBiFormer:
    """A BiFormer for detection and segmentation, which takes images of any size.

    Args:
        name: ``biformer_tiny``, ``biformer_small`` or ``biformer_base``.
        regions: regions a side, on which no weight depends: the authors have 8 for segmentation of 512 x 512 crops, 16
            for detection on COCO.
        **kwargs: ``pretrained`` (True, a path or a URL: weights of the classifier), ``drop_path_rate``, ``in_chans``
            and the network's own arguments.

    Raises:
        CallError: a model that is no BiFormer.
        UnknownName: no such model.

    Example:
        >>> backbone = dense_backbone("biformer_tiny").eval()
        >>> [tuple(m.shape) for m in backbone(torch.zeros(1, 3, 65, 100))]
        [(1, 64, 17, 25), (1, 128, 9, 13), (1, 256, 5, 7), (1, 512, 3, 4)]
    """
    return DenseBiFormer(cast(BiFormer, create_model(name, regions=regions, **{"auto_pad": True, **kwargs})))
