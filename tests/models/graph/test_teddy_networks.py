"""The five networks that TEDDY sparsifies: functions of the graph, equal to their equations, deployable."""

import copy
import pickle

import pytest
import torch

from torchstone import create_model
from torchstone.catalog import card
from torchstone.errors import ShapeError
from torchstone.layers.adjacency import compressed
from torchstone.models.graph.teddy_networks import GAT, GIN, SAGE, GraphTransformer

pytestmark = pytest.mark.system("teddy")

FEATURES, CLASSES, NODES = 6, 3, 12
NAMES = [variant.name for variant in card("teddy").variants]


def build(name, **kwargs):
    torch.manual_seed(0)
    sizes = {"in_channels": FEATURES, "out_channels": CLASSES, "hidden_channels": 4}
    return create_model(name, **sizes, **kwargs).eval()


def graph(nodes=NODES, edges=15, seed=0):
    """Features and undirected edges; the last node has none."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(nodes - 1, (edges,), generator=generator)
    target = (source + torch.randint(1, nodes - 1, (edges,), generator=generator)) % (nodes - 1)
    one_way = torch.stack([torch.minimum(source, target), torch.maximum(source, target)]).unique(dim=1)
    return torch.randn(nodes, FEATURES, generator=generator), torch.cat([one_way, one_way.flip(0)], 1)


def dense(edge_index, nodes=NODES):
    """The adjacency (N, N): entry [i, j] counts the edges j -> i."""
    matrix = torch.zeros(nodes, nodes)
    matrix[edge_index[1], edge_index[0]] = 1
    return matrix


def assert_same(found, expected, bound=1e-5):
    assert (found - expected).abs().max() <= bound * expected.abs().max().clamp(min=0.1)


def test_gin_is_its_equation():
    model, (x, edge_index) = build("teddy_gin"), graph()
    model.convs[0].eps.data.fill_(0.3)
    a, (first, second) = dense(edge_index), model.convs
    hidden = ((a @ x + 1.3 * x) @ first.lin.weight.T).relu()
    last = ((a @ hidden + hidden) @ second.lin.weight.T).relu()
    assert_same(model(x, edge_index), (hidden @ model.mlp.weight.T + last) / 2)


def test_sage_is_its_equation():
    model, (x, edge_index) = build("teddy_sage"), graph()
    a = dense(edge_index)
    mean = a / a.sum(1, keepdim=True).clamp(min=1)

    def layer(conv, h):
        return mean @ h @ conv.lin_l.weight.T + h @ conv.lin_r.weight.T

    assert_same(model(x, edge_index), layer(model.convs[1], layer(model.convs[0], x).relu()))


def test_soft_attention_keeps_pruned_edges_with_score_zero():
    """One layer of the transformer, one head, written down with dense matrices."""
    model, (x, edge_index) = build("teddy_graph_transformer", heads=1), graph()
    conv = model.convs[0]
    value = torch.ones(edge_index.shape[1])
    value[::3] = 0
    edge, values = dense(edge_index), torch.zeros(NODES, NODES)
    values[edge_index[1], edge_index[0]] = value
    score = values * (conv.lin_query(x) @ conv.lin_key(x).T) / 2  # sqrt of 4 channels
    weight = score.masked_fill(edge == 0, -torch.inf).softmax(1).nan_to_num()
    assert_same(conv(x, edge_index, value), weight @ conv.lin_value(x) + conv.lin_skip(x))


@pytest.mark.parametrize("network", [GAT, GraphTransformer])
def test_soft_and_hard_mode_differ_only_where_edges_are_pruned(network):
    torch.manual_seed(0)
    model, (x, edge_index) = network(FEATURES, CLASSES, hidden_channels=4, heads=2).eval(), graph()
    ones = torch.ones(edge_index.shape[1])
    assert_same(model(x, edge_index, ones), model(x, edge_index))
    pruned = ones.clone()
    pruned[:4] = 0
    assert not torch.allclose(model(x, edge_index, pruned), model(x, edge_index[:, 4:]))


def test_a_loop_that_is_there_is_not_added_again():
    model, (x, edge_index) = build("teddy_gat"), graph()
    loops = torch.arange(NODES).expand(2, -1)
    assert_same(model(x, torch.cat([edge_index, loops], 1)), model(x, edge_index))


@pytest.mark.parametrize("name", NAMES)
def test_nodes_may_be_numbered_and_edges_given_in_any_order(name):
    model, (x, edge_index) = build(name), graph()
    expected = model(x, edge_index)
    order = torch.randperm(NODES)
    assert_same(model(x[order], torch.argsort(order)[edge_index]), expected[order])
    assert_same(model(x, edge_index[:, torch.randperm(edge_index.shape[1])]), expected)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter_and_dropout_acts_in_training(name):
    model, (x, edge_index) = build(name, dropout=0.5).train(), graph()
    assert not torch.equal(model(x, edge_index), model(x, edge_index))
    model.eval()(x, edge_index).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", NAMES)
def test_compressed_features_give_the_same_answers_and_gradients(name):
    model, (x, edge_index) = build(name), graph()
    x = torch.where(x > 0.5, x, 0)
    other = copy.deepcopy(model)
    assert_same(other(compressed(x), edge_index), model(x, edge_index))
    other(compressed(x), edge_index).square().sum().backward()
    model(x, edge_index).square().sum().backward()
    for ours, expected in zip(other.parameters(), model.parameters(), strict=True):
        assert_same(ours.grad, expected.grad, 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_copied_pickled_and_in_half_precision(name):
    model, inputs = build(name), graph()
    expected = model(*inputs)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(*inputs), expected)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(*inputs)
    assert_same(found.float(), expected, 0.1)
    found.float().sum().backward()


@pytest.mark.parametrize("name", NAMES)
def test_exported_with_dynamic_nodes_and_edges(name):
    model = build(name)
    dynamic = ({0: torch.export.Dim("nodes", min=2)}, {1: torch.export.Dim("edges", min=2)})
    with torch.no_grad():
        program = torch.export.export(copy.deepcopy(model), graph(), dynamic_shapes=dynamic)
        other = graph(nodes=30, edges=60, seed=2)
        assert_same(program.module()(*other), model(*other))


def test_compiled_whole(warm_compiler):
    torch.compiler.reset()
    model, inputs = build("teddy_gat"), graph()
    assert_same(torch.compile(model, fullgraph=True, backend="aot_eager")(*inputs), model(*inputs))
    torch.compiler.reset()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_graph_is_refused(name):
    model, (x, edge_index) = build(name), graph()
    with pytest.raises(ShapeError, match=rf"\(N, {FEATURES}\)"):
        model(x[:, :-1], edge_index)
    with pytest.raises(ShapeError, match="the graph has 0 to 11"):
        model(x, edge_index + 5)


def test_sizes_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="num_layers must be at least 2"):
        SAGE(FEATURES, CLASSES, num_layers=1)
    with pytest.raises(ValueError, match="this GIN has 2 layers"):
        GIN(FEATURES, CLASSES, num_layers=3)
    with pytest.raises(ValueError, match="dropout is a rate"):
        GAT(FEATURES, CLASSES, dropout=1.0)
    model, (x, edge_index) = build("teddy_gat"), graph()
    with pytest.raises(ShapeError, match="one weight for each"):
        model(x, edge_index, torch.ones(3))
