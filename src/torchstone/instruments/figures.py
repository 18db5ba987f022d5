"""How the pictures of instruments look: a palette that prints well, pages that follow the reader's light or dark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLORS = ("#1d6fc4", "#d1600a", "#1f9268", "#b8559a", "#b58a00", "#5a6b7d")
"""Distinct in print, on white and on black, and for the colour-blind."""
WATER = "rgba(46,134,222,0.28)"
WATER_LINE = "#2e86de"

_LIGHT = {"ink": "#1e2229", "muted": "#5d6571", "grid": "#dfdcd3", "paper": "#ffffff"}
_DARK = {"ink": "#e9e7e1", "muted": "#a2a8b3", "grid": "#31363f", "paper": "#15181d"}


def styled(figure: Figure, title: str, subtitle: str = "", *, dark: bool = False) -> Figure:
    """Give a figure its title and the common look.

    Args:
        figure: changed in place.
        title: what it shows, in a few words.
        subtitle: under which conditions, in a line.
        dark: for a dark ground; pages of :func:`page` switch by themselves.
    """
    text = title + (f"<br><span style='font-size:12px'>{subtitle}</span>" if subtitle else "")
    figure.update_layout(
        title={"text": text, "x": 0, "xref": "container", "pad": {"l": 16}, "font": {"size": 18}},
        font={"family": "Inter, Helvetica, Arial, sans-serif", "size": 13},
        colorway=COLORS,
        margin={"t": 84, "l": 70, "r": 24, "b": 64},
        legend={"orientation": "h", "x": 0, "y": -0.14, "yanchor": "top"},
        hovermode="closest",
        **_theme(figure, _DARK if dark else _LIGHT, nested=True),
    )
    figure.update_xaxes(ticks="outside", ticklen=4, title_font_size=13, title_standoff=8)
    figure.update_yaxes(ticks="outside", ticklen=4, title_font_size=13, title_standoff=8)
    figure.update_annotations(font_size=13)
    return figure


def page(figure: Figure) -> str:
    """One self-contained page: plotly inside, no network; light or dark as the reader's system, light when printed."""
    themes = json.dumps({"light": _theme(figure, _LIGHT), "dark": _theme(figure, _DARK)})
    follow = f"""
const themes = {themes}, plot = document.getElementById('{{plot_id}}');
const dark = matchMedia('(prefers-color-scheme: dark)');
const paint = name => Plotly.relayout(plot, themes[name]);
const follow = () => paint(dark.matches ? 'dark' : 'light');
dark.addEventListener('change', follow);
addEventListener('beforeprint', () => paint('light'));
addEventListener('afterprint', follow);
follow();
"""
    body = figure.to_html(
        include_plotlyjs=True,
        full_html=False,
        post_script=follow,
        default_height="100%",
        config={"responsive": True, "displaylogo": False, "toImageButtonOptions": {"format": "svg"}},
    )
    title = figure.layout.title.text or "torchstone"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title.split('<br>')[0]}</title>"
        "<style>:root{color-scheme:light dark}html,body,body>div{height:100%}body{margin:0;background:#fff}"
        "@media screen and (prefers-color-scheme:dark){body{background:#15181d}}</style>"
        f"</head><body>{body}</body></html>"
    )


def _theme(figure: Figure, colors: dict[str, str], *, nested: bool = False) -> dict[str, Any]:
    """The colours of a ground, as layout attributes."""
    attributes: dict[str, Any] = {
        "paper_bgcolor": colors["paper"],
        "plot_bgcolor": colors["paper"],
        "font.color": colors["ink"],
    }
    for axis in _axes(figure):
        for part in ("gridcolor", "linecolor", "tickcolor", "zerolinecolor"):
            attributes[f"{axis}.{part}"] = colors["grid"]
    return {name.replace(".", "_"): value for name, value in attributes.items()} if nested else attributes


def _axes(figure: Figure) -> Sequence[str]:
    layout = figure.to_plotly_json()["layout"]
    return sorted({"xaxis", "yaxis", *(name for name in layout if name[:5] in ("xaxis", "yaxis"))})
