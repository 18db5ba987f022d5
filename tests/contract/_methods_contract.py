"""What the contract tests of methods share: which there are, and a small run of each.

A method of images brings a packaged recipe on data that are bundled; the contract trains what that recipe names, on few
images. Of a method on a graph it trains what a packaged recipe names on a small graph of two views, with the teacher,
if there is one, of the recipe that the teacher's run is named for.
"""

import functools
import itertools
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from torchstone.catalog import cards
from torchstone.data.sources import IMAGE_SOURCES
from torchstone.seeding import seed_everything_at
from torchstone.training.fit import fit
from torchstone.training.pretraining import objective
from torchstone.training.recipe import Recipe, load_recipe, recipe_names
from torchstone.training.runs import load_run

BUNDLED = "digits"
OWN = {
    "_methods.denoising": {
        "model": {"name": "timm:test_convnext", "args": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}},
        "method": {"name": "_methods.denoising"},
        "data": {"source": BUNDLED},
        "train": {"epochs": 3, "lr": 3e-3},
    },
    "_methods.smoothing": {
        "task": "node-classification",
        "model": {"name": "pyg:gcn", "args": {"hidden_channels": 16}},
        "method": {"name": "_methods.smoothing"},
        "data": {"source": "any"},
        "train": {"lr": 1e-2},
    },
}
"""The tests' own methods: what holds for those with a card is shown to be possible, card or not."""

METHODS = [card.key for card in cards().values() if card.kind == "method"] + list(OWN)

assert BUNDLED in IMAGE_SOURCES


def recipes(key: str) -> list[str]:
    """The packaged recipes that train by a method."""
    found = {name: load_recipe(name) for name in recipe_names()}
    return [name for name, recipe in found.items() if recipe.method is not None and recipe.method.name == key]


def recipe_of(key: str, **train) -> Recipe:
    """A method's recipe on little data, with the keys of ``train`` changed."""
    found = [Recipe.from_dict(OWN[key])] if key in OWN else [load_recipe(name) for name in recipes(key)]
    bundled = [recipe for recipe in found if recipe.data.source == BUNDLED or recipe.task == "node-classification"]
    assert bundled, f"{key} needs a packaged recipe on {BUNDLED} or a graph"
    recipe = bundled[0]
    if recipe.task == "node-classification":
        return _on_the_graph(recipe, **train)
    few = replace(recipe.data, limit=64, workers=0)
    short = {"batch_size": 8, "epochs": 2, "warmup_epochs": 0.0, "warmup_lr": None, "accumulate": 1, **train}
    return replace(recipe, data=few, train=replace(recipe.train, **short))


def _on_the_graph(recipe: Recipe, **train) -> Recipe:
    data = replace(recipe.data, source=_graph(), split="random", split_seed=0)
    method = recipe.method
    if method is not None and method.teacher is not None:
        method = replace(method, teacher=_teacher(Path(method.teacher).name))
    short = {"epochs": 2, "warmup_epochs": 0.0, "checkpoint_epochs": 1, **train}
    return replace(recipe, data=data, method=method, train=replace(recipe.train, **short), expect={})


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="methods-contract-")


@functools.cache
def _graph() -> str:
    """A file: 60 nodes of 3 classes with binary features that tell of them, in two views of mostly the same edges."""
    random = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = (random.random((60, 24)) < np.where(np.arange(24) % 3 == y[:, None], 0.5, 0.1)).astype("float32")
    x[:, 0] = 1
    likely = np.where(y[:, None] == y, 0.2, 0.02)
    views = {
        f"edge_index_{name}": np.array(np.triu(random.random((60, 60)) < likely, 1).nonzero()) for name in ("a", "b")
    }
    path = Path(_folder().name) / "graph.npz"
    np.savez(path, x=x, y=y, **views)
    return str(path)


@functools.cache
def _teacher(recipe: str) -> str:
    """The run of a packaged recipe on the small graph."""
    path = Path(_folder().name) / recipe
    fit(_on_the_graph(load_recipe(recipe), epochs=5), path, device="cpu")
    return str(path)


class Small:
    """A method around its small network, and batches for it.

    Attributes:
        recipe: what it was built from.
        data: the open data.
        batches: a few training batches; on a graph they are equal.
        on_a_graph: whether the method is for one graph.
    """

    def __init__(self, key: str) -> None:
        self.recipe = recipe_of(key)
        self.task = objective(self.recipe)
        self.data = self.task.open_data(self.recipe.data, self.recipe.train, 0)
        self.on_a_graph = self.recipe.task == "node-classification"
        loader = self.data.train_dataloader()
        self.batches = list(itertools.islice(itertools.chain.from_iterable(itertools.repeat(loader)), 3))

    def build(self, seed: int = 0):
        """The method, newly built from a seed, which has seen its data."""
        seed_everything_at("weights", seed)
        method = self.task.build_model(self.recipe.model, self.data, self.recipe.train)
        seed_everything_at("prepare", 0)
        method.prepare(self.data)
        return method

    def teacher(self):
        """The network that the method learns from, None for most."""
        run = self.recipe.method.teacher
        return None if run is None else load_run(run)[0]

    def arguments(self, method):
        """What the network is called with."""
        if self.on_a_graph:
            return self.task.probe_inputs(self.data, 1)
        return (method.inputs(self.batches[0]),)
