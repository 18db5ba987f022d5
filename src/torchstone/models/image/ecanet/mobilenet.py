"""MobileNetV2 with efficient channel attention."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from torchstone.errors import CallError
from torchstone.layers.checkpointing import BlockSequence
from torchstone.models.image.ecanet.backbone import Backbone, drop_path_rates, init_convolutions, kernel_sizes
from torchstone.models.image.ecanet.blocks import ECAInvertedResidual, conv_bn_relu6

_MOBILENET_V2 = (  # expansion, channels, blocks, stride
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class ECAMobileNetV2(Backbone):
    """MobileNetV2 with ECA in every block.

    Args:
        width_mult: factor of all channels, rounded down; the last 1280 are only ever widened.
        k_size: kernel size of the attention in blocks of less than 96 channels (before ``width_mult``) and in the
            others; None for the adaptive ones.
        attention: ``eca``, or for comparison ``eca_ns``, ``se`` (r = 16), ``se_var1``, ``se_var2``, ``se_var3``,
            ``se_gc`` (16 groups), ``none``.
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
        narrow, wide = kernel_sizes(k_size, 2, "one for blocks of less than 96 channels and one for the others")
        rates = drop_path_rates(drop_path_rate, sum(blocks for _, _, blocks, _ in _MOBILENET_V2))

        channels, reduction = int(32 * width_mult), 2
        features: list[nn.Module] = [conv_bn_relu6(in_chans, channels, 3, stride=2)]
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
        features.append(conv_bn_relu6(channels, self.num_features, 1))
        self.features = BlockSequence(*features)
        self.reset_classifier(num_classes, global_pool)
        init_convolutions(self)
        classifier = self.get_classifier()
        if isinstance(classifier, nn.Linear):
            nn.init.normal_(classifier.weight, std=0.01)
            nn.init.zeros_(classifier.bias)

    def forward_features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        """The last map: (B, in_chans, H, W) -> (B, num_features, ceil(H / 32), ceil(W / 32))."""
        self._check(x)
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
