"""A comparison in sentences: what to take away, and what the numbers mean."""

from __future__ import annotations

from torchstone.reporting import words
from torchstone.reporting.costs import AXES, Axis
from torchstone.reporting.results import STARTS, CandidateResult, Comparison
from torchstone.reporting.statistics import CLEARLY_DEARER, DRAWS, LEVEL

_HOW = {"scratch": "trained from scratch", "pretrained": "pretrained"}
_METHODS = (
    "A method (method+model) trained the network first, once per seed, on the same training split without its labels. "
    "The run after that had the same epochs and the same trials as any other, so nothing but computation "
    "was added: the time of both is the training time, and the candidate is ranked with those that start as it did.",
)


def main_axis(comparison: Comparison) -> Axis | None:
    """The cost that a summary speaks of: the first that at least half of the trained candidates were measured on."""
    trained = [candidate for candidate in comparison.candidates if candidate.trained]
    counts = {key: sum(c.cost_on(key) is not None for c in trained) for key in AXES}
    return next((AXES[key] for key, count in counts.items() if count and 2 * count >= len(trained)), None)


def summary(comparison: Comparison) -> list[str]:
    """What to take away, most important first, in plain sentences."""
    groups = {start: group for start in STARTS if (group := comparison.ranked(start))}
    axis = main_axis(comparison)
    sentences = [] if groups else ["No candidate was trained, so there is nothing to rank."]
    for start, group in groups.items():
        lines = [
            *_standing(comparison, group),
            *_sharper(group),
            *_bargain(group, axis),
            *_worth_it(comparison, group, axis),
            *_not_worth_it(group),
        ]
        if len(groups) > 1:
            lines[0] = f"Among candidates {_HOW[start]}: {lines[0]}"
        sentences += lines
    if groups:
        sentences += _before_training(groups)
        sentences += _resolution(comparison, groups)
    return sentences + _missing(comparison)


def notes(comparison: Comparison) -> list[str]:
    """What the numbers mean and what they leave out."""
    cost = (
        "Latency is the median of interleaved rounds on the machine named here, and varies by some per cent from run "
        "to run; memory is the peak of a process of its own, less its idle baseline."
    )
    seeds = max((len(candidate.runs) for candidate in comparison.candidates if candidate.trained), default=0)
    if not seeds:
        return [cost]
    percent, dearer = round(100 * LEVEL), round(100 * (CLEARLY_DEARER - 1))
    several_seeds = (
        "The seeds' part of an interval is drawn from Student's t with the spread between a candidate's own seeds, at "
        "least the candidates' typical spread: two or three seeds are too few to be resampled, and seeds that agree "
        "by luck would look like certainty. The intervals err to the wide side."
    )
    one_seed = (
        "There is one seed per candidate: intervals cover the choice of test samples, not the luck of training. "
        "Another seed can change the order of candidates that look different here."
    )
    return [
        "Scores are means over seeds on the test split, read once after all choices were made. Intervals are "
        f"{percent} % intervals from {DRAWS:,} draws of a paired bootstrap: every draw resamples the test samples, the "
        "same for all candidates.",
        several_seeds if seeds > 1 else one_seed,
        "Tied means that two intervals overlap. That is cautious: the paired difference to the leader can be clearer, "
        "and stands in its own column. With many candidates some differences look real by chance alone.",
        "Dominated on a cost means: another candidate is really better and not dearer, or ties with it and this one "
        f"costs over {dearer} % more. A candidate whose paired difference speaks for it is not dominated by a tie.",
        "Scratch and pretrained candidates are never ranked together: pretraining is a cost that no column shows.",
        *(_METHODS if any(candidate.method for candidate in comparison.candidates) else ()),
        "Intervals know nothing of other data, other splits, longer training or wider searches. Each candidate had "
        "the same number of learning-rate trials; a larger search can favour another one.",
        cost,
    ]


def _standing(comparison: Comparison, group: list[CandidateResult]) -> list[str]:
    """Who leads, by how much, and who ties."""
    leader, metric = group[0], comparison.metric
    reached = f"{words.score(leader.score, metric)} ({words.span(leader.low, leader.high, metric)})"
    if len(group) == 1:
        return [f"{leader.name} reaches {reached}."]
    tied = [candidate.name for candidate in group[1:] if candidate.name in leader.tied_with]
    if not tied:
        second = group[1]
        gap = words.difference(second.gap or 0.0, metric)
        ends = words.gap_span(second.gap_low, second.gap_high, metric)
        return [f"{leader.name} leads with {reached}, {gap} ahead of {second.name} (interval {ends})."]
    if len(tied) == len(group) - 1:
        others = {1: f"{tied[0]} ties", 2: "both others tie"}.get(len(tied), f"all {len(tied)} others tie")
        return [f"{leader.name} has the best score, {reached}, but {others} with it: the intervals overlap."]
    return [f"{leader.name} leads with {reached}; {_listed(tied)} {_verb(tied, 'ties', 'tie')} with it."]


def _sharper(group: list[CandidateResult]) -> list[str]:
    """The ties with the leader that the paired differences resolve."""
    leader = group[0]
    behind = [c.name for c in group[1:] if leader.name in c.tied_with and c.gap_low is not None and c.gap_low > 0]
    if not behind:
        return []
    return [f"Paired on the same test samples, {_listed(behind)} {_verb(behind, 'is', 'are')} behind all the same."]


def _bargain(group: list[CandidateResult], axis: Axis | None) -> list[str]:
    """The cheapest candidate that ties with the leader, if it is cheaper than the leader."""
    leader = group[0]
    own = leader.cost_on(axis.key) if axis else None
    if axis is None or not own:
        return []
    ratios = {
        c.name: axis.times_dearer(cost, own)
        for c in group
        if (cost := c.cost_on(axis.key)) and c.name in leader.tied_with
    }
    name = min(ratios, key=lambda other: ratios[other], default="")
    if not name or ratios[name] > 1 / CLEARLY_DEARER:
        return []
    cheap = next(c.cost_on(axis.key) for c in group if c.name == name)
    share = 1 / ratios[name] if axis.more_is_better else ratios[name]
    return [
        f"{name} ties with it at {100 * share:.0f} % of its {axis.noun}: "
        f"{words.cost(axis, cheap)} against {words.cost(axis, own)}."
    ]


def _worth_it(comparison: Comparison, group: list[CandidateResult], axis: Axis | None) -> list[str]:
    """The candidates to choose from at different budgets: not dominated, cheapest first."""
    if axis is None:
        return []
    costs = {c.name: axis.expense(cost) for c in group if (cost := c.cost_on(axis.key)) is not None}
    choices = [c for c in group if c.name in costs and axis.key not in c.dominated]
    if not 1 < len(choices) < len(group):
        return []
    choices.sort(key=lambda candidate: costs[candidate.name])
    shown = [
        f"{c.name} ({words.score(c.score, comparison.metric)}, {words.cost(axis, c.cost_on(axis.key))})"
        for c in choices
    ]
    return [f"Not dominated on {axis.noun}, cheapest first: {_listed(shown)}."]


def _not_worth_it(group: list[CandidateResult]) -> list[str]:
    """The candidates behind the leader for which there is a better choice whatever the cost that counts."""
    measured = [key for key in AXES if any(candidate.cost_on(key) is not None for candidate in group)]
    losers = [c.name for c in group[1:] if measured and all(key in c.dominated for key in measured)]
    if not losers:
        return []
    return [f"Whichever cost counts, there is a better choice than {_listed(losers, 'or')}."]


def _resolution(comparison: Comparison, groups: dict[str, list[CandidateResult]]) -> list[str]:
    """How small a difference this comparison can see, and what its intervals leave out."""
    trained = [candidate for group in groups.values() for candidate in group]
    seeds = max(len(candidate.runs) for candidate in trained)
    half = sorted(((c.high or 0.0) - (c.low or 0.0)) / 2 for c in trained)[len(trained) // 2]
    tests = comparison.data.get("sizes", {}).get("test")
    basis = (
        f"{tests:,} test samples and {seeds} seed{'s' * (seeds != 1)}" if tests else f"{seeds} seed{'s' * (seeds != 1)}"
    )
    sentences = [f"With {basis}, a typical score is known to ±{words.difference(half, comparison.metric)}."]
    if seeds < 2:
        sentences.append("One seed only: the intervals cover the choice of test samples, not the luck of training.")
    return sentences


def _before_training(groups: dict[str, list[CandidateResult]]) -> list[str]:
    """What share of the training time went into methods."""
    shares = [
        f"{candidate.name} {100 * candidate.pretrain_seconds / candidate.train_seconds:.0f} %"
        for group in groups.values()
        for candidate in group
        if candidate.pretrain_seconds and candidate.train_seconds
    ]
    return [f"Share of the training time that a method used first: {_listed(shares)}."] if shares else []


def _missing(comparison: Comparison) -> list[str]:
    over = [c.name for c in comparison.candidates if c.status == "over budget"]
    failed = [c.name for c in comparison.candidates if c.status == "failed"]
    waiting = list(comparison.protocol.get("not finished", ()))
    sentences = [f"Not finished yet: {_listed(waiting)}."] if waiting else []
    if over:
        sentences.append(f"Over budget, not trained: {_listed(over)}.")
    if failed:
        sentences.append(f"Failed: {_listed(failed)}.")
    return sentences


def _verb(names: list[str], one: str, many: str) -> str:
    return one if len(names) == 1 else many


def _listed(names: list[str], conjunction: str = "and", most: int = 4) -> str:
    """``a, b and c``; long lists end in "and 5 more"."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
        conjunction = "and"
    return f" {conjunction} ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
