"""The two halves of a block in Tune mode: a layer that folds the norm behind it into its weights, and that norm.

Both stay the objects that they were - parameters, hooks, names - and only change their class, to one that asks at each
call whether the norm uses its running statistics. If so the layer folds and the norm hands its input on; else both do
what they always did.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from timm.layers import BatchNormAct2d, Conv2dSame, conv2d_same
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd


def fold(layer: nn.Module, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """The weights of the one layer that does what a layer and a norm with running statistics do.

    For every output channel o, ``c[o] = gamma[o] / sqrt(v[o] + eps)``, ``W'[o] = c[o] W[o]`` and
    ``b'[o] = beta[o] + c[o] (b[o] - m[o])``; gamma = 1 and beta = 0 for a norm without affine parameters, b = 0 for a
    layer without bias. Gradients flow to W, b, gamma and beta; m and v are buffers.

    Args:
        layer: a convolution, transposed convolution or linear layer.
        norm: the batch norm behind it, with running mean m and variance v, each (C,).

    Returns:
        The weight, of the layer's own shape, and the bias (C,).
    """
    weight, bias = cast(Tensor, layer.weight), cast("Tensor | None", layer.bias)
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = torch.rsqrt(variance + norm.eps)
    if norm.affine:
        scale = norm.weight * scale
    folded_bias = scale * (-mean if bias is None else bias - mean)
    if norm.affine:
        folded_bias = norm.bias + folded_bias
    if isinstance(layer, _ConvTransposeNd):
        grouped = weight.unflatten(0, (layer.groups, -1))  # (groups, C_in / groups, C / groups, ...)
        scale = scale.view(layer.groups, 1, -1, *[1] * (weight.ndim - 2))
        return (grouped * scale).flatten(0, 1), folded_bias
    return weight * scale.view(-1, *[1] * (weight.ndim - 1)), folded_bias


# --- the layer


class TuneLayer(nn.Module):
    """What layers in Tune mode share. They are not built: :func:`pair` turns a layer into one."""

    _norm: tuple[_BatchNorm]
    """In a tuple, or the norm would become a part of the layer."""

    def folds(self, dimensions: int) -> bool:
        """Whether an input (or output: they have as many dimensions) goes through the folded layer."""
        norm = self._norm[0]
        return not norm.training and norm.running_mean is not None and dimensions == cast(Tensor, self.weight).ndim

    def forward(self, x: Tensor, *arguments: Any) -> Tensor:
        if not self.folds(x.ndim):
            return super().forward(x, *arguments)
        return self.folded(x, *fold(self, self._norm[0]), *arguments)

    def folded(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The layer's function with other weights than its own."""
        return cast(Any, self)._conv_forward(x, weight, bias)

    def restore(self) -> None:
        """Be a plain layer again, and the norm a plain norm."""
        unpair(self._norm[0])

    def fuse(self) -> nn.Module:
        """The plain layer with folded weights that is to stand in this one's place."""
        return folded_layer(self, self._norm[0])

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        """A copy of the layer alone has no norm behind it: it is a plain layer (``fuse_conv_bn_eval`` makes one)."""
        alone = not memo
        made = plain_type(self).__new__(plain_type(self)) if alone else type(self).__new__(type(self))
        memo[id(self)] = made
        for name, value in self.__dict__.items():
            if not (alone and name == "_norm"):
                made.__dict__[name] = copy.deepcopy(value, memo)
        return made


class TuneConv1d(TuneLayer, nn.Conv1d):
    pass


class TuneConv2d(TuneLayer, nn.Conv2d):
    pass


class TuneConv3d(TuneLayer, nn.Conv3d):
    pass


class TuneConv2dSame(TuneLayer, Conv2dSame):
    """timm's convolution with TensorFlow's padding."""

    def folded(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return conv2d_same(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)  # type: ignore[arg-type]


class _TuneTransposed(TuneLayer):
    def folded(self, x: Tensor, weight: Tensor, bias: Tensor, output_size: Any = None) -> Tensor:
        own = cast(_ConvTransposeNd, self)
        spatial = weight.ndim - 2
        padding = own._output_padding(
            x, output_size, own.stride, own.padding, own.kernel_size, spatial, own.dilation  # type: ignore[arg-type]
        )
        function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
        return function(x, weight, bias, own.stride, own.padding, padding, own.groups, own.dilation)  # type: ignore[arg-type]


class TuneConvTranspose1d(_TuneTransposed, nn.ConvTranspose1d):
    pass


class TuneConvTranspose2d(_TuneTransposed, nn.ConvTranspose2d):
    pass


class TuneConvTranspose3d(_TuneTransposed, nn.ConvTranspose3d):
    pass


class TuneLinear(TuneLayer, nn.Linear):
    """Folds for inputs (B, C) alone: a norm takes the second dimension for the channels, a linear layer the last."""

    def folded(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, weight, bias)


# --- the norm


class TuneNorm(nn.Module):
    """What norms in Tune mode share. They are not built: :func:`pair` and :func:`freeze_norm` turn a norm into one."""

    _layer: tuple[TuneLayer] | tuple[()] = ()
    """The layer in front, if it folds this norm."""
    _frozen: bool = False
    """Whether the running statistics are used also while the network is in train mode."""

    def train(self, mode: bool = True) -> Any:
        return super().train(mode and not self._frozen)

    def forward(self, x: Tensor) -> Tensor:
        if self._layer and self._layer[0].folds(x.ndim):
            return self.rest(x)
        return super().forward(x)

    def rest(self, x: Tensor) -> Tensor:
        """What the layer does beside normalising."""
        return x

    def restore(self) -> None:
        """Be a plain norm again, and the layer in front a plain layer."""
        unpair(cast(_BatchNorm, self))

    def fuse(self) -> nn.Module:
        """What is to stand in this one's place once the layer in front is folded for good."""
        return folded_norm(self) if self._layer else self


class TuneBatchNorm1d(TuneNorm, nn.BatchNorm1d):
    pass


class TuneBatchNorm2d(TuneNorm, nn.BatchNorm2d):
    pass


class TuneBatchNorm3d(TuneNorm, nn.BatchNorm3d):
    pass


class TuneSyncBatchNorm(TuneNorm, nn.SyncBatchNorm):
    pass


class TuneBatchNormAct2d(TuneNorm, BatchNormAct2d):
    """timm's norm with an activation in it."""

    def rest(self, x: Tensor) -> Tensor:
        return self.act(self.drop(x))


# --- becoming one, and ceasing to be one

_LAYERS: dict[type[nn.Module], type[TuneLayer]] = {
    nn.Conv1d: TuneConv1d,
    nn.Conv2d: TuneConv2d,
    nn.Conv3d: TuneConv3d,
    nn.ConvTranspose1d: TuneConvTranspose1d,
    nn.ConvTranspose2d: TuneConvTranspose2d,
    nn.ConvTranspose3d: TuneConvTranspose3d,
    nn.Linear: TuneLinear,
    Conv2dSame: TuneConv2dSame,
}
_NORMS: dict[type[nn.Module], type[TuneNorm]] = {
    nn.BatchNorm1d: TuneBatchNorm1d,
    nn.BatchNorm2d: TuneBatchNorm2d,
    nn.BatchNorm3d: TuneBatchNorm3d,
    nn.SyncBatchNorm: TuneSyncBatchNorm,
    BatchNormAct2d: TuneBatchNormAct2d,
}
_PLAIN: dict[type[nn.Module], type[nn.Module]] = {tuned: plain for plain, tuned in (_LAYERS | _NORMS).items()}


def plain_type(module: nn.Module) -> type[nn.Module]:
    """The class that a module has, or had before it came to be in Tune mode."""
    return _PLAIN.get(type(module), type(module))


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a layer that can fold a norm. Subclasses that do more are none: they are not known to be
    linear in their weights."""
    return plain_type(module) in _LAYERS


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm that can be folded."""
    return plain_type(module) in _NORMS


def channels(layer: nn.Module) -> int:
    """The output channels of a layer."""
    return cast(int, layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def pair(layer: nn.Module, norm: nn.Module) -> None:
    """Let a layer fold the norm behind it whenever that uses its running statistics."""
    _become_norm(norm)
    layer.__class__ = _LAYERS[plain_type(layer)]
    layer._norm = (norm,)  # type: ignore[assignment]
    norm._layer = (layer,)  # type: ignore[assignment]


def freeze_norm(norm: nn.Module) -> None:
    """Let a norm use its running statistics from now on, also while the network is in train mode."""
    _become_norm(norm)
    norm._frozen = True  # type: ignore[assignment]
    norm.train(norm.training)


def _become_norm(norm: nn.Module) -> None:
    norm.__class__ = _NORMS[plain_type(norm)]


def unpair(norm: nn.Module) -> None:
    """Make a pair plain again; a frozen norm stays frozen, and what is plain already stays so."""
    for layer in norm.__dict__.pop("_layer", ()):
        del layer._norm
        layer.__class__ = plain_type(layer)
    if not norm.__dict__.get("_frozen"):
        norm.__class__ = plain_type(norm)


@torch.no_grad()
def folded_layer(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """A plain layer with the norm in its weights for good."""
    weight, bias = fold(layer, cast(_BatchNorm, norm))
    made = copy.deepcopy(layer)  # of the layer alone: plain
    made.weight = nn.Parameter(weight, cast(Tensor, layer.weight).requires_grad)
    made.bias = nn.Parameter(bias, cast(Tensor, layer.weight).requires_grad)
    return made


def folded_norm(norm: nn.Module) -> nn.Module:
    """What is left of a norm that was folded: nothing, or timm's activation."""
    return nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
