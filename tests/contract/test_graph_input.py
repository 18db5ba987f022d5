"""Every graph model is a function of the graph: of neither numbering nor order; what is no graph is refused."""

import pytest
import torch
from _graph import CLASSES, FEATURES, NODES, SYSTEMS, build_graph_model, graph
from _image import assert_same

from torchstone.data.graphs import GraphData, open_graph
from torchstone.errors import DataError, ShapeError
from torchstone.training.nodes import NodeClassifier
from torchstone.training.recipe import TrainSpec

pytestmark = pytest.mark.parametrize(
    "card", [pytest.param(card, id=card.key, marks=pytest.mark.system(card.key)) for card in SYSTEMS]
)


def answer(model, x, edge_index):
    with torch.no_grad():
        return model.eval()(x, edge_index)


def test_nodes_may_be_numbered_in_any_order(card):
    model, (x, edge_index) = build_graph_model(card), graph()
    order = torch.randperm(NODES, generator=torch.Generator().manual_seed(1))
    place = torch.argsort(order)
    assert_same(answer(model, x[order], place[edge_index]), answer(model, x, edge_index)[order])


def test_edges_may_come_in_any_order(card):
    model, (x, edge_index) = build_graph_model(card), graph()
    order = torch.randperm(edge_index.shape[1], generator=torch.Generator().manual_seed(1))
    assert_same(answer(model, x, edge_index[:, order]), answer(model, x, edge_index))


def test_an_isolated_node_is_answered_by_itself(card):
    model, (x, edge_index) = build_graph_model(card), graph()
    alone = answer(model, x[-1:], torch.empty(2, 0, dtype=torch.int64))
    assert alone.shape == (1, CLASSES)
    assert_same(answer(model, x, edge_index)[-1:], alone)


def test_without_edges_every_node_is_answered_by_itself(card):
    model, (x, _) = build_graph_model(card), graph()
    nothing = torch.empty(2, 0, dtype=torch.int64)
    each = torch.cat([answer(model, node[None], nothing) for node in x])
    assert_same(answer(model, x, nothing), each)


def test_neighbours_matter(card):
    model, (x, edge_index) = build_graph_model(card), graph()
    other = x.clone()
    node = edge_index[0, 0]
    other[node] += 1
    changed = (answer(model, x, edge_index) - answer(model, other, edge_index)).abs().sum(1) > 1e-6
    assert changed[edge_index[1, 0]]


def test_nodes_that_do_not_exist_are_refused(card):
    model, (x, edge_index) = build_graph_model(card), graph()
    for wrong in (NODES, -1):
        with pytest.raises(ShapeError, match=rf"the graph has 0 to {NODES - 1}"):
            model(x, torch.cat([edge_index, torch.tensor([[0], [wrong]])], 1))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, e: (x[:, :-1], e), rf"\(N, {FEATURES}\), got \({NODES}, {FEATURES - 1}\)"),
        (lambda x, e: (x[0], e), rf"\(N, {FEATURES}\), got"),
        (lambda x, e: (x, e.t()), r"edge_index \(2, E\)"),
        (lambda x, e: (x, e.float()), "int64, got .* of torch.float32"),
    ],
)
def test_other_shapes_and_types_are_refused(card, spoil, message):
    with pytest.raises(ShapeError, match=message):
        build_graph_model(card)(*spoil(*graph()))


def test_nan_in_a_node_reaches_no_other_component(card):
    """Features that are NaN show; they are refused where data are opened."""
    model, (x, edge_index) = build_graph_model(card), graph()
    clean = answer(model, x, edge_index)
    x[-1, 0] = float("nan")
    found = answer(model, x, edge_index)
    assert found[-1].isnan().any()
    assert_same(found[:-1], clean[:-1])


def test_a_directed_graph_is_refused_where_an_undirected_one_is_needed(card, tmp_path):
    import numpy as np

    model, (x, edge_index) = build_graph_model(card), graph()
    one_way = edge_index[:, : edge_index.shape[1] // 2]
    labels = np.arange(NODES) % CLASSES
    np.savez(tmp_path / "graph.npz", x=x.numpy(), edge_index=one_way.numpy(), y=labels)
    opened = GraphData(open_graph(str(tmp_path / "graph.npz"), directed=True))
    if not getattr(model, "needs_undirected", False):
        pytest.skip("takes directed graphs")
    with pytest.raises(DataError, match="undirected"):
        NodeClassifier(model, TrainSpec(), seed=0, data=opened)
    made = GraphData(open_graph(str(tmp_path / "graph.npz")))
    NodeClassifier(model, TrainSpec(), seed=0, data=made)
