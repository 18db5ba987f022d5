"""Numbers in words: scores in per cent, costs with units, differences in points."""

from __future__ import annotations

import math

from torchstone.reporting.costs import Axis
from torchstone.reporting.statistics import Interval

ABSENT = "–"


def is_fraction(metric: str) -> bool:
    """Whether a metric is a fraction of 1, which is read in per cent."""
    return "accuracy" in metric.lower()


def score(value: float | None, metric: str) -> str:
    """``97.2 %``, or three significant digits for a metric that is not a fraction."""
    if value is None:
        return ABSENT
    return f"{100 * value:.1f} %" if is_fraction(metric) else f"{value:.3g}"


def span(low: float | None, high: float | None, metric: str) -> str:
    """``96.1–98.0``: the ends of an interval, without the unit."""
    if low is None or high is None:
        return ABSENT
    if is_fraction(metric):
        return f"{100 * low:.1f}–{100 * high:.1f}"
    return f"{low:.3g} to {high:.3g}"


def difference(value: float, metric: str) -> str:
    """``5.3 points`` of a fraction, else three significant digits."""
    return f"{100 * value:.1f} points" if is_fraction(metric) else f"{value:.3g}"


def behind(gap: Interval, leader: str, metric: str, maximize: bool) -> str:
    """``5.3 points below X (interval 4.1 to 6.6)``; ``above`` where less is better."""
    side = "below" if maximize else "above"
    return f"{difference(gap.value, metric)} {side} {leader} (interval {gap_span(gap.low, gap.high, metric)})"


def gap_span(low: float | None, high: float | None, metric: str) -> str:
    """``4.1 to 6.6``: the ends of a difference's interval, which may be negative."""
    if low is None or high is None:
        return ABSENT
    scale, digits = (100, ".1f") if is_fraction(metric) else (1, ".3g")
    return f"{scale * low:{digits}} to {scale * high:{digits}}"


def times(ratio: float) -> str:
    """``2.1x``; two decimals below 1.5, none from 10 on."""
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x" if ratio >= 1.5 else f"{ratio:.2f}x"


def cost(axis: Axis, value: float | None) -> str:
    """A cost with its unit, three significant digits: ``1.21 M``, ``3.40 ms``, ``2 min 10 s``."""
    if value is None:
        return ABSENT
    if axis.unit == "s":
        return duration(value)
    if axis.unit in {"ms", "MB"}:
        return f"{_digits(value)} {axis.unit}"
    scaled, prefix = si(value)
    return f"{_digits(scaled)} {prefix}{'/s' if axis.more_is_better else ''}".strip()


def si(value: float) -> tuple[float, str]:
    """The value below 1000 and its prefix: (1.21, "M")."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return value / factor, prefix
    return value, ""


def duration(seconds: float) -> str:
    """``8.1 s``, ``2 min 10 s``, ``3 h 5 min``."""
    if seconds < 60:
        return f"{_digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _digits(value: float) -> str:
    """Three significant digits without an exponent; whole numbers stay whole."""
    if value == 0 or float(value).is_integer():
        return f"{value:.0f}"
    return f"{value:.{min(6, max(0, 2 - math.floor(math.log10(abs(value)))))}f}"
