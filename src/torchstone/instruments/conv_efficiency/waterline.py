"""The waterline of a network on a device: which of its kernels wait for memory, and what fusing them would give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torchstone import environment
from torchstone.errors import CallError, unknown_name
from torchstone.instruments.conv_efficiency.fusion import LEVELS, group, matching_modules, moved_bytes, residual_blocks
from torchstone.instruments.conv_efficiency.kernels import Trace, time_kernels, trace_kernels
from torchstone.instruments.latency import Timing, interleave, timed_calls, timing
from torchstone.instruments.profile import usual_input_shape
from torchstone.instruments.roofline import Roof, measure_roofline
from torchstone.instruments.running import Conditions, as_inputs, deploy_form
from torchstone.models.registry import build_model

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Bar:
    """One kernel in the waterline: an operator, or several that are fused.

    Attributes:
        name: the module's path, and the operator where the module runs several.
        operators: what it runs, in order.
        macs: multiply-accumulates.
        bytes: of memory that it reads and writes.
        ideal_ms: time of its arithmetic at the peak, ``2 macs / peak``.
        attainable_ms: the longer of that and of moving its bytes.
        measured_ms: time on the device; None where it was not measured.
    """

    name: str
    operators: tuple[str, ...]
    macs: int
    bytes: int
    ideal_ms: float
    attainable_ms: float
    measured_ms: float | None

    @property
    def intensity(self) -> float:
        """Operations per byte, a multiply-accumulate being two."""
        return 2 * self.macs / self.bytes if self.bytes else float("inf")

    @property
    def drowned(self) -> bool:
        """Whether it waits for memory."""
        return self.attainable_ms > self.ideal_ms

    @property
    def efficiency(self) -> float | None:
        """Share of the peak that was measured."""
        return self.ideal_ms / self.measured_ms if self.measured_ms else None


@dataclass(frozen=True)
class Waterline:
    """What limits a network's speed.

    Latency, arithmetic complexity and computational efficiency are joined by

        latency = operations / (peak * efficiency)

    Attributes:
        name: the model's.
        input_shape: shape of one sample.
        batch_size: samples per pass; all figures are for the whole batch.
        roof: peak and bandwidth that bars are held against.
        levels: level of fusion -> the bars, in the order in which they run.
        blocks: paths of the modules that are one kernel each at the level ``blocks``.
        latency: measured for the whole pass; None where it was not.
        conditions: device, precision and threads.
        environment: hardware and versions.
    """

    name: str
    input_shape: tuple[int, ...]
    batch_size: int
    roof: Roof
    levels: Mapping[str, tuple[Bar, ...]]
    blocks: tuple[str, ...]
    latency: Timing | None
    conditions: Conditions
    environment: dict[str, Any] = field(repr=False)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of a pass."""
        return sum(bar.macs for bar in self.levels["layers"])

    @property
    def ideal_ms(self) -> float:
        """Latency at an efficiency of 1."""
        return sum(bar.ideal_ms for bar in self.levels["layers"])

    def attainable_ms(self, level: str = "layers") -> float:
        """The least latency of the sequence of kernels: ``sum_i max(operations_i / peak, bytes_i / bandwidth)``.

        Raises:
            UnknownName: a level that this network does not have.
        """
        if level not in self.levels:
            raise unknown_name("level of fusion", level, self.levels)
        return sum(bar.attainable_ms for bar in self.levels[level])

    def attainable_efficiency(self, level: str = "layers") -> float:
        """Share of the peak that the sequence of kernels can reach."""
        return self.ideal_ms / self.attainable_ms(level)

    @property
    def efficiency(self) -> float | None:
        """Share of the peak that the whole pass reached."""
        return self.ideal_ms / self.latency.median_ms if self.latency else None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, with what follows from it."""
        levels = {
            level: {
                "kernels": len(bars),
                "bytes": sum(bar.bytes for bar in bars),
                "attainable_ms": self.attainable_ms(level),
                "attainable_efficiency": self.attainable_efficiency(level),
                "bars": [{**asdict(bar), "intensity": bar.intensity, "efficiency": bar.efficiency} for bar in bars],
            }
            for level, bars in self.levels.items()
        }
        return {
            "name": self.name,
            "input_shape": list(self.input_shape),
            "batch_size": self.batch_size,
            "macs": self.macs,
            "roof": {**asdict(self.roof), "balance": self.roof.balance},
            "ideal_ms": self.ideal_ms,
            "latency": asdict(self.latency) if self.latency else None,
            "efficiency": self.efficiency,
            "levels": levels,
            "blocks": list(self.blocks),
            "conditions": self.conditions.to_dict(),
            "environment": self.environment,
        }

    def summary(self) -> list[tuple[str, str]]:
        """What a person wants to read first: (quantity, value with unit)."""
        peak, bandwidth = self.roof.peak / 1e9, self.roof.bandwidth / 1e9
        rows = [
            ("Peak, bandwidth", f"{peak:.4g} Gop/s, {bandwidth:.3g} GB/s"),
            ("Waterline", f"{self.roof.balance:.3g} operations per byte"),
            ("Operations", f"{2 * self.macs / 1e9:.4g} G, ideal latency {self.ideal_ms:.4g} ms"),
        ]
        for level, bars in self.levels.items():
            value = f"{self.attainable_ms(level):.4g} ms, efficiency {self.attainable_efficiency(level):.1%}"
            rows.append((f"Attainable, {level}", f"{value} ({len(bars)} kernels)"))
        if self.latency:
            spread = f"quartiles {self.latency.low_ms:.4g} to {self.latency.high_ms:.4g}"
            rows.append(("Measured", f"{self.latency.median_ms:.4g} ms, efficiency {self.efficiency:.1%} ({spread})"))
        return rows

    def plot(self, level: str | None = None) -> Figure:
        """Operations per byte over the share of operations, the waterline, and where the time goes.

        Args:
            level: the level of fusion that is shown first; by default the kernels as they run.

        Raises:
            UnknownName: a level that this network does not have.
        """
        from torchstone.instruments.conv_efficiency.plots import waterline_figure

        if level is not None and level not in self.levels:
            raise unknown_name("level of fusion", level, self.levels)
        return waterline_figure(self, level or "layers")


def waterline(
    model: str | nn.Module,
    example_inputs: Tensor | Sequence[Tensor] | Sequence[int] | None = None,
    *,
    name: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    batch_size: int = 8,
    device: str = "cpu",
    dtype: str = "float32",
    threads: int | None = None,
    roof: Roof | None = None,
    blocks: Sequence[str] | None = None,
    deploy: bool = True,
    measure: bool = True,
    seconds: float = 2.0,
) -> Waterline:
    """Hold every kernel of a network against the roofline of a device.

    ``time_i = max(operations_i / peak, bytes_i / bandwidth)``, and the attainable efficiency of the sequence is
    ``sum(operations_i / peak) / sum(time_i)``: for the kernels as they run, and for what fusion would make of them.
    Memory is counted as if nothing stayed in caches between kernels, so that small maps on a CPU may run above it.

    Args:
        model: a name that :func:`torchstone.models.registry.build_model` takes (``NAME``, ``timm:NAME``,
            ``torchvision:NAME``), or a module, which stays as it is.
        example_inputs: a batch, or for a named model the shape of one sample, (3, 224, 224), its usual one by default.
        name: what to call it.
        model_args: arguments of a named model.
        batch_size: samples per pass, of a named model or of a module that is given one sample's shape.
        device, dtype, threads, deploy: as in :class:`torchstone.instruments.Conditions`.
        roof: peak and bandwidth; by default they are measured. One of another device predicts that device: then
            nothing is measured.
        blocks: glob patterns of module paths that are one kernel each at the level ``blocks``; by default the residual
            blocks, if there are any.
        measure: also measure, unless a roof is given.
        seconds: about how long roof, kernels and latency are each measured.

    Raises:
        UnknownName: no such model or precision.
        CallError: inputs that the model rejects, a device that is not there, a batch that is not positive, a pattern
            that names no module, or a network without multiply-accumulates.
        WorkError: not enough memory.

    Source:
        Lavin, On the Efficiency of Convolutional Neural Networks, 2024 (waterline analysis).
    """
    if batch_size < 1:
        raise CallError(f"batch_size must be positive, got {batch_size}")
    conditions = Conditions(device, dtype, "", threads, deploy)
    if isinstance(model, nn.Module):
        network, title = deepcopy(model), name or type(model).__name__
    else:
        network, title = build_model(model, **dict(model_args or {})), name or model
        if example_inputs is None:
            example_inputs = usual_input_shape(model, **dict(model_args or {}))
    inputs = _inputs(example_inputs, batch_size)
    if deploy:
        network = deploy_form(network, inplace=True) or network
    network, inputs = conditions.place(network), conditions.place_inputs(inputs)
    trace = trace_kernels(network, inputs)
    if not trace.macs:
        raise CallError(f"{title} computes no multiply-accumulates; there is nothing to hold against the peak")
    chosen = residual_blocks(trace) if blocks is None else matching_modules(trace, blocks)
    measure = measure and roof is None
    with _threads(conditions.threads):
        if roof is None:
            roof = measure_roofline(device, dtypes=(dtype,), threads=conditions.threads, seconds=seconds / 2).roofs[0]
        times = time_kernels(network, inputs, trace, seconds=seconds) if measure else None
        latency = _latency(network, inputs, conditions, seconds) if measure else None
    levels = {
        level: _bars(trace, level, chosen, roof, times if level == "layers" else None)
        for level in LEVELS
        if level != "blocks" or chosen
    }
    return Waterline(
        name=title,
        input_shape=tuple(inputs[0].shape[1:]),
        batch_size=len(inputs[0]),
        roof=roof,
        levels=levels,
        blocks=chosen,
        latency=latency,
        conditions=conditions,
        environment=environment.describe(),
    )


def _bars(
    trace: Trace, level: str, blocks: Sequence[str], roof: Roof, times: Sequence[float] | None
) -> tuple[Bar, ...]:
    bars = []
    for members in group(trace, level, blocks):
        kernels = [trace.kernels[index] for index in members]
        macs, moved = sum(kernel.macs for kernel in kernels), moved_bytes(trace, members)
        main = max(kernels, key=lambda kernel: kernel.macs)
        block = next((path for path in blocks if f"{main.module}.".startswith(f"{path}.")), None)
        label = block if level == "blocks" and block is not None else f"{main.module or 'network'}: {main.operator}"
        bars.append(
            Bar(
                name=label,
                operators=tuple(kernel.operator for kernel in kernels),
                macs=macs,
                bytes=moved,
                ideal_ms=1e3 * 2 * macs / roof.peak,
                attainable_ms=1e3 * roof.seconds(2 * macs, moved),
                measured_ms=None if times is None else 1e3 * times[members[0]],
            )
        )
    return tuple(bars)


def _inputs(example_inputs: Any, batch_size: int) -> tuple[Tensor, ...]:
    if isinstance(example_inputs, Tensor):
        example_inputs = (example_inputs,)
    if example_inputs is None or not len(example_inputs):
        raise CallError("a module needs example_inputs: a batch, or the shape of one sample, (3, 224, 224)")
    if all(isinstance(x, Tensor) for x in example_inputs):
        return as_inputs(example_inputs)
    if not all(isinstance(side, int) and side > 0 for side in example_inputs):
        raise CallError(f"example_inputs are a batch or the shape of one sample, (3, 224, 224); got {example_inputs!r}")
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(batch_size, *example_inputs, generator=generator),)


def _latency(network: nn.Module, inputs: tuple[Tensor, ...], conditions: Conditions, seconds: float) -> Timing:
    calls = timed_calls(network, lambda _: inputs, [len(inputs[0])], conditions)
    times, _ = interleave(calls, seconds)
    return timing(times[len(inputs[0])])


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
