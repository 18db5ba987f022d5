"""Optimizers by timm's names, with timm's rule of which parameters decay and its layers for rates that differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from torch import nn

from torchstone.errors import CallError, unknown_name
from torchstone.training.recipe import TrainSpec

_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)


def undecayed_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the parameters without weight decay: biases, norms and other one-dimensional ones, and those that the
    model itself names in ``no_weight_decay()``."""
    own: Collection[str] = getattr(model, "no_weight_decay", set)()
    return frozenset(
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim <= 1 or name.endswith(".bias") or name in own
    )


def parameter_settings(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What modules say of their own parameters in ``parameter_settings()``, by the parameters' full names.

    A setting may have ``lr``, an absolute learning rate that follows the recipe's schedule (None is the recipe's), and
    ``weight_decay`` 0.
    """
    return {
        _bare(f"{prefix}.{name}" if prefix else name): setting
        for prefix, module in model.named_modules()
        for name, setting in getattr(module, "parameter_settings", dict)().items()
    }


def _bare(name: str) -> str:
    """A parameter's name without what sharding adds to it."""
    return name.replace("_fsdp_wrapped_module.", "")


def learning_rate_scales(model: nn.Module, train: TrainSpec) -> dict[str, float]:
    """Factor of the learning rate for every parameter of a network, by ``train.layer_decay``; empty when that is 1.

    The layers are those of timm's ``group_matcher()``: the stem 0, every block (with ``train.layer_blocks`` so many
    consecutive blocks of a stage), the head L; layer l learns at ``layer_decay ** (L - l)`` of the rate.

    Raises:
        CallError: the model does not say what its layers are, or ``layer_blocks`` does not fit its stages.
    """
    if train.layer_decay == 1.0:
        return {}
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is None:
        raise CallError(
            f"train.layer_decay needs a model with group_matcher(), as timm's and ours have; {type(model).__name__} "
            "has none"
        )
    layers: Mapping[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
    if train.layer_blocks is not None:
        stages: Mapping[str, int] = group_parameters(model, matcher(coarse=True), reverse=True)
        layers = _merged(layers, stages, list(train.layer_blocks))
    top = max(layers.values())
    return {name: train.layer_decay ** (top - layer) for name, layer in layers.items()}


def _merged(layers: Mapping[str, int], stages: Mapping[str, int], blocks: list[int]) -> dict[str, int]:
    """Layers in which ``blocks[s]`` consecutive blocks of stage s are one."""
    inside: dict[int, set[int]] = defaultdict(set)  # stage -> its blocks
    for name, stage in stages.items():
        inside[stage].add(layers[name])
    _stem, *after = sorted(inside)
    if len(blocks) not in (len(after), len(after) - 1):
        count = len(after) - 1  # after the stages comes the head
        raise CallError(f"train.layer_blocks has {len(blocks)} numbers; this model has {count} stages")
    size = dict(zip(after, blocks, strict=False))
    part = {  # (stage, block) -> (stage, which of its layers)
        (stage, block): (stage, index // size.get(stage, len(members)))
        for stage, members in inside.items()
        for index, block in enumerate(sorted(members))
    }
    number = {key: layer for layer, key in enumerate(sorted(set(part.values())))}
    return {name: number[part[stage, layers[name]]] for name, stage in stages.items()}


def create_optimizer(
    model: nn.Module, train: TrainSpec, undecayed: frozenset[str], scales: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """Build a recipe's optimizer. Its groups carry ``lr_scale``, ``decays``, whether weight decay is for them, and
    ``own_decay``, a weight decay that is not the recipe's general one, or None.

    Args:
        model: the network, possibly wrapped in shards whose parameters have lost their shape.
        train: names the optimizer and its settings.
        undecayed: :func:`undecayed_parameters` of the network before it was wrapped.
        scales: :func:`learning_rate_scales` of the network before it was wrapped; a name not in it has 1.

    Raises:
        UnknownName: timm has no such optimizer.
        CallError: a setting that this optimizer does not have, or a ``weight_decay_for`` no parameter.
    """
    check_optimizer(train)
    own = parameter_settings(model)
    decays_of_their_own = own_decays(model, train)
    groups: dict[tuple[bool, float, float | None], list[nn.Parameter]] = {
        (True, 1.0, None): [],
        (False, 1.0, None): [],
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            name = _bare(name)
            setting = own.get(name, {})
            decays = name not in undecayed and setting.get("weight_decay") != 0
            rate = setting.get("lr")
            scale = (scales or {}).get(name, 1.0) if rate is None else rate / train.lr
            groups.setdefault((decays, scale, decays_of_their_own.get(name) if decays else None), []).append(parameter)
    settings: dict[str, Any] = dict(train.optimizer_args)
    clips_mixed = train.clip_grad is not None and train.precision != "32-true"  # Lightning refuses that when fused
    if get_optimizer_info(_base(train.optimizer)).opt_class in _FUSED and not clips_mixed:
        settings.setdefault("fused", True)
    if train.momentum is not None:
        settings["momentum"] = train.momentum
    try:
        return create_optimizer_v2(
            [
                {
                    "params": parameters,
                    "weight_decay": (train.weight_decay if decay is None else decay) if decays else 0.0,
                    "lr_scale": scale,
                    "decays": decays,
                    "own_decay": decay,
                }
                for (decays, scale, decay), parameters in groups.items()
                if parameters
            ],
            opt=train.optimizer,
            lr=train.lr,
            weight_decay=train.weight_decay,
            **settings,
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise CallError(f"train.optimizer_args do not fit train.optimizer={train.optimizer}: {error}") from error


def own_decays(model: nn.Module, train: TrainSpec) -> dict[str, float]:
    """The weight decay of the parameters that ``train.weight_decay_for`` names; the longest beginning counts.

    Raises:
        UnknownName: no parameter begins so.
    """
    names = [_bare(name) for name, _ in model.named_parameters()]
    found: dict[str, float] = {}
    for beginning, decay in sorted(train.weight_decay_for.items(), key=lambda item: len(item[0])):
        these = [name for name in names if name.startswith(beginning)]
        if not these:
            valid = sorted({name.split(".")[0] for name in names})
            raise unknown_name("beginning in train.weight_decay_for", beginning, valid)
        found |= dict.fromkeys(these, decay)
    return found


def check_optimizer(train: TrainSpec) -> None:
    """Refuse an optimizer that timm does not have, and settings that it would ignore."""
    known = [str(name) for name in list_optimizers()]
    if _base(train.optimizer) not in known:
        raise unknown_name("train.optimizer", train.optimizer, known)
    info = get_optimizer_info(_base(train.optimizer))
    for key, given, takes in (
        ("momentum", train.momentum is not None, info.has_momentum),
        ("optimizer_args.betas", "betas" in train.optimizer_args, info.has_betas),
        ("optimizer_args.eps", "eps" in train.optimizer_args, info.has_eps),
    ):
        if given and not takes:
            raise CallError(f"train.{key} means nothing with train.optimizer={train.optimizer}; remove it")
    if "momentum" in train.optimizer_args:
        raise CallError("give the momentum as train.momentum, not in train.optimizer_args")


def _base(optimizer: str) -> str:
    return optimizer.lower().removeprefix("lookahead_")
