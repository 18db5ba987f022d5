"""The normalised adjacency and repeated sums over neighbours."""

import pytest
import torch
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import coalesce

from torchstone.errors import ShapeError
from torchstone.layers.adjacency import adjacency_matrix, check_graph, normalized_adjacency, propagate_hops


@pytest.fixture
def graph():
    """20 nodes, some with self-loops (one of them twice), the last two without any edge."""
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(0, 18, (2, 60), generator=generator)
    edges = torch.cat([edges, torch.tensor([[3, 3], [3, 3]])], 1)
    return edges, torch.rand(edges.shape[1], generator=generator)


@pytest.mark.parametrize("weighted", [True, False])
def test_it_is_the_normalisation_of_graph_convolutions(graph, weighted):
    edges, weight = graph
    weight = weight if weighted else None
    ours = adjacency_matrix(*normalized_adjacency(edges, 20, weight), 20).to_dense()
    theirs = adjacency_matrix(*gcn_norm(edges, weight, 20), 20).to_dense()
    torch.testing.assert_close(ours, theirs)


def test_the_largest_eigenvalue_of_an_undirected_graph_is_one(graph):
    edges = coalesce(torch.cat([graph[0], graph[0].flip(0)], 1))
    matrix = adjacency_matrix(*normalized_adjacency(edges, 20), 20).to_dense()
    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(torch.linalg.eigvalsh(matrix).max(), torch.tensor(1.0))


def test_isolated_nodes_and_an_empty_edge_set_keep_their_own_value():
    edges, weight = normalized_adjacency(torch.empty(2, 0, dtype=torch.int64), 3)
    x = torch.randn(3, 2)
    torch.testing.assert_close(propagate_hops(x, edges, weight, hops=2), x[:, None].expand(-1, 3, -1))


def test_a_node_of_degree_zero_gets_nothing():
    edges = torch.tensor([[0, 1], [0, 0]])
    _, weight = normalized_adjacency(edges, 2, torch.tensor([0.0, 0.0]))
    assert weight.isfinite().all()


def test_hops_are_powers_of_the_matrix_and_equal_when_captured(graph):
    edges, weight = normalized_adjacency(graph[0], 20, graph[1])
    x = torch.randn(20, 3, requires_grad=True)
    weight.requires_grad_()
    matrix = adjacency_matrix(edges, weight, 20).to_dense()
    eager = propagate_hops(x, edges, weight, 3)
    powers = [torch.linalg.matrix_power(matrix, k) @ x for k in range(4)]
    torch.testing.assert_close(eager, torch.stack(powers, 1))
    captured = torch.compile(propagate_hops, fullgraph=True, backend="aot_eager")(x, edges, weight, 3)
    torch.testing.assert_close(captured, eager)
    loss = torch.randn_like(eager)
    for ours, other in zip(
        torch.autograd.grad((eager * loss).sum(), (x, weight)),
        torch.autograd.grad((captured * loss).sum(), (x, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, other)


@pytest.mark.parametrize(
    ("x", "edges", "weight", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(2, 1, dtype=torch.int64), None, r"\(N, 5\), got \(3, 4\)"),
        (torch.zeros(3, 5), torch.zeros(1, 2, dtype=torch.int64), None, r"edge_index \(2, E\)"),
        (torch.zeros(3, 5), torch.zeros(2, 1), None, "int64"),
        (torch.zeros(3, 5, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64), None, "floating-point type"),
        (torch.zeros(3, 5), torch.tensor([[0], [3]]), None, "nodes from 0 to 3, the graph has 0 to 2"),
        (torch.zeros(3, 5), torch.tensor([[0], [-1]]), None, "from -1"),
        (torch.zeros(3, 5), torch.tensor([[0], [1]]), torch.ones(2), "one weight for each of 1 edges"),
    ],
)
def test_what_cannot_be_a_graph_is_refused(x, edges, weight, message):
    with pytest.raises(ShapeError, match=message):
        check_graph(x, edges, 5, weight)
