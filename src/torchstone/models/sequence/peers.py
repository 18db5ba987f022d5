"""Well-known sequence networks from PyTorch, in their usual form, to compare with.

=========== ====================================================================== ==============================
transformer encoder layers (Vaswani et al. 2017), pre-norm, learned positions      2 x 64, 4 heads, dropout 0.1
lstm        long short-term memory (Hochreiter and Schmidhuber 1997), last state   2 x 64, dropout 0.1
gru         gated recurrent units (Cho et al. 2014), last state                    2 x 64, dropout 0.1
=========== ====================================================================== ==============================

All map (B, L, in_channels) to logits (B, num_classes); width, depth and dropout are arguments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchstone.errors import ShapeError, unknown_name

NAMES = ("gru", "lstm", "transformer")


class Transformer(nn.Module):
    """Linear encoder, learned positions, pre-norm encoder layers, mean over the steps, linear decoder.

    Args:
        in_channels: of a step.
        num_classes: logits.
        max_length: steps of the longest sequence.
        width: of the layers; the perceptron has four times as many.
        depth: number of layers.
        heads: of the attention.
        dropout: within the layers.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        max_length: int,
        *,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder = nn.Linear(in_channels, width)
        self.positions = nn.Parameter(0.02 * torch.randn(max_length, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.decoder = nn.Linear(width, num_classes)

    def no_weight_decay(self) -> set[str]:
        return {"positions"}

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, in_channels) to (B, num_classes).

        Raises:
            ShapeError: the sequence is longer than the positions.
        """
        if x.shape[1] > len(self.positions):
            raise ShapeError(f"this network takes up to {len(self.positions)} steps, got {tuple(x.shape)}")
        return self.decoder(self.layers(self.encoder(x) + self.positions[: x.shape[1]]).mean(1))


class Recurrent(nn.Module):
    """A recurrent network and a linear decoder on its last state.

    Args:
        cell: ``nn.LSTM`` or ``nn.GRU``.
        in_channels: of a step.
        num_classes: logits.
        width: of the state.
        depth: number of layers.
        dropout: between the layers.
    """

    def __init__(
        self,
        cell: type[nn.LSTM | nn.GRU],
        in_channels: int,
        num_classes: int,
        *,
        width: int = 64,
        depth: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.layers = cell(in_channels, width, depth, dropout=dropout if depth > 1 else 0.0, batch_first=True)
        self.decoder = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, in_channels) to (B, num_classes)."""
        return self.decoder(self.layers(x)[0][:, -1])


def build_peer(name: str, *, in_channels: int, num_classes: int, max_length: int, **kwargs: Any) -> nn.Module:
    """Build one of :data:`NAMES`.

    Args:
        in_channels: of a step.
        num_classes: logits.
        max_length: steps of the longest sequence; recurrent networks take any.
        **kwargs: ``width``, ``depth``, ``dropout``, ``heads``.

    Raises:
        UnknownName: no such network.
    """
    if name == "transformer":
        return Transformer(in_channels, num_classes, max_length, **kwargs)
    cells: dict[str, type[nn.LSTM | nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}
    if name not in cells:
        raise unknown_name("sequence network of PyTorch", name, NAMES)
    return Recurrent(cells[name], in_channels, num_classes, **kwargs)
