"""Tune mode: fine-tune a network with batch norms at the cost of one without.

"Efficient ConvBN Blocks for Transfer Learning and Beyond" (You et al., ICLR 2024, arXiv 2305.11624).

Idea. A network that was trained already is fine-tuned, attacked or searched with its batch norms in eval mode: they use
running statistics. Such a norm is an affine map behind a convolution, so the two could be one convolution; but folding
them for good changes what gradient descent does, and training becomes unstable. Tune mode folds them anew in every
forward pass, inside the graph that gradients flow through: the updates are those of eval mode, the cost is nearly that
of the folded network.

A block is a layer with weight W and bias b, and a norm with gamma, beta, running mean m, running variance v:

    eval     y = gamma (W * x + b - m) / sqrt(v + eps) + beta
    tune     y = W' * x + b'      with  c = gamma / sqrt(v + eps),  W' = c W,  b' = beta + c (b - m)   at each call
    deploy   y = W' * x + b'      with W' and b' stored as the parameters

Eval keeps x and the convolution's output for the backward pass, tune only x and the small W'. One step of gradient
descent with learning rate h moves W' by h c^2 dL/dW' in eval and tune mode, by h dL/dW' in deploy mode: where running
variances are large, c is small and deploy mode's steps are 1 / c^2 times those that the learning rate was meant for.

    from torchstone.transforms import tune_mode
    tuned = tune_mode.transform(model, images, freeze=True).model      # same class, same names in the state dict

Layers: Conv1d, 2d and 3d, their transposed forms, Linear (inputs of two dimensions), timm's Conv2dSame. Norms:
BatchNorm1d, 2d and 3d, SyncBatchNorm, timm's BatchNormAct2d.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchstone.errors import CallError, unknown_name
from torchstone.transforms.contract import Batches, Finetune, Plan, Report, Result, as_inputs
from torchstone.transforms.tune_mode.modules import (
    channels,
    fold,
    folded_layer,
    folded_norm,
    freeze_norm,
    is_layer,
    is_norm,
    pair,
    unpair,
)
from torchstone.transforms.tune_mode.pairs import find_pairs

__all__ = ["deploy", "fold", "replay", "saved_for_backward", "transform"]

MODES = ("tune", "eval", "deploy")


def transform(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    *,
    data: Batches | None = None,
    finetune: Finetune | None = None,
    teacher: nn.Module | None = None,
    mode: str = "tune",
    freeze: bool = False,
) -> Result:
    """Put the blocks of a network into Tune mode.

    A norm in train mode does what it always did, so ``model.train()`` and ``model.eval()`` keep their meaning; with
    ``freeze`` all norms use their running statistics in both, as fine-tuning in the paper's Eval and Tune mode does.

    Args:
        model: any network with batch norms; it stays as it is.
        example_inputs: a batch (B, ...), or one tensor per input.
        data, finetune, teacher: not needed; nothing is learned here.
        mode: ``tune``; ``deploy`` to fold for good (parameters change, norms are gone); ``eval`` to freeze the norms
            and fold nothing, which is what Tune mode is measured against.
        freeze: use the running statistics also in train mode. ``eval`` always does; ``deploy`` has none.

    Returns:
        The network, of the same class; in ``tune`` and ``eval`` with the same names in its state dict.

    Raises:
        UnknownName: no such mode.
        CallError: no block to put into that mode, inputs that the network does not take, or ``freeze`` with ``deploy``.
    """
    _check_options(mode, freeze)
    inputs = as_inputs(example_inputs)
    found = find_pairs(model, inputs)
    norms = [name for name, module in model.named_modules() if is_norm(module) and module.running_mean is not None]
    if not (norms if mode == "eval" else found.pairs):
        raise CallError(f"{type(model).__name__} has no block for {mode} mode: {_nothing(found.left)}")
    plan: Plan = {
        "transform": "tune_mode",
        "mode": mode,
        "pairs": [] if mode == "eval" else [list(names) for names in found.pairs],
        "frozen": norms if mode == "eval" or freeze else [],
    }
    changed = replay(model, plan)
    report = Report(
        changed=_changes(plan, found.how),
        kept=tuple(f"{name}: {reason}" for name, reason in found.left.items()) + _never_trained(model, plan),
        predicted=_predicted(model, inputs, plan),
        measured={
            "pairs": len(plan["pairs"]),
            "norms left": len(found.left) if mode != "eval" else len(norms),
            **_measured(model, changed, inputs),
        },
    )
    return Result(changed, report, plan)


def deploy(model: nn.Module, example_inputs: Tensor | Sequence[Tensor]) -> Result:
    """Fold the norms into the layers before them for good: of a plain network, or of one in Tune mode."""
    return transform(model, example_inputs, mode="deploy")


def replay(model: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
    """Put the blocks that a plan names into the mode that it names.

    Args:
        model: a network with these blocks; it stays as it is.
        plan: of :func:`transform`.

    Raises:
        CallError: the network has no such blocks.
    """
    mode = plan["mode"]
    _check_options(mode, freeze=False)
    model = copy.deepcopy(model)
    blocks = [(_block_part(model, layer, is_layer), _block_part(model, norm, is_norm)) for layer, norm in plan["pairs"]]
    for (layer, norm), names in zip(blocks, plan["pairs"], strict=True):
        if channels(layer) != norm.num_features:
            raise CallError(
                f"the plan does not fit: {names[0]} has {channels(layer)} channels, {names[1]} {norm.num_features}"
            )
    for layer, norm in blocks:
        if mode == "deploy":
            unpair(norm)
        else:
            pair(layer, norm)
    for name in plan["frozen"]:
        freeze_norm(_block_part(model, name, is_norm))
    if mode == "deploy":
        replacements: dict[nn.Module, nn.Module] = {}
        for layer, norm in blocks:
            replacements |= {layer: folded_layer(layer, norm).train(layer.training), norm: folded_norm(norm)}
            replacements[norm].train(norm.training)
        _replace(model, replacements)
    return model


def _check_options(mode: str, freeze: bool) -> None:
    if mode not in MODES:
        raise unknown_name("mode of tune_mode", mode, MODES)
    if freeze and mode != "tune":
        why = "always uses running statistics" if mode == "eval" else "has no statistics left"
        raise CallError(f"freeze belongs to mode tune; mode {mode} {why}: leave it out")


def _block_part(model: nn.Module, name: str, fits: Callable[[nn.Module], bool]) -> Any:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise CallError(f"the plan does not fit: {type(model).__name__} has no module {name!r}") from None
    if not fits(module):
        raise CallError(f"the plan does not fit: {name} is a {type(module).__name__}, no part of a block in Tune mode")
    return module


def _replace(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Put modules in the place of others, wherever those are."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in replacements:
                setattr(parent, name, replacements[child])


# --- what is said of it


def _nothing(left: Mapping[str, str]) -> str:
    if not left:
        return "it has no batch norm"
    name, reason = next(iter(left.items()))
    others = f", and {len(left) - 1} others likewise" if len(left) > 1 else ""
    return f"{name}: {reason}{others}"


def _changes(plan: Plan, how: str) -> tuple[str, ...]:
    pairs, frozen = len(plan["pairs"]), len(plan["frozen"])
    lines = {
        "tune": f"{pairs} norms are folded into the layer before them at every call that uses running statistics",
        "deploy": f"{pairs} norms were folded into the layer before them for good",
        "eval": "nothing is folded",
    }
    first = lines[plan["mode"]] + (f" (the network was {how})" if pairs else "")
    return (first, *([f"{frozen} norms use their running statistics also in train mode"] if frozen else []))


def _never_trained(model: nn.Module, plan: Plan) -> tuple[str, ...]:
    """A warning about statistics that say nothing of any data."""
    fresh = [name for name in plan["frozen"] if getattr(model.get_submodule(name), "num_batches_tracked", None) == 0]
    return (f"{len(fresh)} frozen norms have the statistics of a network that has seen no data",) if fresh else ()


def _predicted(model: nn.Module, inputs: Sequence[Tensor], plan: Plan) -> dict[str, float]:
    """What the backward pass need no longer keep, the inputs of the folded norms, and what it keeps instead."""
    sizes: dict[str, int] = {}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, given, name=name: sizes.__setitem__(name, given[0].nbytes)
        )
        for _, name in plan["pairs"]
    ]
    try:
        with torch.no_grad():
            _in_eval(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not hooks:
        return {}
    layers: list[Any] = [model.get_submodule(name) for name, _ in plan["pairs"]]
    folded = sum(layer.weight.nbytes for layer in layers)
    return {
        "bytes of activations fewer for the backward pass": sum(sizes.values()),
        "bytes of folded weights kept instead, whatever the batch": folded if plan["mode"] == "tune" else 0,
    }


def _measured(before: nn.Module, after: nn.Module, inputs: Sequence[Tensor]) -> dict[str, float]:
    """Both networks in eval mode on the example inputs."""
    with torch.no_grad():
        differences = [
            (ours - theirs).abs().max().item()
            for ours, theirs in zip(_in_eval(after, inputs), _in_eval(before, inputs), strict=True)
        ]
    return {
        "largest difference of the outputs": max(differences, default=0.0),
        "bytes kept for the backward pass before": saved_for_backward(before, inputs),
        "bytes kept for the backward pass now": saved_for_backward(after, inputs),
    }


def saved_for_backward(model: nn.Module, inputs: Sequence[Tensor], *, training: bool = False) -> int:
    """Bytes of the tensors that a forward pass keeps for the backward pass, without the parameters.

    Args:
        model: it stays as it is.
        inputs: its inputs.
        training: run a copy of it in train mode instead of itself in eval mode.
    """
    if training:
        model = copy.deepcopy(model).train()
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = max(kept.get(storage.data_ptr(), 0), storage.nbytes())
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        # the outputs live to the end, so that no memory is reused and counted for another tensor
        outputs = model(*inputs) if training else _in_eval(model, inputs)
    del outputs
    return sum(kept.values())


def _in_eval(model: nn.Module, inputs: Iterable[Tensor]) -> list[Tensor]:
    """The floating-point outputs of a network in eval mode; afterwards its modules are in the modes they were in."""
    modes = {module: module.training for module in model.modules()}
    try:
        outputs = model.eval()(*inputs)
    finally:
        for module, mode in modes.items():
            module.training = mode
    leaves = torch.utils._pytree.tree_leaves(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
