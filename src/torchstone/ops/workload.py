"""What an operator is measured on: operands over sizes, and peers that do the same work or take its place.

``torchstone bench OP`` reads these; each operator has one in its room, ``ops/<op>/workload.py``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from torchstone.errors import unknown_name

Shapes = tuple[tuple[int, ...], ...]

_ROOMS = {
    "fused_block": "torchstone.ops.fused_block.workload",
    "long_conv": "torchstone.ops.long_conv.workload",
    "routed_attention": "torchstone.ops.routed_attention.workload",
    "neighbour_scores": "torchstone.ops.neighbourhood.workload",
}


@dataclass(frozen=True)
class Contender:
    """A function of the operands.

    Attributes:
        call: operands in, one tensor out.
        same: whether it gives the operator's values, which is then checked; otherwise only its cost is of interest.
        note: what it is, in a line.
    """

    call: Callable[..., Tensor]
    same: bool
    note: str


@dataclass(frozen=True)
class Workload:
    """An operator's calls, and who else can do them.

    Attributes:
        op: the operator's name; the contender of this name is the operator.
        summary: what it does, in a line.
        size: what its size is, such as ``length``.
        sizes: the usual ones, ascending.
        settings: other sizes of the operands, by name, with their usual values.
        shapes: the shapes of the operands, from a size and the settings.
        contenders: the operator and its peers, by name.
    """

    op: str
    summary: str
    size: str
    sizes: tuple[int, ...]
    settings: Mapping[str, int]
    shapes: Callable[[int, Mapping[str, int]], Shapes]
    contenders: Mapping[str, Contender]


def workload_names() -> list[str]:
    """The operators that can be measured."""
    return sorted(_ROOMS)


def workload(op: str) -> Workload:
    """The workload of an operator.

    Raises:
        UnknownName: no such operator; the nearest are named.
    """
    if op not in _ROOMS:
        raise unknown_name("operator", op, _ROOMS)
    found: Workload = importlib.import_module(_ROOMS[op]).WORKLOAD
    return found
