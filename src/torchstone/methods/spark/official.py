"""Released checkpoints, in both directions, and the authors' variants.

A file ``<model>_withdecoder_1kpretrained_spark_style.pth`` is the whole method; ``<model>_1kpretrained_timm_style.pth``
(``official_style`` of ConvNeXt) is the encoder alone, under the names of timm's ResNet or Meta's ConvNeXt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
from timm.models.convnext import ConvNeXt as TimmConvNeXt
from torch import Tensor, nn

from torchstone.models.image.inceptionnext import ConvNeXt
from torchstone.models.pretrained import State, check_layout, read_checkpoint
from torchstone.models.registry import build_plain_model, local_file, register_model

if TYPE_CHECKING:
    from torchstone.methods.spark import SparK

# Names ----------------------------------------------------------------------------------------------------------------

_METHOD = (  # ours -> official
    (r"^decoder\.", "dense_decoder."),
    (r"^densify\.(\d+)\.(norm|proj)\.", r"densify_\2s.\1."),
    (r"^densify\.(\d+)\.mask_token$", r"mask_tokens.\1"),
)
_CONVNEXT = (  # timm's or ours -> Meta's, which the authors keep
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.(?:conv_dw|token_mixer\.conv)\.", r"stages.\1.\2.dwconv."),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc", r"stages.\1.\2.pwconv"),
    (r"^stages\.(\d+)\.blocks\.(\d+)\.", r"stages.\1.\2."),
)
_UNUSED = ("imn_m", "imn_s", "norm_black")  # buffers that the authors' class writes and never reads
_HEADS = ("head.", "fc.", "classifier.")


_ENCODER = "sparse_encoder.sp_cnn."


def official_names(model: nn.Module) -> dict[str, str]:
    """What the tensors of a SparK, or of a network, are called in released files; ours -> official.

    Classifiers are left out: no such file has one.
    """
    network: Any = getattr(model, "network", model)
    names = {}
    for name in model.state_dict():
        inside = name.removeprefix("network.")
        of_network = network is model or inside != name
        if of_network and inside.startswith(_HEADS):
            continue
        if of_network and isinstance(network, TimmConvNeXt | ConvNeXt):
            inside = _renamed(inside, _CONVNEXT)
        names[name] = inside if network is model else _ENCODER + inside if of_network else _renamed(name, _METHOD)
    return names


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, official in table:
        renamed, found = re.subn(pattern, official, name)
        if found:
            return renamed
    return name


def convert_official(state: Mapping[str, Tensor], model: nn.Module) -> State:
    """Turn a released state dict into ours; ours passes unchanged.

    A file with the decoder fits :class:`SparK`. The encoder alone, or the encoder's part of such a file, fits the
    network, but for a classifier, which no such file has.

    Args:
        state: the authors' tensors.
        model: a SparK, or a network.
    """
    own = model.state_dict()
    if not hasattr(model, "network"):
        encoder = {name.removeprefix(_ENCODER): v for name, v in state.items() if name.startswith(_ENCODER)}
        state = encoder or state
    ours = {official: name for name, official in official_names(model).items()}
    converted = {}
    for name, value in state.items():
        mine = ours.get(name, name)
        if name in _UNUSED and hasattr(model, "network"):
            continue
        like = own.get(mine)
        if like is not None and value.ndim == 2 and like.ndim == 4 and value.numel() == like.numel():
            value = value[:, :, None, None]  # linear layers of the authors are 1x1 convolutions in some networks
        converted[mine] = value
    return converted


def to_official(model: nn.Module, *, size: int = 224) -> State:
    """A state dict in the authors' layout: of a SparK with the decoder, of a network the encoder alone.

    The authors' scripts read the first under ``module`` of a file, the second as the file itself.

    Args:
        model: a SparK, or a network.
        size: side of the images in pixels; the authors' class has unused buffers of it.
    """
    network: Any = getattr(model, "network", model)
    own, state = model.state_dict(), {}
    for name, official in official_names(model).items():
        value = own[name]
        if ".mlp.fc" in name and value.ndim == 4 and isinstance(network, TimmConvNeXt | ConvNeXt):
            value = value[:, :, 0, 0]
        state[official] = value
    if network is not model:
        like = next(iter(state.values()))
        shapes = {"imn_m": (1, 3, 1, 1), "imn_s": (1, 3, 1, 1), "norm_black": (1, 3, size, size)}
        state |= {name: like.new_zeros(shape) for name, shape in shapes.items()}
    return state


def load_encoder(network: nn.Module, checkpoint: str | Path) -> nn.Module:
    """Load the encoder of a released file, with or without decoder, into a network; its classifier stays as it is.

    Args:
        network: timm's ResNet or ConvNeXt, or ours, of the file's size.
        checkpoint: path or URL.

    Returns:
        The network.

    Raises:
        CallError: the file cannot be read, or does not fit: nothing but the classifier may be missing in it.
    """
    state = convert_official(read_checkpoint(local_file(str(checkpoint)), ignored=("config",)), network)
    own = network.state_dict()
    state = {**{name: own[name] for name in own.keys() - official_names(network).keys()}, **state}
    check_layout(network, state)
    network.load_state_dict(state)
    return network


# Variants -------------------------------------------------------------------------------------------------------------


def _variant(network: str, drop_path_rate: float, pretrained: bool, kwargs: dict[str, Any]) -> SparK:
    return build_plain_model(_Around(network, drop_path_rate), pretrained, convert=convert_official, **kwargs)


class _Around:
    """SparK around a new network of timm's that has no classifier."""

    def __init__(self, network: str, drop_path_rate: float) -> None:
        self.network, self.drop_path_rate = network, drop_path_rate
        self.__name__ = "SparK"

    def __call__(self, **kwargs: Any) -> SparK:
        from torchstone.methods.spark import SparK

        network = timm.create_model(
            self.network,
            num_classes=0,
            global_pool="",
            drop_path_rate=kwargs.pop("drop_path_rate", self.drop_path_rate),
        )
        if isinstance(network, TimmConvNeXt):
            network.add_module("head", nn.Identity())  # the authors' encoder lacks the norm of the classifier
        return SparK(network, **kwargs)


@register_model
def spark_resnet50(pretrained: bool = False, **kwargs: Any) -> SparK:
    """SparK around ResNet-50, stochastic depth 0.05."""
    return _variant("resnet50", 0.05, pretrained, kwargs)


@register_model
def spark_resnet101(pretrained: bool = False, **kwargs: Any) -> SparK:
    """SparK around ResNet-101, stochastic depth 0.08."""
    return _variant("resnet101", 0.08, pretrained, kwargs)


@register_model
def spark_resnet152(pretrained: bool = False, **kwargs: Any) -> SparK:
    """SparK around ResNet-152, stochastic depth 0.1."""
    return _variant("resnet152", 0.1, pretrained, kwargs)


@register_model
def spark_resnet200(pretrained: bool = False, **kwargs: Any) -> SparK:
    """SparK around ResNet-200, stochastic depth 0.15."""
    return _variant("resnet200", 0.15, pretrained, kwargs)


@register_model
def spark_convnext_small(pretrained: bool = False, **kwargs: Any) -> SparK:
    """SparK around ConvNeXt-S, stochastic depth 0.2."""
    return _variant("convnext_small", 0.2, pretrained, kwargs)


@register_model
def spark_convnext_base(pretrained: bool = False, **kwargs: Any) -> SparK:
    """SparK around ConvNeXt-B, stochastic depth 0.3."""
    return _variant("convnext_base", 0.3, pretrained, kwargs)


@register_model
def spark_convnext_large(pretrained: bool = False, **kwargs: Any) -> SparK:
    """SparK around ConvNeXt-L, stochastic depth 0.4."""
    return _variant("convnext_large", 0.4, pretrained, kwargs)
