"""Whole graphs: sets of them are read, split and batched; classes and numbers are learned; runs resume and predict."""

import numpy as np
import pytest
import torch
from _shared import requires_shared, shared
from test_nodes import outcome
from torch_geometric.data import Data

from torchstone.data.graph_sets import open_graph_set, read_graph_set, save_graph_set
from torchstone.errors import CallError, DataError
from torchstone.reporting.compare import compare
from torchstone.training.fit import evaluate, fit
from torchstone.training.predict import predict
from torchstone.training.recipe import Recipe
from torchstone.training.tasks import get_task, task_of

TRAIN = {"epochs": 12, "lr": 0.01, "optimizer": "adam", "weight_decay": 0.0, "schedule": "constant", "batch_size": 16}


def ring(nodes: int, chord: bool) -> Data:
    """A ring, with a chord or without: types and edge types are all alike but for the chord's ends."""
    edges = [(node, (node + 1) % nodes) for node in range(nodes)]
    kinds = [0] * nodes
    if chord:
        edges.append((0, nodes // 2))
        kinds.append(1)
    one_way = torch.tensor(edges).T
    types = torch.zeros(nodes, dtype=torch.int64)
    types[::3] = 1
    return Data(
        x=types[:, None],
        edge_index=torch.cat([one_way, one_way.flip(0)], 1),
        edge_attr=torch.tensor(kinds * 2),
        y=torch.tensor(int(chord)),
    )


@pytest.fixture(scope="module")
def rings(tmp_path_factory):
    """Rings with and without a chord: a file of 120 graphs."""
    graphs = [ring(5 + index % 7, index % 2 == 1) for index in range(120)]
    path = tmp_path_factory.mktemp("sets") / "rings.npz"
    save_graph_set(path, train=graphs[:80], val=graphs[80:100], test=graphs[100:])
    return path


@pytest.fixture(scope="module")
def sizes(tmp_path_factory):
    """The same rings with two numbers to be predicted, their nodes and edges."""
    graphs = [ring(5 + index % 7, index % 2 == 1) for index in range(120)]
    for graph in graphs:
        graph.y = torch.tensor([[graph.num_nodes / 10, graph.num_edges / 20]])
    path = tmp_path_factory.mktemp("sets") / "sizes.npz"
    save_graph_set(path, train=graphs[:80], val=graphs[80:100], test=graphs[100:])
    return path


def recipe(path, task="graph-classification", train=(), **model) -> Recipe:
    return Recipe.from_dict(
        {
            "task": task,
            "model": {"name": "pyg:gin", "args": {"hidden_channels": 16}, **model},
            "data": {"source": str(path)},
            "train": {**TRAIN, **dict(train)},
        }
    )


def test_a_saved_set_is_read_as_it_was(rings):
    found = read_graph_set(str(rings))
    graph = found.graphs[1]
    expected = ring(6, True)
    assert torch.equal(graph.edge_index, expected.edge_index)
    assert torch.equal(graph.x.argmax(1), expected.x[:, 0])
    assert torch.equal(graph.edge_attr.argmax(1), expected.edge_attr)
    assert (found.num_features, found.edge_channels, len(found.graphs)) == (2, 2, 120)
    assert [len(part) for part in found.public] == [80, 20, 20]
    assert found.y.tolist() == [0, 1] * 60


def test_batches_are_a_function_of_seed_and_epoch(rings):
    def labels(seed, epoch):
        loader = open_graph_set(str(rings), batch_size=16, seed=seed).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return [tuple(batch.num_nodes for batch in loader)]

    assert labels(0, 3) == labels(0, 3)
    assert labels(0, 3) != labels(0, 4)
    assert labels(0, 3) != labels(1, 3)


def test_classes_are_learned_and_predicted_and_a_run_goes_on_exactly(rings, tmp_path):
    class Stopped(Exception):
        pass

    def stop(state):
        if state.epoch == 4 and state.step == 2:
            raise Stopped

    whole = fit(recipe(rings), tmp_path / "whole", device="cpu")
    assert whole.score > 0.8
    assert evaluate(whole.path, "test").score > 0.8
    with pytest.raises(Stopped):
        fit(recipe(rings), tmp_path / "cut", device="cpu", progress=stop)
    fit(recipe(rings), tmp_path / "cut", device="cpu")
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "cut")
    found = predict(whole.path, [str(rings)])
    assert [one.graph for one in found] == list(range(120))
    assert np.mean([one.label == f"class {index % 2}" for index, one in enumerate(found)]) > 0.8


def test_numbers_are_learned_and_predicted(sizes, tmp_path):
    run = fit(recipe(sizes, "graph-regression", {"epochs": 30}), tmp_path / "run", device="cpu")
    assert run.metric == "mae"
    assert run.score == pytest.approx(run.rows[-1]["val_loss"])
    assert run.score < run.rows[0]["val_mae"] / 2
    test = evaluate(run.path, "test")
    assert test.predictions.shape == test.targets.shape == (20, 2)
    assert test.score == pytest.approx((test.predictions - test.targets).abs().mean().item())
    found = predict(run.path, [str(sizes)])
    assert found[100].values == pytest.approx(test.predictions[0].tolist(), rel=1e-4)


def test_networks_are_compared_on_sets_of_graphs(rings, sizes, tmp_path):
    for name, path, task, best in (("a", rings, "graph-classification", max), ("b", sizes, "graph-regression", min)):
        found = compare(
            str(path), ["pyg:gin", "pyg:gcn"], out=tmp_path / name, epochs=4, seeds=1, tune=1, task=task, batch_size=16
        )
        assert [candidate.status for candidate in found.candidates] == ["trained", "trained"]
        scores = [candidate.score for candidate in found.candidates]
        assert scores[0] == best(scores), "the best comes first"
        assert found.candidates[0].cost["latency_ms_1"] > 0
        assert (tmp_path / name / "report.html").is_file()


def test_a_set_without_a_split_is_split_by_seed_and_class(rings):
    opened = open_graph_set(str(rings), batch_size=16, split="random", val_fraction=0.25, test_fraction=0.25)
    assert [len(part) for part in opened.parts.values()] == [60, 30, 30]
    assert sorted(np.concatenate(list(opened.parts.values()))) == list(range(120))
    assert opened.source.y[opened.parts["val"]].float().mean() == 0.5
    other = open_graph_set(str(rings), batch_size=16, split="random", split_seed=1)
    assert other.fingerprint != opened.fingerprint


def test_bad_sets_and_options_are_refused_in_words(rings, sizes, tmp_path):
    def changed(**parts):
        with np.load(rings) as file:
            content = {**dict(file), **parts}
        np.savez(tmp_path / "changed.npz", **content)
        return str(tmp_path / "changed.npz")

    for source, message in (
        ({"num_nodes": np.full(120, 3)}, "num_nodes add up to 360"),
        ({"node_type": np.full(960, -1)}, "types are integers from 0 on"),
        ({"y": np.zeros(120, int)}, "at least two classes"),
        ({"y": np.zeros(3, int)}, "are of 120, 120 and 3 graphs"),
        (str(sizes), "that is the task graph-regression"),
        (str(tmp_path / "nothing.npz"), "there is no file"),
        ("nothing", "is no set of graphs"),
        (str(tmp_path), "is no set of graphs"),
    ):
        with pytest.raises(DataError, match=message):
            open_graph_set(changed(**source) if isinstance(source, dict) else source, batch_size=8)
    for split, message in (("fold:0", "0 official folds"), ("per-class", "unknown split")):
        with pytest.raises(CallError, match=message):
            open_graph_set(str(rings), batch_size=8, split=split)
    with pytest.raises(CallError, match=r"data\.normalize is for other data"):
        get_task("graph-classification").open_data(
            Recipe.from_dict({"model": {"name": "x"}, "data": {"source": str(rings), "normalize": True}}).data,
            recipe(rings).train,
            0,
        )


def test_other_features_than_the_networks_are_refused(rings, tmp_path):
    run = fit(recipe(rings, train={"epochs": 1}), tmp_path / "run", device="cpu").path
    graphs = [ring(6, False) for _ in range(3)]
    for graph in graphs:
        graph.x = graph.x + 5
    save_graph_set(tmp_path / "other.npz", train=graphs, val=graphs, test=graphs)
    with pytest.raises(DataError, match="types up to 6, the network was trained on 2"):
        predict(run, [str(tmp_path / "other.npz")])


@requires_shared("data/tu_MUTAG")
@pytest.mark.parametrize(("name", "graphs", "features"), [("MUTAG", 188, 7), ("IMDBBINARY", 1000, 136)])
def test_folders_of_the_gin_authors_come_with_their_folds(name, graphs, features):
    folder = str(shared(f"data/tu_{name}"))
    assert task_of(folder).name == "graph-classification"
    opened = open_graph_set(folder, batch_size=16, split="fold:3")
    assert (len(opened.source.graphs), opened.source.num_features) == (graphs, features)
    train, test = opened.source.folds[3]
    assert np.array_equal(np.sort(opened.parts["test"]), np.sort(test))
    assert np.array_equal(np.sort(np.concatenate([opened.parts["train"], opened.parts["val"]])), np.sort(train))
    assert all(graph.is_undirected() for graph in opened.source.graphs[:50])


def test_the_collections_own_folders_are_read(tmp_path):
    """Two triangles and a path, with types of nodes, in the format of the TU collection."""
    edges = [(1, 2), (2, 1), (2, 3), (3, 2), (1, 3), (3, 1), (4, 5), (5, 4), (5, 6), (6, 5)]
    (tmp_path / "TINY_A.txt").write_text("".join(f"{a}, {b}\n" for a, b in edges))
    (tmp_path / "TINY_graph_indicator.txt").write_text("1\n1\n1\n2\n2\n2\n")
    (tmp_path / "TINY_graph_labels.txt").write_text("1\n-1\n")
    found = read_graph_set(str(tmp_path))
    assert [graph.num_nodes for graph in found.graphs] == [3, 3]
    assert found.graphs[1].edge_index.tolist() == [[0, 1, 1, 2], [1, 0, 2, 1]]
    assert found.graphs[1].x.argmax(1).tolist() == [1, 2, 1], "degrees stand for types that are not there"
    (tmp_path / "TINY_node_labels.txt").write_text("0\n0\n1\n2\n0\n1\n")
    assert read_graph_set(str(tmp_path)).graphs[1].x.argmax(1).tolist() == [2, 0, 1]
