"""What several commands share: options that take many values, the consoles, files that results go to."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from typer.core import TyperCommand

from torchstone.errors import CallError

WIDE = 200
"""Columns of a table that goes to a file or a pipe."""


class ManyValues(TyperCommand):
    """A command whose repeatable options also take several values after one flag: ``--models A B C``.

    Everything up to the next word that begins with ``-`` belongs to the flag, so such a command takes no arguments.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        many = {name for parameter in self.params if getattr(parameter, "multiple", False) for name in parameter.opts}
        words: list[str] = []
        flag = ""
        for word in args:
            if word.startswith("-"):
                flag = word if word in many else ""
            elif flag and words[-1] != flag:
                words.append(flag)
            words.append(word)
        return super().parse_args(ctx, words)


def output() -> Console:
    """Where results go."""
    width = None if sys.stdout.isatty() else WIDE
    return Console(highlight=False, width=width)


def chatter() -> Console:
    """Where progress and notes go."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def as_mapping(words: list[str], option: str) -> dict[str, str]:
    """``["latency=5ms"]`` as a mapping.

    Raises:
        CallError: a word without ``=``, or a name given twice.
    """
    values: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise CallError(f"{option} takes name=value, got {word!r}")
        if name in values:
            raise CallError(f"{option} {name} is given twice")
        values[name] = value
    return values
