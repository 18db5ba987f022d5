"""The Laplacian of a cellular sheaf on a graph, sparsely, and what learned maps make of it.

A sheaf gives every node i a space of dimension D, its stalk, and every edge e = {i, j} two maps, F_ij of i and F_ji of
j, into the space of the edge. Its Laplacian (definition 4) is a matrix of D x D blocks,

    L_ii = sum over edges e of i of F_ij^T F_ij,    L_ij = -F_ij^T F_ji    where i and j are neighbours,

and what diffuses along it goes to where neighbours agree, F_ij x_i = F_ji x_j. Only the E + N blocks that are not zero
exist here. They are normalised as (D + 1)^-1/2 L (D + 1)^-1/2, D the block diagonal.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from torchstone.errors import ShapeError, unknown_name
from torchstone.models.graph.neural_sheaf.orthogonal import orthogonal_matrices

NORMALIZATIONS = ("sheaf", "degree", "none")


@dataclass(frozen=True)
class Links:
    """The edges of an undirected graph, each in both directions, and which is the other direction of which.

    Attributes:
        node: i of each directed edge (i, j), (E,).
        neighbor: j, (E,).
        reverse: the position of (j, i), (E,).
        real: 0 where i is j, else 1, (E,): an edge of a node to itself has no part in a Laplacian.
        degree: edges of each node, (N,).
    """

    node: Tensor
    neighbor: Tensor
    reverse: Tensor
    real: Tensor
    degree: Tensor

    @property
    def num_nodes(self) -> int:
        return self.degree.shape[0]

    def mirrored(self, values: Float[Tensor, "e ..."]) -> Float[Tensor, "e ..."]:
        """What the other direction of each edge has."""
        return values.index_select(0, self.reverse)

    def across(self, values: Float[Tensor, "n ..."]) -> Float[Tensor, "e ..."]:
        """Products of what the two ends of each edge have."""
        return values.index_select(0, self.node) * values.index_select(0, self.neighbor)

    def sum(self, values: Float[Tensor, "e ..."]) -> Float[Tensor, "n ..."]:
        """Sums over the edges of each node, in single precision at least: a hub has many."""
        return _sums(values, self.node, self.num_nodes).to(values.dtype)


def link(edge_index: Int[Tensor, "2 e"], num_nodes: int, dtype: torch.dtype = torch.float32) -> Links:
    """Pair the directions of each edge.

    All shapes follow from the inputs' shapes, so networks that use it can be captured whole. An edge that is given
    several times is several edges.

    Raises:
        ShapeError: an edge whose other direction is missing; not looked for while a network is captured.
    """
    node, neighbor = edge_index
    forth, back = node * num_nodes + neighbor, neighbor * num_nodes + node
    captured = torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
    # In the order of their numbers, the k-th edge forth and the k-th edge back have the same two ends. ONNX has no
    # stable sort; without it equal edges, whose maps are equal, may be paired crosswise.
    by_forth, by_back = (keys.sort().indices if captured else keys.argsort(stable=True) for keys in (forth, back))
    if not captured and not torch.equal(forth[by_forth], back[by_back]):
        times = Counter(zip(*edge_index.tolist(), strict=True))
        i, j = next((i, j) for (i, j), count in times.items() if times[j, i] != count)
        raise ShapeError(
            f"a sheaf needs an undirected graph: the edge ({i}, {j}) is given {times[i, j]} times, ({j}, {i}) "
            f"{times[j, i]} times; torch_geometric.utils.to_undirected adds what is missing"
        )
    reverse = torch.zeros_like(by_forth).scatter(0, by_back, by_forth)
    real = (node != neighbor).to(dtype)
    return Links(node, neighbor, reverse, real, _sums(real, node, num_nodes).to(dtype))


def _sums(values: Tensor, node: Tensor, num_nodes: int) -> Tensor:
    exact = torch.promote_types(values.dtype, torch.float32)
    return values.new_zeros(num_nodes, *values.shape[1:], dtype=exact).index_add(0, node, values.to(exact))


@dataclass(frozen=True)
class Blocks:
    """The blocks of a sheaf Laplacian on some coordinates of the stalks.

    Attributes:
        diagonal: L_ii, (N, d, d), or (N, d) where the blocks are diagonal.
        off: L_ij for each directed edge (i, j), (E, d, d), or (E, d) where they are diagonal.
    """

    diagonal: Tensor
    off: Tensor

    @property
    def dim(self) -> int:
        return self.off.shape[1]


@dataclass(frozen=True)
class SheafLaplacian:
    """A sheaf Laplacian whose stalks are sums of independent parts.

    Attributes:
        links: the graph.
        parts: the blocks on consecutive coordinates of the stalks; together they have D.
        transport: -F_ij^T F_ji of the learned maps before normalisation, (E, d, d) or (E, d).
    """

    links: Links
    parts: tuple[Blocks, ...]
    transport: Tensor

    def __matmul__(self, x: Float[Tensor, "n s f"]) -> Float[Tensor, "n s f"]:
        """L x for signals of f channels on the stalks, (N, D, f): (L x)_i = L_ii x_i + sum over j of L_ij x_j."""
        found, start = [], 0
        for part in self.parts:
            own = x[:, start : start + part.dim]
            others = _times(part.off, own.index_select(0, self.links.neighbor))
            found.append(_times(part.diagonal, own) + self.links.sum(others))
            start += part.dim
        return found[0] if len(found) == 1 else torch.cat(found, 1)

    def to_sparse(self) -> Float[Tensor, "m m"]:
        """The whole matrix (N D, N D) in coordinates; node i has rows i D up to (i + 1) D."""
        total = sum(part.dim for part in self.parts)
        nodes = torch.arange(self.links.num_nodes, device=self.links.node.device)
        places, values, start = [], [], 0
        for part in self.parts:
            for row, column, blocks in (
                (nodes, nodes, part.diagonal),
                (self.links.node, self.links.neighbor, part.off),
            ):
                within = torch.arange(part.dim, device=row.device) + start
                square = blocks if blocks.ndim == 3 else blocks.diag_embed()
                at_row = (row[:, None, None] * total + within[:, None]).expand_as(square)
                at_column = (column[:, None, None] * total + within).expand_as(square)
                places.append(torch.stack([at_row.flatten(), at_column.flatten()]))
                values.append(square.flatten())
            start += part.dim
        size = self.links.num_nodes * total
        return torch.sparse_coo_tensor(
            torch.cat(places, 1), torch.cat(values), (size, size), check_invariants=False
        ).coalesce()


def _times(blocks: Tensor, x: Tensor) -> Tensor:
    """Blocks (B, d, d) or diagonals (B, d) times x (B, d, f)."""
    return blocks @ x if blocks.ndim == 3 else blocks[:, :, None] * x


# --- from maps to Laplacians


def diagonal_laplacian(
    maps: Float[Tensor, "e d"], links: Links, *, normalization: str = "sheaf", fixed: tuple[float, ...] = ()
) -> SheafLaplacian:
    """The Laplacian of diagonal maps F_ij = diag(maps of (i, j)).

    Args:
        maps: (E, d).
        links: the graph.
        normalization: of the blocks, s_i L_ij s_j: ``sheaf``, s_i = (L_ii + 1)^-1/2; ``degree``, (deg_i + 1)^-1/2;
            ``none``, 1.
        fixed: see :func:`fixed_blocks`.

    Raises:
        UnknownName: no such normalisation.
    """
    _check(normalization)
    maps = maps * links.real[:, None]
    transport = -maps * links.mirrored(maps)
    diagonal = links.sum(maps.square())
    if normalization == "none":
        learned = Blocks(diagonal, transport)
    else:
        size = diagonal if normalization == "sheaf" else links.degree[:, None]
        learned = _scaled(Blocks(diagonal, transport), (size + 1).rsqrt(), links)
    return _assembled(links, learned, transport, normalization, fixed)


def bundle_laplacian(
    params: Float[Tensor, "e p"],
    links: Links,
    *,
    dim: int,
    orthogonal: str = "householder",
    edge_weight: Float[Tensor, "e 1"] | None = None,
    fixed: tuple[float, ...] = (),
) -> SheafLaplacian:
    """The Laplacian of orthogonal maps, a bundle of vector spaces; always normalised.

    With w the weight of an edge (1 if there are none), F_ij = w Q_ij, so L_ii is the sum of w^2 and needs no matrix.

    Args:
        params: (E, p).
        links: the graph.
        dim: d.
        orthogonal: how parameters become matrices, see :func:`orthogonal_matrices`.
        edge_weight: w, equal in both directions.
        fixed: see :func:`fixed_blocks`.
    """
    maps = orthogonal_matrices(params, dim, orthogonal)
    weight = links.real[:, None] if edge_weight is None else edge_weight * links.real[:, None]  # (E, 1)
    maps = maps * weight[:, :, None]
    transport = _transport(maps, links)
    diagonal = links.sum(weight.square())  # (N, 1), the same for every coordinate
    scale = (diagonal + 1).rsqrt()
    learned = _scaled(Blocks(diagonal.expand(-1, dim), transport), scale, links)
    return _assembled(links, learned, transport, "sheaf", fixed)


def general_laplacian(
    maps: Float[Tensor, "e d d"], links: Links, *, normalization: str = "sheaf", fixed: tuple[float, ...] = ()
) -> SheafLaplacian:
    """The Laplacian of any maps F_ij.

    Args:
        maps: (E, d, d).
        links: the graph.
        normalization: of the blocks, S_i L_ij S_j: ``sheaf``, S_i = (L_ii + 1)^-1/2; ``degree``,
            S_i = (d deg_i + 1)^-1/2; ``none``, 1.
        fixed: see :func:`fixed_blocks`.

    Raises:
        UnknownName: no such normalisation.
    """
    _check(normalization)
    maps = maps * links.real[:, None, None]
    transport = _transport(maps, links)
    blocks = Blocks(links.sum(maps.mT @ maps), transport)
    if normalization == "degree":
        blocks = _scaled(blocks, (links.degree[:, None] * maps.shape[1] + 1).rsqrt(), links)
    elif normalization == "sheaf":
        identity = torch.eye(maps.shape[1], dtype=maps.dtype, device=maps.device)
        scale = inverse_square_root(blocks.diagonal + identity)
        off = scale.index_select(0, links.node) @ transport @ scale.index_select(0, links.neighbor)
        blocks = Blocks(identity - scale @ scale, off)  # S_i L_ii S_i, as L_ii is S_i^-2 - 1
    return _assembled(links, blocks, transport, normalization, fixed)


def fixed_blocks(signs: tuple[float, ...], links: Links, normalization: str) -> Blocks:
    """Coordinates with maps that are not learned: L_ii = deg_i and L_ij = the coordinate's sign for all neighbours.

    -1 is the graph's own Laplacian, whose diffusion levels neighbours (a low-pass filter); +1 lets them differ (a
    high-pass filter). Only ``sheaf`` normalises these coordinates, by (deg_i + 1)^-1/2.
    """
    sign = torch.tensor(signs, dtype=links.degree.dtype, device=links.degree.device)
    blocks = Blocks(links.degree[:, None].expand(-1, len(signs)), links.real[:, None] * sign)
    return _scaled(blocks, (links.degree[:, None] + 1).rsqrt(), links) if normalization == "sheaf" else blocks


def _assembled(
    links: Links, learned: Blocks, transport: Tensor, normalization: str, fixed: tuple[float, ...]
) -> SheafLaplacian:
    parts = (learned, fixed_blocks(fixed, links, normalization)) if fixed else (learned,)
    if fixed and learned.off.ndim == 2:  # all blocks are diagonal: one part
        diagonal, off = (torch.cat([getattr(part, name) for part in parts], 1) for name in ("diagonal", "off"))
        parts = (Blocks(diagonal, off),)
    return SheafLaplacian(links, parts, transport)


def _scaled(blocks: Blocks, scale: Tensor, links: Links) -> Blocks:
    """s_i L_ij s_j for numbers s (N, 1), or one for each coordinate of diagonal blocks (N, d)."""
    across = links.across(scale)
    if blocks.off.ndim == 3:
        across = across[:, :, None]
    own = scale.square() if blocks.diagonal.ndim == 2 else scale.square()[:, :, None]
    return Blocks(own * blocks.diagonal, across * blocks.off)


def _transport(maps: Tensor, links: Links) -> Tensor:
    """-F_ij^T F_ji, (E, d, d), with the edges last in memory: products of small matrices as sums of long vectors."""
    entries = maps.permute(1, 2, 0)
    other = entries.index_select(2, links.reverse)
    return -(entries[:, :, None] * other[:, None]).sum(0).permute(2, 0, 1)


def _check(normalization: str) -> None:
    if normalization not in NORMALIZATIONS:
        raise unknown_name("normalization", normalization, NORMALIZATIONS)


class _InverseSquareRoot(torch.autograd.Function):
    """A^-1/2 of symmetric positive definite matrices, with a gradient that equal eigenvalues do not spoil.

    With A = U diag(l) U^T and G the gradient of A^-1/2, that of A is U (K * U^T G U) U^T, K_ij the divided difference
    (l_i^-1/2 - l_j^-1/2) / (l_i - l_j) = -1 / (sqrt(l_i l_j) (sqrt(l_i) + sqrt(l_j))), which has no pole.
    """

    @staticmethod
    def forward(ctx: Any, matrices: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrices)
        roots = values.sqrt()
        ctx.save_for_backward(roots, vectors)
        return (vectors / roots[:, None]) @ vectors.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        roots, vectors = ctx.saved_tensors
        across = roots[:, :, None] * roots[:, None] * (roots[:, :, None] + roots[:, None])
        inner = vectors.mT @ (gradient + gradient.mT) @ vectors / (-2 * across)
        return vectors @ inner @ vectors.mT


def inverse_square_root(matrices: Float[Tensor, "n d d"]) -> Float[Tensor, "n d d"]:
    """A^-1/2 of symmetric positive definite matrices (N, d, d), by their eigenvalues."""
    return _InverseSquareRoot.apply(matrices)
