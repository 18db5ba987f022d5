"""Weighted graphs as InfoMGF learns and propagates them: sparse, with gradients to every weight, searched in blocks."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from torchstone.errors import ShapeError

BLOCK = 512
"""Rows of similarities that are held at once."""


@dataclass(frozen=True, eq=False)
class Structure:
    """Which entries of an (N, M) matrix are there: edges without repetition, sorted by target, then by source.

    Attributes:
        edge_index: (2, E), row 0 the sources (columns), row 1 the targets (rows).
        num_nodes: N.
        num_sources: M, where the sources are no nodes; N otherwise.
    """

    edge_index: Tensor
    num_nodes: int
    num_sources: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, M)."""
        return self.num_nodes, self.num_nodes if self.num_sources is None else self.num_sources

    @cached_property
    def loops(self) -> Tensor:
        """Which edges are self-loops, (E,)."""
        return self.edge_index[0] == self.edge_index[1]

    @cached_property
    def transposing(self) -> Tensor:
        """The order (E,) of the edges in the transposed matrix."""
        return (self.edge_index[0] * self.num_nodes + self.edge_index[1]).argsort()

    @cached_property
    def rows(self) -> Tensor:
        """Where each row of the matrix begins, (N + 1,)."""
        return _row_starts(self.edge_index[1], self.num_nodes)

    @cached_property
    def columns(self) -> Tensor:
        """Where each row of the transposed matrix begins, (M + 1,)."""
        return _row_starts(self.edge_index[0], self.shape[1])

    def matrix(self, weight: Tensor) -> Tensor:
        """The matrix in compressed rows; entry [i, j] is the weight of the edge j -> i."""
        return _compressed_rows(self.rows, self.edge_index[0], weight, self.shape)

    def transposed(self, weight: Tensor) -> Tensor:
        """Its transpose in compressed rows."""
        order = self.transposing
        return _compressed_rows(self.columns, self.edge_index[1][order], weight[order], self.shape[::-1])


@dataclass(frozen=True, eq=False)
class WeightedGraph:
    """A graph with a weight at every edge.

    Attributes:
        structure: its edges.
        weight: (E,).
    """

    structure: Structure
    weight: Tensor

    @property
    def edge_index(self) -> Tensor:
        """Edges (2, E), row 0 the sources, row 1 the targets."""
        return self.structure.edge_index

    @classmethod
    def from_dense(cls, matrix: Float[Tensor, "n m"]) -> WeightedGraph:
        """The nonzero entries of a matrix (N, M), entry [i, j] being the edge j -> i."""
        target, source = matrix.nonzero(as_tuple=True)
        return cls(Structure(torch.stack([source, target]), *matrix.shape), matrix[target, source])

    def to_dense(self) -> Float[Tensor, "n m"]:
        """The matrix (N, M), entry [i, j] being the weight of the edge j -> i."""
        source, target = self.edge_index
        return self.weight.new_zeros(self.structure.shape).index_put((target, source), self.weight)

    def propagate(self, x: Float[Tensor, "m c"]) -> Float[Tensor, "n c"]:
        """A x, with gradients to both: entry i is the sum over edges j -> i of w_ji x_j."""
        with torch.autocast(x.device.type, enabled=False):  # sparse products know float32 and float64 only
            exact = x if x.dtype == torch.float64 else x.float()
            found: Tensor = _Propagate.apply(exact, self.weight.to(exact.dtype), self.structure)
        return found.to(x.dtype)

    def detach(self) -> WeightedGraph:
        """The same graph, no gradient reaching its weights."""
        return WeightedGraph(self.structure, self.weight.detach())


class _Propagate(torch.autograd.Function):
    """A x for a sparse A: the gradient of x is A^T g, that of the weight of j -> i is g_i . x_j."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, structure: Structure) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.structure = structure
        return structure.matrix(weight) @ x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        structure: Structure = ctx.structure
        gradient = gradient.contiguous()
        of_x = structure.transposed(weight) @ gradient if ctx.needs_input_grad[0] else None
        of_weight = None
        if ctx.needs_input_grad[1]:
            pattern = structure.matrix(torch.zeros_like(weight))
            of_weight = torch.sparse.sampled_addmm(pattern, gradient, x.t(), beta=0.0).values()
        return of_x, of_weight, None


def view_structure(edge_index: Int[Tensor, "2 e"], num_nodes: int) -> Structure:
    """The edges of a view, each once, with a self-loop at every node."""
    nodes = torch.arange(num_nodes, device=edge_index.device)
    target, source = torch.cat([edge_index[1], nodes]), torch.cat([edge_index[0], nodes])
    return _structure((target * num_nodes + source).unique(), num_nodes)


def normalized(structure: Structure, weight: Float[Tensor, " e"]) -> WeightedGraph:
    """D^-1/2 W D^-1/2 with deg_i the sum of the weights of the edges to i; nodes of degree 0 stay alone."""
    source, target = structure.edge_index
    degree = weight.new_zeros(structure.num_nodes).index_add(0, target, weight)
    scale = _inverse_root(degree)
    return WeightedGraph(structure, scale[source] * weight * scale[target])


class Search:
    """What was found last, so that the same rows are not searched again; copies and files of it are empty."""

    def __init__(self) -> None:
        self.rows: Tensor | None = None
        self.values = self.found = torch.empty(0)

    def __reduce__(self) -> tuple[type[Search], tuple[()]]:
        return Search, ()

    def holds(self, rows: Tensor, count: int) -> bool:
        """Whether it is the search for ``count`` neighbours of just these rows."""
        known = self.rows
        if known is None or self.found.shape[1] != count or (known.device, known.dtype) != (rows.device, rows.dtype):
            return False
        return torch.equal(known, rows)

    def keep(self, rows: Tensor, values: Tensor, found: Tensor) -> None:
        self.rows, self.values, self.found = rows.detach(), values, found


def averaged_neighbours(
    h: Float[Tensor, "n c"],
    neighbours: int,
    edge_dropout: float = 0.0,
    block: int = BLOCK,
    search: Search | None = None,
) -> WeightedGraph:
    """The refined graph as the paper has it: ReLU((S + S^T) / 2), normalised, S being the top similarities of each row.

        S_ij = cos(h_i, h_j)  where j is among the k + 1 most similar to i, i itself included; 0 elsewhere

    Args:
        h: features, (N, C).
        neighbours: k.
        edge_dropout: the rate at which entries of the normalised matrix are dropped.
        block: rows that are compared at once; memory is block x N.
        search: see :func:`top_similarities`.
    """
    values, found = top_similarities(h, neighbours, block, search)
    both = torch.cat([values.flatten(), values.flatten()]) / 2
    structure, weight = _merged(found, both)
    graph = normalized(structure, weight.relu())
    return WeightedGraph(structure, F.dropout(graph.weight, edge_dropout, edge_dropout > 0))


def summed_neighbours(
    h: Float[Tensor, "n c"],
    neighbours: int,
    edge_dropout: float = 0.0,
    block: int = BLOCK,
    search: Search | None = None,
) -> WeightedGraph:
    """The refined graph as the authors compute it for large N: S + S^T, S normalised before by rows and columns.

        n_i = sum_j S_ij + sum_j S_ji,   S_ij <- S_ij / sqrt(n_i n_j)

    An edge that both ends chose has twice the weight of one that only one of them chose. Entries of non-positive n are
    0 here and NaN in the authors' code, which assumes features that are not negative.

    Args:
        h, neighbours, block, search: as in :func:`averaged_neighbours`.
        edge_dropout: the rate at which entries of S and of S^T are dropped.
    """
    values, found = top_similarities(h, neighbours, block, search)
    sums = values.sum(1).index_add(0, found.flatten(), values.flatten())
    scale = _inverse_root(sums)
    values = (values * scale[:, None] * scale[found]).relu().flatten()
    both = F.dropout(torch.cat([values, values]), edge_dropout, edge_dropout > 0)
    return WeightedGraph(*_merged(found, both))


def top_similarities(
    h: Float[Tensor, "n c"], neighbours: int, block: int = BLOCK, search: Search | None = None
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Cosine similarities of every row to the k + 1 most similar rows, itself included, and which rows these are.

    All pairs are compared, each once, ``block`` rows at a time, so that memory is O(block N); gradients reach the
    similarities that were kept.

    Args:
        h: features, (N, C).
        neighbours: k.
        block: rows that are compared at once.
        search: where the outcome is kept; if it holds that of equal rows, nothing is compared.

    Raises:
        ShapeError: fewer than k + 1 rows.
    """
    if len(h) <= neighbours:
        raise ShapeError(f"{neighbours} neighbours and the node itself need more than {len(h)} nodes")
    with torch.autocast(h.device.type, enabled=False):  # neighbours found at half precision would be others
        exact = h if h.dtype == torch.float64 else h.float()
        values, found = _TopSimilarities.apply(F.normalize(exact), neighbours + 1, block, search)
    return values, found


class _TopSimilarities(torch.autograd.Function):
    """The largest entries of each row of h h^T and their columns; with G their gradient, h's is G h + G^T h."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, count: int, block: int, search: Search | None) -> tuple[Tensor, Tensor]:
        search = Search() if search is None else search
        if not search.holds(h, count):
            search.keep(h, *_largest(h, count, block))
        values, found = search.values.clone(), search.found.clone()
        ctx.save_for_backward(h, found)
        ctx.mark_non_differentiable(found)
        return values, found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        h, found = ctx.saved_tensors
        nodes, count = found.shape
        weight, order = gradient.flatten(), found.flatten().argsort(stable=True)
        starts = torch.arange(nodes + 1, device=h.device) * count
        matrix = _compressed_rows(starts, found.flatten(), weight, (nodes, nodes))
        columns = _row_starts(found.flatten(), nodes)
        transposed = _compressed_rows(columns, order // count, weight[order], (nodes, nodes))
        return matrix @ h + transposed @ h, None, None, None


def _largest(h: Tensor, count: int, block: int) -> tuple[Tensor, Tensor]:
    """The largest entries of each row of h h^T, and their columns."""
    values = h.new_full((len(h), count), -torch.inf)
    found = torch.zeros(len(h), count, dtype=torch.int64, device=h.device)
    for start in range(0, len(h), block):
        end = min(start + block, len(h))
        similarities = h[start:end] @ h[start:].t()  # those with rows before the block are known from their blocks
        _keep_largest(values[start:end], found[start:end], similarities, start)
        if end < len(h):
            _keep_largest(values[end:], found[end:], similarities[:, end - start :].t().contiguous(), start)
    return values, found


def _keep_largest(values: Tensor, found: Tensor, new: Tensor, first: int) -> None:
    """Keep of the values (R, K) and the new ones (R, C), those of rows ``first``, ``first + 1``, ..., the K largest."""
    count = values.shape[1]
    best, place = new.topk(min(count, new.shape[1]))
    both, where = torch.cat([values, best], 1), torch.cat([found, place + first], 1)
    best, place = both.topk(count)
    values.copy_(best)
    found.copy_(where.gather(1, place))


def _merged(found: Tensor, both: Tensor) -> tuple[Structure, Tensor]:
    """The edges i -> found[i] and their reverses, equal ones added up; ``both`` holds the weights of these, then of
    those."""
    nodes, count = found.shape
    rows = torch.arange(nodes, device=found.device).repeat_interleave(count)
    columns = found.flatten()
    keys = torch.cat([rows * nodes + columns, columns * nodes + rows])
    unique, place = keys.unique(return_inverse=True)
    return _structure(unique, nodes), both.new_zeros(len(unique)).index_add(0, place, both)


def _structure(keys: Tensor, nodes: int) -> Structure:
    """From sorted keys target * N + source."""
    return Structure(torch.stack([keys % nodes, keys // nodes]), nodes)


def _row_starts(rows: Tensor, nodes: int) -> Tensor:
    counts = torch.bincount(rows, minlength=nodes)
    return F.pad(counts.cumsum(0), (1, 0))


def _compressed_rows(starts: Tensor, columns: Tensor, weight: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():  # torch says of this layout that it is new
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, columns, weight, shape, check_invariants=False)


def _inverse_root(degree: Tensor) -> Tensor:
    """degree^-1/2, and 0 with no gradient where the degree is not positive."""
    positive = degree > 0
    return torch.where(positive, torch.where(positive, degree, 1.0).rsqrt(), 0.0)
