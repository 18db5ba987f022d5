"""What tables of rows that are measured apart share: where a row was measured, and when it replaces the one before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from typing import Any, NamedTuple

from torchstone.environment import describe


class Run(NamedTuple):
    """A score, and whether this call trained the run rather than found it finished."""

    score: float
    trained: bool


def measured(command: str, seeds: Iterable[int]) -> dict[str, Any]:
    """By which command, when and on what a row was measured."""
    facts = describe()
    return {
        "command": command,
        "date": date.today().isoformat(),
        "hardware": {key: value for key, value in facts.items() if key != "versions"},
        "versions": facts["versions"],
        "seeds": list(seeds),
    }


def replaces(runs: Sequence[Run], before: int) -> bool:
    """Whether a row of these runs replaces one of ``before`` runs; 0 where there is none."""
    return len(runs) > before or (len(runs) == before and all(run.trained for run in runs))
