"""Timing calls in alternated rounds, so that whatever else the machine does meets them all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

SHORT = 0.25  # seconds that each call is repeated for within a round


Clock = Callable[[], float]


def alternate(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    device: str = "cpu",
    clock: Clock = time.perf_counter,
    short: float = SHORT,
) -> dict[str, list[float]]:
    """Time calls in rounds; every round runs each of them, in an order that turns by one.

    Args:
        calls: what to time, by name.
        rounds: at least 5, so that a spread can be told.
        device: ``cuda`` to wait for the device before the clock is read.
        clock: reads the time; ``time.process_time`` counts this process's work alone, whatever else the machine does,
            and is for work of one thread.
        short: seconds that each call is repeated for within a round; a longer call runs once.

    Returns:
        By name the seconds of one call, a value per round: the median of the round's repetitions.
    """
    if rounds < 5:
        raise ValueError(f"a spread needs at least 5 rounds, got {rounds}")
    names = list(calls)
    repetitions = {}
    for name in names:
        timed(calls[name], device, clock)  # warm up
        repetitions[name] = max(1, min(50, round(short / timed(calls[name], device, clock))))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(statistics.median(timed(calls[name], device, clock) for _ in range(repetitions[name])))
    return seconds


def timed(call: Callable[[], object], device: str, clock: Clock = time.perf_counter) -> float:
    """Seconds of one call."""
    started = clock()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - started


def spread(values: list[float], digits: int = 4) -> dict[str, float]:
    """Median, smallest and largest value."""
    return {
        "median": round(statistics.median(values), digits),
        "low": round(min(values), digits),
        "high": round(max(values), digits),
    }


def ratio(seconds: Mapping[str, list[float]], name: str, to: str) -> dict[str, float]:
    """How long one call takes as a multiple of another: the quotients within the rounds."""
    return spread([ours / theirs for ours, theirs in zip(seconds[name], seconds[to], strict=True)])


PEER = " (peer)"
"""Behind the name of a module that is another network of about the same cost."""


def check(modules: dict[str, nn.Module], x: Tensor) -> None:
    """Refuse to time what does not give the same answer; modules marked as peers may give others."""
    with torch.no_grad():
        answers = {key: module.eval()(x) for key, module in modules.items() if PEER not in key}
    for answer in answers.values():
        torch.testing.assert_close(answer, answers["ours"], rtol=1e-3, atol=1e-4)


def calls(modules: dict[str, nn.Module], x: Tensor, train: bool) -> dict[str, Callable[[], None]]:
    """A forward pass, or with ``train`` a forward and backward pass, of every module."""

    def call(module: nn.Module) -> Callable[[], None]:
        def step() -> None:
            module.zero_grad(set_to_none=True)
            module(x).sum().backward()

        def forward() -> None:
            with torch.inference_mode():
                module(x)

        return step if train else forward

    return {key: call(module.train(train)) for key, module in modules.items()}
