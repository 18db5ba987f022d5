"""Node classification: full-batch runs, the epoch that is kept, early stopping, exact resume, predictions."""

import csv
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.neighbors import kneighbors_graph

from torchstone.errors import CallError
from torchstone.files import read_json
from torchstone.training.fit import _stops, evaluate, fit
from torchstone.training.predict import predict
from torchstone.training.recipe import Recipe, TrainSpec
from torchstone.training.runs import read_info
from torchstone.training.tasks import get_task, task_of

TRAIN = {
    "epochs": 12,
    "lr": 0.05,
    "optimizer": "adam",
    "weight_decay": 1e-3,
    "decay_all": True,
    "schedule": "constant",
    "select": "best_loss",
    "checkpoint_epochs": 5,
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Handwritten digits, each linked to its nearest neighbours: a file."""
    x, y = (values[:200] for values in load_digits(return_X_y=True))
    path = tmp_path_factory.mktemp("graphs") / "digits.npz"
    np.savez(path, x=x.astype("float32"), edge_index=np.array(kneighbors_graph(x, 5).nonzero()), y=y)
    return path


def recipe(digits, train=(), data=(), model=()) -> Recipe:
    return Recipe.from_dict(
        {
            "task": "node-classification",
            "model": {"name": "dagnn", "args": {"hidden_channels": 16, "hops": 3}, **dict(model)},
            "data": {"source": str(digits), "split": "random", **dict(data)},
            "train": {**TRAIN, **dict(train)},
        }
    )


def outcome(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "rows": [{key: value for key, value in row.items() if key != "seconds"} for row in rows],
        "weights": (run / "model.safetensors").read_bytes(),
        "result": {key: value for key, value in read_json(run / "result.json").items() if key != "seconds"},
    }


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    fit(recipe(digits), path, device="cpu")
    return path


def test_it_learns(digits, tmp_path):
    run = fit(recipe(digits, train={"epochs": 60, "checkpoint_epochs": 100}), tmp_path / "run", device="cpu")
    assert run.rows[-1]["train_loss"] < run.rows[0]["train_loss"] / 2
    assert run.score > 0.7
    assert [row["epoch"] for row in run.rows] == list(range(1, 61))


def test_the_kept_weights_are_those_of_the_lowest_validation_loss(digits, finished):
    rows = outcome(finished)["rows"]
    kept = min(rows, key=lambda row: row["val_loss"])
    result = read_json(finished / "result.json")
    assert result["kept_epoch"] == kept["epoch"]
    assert result["score"] == kept["val_accuracy"]
    assert evaluate(finished, "val", device="cpu").score == pytest.approx(kept["val_accuracy"])


def test_a_worse_last_epoch_is_not_kept(digits, tmp_path):
    """At a rate that overshoots, the best epoch is not the last."""
    run = fit(recipe(digits, train={"lr": 3.0, "epochs": 10}), tmp_path / "best", device="cpu")
    last = fit(recipe(digits, train={"lr": 3.0, "epochs": 10, "select": "last"}), tmp_path / "last", device="cpu")
    losses = [row["val_loss"] for row in run.rows]
    assert losses.index(min(losses)) < 9, "the test needs a rate that overshoots"
    kept, ended = (load_file(tmp_path / name / "model.safetensors") for name in ("best", "last"))
    assert any(not torch.equal(kept[name], ended[name]) for name in kept)
    assert [row["val_loss"] for row in last.rows] == losses


class Stop(Exception):
    pass


@pytest.mark.parametrize("epoch", [3, 7, 11])
def test_interrupted_anywhere_it_ends_with_the_same_bits(digits, finished, tmp_path, epoch):
    def interrupt(now):
        if now.epoch == epoch:
            raise Stop

    with pytest.raises(Stop):
        fit(recipe(digits), tmp_path / "run", device="cpu", progress=interrupt)
    resumed = fit(recipe(digits), tmp_path / "run", device="cpu")
    assert resumed.trained == 12 - (epoch - 1) // 5 * 5, "it goes on from the last checkpoint"
    assert outcome(tmp_path / "run") == outcome(finished)


def test_the_window_says_when_training_stops():
    train = TrainSpec(epochs=10, stop_window=2)
    rows = [{"val_loss": loss} for loss in (1, 9, 9, 9, 1, 1.0, 1.5)]
    assert [count for count in range(1, 8) if _stops(train, rows[:count])] == [7]  # 9 after 1, 9 is in the first half
    assert not _stops(TrainSpec(epochs=10), rows)
    assert not _stops(train, [{"val_loss": 1.0}] * 9), "equal is not above"


def test_a_stopped_run_is_finished_and_resumes_as_such(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("torchstone.training.fit._stops", lambda train, rows: len(rows) >= 23)
    changes = {"epochs": 40, "stop_window": 3}
    run = fit(recipe(digits, train=changes), tmp_path / "run", device="cpu")
    assert len(run.rows) == 23
    assert read_json(run.path / "result.json")["epochs"] == len(run.rows)
    expected = outcome(run.path)
    (run.path / "result.json").unlink()  # killed before the result was written
    again = fit(recipe(digits, train=changes), tmp_path / "run", device="cpu")
    assert again.trained == 0
    assert outcome(run.path) == expected


def test_how_often_checkpoints_are_written_does_not_make_another_run(digits, finished):
    assert fit(recipe(digits, train={"checkpoint_epochs": 1}), finished, device="cpu").trained == 0


def test_weight_decay_reaches_biases_where_it_is_asked_for(digits):
    task = get_task("node-classification")
    for decay_all, groups in ((True, [6]), (False, [3, 3])):
        one = recipe(digits, train={"decay_all": decay_all})
        data = task.open_data(one.data, one.train, 0)
        module = task.module(task.build_model(one.model, data), one, data)
        assert sorted(len(group["params"]) for group in module.configure_optimizers().param_groups) == groups


def test_every_node_is_predicted_with_or_without_labels(digits, finished, tmp_path):
    content = dict(np.load(digits))
    del content["y"]
    np.savez(tmp_path / "plain.npz", **content)
    labelled, plain = (predict(finished, [path], device="cpu", top=2) for path in (digits, tmp_path / "plain.npz"))
    assert [one.node for one in plain] == list(range(200))
    assert [one.top for one in plain] == [one.top for one in labelled]
    info = read_info(finished)
    test = evaluate(finished, "test", device="cpu")
    data = get_task("node-classification").open_data(info.recipe.data, info.recipe.train, 0)
    nodes = data.graph.test_mask.nonzero()[:, 0].tolist()
    assert [plain[node].label for node in nodes] == [info.classes[label] for label in test.predictions]


def test_the_command_writes_a_row_per_node(digits, finished, tmp_path):
    from typer.testing import CliRunner

    from torchstone.cli import app

    done = CliRunner().invoke(app, ["predict", str(finished), str(digits), "--csv", str(tmp_path / "nodes.csv")])
    assert done.exit_code == 0
    with open(tmp_path / "nodes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["node"]) for row in rows] == list(range(200))
    assert f"{digits}, node 0\tclass " in done.stdout


def test_the_task_follows_from_the_data():
    assert task_of("my/graph.npz").name == task_of("Cora").name == "node-classification"
    assert task_of("digits").name == task_of("photos/").name == "image-classification"


@pytest.mark.parametrize("name", ["gcn", "gat", "sage", "gin", "appnp"])
def test_networks_of_pyg_train_alike(digits, tmp_path, name):
    run = fit(recipe(digits, model={"name": f"pyg:{name}", "args": {}}), tmp_path / "run", device="cpu")
    assert run.rows[-1]["train_loss"] < run.rows[0]["train_loss"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"size": 32}}, "data.size is for images; it means nothing for a graph"),
        ({"data": {"workers": 2}}, "data.workers is for images"),
        ({"train": {"mixup": 0.2}}, "train.mixup is for images"),
        ({"train": {"batch_size": 64}}, "train.batch_size is for images"),
        ({"data": {"split": "half"}}, "unknown split 'half'"),
        ({"model": {"name": "timm:test_resnet", "args": {}}}, "in_channels"),
    ],
)
def test_what_means_nothing_for_a_graph_is_refused(digits, tmp_path, changes, message):
    with pytest.raises(CallError, match=message):
        fit(recipe(digits, **changes), tmp_path / "run", device="cpu")


def test_graph_settings_are_refused_for_images(tmp_path):
    one = Recipe.from_dict({"model": {"name": "timm:test_resnet"}, "data": {"source": "digits", "split": "public"}})
    with pytest.raises(CallError, match=r"data\.split is for graphs; it means nothing for images"):
        fit(one, tmp_path / "run", device="cpu")
