import _described
import pytest
import torch

from torchstone.errors import CallError
from torchstone.instruments import Conditions, Latencies, ModelDescription, Timing, measure_latencies
from torchstone.instruments.latency import ROUNDS, interleave, timing


class Clock:
    """A clock that only the calls move."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def __call__(self) -> float:
        return self.now

    def call(self, name, *seconds):
        """A call that takes these times in turn, the last one for ever."""
        times = list(seconds)

        def run():
            self.log.append(name)
            self.now += times.pop(0) if len(times) > 1 else times[0]

        return run


def test_every_round_runs_every_call_and_the_first_one_changes():
    clock = Clock()
    calls = {name: clock.call(name, 0.125) for name in "abc"}
    times, order = interleave(calls, 2.0, rounds=4, clock=clock)
    assert order == [list("abc"), list("bca"), list("cab"), list("abc")]
    assert times == {name: [0.125] * 16 for name in "abc"}


def test_the_calls_of_a_burst_are_not_interrupted():
    clock = Clock()
    interleave({name: clock.call(name, 0.125) for name in "ab"}, 1.0, rounds=4, clock=clock)
    estimates = ["a", "b"]
    assert clock.log[len(estimates) :] == list("aabbbbaaaabbbbaa")


def test_a_slow_call_is_timed_at_least_three_times_in_rounds_spread_evenly():
    clock = Clock()
    times, order = interleave({"fast": clock.call("fast", 0.125), "slow": clock.call("slow", 64.0)}, 1.0, clock=clock)
    assert len(times["slow"]) == 3
    assert [index for index, ran in enumerate(order) if "slow" in ran] == [2, 5, 7]
    assert sum(ran.count("fast") for ran in order) == ROUNDS


def test_short_calls_begin_each_burst_with_one_that_is_not_timed():
    clock = Clock()
    times, _ = interleave({"a": clock.call("a", 1 / 64)}, 1.0, rounds=4, clock=clock)
    estimate = 7  # calls in a tenth of a second
    assert len(times["a"]) == 64
    assert len(clock.log) == estimate + 4 + 64


def test_slow_first_calls_do_not_enter_the_estimate():
    clock = Clock()
    times, _ = interleave({"a": clock.call("a", 0.09375, 0.0625)}, 1.0, clock=clock)
    assert len(times["a"]) == 16


def test_each_round_is_announced():
    clock, announced = Clock(), []
    interleave({"a": clock.call("a", 0.1)}, 1.0, rounds=3, begin=announced.append, clock=clock)
    assert announced == [0, 1, 2]


def test_calls_run_in_inference_mode():
    seen = []
    interleave({"a": lambda: seen.append(torch.is_inference_mode_enabled())}, 0.001, rounds=1)
    assert set(seen) == {True}


def test_a_timing_is_the_median_with_the_quartiles():
    assert timing([0.004, 0.001, 0.002, 0.003, 0.1]) == Timing(3.0, 2.0, 4.0, 5)


def test_throughput_is_that_of_the_best_batch():
    timings = {"a": {1: Timing(2.0, 2.0, 2.0, 3), 32: Timing(16.0, 16.0, 16.0, 3)}}
    assert Latencies(timings, {}, [], Conditions()).throughput("a") == 2000


@pytest.mark.usefixtures("warm_processes")
def test_models_are_timed_side_by_side_and_failures_do_not_stop_the_others():
    states = []
    measured = measure_latencies(
        {
            "wide": _described.WideDescription("wide", (1,), width=64),
            "killed": _described.DeadlyDescription("deadly", (1,)),
            "misfit": _described.BranchedDescription("branched", (7,)),
            "branched": _described.BranchedDescription("branched", (8,)),
            "unknown": ModelDescription("timm:resnet18x", (3, 32, 32)),
        },
        batch_sizes=(1, 4),
        seconds=0.05,
        progress=states.append,
    )
    assert list(measured.timings) == ["wide", "branched"]
    assert measured.failures["killed"].startswith("the process was killed, most likely because memory ran out")
    assert measured.failures["misfit"].startswith("Branched does not take inputs of shape 1x7")
    assert "resnet18" in measured.failures["unknown"]
    runs = [("wide", 1), ("wide", 4), ("branched", 1), ("branched", 4)]
    assert len(measured.order) == ROUNDS
    assert [ran[0] for ran in measured.order[:5]] == [*runs, runs[0]]
    assert all(sorted(ran) == sorted(runs) for ran in measured.order)
    for timings in measured.timings.values():
        assert all(
            value.calls >= 3 and 0 < value.low_ms <= value.median_ms <= value.high_ms for value in timings.values()
        )
    assert [state.name for state in states][:3] == ["wide", "killed", "wide"]
    assert states[-1].doing == f"timing, round {ROUNDS} of {ROUNDS}"
    assert states[-1].done < states[-1].total


def test_a_batch_size_must_be_positive():
    with pytest.raises(CallError, match=r"batch_sizes must be positive integers, got \[0\]"):
        measure_latencies({}, batch_sizes=[0])
    with pytest.raises(CallError, match="batch_sizes"):
        measure_latencies({}, batch_sizes=[])
