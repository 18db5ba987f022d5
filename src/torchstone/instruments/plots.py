"""Pictures of profiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import plotly.graph_objects as go

from torchstone.instruments.layers import Layer

_MEASURES: dict[str, Callable[[Layer], float]] = {
    "MACs": lambda layer: layer.macs,
    "parameters": lambda layer: layer.params,
    "latency": lambda layer: layer.latency_share or 0.0,
    "activations": lambda layer: layer.activations,
}
_EXTREME = 8.0
"""Times the network's average from which on the colour stays the same."""


def layer_treemap(name: str, layers: Sequence[Layer]) -> go.Figure:
    """A treemap of a network: one tile per module, inside those that contain it; a click zooms in.

    Buttons choose what the areas stand for: MACs, parameters, latency or activations. The colour is the time per MAC
    against the whole network's: red modules are slow for what they compute, blue ones fast, grey ones compute nothing.

    Args:
        name: the network's name.
        layers: as in ``Profile.layers``.
    """
    paths = _with_parents(layers)
    own = {layer.path: layer for layer in layers}
    measures = {title: read for title, read in _MEASURES.items() if any(read(layer) for layer in layers)}
    values = {title: [read(own[path]) if path in own else 0 for path in paths] for title, read in measures.items()}
    totals = {title: _inclusive(paths, values[title]) if title in values else [0] * len(paths) for title in _MEASURES}
    slowness = [_slowness(*pair, totals["MACs"][0]) for pair in zip(totals["latency"], totals["MACs"], strict=True)]
    first = next(iter(values))
    figure = go.Figure(
        go.Treemap(
            ids=[path or "/" for path in paths],
            labels=[path.rpartition(".")[2] or name for path in paths],
            parents=["" if not path else path.rpartition(".")[0] or "/" for path in paths],
            values=values[first],
            branchvalues="remainder",
            sort=False,
            tiling={"packing": "squarify", "squarifyratio": 1.3, "pad": 1},
            marker={
                "colors": [_color(value) for value in slowness],
                "line": {"width": 0.5, "color": "white"},
                "pad": {"t": 17, "l": 2, "r": 2, "b": 2},
            },
            customdata=[
                [
                    path or name,
                    own[path].type if path in own else "",
                    "x".join(map(str, own[path].output or "-")) if path in own else "-",
                    *(totals[title][index] for title in ("MACs", "parameters", "activations")),
                    f"{totals['latency'][index]:.1%}",
                    "" if slowness[index] is None else f"{slowness[index]:.2g}x the network's time per MAC",
                ]
                for index, path in enumerate(paths)
            ],
            hovertemplate=(
                "<b>%{customdata[0]}</b> %{customdata[1]}<br>output %{customdata[2]}<br>"
                "MACs %{customdata[3]:.3s}, parameters %{customdata[4]:.3s}, activations %{customdata[5]:.3s}<br>"
                "latency %{customdata[6]}<br>%{customdata[7]}<extra></extra>"
            ),
            texttemplate="%{label} %{percentRoot:.1%}",
            textfont={"size": 12},
            pathbar={"visible": True, "thickness": 20},
        )
    )
    figure.add_trace(_color_scale())
    figure.update_layout(
        title={"text": name, "x": 0, "y": 1, "yanchor": "top", "pad": {"t": 12, "l": 10}, "font": {"size": 18}},
        margin={"t": 84, "l": 8, "r": 8, "b": 8},
        uniformtext={"minsize": 9, "mode": "hide"},
        xaxis={"visible": False, "fixedrange": True},
        yaxis={"visible": False, "fixedrange": True},
        dragmode=False,
        plot_bgcolor="rgba(0,0,0,0)",
        updatemenus=[
            {
                "type": "buttons",
                "direction": "right",
                "buttons": [
                    {"label": f"area: {title}", "method": "restyle", "args": [{"values": [values[title]]}, [0]]}
                    for title in values
                ],
                "x": 0,
                "xanchor": "left",
                "y": 1.01,
                "yanchor": "bottom",
                "pad": {"b": 2},
                "font": {"size": 11},
            }
        ],
    )
    return figure


def _with_parents(layers: Sequence[Layer]) -> list[str]:
    """The layers' paths in order, the root first, with the containers that have no row themselves."""
    paths: dict[str, None] = {"": None}
    for layer in layers:
        parts = layer.path.split(".") if layer.path else []
        for depth in range(1, len(parts) + 1):
            paths[".".join(parts[:depth])] = None
    return list(paths)


def _inclusive(paths: Sequence[str], own: Sequence[float]) -> list[float]:
    """What each module and all inside it take together."""
    totals = dict.fromkeys(paths, 0.0)
    for path, value in zip(paths, own, strict=True):
        ancestor = path
        totals[""] += value
        while ancestor:
            totals[ancestor] += value
            ancestor = ancestor.rpartition(".")[0]
    return list(totals.values())


def _slowness(latency_share: float, macs: float, all_macs: float) -> float | None:
    """Time per MAC over the network's time per MAC; None without either."""
    return latency_share / (macs / all_macs) if macs and latency_share else None


_FAST, _AVERAGE, _SLOW, _NEITHER = (69, 117, 180), (255, 250, 225), (215, 72, 48), "rgb(215,215,215)"


def _color(slowness: float | None) -> str:
    if slowness is None:
        return _NEITHER
    position = max(-1.0, min(1.0, math.log(slowness) / math.log(_EXTREME)))
    end = _SLOW if position > 0 else _FAST
    return f"rgb({','.join(str(round(a + abs(position) * (b - a))) for a, b in zip(_AVERAGE, end, strict=True))})"


def _color_scale() -> go.Scatter:
    """Nothing but the legend of the colours."""
    ticks = [1 / _EXTREME, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, _EXTREME]
    return go.Scatter(
        x=[None],
        y=[None],
        mode="markers",
        hoverinfo="skip",
        showlegend=False,
        marker={
            "color": [0],
            "cmin": -1,
            "cmax": 1,
            "colorscale": [[(i + 4) / 8, _color(_EXTREME ** (i / 4))] for i in range(-4, 5)],
            "showscale": True,
            "colorbar": {
                "title": {"text": "time per MAC, the network's being 1x", "side": "right", "font": {"size": 11}},
                "thickness": 12,
                "tickvals": [math.log(tick) / math.log(_EXTREME) for tick in ticks],
                "ticktext": [f"{tick:.3g}x" for tick in ticks],
            },
        },
    )
