"""The symmetrically normalised adjacency of a graph, and sums over neighbours with it."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from torchstone.errors import ShapeError


def check_graph(x: Tensor, edge_index: Tensor, in_channels: int, edge_weight: Tensor | None = None) -> None:
    """Check node features and edges before the first layer meets them.

    Args:
        x: node features, (N, in_channels).
        edge_index: (2, E), row 0 the sources, row 1 the targets.
        in_channels: the features that the network was built for.
        edge_weight: (E,), if there are weights.

    Raises:
        ShapeError: says what was given and what would be right. Node numbers are not looked at while a network is
            captured (compile, export), where values are unknown.
    """
    if x.ndim != 2 or x.shape[1] != in_channels:
        raise ShapeError(f"expected node features (N, {in_channels}), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ShapeError(f"expected node features of a floating-point type, got {x.dtype}")
    if edge_index.ndim != 2 or edge_index.shape[0] != 2 or edge_index.dtype != torch.int64:
        raise ShapeError(f"expected edge_index (2, E) of int64, got {tuple(edge_index.shape)} of {edge_index.dtype}")
    if edge_weight is not None and edge_weight.shape != edge_index.shape[1:]:
        raise ShapeError(f"expected one weight for each of {edge_index.shape[1]} edges, got {tuple(edge_weight.shape)}")
    if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export() or edge_index.numel() == 0:
        return
    low, high = edge_index.aminmax()
    if low < 0 or high >= x.shape[0]:
        raise ShapeError(f"edges name nodes from {int(low)} to {int(high)}, the graph has 0 to {x.shape[0] - 1}")


def normalized_adjacency(
    edge_index: Int[Tensor, "2 e"], num_nodes: int, edge_weight: Float[Tensor, " e"] | None = None
) -> tuple[Int[Tensor, "2 l"], Float[Tensor, " l"]]:
    """Self-loops and symmetric normalisation: D^-1/2 (A + I) D^-1/2.

    A node that has a self-loop keeps its weight (the last one, if there are several); the others get one of weight 1.
    With w the weights after that, deg_i = sum of w over the edges whose target is i, and an edge j -> i gets
    w / sqrt(deg_j deg_i), 0 where a degree is 0. All shapes follow from the inputs' shapes, so networks that use it
    can be captured whole.

    Args:
        edge_index: (2, E), row 0 the sources, row 1 the targets.
        num_nodes: N.
        edge_weight: (E,), ones when not given.

    Returns:
        Edges (2, E') with self-loops, and their normalised weights (E',).

    Source:
        Kipf and Welling, Semi-Supervised Classification with Graph Convolutional Networks, equation 2.
    """
    weight = torch.ones(edge_index.shape[1], device=edge_index.device) if edge_weight is None else edge_weight
    source, target = edge_index
    loop = source == target
    nodes = torch.arange(num_nodes, device=edge_index.device)
    order = torch.arange(edge_index.shape[1], device=edge_index.device)
    # The last self-loop of each node, -1 where there is none; edges that are no loop vote for a slot that is cut off.
    last = torch.full((num_nodes + 1,), -1, device=edge_index.device)
    last = last.scatter_reduce(0, torch.where(loop, source, num_nodes), order, "amax")[:num_nodes]
    padded = torch.cat([weight, weight.new_ones(1)])  # index E stands for a missing loop of weight 1
    loop_weight = padded[torch.where(last < 0, edge_index.shape[1], last)]
    source, target = torch.cat([source, nodes]), torch.cat([target, nodes])
    weight = torch.cat([torch.where(loop, 0, weight), loop_weight])  # given loops count once, at the end
    degree = weight.new_zeros(num_nodes).index_add(0, target, weight)
    scale = torch.where(degree > 0, degree.clamp(min=torch.finfo(degree.dtype).tiny).rsqrt(), 0)
    return torch.stack([source, target]), scale[source] * weight * scale[target]


def adjacency_matrix(
    edge_index: Int[Tensor, "2 e"], edge_weight: Float[Tensor, " e"], num_nodes: int
) -> Float[Tensor, "n n"]:
    """The sparse matrix (N, N) whose entry [i, j] is the weight of the edge j -> i; weights of equal edges add up."""
    return torch.sparse_coo_tensor(
        edge_index.flip(0), edge_weight, (num_nodes, num_nodes), check_invariants=False
    ).coalesce()


class _SparseProduct(torch.autograd.Function):
    """A sparse matrix, which needs no gradient, times a dense one: M x, with the gradient M^T g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.save_for_backward(transposed)
        return torch.sparse.mm(matrix, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (transposed,) = ctx.saved_tensors
        return torch.sparse.mm(transposed, gradient), None, None


def propagate_hops(
    x: Float[Tensor, "n c"], edge_index: Int[Tensor, "2 e"], edge_weight: Float[Tensor, " e"], hops: int
) -> Float[Tensor, "n k c"]:
    """Repeated sums over neighbours: H_0 = x, H_k[i] = sum over edges j -> i of w_ji H_(k-1)[j].

    Args:
        x: (N, C).
        edge_index: (2, E).
        edge_weight: (E,).
        hops: K.

    Returns:
        H_0, ..., H_K, stacked to (N, K + 1, C).
    """
    return torch.stack(_hops(x, edge_index, edge_weight, hops), 1)


def propagate(
    x: Float[Tensor, "n c"], edge_index: Int[Tensor, "2 e"], edge_weight: Float[Tensor, " e"]
) -> Float[Tensor, "n c"]:
    """One sum over neighbours: out[i] = sum over edges j -> i of w_ji x[j].

    Args:
        x: (N, C).
        edge_index: (2, E).
        edge_weight: (E,).

    Returns:
        (N, C).
    """
    return _hops(x, edge_index, edge_weight, 1)[1]


def _hops(x: Tensor, edge_index: Tensor, edge_weight: Tensor, hops: int) -> list[Tensor]:
    captured = torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()  # sparse matrices cannot be captured
    if captured or edge_weight.requires_grad:
        return _hops_by_messages(x, edge_index, edge_weight, hops)
    return _hops_by_matrix(x, edge_index, edge_weight, hops)


def _hops_by_messages(x: Tensor, edge_index: Tensor, edge_weight: Tensor, hops: int) -> list[Tensor]:
    source, target = edge_index
    weight = edge_weight[:, None].to(x.dtype)
    steps = [x]
    for _ in range(hops):
        steps.append(torch.zeros_like(x).index_add(0, target, weight * steps[-1][source]))
    return steps


def _hops_by_matrix(x: Tensor, edge_index: Tensor, edge_weight: Tensor, hops: int) -> list[Tensor]:
    """The same, a multiple of the speed: compressed rows, and their transpose for the gradient."""
    exact = x if x.dtype in (torch.float32, torch.float64) else x.float()  # sparse products know no other precision
    weight = edge_weight.to(exact.dtype)
    with torch.autocast(x.device.type, enabled=False):
        matrix = compressed(adjacency_matrix(edge_index, weight, len(x)))
        transposed = matrix
        if exact.requires_grad:
            transposed = compressed(adjacency_matrix(edge_index.flip(0), weight, len(x)))
        steps = [exact]
        for _ in range(hops):
            steps.append(_SparseProduct.apply(steps[-1], matrix, transposed))
    return [step.to(x.dtype) for step in steps]


def compressed(matrix: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
    """A matrix in compressed rows (CSR); torch's warning that this layout is new stays out of the user's way."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return matrix.to_sparse_csr()


def is_mostly_zero(x: Tensor, below: float = 0.1) -> bool:
    """Whether so few elements are not zero, below that share, that their rows are better compressed."""
    return bool(x.count_nonzero() < below * x.numel())


def is_sparse(x: Tensor) -> bool:
    """Whether a tensor stores its nonzero elements only."""
    return x.layout != torch.strided


def sparse_dropout(x: Float[Tensor, "n f"], rate: float, training: bool) -> Float[Tensor, "n f"]:
    """Dropout of features in compressed rows (CSR): of the stored elements, since zeros stay zeros anyway."""
    if not training or rate == 0:
        return x
    values = torch.dropout(x.values(), rate, True)
    return torch.sparse_csr_tensor(x.crow_indices(), x.col_indices(), values, x.shape, check_invariants=False)


def sparse_linear(
    x: Float[Tensor, "n f"], weight: Float[Tensor, "c f"], bias: Float[Tensor, " c"] | None = None
) -> Float[Tensor, "n c"]:
    """``x weight^T + bias`` for features (N, F) in compressed rows (CSR) and a weight (C, F)."""
    with torch.autocast(x.device.type, enabled=False):
        product = x @ weight.t()
        return product if bias is None else product + bias
