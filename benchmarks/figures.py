"""Figures as SVG, drawn from result files: lines with error bars, legible on light and on dark pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import log2
from pathlib import Path

from torchstone.files import write_text

WIDTH, HEIGHT = 680, 400
LEFT, RIGHT, TOP, BOTTOM = 58, 148, 48, 52  # room for labels
COLOURS = (  # on light and on dark pages
    ("#c2410c", "#fb923c"),
    ("#1d4ed8", "#93c5fd"),
    ("#15803d", "#86efac"),
    ("#7e22ce", "#d8b4fe"),
    ("#0e7490", "#67e8f9"),
)


@dataclass(frozen=True)
class Point:
    """A mean and its standard deviation at ``x``."""

    x: float
    mean: float
    std: float


def draw(
    path: Path,
    lines: Mapping[str, Sequence[Point]],
    *,
    title: str,
    x: str,
    y: str,
    top: float = 100.0,
    scale: Callable[[float], float] = log2,
    bottom: float = 0.0,
) -> None:
    """Write a chart of y from ``bottom`` to ``top`` over x.

    Args:
        path: the SVG file.
        lines: by name; the name stands at the line's end.
        title, x, y: the words above, below and beside the chart.
        top: the largest y.
        scale: where along the chart x lies: to the base of 2, or ``float`` for evenly.
        bottom: the smallest y.
    """
    if len(lines) > len(COLOURS):
        raise ValueError(f"{len(lines)} lines, and colours for {len(COLOURS)}")
    values = sorted({point.x for points in lines.values() for point in points})
    low, high = scale(values[0]), scale(values[-1])

    def across(value: float) -> float:
        return LEFT + (scale(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - (max(bottom, min(value, top)) - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    pairs = list(enumerate(COLOURS[: len(lines)]))
    light = "".join(f".s{index}{{stroke:{one};fill:{one}}}" for index, (one, _) in pairs)
    dark = "".join(f".s{index}{{stroke:{one};fill:{one}}}" for index, (_, one) in pairs)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title>",
        "<style>text{font:13px system-ui,sans-serif;fill:#374151}.t{font-size:15px;font-weight:600}",
        ".g{stroke:#d1d5db}polyline{fill:none!important;stroke-width:2}text[class^=s]{stroke:none!important;"
        f"font-weight:600}}{light}",
        f"@media (prefers-color-scheme:dark){{text{{fill:#d1d5db}}.g{{stroke:#4b5563}}{dark}}}</style>",
        f'<text class="t" x="{LEFT}" y="24">{escape(title)}</text>',
    ]
    for step in range(6):
        value = bottom + (top - bottom) * step / 5
        parts.append(f'<path class="g" d="M{LEFT} {up(value):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{up(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    parts += [
        f'<text x="{across(value):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{value:g}</text>'
        for value in values
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x)}</text>')
    parts.append(
        f'<text transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y)}</text>"
    )
    heights = labels_apart([up(points[-1].mean) + 4 for points in lines.values()])
    for (index, (name, points)), height in zip(enumerate(lines.items()), heights, strict=True):
        corners = " ".join(f"{across(point.x):.1f},{up(point.mean):.1f}" for point in points)
        parts.append(f'<polyline class="s{index}" points="{corners}"/>')
        for point in points:
            place, ends = across(point.x), (up(point.mean - point.std), up(point.mean + point.std))
            parts.append(f'<path class="s{index}" d="M{place:.1f} {ends[0]:.1f}V{ends[1]:.1f}"/>')
            parts.append(f'<circle class="s{index}" cx="{place:.1f}" cy="{up(point.mean):.1f}" r="3.5"/>')
        last = points[-1]
        parts.append(f'<text class="s{index}" x="{across(last.x) + 12:.1f}" y="{height:.1f}">{escape(name)}</text>')
    write_text(path, "\n".join([*parts, "</svg>"]) + "\n")


def labels_apart(wanted: Sequence[float], gap: float = 16.0) -> list[float]:
    """Heights near the wanted ones, in their order, of which no two are closer than ``gap``."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    groups: list[list[int]] = []  # neighbours that push each other, around their common mean

    def top(group: list[int]) -> float:
        return sum(wanted[index] for index in group) / len(group) - gap * (len(group) - 1) / 2

    for index in order:
        groups.append([index])
        while len(groups) > 1 and top(groups[-1]) < top(groups[-2]) + gap * len(groups[-2]):
            groups[-2].extend(groups.pop())
    return [top(group) + gap * group.index(index) for index in range(len(wanted)) for group in groups if index in group]
