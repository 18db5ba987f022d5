"""Optimizers by timm's names, with timm's rule of which parameters decay."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
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


def create_optimizer(model: nn.Module, train: TrainSpec, undecayed: frozenset[str]) -> torch.optim.Optimizer:
    """Build a recipe's optimizer.

    Args:
        model: the network, possibly wrapped in shards whose parameters have lost their shape.
        train: names the optimizer and its settings.
        undecayed: :func:`undecayed_parameters` of the network before it was wrapped.

    Raises:
        UnknownName: timm has no such optimizer.
        CallError: a setting that this optimizer does not have.
    """
    check_optimizer(train)
    own = parameter_settings(model)
    groups: dict[tuple[bool, float | None], list[nn.Parameter]] = {(True, None): [], (False, None): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            setting = own.get(_bare(name), {})
            decays = _bare(name) not in undecayed and setting.get("weight_decay") != 0
            groups.setdefault((decays, setting.get("lr")), []).append(parameter)
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
                    "weight_decay": train.weight_decay if decays else 0.0,
                    **({} if lr is None else {"lr_scale": lr / train.lr}),
                }
                for (decays, lr), parameters in groups.items()
                if parameters
            ],
            opt=train.optimizer,
            lr=train.lr,
            weight_decay=train.weight_decay,
            **settings,
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise CallError(f"train.optimizer_args do not fit train.optimizer={train.optimizer}: {error}") from error


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
