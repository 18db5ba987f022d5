"""Which epoch is kept, when training stops for want of a better one, and weight decay of some parameters."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.neighbors import kneighbors_graph
from torch import nn

from torchstone import create_model
from torchstone.errors import CallError, UnknownName
from torchstone.seeding import seed_everything_at
from torchstone.training.fit import _kept_row, _out_of_patience, fit
from torchstone.training.optimizers import create_optimizer
from torchstone.training.recipe import Recipe, TrainSpec
from torchstone.training.tasks import get_task

TASK = get_task("node-classification")
ROWS = [
    {"epoch": epoch, "val_loss": loss, "val_accuracy": accuracy}
    for epoch, loss, accuracy in [(1, 3.0, 0.2), (2, 1.0, 0.5), (3, 2.0, 0.7), (4, 1.0, 0.7), (5, 1.5, 0.6)]
]


def test_the_first_best_epoch_is_kept():
    assert _kept_row(TrainSpec(select="best_loss"), ROWS, TASK)["epoch"] == 2
    assert _kept_row(TrainSpec(select="best_score"), ROWS, TASK)["epoch"] == 3
    assert _kept_row(TrainSpec(select="last"), ROWS, TASK)["epoch"] == 5


@pytest.mark.parametrize(
    ("select", "patience", "stop"), [("best_loss", 3, 5), ("best_loss", 2, 4), ("best_score", 2, 5)]
)
def test_patience_counts_epochs_that_are_no_better(select, patience, stop):
    train = TrainSpec(select=select, patience=patience)
    assert next(k for k in range(6) if _out_of_patience(train, ROWS[:k], TASK)) == stop
    assert not _out_of_patience(TrainSpec(select=select), ROWS, TASK)


def test_patience_needs_something_to_be_better_at():
    with pytest.raises(CallError, match=r"needs train\.select=best_loss or best_score"):
        TrainSpec(patience=3)


def test_some_parameters_have_a_weight_decay_of_their_own():
    network = nn.ModuleDict({"maps": nn.Linear(2, 2), "mapping": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    train = TrainSpec(weight_decay=0.5, weight_decay_for={"maps": 0.25, "maps.bias": 0.125, "mapping.": 0.0})
    groups = create_optimizer(network, train, frozenset(["head.bias"])).param_groups
    found = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert {name: found[id(parameter)] for name, parameter in network.named_parameters()} == {
        "maps.weight": 0.25,
        "maps.bias": 0.125,
        "mapping.weight": 0.0,
        "mapping.bias": 0.0,
        "head.weight": 0.5,
        "head.bias": 0.0,
    }


def test_a_weight_decay_for_no_parameter_is_refused():
    with pytest.raises(UnknownName, match="did you mean 'head'"):
        create_optimizer(
            nn.ModuleDict({"head": nn.Linear(2, 2)}), TrainSpec(weight_decay_for={"haed": 0.1}), frozenset()
        )
    for wrong in ({"head": -1.0}, [0.1], {1: 0.1}):
        with pytest.raises(CallError, match="beginnings of parameters' names"):
            TrainSpec(weight_decay_for=wrong)


def graph_recipe(folder, model="neural_sheaf", **settings):
    """Sixty digits, each linked with the three that resemble it."""
    x, y = (values[:60] for values in load_digits(return_X_y=True))
    np.savez(folder / "g.npz", x=x.astype("float32"), edge_index=np.array(kneighbors_graph(x, 3).nonzero()), y=y)
    data = {"source": str(folder / "g.npz"), "split": "random"}
    return Recipe.from_dict({"task": "node-classification", "model": {"name": model}, "data": data, "train": settings})


def test_a_name_that_no_parameter_has_leaves_the_folder_to_the_recipe_put_right(tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'lin1'"):
        fit(graph_recipe(tmp_path, "dagnn", epochs=1, weight_decay_for={"lim1": 0.0}), tmp_path / "run", device="cpu")
    fit(graph_recipe(tmp_path, "dagnn", epochs=1, weight_decay_for={"lin1": 0.0}), tmp_path / "run", device="cpu")


def test_training_stops_when_out_of_patience(tmp_path):
    """At a rate of zero no epoch is better than the first."""
    settings = {"epochs": 30, "lr": 1e-12, "schedule": "constant", "select": "best_loss", "patience": 3}
    run = fit(graph_recipe(tmp_path, "dagnn", **settings), tmp_path / "run", device="cpu")
    epochs = [json.loads(line)["epoch"] for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert max(epochs) < 30


def test_steps_keep_a_weight_decay_of_its_own(tmp_path):
    """Trained at a rate of almost nothing, only decay moves the weights: by rate x decay, and not at all."""
    settings = {"epochs": 1, "lr": 0.1, "optimizer": "adamw", "optimizer_args": {"eps": 1e9}, "weight_decay": 0.5}
    settings |= {"decay_all": True, "schedule": "constant", "weight_decay_for": {"sheaf_learners": 0.0}}
    recipe = graph_recipe(tmp_path, **settings)
    run = fit(recipe, tmp_path / "run", device="cpu")
    seed_everything_at("weights", recipe.seed)
    start = create_model("neural_sheaf", in_channels=64, out_channels=10).state_dict()
    for name, value in load_file(run.path / "model.safetensors").items():
        factor = 1.0 if name.startswith("sheaf_learners") else 0.95
        torch.testing.assert_close(value, factor * start[name], rtol=1e-4, atol=1e-6)
