"""What the contract tests of methods share: which there are, and a small run of each.

A method brings a packaged recipe on data that are bundled; the contract trains what that recipe names, on few images.
"""

from dataclasses import replace

from torchstone.catalog import cards
from torchstone.data.sources import IMAGE_SOURCES
from torchstone.seeding import seed_everything_at
from torchstone.training.pretraining import objective
from torchstone.training.recipe import Recipe, load_recipe, recipe_names

BUNDLED = "digits"
OWN = "_methods.denoising"
"""The tests' own method: what holds for those with a card is shown to be possible, card or not."""

METHODS = [card.key for card in cards().values() if card.kind == "method"] + [OWN]

_OWN_RECIPE = {
    "model": {"name": "timm:test_convnext", "args": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}},
    "method": {"name": OWN},
    "data": {"source": BUNDLED},
    "train": {"epochs": 3, "lr": 3e-3},
}

assert BUNDLED in IMAGE_SOURCES


def recipes(key: str) -> list[str]:
    """The packaged recipes that train by a method."""
    found = {name: load_recipe(name) for name in recipe_names()}
    return [name for name, recipe in found.items() if recipe.method is not None and recipe.method.name == key]


def recipe_of(key: str, **train) -> Recipe:
    """A method's recipe on bundled data, with few images and the keys of ``train`` changed."""
    if key == OWN:
        recipe = Recipe.from_dict(_OWN_RECIPE)
    else:
        found = [load_recipe(name) for name in recipes(key)]
        bundled = [recipe for recipe in found if recipe.data.source == BUNDLED]
        assert bundled, f"{key} needs a packaged recipe on {BUNDLED}"
        recipe = bundled[0]
    few = replace(recipe.data, limit=64, workers=0)
    short = {"batch_size": 8, "epochs": 2, "warmup_epochs": 0.0, "warmup_lr": None, "accumulate": 1, **train}
    return replace(recipe, data=few, train=replace(recipe.train, **short))


class Small:
    """A method around its small network, and batches for it.

    Attributes:
        recipe: what it was built from.
        data: the open data.
        batches: a few training batches.
    """

    def __init__(self, key: str) -> None:
        self.recipe = recipe_of(key)
        self.task = objective(self.recipe)
        self.data = self.task.open_data(self.recipe.data, self.recipe.train, 0)
        loader = iter(self.data.train_dataloader())
        self.batches = [next(loader) for _ in range(3)]

    def build(self, seed: int = 0):
        """The method, newly built from a seed."""
        seed_everything_at("weights", seed)
        return self.task.build_model(self.recipe.model, self.data, self.recipe.train)
