"""``profile``, ``verify`` and ``convert``: what a model costs, what proves it, its weights in our layout."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchstone import files
from torchstone.cli.arguments import chatter, output
from torchstone.errors import CallError

if TYPE_CHECKING:
    from rich.table import Table

    from torchstone.instruments.profile import Profile

NOTICEABLE = 0.01
"""Share of the time from which a layer is listed that neither computes nor holds parameters."""


def add_to(app: typer.Typer) -> None:
    app.command("profile")(profile)
    app.command("verify")(verify)
    app.command("convert")(convert)


def profile(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model of ours, timm:NAME or torchvision:NAME.")],
    size: Annotated[int | None, typer.Option(help="Side of the images; the model's usual by default.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="A batch size, repeatable; 1 and 32 by default.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all that was measured as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a treemap of the layers (.html).")] = None,
) -> None:
    """Measure what a model costs: parameters, MACs, activations, latency, memory, by layer.

    \b
    Examples:
      torchstone profile inceptionnext_mini32
      torchstone profile timm:resnet18 --size 160 --batch 1 --batch 64
      torchstone profile inceptionnext_tiny --json tiny.json --plot tiny.html
    """
    if plot is not None and plot.suffix != ".html":
        raise CallError(f"the plot is a page: name it {plot.with_suffix('.html')}")

    from torchstone.instruments.profile import profile as run

    shape = None if size is None else (3, size, size)
    with chatter().status(f"measuring {model}"):
        measured = run(model, shape, device=device, dtype=dtype, batch_sizes=batch or (1, 32))
    if json is not None:
        files.write_json(json, measured.to_dict())
    if plot is not None:
        files.write_text(plot, measured.plot().to_html(include_plotlyjs=True))
    output().print(_layers(measured))
    output().print(_quantities(measured))


def _layers(measured: Profile) -> Table:
    """The layers that compute, hold parameters or take a noticeable part of the time."""
    from rich.table import Table

    from torchstone.reporting.words import si

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("layer", "type", "output", "parameters", "MACs", "time"):
        table.add_column(heading, no_wrap=True, justify="left" if heading in ("layer", "type") else "right")
    for layer in measured.layers:
        time = layer.latency_share or 0.0
        if layer.params or layer.macs or time >= NOTICEABLE:
            counts = (f"{value:.3g} {prefix}".strip() for value, prefix in map(si, (layer.params, layer.macs)))
            output_shape = "x".join(map(str, layer.output or ()))
            table.add_row(layer.path or measured.name, layer.type, output_shape, *counts, f"{time:.1%}")
    return table


def _quantities(measured: Profile) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for row in measured.summary():
        table.add_row(*row)
    return table


def verify(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A system's key, as torchstone list shows it.")],
    cases: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Recorded cases; by default those that come with the project.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file the authors released: it must load strictly.")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="The checkpoint's model; by default found by its layout.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write what was compared as JSON.")] = None,
) -> None:
    """Compare a system with recorded inputs, weights and outputs of its authors' code.

    The exit code is 1 when an output differs by more than is allowed.

    \b
    Examples:
      torchstone verify ecanet
      torchstone verify inceptionnext --checkpoint inceptionnext_tiny.pth
      torchstone verify ecanet --cases recorded/parity --json ecanet.json
    """
    from torchstone.verification import verify as run

    report = run(key, cases, checkpoint, variant=variant)
    output().print(report)
    if json is not None:
        report.write(json, command=shlex.join(["torchstone", *sys.argv[1:]]))
    if not report.ok:
        raise typer.Exit(1)


def convert(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model that the checkpoint belongs to.")],
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="The authors' file: a path or URL.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The file to write.")],
) -> None:
    """Convert a released checkpoint to safetensors in our layout, strictly: nothing missing, nothing left over.

    The file is read without running anything in it; one that holds more than tensors is refused.

    \b
    Examples:
      torchstone convert inceptionnext_tiny official.pth ours.safetensors
      torchstone predict inceptionnext_tiny@ours.safetensors photos
    """
    from torchstone.verification.convert import convert as run

    count = run(model, checkpoint, out)
    chatter().print(f"{count} tensors of {model}", markup=False)
    print(out)
