"""``transform`` and ``export``: a model made into another, and a model outside Python."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchstone.cli.arguments import chatter, output

if TYPE_CHECKING:
    from torchstone.transforms import Report


def add_to(app: typer.Typer) -> None:
    app.command("transform")(transform)
    app.command("export")(export)


def transform(
    model: Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="A run, a transformed model, MODEL[@WEIGHTS].")],
    transforms: Annotated[list[str], typer.Argument(metavar="TRANSFORM[:KEY=VALUE]...", help="In this order.")],
    out: Annotated[Path, typer.Option(help="Folder of the transformed model; it must be new.")],
    data: Annotated[str | None, typer.Option(help="With a model: the data that it is built for.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the images; by default the model's usual.")] = None,
    device: Annotated[str, typer.Option(help="Where a transform trains: auto, cpu, cuda, cuda:N or mps.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the folder alone.")] = False,
) -> None:
    """Transform a model and say what changed, what that predicts and what was measured.

    The folder holds no code and loads in any process; predict, export
    and transform take it like a run.

    \b
    Examples:
      torchstone transform runs/ecanet_digits tune_mode:freeze=true --out tuned
      torchstone transform timm:resnet18@pretrained tune_mode:mode=deploy --out deployed
      torchstone predict tuned scan.png
    """
    from torchstone.reporting.candidates import parse_transform
    from torchstone.training.model_folders import transform_model
    from torchstone.training.recipe import TransformSpec

    steps = [parse_transform(text) for text in transforms]
    with chatter().status(f"transforming {model}"):
        reports = transform_model(
            model,
            [TransformSpec(step.name, dict(step.options)) for step in steps],
            out,
            data=data,
            size=size,
            device=device,
        )
    if not quiet:
        for text, report in zip(transforms, reports, strict=True):
            _show(text, report)
    print(out)


def _show(text: str, report: Report) -> None:
    """A report on the terminal."""
    from rich.table import Table

    console = output()
    console.print(text, style="bold", markup=False)
    for line in report.changed:
        console.print(f"  {line}", markup=False)
    table = Table(box=None, pad_edge=True, show_header=False)
    for kind, values in (("predicted", report.predicted), ("measured", report.measured)):
        for name, value in values.items():
            table.add_row(kind, name, f"{value:,}" if isinstance(value, int) else f"{value:.3g}")
    console.print(table)
    for line in report.kept:
        console.print(f"  left: {line}", markup=False)


def export(
    model: Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="A run, a transformed model, MODEL[@WEIGHTS].")],
    out: Annotated[Path, typer.Argument(metavar="FILE", help="model.onnx, or model.pt2 for torch.export.")],
    batch: Annotated[int | None, typer.Option(help="A fixed batch size; any by default.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the images; by default the model's usual.")] = None,
    deploy: Annotated[bool, typer.Option(help="Export the deploy form, where the model has one.")] = True,
) -> None:
    """Export a model to ONNX or torch.export, and compare the file's answers with the model's.

    \b
    Examples:
      torchstone export runs/ecanet_digits ecanet.onnx
      torchstone export timm:resnet18@pretrained resnet18.pt2 --batch 8
    """
    from torchstone.training.model_folders import export as run

    with chatter().status(f"exporting {model}"):
        written = run(model, out, size=size, batch=batch, deploy=deploy)
    form = "the deploy form" if written.deploy else "the model as it is"
    sizes = f"batch {written.batch}" if written.batch else "any batch"
    console = chatter()
    console.print(f"{written.format}, {form}, {sizes}", markup=False)
    console.print(
        f"largest difference from the eager model {written.difference:.2g} (largest output {written.scale:.3g}, "
        f"batches of {' and '.join(map(str, written.checked))})",
        markup=False,
    )
    print(written.path)
