"""``inspect``: findings about networks, each an instrument of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from torchstone import files
from torchstone.cli.arguments import chatter, output
from torchstone.errors import CallError, unknown_name

if TYPE_CHECKING:
    from torchstone.instruments.conv_efficiency import Waterline

SHOWN = 40
"""Rows of a table of kernels; the JSON has all."""

Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all that was found as JSON.")]
Plot = Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Write the picture (.html).")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")]
Threads = Annotated[int | None, typer.Option(help="Threads of the CPU; all that PyTorch takes by default.")]
Seconds = Annotated[float, typer.Option(help="About how long each quantity is measured.")]


class _Instruments(TyperGroup):
    """A name that no instrument has is an error with a suggestion."""

    def get_command(self, ctx: Any, name: str) -> Any:
        command = super().get_command(ctx, name)
        if command is None:
            raise unknown_name("instrument", name, self.list_commands(ctx))
        return command


instruments = typer.Typer(cls=_Instruments, invoke_without_command=True, rich_markup_mode="rich")


def add_to(app: typer.Typer) -> None:
    app.add_typer(instruments, name="inspect")


@instruments.callback()
def inspect(ctx: typer.Context) -> None:
    """Find out about a network: what limits its speed, what its layers move, what the device can do.

    Without a name the instruments are listed.

    \b
    Examples:
      torchstone inspect
      torchstone inspect waterline timm:convnext_tiny --batch 4 --plot waterline.html
      torchstone inspect efficiency-gap convfirst_mini32 convnext_mini32
    """
    if ctx.invoked_subcommand is not None:
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("instrument", no_wrap=True)
    table.add_column("what it finds")
    group = ctx.command
    assert isinstance(group, _Instruments)
    for name in group.list_commands(ctx):
        table.add_row(name, group.get_command(ctx, name).get_short_help_str(120))
    output().print(table)


@instruments.command("waterline")
def waterline(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model of ours, timm:NAME or torchvision:NAME.")],
    size: Annotated[int | None, typer.Option(help="Side of the images; the model's usual by default.")] = None,
    batch: Annotated[int, typer.Option(help="Images per pass.")] = 8,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    block: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Modules that are one kernel each, repeatable; residual blocks if absent."
        ),
    ] = None,
    peak: Annotated[
        float | None, typer.Option(metavar="OPS", help="Predict another device: its operations per second, ...")
    ] = None,
    bandwidth: Annotated[float | None, typer.Option(metavar="BYTES", help="... and its bytes per second.")] = None,
    seconds: Seconds = 2.0,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Which layers wait for memory, how fast they could be and are, and what fusing them would give.

    \b
    Examples:
      torchstone inspect waterline convfirst_mini32
      torchstone inspect waterline timm:resnet50 --batch 4 --json resnet50.json --plot resnet50.html
      torchstone inspect waterline timm:convnext_tiny --block "stages.*.blocks.*"
      torchstone inspect waterline convfirst_tiny --batch 128 --dtype float16 --peak 111e12 --bandwidth 768e9
    """
    _check_plot(plot)
    roof = _stated_roof(dtype, peak, bandwidth)
    from torchstone.instruments.conv_efficiency import waterline as run
    from torchstone.instruments.profile import usual_input_shape

    shape = usual_input_shape(model) if size is None else (usual_input_shape(model)[0], size, size)
    with chatter().status(f"measuring {model}"):
        found = run(
            model,
            shape,
            batch_size=batch,
            device=device,
            dtype=dtype,
            threads=threads,
            blocks=block or None,
            roof=roof,
            seconds=seconds,
        )
    _print_kernels(found)
    _print_rows(found.summary())
    _write(found, json, plot)


def _print_kernels(found: Waterline) -> None:
    """The kernels that take the most time, in the order in which they run."""
    from rich.table import Table

    bars = found.levels["layers"]
    taken = sorted(bars, key=lambda bar: -(bar.measured_ms or bar.attainable_ms))[:SHOWN]
    chosen = {id(bar) for bar in taken}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("layer", "Mop", "MB", "op/byte", "bound by", "attainable ms", "measured ms", "efficiency"):
        table.add_column(heading, no_wrap=True, justify="left" if heading in ("layer", "bound by") else "right")
    for bar in bars:
        if id(bar) in chosen:
            table.add_row(
                bar.name,
                f"{2 * bar.macs / 1e6:.4g}",
                f"{bar.bytes / 1e6:.3g}",
                f"{bar.intensity:.3g}",
                "memory" if bar.drowned else "arithmetic",
                f"{bar.attainable_ms:.3g}",
                "-" if bar.measured_ms is None else f"{bar.measured_ms:.3g}",
                "-" if bar.efficiency is None else f"{bar.efficiency:.1%}",
            )
    output().print(table)
    if len(bars) > len(taken):
        output().print(f"... and {len(bars) - len(taken)} quicker kernels (--json has all)")


@instruments.command("efficiency-gap")
def efficiency_gap(
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="Models of ours, timm:NAME or torchvision:NAME.")
    ] = None,
    comparison: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="The candidates of a comparison, with accuracies.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Side of the images; each model's usual by default.")] = None,
    batch: Annotated[int, typer.Option(help="Images per pass; of a comparison, 1 or 32.")] = 32,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    seconds: Seconds = 2.0,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """How much slower networks are than their operations would allow on this device.

    \b
    Examples:
      torchstone inspect efficiency-gap convfirst_mini32 convnext_mini32 timm:test_convnext --plot gap.html
      torchstone inspect efficiency-gap --from report --json gap.json
    """
    _check_plot(plot)
    if bool(models) == (comparison is not None):
        raise CallError("name models, or a comparison with --from DIR; one of the two")
    from torchstone.instruments.conv_efficiency import gap_of_comparison, measure_efficiency_gap

    if comparison is not None:
        found = gap_of_comparison(comparison, batch_size=batch, seconds=seconds)
    else:
        with chatter().status("measuring"):
            found = measure_efficiency_gap(
                models or (),
                size=size,
                batch_size=batch,
                device=device,
                dtype=dtype,
                threads=threads,
                seconds=seconds,
            )
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("model", "Gop", "ideal ms", "latency ms", "efficiency", "gap", "accuracy"):
        table.add_column(heading, no_wrap=True, justify="left" if heading == "model" else "right")
    for point in found.points:
        table.add_row(
            point.name,
            f"{2 * point.macs / 1e9:.4g}",
            f"{point.ideal_ms:.3g}",
            f"{point.latency_ms:.4g}",
            f"{point.efficiency:.1%}",
            f"{point.gap:.3g}x",
            "-" if point.accuracy is None else f"{point.accuracy:.1%}",
        )
    output().print(table)
    _write(found, json, plot)


@instruments.command("convolution")
def convolution(
    channels: Annotated[int, typer.Argument(metavar="CHANNELS", help="Channels in and out.")],
    size: Annotated[int, typer.Argument(metavar="SIZE", help="Side of the map, pixels.")],
    kernel: Annotated[int, typer.Option(help="Side of the kernel.")] = 3,
    groups_of: Annotated[int, typer.Option(metavar="CHANNELS", help="Channels of a group; 1 is depthwise.")] = 8,
    batch: Annotated[int, typer.Option(help="Images.")] = 1,
    bias: Annotated[bool, typer.Option("--bias", help="Add a bias.")] = False,
    unit: Annotated[int, typer.Option(metavar="BYTES", help="Bytes per number.")] = 2,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Operations and bytes of a grouped convolution and of its gradients.

    \b
    Examples:
      torchstone inspect convolution 64 56
      torchstone inspect convolution 128 28 --groups-of 1 --kernel 7 --unit 4 --json depthwise.json
    """
    _check_plot(plot)
    from rich.table import Table

    from torchstone.instruments.conv_efficiency.statistics import conv_statistics

    found = conv_statistics(
        (batch, channels, size, size),
        kernel=kernel,
        padding=kernel // 2,
        group_width=groups_of,
        bias=bias,
        bytes_per_number=unit,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("pass", "M MACs", "MB read", "MB written", "op/byte", "sums of"):
        table.add_column(heading, no_wrap=True, justify="left" if heading == "pass" else "right")
    for name, value in found.passes().items():
        table.add_row(
            name,
            f"{value.macs / 1e6:.4g}",
            f"{value.bytes_read / 1e6:.4g}",
            f"{value.bytes_written / 1e6:.4g}",
            f"{value.intensity:.4g}",
            str(value.accumulation_depth),
        )
    output().print(table)
    _write(found, json, plot)


@instruments.command("roofline")
def roofline(
    device: Device = "cpu",
    dtype: Annotated[list[str] | None, typer.Option(help="A precision, repeatable; float32 by default.")] = None,
    threads: Annotated[list[int] | None, typer.Option(help="Threads of the CPU, repeatable.")] = None,
    seconds: Seconds = 1.0,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """How fast this device computes and moves memory at most, by precision and threads.

    \b
    Examples:
      torchstone inspect roofline
      torchstone inspect roofline --dtype float32 --dtype float64 --threads 1 --plot roofline.html
    """
    _check_plot(plot)
    from rich.table import Table

    from torchstone.instruments.roofline import measure_roofline

    with chatter().status(f"measuring {device}"):
        found = measure_roofline(device, dtypes=dtype or ("float32",), threads=threads, seconds=seconds)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("precision", "threads", "Gop/s", "GB/s", "op/byte"):
        table.add_column(heading, no_wrap=True, justify="left" if heading == "precision" else "right")
    for roof in found.roofs:
        figures = (roof.peak / 1e9, roof.bandwidth / 1e9, roof.balance)
        table.add_row(roof.dtype, str(roof.threads or "-"), *(f"{value:.4g}" for value in figures))
    output().print(table)
    _write(found, json, plot)


def _stated_roof(dtype: str, peak: float | None, bandwidth: float | None) -> Any:
    if peak is None and bandwidth is None:
        return None
    if peak is None or bandwidth is None or min(peak, bandwidth) <= 0:
        raise CallError("another device needs both its --peak (operations/s) and its --bandwidth (bytes/s), positive")
    from torchstone.instruments.roofline import stated_roof

    return stated_roof(peak, bandwidth, dtype=dtype)


def _check_plot(plot: Path | None) -> None:
    if plot is not None and plot.suffix != ".html":
        raise CallError(f"the picture is a page: name it {plot.with_suffix('.html')}")


def _print_rows(rows: list[tuple[str, str]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for row in rows:
        table.add_row(*row)
    output().print(table)


def _write(found: Any, json: Path | None, plot: Path | None) -> None:
    if json is not None:
        files.write_json(json, found.to_dict())
    if plot is not None:
        from torchstone.instruments.figures import page

        files.write_text(plot, page(found.plot()))
