"""``train``, ``recipes`` and ``predict``."""

from __future__ import annotations

import io
from csv import writer as csv_writer
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchstone import files
from torchstone.cli.arguments import chatter, output
from torchstone.errors import CallError

if TYPE_CHECKING:
    from torchstone.training.predict import Prediction


def add_to(app: typer.Typer) -> None:
    app.command("train")(train)
    app.command("recipes")(recipes)
    app.command("predict")(predict)


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A name (torchstone recipes) or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys of the recipe to change.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/RECIPE by default.", show_default=False)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    devices: Annotated[int | None, typer.Option(help="Processes on this machine that share the run.")] = None,
    strategy: Annotated[str, typer.Option(help="How processes share the run: auto, ddp or fsdp.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the run directory alone.")] = False,
) -> None:
    """Train a recipe.

    The same command goes on where it was interrupted, to the same weights.
    A directory with another run in it is refused. The batch size of a recipe is
    that of all processes together.

    \b
    Examples:
      torchstone train ecanet_digits
      torchstone train ecanet_digits train.epochs=3 train.lr=1e-3 --out runs/short
      torchrun --nproc-per-node 4 -m torchstone train mine.yaml --out runs/four
    """
    from torchstone.cli import progress
    from torchstone.cli.comparing import say_how_to_resume
    from torchstone.reporting import words
    from torchstone.training.devices import Processes
    from torchstone.training.fit import fit
    from torchstone.training.recipe import load_recipe

    resolved = load_recipe(recipe, overrides or [])
    first = Processes.detect(devices).first
    folder = out or Path("runs") / Path(recipe).stem
    try:
        with progress.training(quiet or not first) as tell:
            run = fit(resolved, folder, device=device, devices=devices, strategy=strategy, progress=tell)
    except KeyboardInterrupt:
        say_how_to_resume()
        raise typer.Exit(130) from None
    if not first:
        return
    if not quiet:
        how = f"trained in {words.duration(run.seconds)}" if run.trained else "found finished"
        chatter().print(f"validation {run.metric} {words.score(run.score, run.metric)}, {how}", markup=False)
        for line in run.unmet:
            chatter().print(f"not as expected: {line}", style="yellow", markup=False)
    print(run.path)


def recipes(
    to: Annotated[Path, typer.Argument(metavar="TO", help="With --copy: the file or folder to copy to.")] = Path("."),
    copy: Annotated[str | None, typer.Option(metavar="NAME", help="Copy this recipe, to edit it.")] = None,
) -> None:
    """List the recipes that come with the package, or copy one.

    \b
    Examples:
      torchstone recipes
      torchstone recipes --copy ecanet_digits
      torchstone recipes --copy ecanet_digits mine.yaml
    """
    from torchstone.training.recipe import copy_recipe, recipe_names

    if copy is not None:
        print(copy_recipe(copy, to))
        return
    if to != Path("."):
        raise CallError(f"{to} is where a recipe would be copied to; which one? torchstone recipes --copy NAME {to}")

    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("recipe", no_wrap=True)
    table.add_column("about")
    for name, about in recipe_names().items():
        table.add_row(name, escape(about))  # [a, b] is no markup
    output().print(table)


def predict(
    model: Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="A run, MODEL@pretrained or MODEL@FILE.")],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Images, and folders of images; or graphs.")],
    top: Annotated[int, typer.Option(help="Classes to name for each image.")] = 1,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the predictions as CSV.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the predictions as JSON.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors alone; needs --csv or --json.")] = False,
) -> None:
    """Classify images (whole, or as sequences where the run was trained on them) or, with a run on a graph, its nodes.

    With a run on whole graphs, say of each graph its class or its numbers.

    An image that cannot be read is named with the reason, and the others go on.
    The exit code is 1 when none could be read.

    \b
    Examples:
      torchstone predict runs/ecanet_digits scan.png
      torchstone predict runs/ecanet_digits photos --csv predictions.csv
      torchstone predict inceptionnext_tiny@pretrained photos --top 5 --json top.json
      torchstone predict runs/dagnn_cora cora.npz --csv nodes.csv
      torchstone predict runs/mutag molecules.npz --csv classes.csv
    """
    from torchstone.cli import progress
    from torchstone.training.predict import predict as run

    if quiet and csv is None and json is None:
        raise CallError("--quiet without --csv or --json would leave no trace of the predictions")
    with progress.images(quiet) as tell:
        predictions = run(model, paths, device=device, batch_size=batch_size, top=top, progress=tell)
    if csv is not None:
        files.write_text(csv, _as_csv(predictions))
    if json is not None:
        files.write_json(json, [{**asdict(one), "path": str(one.path)} for one in predictions])
    for one in predictions:
        if one.error:
            chatter().print(one.error, style="red", markup=False)
        elif not quiet:
            what = ", ".join([str(one.path), *(f"{part} {getattr(one, part)}" for part in _parts([one]))])
            said = [f"{label} {100 * probability:.1f} %" for label, probability in one.top]
            print(what, *(said or [f"{value:.4g}" for value in one.values]), sep="\t")
    if all(one.error for one in predictions):
        raise typer.Exit(1)


def _parts(predictions: list[Prediction]) -> list[str]:
    """What says which part of a path a prediction is of: nothing for images."""
    return [part for part in ("node", "graph") if any(getattr(one, part) is not None for one in predictions)]


def _as_csv(predictions: list[Prediction]) -> str:
    """One row per image, node or graph; the classes after the first as further columns, numbers a column each."""
    file = io.StringIO()
    writer = csv_writer(file, lineterminator="\n")
    parts = _parts(predictions)
    numbers = max(len(one.values) for one in predictions)
    if numbers:
        writer.writerow(["path", *parts, *(f"value_{index}" for index in range(1, numbers + 1))])
        writer.writerows([one.path, *(getattr(one, part) for part in parts), *one.values] for one in predictions)
        return file.getvalue()
    width = max(len(one.top) for one in predictions)
    more = [f"{column}_{rank}" for rank in range(2, width + 1) for column in ("label", "probability")]
    writer.writerow(["path", *parts, "label", "probability", *more, "error"])
    for one in predictions:
        classes = [value for pair in one.top for value in pair]
        which = [one.path, *(getattr(one, part) for part in parts)]
        writer.writerow([*which, *classes, *[""] * (2 * width - len(classes)), one.error])
    return file.getvalue()
