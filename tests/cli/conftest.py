"""A command line run inside the test's process."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from torchstone.cli import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def torchstone(capsys, monkeypatch) -> Callable[..., Outcome]:
    """Runs ``torchstone WORD ...`` and gives exit code, output and error output."""
    monkeypatch.delenv("TORCHSTONE_DEBUG", raising=False)

    def run(*words: object) -> Outcome:
        arguments = [str(word) for word in words]
        monkeypatch.setattr(sys, "argv", ["torchstone", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        shown = capsys.readouterr()
        return Outcome(stopped.value.code or 0, shown.out, shown.err)

    return run


@pytest.fixture
def refused(torchstone) -> Callable[..., str]:
    """Runs a command line that is wrong and gives what is said about it: one message, no traceback, exit code 2."""

    def run(*words: object) -> str:
        outcome = torchstone(*words)
        assert outcome.code == 2, outcome
        assert outcome.err.count("error: ") == 1, outcome.err
        assert "Traceback" not in outcome.err
        assert outcome.out == ""
        return outcome.err.partition("error: ")[2]

    return run
