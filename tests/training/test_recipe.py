import pytest
import yaml
from _small import SMALL, small

from torchstone.errors import CallError, UnknownName
from torchstone.training.recipe import Recipe, TrainSpec, copy_recipe, dump_yaml, load_recipe, parse_yaml, recipe_names

MINIMAL = "model: {name: some_net}\ndata: {source: digits}\n"


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def test_a_minimal_recipe_has_every_key_resolved(file):
    recipe = load_recipe(file(MINIMAL))
    assert recipe.task == "image-classification"
    assert recipe.train == TrainSpec()
    assert recipe.model.args == {}
    assert recipe.data.workers == 0


def test_writing_and_reading_a_recipe_changes_nothing():
    recipe = small(train={"lr": 1e-5, "min_lr": 1e-7, "warmup_epochs": 0.5}, expect={"val_accuracy": 0.9})
    assert Recipe.from_dict(parse_yaml(dump_yaml(recipe.to_dict()), "text")) == recipe


def test_what_is_written_is_plain_yaml():
    recipe = small(train={"lr": 1e-5})
    assert Recipe.from_dict(yaml.safe_load(dump_yaml(recipe.to_dict()))) == recipe


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", "0.001", "+1e-3", "1.0e-3"])
def test_floats_are_read_as_people_write_them(file, text):
    assert load_recipe(file(MINIMAL + f"train: {{lr: {text}}}")).train.lr == 1e-3
    assert load_recipe(file(MINIMAL), [f"model.args.scale={text}"]).model.args == {"scale": 1e-3}


@pytest.mark.parametrize("text", ["epoch1", "1e", "e-3", "2303.e"])
def test_other_text_stays_text(text):
    assert parse_yaml(text, "text") == text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train": {"epoch": 3}}, "unknown recipe key train.epoch: did you mean train.epochs"),
        ({"train": {"epoch": 3}}, "Valid keys: train.epochs, train.batch_size"),
        ({"model": {"nmae": "x"}}, "unknown recipe key model.nmae: did you mean model.name"),
        ({"trian": {}}, "unknown recipe key trian: did you mean train"),
        ({"train": {"epochs": "abc"}}, 'train.epochs must be a positive integer, got "abc"'),
        ({"train": {"epochs": 0}}, "train.epochs must be a positive integer, got 0"),
        ({"train": {"epochs": True}}, "train.epochs must be a positive integer, got True"),
        ({"train": {"epochs": 2.5}}, "train.epochs must be a positive integer, got 2.5"),
        ({"train": {"lr": -1}}, "train.lr must be a positive number, got -1"),
        ({"train": {"lr": float("nan")}}, "train.lr must be a positive number, got nan"),
        ({"train": {"momentum": "high"}}, "train.momentum must be .* or null, got"),
        ({"train": {"schedule": "cosin"}}, 'train.schedule must be one of cosine, cosine_last, .* constant, got "'),
        ({"train": {"sync_batchnorm": 1}}, "train.sync_batchnorm must be true or false, got 1"),
        ({"train": {"optimizer_args": [1]}}, "train.optimizer_args must be a mapping of argument names to values"),
        ({"train": 3}, "train must be a mapping"),
        (
            {"data": {"source": "digits", "val_fraction": 1}},
            "data.val_fraction must be a number between 0 and 1, exclusive, got 1",
        ),
        ({"seed": -1}, "seed must be a non-negative integer, got -1"),
        ({"expect": {"val_accuracy": "high"}}, "expect must be a mapping of metrics to numbers"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_would_be_right(keys, message):
    content = {**SMALL, **keys}
    with pytest.raises(CallError, match=message):
        Recipe.from_dict(content)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"warmup_epochs": 3}, "train.warmup_epochs must be less than train.epochs"),
        ({"min_lr": 0.1}, "train.min_lr must not exceed train.lr"),
        ({"min_lr": 1e-4, "schedule": "constant"}, "train.min_lr means nothing with train.schedule=constant"),
        ({"schedule": "step"}, "train.schedule=step needs train.decay_epochs"),
        ({"decay_rate": 0.5}, "train.decay_rate means nothing with train.schedule=cosine"),
        ({"accumulate": 3}, r"train.accumulate must divide train.batch_size \(8\), got 3"),
    ],
)
def test_options_that_exclude_each_other_are_refused(train, message):
    with pytest.raises(CallError, match=message):
        small(train=train)


@pytest.mark.parametrize("missing", ["model", "data"])
def test_a_missing_section_is_named(missing):
    with pytest.raises(CallError, match=f"needs the section {missing}"):
        Recipe.from_dict({name: value for name, value in SMALL.items() if name != missing})


def test_a_missing_key_is_named():
    with pytest.raises(CallError, match=r"model.name is required"):
        Recipe.from_dict({**SMALL, "model": {}})


def test_overrides_change_single_keys(file):
    recipe = load_recipe(
        file(MINIMAL),
        ["train.epochs=3", "model.args.drop_rate=0.1", "model.args.dims=[4, 8]", "seed=7", "model.weights=pretrained"],
    )
    assert recipe.train.epochs == 3
    assert recipe.model.args == {"drop_rate": 0.1, "dims": [4, 8]}
    assert recipe.model.weights == "pretrained"
    assert recipe.seed == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "unknown recipe key train.epoch: did you mean train.epochs"),
        ("epochs=3", "unknown recipe key epochs: did you mean train.epochs"),
        ("train=3", "unknown recipe key train:"),
        ("train.epochs", "write KEY=VALUE"),
        ("train.epochs=[1", "the value of train.epochs is not valid YAML"),
        ("train.epochs=abc", 'train.epochs must be a positive integer, got "abc"'),
        ("model.name.x=1", "unknown recipe key model.name.x"),
    ],
)
def test_a_wrong_override_is_refused(file, override, message):
    with pytest.raises(CallError, match=message):
        load_recipe(file(MINIMAL), [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "is not valid YAML"),
        ("just text", "is no recipe"),
        ("model: {name: a, name: b}\ndata: {source: digits}", "'name' is given twice"),
        ("model: !!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(file, text, message):
    with pytest.raises(CallError, match=message):
        load_recipe(file(text))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CallError, match=r"cannot read the recipe .*absent.yaml: No such file"):
        load_recipe(tmp_path / "absent.yaml")


def test_every_packaged_recipe_is_valid_and_says_what_it_is_about():
    names = recipe_names()
    assert names
    for name, about in names.items():
        assert load_recipe(name).about == about
        assert about


def test_a_mistyped_recipe_gets_the_nearest_names():
    name = min(recipe_names())
    with pytest.raises(UnknownName, match=name):
        load_recipe(name[:-1])


def test_a_packaged_recipe_is_copied_to_be_edited(tmp_path):
    name = min(recipe_names())
    copy = copy_recipe(name, tmp_path)
    assert copy == tmp_path / f"{name}.yaml"
    assert load_recipe(copy) == load_recipe(name)
    with pytest.raises(CallError, match="exists already"):
        copy_recipe(name, tmp_path)
    with pytest.raises(CallError, match="there is no folder"):
        copy_recipe(name, tmp_path / "absent" / "mine.yaml")
