"""``bench``: an operator beside its peers, over sizes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from torchstone import files
from torchstone.cli.arguments import as_mapping, chatter, output
from torchstone.errors import CallError

if TYPE_CHECKING:
    from rich.table import Table

    from torchstone.instruments.op_bench import OpBench
    from torchstone.ops.workload import Workload

_FACTORS = {"": 1, "k": 1 << 10, "M": 1 << 20}


def add_to(app: typer.Typer) -> None:
    app.command("bench")(bench)


def bench(
    op: Annotated[
        str | None, typer.Argument(metavar="OP", help="The operator; without one, all are listed.", show_default=False)
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(help="A size, repeatable: 3000, 64k (k is 1024), 1M (M is 1024k).")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=N", help="Another size of the operands, repeatable.")
    ] = None,
    contender: Annotated[
        list[str] | None, typer.Option("--with", metavar="NAME", help="A peer, repeatable; all by default.")
    ] = None,
    backward: Annotated[bool, typer.Option("--backward", help="Time forward and backward passes.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    seconds: Annotated[float, typer.Option(min=0.01, help="How long each is timed at each size.")] = 0.5,
    limit: Annotated[
        float, typer.Option(min=0.01, help="Seconds of one call beyond which a contender is left out.")
    ] = 5.0,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all that was measured as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Write time over size as a page (.html).")] = None,
) -> None:
    """Time an operator beside its peers, over sizes, against what the device can do at most.

    \b
    Examples:
      torchstone bench
      torchstone bench long_conv
      torchstone bench long_conv --size 1k --size 16k --size 256k --set channels=16 --plot long_conv.html
      torchstone bench long_conv --backward --with attention --json long_conv.json
      torchstone bench long_conv --device cuda --dtype bfloat16
    """
    from torchstone.ops.workload import workload, workload_names

    if op is None:
        output().print(_operators([workload(name) for name in workload_names()]))
        return
    if plot is not None and plot.suffix != ".html":
        raise CallError(f"the plot is a page: name it {plot.with_suffix('.html')}")
    workload(op)

    from torchstone.instruments.op_bench import bench as run
    from torchstone.instruments.running import Conditions

    settings = as_mapping(setting or [], "--set")
    with chatter().status(f"measuring {op}") as status:
        measured = run(
            op,
            sizes=None if size is None else [_number(word, "--size") for word in size],
            settings={name: _number(word, f"--set {name}") for name, word in settings.items()},
            contenders=contender,
            conditions=Conditions(device=device, dtype=dtype),
            backward=backward,
            seconds=seconds,
            limit=limit,
            progress=status.update,
        )
    if json is not None:
        files.write_json(json, measured.to_dict())
    if plot is not None:
        from torchstone.instruments.figures import page

        files.write_text(plot, page(measured.plot()))
    output().print(_table(measured))
    output().print(_growth(measured))


def _number(word: str, option: str) -> int:
    match = re.fullmatch(r"(\d+)([kM]?)", word.strip())
    if match is None:
        raise CallError(f"{option} takes a whole number such as 3000, 64k or 1M, got {word!r}")
    return int(match[1]) * _FACTORS[match[2]]


def _operators(works: list[Workload]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("operator", "what it does", "size", "settings", "contenders"):
        table.add_column(heading, no_wrap=heading in ("operator", "size"))
    for work in works:
        settings = ", ".join(f"{name}={value}" for name, value in work.settings.items())
        table.add_row(work.op, work.summary, work.size, settings, "; ".join(work.contenders))
    return table


def _table(measured: OpBench) -> Table:
    from rich.table import Table

    from torchstone.instruments.op_bench_plot import short
    from torchstone.reporting.words import si

    table = Table(box=None, pad_edge=False, header_style="bold")
    headings = (measured.size_name, "", "time", "quartiles", f"x {measured.op}", "MACs", "of the roof", "difference")
    for index, heading in enumerate(headings):
        table.add_column(heading, no_wrap=True, justify="left" if index == 1 else "right")
    own = {timing.size: timing.time.median_ms for timing in measured.of(measured.op)}
    for timing in measured.timings:
        time, (macs, prefix) = timing.time, si(timing.macs)
        table.add_row(
            short(timing.size),
            timing.contender,
            f"{time.median_ms:.3g} ms",
            f"{time.low_ms:.3g} - {time.high_ms:.3g}",
            f"{time.median_ms / own[timing.size]:.2f}" if timing.size in own else "-",
            f"{macs:.3g} {prefix}".strip(),
            f"{timing.roof_share:.1%}",
            "-" if timing.difference is None else f"{timing.difference:.1e}",
        )
    return table


def _growth(measured: OpBench) -> Table:
    from rich.table import Table

    from torchstone.instruments.op_bench_plot import short

    table = Table(box=None, pad_edge=False, show_header=False)
    for name in measured.contenders():
        growth = measured.growth(name)
        if growth is not None:
            table.add_row(f"{name}: time grows as {measured.size_name} to the power of {growth:.2f}")
    for name, (size, reason) in measured.stopped.items():
        table.add_row(f"{name}: not run from {measured.size_name} {short(size)} on, {reason}")
    roof = measured.roof
    table.add_row(
        f"the roof, measured: {roof.peak / 1e9:.4g} G operations/s (a MAC is two) and {roof.bandwidth / 1e9:.3g} GB/s, "
        f"{roof.dtype}"
    )
    return table
