"""Sequences go through training, evaluation, prediction and cost as images do."""

import pytest
import torch
from PIL import Image

from torchstone.errors import CallError
from torchstone.training.fit import evaluate, fit
from torchstone.training.predict import predict
from torchstone.training.recipe import Recipe, load_recipe
from torchstone.training.tasks import get_task, task_of

SMALL = {
    "task": "sequence-classification",
    "model": {"name": "longconv_mini", "args": {"width": 32, "depth": 1}},
    "data": {"source": "sequential-digits", "limit": 300},
    "train": {"epochs": 8, "batch_size": 20, "lr": 1e-2},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    fit(Recipe.from_dict(SMALL), folder, device="cpu")
    return folder


def test_a_run_on_sequences_learns_and_predicts_images_as_it_evaluates_them(run, tmp_path):
    tested = evaluate(run, "test", device="cpu")
    assert tested.score > 0.25, "ten classes"
    recipe = Recipe.from_dict(SMALL)
    data = get_task(recipe.task).open_data(recipe.data, recipe.train, 0)
    paths = []
    for index in data.splits.indices["test"][:12]:
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(data.source.images.pixels(index)).save(paths[-1])
    (tmp_path / "broken.png").write_bytes(b"no image")
    found = predict(run, [*paths, tmp_path / "broken.png"], device="cpu")
    assert [one.label for one in found[:-1]] == [str(label) for label in tested.predictions[:12].tolist()]
    assert found[-1].error


def test_sources_have_their_task():
    assert task_of("sequential-digits").name == "sequence-classification"
    assert task_of("sequential:photos").name == "sequence-classification"
    assert task_of("digits").name == "image-classification"


def test_a_models_cost_is_measured_on_a_sequence():
    task = get_task("sequence-classification")
    recipe = Recipe.from_dict(SMALL)
    data = task.open_data(recipe.data, recipe.train, 0)
    description = task.description("longconv_mini", data)
    assert description.input_shape == (64, 1)
    assert task.model_args(data) == {"num_classes": 10, "in_channels": 1, "max_length": 64}
    assert description.build()(*description.example_inputs(2)).shape == (2, 10)
    assert torch.equal(*(task.probe_inputs(data, 2)[0] for _ in range(2)))


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("data", "augment", "flip", "not augmented"),
        ("data", "split", "public", "graphs"),
        ("train", "mixup", 0.2, "images"),
    ],
)
def test_settings_of_other_domains_are_refused(section, key, value, message):
    recipe = Recipe.from_dict({**SMALL, section: {**SMALL[section], key: value}})
    with pytest.raises(CallError, match=message):
        get_task(recipe.task).open_data(recipe.data, recipe.train, 0)


@pytest.mark.parametrize("name", ["longconv_digits", "longconv_cifar10", "longconv_standalone_cifar10"])
def test_recipes_are_for_sequences(name):
    recipe = load_recipe(name)
    assert task_of(recipe.data.source).name == recipe.task
