"""timm's interface for networks of stages, whatever their blocks are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import SelectAdaptivePool2d, create_classifier
from timm.layers.adaptive_avgmax_pool import adaptive_pool_feat_mult
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from torchstone.errors import CallError, unknown_name
from torchstone.layers.checkpointing import BlockSequence
from torchstone.layers.checks import check_images


class Backbone(nn.Module, ABC):
    """A network of stages.

    Args:
        in_chans: channels of the image.
        drop_rate: dropout before the classifier.
    """

    classifier_name: ClassVar[str]
    poolings: ClassVar[tuple[str, ...]] = ("", "avg", "max", "avgmax", "catavgmax")

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

    def _check(self, x: Tensor) -> None:
        """Refuse images that the network cannot take."""
        check_images(x, self.in_chans)

    def forward_features(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d p q"]:
        """The last map: (B, in_chans, H, W) -> (B, num_features, ceil(H / reduction), ceil(W / reduction))."""
        self._check(x)
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
        indices: int | Sequence[int] | None = None,
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
        self._check(x)
        stages = len(self.feature_info)
        chosen, last = feature_take_indices(stages, _as_list(indices))
        maps = []
        for index in range(last + 1 if stop_early or intermediates_only else stages):
            x = self._stage(index, x)
            if index in chosen:
                maps.append(x)
        if intermediates_only:
            return maps
        return (x if stop_early else self._tail(x)), maps

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages behind the last chosen one, and the head.

        Args:
            indices: as in :meth:`forward_intermediates`.
            prune_norm: has no effect: the network has no norm of its own behind a stage.
            prune_head: remove the head also when all stages stay.

        Returns:
            The chosen stages.
        """
        stages = len(self.feature_info)
        chosen, last = feature_take_indices(stages, _as_list(indices))
        if prune_head or last < stages - 1:
            self._cut(last)
            self.feature_info = self.feature_info[: last + 1]
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

        Raises:
            UnknownName: an unknown pooling.
            CallError: classes without pooling.
        """
        pooling = self.global_pool.pool_type if global_pool is None else global_pool
        self._check_pooling(pooling, num_classes)
        like = next(self.parameters())
        self.num_classes = num_classes
        self.global_pool, classifier = create_classifier(
            self.num_features, num_classes, pooling, device=like.device, dtype=like.dtype
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.add_module(self.classifier_name, classifier)

    def _check_pooling(self, pooling: str, num_classes: int) -> None:
        if pooling not in self.poolings:
            raise unknown_name("pooling", pooling, self.poolings)
        if num_classes and not pooling:
            raise CallError(f"a classifier for {num_classes} classes needs pooled features; give a global_pool")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the blocks' inputs for the backward pass and compute the rest again."""
        for module in self.modules():
            if isinstance(module, BlockSequence):
                module.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Nothing by name: norms and biases are one-dimensional, which timm's rule leaves out."""
        return set()

    @torch.no_grad()
    def fuse(self) -> Backbone:
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


class ClassifierHead(nn.Module):
    """Pooling, features, dropout and classifier, for networks that compute something between pooling and classifier.

    A subclass computes ``features`` of ``hidden_size`` channels and names the attribute that is its ``classifier``.

    Args:
        hidden_size: channels that the classifier sees.
        num_classes: classes; 0 for no classifier.
        drop_rate: dropout before the classifier.
        global_pool: timm's name of a pooling.
        init_weights: applied to every new classifier.

    Shape:
        (B, C, H, W) -> (B, num_classes), or (B, hidden_size) before the classifier
    """

    classifier: ClassVar[str]

    def __init__(
        self,
        hidden_size: int,
        num_classes: int,
        drop_rate: float,
        global_pool: str,
        init_weights: Callable[[nn.Module], None],
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.init_weights = init_weights
        self.drop = nn.Dropout(drop_rate)
        self.reset(num_classes, global_pool)

    def reset(self, num_classes: int, global_pool: str) -> None:
        """Set the pooling, which must give as many channels as before, and start a new classifier."""
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=True)
        classifier = nn.Linear(self.hidden_size, num_classes) if num_classes else nn.Identity()
        self.add_module(self.classifier, classifier.apply(self.init_weights))

    @abstractmethod
    def features(self, pooled: Float[Tensor, "b c"]) -> Float[Tensor, "b d"]:
        """What the classifier sees, before dropout."""

    def forward(self, x: Float[Tensor, "b c h w"], pre_logits: bool = False) -> Float[Tensor, "b d"]:
        x = self.drop(self.features(self.global_pool(x)))
        return x if pre_logits else self.get_submodule(self.classifier)(x)


class HeadedBackbone(Backbone):
    """A network of stages whose head is a :class:`ClassifierHead`; a subclass builds it in ``_new_head``."""

    head: nn.Module

    @abstractmethod
    def _new_head(self, num_classes: int, global_pool: str) -> ClassifierHead:
        """A head for maps of ``num_features`` channels, with its start values."""

    def forward_head(self, x: Float[Tensor, "b c h w"], pre_logits: bool = False) -> Float[Tensor, "b ..."]:
        """Logits of a map, or with ``pre_logits`` what the classifier sees: (B, head_hidden_size)."""
        return self.head(x, pre_logits=pre_logits) if self.global_pool else x

    def get_classifier(self) -> nn.Module:
        """The last linear layer; an identity when there are no classes."""
        return self.head.get_submodule(self.head.classifier) if isinstance(self.head, ClassifierHead) else self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As in :meth:`Backbone.reset_classifier`; the layers before the classifier keep their weights if they fit."""
        pooling = self.global_pool if global_pool is None else global_pool
        self._check_pooling(pooling, num_classes)
        head = getattr(self, "head", None)
        if not pooling:
            self.head = nn.Identity()
        elif isinstance(head, ClassifierHead) and head.global_pool.feat_mult() == adaptive_pool_feat_mult(pooling):
            head.reset(num_classes, pooling)
        else:
            self.head = self._new_head(num_classes, pooling)
        like = next(self.parameters())
        self.head.to(like.device, like.dtype).train(self.training)
        self.num_classes, self.global_pool = num_classes, pooling
        self.head_hidden_size = self.head.hidden_size if isinstance(self.head, ClassifierHead) else self.num_features


def _as_list(indices: int | Sequence[int] | None) -> int | list[int] | None:
    """Chosen stages in the form that timm's helper takes."""
    return list(indices) if isinstance(indices, Sequence) else indices
