"""Explicit, seeded, stratified splits."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from torchstone.seeding import position_seed

Indices = NDArray[np.int64]


def generator(*position: int | str) -> np.random.Generator:
    """A numpy generator for a position (:func:`torchstone.seeding.position_seed`)."""
    return np.random.Generator(np.random.Philox(key=position_seed(*position)))


def stratified(
    indices: Indices, labels: NDArray[np.int64], count: int, *position: int | str, least: int = 1
) -> tuple[Indices, Indices]:
    """Draw ``count`` of ``indices`` so that every class gives its share.

    A class of n images gives n * count / N of them, rounded so that the total is right (largest remainders first).
    No class gives all it has; each gives ``least``, if that leaves it one.

    Args:
        indices: what to draw from.
        labels: (all,) the class of every image; ``labels[indices]`` are the classes at hand.
        count: how many to draw; what the classes can give bounds it from both sides.
        position: the seed, a position.
        least: how many each class gives at least.

    Returns:
        The drawn and the remaining indices, each sorted.
    """
    random = generator(*position)
    groups = [random.permutation(indices[labels[indices] == label]) for label in np.unique(labels[indices])]
    sizes = np.array([len(group) for group in groups])
    quotas = _quotas(sizes, count, least)
    drawn = np.concatenate([group[:quota] for group, quota in zip(groups, quotas, strict=True)])
    rest = np.concatenate([group[quota:] for group, quota in zip(groups, quotas, strict=True)])
    return np.sort(drawn), np.sort(rest)


def _quotas(sizes: Indices, count: int, least: int) -> Indices:
    """How many each class gives: near ``sizes * count / sum(sizes)`` and in ``least..size-1``."""
    exact = sizes * count / sizes.sum()
    most = sizes - 1
    lower = np.minimum(least, most)
    quotas = np.clip(np.floor(exact).astype(np.int64), lower, most)
    by_remainder = np.argsort(quotas - exact, kind="stable")  # those owed most come first
    for index in by_remainder:
        if quotas.sum() < count and quotas[index] < most[index]:
            quotas[index] += 1
    for index in by_remainder[::-1]:
        quotas[index] -= min(max(0, quotas.sum() - count), quotas[index] - lower[index])
    return quotas


def index_hash(indices: Indices) -> str:
    """SHA-256 of a list of indices, which names a split in a record."""
    return hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()
