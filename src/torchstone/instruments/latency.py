"""Latency of several models, interleaved so that whatever else the machine does meets them all alike.

All models live in one fresh process. After a warm-up that estimates how long a call takes, the time is spent in rounds:
in every round each model runs a burst of timed calls with each batch size, in an order that turns by one from round to
round. The result is the median and the quartiles over all calls. Latency is noisy: repeat a comparison before believing
a few per cent.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from torchstone.errors import CallError
from torchstone.instruments.description import ModelDescription
from torchstone.instruments.processes import ProcessDied, in_process
from torchstone.instruments.running import Conditions, deploy_form, forward, one_line

ROUNDS = 8
LEAST_CALLS = 3
_SHORT = 0.02
"""Seconds below which a call feels that another model ran just before it."""


@dataclass(frozen=True)
class Timing:
    """Times of one model with one batch size, in milliseconds.

    Attributes:
        median_ms: the latency.
        low_ms, high_ms: the quartiles.
        calls: how many calls were timed.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    calls: int


@dataclass(frozen=True)
class Latencies:
    """What was measured, and in which order.

    Attributes:
        timings: model -> batch size -> timing; models that failed are absent.
        failures: model -> why it could not be timed, in a line.
        order: one list per round of the (model, batch size) that ran, in this order.
        conditions: how they ran.
    """

    timings: dict[str, dict[int, Timing]]
    failures: dict[str, str]
    order: list[list[tuple[str, int]]]
    conditions: Conditions

    def throughput(self, name: str) -> float:
        """Samples per second, at the best of the batch sizes."""
        return max(1000 * batch_size / timing.median_ms for batch_size, timing in self.timings[name].items())


@dataclass(frozen=True)
class LatencyProgress:
    """Where a measurement stands: so many of the steps are done; what it is doing, and with which model if with one."""

    done: int
    total: int
    doing: str
    name: str = ""


Run = tuple[str, int]
"""A model's name and a batch size."""


def measure_latencies(
    descriptions: Mapping[str, ModelDescription],
    *,
    batch_sizes: Sequence[int] = (1, 32),
    conditions: Conditions | None = None,
    seconds: float = 1.5,
    progress: Callable[[LatencyProgress], None] | None = None,
) -> Latencies:
    """Time models in eval and inference mode, interleaved, in a fresh process.

    A model that cannot be built, rejects its inputs or gets the process killed is reported, and the others are timed.

    Args:
        descriptions: name -> model.
        batch_sizes: samples per call.
        conditions: device, precision, threads, ...; by default a CPU, eager float32, the deploy form.
        seconds: about how long each model is timed, all batch sizes together. Slow models take longer, because each is
            called at least three times.
        progress: called as the work goes on.

    Raises:
        CallError: no batch size, or one that is not positive.
    """
    check_batch_sizes(batch_sizes)
    conditions = conditions or Conditions()
    waiting, failures = dict(descriptions), {}
    while waiting:
        at_work = next(iter(waiting))

        def listen(state: LatencyProgress) -> None:
            nonlocal at_work
            at_work = state.name or at_work
            if progress is not None:
                progress(state)

        try:
            timings, failed, order = in_process(
                _time_all, waiting, tuple(batch_sizes), conditions, seconds, on_message=listen
            )
        except ProcessDied as death:  # the model that was being tried is to blame; the others begin anew
            beside = list(waiting).index(at_work)
            failures[at_work] = one_line(death) + (f" (with {beside} other models in memory)" if beside else "")
            del waiting[at_work]
        else:
            return Latencies(timings, {**failures, **failed}, order, conditions)
    return Latencies({}, failures, [], conditions)


def check_batch_sizes(batch_sizes: Sequence[int]) -> None:
    if not batch_sizes or min(batch_sizes) < 1:
        raise CallError(f"batch_sizes must be positive integers, got {list(batch_sizes)}")


def _time_all(
    descriptions: Mapping[str, ModelDescription],
    batch_sizes: tuple[int, ...],
    conditions: Conditions,
    seconds: float,
    *,
    tell: Callable[[LatencyProgress], None],
) -> tuple[dict[str, dict[int, Timing]], dict[str, str], list[list[Run]]]:
    """Runs in the fresh process."""
    conditions.prepare()
    total = len(descriptions) + ROUNDS
    calls: dict[Run, Callable[[], Any]] = {}
    failures: dict[str, str] = {}
    for index, (name, description) in enumerate(descriptions.items()):
        tell(LatencyProgress(index, total, f"warming up {name}", name))
        try:
            model = description.build()
            if conditions.deploy:
                model = deploy_form(model, inplace=True) or model
            model = conditions.place(model)
            calls |= {
                (name, size): call
                for size, call in timed_calls(model, description.example_inputs, batch_sizes, conditions).items()
            }
        except Exception as error:
            failures[name] = one_line(error)

    def begin(index: int) -> None:
        tell(LatencyProgress(len(descriptions) + index, total, f"timing, round {index + 1} of {ROUNDS}"))

    times, order = interleave(calls, seconds / len(batch_sizes), begin=begin)
    timings: dict[str, dict[int, Timing]] = {}
    for (name, size), measured in times.items():
        timings.setdefault(name, {})[size] = timing(measured)
    return timings, failures, order


def timed_calls(
    model: nn.Module,
    example_inputs: Callable[[int], Sequence[Tensor]],
    batch_sizes: Sequence[int],
    conditions: Conditions,
) -> dict[int, Callable[[], Any]]:
    """One call per batch size, which has run once and ends when the device has done its work.

    Raises:
        CallError: the model rejects the inputs.
        OutOfMemory: there is not enough memory for the batch.
    """
    run = conditions.compiled(model)
    calls = {}
    for size in batch_sizes:
        inputs = conditions.place_inputs(example_inputs(size))
        with torch.inference_mode():
            forward(run, inputs)
        conditions.synchronize()
        calls[size] = _call(run, inputs, conditions)
    return calls


def _call(run: Callable[..., Any], inputs: Sequence[Tensor], conditions: Conditions) -> Callable[[], Any]:
    def call() -> None:
        run(*inputs)
        conditions.synchronize()

    return call


K = TypeVar("K")


@torch.inference_mode()
def interleave(
    calls: Mapping[K, Callable[[], Any]],
    seconds: float,
    *,
    rounds: int = ROUNDS,
    begin: Callable[[int], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[K, list[float]], list[list[K]]]:
    """Time calls in rounds, in inference mode.

    Args:
        calls: what to time; each has run before.
        seconds: about how long each is timed in all.
        rounds: a call takes part in as many of them as it is timed, evenly spread, when that is less often.
        begin: called with the number of each round before it.
        clock: reads the time, in seconds.

    Returns:
        The times of each call in seconds, and the order of each round. A burst of several short calls begins with one
        that is not timed, since it finds the caches full of another model.
    """
    estimates = {key: _estimate(call, clock) for key, call in calls.items()}
    wanted = {key: max(LEAST_CALLS, round(seconds / estimate)) for key, estimate in estimates.items()}
    times: dict[K, list[float]] = {key: [] for key in calls}
    order: list[list[K]] = []
    keys = list(calls)
    for index in range(rounds):
        if begin is not None:
            begin(index)
        first = index % max(1, len(keys))
        order.append([])
        for key in keys[first:] + keys[:first]:
            burst = wanted[key] * (index + 1) // rounds - wanted[key] * index // rounds
            if not burst:
                continue
            if burst > 1 and estimates[key] < _SHORT:
                calls[key]()
            order[-1].append(key)
            times[key] += [_seconds(calls[key], clock) for _ in range(burst)]
    return times, order


def _estimate(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    """The shortest of some calls, which also get the first slow ones over; in seconds, positive."""
    times: list[float] = []
    while not times or (sum(times) < 0.1 and len(times) < 20):
        times.append(_seconds(call, clock))
    return max(min(times), 1e-7)


def _seconds(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    started = clock()
    call()
    return clock() - started


def timing(seconds: Sequence[float]) -> Timing:
    """Median and quartiles of measured times."""
    milliseconds = [1000 * value for value in seconds]
    low, _, high = statistics.quantiles(milliseconds, n=4, method="inclusive")
    return Timing(statistics.median(milliseconds), low, high, len(milliseconds))
