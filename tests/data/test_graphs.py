"""Graphs with labelled nodes: files, splits, and what is refused."""

import sys

import numpy as np
import pytest
import torch
from _shared import requires_shared, shared

from torchstone.data.graphs import check_undirected, open_graph
from torchstone.errors import CallError, DataError, UnknownName


def content(nodes=40, **changes):
    rng = np.random.default_rng(0)
    edges = rng.integers(0, nodes, (2, 80))
    graph = {
        "x": rng.random((nodes, 6)).astype("float32"),
        "edge_index": np.concatenate([edges, edges[::-1]], 1),
        "y": rng.integers(0, 3, nodes),
    }
    return {**graph, **changes}


@pytest.fixture
def write(tmp_path):
    def write(**changes):
        np.savez(tmp_path / "graph.npz", **{k: v for k, v in content(**changes).items() if v is not None})
        return str(tmp_path / "graph.npz")

    return write


@requires_shared("data/cora")
def test_cora_is_what_the_papers_use():
    cora = open_graph(str(shared("data/cora/cora.npz")))
    facts = cora.describe()
    assert (facts["nodes"], facts["edges"], facts["features"], facts["classes"]) == (2708, 10556, 1433, 7)
    assert cora.sizes == {"train": 140, "val": 500, "test": 1000}
    assert cora.split == "public"
    assert cora.graph.is_undirected()
    torch.testing.assert_close(cora.graph.x.sum(1), torch.ones(2708))


@requires_shared("data/citeseer")
def test_nodes_without_label_and_features_are_kept_out_of_every_part():
    citeseer = open_graph(str(shared("data/citeseer/citeseer.npz")), split="random")
    unlabelled = citeseer.graph.y < 0
    assert unlabelled.sum() == 15
    for part in ("train", "val", "test"):
        assert not (citeseer.graph[f"{part}_mask"] & unlabelled).any()
    assert citeseer.graph.x.isfinite().all()


@requires_shared("data/texas")
def test_numbered_splits_are_taken_by_number():
    texas = str(shared("data/texas/texas.npz"))
    first, second = open_graph(texas), open_graph(texas, split="fixed:1")
    assert first.split == "fixed:0"
    assert not torch.equal(first.graph.train_mask, second.graph.train_mask)
    with pytest.raises(CallError, match="10 numbered splits"):
        open_graph(texas, split="fixed:10")


def test_random_splits_are_disjoint_seeded_and_recorded(write):
    path = write()
    one, same, other = (open_graph(path, split_seed=seed) for seed in (0, 0, 1))
    masks = torch.stack([one.graph.train_mask, one.graph.val_mask, one.graph.test_mask])
    assert masks.sum(0).eq(1).all()
    assert one.sizes == {"train": 24, "val": 8, "test": 8}
    assert one.describe() == same.describe()
    assert one.describe()["splits"] != other.describe()["splits"]
    assert one.fingerprint == other.fingerprint


def test_per_class_takes_twenty_of_each(write):
    graph = open_graph(write(nodes=1700), split="per-class")
    assert graph.sizes == {"train": 60, "val": 500, "test": 1000}
    assert torch.bincount(graph.graph.y[graph.graph.train_mask]).tolist() == [20, 20, 20]


def test_per_class_30_validates_on_thirty_of_each_and_tests_on_the_rest(write):
    graph = open_graph(write(nodes=400), split="per-class-30")
    assert graph.sizes == {"train": 60, "val": 90, "test": 250}
    assert torch.bincount(graph.graph.y[graph.graph.val_mask]).tolist() == [30, 30, 30]


def test_rows_are_normalised_and_rows_of_zeros_stay(write):
    x = content()["x"]
    x[3] = 0
    graph = open_graph(write(x=x)).graph
    assert graph.x[3].eq(0).all()
    torch.testing.assert_close(graph.x[:3].sum(1), torch.ones(3))
    torch.testing.assert_close(open_graph(write(x=x), normalize=False).graph.x, torch.from_numpy(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": None}, "a graph needs edge_index, y and x"),
        ({"x": np.full((40, 6), np.nan, "float32")}, "features of 40 nodes are NaN"),
        ({"edge_index": np.array([[0], [40]])}, "from 0 to 40, the graph has 0 to 39"),
        ({"y": np.zeros(40, int)}, "at least two classes"),
        ({"y": np.zeros(39, int)}, r"expected x \(N, F\)"),
    ],
)
def test_what_is_no_such_graph_is_refused(write, changes, message):
    with pytest.raises(DataError, match=message):
        open_graph(write(**changes))


def test_names_files_and_splits_that_do_not_exist(write, tmp_path):
    with pytest.raises(UnknownName, match="cora"):
        open_graph("corra")
    with pytest.raises(DataError, match="no graph file"):
        open_graph(str(tmp_path / "missing.npz"))
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match="not a readable"):
        open_graph(str(tmp_path / "text.npz"))
    np.savez(tmp_path / "objects.npz", y=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="not a readable"):
        open_graph(str(tmp_path / "objects.npz"))
    for split, message in (("public", "without a public split"), ("fix", "unknown split"), ("per-class", "too few")):
        with pytest.raises(CallError, match=message):
            open_graph(write(), split=split)


def test_a_directed_graph_is_refused_where_an_undirected_one_is_needed():
    check_undirected(torch.tensor([[0, 1], [1, 0]]), 2)
    with pytest.raises(DataError, match="to_undirected"):
        check_undirected(torch.tensor([[0], [1]]), 2)


def test_missing_reverse_edges_are_added_unless_directions_are_kept(write):
    edges = np.array([[0, 1, 2, 3, 3], [1, 0, 3, 3, 4]])
    path = write(edge_index=edges)
    both = open_graph(path).graph
    assert both.is_undirected()
    assert both.edge_index.T.tolist() == [*edges.T.tolist(), [3, 2], [4, 3]]
    assert open_graph(path, directed=True).graph.edge_index.tolist() == edges.tolist()


def test_features_with_negative_values_are_left_as_they_are(write):
    x = content()["x"] - 0.5
    torch.testing.assert_close(open_graph(write(x=x)).graph.x, torch.from_numpy(x))


def test_without_pyg_the_error_names_the_extra(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_geometric.data", None)
    with pytest.raises(CallError, match=r"pip install torchstone\[graph\]"):
        open_graph(write())
