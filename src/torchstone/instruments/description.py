"""What stands for a model where the model itself cannot go: into another process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from torchstone.models.registry import build_model


@dataclass(frozen=True)
class ModelDescription:
    """A model by name and the inputs that it takes, small enough to be pickled.

    Another kind of input (graphs, tokens) is a subclass with its own ``example_inputs``.

    Args:
        spec: what :func:`torchstone.models.registry.build_model` takes: ``NAME``, ``timm:NAME``, ``torchvision:NAME``.
        input_shape: the shape of one sample, without the batch: (channels, height, width).
        kwargs: ``num_classes``, ``in_chans`` and the model's own arguments.
    """

    spec: str
    input_shape: tuple[int, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        return build_model(self.spec, **self.kwargs)

    def example_inputs(self, batch_size: int) -> tuple[Tensor, ...]:
        """Normally distributed samples, always the same."""
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(batch_size, *self.input_shape, generator=generator),)
