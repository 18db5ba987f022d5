from dataclasses import replace

import pytest
from synthetic import FOUR, comparison, not_trained, wrap

from torchstone.reporting import words
from torchstone.reporting.costs import AXES
from torchstone.reporting.results import CandidateResult, SeedRun
from torchstone.reporting.statistics import Interval
from torchstone.reporting.summary import main_axis, notes, summary


def trained(name, score, low, high, *, rank=1, tied=(), latency=None, start="scratch", dominated=(), **gap):
    return CandidateResult(
        name=name,
        model=name,
        start=start,
        status="trained",
        score=score,
        low=low,
        high=high,
        rank=rank,
        tied_with=list(tied),
        cost={"latency_ms_1": latency},
        dominated=dict.fromkeys(dominated, "a reason"),
        runs=[SeedRun(0, score), SeedRun(1, score)],
        **gap,
    )


def test_a_clear_leader_and_its_lead():
    told = summary(
        wrap(
            [
                trained("a", 0.972, 0.961, 0.98, latency=3.0),
                trained("b", 0.91, 0.90, 0.92, latency=2.0, rank=2, gap=0.062, gap_low=0.05, gap_high=0.071),
            ]
        )
    )
    assert told[0] == "a leads with 97.2 % (96.1–98.0), 6.2 points ahead of b (interval 5.0 to 7.1)."
    assert told[-1] == "With 360 test samples and 2 seeds, a typical score is known to ±1.0 points."


def test_ties_and_the_cheapest_of_them():
    told = summary(
        wrap(
            [
                trained("a", 0.972, 0.961, 0.98, tied=["b"], latency=3.0, dominated=["latency_ms_1"]),
                trained("b", 0.97, 0.96, 0.975, tied=["a"], latency=1.2),
                trained("c", 0.90, 0.89, 0.91, rank=3, latency=1.0),
            ]
        )
    )
    assert told[0] == "a leads with 97.2 % (96.1–98.0); b ties with it."
    assert told[1] == "b ties with it at 40 % of its latency (batch 1): 1.20 ms against 3 ms."
    assert told[2] == "Not dominated on latency (batch 1), cheapest first: c (90.0 %, 1 ms) and b (97.0 %, 1.20 ms)."


def test_when_all_tie_nobody_leads():
    told = summary(wrap([trained("a", 0.97, 0.9, 0.99, tied=["b"]), trained("b", 0.96, 0.9, 0.98, tied=["a"])]))
    assert told[0] == "a has the best score, 97.0 % (90.0–99.0), but b ties with it: the intervals overlap."


def test_a_tie_that_pairing_resolves_is_told():
    tied = trained("b", 0.95, 0.93, 0.97, tied=["a"], gap=0.02, gap_low=0.005, gap_high=0.03)
    told = summary(wrap([trained("a", 0.97, 0.96, 0.98, tied=["b"]), tied]))
    assert told[1] == "Paired on the same test samples, b is behind all the same."
    unclear = summary(wrap([trained("a", 0.97, 0.96, 0.98, tied=["b"]), replace(tied, gap_low=-0.001)]))
    assert not any(sentence.startswith("Paired") for sentence in unclear)


def test_starts_are_told_apart():
    told = summary(wrap([trained("a", 0.9, 0.8, 0.95), trained("p", 0.99, 0.98, 1.0, start="pretrained")]))
    assert told[0].startswith("Among candidates trained from scratch: a reaches 90.0 %")
    assert told[1].startswith("Among candidates pretrained: p reaches 99.0 %")


def test_what_no_cost_can_justify_is_named():
    losing = ["latency_ms_1", "train_seconds"]
    told = summary(
        wrap([trained("a", 0.9, 0.89, 0.91, latency=1.0), trained("b", 0.5, 0.4, 0.6, latency=2.0, dominated=losing)])
    )
    assert "Whichever cost counts, there is a better choice than b." in told


def test_one_seed_is_admitted():
    one = comparison(FOUR[:2], seeds=1)
    assert any(sentence.startswith("One seed only") for sentence in summary(one))
    assert any("not the luck of training" in note for note in notes(one))
    assert not any(sentence.startswith("One seed only") for sentence in summary(comparison(FOUR[:2])))


def test_failures_and_unfinished_candidates_are_listed():
    lost = wrap([not_trained("big", "over budget", "too big"), not_trained("bad", "failed", "NaN")])
    assert summary(lost) == [
        "No candidate was trained, so there is nothing to rank.",
        "Over budget, not trained: big.",
        "Failed: bad.",
    ]
    assert "Not finished yet: c." in summary(replace(lost, protocol={"not finished": ["c"]}))


def test_main_axis_is_one_that_most_were_measured_on():
    full, bare = trained("a", 0.9, 0.8, 1.0, latency=1.0), trained("b", 0.9, 0.8, 1.0)
    assert main_axis(wrap([full, bare])).key == "latency_ms_1"
    assert main_axis(wrap([full, bare, replace(bare, name="c")])).key == "train_seconds"
    assert main_axis(wrap([not_trained("x", "failed", "no")])) is None


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("params", 1_210_000, "1.21 M"),
        ("macs", 950, "950"),
        ("latency_ms_1", 3.4, "3.40 ms"),
        ("latency_ms_32", 123.4, "123 ms"),
        ("throughput", 2910.0, "2.91 k/s"),
        ("memory_mb", 63.72, "63.7 MB"),
        ("train_seconds", 8.1, "8.10 s"),
        ("train_seconds", 130.2, "2 min 10 s"),
        ("train_seconds", 11_100, "3 h 5 min"),
        ("params", None, "–"),
    ],
)
def test_costs_in_words(key, value, text):
    assert words.cost(AXES[key], value) == text


def test_differences_in_words():
    gap = Interval(0.053, 0.041, 0.066)
    assert words.behind(gap, "X", "accuracy", True) == "5.3 points below X (interval 4.1 to 6.6)"
    assert words.behind(gap, "X", "rmse", False) == "0.053 above X (interval 0.041 to 0.066)"
    assert [words.times(ratio) for ratio in (1.234, 2.13, 14.6)] == ["1.23x", "2.1x", "15x"]
