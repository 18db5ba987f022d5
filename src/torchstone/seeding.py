"""Randomness as a function of position, never of history.

A program that draws from one long stream cannot be interrupted: what it draws next depends on all that it drew before.
Here every piece of work names its position instead - ``("order", seed, epoch)``, ``("step", seed, global_step)`` - and
its randomness is a function of that name alone, so it is the same after a resume, with any number of loader workers
and in any order of execution.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def position_seed(*position: int | str) -> int:
    """A seed for a position: 63 well-mixed bits, equal on every platform and in every release.

    Args:
        position: integers, and words that keep streams apart: ``position_seed("order", seed, epoch)``.

    Returns:
        An integer in [0, 2**63), which torch, numpy and an int64 tensor all take.
    """
    name = ",".join([part if isinstance(part, str) else str(int(part)) for part in position])
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1


def seed_cpu_at(*position: int | str) -> None:
    """Seed the generators that a data transform draws from: torch's on the CPU, numpy's and Python's."""
    seed = position_seed(*position)
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 - timm's transforms draw from the global generator
    random.seed(seed)


def seed_everything_at(*position: int | str) -> None:
    """Seed torch on every device, numpy and Python for the work at a position."""
    seed_cpu_at(*position)
    torch.manual_seed(position_seed(*position))


@contextmanager
def preserved_randomness() -> Iterator[None]:
    """Whatever the block seeds and draws, torch's CPU, numpy's and Python's generators go on as if it had not run."""
    state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(state[0])
        np.random.set_state(state[1])  # noqa: NPY002
        random.setstate(state[2])
