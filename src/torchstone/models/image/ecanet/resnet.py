"""ResNet with efficient channel attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from torchstone.errors import CallError
from torchstone.layers.checkpointing import BlockSequence
from torchstone.models.image.ecanet.backbone import Backbone, drop_path_rates, init_convolutions, kernel_sizes
from torchstone.models.image.ecanet.blocks import ECABasicBlock, ECABottleneck


class ECAResNet(Backbone):
    """ResNet with ECA in every block.

    Args:
        block: :class:`ECABasicBlock` or :class:`ECABottleneck`.
        layers: blocks of each stage.
        k_size: kernel size of the attention in each stage; None for the adaptive ones.
        attention: ``eca``, or for comparison ``eca_ns``, ``se`` (r = 16), ``se_var1``, ``se_var2``, ``se_var3``,
            ``se_gc`` (16 groups), ``none``.
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
        sizes = kernel_sizes(k_size, len(layers), "one for each stage")
        rates = drop_path_rates(drop_path_rate, sum(layers))
        if stem_stride == 4:
            self.conv1 = nn.Conv2d(in_chans, width, 7, 2, padding=3, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_chans, width, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem_stride == 4 else nn.Identity()
        self.feature_info = [{"num_chs": width, "reduction": min(stem_stride, 2), "module": "act"}]

        channels = width
        for stage, (depth, k) in enumerate(zip(layers, sizes, strict=True)):
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
        init_convolutions(self)

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
