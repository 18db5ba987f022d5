"""Intervals of scores, differences, ties: how sure a comparison can be.

Candidate c has seeds k = 1..K_c and the same test samples i = 1..N as all others; s[c, k, i] is the score of one
sample (1 or 0 for right or wrong), m[c, i] its mean over the seeds, and the score is the mean of m over the samples.
Two things would be different another time: other test samples would have been drawn, and training would have had other
seeds. Every draw b of the bootstrap plays both:

    draw[b, c] = (sum_i n[b, i] m[c, i] + low P[b, c] + high Q[b, c]) / (N + P[b, c] + Q[b, c])
                 + r_c T[b, c] / sqrt(K_c)

* n[b, .] are multinomial counts of N draws with replacement, **the same for all candidates**: an easy resample is easy
  for everybody, so a difference of two candidates varies less than their scores do (the pairing).
* P and Q, Poisson with mean 1 and independent between candidates, add one worst and one best possible answer to the
  pool. Without them a candidate without errors would get an interval of no width; with them its lower end is about
  1 - 3/N, and few errors get about the exact binomial (Clopper-Pearson) interval, where resampling alone is too narrow.
* The seeds' part. Resampling K = 2 or 3 seeds gives a handful of distinct values and a variance too small by the
  factor (K - 1)/K, so the deviation of the seeds' mean is drawn from Student's t instead: r_c is the standard deviation
  between the scores of c's seeds, but at least the candidates' typical one (the median of their variances, divided by
  the median of chi^2_{K-1}/(K-1)): one pair of seeds that agrees by luck must not look like certainty, while one
  unstable candidate must not widen everybody's interval. T has sum_c (K_c - 1) degrees of freedom. Seeds of different
  candidates are independent. With one seed everywhere this part is absent, and the interval says nothing about other
  seeds (``Scores.covers_seeds``).

What seed and sample share (one seed's luck with one sample) enters both parts, so the intervals err to the wide side.
Lower and upper end are percentiles of the draws.

Sources: Efron & Tibshirani, An Introduction to the Bootstrap (1993), ch. 6 and 13; Owen, The pigeonhole bootstrap
(2007), for samples crossed with seeds; Smyth, Linear models and empirical Bayes methods (2004), for borrowing variance
between candidates.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from torchstone.errors import CallError

DRAWS = 2000
LEVEL = 0.95
CLEARLY_DEARER = 1.10  # a tie is decided by cost from this ratio on

_CHUNK = 2**21  # counts held at a time: 16 MB

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float

    def overlaps(self, other: Interval) -> bool:
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Scores:
    """Scores with intervals, and the draws that every difference is read from.

    Attributes:
        intervals: candidate -> mean score and interval.
        draws: (draws, candidates), columns in the order of ``intervals``.
        level: of the intervals, 0.95 for 95 %.
        covers_seeds: whether the intervals know the variation between seeds.
    """

    intervals: dict[str, Interval]
    draws: Array
    level: float
    covers_seeds: bool

    def difference(self, a: str, b: str) -> Interval:
        """Score of a minus score of b, with its paired interval."""
        names = list(self.intervals)
        value = self.intervals[a].value - self.intervals[b].value
        return _interval(value, self.draws[:, names.index(a)] - self.draws[:, names.index(b)], self.level)

    def tied(self, a: str, b: str) -> bool:
        """Whether the two intervals overlap: cautious, since a paired difference can be clearer than that."""
        return self.intervals[a].overlaps(self.intervals[b])


def bootstrap(
    correct: Mapping[str, ArrayLike],
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> Scores:
    """Paired bootstrap over test samples and seeds (equation in the module's docstring).

    A candidate's draws depend on its own scores, the seed and the candidates' typical seed variance, not on the order.

    Args:
        correct: candidate -> score of every sample, (seeds, samples); the same samples in the same order for all
            candidates, while the number of seeds may differ.
        draws: number of draws.
        level: coverage of the intervals, between 0 and 1.
        seed: of the draws.
        bounds: the smallest and largest score that one sample can have; None if there is no bound.

    Raises:
        CallError: no samples, unequal samples, or scores out of bounds.
    """
    scores = {name: _checked(name, values, bounds) for name, values in correct.items()}
    if not scores:
        raise CallError("there are no scores to compare")
    samples = {values.shape[1] for values in scores.values()}
    if len(samples) > 1:
        raise CallError(f"candidates were scored on different numbers of samples: {sorted(samples)}")
    if not 0.0 < level < 1.0:
        raise CallError(f"level is {level}, it must lie between 0 and 1")

    per_sample = np.stack([values.mean(axis=0) for values in scores.values()], axis=1)  # (N, C)
    resampled = _resampled_sums(per_sample, draws, np.random.default_rng(seed))  # (draws, C)
    typical, freedom = _typical_seed_deviation(list(scores.values()))
    columns, intervals = [], {}
    for (name, values), total in zip(scores.items(), resampled.T, strict=True):
        generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
        column = _smoothed_mean(total, values.shape[1], bounds, generator)
        column += _seed_part(values, typical, freedom, draws, generator)
        columns.append(column)
        intervals[name] = _interval(float(values.mean()), column, level, bounds)
    return Scores(intervals, np.stack(columns, axis=1), level, covers_seeds=freedom > 0)


def _checked(name: str, values: ArrayLike, bounds: tuple[float, float] | None) -> Array:
    array = np.atleast_2d(np.asarray(values, dtype=np.float64))
    if array.ndim != 2 or array.size == 0:
        raise CallError(f"{name}: scores must be (seeds, samples) with at least one of each, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise CallError(f"{name}: scores must be finite")
    if bounds and (array.min() < bounds[0] or array.max() > bounds[1]):
        raise CallError(f"{name}: scores go from {array.min():g} to {array.max():g}, the bounds are {bounds}")
    return array


def _resampled_sums(per_sample: Array, draws: int, generator: np.random.Generator) -> Array:
    """Sums over N samples drawn with replacement: counts (draws, N) times scores (N, C), a chunk of draws at a time."""
    count = len(per_sample)
    chunk = max(1, _CHUNK // count)
    sums = []
    for start in range(0, draws, chunk):
        rows = min(chunk, draws - start)
        picks = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        counts = np.bincount(picks.ravel(), minlength=rows * count).reshape(rows, count)
        sums.append(counts.astype(np.float64) @ per_sample)
    return np.concatenate(sums)


def _smoothed_mean(
    total: Array, count: int, bounds: tuple[float, float] | None, generator: np.random.Generator
) -> Array:
    if bounds is None:
        return total / count
    worst, best = generator.poisson(1.0, size=(2, len(total)))
    return (total + bounds[0] * worst + bounds[1] * best) / (count + worst + best)


def _typical_seed_deviation(scores: list[Array]) -> tuple[float, int]:
    """The candidates' typical standard deviation between seeds, and the degrees of freedom it is worth."""
    several = [values.mean(axis=1) for values in scores if len(values) > 1]
    if not several:
        return 0.0, 0
    variances = [runs.var(ddof=1) for runs in several]
    if len(several) > 2:  # the median of one or two is their mean, which needs no correction
        variances = [v * (len(r) - 1) / stats.chi2.median(len(r) - 1) for v, r in zip(variances, several, strict=True)]
    return math.sqrt(float(np.median(variances))), sum(len(runs) - 1 for runs in several)


def _seed_part(
    values: Array, typical: float, freedom: int, draws: int, generator: np.random.Generator
) -> Array | float:
    """Deviations of a mean over seeds: Student's t, its quantiles in random order (no noise of its own)."""
    if freedom == 0:
        return 0.0
    seeds = len(values)
    own = values.mean(axis=1).std(ddof=1) if seeds > 1 else 0.0
    quantiles = stats.t.ppf((np.arange(draws) + 0.5) / draws, freedom)
    return max(own, typical) / math.sqrt(seeds) * generator.permutation(quantiles)


def _interval(value: float, draws: Array, level: float, bounds: tuple[float, float] | None = None) -> Interval:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    if bounds:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    return Interval(value, min(float(low), value), max(float(high), value))
