"""Who is better than whom, and who is not worth its cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from numpy.typing import ArrayLike

from torchstone.errors import CallError
from torchstone.reporting import words
from torchstone.reporting.costs import AXES, Axis
from torchstone.reporting.results import STARTS, CandidateResult
from torchstone.reporting.statistics import CLEARLY_DEARER, DRAWS, Interval, Scores, bootstrap


def judge(
    candidates: Sequence[CandidateResult],
    per_sample: Mapping[str, ArrayLike],
    *,
    metric: str = "accuracy",
    maximize: bool = True,
    draws: int = DRAWS,
    seed: int = 0,
    bounds: tuple[float, float] | None = (0.0, 1.0),
) -> list[CandidateResult]:
    """Fill in scores, intervals, ranks, gaps to the leader, ties and dominance.

    Candidates that start from scratch and pretrained ones are judged apart. Within one start:

    * *tied*: the two intervals overlap; *really better*: they do not.
    * rank = 1 + number of really better candidates, so tied leaders share rank 1.
    * B is *dominated* on a cost axis by A, if A is really better and not dearer; or if they are tied, the paired
      difference does not speak for B, and B costs more than 1.1 times as much.

    Args:
        candidates: of any status; only ``trained`` ones are judged, the others come back as they are.
        per_sample: name of a trained candidate -> score of every test sample, (seeds, samples), the samples in the same
            order for all.
        metric: the score's name, for the sentences.
        maximize: whether a larger score is better.
        draws, seed, bounds: see :func:`torchstone.reporting.statistics.bootstrap`.

    Returns:
        The candidates in the order given.

    Raises:
        CallError: two candidates with one name, a trained candidate without scores, or scores that cannot be compared.
    """
    names = [candidate.name for candidate in candidates]
    if len(set(names)) < len(names):
        raise CallError(f"two candidates have the same name: {sorted({n for n in names if names.count(n) > 1})}")
    missing = [c.name for c in candidates if c.trained and c.name not in per_sample]
    if missing:
        raise CallError(f"trained candidates without scores: {', '.join(missing)}")
    judged = {}
    for start in STARTS:
        group = [c for c in candidates if c.trained and c.start == start]
        if group:
            scores = bootstrap({c.name: per_sample[c.name] for c in group}, draws=draws, seed=seed, bounds=bounds)
            judged.update(_judge_group(group, scores, metric, maximize))
    return [judged.get(candidate.name, candidate) for candidate in candidates]


def _judge_group(
    group: list[CandidateResult], scores: Scores, metric: str, maximize: bool
) -> dict[str, CandidateResult]:
    def advantage(a: str, b: str) -> Interval:
        """How much better a is than b, positive = better."""
        return scores.difference(a, b) if maximize else scores.difference(b, a)

    def really_better(a: str, b: str) -> bool:
        return not scores.tied(a, b) and advantage(a, b).value > 0

    names = [candidate.name for candidate in group]
    leader = max(names, key=lambda name: advantage(name, names[0]).value)
    judged = {}
    for candidate in group:
        name, interval = candidate.name, scores.intervals[candidate.name]
        others = [other for other in group if other.name != name]
        better = [other for other in others if really_better(other.name, name)]
        tied = [other for other in others if scores.tied(other.name, name)]
        as_good = [other for other in tied if advantage(other.name, name).high >= 0]
        dominated = {}
        for axis in AXES.values():
            reason = _worse(candidate, better, advantage, axis, metric, maximize) or _dearer(
                candidate, as_good, axis, metric
            )
            if reason:
                dominated[axis.key] = reason
        gap = advantage(leader, name) if name != leader else None
        judged[name] = replace(
            candidate,
            score=interval.value,
            low=interval.low,
            high=interval.high,
            tied_with=[other.name for other in tied],
            dominated=dominated,
            rank=1 + len(better),
            gap=gap.value if gap else None,
            gap_low=gap.low if gap else None,
            gap_high=gap.high if gap else None,
        )
    return judged


def _worse(
    candidate: CandidateResult,
    better: list[CandidateResult],
    advantage: Callable[[str, str], Interval],
    axis: Axis,
    metric: str,
    maximize: bool,
) -> str:
    """The reason, if a really better candidate is not dearer: the one with the largest lead is named."""
    own = candidate.cost_on(axis.key)
    gaps = {
        other.name: advantage(other.name, candidate.name)
        for other in better
        if own is not None and (cost := other.cost_on(axis.key)) is not None and axis.expense(cost) <= axis.expense(own)
    }
    if not gaps:
        return ""
    name = max(gaps, key=lambda other: gaps[other].value)
    return f"{words.behind(gaps[name], name, metric, maximize)} and {axis.not_cheaper}"


def _dearer(candidate: CandidateResult, as_good: list[CandidateResult], axis: Axis, metric: str) -> str:
    """The reason, if a candidate that is as good within the intervals is clearly cheaper: the cheapest is named."""
    own = candidate.cost_on(axis.key)
    ratios = {
        other.name: axis.times_dearer(own, cost) for other in as_good if own and (cost := other.cost_on(axis.key))
    }
    name = max(ratios, key=lambda other: ratios[other], default="")
    if not name or ratios[name] <= CLEARLY_DEARER:
        return ""
    ratio = 1 / ratios[name] if axis.more_is_better else ratios[name]
    return f"same {metric} within intervals as {name} at {words.times(ratio)} its {axis.noun}"
