"""Bounds of mutual information between two embeddings of the same nodes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from torchstone.errors import ShapeError

ENTRIES = 2**24
"""Entries of the (N, N) similarities that are held at once."""


def lower_bound(
    a: Float[Tensor, "n c"], b: Float[Tensor, "n c"], temperature: float = 0.2, block: int | None = None
) -> Float[Tensor, " n"]:
    """What InfoNCE leaves of the information that ``a`` and ``b`` share, for every node; less is more information.

        M_ij = exp(cos(a_i, b_j) / t),   l_i = -1/2 (log M_ii / sum_j M_ij + log M_ii / sum_j M_ji)

    Above ``block`` nodes the rows of M are computed a block at a time, and again for the gradient, so that memory is
    O(block N); by default that is above 4096 nodes, and memory is no more than what 4096 nodes need.

    Args:
        a, b: embeddings of the same nodes, (N, C).
        temperature: t; below 0.025 M underflows in float32.
        block: rows of M that are held at once; when not given, :data:`ENTRIES` entries.

    Returns:
        The losses of the nodes, (N,).
    """
    _check(a, b)
    a, b = F.normalize(a, eps=1e-10), F.normalize(b, eps=1e-10)
    block = max(1, ENTRIES // max(1, len(a))) if block is None else block
    rows, columns = [], torch.zeros((), dtype=a.dtype, device=a.device)
    for part in a.split(block):
        if len(a) > block and torch.is_grad_enabled():
            of_rows, of_columns = checkpoint(_sums, part, b, temperature, use_reentrant=False)
        else:
            of_rows, of_columns = _sums(part, b, temperature)
        rows.append(of_rows)
        columns = columns + of_columns
    own = ((a * b).sum(1) - 1) / temperature
    return (torch.cat(rows).log() + columns.log()) / 2 - own


def _sums(a: Tensor, b: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Sums of the rows and of the columns of exp((a b^T - 1) / t), which no temperature lets overflow."""
    m = torch.addmm(a.new_full((), -1 / temperature), a / temperature, b.t()).exp_()
    return m.sum(1), m.sum(0)


def upper_bound(a: Float[Tensor, "n c"], b: Float[Tensor, "n c"], temperature: float = 0.2) -> Float[Tensor, ""]:
    """How much more alike ``a`` and ``b`` are at the same node than at any two nodes; bounds what they share.

        mean_i cos(a_i, b_i) / t - mean_ij cos(a_i, b_j) / t

    The mean over all pairs is the product of the two mean directions, so that no pair is looked at.
    """
    _check(a, b)
    a, b = F.normalize(a, eps=1e-10), F.normalize(b, eps=1e-10)
    return ((a * b).sum(1).mean() - a.mean(0) @ b.mean(0)) / temperature


def reconstruction(found: Float[Tensor, "n f"], wanted: Float[Tensor, "n f"]) -> Float[Tensor, ""]:
    """The scaled cosine error at power one: mean_i (1 - cos(found_i, wanted_i))."""
    _check(found, wanted)
    return (1 - F.cosine_similarity(found, wanted, eps=1e-12)).mean()


def _check(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or a.shape != b.shape:
        raise ShapeError(f"expected two embeddings (N, C) of the same nodes, got {tuple(a.shape)} and {tuple(b.shape)}")
