"""The figure of Tune mode, from the result files, as a page that a browser photographs.

python benchmarks/figure_tune_mode.py OUT.html
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

RESULTS = Path(__file__).parent / "results"
MODES = ("train", "eval", "tune", "deploy")
COLOURS = {"train": "#8d99ae", "eval": "#4c72b0", "tune": "#d9622b", "deploy": "#555555"}
COSTS = {
    "seconds": "time of a step",
    "bytes kept for the backward pass": "kept for the backward pass",
    "peak memory of a step, bytes": "peak memory",
}


def main() -> None:
    speed = json.loads((RESULTS / "speed" / "tune_mode.json").read_text())
    claim = json.loads((RESULTS / "claims" / "tune_mode.json").read_text())
    Path(sys.argv[1]).write_text(
        figure(speed["results"], claim["results"]).to_html(include_plotlyjs=True, config={"displayModeBar": False})
    )


def figure(speed: dict[str, Any], claim: dict[str, Any]) -> go.Figure:
    """Cost of each mode as a share of Eval mode's, one panel per network, and how fine-tuning ends."""
    networks = list(speed["networks"])
    stability = claim["deploy is unstable"]
    titles = [*(name.rpartition(":")[2] for name in networks), "fine-tuning with small c"]
    shown = make_subplots(rows=1, cols=len(titles), subplot_titles=titles, horizontal_spacing=0.07)
    for column, name in enumerate(networks, 1):
        measured = speed["networks"][name]
        for mode in MODES:
            bars = [_median(measured[mode]["as a multiple of eval"][cost]) for cost in COSTS]
            shown.add_bar(
                x=list(COSTS.values()),
                y=bars,
                name=f"{mode.capitalize()} mode",
                marker_color=COLOURS[mode],
                legendgroup=mode,
                showlegend=column == 1,
                text=[f"{value:.2f}" for value in bars],
                textfont_size=10,
                row=1,
                col=column,
            )
        shown.update_yaxes(
            title_text="relative to Eval mode" if column == 1 else "", range=[0, 1.35], row=1, col=column
        )
    rates = [key for key in stability if key.startswith("learning rate")]
    for mode in ("eval", "tune", "deploy"):
        shown.add_bar(
            x=[rate.removeprefix("learning ") for rate in rates],
            y=[stability[rate][mode]["runs that diverged"] for rate in rates],
            marker_color=COLOURS[mode],
            legendgroup=mode,
            showlegend=False,
            row=1,
            col=len(titles),
        )
    seeds = len(stability[rates[0]]["loss before, by seed"])
    shown.update_yaxes(
        title_text=f"runs of {seeds} that diverged", dtick=1, range=[0, seeds + 0.2], row=1, col=len(titles)
    )
    shown.update_layout(
        template="plotly_white",
        barmode="group",
        width=1240,
        height=420,
        margin={"l": 60, "r": 20, "t": 50, "b": 60},
        legend={"orientation": "h", "y": -0.16, "x": 0.5, "xanchor": "center"},
        font_family="system-ui, sans-serif",
    )
    return shown


def _median(measured: float | dict[str, float]) -> float:
    return measured["median"] if isinstance(measured, dict) else measured


if __name__ == "__main__":
    main()
