"""What ResNet and MobileNetV2 share beside timm's interface."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from torchstone.errors import CallError
from torchstone.layers.backbone import Backbone

__all__ = ["Backbone", "drop_path_rates", "init_convolutions", "kernel_sizes"]


def kernel_sizes(k_size: Sequence[int] | None, count: int, meaning: str) -> Sequence[int | None]:
    if k_size is None:
        return [None] * count
    if not isinstance(k_size, (list, tuple)) or len(k_size) != count:
        raise CallError(f"k_size must be a list of {count} odd numbers, {meaning}, or None; got {k_size!r}")
    return k_size


def drop_path_rates(last: float, blocks: int) -> Iterator[float]:
    """From 0 at the first block to ``last`` at the last one."""
    return (last * i / max(blocks - 1, 1) for i in range(blocks))


def init_convolutions(network: nn.Module) -> None:
    """Normal weights of variance 2 / (kernel height x kernel width x output channels), as the authors have it."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:  # where no values are, draw none
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
