"""Pictures of profiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import plotly.graph_objects as go

from torchstone.instruments.layers import Layer

_MEASURES: dict[str, Callable[[Layer], float]] = {
    "MACs": lambda layer: layer.macs,
    "parameters": lambda layer: layer.params,
    "latency": lambda layer: layer.latency_share or 0.0,
    "activations": lambda layer: layer.activations,
}


def layer_treemap(name: str, layers: Sequence[Layer]) -> go.Figure:
    """A treemap of a network: one tile per module, inside those that contain it.

    Buttons choose what the areas stand for: MACs, parameters, latency or activations. The colour is the share of the
    latency, so that a small tile of strong colour is slow for what it computes. A click zooms in.

    Args:
        name: the network's name.
        layers: as in ``Profile.layers``.
    """
    paths = _with_parents(layers)
    own = {layer.path: layer for layer in layers}
    shares = {path: _inclusive(path, layers, _MEASURES["latency"]) for path in paths}
    measured = any(layer.latency_share is not None for layer in layers)
    measures = {title: read for title, read in _MEASURES.items() if any(read(layer) for layer in layers)}
    values = {title: [read(own[path]) if path in own else 0 for path in paths] for title, read in measures.items()}
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
                "colors": [100 * shares[path] if path else 0 for path in paths] if measured else None,
                "colorscale": "YlOrRd",
                "cmin": 0,
                "cmax": max((100 * shares[path] for path in paths if path and path in own), default=1),
                "colorbar": {"title": {"text": "% of latency"}, "thickness": 12},
                "showscale": measured,
                "line": {"width": 1, "color": "white"},
            },
            customdata=[_row(path, own.get(path), layers) for path in paths],
            hovertemplate=(
                "<b>%{customdata[0]}</b> %{customdata[1]}<br>output %{customdata[2]}<br>"
                "MACs %{customdata[3]:.3s}, parameters %{customdata[4]:.3s}, activations %{customdata[5]:.3s}<br>"
                "latency %{customdata[6]}<extra></extra>"
            ),
            textfont={"size": 13},
            texttemplate="%{label}<br>%{percentRoot:.1%}",
            maxdepth=4,
        )
    )
    buttons = [{"label": title, "method": "restyle", "args": [{"values": [values[title]]}]} for title in values]
    figure.update_layout(
        title={"text": f"{name}: areas by", "x": 0.02, "y": 0.98, "yanchor": "top"},
        margin={"t": 56, "l": 8, "r": 8, "b": 8},
        uniformtext={"minsize": 9, "mode": "hide"},
        updatemenus=[
            {
                "type": "buttons",
                "direction": "right",
                "buttons": buttons,
                "x": 1,
                "xanchor": "right",
                "y": 1.02,
                "yanchor": "bottom",
                "showactive": True,
            }
        ],
    )
    return figure


def _with_parents(layers: Sequence[Layer]) -> list[str]:
    """The layers' paths in order, with the containers that have no row themselves."""
    paths: dict[str, None] = {"": None}
    for layer in layers:
        parts = layer.path.split(".") if layer.path else []
        for depth in range(1, len(parts) + 1):
            paths[".".join(parts[:depth])] = None
    return list(paths)


def _inclusive(path: str, layers: Sequence[Layer], read: Callable[[Layer], float]) -> float:
    """What a module and all inside it take together."""
    inside = f"{path}." if path else ""
    return sum(read(layer) for layer in layers if layer.path == path or layer.path.startswith(inside))


def _row(path: str, layer: Layer | None, layers: Sequence[Layer]) -> list[object]:
    output = "x".join(map(str, layer.output)) if layer and layer.output else "-"
    totals = {title: _inclusive(path, layers, read) for title, read in _MEASURES.items()}
    return [
        path or "network",
        layer.type if layer else "",
        output,
        totals["MACs"],
        totals["parameters"],
        totals["activations"],
        f"{totals['latency']:.1%}",
    ]
