"""The report page: one HTML file that needs no network and no other file.

The page carries plotly.js once, the results as JSON in a ``<script type="application/json">`` block that only
``JSON.parse`` reads, and hand-written JavaScript that draws the charts. Everything that comes from a user (names of
candidates and classes, error texts) passes jinja's escaping in the HTML, ``\\u003c`` in the JSON and ``textContent`` or
an escape in the charts. A content security policy forbids the page to load anything.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from torchstone.catalog import PROOF_MEANING
from torchstone.reporting import words
from torchstone.reporting.costs import AXES
from torchstone.reporting.results import STARTS, CandidateResult, Comparison
from torchstone.reporting.summary import main_axis, notes, summary

CURVE_VALUES = 60_000  # numbers of learning curves in a page
MATRIX_CLASSES = 120  # classes in the confusion view
COLOURS = 12  # --c0 ... in report.css
_CURVES = ("epoch", "train_loss", "val_loss", "val_accuracy")


def render(comparison: Comparison) -> str:
    """The whole page as HTML."""
    environment = Environment(
        loader=PackageLoader("torchstone.reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"facts": facts, "plural": _plural, "breakable": _breakable}
    groups = {start: group for start in STARTS if (group := comparison.ranked(start))}
    page = payload(comparison)
    return environment.get_template("report.html.j2").render(
        comparison=comparison,
        groups=groups,
        shared_ranks={start: _shared_ranks(group) for start, group in groups.items()},
        scale={start: _scale(group) for start, group in groups.items()},
        best={start: _best_costs(group) for start, group in groups.items()},
        colour={
            name: {"colour": index % COLOURS, "symbol": (index + index // COLOURS) % COLOURS}
            for name, index in _colours(comparison).items()
        },
        axes_of=lambda c: [(axis.label, words.cost(axis, c.cost_on(axis.key))) for axis in AXES.values()],
        left_out=[c for c in comparison.candidates if c.score is None],
        summary=summary(comparison),
        data_facts={
            key: value for key, value in comparison.data.items() if key != "sizes" or "splits" not in comparison.data
        },
        notes=notes(comparison),
        axes=[axis for axis in AXES.values() if any(c.cost_on(axis.key) is not None for c in comparison.candidates)],
        main_axis=main_axis(comparison),
        has_curves=any(run.get("val_loss") or run.get("val_accuracy") for run in _all_curves(page)),
        has_confusion=bool(page["matrix"]),
        words=words,
        proofs=PROOF_MEANING,
        page=Markup(_script_json(page)),
        plotly=Markup(get_plotlyjs()),
    )


def payload(comparison: Comparison) -> dict[str, Any]:
    """What the charts are drawn from: the results, with curves thinned and confusions encoded.

    Confusion matrices (10 000 numbers a candidate for 100 classes, most of them 0) are cut to the ``MATRIX_CLASSES``
    classes with most errors and become one list of numbers, rows one after another, in which -n stands for n zeros.
    """
    page = comparison.to_dict()
    curves = [run.curves for candidate in comparison.candidates for run in candidate.runs]
    values = sum(len(curve.get(key, ())) for curve in curves for key in _CURVES)
    step = max(1, math.ceil(values / CURVE_VALUES))
    shown = _shown_classes(comparison)
    colours = _colours(comparison)
    for entry, candidate in zip(page["candidates"], comparison.candidates, strict=True):
        entry["colour"] = colours[candidate.name]
        entry["train_seconds"] = candidate.train_seconds
        entry["class_accuracy"] = class_accuracy(candidate.confusion) if candidate.confusion else None
        entry["confusion"] = (
            encode([[candidate.confusion[true][guess] for guess in shown] for true in shown])
            if candidate.confusion
            else None
        )
        entry["class_totals"] = [sum(candidate.confusion[true]) for true in shown] if candidate.confusion else None
        for run in entry["runs"]:
            run["curves"] = {key: _thinned(run["curves"].get(key, []), step) for key in _CURVES}
    page["axes"] = [vars(axis) for axis in AXES.values()]
    page["main_axis"] = axis.key if (axis := main_axis(comparison)) else None
    page["matrix"] = shown
    page["every_nth_epoch"] = step
    page["fraction"] = words.is_fraction(comparison.metric)
    page["data"].pop("classes", None)
    page["classes"] = class_names(comparison)
    return page


def _colours(comparison: Comparison) -> dict[str, int]:
    """Name -> index of colour and mark; those that the charts show come first."""
    order = sorted(comparison.candidates, key=lambda candidate: not candidate.trained)
    return {candidate.name: index for index, candidate in enumerate(order)}


def encode(matrix: Sequence[Sequence[int]]) -> list[int]:
    """Rows one after another, with n zeros in a row written as -n."""
    codes: list[int] = []
    for value in (value for row in matrix for value in row):
        if value:
            codes.append(int(value))
        elif codes and codes[-1] < 0:
            codes[-1] -= 1
        else:
            codes.append(-1)
    return codes


def class_accuracy(confusion: Sequence[Sequence[int]]) -> list[float | None]:
    """Share of each true class that was recognised; None for a class without samples."""
    return [round(row[true] / total, 4) if (total := sum(row)) else None for true, row in enumerate(confusion)]


def class_names(comparison: Comparison) -> list[str]:
    """The class names, or numbers where the data did not say."""
    count = max((len(c.confusion) for c in comparison.candidates if c.confusion), default=0)
    names = [str(name) for name in comparison.data.get("classes") or ()]
    return names if len(names) >= count else [str(index) for index in range(count)]


def _shown_classes(comparison: Comparison) -> list[int]:
    """The classes of the confusion view, in their own order: those with most errors over all candidates."""
    matrices = [c.confusion for c in comparison.candidates if c.confusion]
    if not matrices:
        return []
    count = len(matrices[0])
    errors = [sum(sum(matrix[true]) - matrix[true][true] for matrix in matrices) for true in range(count)]
    return sorted(sorted(range(count), key=lambda true: -errors[true])[:MATRIX_CLASSES])


def _thinned(values: Sequence[float | None], step: int) -> list[float | None]:
    """Every n-th value and the last, with four significant digits."""
    kept = [*values[::step], *(values[-1:] if (len(values) - 1) % step else ())]
    return [value if value is None or isinstance(value, int) else float(f"{value:.4g}") for value in kept]


def _all_curves(page: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    return (run["curves"] for candidate in page["candidates"] for run in candidate["runs"])


def _script_json(value: Any) -> str:
    """JSON that cannot end its script block: no ``<``, ``>``, ``&`` or line separator is left in it."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def facts(values: Mapping[str, Any], longest: int = 240) -> list[tuple[str, str]]:
    """Any dictionary as (label, value) pairs of text; a dictionary of dictionaries becomes a pair for each of them."""
    pairs = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value and all(isinstance(inner, Mapping) for inner in value.values()):
            pairs += [(f"{key}: {label}", text) for label, text in facts(value, longest)]
            continue
        text = _as_text(value)
        if isinstance(value, list | tuple) and len(text) > longest:
            text = f"{len(value)}: {text}"
        if text:
            pairs.append((str(key).replace("_", " "), text if len(text) <= longest else text[: longest - 1] + "…"))
    return pairs


def _as_text(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case int():
            return f"{value:,}" if abs(value) >= 10_000 else str(value)
        case Mapping():
            return " · ".join(f"{str(key).replace('_', ' ')} {_as_text(inner)}" for key, inner in value.items())
        case list() | tuple():
            return ", ".join(_as_text(inner) for inner in value)
    return str(value)


def _shared_ranks(group: Sequence[CandidateResult]) -> set[int]:
    ranks = [candidate.rank for candidate in group if candidate.rank]
    return {rank for rank in ranks if ranks.count(rank) > 1}


def _scale(group: Sequence[CandidateResult]) -> tuple[float, float]:
    """The common scale of a table's interval bars."""
    low = min(c.score if c.low is None else c.low for c in group if c.score is not None)
    high = max(c.score if c.high is None else c.high for c in group if c.score is not None)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _best_costs(group: Sequence[CandidateResult]) -> dict[str, float]:
    """Axis -> the cheapest cost, where there is anything to choose."""
    best = {}
    for axis in AXES.values():
        costs = {cost for candidate in group if (cost := candidate.cost_on(axis.key)) is not None}
        if len(costs) > 1:
            best[axis.key] = min(costs, key=axis.expense)
    return best


def _breakable(name: str) -> Markup:
    """A long name that may be broken after its separators."""
    return Markup("<wbr>").join(re.split(r"(?<=[_+:/@])", name))


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
