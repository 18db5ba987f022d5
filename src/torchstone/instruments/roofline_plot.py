"""The picture of a roofline."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from torchstone.instruments.figures import COLORS, styled
from torchstone.instruments.roofline import Roof, Roofline

_DASHES = ("solid", "dash", "dot", "dashdot")


def roofline_figure(roofline: Roofline, points: Mapping[str, tuple[float, float]]) -> go.Figure:
    """One line per roof; a point's distance below its roof is what it leaves unused.

    Args:
        roofline: what was measured.
        points: name -> (operations per byte, operations per second).
    """
    balances = [roof.balance for roof in roofline.roofs]
    intensities = [x for x, _ in points.values()]
    low = min([min(balances) / 32, *intensities]) / 1.5
    high = max([max(balances) * 32, *intensities]) * 1.5
    figure = go.Figure()
    for index, roof in enumerate(roofline.roofs):
        corners = [low, roof.balance, high]
        figure.add_trace(
            go.Scatter(
                x=corners,
                y=[roof.attainable(x) / 1e9 for x in corners],
                mode="lines",
                name=_label(roof),
                line={"width": 2.5, "color": COLORS[index % len(COLORS)], "dash": _DASHES[index % len(_DASHES)]},
                hovertemplate="%{x:.3~g} op/byte: at most %{y:.4~g} Gop/s<extra>" + _label(roof) + "</extra>",
            )
        )
    if points:
        figure.add_trace(
            go.Scatter(
                x=intensities,
                y=[y / 1e9 for _, y in points.values()],
                mode="markers+text",
                text=list(points),
                textposition="bottom center",
                textfont={"size": 11},
                name="measured",
                marker={"size": 9, "color": COLORS[3], "line": {"width": 1, "color": "white"}},
                hovertemplate="<b>%{text}</b><br>%{x:.3~g} op/byte<br>%{y:.4~g} Gop/s<extra></extra>",
            )
        )
    figure.update_xaxes(type="log", title="operational intensity, operations per byte", dtick=1)
    figure.update_yaxes(type="log", title="speed, 10<sup>9</sup> operations per second", dtick=1)
    return styled(figure, f"Roofline of {roofline.device}", str(roofline.environment.get("processor", "")))


def _label(roof: Roof) -> str:
    threads = f", {roof.threads} thread{'s' if roof.threads > 1 else ''}" if roof.threads else ""
    return f"{roof.dtype}{threads}: {roof.peak / 1e9:.4g} Gop/s, {roof.bandwidth / 1e9:.3g} GB/s"
