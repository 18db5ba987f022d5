"""The symmetrically normalised adjacency of a graph, and sums over neighbours with it."""

from __future__ import annotations

import torch
from torch import Tensor

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
    edge_index: Tensor, num_nodes: int, edge_weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
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


def adjacency_matrix(edge_index: Tensor, edge_weight: Tensor, num_nodes: int) -> Tensor:
    """The sparse matrix (N, N) whose entry [i, j] is the weight of the edge j -> i; weights of equal edges add up."""
    return torch.sparse_coo_tensor(
        edge_index.flip(0), edge_weight, (num_nodes, num_nodes), check_invariants=False
    ).coalesce()


def propagate_hops(x: Tensor, edge_index: Tensor, edge_weight: Tensor, hops: int) -> Tensor:
    """Repeated sums over neighbours: H_0 = x, H_k[i] = sum over edges j -> i of w_ji H_(k-1)[j].

    Args:
        x: (N, C).
        edge_index: (2, E).
        edge_weight: (E,).
        hops: K.

    Returns:
        H_0, ..., H_K, stacked to (N, K + 1, C).
    """
    steps = [x]
    if torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():  # sparse matrices cannot be captured
        source, target = edge_index
        for _ in range(hops):
            messages = edge_weight[:, None] * steps[-1][source]
            steps.append(torch.zeros_like(x).index_add(0, target, messages))
    else:
        matrix = adjacency_matrix(edge_index, edge_weight, x.shape[0])
        with torch.autocast(x.device.type, enabled=False):  # sparse products have no low-precision kernels
            matrix = matrix.to(x.dtype) if x.dtype in (torch.float32, torch.float64) else matrix.float()
            for _ in range(hops):
                steps.append(torch.sparse.mm(matrix, steps[-1].to(matrix.dtype)))
    return torch.stack([step.to(x.dtype) for step in steps], 1)
