"""How far the work is: bars on a terminal, a line now and then elsewhere, nothing when quiet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from torchstone.cli.arguments import chatter

if TYPE_CHECKING:
    from torchstone.reporting.compare import Progress as ComparisonState
    from torchstone.training.fit import FitProgress

LINES = 10
"""About as many lines as a training run leaves in a log."""


@contextmanager
def comparison(quiet: bool) -> Iterator[Callable[[ComparisonState], None] | None]:
    """What :func:`torchstone.reporting.compare.compare` takes as ``progress``: the whole, and the run at work."""
    console = chatter()
    if quiet:
        yield None
    elif not console.is_terminal:
        yield lambda state: console.print(state.news, markup=False) if state.news else None
    else:
        with _bars() as bars:
            whole, part = bars.add_task("comparison", total=1.0), bars.add_task("", total=None)

            def show(state: ComparisonState) -> None:
                if state.news:
                    bars.console.print(state.news, markup=False)
                bars.update(whole, completed=state.done)
                bars.update(part, description=_doing(state), **_position(state.run))

            yield show


@contextmanager
def training(quiet: bool) -> Iterator[Callable[[FitProgress], None] | None]:
    """What :func:`torchstone.training.fit.fit` takes as ``progress``."""
    console = chatter()
    if quiet:
        yield None
    elif not console.is_terminal:
        yield _EpochLines(lambda line: console.print(line, markup=False))
    else:
        with _bars() as bars:
            task = bars.add_task("starting", total=None)
            yield lambda state: bars.update(task, description=_standing(state), **_position(state))


@contextmanager
def images(quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """What :func:`torchstone.training.predict.predict` takes as ``progress``."""
    if quiet or not chatter().is_terminal:
        yield None
        return
    with _bars() as bars:
        task = bars.add_task("images", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def probing(quiet: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """What :func:`torchstone.training.probing.probe` takes as ``progress``."""
    if quiet or not chatter().is_terminal:
        yield None
        return
    with _bars() as bars:
        task = bars.add_task("opening the data", total=None)
        yield lambda what, done, total: bars.update(task, description=what, completed=done, total=total or None)


def _bars() -> Progress:
    times = TimeElapsedColumn(), TimeRemainingColumn()
    text = TextColumn("{task.description}", markup=False)
    return Progress(BarColumn(), TaskProgressColumn(), *times, text, console=chatter(), transient=True)


def _position(run: FitProgress | None) -> dict[str, Any]:
    """A bar's position in a run; without one the bar only shows that something is going on."""
    if run is None:
        return {"completed": 0, "total": None}
    return {"completed": run.epoch - 1 + run.step / run.steps, "total": run.epochs}


def _doing(state: ComparisonState) -> str:
    return f"{state.doing}: {_standing(state.run)}" if state.run else state.doing


def _standing(run: FitProgress) -> str:
    score = "" if run.score is None else f", validation score {run.score:.4g}"
    return f"epoch {run.epoch} of {run.epochs}, loss {run.loss:.3f}{score}"


class _EpochLines:
    """Prints a line at the end of every tenth of the epochs: of the call whose score is the epoch's own."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self.show = show
        self.last: tuple[int, int] | None = None

    def __call__(self, run: FitProgress) -> None:
        ended = self.last == (run.epoch, run.steps)
        self.last = (run.epoch, run.step)
        every = max(1, run.epochs // LINES)
        if ended and (run.epoch % every == 0 or run.epoch == run.epochs):
            self.show(_standing(run))
