"""Pictures: the waterline of a network, the efficiency gap of several, the passes of a convolution."""

from __future__ import annotations

from math import log10
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from torchstone.instruments.conv_efficiency.gap import EfficiencyGap
from torchstone.instruments.conv_efficiency.statistics import ConvStatistics
from torchstone.instruments.conv_efficiency.waterline import Bar, Waterline
from torchstone.instruments.figures import COLORS, WATER, WATER_LINE, styled

_DRY, _WET, _NO_ARITHMETIC = COLORS[2], COLORS[1], COLORS[5]
_LEAST_INTENSITY = 0.25
"""Operations per byte at the bottom of the picture."""


def waterline_figure(found: Waterline, level: str) -> go.Figure:
    """Above, one bar per kernel that computes; below, where the time of every level of fusion goes.

    A bar is as wide as its share of the operations and as high as its operations per byte. Under the waterline it waits
    for memory: its time is its width, stretched by how far it is under water.
    """
    levels = list(found.levels)
    figure = make_subplots(
        rows=2, cols=1, row_heights=[0.68, 0.32], vertical_spacing=0.2, subplot_titles=("", "where the time goes")
    )
    top = max([bar.intensity for bars in found.levels.values() for bar in bars] + [4 * found.roof.balance])
    for name in levels:
        for wet in (False, True):
            figure.add_trace(_bars(found.levels[name], wet, name == level), row=1, col=1)
    figure.add_hrect(
        y0=_LEAST_INTENSITY, y1=found.roof.balance, fillcolor=WATER, line_width=0, layer="above", row=1, col=1
    )
    figure.add_hline(y=found.roof.balance, line={"color": WATER_LINE, "width": 2}, row=1, col=1)
    figure.add_annotation(
        text=f"waterline: {found.roof.balance:.3g} operations per byte",
        x=100,
        y=log10(found.roof.balance),
        xanchor="right",
        yanchor="bottom",
        showarrow=False,
        font={"color": "#0b4f94", "size": 12},
        bgcolor="rgba(255,255,255,0.85)",
        row=1,
        col=1,
    )
    for segment in _times(found, levels):
        figure.add_trace(segment, row=2, col=1)
    figure.update_xaxes(title="share of the network's operations, in the order of the layers", ticksuffix=" %", row=1)
    figure.update_xaxes(title="milliseconds", rangemode="tozero", row=2)
    figure.update_yaxes(
        title="operations per byte",
        type="log",
        range=[log10(_LEAST_INTENSITY), log10(top) + 0.15],
        dtick=1,
        row=1,
    )
    figure.update_yaxes(autorange="reversed", row=2)
    shown = [[name == chosen for name in levels for _ in range(2)] + [True] * 4 for chosen in levels]
    menu: dict[str, Any] = {
        "type": "buttons",
        "direction": "right",
        "active": levels.index(level),
        "buttons": [
            {"label": chosen, "method": "restyle", "args": [{"visible": visible}]}
            for chosen, visible in zip(levels, shown, strict=True)
        ],
        "x": 1,
        "xanchor": "right",
        "y": 1.02,
        "yanchor": "bottom",
        "bgcolor": "#f0eee8",
        "bordercolor": "#a29b8b",
        "font": {"size": 12, "color": "#1e2229"},
    }
    figure.update_layout(barmode="stack", updatemenus=[menu], bargap=0.25)
    shape = "x".join(map(str, found.input_shape))
    threads = f", {found.roof.threads} thread{'s' * (found.roof.threads > 1)}" if found.roof.threads else ""
    conditions = f"{found.batch_size} x {shape}, {found.roof.dtype}{threads}: {found.roof.peak / 1e9:.4g} Gop/s"
    return styled(figure, f"Waterline of {found.name}", f"{conditions}, {found.roof.bandwidth / 1e9:.3g} GB/s")


def _bars(bars: tuple[Bar, ...], wet: bool, visible: bool) -> go.Bar:
    """The kernels that compute, those above or those under water, at their place along the network."""
    total = sum(bar.macs for bar in bars)
    places, start = [], 0.0
    for bar in bars:
        places.append(start)
        start += 100 * bar.macs / total
    chosen = [(place, bar) for place, bar in zip(places, bars, strict=True) if bar.macs and bar.drowned == wet]
    return go.Bar(
        x=[place for place, _ in chosen],
        width=[100 * bar.macs / total for _, bar in chosen],
        y=[max(bar.intensity, _LEAST_INTENSITY) for _, bar in chosen],
        offset=0,
        base=0,
        name="waits for memory" if wet else "bound by arithmetic",
        visible=visible,
        marker={"color": _WET if wet else _DRY, "line": {"width": 0.5, "color": "rgba(255,255,255,0.65)"}},
        customdata=[_told(bar) for _, bar in chosen],
        hovertemplate=(
            "<b>%{customdata[0]}</b><br>%{customdata[1]}<br>%{customdata[2]}<br>%{customdata[3]}<extra></extra>"
        ),
    )


def _told(bar: Bar) -> list[str]:
    measured = "" if bar.measured_ms is None else f", measured {bar.measured_ms:.3g} ms ({bar.efficiency:.0%})"
    shown = ", ".join(bar.operators[:6]) + (", ..." if len(bar.operators) > 6 else "")
    return [
        bar.name,
        shown,
        f"{2 * bar.macs / 1e6:.4g} Mop, {bar.bytes / 1e6:.3g} MB: {bar.intensity:.3g} op/byte",
        f"ideal {bar.ideal_ms:.3g} ms, attainable {bar.attainable_ms:.3g} ms{measured}",
    ]


def _times(found: Waterline, levels: list[str]) -> list[go.Bar]:
    """For every level: arithmetic, waiting of kernels that compute, kernels that only move; and what was measured."""
    rows = [f"{name}: {found.attainable_efficiency(name):.0%}" for name in levels]
    parts: dict[str, tuple[str, list[float]]] = {
        "arithmetic": (_DRY, [found.ideal_ms] * len(levels)),
        "waiting for memory": (
            _WET,
            [sum(bar.attainable_ms - bar.ideal_ms for bar in found.levels[name] if bar.macs) for name in levels],
        ),
        "kernels without arithmetic": (
            _NO_ARITHMETIC,
            [sum(bar.attainable_ms for bar in found.levels[name] if not bar.macs) for name in levels],
        ),
    }
    segments = [
        go.Bar(
            x=values,
            y=rows,
            orientation="h",
            name=name,
            marker={"color": color},
            showlegend=name == "kernels without arithmetic",
            hovertemplate="%{y}<br>" + name + " %{x:.4~g} ms<extra></extra>",
        )
        for name, (color, values) in parts.items()
    ]
    if found.latency is None:
        return [*segments, go.Bar(x=[], y=[], orientation="h", showlegend=False)]
    measured = go.Bar(
        x=[found.latency.median_ms],
        y=[f"measured: {found.efficiency:.0%}"],
        orientation="h",
        name="measured latency",
        marker={"color": COLORS[0]},
        hovertemplate="%{x:.4~g} ms<extra>measured</extra>",
    )
    return [*segments, measured]


def gap_figure(found: EfficiencyGap) -> go.Figure:
    """A line per network from its ideal to its actual latency; with accuracies, the front of either."""
    figure = go.Figure()
    heights = {
        point.name: 100 * (point.accuracy or 0.0) if found.has_accuracy else 2 * point.macs / 1e9
        for point in found.points
    }
    if found.has_accuracy:
        for ideal in (True, False):
            names = found.front(ideal=ideal)
            times = {point.name: point.ideal_ms if ideal else point.latency_ms for point in found.points}
            figure.add_trace(
                go.Scatter(
                    x=[times[name] for name in names],
                    y=[heights[name] for name in names],
                    mode="lines",
                    line={"shape": "hv", "dash": "dot" if ideal else "solid", "width": 1.5, "color": COLORS[5]},
                    name="front, ideal" if ideal else "front, actual",
                    hoverinfo="skip",
                )
            )
    for index, point in enumerate(found.points):
        figure.add_trace(
            go.Scatter(
                x=[point.ideal_ms, point.latency_ms],
                y=[heights[point.name]] * 2,
                mode="lines+markers+text",
                text=["", f"{point.name}  {point.gap:.3g}x"],
                textposition="top center",
                textfont={"size": 11},
                showlegend=False,
                line={"color": COLORS[index % len(COLORS)], "width": 2},
                marker={"size": 10, "symbol": ["circle-open", "circle"], "line": {"width": 2}},
                hovertemplate=(
                    f"<b>{point.name}</b><br>%{{x:.4~g}} ms<br>"
                    f"efficiency {point.efficiency:.1%}, {2 * point.macs / 1e9:.4g} Gop<extra></extra>"
                ),
            )
        )
    all_times = [value for point in found.points for value in (point.ideal_ms, point.latency_ms)]
    low, high = log10(min(all_times)), log10(max(all_times))
    margin = 0.15 + 0.15 * (high - low)
    figure.update_xaxes(
        type="log",
        title="latency, milliseconds: ideal (open), actual (filled)",
        range=[low - margin, high + margin],
    )
    if found.has_accuracy:
        figure.update_yaxes(title="accuracy", ticksuffix=" %")
    else:
        figure.update_yaxes(title="10<sup>9</sup> operations", type="log")
    peak = f"held against {found.peak / 1e9:.4g} Gop/s"
    return styled(figure, "Efficiency gap", f"{peak}; {found.environment.get('processor', '')}")


def statistics_figure(found: ConvStatistics) -> go.Figure:
    """Operations per byte of a convolution and of its gradients."""
    passes = found.passes()
    figure = go.Figure(
        go.Bar(
            x=list(passes),
            y=[value.intensity for value in passes.values()],
            text=[f"{value.intensity:.3g}" for value in passes.values()],
            marker={"color": COLORS[: len(passes)]},
            customdata=[[value.macs / 1e6, value.bytes / 1e6] for value in passes.values()],
            hovertemplate="%{customdata[0]:.4~g} M MACs, %{customdata[1]:.4~g} MB<extra>%{x}</extra>",
        )
    )
    figure.update_xaxes(title="pass")
    figure.update_yaxes(title="operations per byte")
    shape, kernel = "x".join(map(str, found.shape)), "x".join(map(str, found.kernel))
    return styled(figure, f"{kernel} convolution in groups of {found.group_width}", f"input {shape}")
