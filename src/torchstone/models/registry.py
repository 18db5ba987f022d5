"""Models by name: ours, timm's and torchvision's."""

from __future__ import annotations

import fnmatch
import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

from torch import nn

from torchstone import catalog
from torchstone.errors import CallError, unknown_name
from torchstone.models.pretrained import (
    Convert,
    announce_licence,
    check_layout,
    read_checkpoint,
    released_file,
    strict_filter,
)

Factory = Callable[..., nn.Module]
F = TypeVar("F", bound=Factory)
M = TypeVar("M", bound=nn.Module)

_factories: dict[str, Factory] = {}


def register_model(factory: F) -> F:
    """Decorator: make a factory known under its own name."""
    name = factory.__name__
    known = _factories.get(name)
    if known is not None and known.__module__ != factory.__module__:
        raise ValueError(f"{name} is registered by {known.__module__} already")
    _factories[name] = factory
    return factory


def factories(key: str) -> dict[str, Factory]:
    """The factories that one system registers, by name."""
    module = f"torchstone.{catalog.card(key).models_home.replace('/', '.')}"
    importlib.import_module(module)
    return {name: factory for name, factory in _factories.items() if factory.__module__.startswith(module)}


def list_models(pattern: str = "*") -> list[str]:
    """The names of our models that match a glob pattern, sorted."""
    return fnmatch.filter(catalog.networks(), pattern)


def create_model(name: str, *, pretrained: bool | str | Path = False, **kwargs: Any) -> nn.Module:
    """Build one of our models.

    Args:
        name: a name that :func:`list_models` shows.
        pretrained: True for the authors' released weights, or the path or URL of a checkpoint in their layout or ours.
            The weights are converted strictly; classifier and first convolution are adapted to ``num_classes`` and
            ``in_chans``.
        **kwargs: ``num_classes``, ``in_chans``, ``drop_rate``, ``features_only``, ... and the model's own arguments.

    Raises:
        UnknownName: no such model; the nearest names are given.
        CallError: an argument that the model does not take, or weights that do not fit.
    """
    card = catalog.system_of(name)
    if card is None:
        raise unknown_name("model", name, catalog.variants())
    factory = factories(card.key)[name]
    if not pretrained:
        return _call(factory, name, kwargs)
    file = released_file(name) if pretrained is True else local_file(str(pretrained))
    if pretrained is not True:
        announce_licence(name)
    state = read_checkpoint(file, entry=card.variant(name).entry)
    overlay = {**kwargs.pop("pretrained_cfg_overlay", {}), "state_dict": state}
    model = _call(factory, name, {**kwargs, "pretrained": True, "pretrained_cfg_overlay": overlay})
    getattr(model, "pretrained_cfg", {}).pop("state_dict", None)  # the configuration must not keep the weights alive
    return model


def load_official(name: str, checkpoint: str | Path, **kwargs: Any) -> nn.Module:
    """Build one of our models with the weights of a file that its authors released (a path or URL)."""
    return create_model(name, pretrained=checkpoint, **kwargs)


def _call(factory: Factory, name: str, kwargs: dict[str, Any]) -> nn.Module:
    try:
        return factory(**kwargs)
    except TypeError as error:
        if "unexpected keyword argument" in str(error):
            raise CallError(f"{name} does not take this argument: {error}") from error
        raise


def local_file(location: str) -> Path:
    """A checkpoint's path; a URL is downloaded once."""
    if urlparse(location).scheme in ("http", "https"):
        from timm.models._hub import download_cached_file

        return Path(download_cached_file(location, progress=True))
    return Path(location)


def build_model(spec: str, *, pretrained: bool | str | Path = False, **kwargs: Any) -> nn.Module:
    """Build a model of ours (``NAME``) or of another library: ``timm:NAME``, ``torchvision:NAME``,
    ``pyg:NAME``, ``torch:NAME``.

    Args:
        spec: the model's name, with the library it comes from when it is not ours.
        pretrained: as in :func:`create_model`; for timm and torchvision True stands for their default weights.
        **kwargs: ``num_classes``, ``in_chans`` (of graph models ``in_channels``, ``out_channels``; of sequence models
            ``in_channels``, ``num_classes``, ``max_length``) and the model's own arguments.

    Raises:
        UnknownName: no such library or model; the nearest names are given.
    """
    library, _, name = spec.rpartition(":")
    if not library:
        return create_model(name, pretrained=pretrained, **kwargs)
    builders = {"timm": _build_timm, "torchvision": _build_torchvision, "pyg": _build_pyg, "torch": _build_torch}
    if library not in builders:
        raise unknown_name("library", library, builders)
    return builders[library](name, pretrained, kwargs)


def _build_timm(name: str, pretrained: bool | str | Path, kwargs: dict[str, Any]) -> nn.Module:
    import timm

    if not timm.is_model(name):
        raise unknown_name("timm model", name, timm.list_models())
    _check_for_images(f"timm:{name}", kwargs)
    if isinstance(pretrained, bool):
        return timm.create_model(name, pretrained=pretrained, **kwargs)
    state = read_checkpoint(local_file(str(pretrained)))
    overlay: dict[str, Any] = {"state_dict": state}
    config = timm.get_pretrained_cfg(name)
    classifier = state.get(f"{config.classifier}.weight") if config is not None else None
    if classifier is not None:  # the file's classes, not those of timm's own weights, decide whether it is taken
        overlay["num_classes"] = len(classifier)
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


def _build_torchvision(name: str, pretrained: bool | str | Path, kwargs: dict[str, Any]) -> nn.Module:
    import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        raise unknown_name("torchvision model", name, torchvision.models.list_models(module=torchvision.models))
    _check_for_images(f"torchvision:{name}", kwargs)
    if kwargs.pop("in_chans", 3) != 3:
        raise CallError(f"torchvision:{name} takes 3 channels only")
    if name in ("googlenet", "inception_v3"):
        kwargs = {"aux_logits": False, "init_weights": True, **kwargs}
    model = torchvision.models.get_model(name, weights=None, **kwargs)
    if not pretrained:
        return model
    if pretrained is True:
        state = torchvision.models.get_model_weights(name).DEFAULT.get_state_dict(progress=True)
    else:
        state = read_checkpoint(local_file(str(pretrained)))
    own = model.state_dict()
    classifier = [key for key in list(own)[-2:] if key in state and state[key].shape != own[key].shape]
    for key in classifier:  # another number of classes: the classifier starts anew
        del state[key]
    model.load_state_dict({**{key: own[key] for key in classifier}, **state})
    return model


def _check_for_images(name: str, kwargs: Mapping[str, Any]) -> None:
    """Refuse what networks of graphs and sequences are built with."""
    if "in_channels" in kwargs:
        raise CallError(f"{name} is a network for images; it takes neither sequences nor graphs")


def _build_pyg(name: str, pretrained: bool | str | Path, kwargs: dict[str, Any]) -> nn.Module:
    from torchstone.models.graph.peers import build_peer

    return _with_weights(f"pyg:{name}", build_peer(name, **kwargs), pretrained)


def _build_torch(name: str, pretrained: bool | str | Path, kwargs: dict[str, Any]) -> nn.Module:
    from torchstone.models.sequence.peers import build_peer

    return _with_weights(f"torch:{name}", build_peer(name, **kwargs), pretrained)


def _with_weights(name: str, model: nn.Module, pretrained: bool | str | Path) -> nn.Module:
    """A peer that has no released weights, with those of a file."""
    if pretrained is True:
        raise CallError(f"there are no released weights of {name}")
    if pretrained:
        state = read_checkpoint(local_file(str(pretrained)))
        check_layout(model, state)
        model.load_state_dict(state)
    return model


def build_image_model(
    cls: Callable[..., nn.Module],
    name: str,
    pretrained: bool,
    *,
    cfg: Mapping[str, Any],
    convert: Convert | None = None,
    feature_cfg: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Build an image model through timm's machinery; what every factory of ours calls.

    Args:
        cls: the network's class.
        name: the factory's name, under which the card lists the weights.
        pretrained: load weights, through ``convert`` and the strict check of the layout.
        cfg: timm's pretrained configuration: ``first_conv``, ``classifier``, ``input_size``, ``crop_pct``, ...
        convert: turns the authors' state dict into ours; None where the names are the same.
        feature_cfg: timm's settings for ``features_only=True``.
        **kwargs: arguments of the network, timm's loader and feature wrapper.
    """
    from timm.models import build_model_with_cfg

    card = catalog.variants()[name]
    licence = card.official.weights_licence if card.official else ""
    defaults = {
        "architecture": name,
        "url": card.variant(name).weights or None,
        "license": licence.lower() or None,
        "paper_ids": f"arXiv:{card.arxiv}",
        **cfg,
    }
    return build_model_with_cfg(
        cls,
        name,
        pretrained,
        pretrained_cfg=kwargs.pop("pretrained_cfg", None) or defaults,
        pretrained_filter_fn=strict_filter(convert, cfg["first_conv"], cfg["classifier"]),
        feature_cfg=dict(feature_cfg or {}),
        **kwargs,
    )


def build_plain_model(
    cls: Callable[..., M],
    pretrained: bool,
    *,
    convert: Convert | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> M:
    """Build a model of a room without timm's machinery; what its factories call.

    Args:
        cls: the network's class.
        pretrained: load the weights that :func:`create_model` has read, through ``convert``, strictly.
        convert: turns the authors' state dict into ours; None where the names are the same.
        pretrained_cfg_overlay: holds the weights as ``state_dict``.
        **kwargs: arguments of the network.

    Raises:
        CallError: weights that do not fit.
    """
    model = cls(**kwargs)
    if pretrained:
        if not pretrained_cfg_overlay:
            raise CallError(f"{cls.__name__}'s factories take weights from create_model(NAME, pretrained=FILE)")
        state = pretrained_cfg_overlay["state_dict"]
        state = convert(state, model) if convert else state
        check_layout(model, state)
        model.load_state_dict(state)
    return model


def register_with_timm() -> dict[str, str]:
    """Add our image models to timm's registry, so that ``timm.create_model`` and timm's scripts find them.

    A name that timm has already is registered as ``ts_<name>``; nothing that timm had is changed.

    Returns:
        The name in timm's registry for each of our names.
    """
    import timm

    names = {}
    for card in catalog.cards().values():
        if card.models_room != "models/image":
            continue
        for name in [variant.name for variant in card.networks]:
            factory = factories(card.key)[name]
            theirs = timm.is_model(name) and not name.startswith("ts_") and not _is_ours(name)
            names[name] = f"ts_{name}" if theirs else name
            if not _is_ours(names[name]):
                timm.models.register_model(_entry(names[name], factory))
    return names


def _is_ours(name: str) -> bool:
    import timm

    return timm.is_model(name) and timm.model_entrypoint(name).__module__ == __name__


def _entry(name: str, factory: Factory) -> Factory:
    """A factory under the name and module that timm's registry reads off it."""

    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return factory(pretrained=pretrained, **kwargs)

    entry.__name__ = entry.__qualname__ = name
    entry.__module__ = __name__
    entry.__doc__ = inspect.getdoc(factory)
    return entry
