"""The command line: words in, calls out.

Exit codes: 0 done, 1 the work failed, 2 the call was wrong, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from torchstone import __version__
from torchstone.cli import benching, catalogue, comparing, inspecting, models, probing, training, transforming
from torchstone.errors import CallError, WorkError

DONE, WORK_FAILED, CALL_WRONG = 0, 1, 2

app = typer.Typer(
    name="torchstone",
    help="Published neural systems: proved against their authors' code, trained and compared on your own data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (catalogue, comparing, training, probing, models, transforming, inspecting, benching):
    module.add_to(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"torchstone {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ["TORCHSTONE_DEBUG"] = "1"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line.

    Args:
        arguments: the words after ``torchstone``; those of this process by default.

    Raises:
        SystemExit: always, with the exit code.
    """
    _still_others()
    try:
        app(args=None if arguments is None else list(arguments), prog_name="torchstone")
        raise SystemExit(DONE)
    except CallError as error:
        _stop(str(error), CALL_WRONG)
    except WorkError as error:
        _stop(str(error), WORK_FAILED)
    except Exception as error:
        hint = "" if _debugging() else " (torchstone --debug ... shows where)"
        _stop(f"{type(error).__name__}: {error}{hint}", WORK_FAILED)


def _debugging() -> bool:
    return os.environ.get("TORCHSTONE_DEBUG", "").lower() in ("1", "true", "yes")


def _stop(message: str, code: int) -> NoReturn:
    from rich.console import Console

    if _debugging():
        traceback.print_exc()
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print("[bold red]error:[/] ", end="")
    console.print(message, markup=False)
    raise SystemExit(code)


def _still_others() -> None:
    """Keep the warnings of other packages from the user; ours become notes, unless Python was told otherwise."""
    if sys.warnoptions or _debugging():
        return

    def show(
        message: Warning | str, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        print(f"note: {message}", file=sys.stderr)

    warnings.filterwarnings("ignore")
    warnings.filterwarnings("default", module=r"torchstone\.")
    warnings.showwarning = show
