"""Which layers of a network can fold the norm behind them.

A layer and a norm are a pair when every output of the layer goes into that norm and nowhere else, and every input of
the norm comes from that layer. ``torch.fx`` shows it for all inputs; where it cannot trace a network (control flow that
depends on data, checks of shapes), the network is watched while it runs on the example inputs.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torchstone.errors import CallError
from torchstone.transforms.tune_mode.modules import TuneLayer, channels, is_layer, is_norm


@dataclass
class Uses:
    """Where the outputs of layers go and the inputs of norms come from, by the modules' names; an empty name is
    anything else."""

    after: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    before: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def add(self, other: Uses) -> None:
        for mine, its in ((self.after, other.after), (self.before, other.before)):
            for name, found in its.items():
                mine[name] |= found


@dataclass(frozen=True)
class Found:
    """The pairs of a network.

    Attributes:
        pairs: (layer, norm), names of modules, in the network's order.
        left: norm -> why it is not folded.
        how: how it was found out, in words.
    """

    pairs: list[tuple[str, str]]
    left: dict[str, str]
    how: str


def find_pairs(model: nn.Module, example_inputs: Sequence[Tensor]) -> Found:
    """Find the pairs of a network, which stays as it is.

    Raises:
        CallError: the network neither can be traced nor takes the example inputs.
    """
    uses, how = Uses(), "traced"
    try:
        for training in (False, True):
            uses.add(_trace(model, training))
    except Exception as error:  # whatever a forward pass does with a proxy that a tensor would have allowed
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        uses, how = _watch(model, example_inputs)
        how = f"{how}, because it cannot be traced ({reason})"
    return _judge(model, uses, how)


def _judge(model: nn.Module, uses: Uses, how: str) -> Found:
    modules = dict(model.named_modules())
    pairs, left = [], {}
    for name, norm in modules.items():
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
            continue
        reason = _obstacle(modules, name, uses)
        if reason:
            left[name] = reason
        else:
            pairs.append((next(iter(uses.before[name])), name))
    return Found(pairs, left, how)


def _obstacle(modules: dict[str, nn.Module], name: str, uses: Uses) -> str:
    """Why a norm cannot be folded; empty when it can."""
    norm: Any = modules[name]
    before = uses.before[name]
    if not is_norm(norm):
        return f"a {type(norm).__name__} may do more than a batch norm"
    if norm.running_mean is None:
        return "it has no running statistics"
    if not before:
        return "it was not called"
    if before == {""}:
        return "no convolution or linear layer comes right before it"
    if len(before) > 1:
        return "its input does not always come from the same layer"
    layer = next(iter(before))
    if len(uses.after[layer]) > 1:
        return f"the output of {layer} is also used elsewhere"
    if channels(modules[layer]) != norm.num_features:
        return f"{layer} has {channels(modules[layer])} output channels, the norm {norm.num_features}"
    if modules[layer]._forward_hooks or norm._forward_pre_hooks:
        return f"a hook is to see what {layer} hands to the norm"
    return ""


# --- tracing


class _Tracer(fx.Tracer):
    """Stops at the layers and norms that may form pairs, and at what timm says cannot be traced."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.whole = tuple(get_notrace_modules())

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        whole = is_layer(module) or isinstance(module, (TuneLayer, nn.modules.batchnorm._BatchNorm, *self.whole))
        return whole or super().is_leaf_module(module, qualified_name)


@contextmanager
def _in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The network in train or eval mode, and afterwards every module in its own again."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            module.training = training
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _trace(model: nn.Module, training: bool) -> Uses:
    uses = Uses()
    traced = copy.deepcopy(model)  # the tracer leaves constants in what it traces
    modules = dict(traced.named_modules())
    with _in_mode(traced, training):
        graph = _Tracer().trace(traced)
    for node in graph.nodes:
        if node.op != "call_module":
            continue
        module = modules[node.target]
        if is_layer(module):
            uses.after[node.target] |= {_norm_fed(user, node, modules) for user in node.users} or {""}
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            source = node.args[0] if node.args else None
            known = isinstance(source, fx.Node) and source.op == "call_module" and is_layer(modules[source.target])
            uses.before[node.target].add(source.target if known else "")  # type: ignore[union-attr]
    return uses


def _norm_fed(user: fx.Node, node: fx.Node, modules: dict[str, nn.Module]) -> str:
    """The norm that a node goes into as its only input; empty for any other use."""
    fed = user.op == "call_module" and user.args == (node,) and not user.kwargs
    return user.target if fed and isinstance(modules[user.target], nn.modules.batchnorm._BatchNorm) else ""  # type: ignore[return-value, index]


# --- watching


def _watch(model: nn.Module, example_inputs: Sequence[Tensor]) -> tuple[Uses, str]:
    """Run a copy of the network in eval mode and, where that works, in train mode.

    Raises:
        CallError: the network does not take the inputs.
    """
    uses = Uses()
    try:
        uses.add(_watched(model, example_inputs, training=False))
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in example_inputs)
        raise CallError(f"{type(model).__name__} does not take the example inputs {shapes}: {error}") from error
    try:
        uses.add(_watched(model, example_inputs, training=True))
    except Exception as error:  # a detector needs targets, a norm more than one value
        return uses, f"watched on the example inputs in eval mode alone (train mode: {type(error).__name__})"
    return uses, "watched on the example inputs"


def _watched(model: nn.Module, example_inputs: Sequence[Tensor], training: bool) -> Uses:
    model = copy.deepcopy(model)
    watch = _Watch()
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, TuneLayer):
            module.restore()
        if is_layer(module):
            hooks.append(module.register_forward_hook(watch.layer_called(name)))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            hooks.append(module.register_forward_pre_hook(watch.norm_begins(name)))
            hooks.append(module.register_forward_hook(watch.norm_ends))
    with _in_mode(model, training), torch.no_grad(), torch.random.fork_rng(), watch:
        outputs = model(*(x.clone() for x in example_inputs))
    for value in tree_leaves(outputs):
        watch.used(value)
    for hook in hooks:
        hook.remove()
    return watch.uses


class _Watch(TorchDispatchMode):
    """Notes every operation that takes the output of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.uses = Uses()
        self.outputs: dict[int, tuple[str, Tensor]] = {}  # by identity; the tensors are kept, so none is reused
        self.norm_at_work = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.norm_at_work:
            for value in tree_leaves((args, kwargs or {})):
                self.used(value)
        return func(*args, **(kwargs or {}))

    def used(self, value: Any, by: str = "") -> str:
        """Note a use; returns the layer that the value comes from, empty if from none."""
        layer, _ = self.outputs.get(id(value), ("", None)) if isinstance(value, Tensor) else ("", None)
        if layer:
            self.uses.after[layer].add(by)
        return layer

    def layer_called(self, name: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Tensor) -> None:
            self.outputs[id(output)] = (name, output)

        return hook

    def norm_begins(self, name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Any, ...]) -> None:
            self.uses.before[name].add(self.used(given[0], by=name))
            self.norm_at_work = True

        return hook

    def norm_ends(self, module: nn.Module, given: Any, output: Any) -> None:
        self.norm_at_work = False
