"""Restoring edges from codes: what the codes lose of a graph's structure, without a matrix of all pairs of nodes."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from torchstone.layers.adjacency import propagate_hops

BLOCK = 2048
"""Rows of the pairs of codes that are held at a time."""


def edge_loss_dense(
    decoded: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"], codes: Int[Tensor, " n"] | None = None
) -> Tensor:
    """``sqrt(MSE(A, (B - min B) / (max B - min B)))`` with ``B = q q^T``, written out; needs N x N numbers.

    Where B is constant - all nodes have one code - it says nothing of the edges and is taken as 0 everywhere, without a
    gradient; the published code divides zero by zero there.

    Args:
        decoded: q (N, F).
        edge_index: (2, E); each edge counts once, and every node is linked to itself whether listed or not.
        codes: (N,), the nodes' codes. Whether all have one is then not left to the rows, which in training are equal
            but for rounding; None where only the rows can tell.
    """
    nodes = len(decoded)
    adjacency = torch.eye(nodes, dtype=decoded.dtype, device=decoded.device)
    adjacency[edge_index[1], edge_index[0]] = 1
    product = decoded @ decoded.t()
    if codes is not None:
        product = torch.where((codes == codes[0]).all(), 0.0, product)
    low, high = product.min(), product.max()
    return _root(F.mse_loss(adjacency, _scaled(product, low, high)))


def edge_loss(
    decoded: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"], codes: Int[Tensor, " n"] | None = None
) -> Tensor:
    """The value of :func:`edge_loss_dense` for any number of nodes: no N x N matrix is ever held.

    Nodes of one code have equal rows, so B has no more different entries than pairs of codes. With r the U different
    rows, n_u nodes at each, and B' the scaled B:

    ``sum_ij (A_ij - B'_ij)^2 = sum_uv n_u n_v B'_uv^2 + sum_(edges) (1 - 2 B'_ij)``.

    Pairs are visited in blocks of :data:`BLOCK` rows, twice: for the smallest and largest entry, and for the sum. The
    gradient is that of the dense form; where several entries are smallest (largest), as all pairs of nodes of two codes
    are, it is shared evenly among them, while the dense form leaves it to rounding which of them gets it.

    Args:
        decoded: q (N, F).
        edge_index: as in :func:`edge_loss_dense`.
        codes: (N,), numbers of nodes with equal rows are equal; None when rows may all differ.
    """
    nodes = len(decoded)
    loops = torch.arange(nodes, device=decoded.device)
    members = loops if codes is None else codes.unique(return_inverse=True)[1]
    counts = torch.bincount(members)
    sums = decoded.new_zeros(len(counts), decoded.shape[1]).index_add(0, members, decoded)
    rows = sums / counts[:, None]  # (U, F), each the row that its nodes have
    low, high = _extremes(rows.detach())
    smallest, largest = (rows[low[0]] * rows[low[1]]).sum(), (rows[high[0]] * rows[high[1]]).sum()

    def block(part: Tensor, weight: Tensor, rows: Tensor, smallest: Tensor, largest: Tensor) -> Tensor:
        scaled = _scaled(part @ rows.t(), smallest, largest)
        return (weight[:, None] * counts * scaled.square()).sum()

    total = decoded.new_zeros(())
    for part, weight in zip(rows.split(BLOCK), counts.split(BLOCK), strict=True):
        total = total + checkpoint(block, part, weight, rows, smallest, largest, use_reentrant=False)

    linked = torch.cat([edge_index[0] * nodes + edge_index[1], loops * nodes + loops]).unique()
    edges = torch.stack([linked // nodes, linked % nodes])
    around = propagate_hops(decoded, edges, torch.ones_like(linked, dtype=decoded.dtype), 1)[:, 1]
    mean = (around * decoded).sum() / len(linked)  # of B over the edges; scaling is linear, so it may be scaled itself
    total = total + len(linked) * (1 - 2 * _scaled(mean, smallest, largest))
    return _root(total / nodes**2)


def _extremes(rows: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Which pairs of rows have the smallest and the largest product."""
    lows, highs, places = [], [], []
    for start in range(0, len(rows), BLOCK):
        products = (rows[start : start + BLOCK] @ rows.t()).flatten()
        low, high = products.argmin(), products.argmax()
        lows.append(products[low])
        highs.append(products[high])
        places.append(torch.stack([low, high]) + start * len(rows))
    low = places[int(torch.stack(lows).argmin())][0]
    high = places[int(torch.stack(highs).argmax())][1]
    return (low // len(rows), low % len(rows)), (high // len(rows), high % len(rows))


def _scaled(product: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Products between 0 and 1; 0 where they are all the same but for rounding."""
    width = high - low
    flat = width <= 1e-6 * torch.maximum(high.abs(), low.abs())
    return torch.where(flat, 0.0, (product - low) / torch.where(flat, 1.0, width))


def _root(error: Tensor) -> Tensor:
    """The root of a mean square, whose gradient is 0, not infinite, where nothing is wrong."""
    return error.clamp(min=1e-12).sqrt()
