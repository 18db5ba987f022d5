"""``profile``, ``verify`` and ``convert``: what a model costs, that it is the real thing, its weights in our layout."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from torchstone.cli.arguments import chatter, output


def add_to(app: typer.Typer) -> None:
    app.command("verify")(verify)
    app.command("convert")(convert)


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
