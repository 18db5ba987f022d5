from dataclasses import replace

import numpy as np
import pytest

from torchstone.errors import CallError
from torchstone.reporting.ranking import judge
from torchstone.reporting.results import CandidateResult, SeedRun


def candidate(name, *, start="scratch", status="trained", seconds=1.0, **cost):
    return CandidateResult(
        name=name, model=name, start=start, status=status, cost=cost, runs=[SeedRun(0, 0.5, seconds=seconds)]
    )


def right(accuracy, samples=2000, seed=0):
    """One seed that is right on exactly this share of the samples."""
    return np.random.default_rng(seed).permutation(np.arange(samples) < round(accuracy * samples)).astype(float)[None]


def judged(candidates, per_sample, **options):
    return {result.name: result for result in judge(candidates, per_sample, **options)}


def test_clearly_worse_and_not_cheaper_is_dominated():
    found = judged(
        [candidate("good", params=100, latency_ms_1=5.0), candidate("bad", params=100, latency_ms_1=4.0)],
        {"good": right(0.95), "bad": right(0.80, seed=1)},
    )
    assert found["bad"].dominated["params"].startswith("15.0 points below good (interval 1")
    assert found["bad"].dominated["params"].endswith("and not smaller")
    assert "latency_ms_1" not in found["bad"].dominated  # it is faster
    assert found["good"].dominated == {}
    assert found["bad"].tied_with == found["good"].tied_with == []


def test_a_tie_at_clearly_higher_cost_is_dominated():
    same = right(0.9)
    found = judged(
        [
            candidate("small", latency_ms_1=2.0, params=100, throughput=500.0),
            candidate("large", latency_ms_1=4.2, params=109, throughput=200.0),
        ],
        {"small": same, "large": same},
    )
    assert found["large"].dominated == {
        "latency_ms_1": "same accuracy within intervals as small at 2.1x its latency (batch 1)",
        "throughput": "same accuracy within intervals as small at 0.40x its throughput",
    }  # nine per cent more parameters are not clearly more
    assert found["small"].dominated == {}
    assert found["large"].tied_with == ["small"]
    assert found["large"].rank == found["small"].rank == 1


def test_a_tie_does_not_dominate_what_the_paired_difference_favours():
    worse = right(0.90)
    better = worse.copy()
    better[0, np.flatnonzero(worse[0] == 0)[:25]] = 1  # right wherever the other is, and on 25 samples more
    found = judged([candidate("cheap", params=1), candidate("dear", params=9)], {"cheap": worse, "dear": better})
    assert found["dear"].tied_with == ["cheap"]
    assert found["cheap"].gap_low > 0
    assert found["dear"].dominated == {}


def test_unmeasured_costs_dominate_nobody():
    found = judged(
        [candidate("good", params=None, seconds=9.0), candidate("bad", params=5, macs=3)],
        {"good": right(0.95), "bad": right(0.5)},
    )
    assert found["bad"].dominated == {}


def test_training_time_comes_from_the_runs():
    found = judged([candidate("a", seconds=10.0), candidate("b", seconds=30.0)], {"a": right(0.9), "b": right(0.9)})
    assert found["b"].dominated == {"train_seconds": "same accuracy within intervals as a at 3.0x its training time"}


def test_scratch_and_pretrained_are_judged_apart():
    found = judged(
        [candidate("a", params=1), candidate("b", params=9), candidate("p", start="pretrained", params=1)],
        {"a": right(0.9), "b": right(0.6), "p": right(0.99)},
    )
    assert found["a"].rank == found["p"].rank == 1
    assert found["p"].gap is None
    assert "below a" in found["b"].dominated["params"]


def test_rank_counts_the_really_better_ones():
    scores = {"a": right(0.95), "b": right(0.949), "c": right(0.80), "d": right(0.799)}
    found = judged([candidate(name) for name in scores], scores)
    assert [found[name].rank for name in "abcd"] == [1, 1, 3, 3]
    assert found["c"].gap == pytest.approx(0.15)
    assert found["c"].gap_low < 0.15 < found["c"].gap_high


def test_less_is_better_where_the_task_says_so():
    rng = np.random.default_rng(0)
    found = judged(
        [candidate("low", params=1), candidate("high", params=2)],
        {"low": rng.normal(1, 0.1, (1, 400)), "high": rng.normal(2, 0.1, (1, 400))},
        metric="error",
        maximize=False,
        bounds=None,
    )
    assert (found["low"].rank, found["high"].rank) == (1, 2)
    assert found["high"].gap == pytest.approx(1, abs=0.05)
    assert "above low" in found["high"].dominated["params"]


def test_others_come_back_as_they_are_and_in_their_place():
    failed = candidate("broken", status="failed")
    results = judge([failed, candidate("a")], {"a": right(0.9)})
    assert results[0] is failed
    assert results[1].score == pytest.approx(0.9)


def test_results_that_cannot_be_judged_are_refused():
    with pytest.raises(CallError, match=r"same name: \['a'\]"):
        judge([candidate("a"), replace(candidate("a"), start="pretrained")], {"a": right(0.9)})
    with pytest.raises(CallError, match="without scores: a"):
        judge([candidate("a")], {})
