"""The maps that a network computes on its way: found in timm's interface, or by watching any other network run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchstone.errors import CallError, unknown_name


@dataclass(frozen=True)
class Level:
    """One map of the pyramid.

    Attributes:
        stride: pixels of the image per position.
        channels: of the map.
        index: of the map among those that ``forward_intermediates`` gives; of no meaning otherwise.
        module: name of the submodule whose output it is.
    """

    stride: int
    channels: int
    index: int
    module: str


class Pyramid:
    """Maps of strides r, r/2, r/4, ... of a network, r its total stride.

    Args:
        network: with ``feature_info`` and ``forward_intermediates`` as timm's networks and ours have them; in any other
            the last output of each resolution is taken.
        stages: names of submodules whose outputs are the maps, instead.
        levels: how many maps are taken, from the deepest on; those of stride 1 are not, for no decoder block is left.
        in_chans: channels of the images.
        size: side, in pixels, of the image that a network without ``feature_info`` is shown.

    Raises:
        CallError: no such submodules, or outputs that are no maps.
    """

    def __init__(
        self, network: nn.Module, stages: Sequence[str] | None, levels: int, in_chans: int, size: int = 224
    ) -> None:
        if levels < 1:
            raise CallError(f"levels must be at least 1, got {levels}")
        self.by_interface = stages is None and hasattr(network, "forward_intermediates")
        found = _told(network) if self.by_interface else _watched(network, stages, in_chans, size)
        last = {level.stride: level for level in found}  # of several maps of one stride the last one
        if not last:
            raise CallError(f"{type(network).__name__} computes no maps that SparK could decode; name its stages")
        self.stride = max(last)
        taken = [self.stride // 2**i for i in range(levels) if self.stride % 2**i == 0 and self.stride // 2**i > 1]
        lacking = [stride for stride in taken if stride not in last]
        if lacking:
            raise CallError(
                f"{type(network).__name__} has maps of strides {sorted(last)}, none of {', '.join(map(str, lacking))}; "
                f"SparK decodes maps of halving strides: give levels={taken.index(lacking[0])}, or name the stages"
            )
        self.levels = [last[stride] for stride in taken]
        """From the deepest."""

    @property
    def channels(self) -> list[int]:
        """Of the maps, from the deepest."""
        return [level.channels for level in self.levels]

    def maps(self, network: nn.Module, images: Float[Tensor, "b k h w"]) -> list[Tensor]:
        """The network's maps, from the deepest; nothing behind them is computed where that can be avoided."""
        if self.by_interface:
            wanted = sorted(level.index for level in self.levels)
            told: Any = network
            got = dict(zip(wanted, told.forward_intermediates(images, wanted, intermediates_only=True), strict=True))
            return [got[level.index] for level in self.levels]
        outputs: dict[str, Tensor] = {}
        with _outputs_of(network, [level.module for level in self.levels], outputs), _stopped():
            network(images)
        return [outputs[level.module] for level in self.levels]


def _told(network: Any) -> list[Level]:
    """The maps that a network's feature_info describes."""
    info = getattr(network.feature_info, "info", network.feature_info)
    return [Level(item["reduction"], item["num_chs"], i, item.get("module", "")) for i, item in enumerate(info)]


@torch.no_grad()
def _watched(network: nn.Module, stages: Sequence[str] | None, in_chans: int, size: int) -> list[Level]:
    """The maps that modules answer, in the order in which they answer."""
    modules = dict(network.named_modules())
    for name in stages or ():
        if name not in modules:
            raise unknown_name(f"submodule of {type(network).__name__}", name, modules)
    names = list(stages) if stages is not None else [name for name in modules if name]
    outputs: dict[str, Tensor] = {}
    like = next(network.parameters())
    with evaluating(network), _outputs_of(network, names, outputs, stop=False):
        network(torch.zeros(2, in_chans, size, size, device=like.device, dtype=like.dtype))
    levels = []
    for name, y in outputs.items():
        is_map = isinstance(y, Tensor) and y.ndim == 4 and 1 < y.shape[2] == y.shape[3] and size % y.shape[2] == 0
        if is_map:
            levels.append(Level(size // y.shape[2], y.shape[1], 0, name))
        elif stages is not None:
            given = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise CallError(f"stage {name!r} answers {given} to images of {size} pixels, not a map (B, C, H, W)")
    return levels


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Within this context the network is in eval mode; every module's own mode comes back afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _Reached(Exception):
    """All maps are there."""


@contextlib.contextmanager
def _stopped() -> Iterator[None]:
    with contextlib.suppress(_Reached):
        yield


@contextlib.contextmanager
def _outputs_of(
    network: nn.Module, names: Sequence[str], outputs: dict[str, Tensor], stop: bool = True
) -> Iterator[None]:
    """Within this context the outputs of submodules are kept by name, in the order in which they come."""
    hooks = []
    for name in names:

        def keep(module: nn.Module, given: Any, answer: Any, name: str = name) -> None:
            outputs.pop(name, None)
            outputs[name] = answer
            if stop and len(outputs) == len(names):
                raise _Reached

        hooks.append(network.get_submodule(name).register_forward_hook(keep))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
