"""Sparse convolution semantics for a dense network: every layer sees, and answers at, visible positions only.

A mask hides patches of the image. In a sparse convolutional network the hidden positions do not exist; here they are
zeros in dense tensors, and layers are made to keep them so::

    convolution, pooling            y = layer(x) * mask            at the resolution of y
    pointwise layers and            y[visible] = layer(x[visible]),  y = 0 elsewhere
    batch, layer, group norm                                       (their statistics are those of visible positions)
    channel gates x * g(mean x)     the mean is that of visible positions

Without it every 3x3 convolution would let visible patches grow by a pixel a side, and after a few layers the mask
pattern would be gone (:func:`visible_share`).

:class:`SparseLayers` converts a network by giving its layers another ``forward``, and takes it off again: parameters,
buffers, names and types are never touched, and outside of :meth:`SparseLayers.showing` a converted network computes
what it always did.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm import layers as timm_layers
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d as TorchvisionLayerNorm2d
from torchvision.ops.misc import SqueezeExcitation

from torchstone.errors import CallError, ShapeError
from torchstone.layers import EfficientChannelAttention, EfficientChannelAttentionNS

if TYPE_CHECKING:
    from torchstone.methods.spark.pyramid import Pyramid


class Visible:
    """Which patches of a batch are visible, at the resolution of any map.

    Args:
        active: (B, 1, h, w), True where the patch in that cell is visible.
        count: visible patches of every sample where that is known to be one number; it keeps shapes static for the
            compiler. Otherwise it is counted.

    Raises:
        ShapeError: another shape.
    """

    def __init__(self, active: Bool[Tensor, "b 1 h w"], count: int | None = None) -> None:
        if active.ndim != 4 or active.shape[1] != 1:
            raise ShapeError(f"a mask of patches has shape (B, 1, h, w), got {tuple(active.shape)}")
        self.active = active.bool()
        self.batch, _, self.height, self.width = active.shape
        flat = self.active.flatten()
        if count is None:
            self.cells = flat.nonzero().squeeze(1)
        else:  # the visible cells of all samples in order, without asking the device how many there are
            self.cells = flat.to(torch.uint8).argsort(descending=True, stable=True)[: self.batch * count]
        self._masks: dict[tuple[int, int, torch.dtype], Tensor] = {}
        self._positions: dict[tuple[int, int], Tensor] = {}

    def cell(self, height: int, width: int) -> tuple[int, int]:
        """Positions in a cell, down and across, at a map's resolution.

        Raises:
            ShapeError: the map's size is no multiple of the mask's.
        """
        if height % self.height or width % self.width:
            raise ShapeError(
                f"a map of {height}x{width} positions cannot be masked by {self.height}x{self.width} patches: its size "
                "must be a multiple of the mask's; give images whose sides are multiples of the network's total stride"
            )
        return height // self.height, width // self.width

    def mask(self, height: int, width: int, dtype: torch.dtype) -> Float[Tensor, "b 1 p q"]:
        """1 at visible positions and 0 at hidden ones, (B, 1, height, width)."""
        key = (height, width, dtype)
        if key not in self._masks:
            down, across = self.cell(height, width)
            self._masks[key] = self.active.to(dtype).repeat_interleave(down, 2).repeat_interleave(across, 3)
        return self._masks[key]

    def positions(self, height: int, width: int) -> Int[Tensor, " n"]:
        """Where the visible positions are among the B * height * width of a map, sample by sample."""
        key = (height, width)
        if key not in self._positions:
            down, across = self.cell(height, width)
            device = self.cells.device
            column = self.cells % self.width
            row = torch.div(self.cells, self.width, rounding_mode="floor")  # over all samples
            rows = row[:, None, None] * down + torch.arange(down, device=device)[:, None]
            columns = column[:, None, None] * across + torch.arange(across, device=device)
            self._positions[key] = (rows * width + columns).flatten()
        return self._positions[key]

    def share(self) -> Float[Tensor, "b 1 1 1"]:
        """The visible share of every sample."""
        return self.active.float().mean((1, 2, 3), keepdim=True)

    def take(self, x: Float[Tensor, "b p q c"]) -> Float[Tensor, "n c"]:
        """The visible positions of a map, a row for each."""
        batch, height, width, channels = x.shape
        self._check_batch(batch)
        rows: Tensor = _Take.apply(x.reshape(-1, channels), self.positions(height, width))
        return rows

    def put(self, rows: Float[Tensor, "n c"], height: int, width: int) -> Float[Tensor, "b p q c"]:
        """The map with these rows at its visible positions and zeros elsewhere."""
        count = self.batch * height * width
        flat: Tensor = _Put.apply(rows, self.positions(height, width), count)
        return flat.reshape(self.batch, height, width, rows.shape[1])

    def _check_batch(self, batch: int) -> None:
        if batch != self.batch:
            raise ShapeError(f"the mask is of {self.batch} samples, the map of {batch}")


class _Take(torch.autograd.Function):
    """rows = x[positions]. Positions are distinct, so that the gradient is a copy and no sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, positions: Tensor) -> Tensor:
        ctx.save_for_backward(positions)
        ctx.count = x.shape[0]
        return x.index_select(0, positions)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (positions,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.count, gradient.shape[1]).index_copy_(0, positions, gradient), None


class _Put(torch.autograd.Function):
    """x[positions] = rows in a map of zeros."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, positions: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(positions)
        return rows.new_zeros(count, rows.shape[1]).index_copy_(0, positions, rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (positions,) = ctx.saved_tensors
        return gradient.index_select(0, positions), None, None


def strip_of(rows: Float[Tensor, "n c"]) -> Float[Tensor, "1 c n 1"]:
    """Rows as a map one position wide, for layers that want maps."""
    return rows.t()[None, :, :, None]


def rows_of(strip: Float[Tensor, "1 c n 1"]) -> Float[Tensor, "n c"]:
    return strip[0, :, :, 0].t()


# How a layer becomes sparse -------------------------------------------------------------------------------------------


class _Shown:
    """What the layers of one network currently see: a mask, or everything (None)."""

    visible: Visible | None = None


class SparseForward:
    """Another ``forward`` for a layer: its own where nothing is masked, :meth:`masked` where something is.

    Args:
        layer: the layer, whose present ``forward`` is kept.
        shown: shared by the layers of a network.
    """

    def __init__(self, layer: nn.Module, shown: _Shown) -> None:
        self.own = layer.forward
        self.shown = shown

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        visible = self.shown.visible
        if visible is None or not self.spatial(x):
            return self.own(x, *args, **kwargs)
        return self.masked(x, visible)

    def spatial(self, x: Tensor) -> bool:
        """Whether the input is a map; a vector, or what was pooled to one position, has no hidden ones."""
        return x.ndim == 4 and x.shape[2:] != (1, 1)

    def masked(self, x: Tensor, visible: Visible) -> Tensor:
        raise NotImplementedError


class Masked(SparseForward):
    """Convolution, pooling: y = layer(x) * mask."""

    def masked(self, x: Tensor, visible: Visible) -> Tensor:
        y: Tensor = self.own(x)
        return y.mul_(visible.mask(y.shape[2], y.shape[3], y.dtype))  # no such layer needs its answer to go backward


class PointwiseConvolution(SparseForward):
    """A convolution of 1x1 kernels, with any stride: a linear map of the visible positions."""

    def __init__(self, layer: nn.Module, shown: _Shown) -> None:
        super().__init__(layer, shown)
        self.layer = layer

    def masked(self, x: Tensor, visible: Visible) -> Tensor:
        conv: Any = self.layer
        down, across = conv.stride
        x = x[:, :, ::down, ::across]
        rows = F.linear(visible.take(x.permute(0, 2, 3, 1)), conv.weight[:, :, 0, 0], conv.bias)
        return visible.put(rows, x.shape[2], x.shape[3]).permute(0, 3, 1, 2)


class Pointwise(SparseForward):
    """A layer of (B, C, H, W) that treats every position alike: it is given the visible ones, as a map (1, C, n, 1)."""

    def masked(self, x: Tensor, visible: Visible) -> Tensor:
        rows = rows_of(self.own(strip_of(visible.take(x.permute(0, 2, 3, 1)))))
        return visible.put(rows, x.shape[2], x.shape[3]).permute(0, 3, 1, 2)


class PointwiseLast(SparseForward):
    """A layer of (B, H, W, C) that treats every position alike: it is given the visible ones, as (n, C)."""

    def spatial(self, x: Tensor) -> bool:
        return x.ndim == 4 and x.shape[1:3] != (1, 1)

    def masked(self, x: Tensor, visible: Visible) -> Tensor:
        return visible.put(self.own(visible.take(x)), x.shape[1], x.shape[2])


class PerSample(SparseForward):
    """A norm over the positions of a sample: it is given the visible ones, as (B, C, n / B, 1)."""

    def masked(self, x: Tensor, visible: Visible) -> Tensor:
        counts = visible.active.flatten(1).sum(1)
        if not torch.compiler.is_compiling() and not bool((counts == counts[0]).all()):
            raise ShapeError(
                f"group and instance norms need as many visible patches in every sample, got {counts.tolist()}"
            )
        rows = visible.take(x.permute(0, 2, 3, 1)).unflatten(0, (len(x), -1))  # (B, n / B, C)
        rows = self.own(rows.transpose(1, 2)[..., None])[..., 0].transpose(1, 2).flatten(0, 1)
        return visible.put(rows, x.shape[2], x.shape[3]).permute(0, 3, 1, 2)


class ScaledMean(SparseForward):
    """A gate x * g(mean x): with the visible share s, layer(x / s) * s takes the mean of the visible positions."""

    def masked(self, x: Tensor, visible: Visible) -> Tensor:
        share = visible.share().to(x.dtype)
        return self.own(x / share) * share


class GlobalMean(SparseForward):
    """Pooling to one position: the mean of the visible ones."""

    def masked(self, x: Tensor, visible: Visible) -> Tensor:
        y = self.own(x)
        return (
            y / visible.share().to(y.dtype)
            if y.shape[2:] == (1, 1)
            else y * visible.mask(y.shape[2], y.shape[3], y.dtype)
        )


Rule = Callable[[nn.Module, _Shown], SparseForward]

_CHANNELS_FIRST = (timm_layers.LayerNorm2d, timm_layers.RmsNorm2d, timm_layers.SimpleNorm2d, TorchvisionLayerNorm2d)
_GATES = (
    EfficientChannelAttention,
    EfficientChannelAttentionNS,
    SqueezeExcitation,
    timm_layers.SEModule,
    timm_layers.SqueezeExcite,
    timm_layers.EcaModule,
    timm_layers.EffectiveSEModule,
)
_UNPADDED = ((0, 0), "valid", "same")
_RULES: tuple[tuple[tuple[type[nn.Module], ...], Rule], ...] = (  # the first that fits
    (_GATES, ScaledMean),
    (_CHANNELS_FIRST, Pointwise),
    ((nn.modules.batchnorm._BatchNorm,), Pointwise),
    ((nn.GroupNorm, nn.modules.instancenorm._InstanceNorm), PerSample),
    ((nn.Linear, nn.LayerNorm, nn.RMSNorm), PointwiseLast),
    ((nn.AdaptiveAvgPool2d,), GlobalMean),
    ((nn.MaxPool2d, nn.AvgPool2d, nn.Conv2d, timm_layers.BlurPool2d), Masked),
)


def rule_for(layer: nn.Module, own: Mapping[type[nn.Module], Rule] | None = None) -> Rule | None:
    """How a layer becomes sparse; None when it is left as it is (activations, containers, dropout)."""
    for kind, rule in (own or {}).items():
        if isinstance(layer, kind):
            return rule
    if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.padding in _UNPADDED:
        if type(layer) is nn.Conv2d and layer.groups == 1:  # a subclass may do more with its weights
            return PointwiseConvolution
        return Pointwise if layer.stride == (1, 1) else Masked
    return next((rule for kinds, rule in _RULES if isinstance(layer, kinds)), None)


class SparseLayers:
    """The sparse layers of a network, put on it and taken off again.

    Args:
        network: the network; it keeps its parameters, buffers, names and types.
        rules: how layers of further classes become sparse, by class: one of this module's forwards.

    Raises:
        CallError: the network recomputes activations in the backward pass, when the mask is no longer there.
    """

    def __init__(self, network: nn.Module, rules: Mapping[type[nn.Module], Rule] | None = None) -> None:
        self._shown = _Shown()
        self._rules = dict(rules or {})
        self._converted: list[nn.Module] = []
        self.convert(network)

    def convert(self, network: nn.Module) -> None:
        """Put sparse forwards on a network's layers, after taking off those that were put on before."""
        self.undo()
        if any(getattr(module, "grad_checkpointing", False) for module in network.modules()):
            raise CallError(
                "gradient checkpointing recomputes layers in the backward pass, without the mask: switch it off with "
                "set_grad_checkpointing(False)"
            )
        self._convert(network)

    def _convert(self, layer: nn.Module) -> None:
        """Convert a layer, or the layers that it is made of: those of a converted one see what it gives them."""
        rule = rule_for(layer, self._rules)
        if rule is None:
            for child in layer.children():
                self._convert(child)
        elif not isinstance(layer.__dict__.get("forward"), SparseForward):  # a layer may have several places
            layer.forward = rule(layer, self._shown)
            self._converted.append(layer)

    def covers(self, network: nn.Module) -> bool:
        """Whether every layer that it converted is still in the network."""
        return {id(layer) for layer in self._converted} <= {id(layer) for layer in network.modules()}

    def undo(self) -> None:
        """Take the sparse forwards off: the network is as it was given."""
        for layer in self._converted:
            own = layer.__dict__.pop("forward").own
            if own.__func__ is not type(layer).forward:  # a forward of the layer's own, put on it by someone else
                layer.forward = own
        self._converted = []

    @contextlib.contextmanager
    def showing(self, visible: Visible) -> Iterator[None]:
        """Within this context the network sees visible patches only."""
        self._shown.visible = visible
        try:
            yield
        finally:
            self._shown.visible = None


# What becomes of a mask -----------------------------------------------------------------------------------------------


@torch.no_grad()
def visible_share(maps: list[Float[Tensor, "b c h w"]]) -> list[float]:
    """The share of positions of each map that is not zero in all channels.

    Of a sparse network it is the mask's at every depth; of a dense one it grows to 1: the mask pattern vanishes.
    """
    return [(x != 0).any(1).float().mean().item() for x in maps]


@torch.no_grad()
def leaking_layers(network: nn.Module, sparse: SparseLayers, pyramid: Pyramid, in_chans: int) -> list[str]:
    """The stages of a network whose maps are not zero at hidden positions, by name."""
    from torchstone.methods.spark.pyramid import evaluating

    like = next(network.parameters())
    active = torch.zeros(1, 1, 2, 2, dtype=torch.bool, device=like.device)
    active[..., 0, 0] = True
    visible, side = Visible(active), 2 * pyramid.stride
    images = torch.linspace(-1, 1, in_chans * side * side, device=like.device, dtype=like.dtype)
    images = images.reshape(1, in_chans, side, side)
    with evaluating(network), sparse.showing(visible):
        maps = pyramid.maps(network, images * visible.mask(side, side, images.dtype))
    return [
        level.module
        for level, x in zip(pyramid.levels, maps, strict=True)
        if bool((x * (1 - visible.mask(x.shape[2], x.shape[3], x.dtype))).any())
    ]
