"""Methods on one graph: they get it before training; those that finish the task are scored, predict and compare."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import kneighbors_graph
from test_nodes import outcome

from torchstone.data.graphs import open_graph
from torchstone.errors import CallError, DataError
from torchstone.files import read_json
from torchstone.methods.registry import build_method, finishes
from torchstone.models.registry import build_model
from torchstone.reporting.compare import compare
from torchstone.training.fit import evaluate, fit
from torchstone.training.nodes import NodeClassifier
from torchstone.training.predict import predict
from torchstone.training.pretraining import load_method
from torchstone.training.recipe import Recipe, TrainSpec
from torchstone.training.runs import identity
from torchstone.training.tasks import get_task

SMOOTHING, IMITATION = "_methods.smoothing", "_methods.imitation"
TRAIN = {
    "epochs": 8,
    "lr": 0.05,
    "optimizer": "adam",
    "weight_decay": 0.0,
    "schedule": "constant",
    "checkpoint_epochs": 3,
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Handwritten digits in two views: linked to their nearest neighbours, and to those of another half of pixels."""
    x, y = (values[:200] for values in load_digits(return_X_y=True))
    path = tmp_path_factory.mktemp("graphs") / "digits.npz"
    views = {f"edge_index_{name}": np.array(kneighbors_graph(part, 5).nonzero()) for name, part in _halves(x)}
    np.savez(path, x=x.astype("float32"), y=y, **views)
    return path


def _halves(x):
    return ("left", x[:, :32]), ("right", x[:, 32:])


def recipe(digits, train=(), **sections) -> Recipe:
    content = {
        "task": "node-classification",
        "model": {"name": "pyg:gcn", "args": {"hidden_channels": 32}},
        "data": {"source": str(digits), "split": "random"},
        "train": {**TRAIN, **dict(train)},
    }
    return Recipe.from_dict({**content, **sections})


@pytest.fixture(scope="module")
def teacher(digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "teacher"
    fit(recipe(digits, {"epochs": 60}), path, device="cpu")
    return path


@pytest.fixture(scope="module")
def student(digits, teacher, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "student"
    taught = recipe(digits, {"epochs": 60}, method={"name": IMITATION, "teacher": str(teacher)})
    return fit(taught, path, device="cpu")


def test_a_method_on_a_graph_trains_and_a_training_starts_from_its_run(digits, tmp_path):
    run = fit(recipe(digits, {"epochs": 20}, method={"name": SMOOTHING}), tmp_path / "before", device="cpu")
    assert run.metric == "loss"
    assert run.score < run.rows[0]["val_loss"]
    method, _ = load_method(run.path)
    assert not hasattr(method, "x"), "a method is loaded without its data"
    tuned = fit(
        recipe(digits, model={"name": "pyg:gcn", "args": {"hidden_channels": 32}, "weights": str(run.path)}),
        tmp_path / "tuned",
        device="cpu",
    )
    assert tuned.metric == "accuracy"
    with pytest.raises(CallError, match="pre-training run"):
        predict(run.path, [str(digits)])
    with pytest.raises(CallError, match="pre-training run"):
        evaluate(run.path, "test")


def test_it_goes_on_exactly_where_it_was_interrupted(digits, tmp_path):
    class Stopped(Exception):
        pass

    def stop(state):
        if state.epoch == 5 and state.step:
            raise Stopped

    trained = recipe(digits, method={"name": SMOOTHING})
    fit(trained, tmp_path / "whole", device="cpu")
    with pytest.raises(Stopped):
        fit(trained, tmp_path / "cut", device="cpu", progress=stop)
    assert fit(trained, tmp_path / "cut", device="cpu").trained == 5
    whole, cut = (outcome(tmp_path / name) for name in ("whole", "cut"))
    assert whole == cut
    files = [(tmp_path / name / "method.safetensors").read_bytes() for name in ("whole", "cut")]
    assert files[0] == files[1]


def test_a_finishing_method_is_scored_by_the_task_and_predicts(digits, teacher, student):
    assert finishes(IMITATION)
    assert not finishes(SMOOTHING)
    assert (student.metric, read_json(student.path / "result.json")["maximize"]) == ("accuracy", True)
    assert set(student.rows[0]) >= {"val_loss", "val_accuracy"}
    assert student.score > 0.5
    for part in ("val", "test"):
        assert evaluate(student.path, part).score > 0.5
    assert evaluate(student.path, "val").score == pytest.approx(student.score)
    found = predict(student.path, [str(digits)])
    assert len(found) == 200
    agree = sum(a.label == b.label for a, b in zip(found, predict(teacher, [str(digits)]), strict=True))
    assert agree > 150


def test_the_teacher_is_part_of_what_a_run_is(digits, teacher, tmp_path):
    other = fit(recipe(digits, {"epochs": 3}), tmp_path / "other", device="cpu").path
    names = {identity(recipe(digits, method={"name": IMITATION, "teacher": str(run)}), "") for run in (teacher, other)}
    assert len(names) == 2
    with pytest.raises(CallError, match="there is no run directory"):
        fit(recipe(digits, method={"name": IMITATION, "teacher": "nowhere"}), tmp_path / "x", device="cpu")


def test_teachers_too_many_and_too_few_are_refused(digits, teacher):
    network = build_model("pyg:gcn", in_channels=64, out_channels=10)
    with pytest.raises(CallError, match=r"name its run directory as method\.teacher"):
        build_method(IMITATION, network)
    with pytest.raises(CallError, match="learns from no teacher"):
        build_method(SMOOTHING, network, teacher=network)


def test_methods_on_graphs_are_compared(digits, teacher, tmp_path):
    taught = f"{IMITATION}:teacher={teacher}+pyg:gcn"
    models = ["pyg:gcn", f"{SMOOTHING}+pyg:gcn", taught]
    found = compare(str(digits), models, out=tmp_path / "out", epochs=5, seeds=1, tune=1, split="random")
    rows = {candidate.name: candidate for candidate in found.candidates}
    assert {name: row.status for name, row in rows.items()} == dict.fromkeys(models, "trained")
    assert [rows[name].method for name in models] == ["", SMOOTHING, ""]
    assert rows[taught].runs[0].pretrain_seconds == 0
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 3


# ------------------------------------------------------------------------------ a loss of the model's own


class _OwnLoss(torch.nn.Linear):
    def forward(self, x, edge_index):
        return super().forward(x)

    def training_loss(self, x, edge_index, y, mask):
        return self(x, edge_index)[mask].square().mean() + 0 * y.sum()


def test_a_node_classifier_may_have_a_loss_of_its_own(digits):
    spec = recipe(digits)
    data = get_task(spec.task).open_data(spec.data, spec.train, 0)
    model = _OwnLoss(64, 10)
    module = NodeClassifier(model, spec.train, seed=0, data=data)
    mask = data.graph.train_mask
    expected = model(data.graph.x, None)[mask].square().mean()
    assert module.training_loss(mask).item() == pytest.approx(expected.item())
    with pytest.raises(CallError, match="label_smoothing has no effect"):
        NodeClassifier(model, TrainSpec(label_smoothing=0.1), seed=0, data=data)


# ------------------------------------------------------------------------------ several sets of edges


def test_a_multiplex_graph_has_its_views_and_their_union(digits):
    opened = open_graph(str(digits), split="random")
    with np.load(digits) as file:
        for name in ("left", "right"):
            given = {tuple(edge) for edge in file[f"edge_index_{name}"].T}
            both = given | {(target, source) for source, target in given}
            assert {tuple(edge) for edge in opened.views[name].T.tolist()} == both
    union = set.union(*({tuple(edge) for edge in edges.T.tolist()} for edges in opened.views.values()))
    assert {tuple(edge) for edge in opened.graph.edge_index.T.tolist()} == union
    assert opened.describe()["views"] == {name: edges.shape[1] for name, edges in opened.views.items()}


def test_broken_views_are_refused(digits, tmp_path):
    with np.load(digits) as file:
        content = dict(file)
    for wrong, message in (
        (np.zeros((3, 4), int), r"expected edge_index_left \(2, E\)"),
        (np.full((2, 4), 777), "edges name nodes"),
        (np.zeros((2, 4)), "edge_index_left must hold integers"),
    ):
        np.savez(tmp_path / "wrong.npz", **{**content, "edge_index_left": wrong})
        with pytest.raises(DataError, match=message):
            open_graph(str(tmp_path / "wrong.npz"))
