"""Residual stacks of sequence layers, and the networks around them: classifier and document matcher.

block       pre-norm   x <- x + dropout(layer(norm(x)))            post-norm   x <- norm(x + dropout(layer(x)))
stack       depth blocks; in pre-norm one more norm at the end
classifier  encoder (linear, or embedding of tokens) -> stack -> mean over the steps, or the last step -> linear
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchstone.errors import CallError, ShapeError, unknown_name
from torchstone.models.sequence.longconv.layer import make_dropout, mask_padding

POOLINGS = ("mean", "last")


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of the channels of sequences (B, L, H), over batch and steps."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


class ScalarNorm(nn.Module):
    """Normalisation over the channels with one scale and one shift for all: s (x - mean + m) / std; it has no epsilon.

    The authors' backbone normalises like this where its layers run in the layout (B, H, L).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(1))
        self.s = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        std, mean = torch.std_mean(x, dim=-1, correction=0, keepdim=True)
        return self.s / std * (x - mean + self.m)


NORMS: dict[str, Callable[[int], nn.Module]] = {"layer": nn.LayerNorm, "batch": BatchNorm, "scalar": ScalarNorm}


class ResidualBlock(nn.Module):
    """A layer with norm, dropout and skip."""

    def __init__(self, layer: nn.Module, norm: nn.Module, dropout: nn.Module, prenorm: bool) -> None:
        super().__init__()
        self.layer, self.norm, self.drop, self.prenorm = layer, norm, dropout, prenorm

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        if self.prenorm:
            return x + self.drop(self.layer(self.norm(x), lengths))
        return self.norm(x + self.drop(self.layer(x, lengths)))


class SequenceModel(nn.Module):
    """A stack of residual blocks, (B, L, H) to (B, L, H).

    Args:
        layer: makes the layer of a block, a module (x, lengths) -> x.
        width: H.
        depth: number of blocks.
        norm: ``"layer"``, ``"batch"`` or ``"scalar"``.
        prenorm: normalise before the layer, and once more behind the stack; else after each addition.
        dropout: rate on each layer's output.
        tie_dropout: one draw for all steps of a channel.
        final_norm: the norm behind a pre-norm stack; the authors' standalone model has none.
    """

    def __init__(
        self,
        layer: Callable[[], nn.Module],
        width: int,
        depth: int,
        *,
        norm: str = "layer",
        prenorm: bool = False,
        dropout: float = 0.0,
        tie_dropout: bool = False,
        final_norm: bool = True,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise unknown_name("norm", norm, NORMS)
        if depth < 1:
            raise CallError(f"depth must be at least 1, got {depth}")
        make_norm = NORMS[norm]
        self.layers = nn.ModuleList(
            ResidualBlock(layer(), make_norm(width), make_dropout(dropout, tie_dropout), prenorm) for _ in range(depth)
        )
        self.norm = make_norm(width) if prenorm and final_norm else nn.Identity()

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        for block in self.layers:
            x = block(x, lengths)
        return self.norm(x)


class SequenceClassifier(nn.Module):
    """Encoder, stack, pooling and linear decoder.

    Args:
        backbone: (x, lengths) -> x, (B, L, width).
        width: H.
        in_channels: channels of an input sequence; None leaves the encoder out, and sequences have ``width`` channels.
        vocabulary: number of tokens; the encoder is then an embedding, and ``in_channels`` has no part.
        num_classes: 0 leaves pooling and decoder out, and the answer is a sequence of features.
        pooling: ``"mean"`` over the real steps, or ``"last"``, the last real step.
    """

    def __init__(
        self,
        backbone: nn.Module,
        width: int,
        *,
        in_channels: int | None = None,
        vocabulary: int | None = None,
        num_classes: int = 0,
        pooling: str = "mean",
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise unknown_name("pooling", pooling, POOLINGS)
        if num_classes < 0:
            raise CallError(f"num_classes must be 0 or more, got {num_classes}")
        self.width, self.in_channels, self.vocabulary = width, in_channels, vocabulary
        self.num_classes, self.pooling = num_classes, pooling
        self.encoder: nn.Module
        if vocabulary is not None:
            self.encoder = nn.Embedding(vocabulary, width)
        elif in_channels is not None:
            self.encoder = nn.Linear(in_channels, width)
        else:
            self.encoder = nn.Identity()
        self.backbone = backbone
        self.decoder = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, L, in_channels), or tokens (B, L), to features (B, L, width).

        Raises:
            ShapeError: an input that the network cannot take, or lengths that do not fit it.
        """
        self._check(x, lengths)
        return self.backbone(self.encoder(x), lengths)

    def pool(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, L, width) to (B, width)."""
        if self.pooling == "last":
            if lengths is None:
                return features[:, -1]
            last = (lengths - 1).view(-1, 1, 1).expand(-1, 1, features.shape[-1])
            return features.gather(1, last).squeeze(1)
        if lengths is None:
            return features.mean(1)
        return mask_padding(features, lengths).sum(1) / lengths.unsqueeze(1).to(features.dtype)

    def forward_head(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, L, width) to logits (B, num_classes)."""
        return self.decoder(self.pool(features, lengths))

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Classify sequences.

        Args:
            x: (B, L, in_channels), or tokens (B, L) where the network has a vocabulary.
            lengths: (B,) int64, steps of each sequence that are real; None for all.

        Returns:
            Logits (B, num_classes); without classes the features (B, L, width).

        Raises:
            ShapeError: an input that the network cannot take, or lengths that do not fit it.
        """
        features = self.forward_features(x, lengths)
        return self.forward_head(features, lengths) if self.num_classes else features

    def _check(self, x: Tensor, lengths: Tensor | None) -> None:
        if self.vocabulary is not None:
            if x.ndim != 2 or x.dtype not in (torch.int64, torch.int32):
                raise ShapeError(f"this network takes tokens (B, L) of integers, got {tuple(x.shape)} of {x.dtype}")
        else:
            channels = self.width if self.in_channels is None else self.in_channels
            if x.ndim != 3 or x.shape[-1] != channels:
                raise ShapeError(
                    f"this network takes sequences (B, L, {channels}), got {tuple(x.shape)}; "
                    "build it with in_channels to take others"
                )
            if not x.is_floating_point():
                raise ShapeError(f"this network takes sequences of floating-point numbers, got {x.dtype}")
        if x.shape[1] == 0:
            raise ShapeError(f"a sequence has at least one step, got {tuple(x.shape)}")
        if lengths is not None and lengths.shape != (x.shape[0],):
            raise ShapeError(f"lengths is one number a sequence, ({x.shape[0]},), got {tuple(lengths.shape)}")
        if lengths is None or torch.compiler.is_compiling():  # a captured graph does not look at values
            return
        if not bool(((lengths >= 1) & (lengths <= x.shape[1])).all()):
            raise ShapeError(f"lengths must be from 1 to {x.shape[1]}, got {lengths.tolist()}")


class DocumentMatcher(nn.Module):
    """Whether two documents belong together: one encoder for both, and a perceptron on their features a, b::

        logits = W2 GELU(W1 [a, b, a - b, a * b])

    Args:
        encoder: a :class:`SequenceClassifier`, whose features are pooled.
        num_classes: of pairs.
    """

    def __init__(self, encoder: SequenceClassifier, num_classes: int = 2) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.width
        self.classifier = nn.Sequential(nn.Linear(4 * width, width), nn.GELU(), nn.Linear(width, num_classes))

    def forward(self, a: Tensor, b: Tensor, a_lengths: Tensor | None = None, b_lengths: Tensor | None = None) -> Tensor:
        """Documents (B, L) and (B, L'), tokens, to logits (B, num_classes)."""
        first = self.encoder.pool(self.encoder.forward_features(a, a_lengths), a_lengths)
        second = self.encoder.pool(self.encoder.forward_features(b, b_lengths), b_lengths)
        return self.classifier(torch.cat([first, second, first - second, first * second], dim=1))
