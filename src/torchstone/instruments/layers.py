"""The per-layer table: what each module of a network costs by itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchstone.instruments.macs import MacCount, own_parameters
from torchstone.instruments.module_walk import module_walk
from torchstone.instruments.running import as_inputs, synchronize


@dataclass(frozen=True)
class Layer:
    """One module, without the modules inside it.

    Attributes:
        path: its name in the network, ``""`` for the network itself.
        type: its class.
        output: shape of its output; None for a module that is not called, or whose output is no tensor.
        params, macs, activations: its own; over all layers they add up to the network's.
        latency_share: its own part of the time of a forward pass, 0 to 1; None where it was not measured.
        calls: how often a forward pass calls it.
    """

    path: str
    type: str
    output: tuple[int, ...] | None
    params: int
    macs: int
    activations: int
    latency_share: float | None
    calls: int


def layer_table(model: nn.Module, count: MacCount, shares: dict[str, float] | None = None) -> list[Layer]:
    """One row per module that runs or holds parameters, in the order of definition.

    Args:
        model: the network.
        count: of :func:`torchstone.instruments.macs.count_macs`.
        shares: of :func:`latency_shares`.
    """
    params = own_parameters(model)
    rows = []
    for path, module in model.named_modules():
        ran = count.modules.get(path)
        if ran is None and not params[path]:
            continue
        rows.append(
            Layer(
                path=path,
                type=type(module).__name__,
                output=ran.output if ran else None,
                params=params[path],
                macs=ran.macs if ran else 0,
                activations=ran.activations if ran else 0,
                latency_share=None if shares is None else shares.get(path, 0.0),
                calls=ran.calls if ran else 0,
            )
        )
    return rows


def latency_shares(
    model: nn.Module, inputs: Tensor | Sequence[Tensor], *, seconds: float = 0.5, most_passes: int = 50
) -> dict[str, float]:
    """Each module's own share of the time of a forward pass, 0 to 1, adding up to 1.

    Measured by forward hooks, eagerly; on an accelerator the device is drained at every module's ends. What stands
    between modules (residual sums, reshapes, attention's products) is its parent's own. Each module's time is the
    shortest of at least five passes, which is the least disturbed one.

    Args:
        model: the network, in eval mode.
        inputs: a tensor, or the positional arguments, on the model's device.
        seconds: about how long to measure.
        most_passes: at most so many passes are timed.
    """
    inputs = as_inputs(inputs)
    device = inputs[0].device

    def clock() -> tuple[float]:
        synchronize(device)
        return (time.perf_counter(),)

    passes: list[dict[str, float]] = []
    started = time.perf_counter()
    with torch.inference_mode():
        model(*inputs)
        while len(passes) < 5 or (time.perf_counter() - started < seconds and len(passes) < most_passes):
            with module_walk(model, clock) as visits:
                model(*inputs)
            passes.append({path: visit.own[0] for path, visit in visits.items()})
    shortest = {path: min(one.get(path, 0.0) for one in passes) for path in passes[0]}
    total = sum(shortest.values())
    return {path: value / total for path, value in shortest.items()}
