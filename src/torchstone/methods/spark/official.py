"""Released checkpoints in both directions, the authors' schedule, and their variants."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
from timm.models.convnext import ConvNeXt as TimmConvNeXt
from torch import Tensor, nn

from torchstone.errors import CallError
from torchstone.models.image.inceptionnext import ConvNeXt
from torchstone.models.pretrained import State, check_layout, read_checkpoint
from torchstone.models.registry import build_plain_model, local_file, register_model

if TYPE_CHECKING:
    from torchstone.methods.spark import SparK

# Names ----------------------------------------------------------------------------------------------------------------

_METHOD = (  # ours -> official
    (r"^network\.", "sparse_encoder.sp_cnn."),
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


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, official in table:
        name, found = re.subn(pattern, official, name)
        if found:
            break
    return name


def _official_name(name: str, network: nn.Module) -> str:
    """What a tensor of a network, or of SparK around it, is called in a released file."""
    prefix, bare = ("network.", name.removeprefix("network.")) if name.startswith("network.") else ("", name)
    if (prefix or not _is_method_name(name)) and isinstance(network, TimmConvNeXt | ConvNeXt):
        bare = _renamed(bare, _CONVNEXT)
    return _renamed(prefix + bare, _METHOD)


def _is_method_name(name: str) -> bool:
    return name.startswith(("decoder.", "densify."))


def convert_official(state: Mapping[str, Tensor], model: nn.Module) -> State:
    """Turn a released state dict into ours; ours passes unchanged.

    A file with the decoder fits :class:`SparK`; one of the encoder alone, or the encoder's part of the other, fits the
    network (without its classifier, which no such file has).

    Args:
        state: the authors' tensors.
        model: a SparK, or a network.
    """
    own = model.state_dict()
    network: Any = getattr(model, "network", model)
    if network is model:
        encoder = {k.removeprefix(_ENCODER): v for k, v in state.items() if k.startswith(_ENCODER)}
        state = encoder or state
    ours = {_official_name(name, network): name for name in own}
    converted = {}
    for name, value in state.items():
        if name in _UNUSED and network is not model:
            continue
        mine = ours.get(name, name)
        if mine in own and value.ndim != own[mine].ndim and value.numel() == own[mine].numel():
            value = value.reshape(own[mine].shape)  # linear layers of the authors are 1x1 convolutions in some networks
        converted[mine] = value
    return converted


_ENCODER = "sparse_encoder.sp_cnn."


def to_official(model: nn.Module, *, size: int = 224) -> State:
    """A state dict in the authors' layout: with the decoder of a SparK, of the encoder alone of a network.

    The authors' scripts read it: the first as ``<model>_withdecoder_1kpretrained_spark_style.pth`` under ``module``, the
    second as ``<model>_1kpretrained_timm_style.pth``.

    Args:
        model: a SparK, or a network.
        size: side of the images in pixels; the authors' class keeps unused buffers of it.
    """
    network: Any = getattr(model, "network", model)
    state = {}
    for name, value in model.state_dict().items():
        if name.startswith(_HEADS) or name.startswith(tuple(f"network.{head}" for head in _HEADS)):
            continue
        if ".mlp.fc" in name and value.ndim == 4 and isinstance(network, TimmConvNeXt | ConvNeXt):
            value = value[:, :, 0, 0]
        state[_official_name(name, network)] = value
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
    classifier = {name: value for name, value in network.state_dict().items() if name.startswith(_HEADS)}
    state = {**classifier, **state}
    check_layout(network, state)
    network.load_state_dict(state)
    return network


# Schedule -------------------------------------------------------------------------------------------------------------


def annealing(
    step: int, steps: int, warmup: int, lr: float, weight_decay: float, weight_decay_end: float
) -> tuple[float, float]:
    """Learning rate and weight decay of the authors' pre-training.

    With T = steps, w = warmup::

        lr(t) = lr (0.005 + 0.995 t / w)                                              t < w
                lr (0.001 + 0.999 (1 + cos(pi (t - w) / (T - 1 - w))) / 2)            t >= w
        wd(t) = wd_end + (wd - wd_end) (1 + cos(pi t / (T - 1))) / 2

    Args:
        step: t, from 0.
        steps: T.
        warmup: w.
        lr: the peak.
        weight_decay: at the start.
        weight_decay_end: at the end.

    Raises:
        CallError: no step is left after the warm-up.
    """
    if warmup >= steps - 1:
        raise CallError(f"warm-up ({warmup} steps) must end before the last of {steps} steps")
    if step < warmup:
        rate = lr * (0.005 + 0.995 * step / warmup)
    else:
        rate = lr * (0.001 + 0.999 * _half_cosine((step - warmup) / (steps - 1 - warmup)))
    decay = weight_decay_end + (weight_decay - weight_decay_end) * _half_cosine(step / (steps - 1))
    return rate, decay


def _half_cosine(progress: float) -> float:
    """From 1 to 0."""
    return 0.5 + 0.5 * math.cos(math.pi * progress)


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
            self.network, num_classes=0, global_pool="", drop_path_rate=kwargs.pop("drop_path_rate", self.drop_path_rate)
        )
        if isinstance(network, TimmConvNeXt):
            network.head = nn.Identity()  # its norm belongs to the classifier; the authors' encoder has none
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
