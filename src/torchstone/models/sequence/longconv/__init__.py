"""Simple Hardware-Efficient Long Convolutions for Sequence Modeling (Fu, Epstein, Nguyen, Thomas, Zhang, Dao, Rudra,
Ré; ICML 2023, arXiv 2302.06646).

State-space models are convolutions whose kernels come from a recurrence. This paper drops the recurrence: every channel
has a free kernel as long as the sequence, and two regularisers of the kernel, a soft threshold ("squash") and a moving
average ("smooth"), make it train as well. The convolution costs O(L log L) by Fourier transforms, which FlashButterfly
computes as a butterfly of small matrices - and these can be learned, too.

    k   = squash(smooth(kernel)),   sign(k) max(|k| - lambda, 0)      (C, H, L)   kernels
    y   = k * u + D u                                                 (B, C, H, L)   layers
    out = GLU(W GELU(y) + b)                                          (B, L, H)

Reading order: :mod:`kernels <torchstone.models.sequence.longconv.kernels>`,
:mod:`layer <torchstone.models.sequence.longconv.layer>`,
:mod:`butterfly <torchstone.models.sequence.longconv.butterfly>`,
:mod:`backbone <torchstone.models.sequence.longconv.backbone>`, :mod:`h3 <torchstone.models.sequence.longconv.h3>`, and
here the networks of the paper's experiments.

The networks of the Long Range Arena are built without ends unless they are asked for: ``in_channels`` (or
``vocabulary``) adds the encoder and ``num_classes`` pooling and decoder, as training does.

Example:
    >>> import torch, torchstone
    >>> model = torchstone.create_model("longconv_mini", in_channels=1, num_classes=10, max_length=64).eval()
    >>> model(torch.zeros(2, 64, 1)).shape
    torch.Size([2, 10])
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from torch import Tensor, nn

from torchstone.models.registry import build_plain_model, register_model
from torchstone.models.sequence.longconv.backbone import DocumentMatcher, SequenceClassifier, SequenceModel
from torchstone.models.sequence.longconv.butterfly import BlockFFT
from torchstone.models.sequence.longconv.h3 import H3LongConv, LongConvLanguageModel, WrappedH3LongConv
from torchstone.models.sequence.longconv.kernels import LongConvKernel, smooth_in_frequency, smooth_in_time, squash
from torchstone.models.sequence.longconv.layer import (
    ButterflyLongConv,
    LongConv,
    StandaloneLongConv,
    WrappedButterflyLongConv,
    WrappedLongConv,
)

__all__ = [
    "BlockFFT",
    "ButterflyLongConv",
    "DocumentMatcher",
    "H3LongConv",
    "LongConv",
    "LongConvClassifier",
    "LongConvKernel",
    "LongConvLanguageModel",
    "LongConvMatcher",
    "SequenceClassifier",
    "SequenceModel",
    "StandaloneLongConv",
    "WrappedButterflyLongConv",
    "WrappedH3LongConv",
    "WrappedLongConv",
    "convert_official",
    "smooth_in_frequency",
    "smooth_in_time",
    "squash",
]


class LongConvClassifier(SequenceClassifier):
    """A stack of long convolutions with what goes around it.

    Args:
        width: H, channels of the stack.
        depth: number of blocks.
        max_length: the kernels' reach in steps; the length of the sequences, usually.
        in_channels, vocabulary, num_classes, pooling: of the ends, see :class:`SequenceClassifier`.
        norm, prenorm, final_norm: of the stack, see :class:`SequenceModel`.
        dropout: rate within and behind each layer.
        tie_dropout: one draw for all steps of a channel, behind each layer.
        tie_inner_dropout: the same within each layer.
        maps: C, kernels of each channel.
        direction: ``"causal"``, ``"bidirectional"`` or ``"two-sided"``.
        activation: behind the convolution.
        squash: lambda, the kernels' threshold; 0 is no squashing.
        smooth: None, ``"time"`` or ``"frequency"``.
        window: width of the smoothing.
        kernel_dropout: rate on the taps.
        kernel_lr: the taps' learning rate; None is the recipe's.
        kernel_init: ``"random"`` or ``"double_exp"``.
        butterfly: transforms by learned butterflies: arguments of :class:`BlockFFT`; None is the exact transform.
        layer: the class of the layers; the released forms wrap around.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        max_length: int,
        *,
        in_channels: int | None = None,
        vocabulary: int | None = None,
        num_classes: int = 0,
        pooling: str = "mean",
        norm: str = "layer",
        prenorm: bool = False,
        final_norm: bool = True,
        dropout: float = 0.0,
        tie_dropout: bool = False,
        tie_inner_dropout: bool = False,
        maps: int = 2,
        direction: str = "causal",
        activation: str = "gelu",
        squash: float = 0.003,
        smooth: str | None = None,
        window: int = 7,
        kernel_dropout: float = 0.2,
        kernel_lr: float | None = 1e-3,
        kernel_init: str = "random",
        butterfly: dict[str, Any] | None = None,
        layer: type[LongConv] | None = None,
    ) -> None:
        kernel = {
            "squash": squash,
            "dropout": kernel_dropout,
            "smooth": smooth,
            "window": window,
            "init": kernel_init,
            "lr": kernel_lr,
        }
        options: dict[str, Any] = {
            "maps": maps,
            "direction": direction,
            "activation": activation,
            "dropout": dropout,
            "tie_dropout": tie_inner_dropout,
            "kernel": kernel,
        }
        if butterfly is not None:
            options["butterfly"] = butterfly
        make = partial(layer or (LongConv if butterfly is None else ButterflyLongConv), width, max_length, **options)
        stack = SequenceModel(
            make,
            width,
            depth,
            norm=norm,
            prenorm=prenorm,
            dropout=dropout,
            tie_dropout=tie_dropout,
            final_norm=final_norm,
        )
        super().__init__(
            stack,
            width,
            in_channels=in_channels,
            vocabulary=vocabulary,
            num_classes=num_classes,
            pooling=pooling,
        )
        self.max_length = max_length


class LongConvMatcher(DocumentMatcher):
    """Two documents through one stack of long convolutions (AAN); arguments as in :class:`LongConvClassifier`."""

    def __init__(self, *, vocabulary: int, num_classes: int = 2, **kwargs: Any) -> None:
        super().__init__(LongConvClassifier(vocabulary=vocabulary, **kwargs), num_classes)


# Official checkpoints -------------------------------------------------------------------------------------------------

_RENAMED = (
    (r"^conv_layers\.(\d+)\.kernel$", r"layers.\1.layer.kernel.kernel"),
    (r"^conv_layers\.(\d+)\.", r"layers.\1.layer."),
    (r"^norms\.(\d+)\.", r"layers.\1.norm."),
    (r"(^|\.)norm\.norm\.", r"\1norm."),
    (r"(^|\.)output_linear\.0\.", r"\1output_linear."),
    (r"^kernel$", "kernel.kernel"),
)


def convert_official(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Turn a state dict of the authors' layout into ours; ours passes unchanged.

    The authors' stacks lie bare, the standalone model's layers and norms in lists of their own, and a learned
    butterfly's matrices are listed twice (``dft_matrices.i`` beside ``mat_p``).

    Args:
        state: of a layer, a stack, a standalone model or a butterfly.
        model: the module that is to take it.
    """
    converted = {}
    for name, value in state.items():
        if re.search(r"(^|\.)dft_matrices\.\d+$", name):
            continue
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        if isinstance(model, SequenceClassifier) and name.startswith(("layers.", "norm.")):
            name = f"backbone.{name}"
        converted[name] = value
    return converted


# Factories ------------------------------------------------------------------------------------------------------------


def _classifier(pretrained: bool, kwargs: dict[str, Any], **variant: Any) -> LongConvClassifier:
    return build_plain_model(LongConvClassifier, pretrained, convert=convert_official, **{**variant, **kwargs})


@register_model
def longconv(pretrained: bool = False, **kwargs: Any) -> LongConvClassifier:
    """A stack of any size; the sizes are those of sequential CIFAR-10 unless given."""
    return _classifier(pretrained, kwargs, width=512, depth=6, max_length=1024)


@register_model
def longconv_listops(pretrained: bool = False, **kwargs: Any) -> LongConvClassifier:
    """ListOps of the Long Range Arena: 8 x 128, post-norm with batch norm, tokens of up to 2048 steps."""
    variant = {"width": 128, "depth": 8, "max_length": 2048, "norm": "batch", "squash": 0.002, "kernel_lr": 5e-4}
    return _classifier(pretrained, kwargs, **variant)


@register_model
def longconv_imdb(pretrained: bool = False, **kwargs: Any) -> LongConvClassifier:
    """IMDB (characters) of the Long Range Arena: 6 x 256, pre-norm with batch norm, up to 4096 steps."""
    variant = {"width": 256, "depth": 6, "max_length": 4096, "norm": "batch", "prenorm": True, "squash": 0.003}
    return _classifier(pretrained, kwargs, **variant)


@register_model
def longconv_aan(pretrained: bool = False, *, vocabulary: int = 98, **kwargs: Any) -> LongConvMatcher:
    """AAN (retrieval, characters) of the Long Range Arena: 6 x 256, pre-norm with batch norm, two documents."""
    variant = {"width": 256, "depth": 6, "max_length": 4000, "norm": "batch", "prenorm": True}
    kernel = {"squash": 0.004, "kernel_dropout": 0.1, "kernel_lr": 1e-4}
    return build_plain_model(
        LongConvMatcher,
        pretrained,
        convert=convert_official,
        **{**variant, **kernel, "vocabulary": vocabulary, **kwargs},
    )


@register_model
def longconv_lra_cifar(pretrained: bool = False, **kwargs: Any) -> LongConvClassifier:
    """Grey CIFAR-10 of the Long Range Arena: 6 x 512, post-norm with layer norm, 1024 steps."""
    variant = {"width": 512, "depth": 6, "max_length": 1024, "squash": 0.003}
    dropout = {"dropout": 0.1, "tie_dropout": True, "tie_inner_dropout": True}
    return _classifier(pretrained, kwargs, **variant, **dropout)


@register_model
def longconv_scifar(pretrained: bool = False, **kwargs: Any) -> LongConvClassifier:
    """Sequential CIFAR-10 in colour: the network of grey CIFAR-10 with a lower threshold."""
    return longconv_lra_cifar(pretrained, **{"squash": 0.001, **kwargs})


@register_model
def longconv_pathfinder(pretrained: bool = False, **kwargs: Any) -> LongConvClassifier:
    """Pathfinder of the Long Range Arena: 6 x 256, bidirectional, pre-norm with batch norm, 1024 steps, read off the
    last one."""
    variant = {"width": 256, "depth": 6, "max_length": 1024, "norm": "batch", "prenorm": True, "pooling": "last"}
    kernel = {"direction": "bidirectional", "squash": 0.001, "kernel_dropout": 0.3}
    return _classifier(pretrained, kwargs, **variant, **kernel)


@register_model
def longconv_pathx(pretrained: bool = False, **kwargs: Any) -> LongConvClassifier:
    """Path-X of the Long Range Arena: Pathfinder's network for 16384 steps, pooled by their mean."""
    variant = {"max_length": 16384, "kernel_lr": 5e-4, "pooling": "mean"}
    return longconv_pathfinder(pretrained, **{**variant, **kwargs})


@register_model
def longconv_standalone(pretrained: bool = False, **kwargs: Any) -> LongConvClassifier:
    """The authors' standalone model for sequential CIFAR-10: 6 x 256, post-norm, two-sided kernels, 1024 steps."""
    variant = {
        "width": 256,
        "depth": 6,
        "max_length": 1024,
        "in_channels": 3,
        "num_classes": 10,
        "direction": "two-sided",
        "dropout": 0.1,
        "tie_dropout": True,
        "final_norm": False,
        "squash": 0.001,
    }
    return _classifier(pretrained, kwargs, **variant)


@register_model
def longconv_h3_pile(pretrained: bool = False, **kwargs: Any) -> LongConvLanguageModel:
    """The H3 language model with long convolutions for the Pile: 12 x 768, attention in blocks 1 and 8."""
    variant = {
        "vocabulary": 50257,
        "width": 768,
        "depth": 12,
        "heads": 12,
        "max_length": 2048,
        "kernel": {"squash": 0.003, "dropout": 0.2},
    }
    return build_plain_model(LongConvLanguageModel, pretrained, **{**variant, **kwargs})


@register_model
def longconv_mini(pretrained: bool = False, **kwargs: Any) -> LongConvClassifier:
    """A small standalone model, 2 x 64; ours, not the paper's."""
    variant = {"width": 64, "depth": 2, "max_length": 64, "in_channels": 1, "num_classes": 10}
    return longconv_standalone(pretrained, **{**variant, **kwargs})
