"""DAGNN: its equations, its gates, sparse features, what it costs, and the paper's sizes."""

import pytest
import torch
from torch.nn import functional as F

from torchstone import create_model
from torchstone.errors import CallError
from torchstone.instruments.macs import count_macs
from torchstone.layers.adjacency import compressed, normalized_adjacency, propagate_hops
from torchstone.models.graph.dagnn import DAGNN, AdaptivePropagation

N, F_IN, C = 9, 5, 3


@pytest.fixture
def graph():
    torch.manual_seed(0)
    one_way = torch.tensor([[0, 0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6, 7]])
    return torch.rand(N, F_IN), torch.cat([one_way, one_way.flip(0)], 1)


def network(hops=4, **kwargs):
    torch.manual_seed(1)
    return DAGNN(F_IN, C, hidden_channels=8, hops=hops, **kwargs).eval()


def test_it_computes_the_papers_equations(graph):
    x, edge_index = graph
    model = network()
    adjacency = torch.eye(N)
    adjacency[edge_index[1], edge_index[0]] = 1
    scale = adjacency.sum(1).rsqrt()
    adjacency = scale[:, None] * adjacency * scale
    z = model.lin2(model.lin1(x).relu())
    hops = [torch.linalg.matrix_power(adjacency, k) @ z for k in range(5)]
    out = sum(torch.sigmoid(hop @ model.prop.proj.weight.t() + model.prop.proj.bias) * hop for hop in hops)
    torch.testing.assert_close(model(x, edge_index), out.log_softmax(1))


def test_without_hops_it_is_the_perceptron_with_a_gate(graph):
    x, edge_index = graph
    model = network(hops=0)
    z = model.transform(x)
    torch.testing.assert_close(model(x, edge_index), (model.prop.proj(z).sigmoid() * z).log_softmax(1))


def test_the_receptive_field_is_the_number_of_hops(graph):
    """On the path 0-1-3-5-7 node 7 is four steps from node 0."""
    x, edge_index = graph
    other = x.clone()
    other[0] += 1
    for hops, reached in ((3, False), (4, True)):
        model = network(hops)
        changed = not torch.equal(model(x, edge_index)[7], model(other, edge_index)[7])
        assert changed == reached


def test_gates_are_independent_of_each_other(graph):
    x, edge_index = graph
    module = AdaptivePropagation(F_IN, 3)
    steps = propagate_hops(x, *normalized_adjacency(edge_index, N), 3)
    gates = module.gates(steps)
    assert gates.shape == (N, 4)
    assert gates.gt(0).all()
    assert gates.lt(1).all()
    assert not torch.allclose(gates.sum(1), torch.ones(N), atol=0.1), "a softmax over hops would sum to one"
    changed = steps.clone()
    changed[:, 2] = 0
    torch.testing.assert_close(module.gates(changed)[:, [0, 1, 3]], gates[:, [0, 1, 3]])


def test_a_single_node_and_a_single_class_keep_their_dimensions():
    alone = DAGNN(F_IN, 1, hops=2).eval()
    assert alone(torch.rand(1, F_IN), torch.empty(2, 0, dtype=torch.int64)).shape == (1, 1)


def test_sparse_features_give_the_same_answer_and_gradients(graph):
    x, edge_index = graph
    x = F.threshold(x, 0.5, 0)
    dense, sparse = network(), network()
    loss = torch.randn(N, C)
    (dense(x, edge_index) * loss).sum().backward()
    (sparse(compressed(x), edge_index) * loss).sum().backward()
    torch.testing.assert_close(sparse(compressed(x), edge_index), dense(x, edge_index))
    for ours, expected in zip(sparse.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)


def test_dropout_of_sparse_features_is_that_of_dense_ones():
    """Each stored element is kept with probability 1 - p and scaled by 1 / (1 - p)."""
    from torchstone.layers.adjacency import sparse_dropout

    torch.manual_seed(0)
    x = compressed(torch.eye(2000) * 3)
    kept = sparse_dropout(x, 0.8, True).values()
    assert set(kept.unique().tolist()) == {0.0, 15.0}
    assert 0.16 < kept.gt(0).float().mean() < 0.24
    assert sparse_dropout(x, 0.8, False) is x


def test_no_dropout_on_the_features_where_it_is_switched_off(graph):
    x, edge_index = graph
    model = network(dropout=0.0, input_dropout=0.0, batch_norm=True).train()
    assert torch.equal(model(x, edge_index), model(x, edge_index))
    with torch.no_grad():
        model.input_dropout = 0.5
        assert not torch.equal(model(x, edge_index), model(x, edge_index))


def test_multiply_accumulates_are_those_of_the_formula(graph):
    """N (F h + h C) + K |E| C + N (K + 1) 2 C, and one per edge for the degrees."""
    x, edge_index = graph
    edges = edge_index.shape[1] + N
    count = count_macs(network(), (x, edge_index))
    stored = edge_index.shape[1] + N  # of the matrix; loops that are not there have no element of their own
    assert not count.uncounted
    assert count.total == N * (F_IN * 8 + 8 * C) + 4 * stored * C + N * 5 * 2 * C + edges


def test_the_gates_of_a_row_of_equal_hops_weigh_alike():
    """Isolated nodes: H_k = Z for all k, so the output is (K + 1) s(Z) Z."""
    model = AdaptivePropagation(C, 5)
    z = torch.randn(4, C)
    edges, weights = normalized_adjacency(torch.empty(2, 0, dtype=torch.int64), 4)
    torch.testing.assert_close(model(z, edges, weights), 6 * model.proj(z).sigmoid() * z)


def test_many_hops_forget_all_but_the_degree(graph):
    """A^K x of a connected component goes to a multiple of the square root of its degrees: why gates are needed."""
    x, edge_index = graph
    steps = propagate_hops(x[:, :1], *normalized_adjacency(edge_index, N), 200)[:8, :, 0]  # node 8 is isolated
    degree = torch.bincount(edge_index[1], minlength=N)[:8] + 1.0
    likeness = F.cosine_similarity(steps, degree.sqrt()[:, None], dim=0)  # by hop
    assert likeness[0] < 0.98
    assert likeness[-1] > 0.9999


@pytest.mark.parametrize(
    ("name", "hops", "dropout", "parameters"),
    [
        ("dagnn_cora", 10, 0.8, 92_239),
        ("dagnn_citeseer", 10, 0.5, 237_453),
        ("dagnn_pubmed", 20, 0.8, 32_263),
        ("dagnn_arxiv", 16, 0.2, 43_857),
    ],
)
def test_the_papers_configurations(name, hops, dropout, parameters):
    model = create_model(name)
    assert (model.prop.hops, model.dropout) == (hops, dropout)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert create_model(name, hops=2).prop.hops == 2


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match="negative, got -1"):
        DAGNN(F_IN, C, hops=-1)
    with pytest.raises(ValueError, match=r"dropout is a rate .* got 1\.5"):
        DAGNN(F_IN, C, dropout=1.5)
    with pytest.raises(CallError, match="none were released"):
        create_model("dagnn_cora", pretrained=True)
    with pytest.raises(CallError, match="hop"):
        create_model("dagnn", hop=3)
