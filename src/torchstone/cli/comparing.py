"""``compare``: the main job."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchstone.cli.arguments import ManyValues, as_mapping, chatter, output

if TYPE_CHECKING:
    from rich.table import Table

    from torchstone.reporting.results import Comparison


def add_to(app: typer.Typer) -> None:
    app.command("compare", cls=ManyValues)(compare)


def _data(words: str) -> Any:
    return typer.Option(help=words, rich_help_panel="Data")


def _training(words: str) -> Any:
    return typer.Option(help=words, rich_help_panel="Training")


def compare(
    data: Annotated[
        str,
        typer.Option(help="digits, cifar10, sequential-digits, cora, ..., a folder tree, Parquet or a graph (.npz)."),
    ],
    models: Annotated[list[str], typer.Option(help="Candidates; several after one flag, globs in quotes.")],
    out: Annotated[Path, typer.Option(help="Folder of the comparison.")],
    limits: Annotated[
        list[str] | None,
        typer.Option(
            "--max",
            metavar="COST=VALUE",
            help="List candidates that cost more without training them: "
            "latency=5ms (batch 1), params=2M, macs=100M, memory=200MB.",
        ),
    ] = None,
    seeds: Annotated[int, _training("Runs of each candidate.")] = 3,
    epochs: Annotated[int | None, _training("Epochs of a run; by default as many as give 10 and 300 steps.")] = None,
    pretrain_epochs: Annotated[
        int | None, _training("Epochs that a method (method+model) gets before that; by default as many.")
    ] = None,
    tune: Annotated[int, _training("Learning-rate trials of each candidate, judged on validation data.")] = 1,
    start: Annotated[str, _training("Start of candidates without @weights: scratch or pretrained.")] = "scratch",
    batch_size: Annotated[int, _training("Samples per training step.")] = 128,
    device: Annotated[str, _training("auto, cpu, cuda, cuda:N or mps.")] = "auto",
    size: Annotated[int | None, _data("Side of the images in pixels; by default what suits the data.")] = None,
    augment: Annotated[str, _data("auto, none, light, flip, standard or a RandAugment string.")] = "auto",
    limit: Annotated[int | None, _data("Use only so many training images.")] = None,
    split_seed: Annotated[int, _data("Seed of splits that the data do not bring.")] = 0,
    val_fraction: Annotated[float, _data("Part of the training images for such a validation split.")] = 0.1,
    test_fraction: Annotated[float, _data("Part of the images for such a test split.")] = 0.2,
    workers: Annotated[int, _data("Loader processes; changes no result.")] = 0,
    split: Annotated[
        str,
        _data("Of nodes: public, fixed:K, per-class, per-class-30 or random; of graphs: public, fold:K or random."),
    ] = "auto",
    task: Annotated[str, _data("What the data are for; by default what they are.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the report's path alone.")] = False,
) -> None:
    """Compare models on your data: scores with intervals, costs, a report.

    A candidate is written \\[method+]model\\[@weights]\\[+transform\\[:key=value]...].
    The model is one of ours (torchstone list), timm:NAME, torchvision:NAME,
    pyg:NAME (gcn, gat, sage, gin, appnp) or torch:NAME (transformer, lstm,
    gru), and may be a glob.
    Weights are pretrained, a file, a run directory or a URL.
    A method trains the model on the same training data, without labels,
    before it is trained as the others are; its time counts.

    Stop it whenever you like: the same command goes on where it stopped.
    With more models, seeds or trials it trains only what is new.

    \b
    Examples:
      torchstone compare --data digits --out report \\
          --models inceptionnext_mini32 timm:test_resnet
      torchstone compare --data photos --out report --models "*_mini32" \\
          --tune 3 --max latency=5ms --max params=2M
      torchstone compare --data photos --out report --size 224 --device cuda \\
          --models timm:resnet18 timm:resnet18@pretrained
      torchstone compare --data cora.npz --out report --models dagnn gcn gat
    """
    from torchstone.cli import progress
    from torchstone.reporting.compare import compare as run
    from torchstone.reporting.summary import summary

    try:
        with progress.comparison(quiet) as tell:
            comparison = run(
                data,
                models,
                out=out,
                tune=tune,
                epochs=epochs,
                pretrain_epochs=pretrain_epochs,
                seeds=seeds,
                start=start,
                limits=as_mapping(limits or [], "--max"),
                device=device,
                batch_size=batch_size,
                size=size,
                workers=workers,
                augment=augment,
                split_seed=split_seed,
                val_fraction=val_fraction,
                test_fraction=test_fraction,
                limit=limit,
                split=split,
                task=task,
                progress=tell,
            )
    except KeyboardInterrupt:
        say_how_to_resume()
        raise typer.Exit(130) from None
    if not quiet:
        output().print(_table(comparison))
        for sentence in summary(comparison):
            output().print(sentence, markup=False)
    print(out / "report.html")
    if all(candidate.status == "failed" for candidate in comparison.candidates):
        chatter().print("[bold red]error:[/] every candidate failed")
        raise typer.Exit(1)


def say_how_to_resume() -> None:
    """After Ctrl-C: what was finished is kept."""
    command = shlex.join(["torchstone", *sys.argv[1:]])
    chatter().print(f"interrupted; the same command goes on where it stopped:\n  {command}", markup=False)


def _table(comparison: Comparison) -> Table:
    """The candidates, best first within each start."""
    from rich.table import Table

    from torchstone.reporting import words
    from torchstone.reporting.costs import AXES
    from torchstone.reporting.results import STARTS

    shown = [AXES[key] for key in ("params", "macs", "latency_ms_1", "memory_mb", "train_seconds")]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("candidate", no_wrap=True)
    for heading in (comparison.metric, "interval", *(axis.label.lower() for axis in shown)):
        table.add_column(heading, justify="right")
    table.add_column("")
    ranked = [candidate for start in STARTS for candidate in comparison.ranked(start)]
    for candidate in [*ranked, *(other for other in comparison.candidates if not other.trained)]:
        table.add_row(
            candidate.name,
            words.score(candidate.score, comparison.metric),
            words.span(candidate.low, candidate.high, comparison.metric),
            *(words.cost(axis, candidate.cost_on(axis.key)) for axis in shown),
            candidate.start if candidate.trained else f"{candidate.status}: {candidate.reason}",
        )
    return table
