"""An operator beside its peers, over sizes: time, arithmetic, growth, and how far from the roof of the device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from torchstone import environment
from torchstone.errors import CallError, unknown_name
from torchstone.instruments.latency import Timing, interleave, timing
from torchstone.instruments.mac_formulas import mac_formulas
from torchstone.instruments.roofline import Roof, measure_roofline
from torchstone.instruments.running import Conditions, is_out_of_memory
from torchstone.ops.workload import Contender, Shapes, Workload, workload

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ROUNDS = 6
_CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
SETTLED = 4096
"""The size from which on growth is read, where enough were measured; smaller ones tell of overheads."""


@dataclass(frozen=True)
class OpTiming:
    """One contender at one size.

    Attributes:
        contender: its name.
        size: of the operands.
        time: of one call.
        macs: multiply-accumulates of it; those of a real Fourier transform of n points are 1.25 n log2 n.
        moved_bytes: of operands and results, which any implementation must move.
        roof_ms: the least time in which the device could do this arithmetic and move these bytes, in milliseconds.
        difference: largest deviation from the operator's values over their largest; None for another function.
    """

    contender: str
    size: int
    time: Timing
    macs: int
    moved_bytes: int
    roof_ms: float
    difference: float | None

    @property
    def roof_share(self) -> float:
        """The least time over the measured one: 1 is as fast as the device can be."""
        return self.roof_ms / self.time.median_ms


@dataclass(frozen=True)
class OpBench:
    """What was measured of an operator and its peers.

    Attributes:
        op: the operator.
        size_name: what its size is.
        settings: other sizes of the operands.
        conditions: device, precision, threads.
        backward: whether a call is a forward and backward pass.
        clock: what was read, the time on the wall or that of the processor.
        timings: by size, then contender.
        stopped: contender -> from which size on it was not run, and why.
        roof: what the device can do at most.
        environment: hardware and versions.
    """

    op: str
    size_name: str
    settings: Mapping[str, int]
    conditions: Conditions
    backward: bool
    clock: str
    timings: tuple[OpTiming, ...]
    stopped: Mapping[str, tuple[int, str]]
    roof: Roof
    environment: dict[str, Any] = field(repr=False, default_factory=dict)

    def of(self, contender: str) -> list[OpTiming]:
        """A contender's timings, by size."""
        return [timing for timing in self.timings if timing.contender == contender]

    def contenders(self) -> list[str]:
        """Whoever was timed, the operator first."""
        return list(dict.fromkeys(timing.contender for timing in self.timings))

    def growth(self, contender: str) -> float | None:
        """The exponent with which time grows: 1 is linear, 2 quadratic; None for fewer than three sizes.

        The slope of a line through the logarithms of size and time, by least squares.
        """
        timings = self.of(contender)
        settled = [timing for timing in timings if timing.size >= SETTLED]
        return slope([(t.size, t.time.median_ms) for t in (settled if len(settled) >= 3 else timings)])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, with each contender's growth."""
        plain = {**asdict(self), "timings": [{**asdict(t), "roof_share": t.roof_share} for t in self.timings]}
        return {**plain, "growth": {name: self.growth(name) for name in self.contenders()}}

    def plot(self) -> Figure:
        """Time over size, both logarithmic, with the least time of the operator's work."""
        from torchstone.instruments.op_bench_plot import op_bench_figure

        return op_bench_figure(self)


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Least-squares slope through the logarithms of at least three points (x, y); None for fewer."""
    if len(points) < 3:
        return None
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    return covariance / sum((x - x_mean) ** 2 for x in xs)


def bench(
    op: str,
    *,
    sizes: Sequence[int] | None = None,
    settings: Mapping[str, int] | None = None,
    contenders: Sequence[str] | None = None,
    conditions: Conditions | None = None,
    backward: bool = False,
    seconds: float = 0.5,
    limit: float = 5.0,
    clock: str = "wall",
    progress: Callable[[str], None] | None = None,
) -> OpBench:
    """Time an operator and its peers on the same operands, interleaved in rounds, from small sizes to large ones.

    Whoever gives the operator's values is compared with it first. One whose next call would take longer than the limit,
    judged by how it grew, or that runs out of memory, is left out from there on, which is reported.

    Args:
        op: the operator, as ``torchstone bench`` lists it.
        sizes: of the operands; the operator's usual ones by default.
        settings: other sizes of the operands, instead of the usual ones.
        contenders: the peers that take part beside the operator; all by default.
        conditions: device, precision and threads; a CPU and float32 by default.
        backward: time forward and backward passes instead of forward passes.
        seconds: about how long each is timed at each size; at least three calls are.
        limit: seconds that one call may be expected to take.
        clock: ``wall``, or ``processor`` for the time that this process computes, which others on a busy machine do
            not lengthen: for a CPU with one thread.
        progress: called with what is being done.

    Raises:
        UnknownName: no such operator, setting, contender or clock.
        CallError: a size or setting that is not positive, or processor time of a device that is no CPU.
    """
    work, conditions = workload(op), conditions or Conditions()
    chosen = _chosen(work, contenders)
    wanted = _settings(work, settings or {})
    ascending = sorted(set(work.sizes if sizes is None else sizes))
    if not ascending or ascending[0] < 1:
        raise CallError(f"sizes must be positive integers, got {ascending}")
    if clock not in _CLOCKS:
        raise unknown_name("clock", clock, _CLOCKS)
    if clock == "processor" and (conditions.device, conditions.threads) != ("cpu", 1):
        raise CallError("processor time is that of a CPU with one thread")
    tell = progress or (lambda doing: None)
    tell("measuring what the device can do")
    roof = measure_roofline(
        conditions.device, dtypes=(conditions.dtype,), threads=conditions.threads, seconds=min(1.0, seconds)
    ).roof(conditions.dtype)
    conditions.prepare()
    timings: list[OpTiming] = []
    stopped: dict[str, tuple[int, str]] = {}
    for size in ascending:
        operands = conditions.place_inputs(_operands(work.shapes(size, wanted)))
        expected = None
        calls: dict[str, Callable[[], Any]] = {}
        differences: dict[str, float | None] = {}
        macs: dict[str, int] = {}
        for name, contender in chosen.items():
            if name in stopped:
                continue
            tell(f"{work.size} {size}: trying {name}")
            foreseen = _foreseen([t for t in timings if t.contender == name], size)
            if foreseen > limit:
                stopped[name] = (size, f"a call would take about {foreseen:.2g} s, the limit is {limit:g} s")
                continue
            try:
                with torch.inference_mode():
                    result = contender.call(*operands)
                    expected = result if name == op else expected
                    differences[name] = _difference(result, expected) if contender.same and name != op else None
                    del result
                call = _call(contender, operands, backward, conditions)
                counter = FlopCounterMode(display=False, custom_mapping=mac_formulas())
                with counter:
                    call()
                macs[name], calls[name] = counter.get_total_flops() // 2, call
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                stopped[name] = (size, "it ran out of memory")
        moved = _moved_bytes(operands, expected, backward)
        del expected
        tell(f"{work.size} {size}: timing")
        measured, _ = interleave(calls, seconds, rounds=ROUNDS, clock=_CLOCKS[clock])
        for name, times in measured.items():
            roof_ms = 1000 * roof.seconds(2 * macs[name], moved)
            timings.append(OpTiming(name, size, timing(times), macs[name], moved, roof_ms, differences[name]))
    return OpBench(
        op, work.size, wanted, conditions, backward, clock, tuple(timings), stopped, roof, environment.describe()
    )


def _chosen(work: Workload, contenders: Sequence[str] | None) -> dict[str, Contender]:
    for name in contenders or ():
        if name not in work.contenders:
            raise unknown_name(f"contender of {work.op}", name, work.contenders)
    names = [name for name in work.contenders if contenders is None or name in contenders or name == work.op]
    return {name: work.contenders[name] for name in names}


def _settings(work: Workload, given: Mapping[str, int]) -> dict[str, int]:
    for name, value in given.items():
        if name not in work.settings:
            raise unknown_name(f"setting of {work.op}", name, work.settings)
        if value < 1:
            raise CallError(f"{name} must be positive, got {value}")
    return {**work.settings, **given}


def _operands(shapes: Shapes) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _difference(result: Tensor, expected: Tensor | None) -> float | None:
    if expected is None:  # the operator itself had to stop
        return None
    return ((result - expected).abs().max() / expected.abs().max()).item()


def _call(
    contender: Contender, operands: Sequence[Tensor], backward: bool, conditions: Conditions
) -> Callable[[], None]:
    def forward() -> None:
        contender.call(*operands)
        conditions.synchronize()

    def both() -> None:
        with torch.inference_mode(False), torch.enable_grad():
            result = contender.call(*operands)
            torch.autograd.grad(result, list(operands), torch.ones_like(result), allow_unused=True)
        conditions.synchronize()

    if backward:
        for x in operands:
            x.requires_grad_()
    return both if backward else forward


def _foreseen(known: Sequence[OpTiming], size: int) -> float:
    """Seconds that a call will take, as the last two sizes grew; linear after one, nothing known after none."""
    if not known:
        return 0.0
    last, exponent = known[-1], 1.0
    if len(known) > 1:
        before = known[-2]
        exponent = math.log(last.time.median_ms / before.time.median_ms) / math.log(last.size / before.size)
    return last.time.median_ms / 1000 * (size / last.size) ** max(1.0, exponent)


def _moved_bytes(operands: Sequence[Tensor], result: Tensor | None, backward: bool) -> int:
    """Bytes of what goes into a call and comes out of it; a backward pass reads it all again, and writes gradients."""
    if result is None:  # the operator itself had to stop
        result = operands[0]
    read, written = (sum(x.nbytes for x in tensors) for tensors in (operands, (result,)))
    return 3 * read + 2 * written if backward else read + written
