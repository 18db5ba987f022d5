"""Graphs with labelled nodes: files, splits, and what is refused."""

import sys

import numpy as np
import pytest
import torch
from _shared import requires_shared, shared

from torchstone.data.graphs import GraphData, check_undirected, open_graph, read_graph
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


ROWS = {"x_data": np.ones(40), "x_indices": np.zeros(40, int), "x_indptr": np.arange(41), "x_shape": np.array([40, 6])}


def masks(train=slice(0, 20), val=slice(20, 30), test=slice(30, 40)):
    """A public split of 40 nodes."""
    parts = {"train_mask": train, "val_mask": val, "test_mask": test}
    return {name: np.isin(np.arange(40), np.arange(40)[part]) for name, part in parts.items()}


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
    ring = np.arange(400)
    graph = open_graph(write(nodes=400, edge_index=np.stack([ring, np.roll(ring, 1)])), split="per-class-30")
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
        ({"y": np.linspace(0, 2, 40)}, "y must hold integers, got float64"),
        ({"y": np.array([0, 1] * 19 + [-2, 1])}, "-1 where there is none, got -2"),
        ({"edge_index": np.array([[0.5], [1.0]])}, "edge_index must hold integers"),
        ({"x": np.full((40, 6), "a")}, "x must hold numbers"),
        ({"x": np.array(1.0)}, r"expected x \(N, F\)"),
        ({"x": None, **ROWS, "x_indices": np.full(40, 9)}, "no compressed rows"),
        (masks(train=slice(0, 39)), "19 nodes are in several parts of the split public, the first is 20"),
        (masks(val=slice(0, 0)), "the split public has no labelled node for val"),
        ({**masks(), "test_mask": np.arange(40)}, r"the test mask .* true or false for each of 40 nodes, got int64"),
        ({**masks(), "train_mask": np.ones(39, bool)}, r"got bool \(39,\)"),
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


def test_an_edge_given_twice_counts_once_unless_directions_are_kept(write):
    edges = np.array([[0, 0, 1], [1, 1, 2]])
    path = write(edge_index=edges)
    assert open_graph(path).graph.edge_index.T.tolist() == [[0, 1], [1, 2], [1, 0], [2, 1]]
    assert open_graph(path, directed=True).graph.num_edges == 3


def test_masks_may_be_written_as_zeros_and_ones(write):
    one, other = masks(), {name: mask.astype(int) for name, mask in masks().items()}
    assert open_graph(write(**one)).describe()["splits"] == open_graph(write(**other)).describe()["splits"]


def test_a_split_that_names_unlabelled_nodes_goes_without_them(write):
    labels = content()["y"]
    labels[[3, 35]] = -1
    assert open_graph(write(**masks(), y=labels)).sizes == {"train": 19, "val": 10, "test": 9}


@requires_shared("data/citeseer")
def test_every_numbered_split_of_citeseer_can_be_trained_on():
    for number in range(10):
        graph = open_graph(str(shared("data/citeseer/citeseer.npz")), split=f"fixed:{number}").graph
        assert graph.y[graph.train_mask | graph.val_mask | graph.test_mask].min() == 0


def test_splits_with_a_validation_set_by_class_stay_in_the_largest_component(write):
    ring = np.arange(300)
    pair = np.array([[300, 301], [301, 300]])
    edges = np.concatenate([[ring, np.roll(ring, 1)], pair], 1)
    graph = open_graph(write(nodes=400, edge_index=edges), split="per-class-30").graph
    drawn = graph.train_mask | graph.val_mask | graph.test_mask
    assert drawn[:300].all()
    assert not drawn[300:].any()


def test_prediction_reads_features_as_training_did(write):
    """A graph that happens to have no negative features is not normalised when the training graph was not."""
    trained = GraphData(open_graph(write(x=content()["x"] - 0.5)))
    x = content()["x"]
    torch.testing.assert_close(read_graph(write(x=x), **trained.preprocessing()).x, torch.from_numpy(x))
    with pytest.raises(DataError, match="has 5 features, the network was trained on 6"):
        read_graph(write(x=x[:, :5]), **trained.preprocessing())


def test_features_with_negative_values_are_left_as_they_are(write):
    x = content()["x"] - 0.5
    torch.testing.assert_close(open_graph(write(x=x)).graph.x, torch.from_numpy(x))


def test_without_pyg_the_error_names_the_extra(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_geometric.data", None)
    with pytest.raises(CallError, match=r"pip install torchstone\[graph\]"):
        open_graph(write())
