"""The picture of an operator's benchmark."""

from __future__ import annotations

import plotly.graph_objects as go

from torchstone.instruments.figures import COLORS, styled
from torchstone.instruments.op_bench import OpBench


def op_bench_figure(bench: OpBench) -> go.Figure:
    """Time over size, both logarithmic: one line per contender, with its quartiles; dotted, the operator's least time.

    Args:
        bench: what was measured.
    """
    figure = go.Figure()
    for index, name in enumerate(bench.contenders()):
        timings = bench.of(name)
        growth = bench.growth(name)
        figure.add_trace(
            go.Scatter(
                x=[t.size for t in timings],
                y=[t.time.median_ms for t in timings],
                error_y={
                    "array": [t.time.high_ms - t.time.median_ms for t in timings],
                    "arrayminus": [t.time.median_ms - t.time.low_ms for t in timings],
                    "thickness": 1,
                    "width": 3,
                },
                mode="lines+markers",
                name=name if growth is None else f"{name}: time ~ {bench.size_name}<sup>{growth:.2f}</sup>",
                line={"width": 3 if name == bench.op else 1.8, "color": COLORS[index % len(COLORS)]},
                marker={"size": 8 if name == bench.op else 6},
                hovertemplate=f"<b>{name}</b><br>{bench.size_name} %{{x}}<br>%{{y:.4~g}} ms<extra></extra>",
            )
        )
    own = bench.of(bench.op)
    figure.add_trace(
        go.Scatter(
            x=[t.size for t in own],
            y=[t.roof_ms for t in own],
            mode="lines",
            name=f"least time of {bench.op}'s arithmetic and memory traffic",
            line={"width": 1.5, "dash": "dot", "color": COLORS[0]},
            hovertemplate="at least %{y:.4~g} ms<extra></extra>",
        )
    )
    sizes = sorted({t.size for t in bench.timings})
    figure.update_xaxes(type="log", title=bench.size_name, tickvals=sizes, ticktext=[short(size) for size in sizes])
    unit = "processor time" if bench.clock == "processor" else "time"
    figure.update_yaxes(type="log", title=f"{unit} of a call, ms", dtick=1)
    what = "forward and backward pass" if bench.backward else "forward pass"
    settings = ", ".join(f"{name} {value}" for name, value in bench.settings.items())
    where = f"{bench.conditions.device}, {bench.conditions.dtype}"
    threads = f", threads {bench.conditions.threads}" if bench.conditions.device == "cpu" else ""
    styled(figure, f"{bench.op} and its peers", f"{what}; {settings}; {where}{threads}")
    return figure.update_layout(legend_y=-0.22)


def short(size: int) -> str:
    """A size as people say it: 1k is 1024, 1M is 1024k."""
    for power, letter in ((20, "M"), (10, "k")):
        if size >= 1 << power and size % (1 << power) == 0:
            return f"{size >> power}{letter}"
    return str(size)
