"""``probe``: what a network's frozen features are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchstone import files
from torchstone.cli.arguments import output


def add_to(app: typer.Typer) -> None:
    app.command("probe")(probe)


def probe(
    models: Annotated[
        list[str],
        typer.Argument(metavar="RUN_OR_MODEL", help="Runs, MODEL@pretrained, MODEL@FILE, or MODEL, untrained."),
    ],
    data: Annotated[
        str | None, typer.Option(help="digits, cifar10, a folder tree or Parquet; by default the first run's data.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Side of the images in pixels; by default the first run's.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only so many training images.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 128,
    workers: Annotated[int, typer.Option(help="Loader processes; changes no result.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results as JSON.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the table alone.")] = False,
) -> None:
    """Probe frozen features: a linear classifier and nearest neighbours on a network that is not trained further.

    Their one setting each is chosen on validation data; test data are read once.
    Give a model without weights as well to see what the untrained network does.

    \b
    Examples:
      torchstone probe runs/spark_cifar10
      torchstone probe runs/spark_cifar10 ecanet_mini32 --data cifar10 --limit 5000
      torchstone probe timm:resnet18@pretrained --data photos --json probe.json
    """
    from rich.table import Table

    from torchstone.cli import progress
    from torchstone.reporting import words
    from torchstone.training.probing import probe as run

    with progress.probing(quiet) as tell:
        found = run(
            models,
            data,
            size=size,
            limit=limit,
            batch_size=batch_size,
            workers=workers,
            device=device,
            progress=tell,
        )
    if json is not None:
        files.write_json(json, found.to_dict())
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("network", "weights"):
        table.add_column(heading, no_wrap=heading == "network")
    for heading in ("features", "linear", "95 %", "penalty", "k-NN", "95 %", "k"):
        table.add_column(heading, justify="right")
    for one in found.probes:
        cells = []
        for score in (one.linear, one.knn):
            cells += [
                words.score(score.test_accuracy, "accuracy"),
                words.span(score.low, score.high, "accuracy"),
                f"{score.setting:g}",
            ]
        table.add_row(one.name, one.start, str(one.features), *cells)
    output().print(table)
