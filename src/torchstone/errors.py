"""The errors that a user meets.

Two families, which the command line maps to its exit codes:

* :class:`CallError` - the call was wrong: a name, shape, option or file that cannot work as given (exit code 2).
* :class:`WorkError` - the call was right and the work failed: a non-finite loss, a full disk (exit code 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CallError(ValueError):
    """What was asked for cannot be done as asked; the message says what would be right."""


class UnknownName(CallError, KeyError):
    """A name that nothing answers to."""

    def __str__(self) -> str:  # KeyError would show the message's repr
        return str(self.args[0])


class DataError(CallError):
    """A data set that cannot be used as it is."""


class ShapeError(CallError):
    """An input whose rank, channels or size a network cannot take."""


class WorkError(RuntimeError):
    """The work was well-defined and failed while it was done."""


class NonFiniteLoss(WorkError):
    """The training loss became NaN or infinite."""


class WriteFailed(WorkError):
    """A file could not be written; the file that stood there before is untouched."""


def nearest(given: str, valid: Iterable[str], count: int = 3) -> list[str]:
    """The valid names closest to the given one, best first."""
    valid = sorted(set(valid))
    close = difflib.get_close_matches(given.lower(), [name.lower() for name in valid], n=count, cutoff=0.5)
    by_lower = {name.lower(): name for name in valid}
    found = [by_lower[name] for name in close]
    return found or [name for name in valid if given.lower() in name.lower()][:count]


def unknown_name(kind: str, given: str, valid: Iterable[str]) -> UnknownName:
    """The error for a mistyped name: what was given and the nearest valid names.

    Args:
        kind: what the name stands for, in words: ``"model"``, ``"recipe key"``.
        given: the name that nothing answers to.
        valid: every name that would have been right.
    """
    valid = sorted(set(valid))
    close = nearest(given, valid)
    if close:
        hint = f"did you mean {' or '.join(repr(name) for name in close)}?"
    elif not valid:
        hint = "there are none yet."
    else:
        shown = ", ".join(valid[:12]) + (f", ... ({len(valid)} in all)" if len(valid) > 12 else "")
        hint = f"valid: {shown}."
    return UnknownName(f"unknown {kind} {given!r}: {hint}")
