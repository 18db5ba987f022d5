"""The roofline of a device, measured: how fast it computes at most, and how fast it moves memory.

    attainable speed = min(peak, bandwidth * operational intensity)        operations per second

(Williams, Waterman and Patterson, *Roofline*, CACM 2009). The operational intensity of a piece of work is its
arithmetic operations per byte that it moves; the intensity at which both bounds meet, peak / bandwidth, is the
machine's balance.

The peak is the fastest product of two large square matrices, the bandwidth the fastest copy of an array much larger
than the caches; nothing is looked up. Both are what a program gets through PyTorch, by precision and number of threads.
One multiply-accumulate is two operations; a copy of n bytes moves 2 n.

Work that fits into a CPU's caches may run above the roof, which is that of main memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchstone import environment
from torchstone.errors import CallError, unknown_name
from torchstone.instruments.running import check_device, is_out_of_memory, synchronize

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_SMALLEST_MATRIX, _LARGEST_MATRIX = 256, 8192
_COPIED_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30, "mps": 1 << 28}
_LEAST_RUNS = 3


@dataclass(frozen=True)
class Roof:
    """The two bounds of a device, for one precision and number of threads.

    Attributes:
        dtype: precision of the numbers: ``float32``, ...
        threads: threads of the CPU; 0 on an accelerator, where they do not matter.
        peak: arithmetic operations per second (one multiply-accumulate is two).
        bandwidth: bytes per second, read and written together.
        median_peak, median_bandwidth: the medians of the same measurements, whose best the bounds are.
        matrix: side of the matrices whose product was fastest.
        copied_bytes: size of the array that was copied.
        runs: how many products and copies were timed; 0 for a roof that was stated, not measured.
    """

    dtype: str
    threads: int
    peak: float
    bandwidth: float
    median_peak: float
    median_bandwidth: float
    matrix: int
    copied_bytes: int
    runs: int

    @property
    def balance(self) -> float:
        """Operations per byte from which on work is bound by arithmetic: the waterline."""
        return self.peak / self.bandwidth

    def attainable(self, intensity: float) -> float:
        """Operations per second that work of this many operations per byte can reach."""
        return min(self.peak, self.bandwidth * intensity)

    def seconds(self, operations: float, moved_bytes: float) -> float:
        """The least time of a kernel: the longer of computing and moving."""
        return max(operations / self.peak, moved_bytes / self.bandwidth)


def stated_roof(peak: float, bandwidth: float, *, dtype: str = "float32") -> Roof:
    """A roof from figures that somebody states, such as a data sheet, to predict a device that is not at hand.

    Args:
        peak: operations per second.
        bandwidth: bytes per second.
        dtype: the precision that the peak is for.

    Raises:
        CallError: figures that are not positive.
        UnknownName: no such precision.
    """
    if min(peak, bandwidth) <= 0:
        raise CallError(f"peak and bandwidth must be positive, got {peak:g} and {bandwidth:g}")
    if dtype not in DTYPES:
        raise unknown_name("precision", dtype, DTYPES)
    return Roof(dtype, 0, peak, bandwidth, peak, bandwidth, 0, 0, 0)


@dataclass(frozen=True)
class Roofline:
    """What was measured of one device.

    Attributes:
        device: its name in PyTorch, such as ``cpu`` or ``cuda:0``.
        roofs: one per precision and number of threads.
        environment: hardware and versions.
    """

    device: str
    roofs: tuple[Roof, ...]
    environment: dict[str, Any] = field(repr=False, default_factory=dict)

    def roof(self, dtype: str | torch.dtype = "float32", threads: int | None = None) -> Roof:
        """The bounds for a precision and a number of threads.

        Args:
            dtype: ``"float32"`` or ``torch.float32``, ...
            threads: None takes the largest number measured; no matter on an accelerator.

        Raises:
            UnknownName: this precision was not measured.
            CallError: this number of threads was not.
        """
        name = str(dtype).removeprefix("torch.")
        fitting = [roof for roof in self.roofs if roof.dtype == name]
        if not fitting:
            raise unknown_name("measured precision", name, [roof.dtype for roof in self.roofs])
        if threads is None or fitting[0].threads == 0:
            return max(fitting, key=lambda roof: roof.threads)
        for roof in fitting:
            if roof.threads == threads:
                return roof
        measured = ", ".join(str(roof.threads) for roof in fitting)
        raise CallError(f"{name} was measured with {measured} threads, not with {threads}")

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values; each roof also with its balance."""
        return {**asdict(self), "roofs": [{**asdict(roof), "balance": roof.balance} for roof in self.roofs]}

    def plot(self, points: Mapping[str, tuple[float, float]] | None = None) -> Figure:
        """The roofs over operational intensity, both logarithmic.

        Args:
            points: name -> (operations per byte, operations per second) of work to show below them.
        """
        from torchstone.instruments.roofline_plot import roofline_figure

        return roofline_figure(self, points or {})


def measure_roofline(
    device: str = "cpu",
    *,
    dtypes: Sequence[str] = ("float32",),
    threads: int | Iterable[int] | None = None,
    seconds: float = 1.0,
) -> Roofline:
    """Measure the peak arithmetic speed and memory bandwidth of a device.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        dtypes: precisions to measure.
        threads: numbers of threads to measure a CPU with; None takes this process's ``torch.get_num_threads()``.
        seconds: about how long the peak, and then the bandwidth, of each combination is measured; slow precisions take
            a little longer.

    Raises:
        CallError: a device that this machine does not have, no precision, or a number of threads that is not positive.
        UnknownName: no such precision.
    """
    check_device(device)
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise unknown_name("precision", dtype, DTYPES)
    kind = torch.device(device).type
    if kind != "cpu":
        counts = [0]
    elif threads is None:
        counts = [torch.get_num_threads()]
    else:
        counts = [threads] if isinstance(threads, int) else list(threads)
        if not counts or min(counts) < 1:
            raise CallError(f"threads must be positive, got {counts or 'none'}")
    if not dtypes:
        raise CallError(f"name at least one precision: {', '.join(DTYPES)}")
    roofs = []
    for count in counts:
        with _threads(count), torch.inference_mode():
            roofs += [_measure(device, dtype, count, seconds) for dtype in dtypes]
    return Roofline(device, tuple(roofs), environment.describe())


def _measure(device: str, dtype: str, threads: int, seconds: float) -> Roof:
    speeds = _product_speeds(device, DTYPES[dtype], seconds)
    matrix = max(speeds, key=lambda side: max(speeds[side]))
    copied = _COPIED_BYTES[torch.device(device).type]
    rates = _copy_rates(device, DTYPES[dtype], copied, seconds)
    return Roof(
        dtype=dtype,
        threads=threads,
        peak=max(speeds[matrix]),
        bandwidth=max(rates),
        median_peak=_median(speeds[matrix]),
        median_bandwidth=_median(rates),
        matrix=matrix,
        copied_bytes=copied,
        runs=sum(map(len, speeds.values())) + len(rates),
    )


def _product_speeds(device: str, dtype: torch.dtype, seconds: float) -> dict[int, list[float]]:
    """Operations per second of square products, by side: ever larger while one takes under a tenth of the time."""
    speeds: dict[int, list[float]] = {}
    side, started = _SMALLEST_MATRIX, time.perf_counter()
    while side <= _LARGEST_MATRIX:
        try:
            a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
            product = torch.empty_like(a)
            times = _times(lambda: torch.mm(a, b, out=product), device, seconds / 4)  # noqa: B023
        except Exception as error:
            if speeds and is_out_of_memory(error):
                break
            raise
        speeds[side] = [2 * side**3 / taken for taken in times]
        if min(times) * 8 > seconds / 4 or time.perf_counter() - started > seconds:
            break
        side *= 2
    return speeds


def _copy_rates(device: str, dtype: torch.dtype, size: int, seconds: float) -> list[float]:
    """Bytes per second of copies of an array of so many bytes."""
    source = torch.zeros(size // dtype.itemsize, dtype=dtype, device=device).fill_(1)
    target = torch.empty_like(source).fill_(0)
    return [2 * size / taken for taken in _times(lambda: target.copy_(source), device, seconds)]


def _times(work: Callable[[], Tensor], device: str, seconds: float) -> list[float]:
    """Seconds of single runs, after one that is not timed."""
    work()
    synchronize(device)
    times: list[float] = []
    while len(times) < _LEAST_RUNS or sum(times) < seconds:
        started = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return times


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads inside; 0 leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
