"""Cost limits of a comparison: ``latency=5ms``, ``params=2M``, ``macs=100M``, ``memory=200MB``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torchstone.errors import CallError, unknown_name
from torchstone.reporting import words
from torchstone.reporting.costs import AXES

_COUNTS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_MEGABYTES = {"kB": 1e-3, "MB": 1.0, "GB": 1e3}

UNITS: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "latency": ("latency_ms_1", _MILLISECONDS),
    "params": ("params", _COUNTS),
    "macs": ("macs", _COUNTS),
    "memory": ("memory_mb", _MEGABYTES),
}
"""Limit -> its cost axis, and what one of each unit is in the axis's own."""

_QUANTITY = re.compile(r"\s*([0-9]+\.?[0-9]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+)\s*([A-Za-zµ]*)\s*")


@dataclass(frozen=True)
class Limit:
    """The most that one cost may be, in the unit of its axis."""

    axis: str
    most: float

    def exceeded(self, cost: Mapping[str, float | None]) -> str:
        """Why a candidate of this cost is over budget; empty when it is not, or when the cost is not known yet."""
        value = cost.get(self.axis)
        if value is None or value <= self.most:
            return ""
        axis = AXES[self.axis]
        return f"{axis.noun} {words.cost(axis, value)}, at most {words.cost(axis, self.most)}"


def parse_limits(limits: Mapping[str, str | float]) -> list[Limit]:
    """Read limits.

    Args:
        limits: ``latency`` (batch 1), ``params``, ``macs`` or ``memory`` -> a number with its unit. A bare number is a
            count; times are in us, ms or s, memory in kB, MB or GB.

    Raises:
        UnknownName: no such limit.
        CallError: not a positive number with one of the units.
    """
    return [_parse(name, str(value)) for name, value in limits.items()]


def _parse(name: str, text: str) -> Limit:
    if name not in UNITS:
        raise unknown_name("limit", name, UNITS)
    axis, units = UNITS[name]
    match = _QUANTITY.fullmatch(text)
    unit = match.group(2).replace("µ", "u") if match else ""
    by_lower = {known.lower(): factor for known, factor in units.items()}
    value = float(match.group(1)) if match else math.nan
    if unit.lower() not in by_lower or not 0 < value < math.inf:
        shown = ", ".join(known or "none" for known in units)
        raise CallError(f"limit {name}={text}: a positive number with its unit is expected ({shown})")
    return Limit(axis, value * by_lower[unit.lower()])
