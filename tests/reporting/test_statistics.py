import numpy as np
import pytest
from scipy import stats

from torchstone.errors import CallError
from torchstone.reporting.statistics import bootstrap


def answers(rng, *, candidates, seeds, samples, accuracy=0.9, seed_spread=0.0):
    """Right or wrong for candidates of equal true accuracy that find the same samples hard.

    A latent score is the sum of the sample's ease, the candidate's own view of it, the seed's luck and the luck of one
    seed with one sample; the answer is right above a threshold that makes the expected accuracy exact.
    """
    threshold = stats.norm.ppf(1 - accuracy) * np.sqrt(0.5 + 0.2 + 0.3 + seed_spread**2)
    ease = rng.normal(0, np.sqrt(0.5), samples)
    return {
        f"c{index}": (
            ease
            + rng.normal(0, np.sqrt(0.2), samples)
            + rng.normal(0, seed_spread, (seeds, 1))
            + rng.normal(0, np.sqrt(0.3), (seeds, samples))
            > threshold
        ).astype(float)
        for index in range(candidates)
    }


@pytest.mark.parametrize(("seeds", "seed_spread"), [(1, 0.0), (2, 0.1), (3, 0.3)])
def test_intervals_cover_the_truth_at_least_as_often_as_they_say(seeds, seed_spread):
    rng = np.random.default_rng(0)
    covered, difference_covered, wrongly_apart, repeats = 0, 0, 0, 150
    for repeat in range(repeats):
        scores = bootstrap(
            answers(rng, candidates=4, seeds=seeds, samples=250, seed_spread=seed_spread), draws=400, seed=repeat
        )
        covered += sum(interval.low <= 0.9 <= interval.high for interval in scores.intervals.values()) / 4
        gap = scores.difference("c0", "c1")
        difference_covered += gap.low <= 0 <= gap.high
        wrongly_apart += not scores.tied("c0", "c1")
    noise = 2 * np.sqrt(0.95 * 0.05 / repeats)
    assert covered / repeats > 0.95 - noise
    assert difference_covered / repeats > 0.95 - noise
    assert wrongly_apart / repeats < 0.05


def test_intervals_of_one_seed_are_not_wider_than_needed():
    rng = np.random.default_rng(1)
    for accuracy in (0.6, 0.8, 0.9):
        right = (rng.random(2000) < accuracy).astype(float)
        interval = bootstrap({"a": right}).intervals["a"]
        normal = 2 * 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 2000)
        assert interval.high - interval.low == pytest.approx(normal, rel=0.08)


@pytest.mark.parametrize("wrong", [0, 1, 4, 12])
def test_few_errors_get_about_the_exact_binomial_interval(wrong):
    right = np.ones(360)
    right[:wrong] = 0
    interval = bootstrap({"a": right}).intervals["a"]
    exact = stats.binomtest(360 - wrong, 360).proportion_ci()
    assert interval.low == pytest.approx(exact.low, abs=0.004)
    assert interval.high == pytest.approx(exact.high, abs=0.004)


def test_pairing_makes_differences_sharper():
    rng = np.random.default_rng(2)
    ease = rng.normal(0, 1, 1000)
    a = (ease + rng.normal(0, 0.3, 1000) > -0.8).astype(float)
    b = (ease + rng.normal(0, 0.3, 1000) > -0.7).astype(float)
    paired = bootstrap({"a": a, "b": b}).difference("a", "b")
    shuffled = bootstrap({"a": a, "b": rng.permutation(b)}).difference("a", "b")
    assert paired.value == pytest.approx(shuffled.value)
    assert paired.high - paired.low < 0.7 * (shuffled.high - shuffled.low)


def test_more_spread_between_seeds_gives_wider_intervals():
    samples = np.tile([1.0, 1.0, 1.0, 0.0], 250)
    steady = np.stack([samples, samples])
    unsteady = np.stack([samples, np.where(np.arange(1000) < 900, samples, 1.0)])
    width = {
        name: np.subtract(interval.high, interval.low)
        for name, interval in (
            (n, bootstrap({n: values}).intervals[n]) for n, values in {"s": steady, "u": unsteady}.items()
        )
    }
    assert width["u"] > 1.3 * width["s"]


def test_seeds_that_agree_by_luck_borrow_the_spread_of_the_others():
    rng = np.random.default_rng(3)
    many = answers(rng, candidates=6, seeds=2, samples=1000, seed_spread=0.2)
    lucky = np.stack([many["c0"][0], many["c0"][0]])
    alone = bootstrap({"lucky": lucky}).intervals["lucky"]
    among = bootstrap({**many, "lucky": lucky}).intervals["lucky"]
    assert among.high - among.low > 1.2 * (alone.high - alone.low)


def test_one_unstable_candidate_does_not_blur_the_others():
    rng = np.random.default_rng(4)
    steady = answers(rng, candidates=4, seeds=3, samples=1000, seed_spread=0.02)
    diverged = np.stack([steady["c0"][0], steady["c0"][1], (rng.random(1000) < 0.1).astype(float)])
    before = bootstrap(steady).intervals["c1"]
    after = bootstrap({**steady, "diverged": diverged})
    assert after.intervals["c1"].high - after.intervals["c1"].low < 1.6 * (before.high - before.low)
    assert after.intervals["diverged"].high - after.intervals["diverged"].low > 0.5


def test_one_seed_says_that_seeds_are_not_covered():
    rng = np.random.default_rng(5)
    assert not bootstrap(answers(rng, candidates=2, seeds=1, samples=50)).covers_seeds
    assert bootstrap(answers(rng, candidates=2, seeds=2, samples=50)).covers_seeds


def test_same_seed_same_intervals_in_any_order():
    scores = answers(np.random.default_rng(6), candidates=3, seeds=2, samples=200)
    first, again = bootstrap(scores, seed=7), bootstrap(dict(reversed(scores.items())), seed=7)
    for name, interval in again.intervals.items():
        for end in ("value", "low", "high"):
            assert getattr(interval, end) == pytest.approx(getattr(first.intervals[name], end), abs=1e-12)
    assert bootstrap(scores, seed=8).intervals != first.intervals


def test_draws_do_not_depend_on_how_they_are_cut_into_chunks(monkeypatch):
    scores = answers(np.random.default_rng(7), candidates=2, seeds=1, samples=64)
    whole = bootstrap(scores, draws=300)
    monkeypatch.setattr("torchstone.reporting.statistics._CHUNK", 64 * 100)
    np.testing.assert_allclose(bootstrap(scores, draws=300).draws, whole.draws)


def test_equal_candidates_are_tied_and_their_difference_includes_zero():
    right = (np.random.default_rng(8).random((2, 300)) < 0.8).astype(float)
    scores = bootstrap({"a": right, "b": right})
    gap = scores.difference("a", "b")
    assert scores.tied("a", "b")
    assert gap.value == 0
    assert gap.low < 0 < gap.high


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_candidates_that_are_always_right_or_always_wrong_stay_uncertain(value):
    interval = bootstrap({"a": np.full((2, 100), value)}).intervals["a"]
    assert interval.value == value
    assert 0.02 < interval.high - interval.low < 0.06
    assert 0 <= interval.low <= interval.high <= 1


def test_one_sample_tells_next_to_nothing():
    interval = bootstrap({"a": [[1.0]]}).intervals["a"]
    assert interval.low < 0.3
    assert interval.high == 1


def test_unbounded_scores_have_no_smoothing_and_no_clipping():
    rng = np.random.default_rng(9)
    losses = rng.normal(5, 2, (1, 500))
    interval = bootstrap({"a": losses}, bounds=None).intervals["a"]
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * losses.std() / np.sqrt(500), rel=0.1)
    constant = bootstrap({"a": np.full(50, 3.0)}, bounds=None).intervals["a"]
    assert (constant.low, constant.high) == (3, 3)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({}, "no scores"),
        ({"a": []}, "at least one"),
        ({"a": np.ones((2, 2, 2))}, r"\(seeds, samples\)"),
        ({"a": np.ones(3), "b": np.ones(4)}, "different numbers of samples"),
        ({"a": [0.5, 1.5]}, "bounds"),
        ({"a": [0.5, float("nan")]}, "finite"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(scores, message):
    with pytest.raises(CallError, match=message):
        bootstrap(scores)


def test_level_must_be_a_probability():
    with pytest.raises(CallError, match="level is 95"):
        bootstrap({"a": [1.0, 0.0]}, level=95)
