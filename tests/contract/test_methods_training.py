"""Every method keeps what the room promises: a network that stays itself, honest losses, exact repetition."""

import copy
import inspect
import pickle

import pytest
import torch
from _methods_contract import METHODS, OWN, Small, recipes

from torchstone.catalog import cards
from torchstone.methods.method import Method
from torchstone.methods.registry import build_method, finishes, method_module
from torchstone.seeding import seed_everything_at
from torchstone.training.pretraining import Pretraining, objective
from torchstone.training.recipe import TrainSpec


def _mark(key):
    return pytest.param(key, marks=[pytest.mark.system(key)] if key in cards() else [], id=key)


@pytest.fixture(scope="module", params=[_mark(key) for key in METHODS])
def key(request):
    return request.param


@pytest.fixture(scope="module")
def small(key, warm_timm, warm_data):
    return Small(key)


@pytest.fixture
def method(small):
    return small.build()


def loss_and_gradients(method, batch, seed=0):
    method.zero_grad()
    seed_everything_at("step", seed)
    loss = method.loss(batch)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


def step(method, batches, lr=1e-3):
    """A few optimizer steps, as training takes them."""
    optimizer = torch.optim.AdamW(method.train().parameters(), lr=lr)
    for index, batch in enumerate(batches):
        seed_everything_at("step", index)
        method.at_step(index / len(batches))
        optimizer.zero_grad()
        method.loss(batch).backward()
        optimizer.step()
    return method


def test_it_is_a_method_around_the_network_and_its_arguments_are_named(key, small, method):
    assert isinstance(method, Method)
    build = inspect.signature(method_module(key).build)
    assert next(iter(build.parameters)) == "model"
    assert isinstance(objective(small.recipe), Pretraining)


def test_the_network_keeps_its_layout_in_training(small, method):
    network = small.task.task.build_model
    seed_everything_at("weights", 0)
    spec = small.recipe.model
    plain = network(type(spec)(spec.name, {**small.task.model_args(small.data), **spec.args}), small.data)
    expected = {name: value.shape for name, value in plain.state_dict().items()}
    for stage in (method, step(method, small.batches)):
        assert {name: value.shape for name, value in stage.network.state_dict().items()} == expected
        plain.load_state_dict(stage.network.state_dict())


def test_the_trained_network_computes_what_a_plain_one_with_its_weights_does(small, method):
    step(method, small.batches).eval()
    spec = small.recipe.model
    plain = small.task.task.build_model(
        type(spec)(spec.name, {**small.task.model_args(small.data), **spec.args}), small.data
    )
    plain.load_state_dict(method.network.state_dict())
    arguments = small.arguments(method)
    with torch.no_grad():
        torch.testing.assert_close(method(*arguments), plain.eval()(*arguments), rtol=1e-5, atol=1e-6)


def test_the_loss_is_a_finite_scalar_that_reaches_the_method_and_the_network(small, method):
    loss, gradients = loss_and_gradients(method.train(), small.batches[0])
    assert loss.ndim == 0
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    missed = {name: p.numel() for name, p in method.named_parameters() if p.requires_grad and name not in gradients}
    assert not [name for name in missed if not name.startswith("network.")]
    if small.on_a_graph:  # there a network has no form without its classifier
        missed = {name: size for name, size in missed.items() if not name.startswith("network.classifier.")}
    in_all = sum(p.numel() for p in method.network.parameters())
    assert sum(missed.values()) < 0.1 * in_all, "only what follows the last maps may be left out"


def test_training_lowers_the_loss(small, method):
    def loss():
        with torch.no_grad():
            seed_everything_at("measure", 0)
            return method.train().loss(small.batches[0]).item()

    before = loss()
    own = small.recipe.train.lr if small.on_a_graph else 3e-3
    step(method, [small.batches[0]] * 12, lr=min(own, 3e-3))
    assert loss() < before


def test_every_sample_has_a_loss(small, method):
    method.eval()
    with torch.no_grad():
        seed_everything_at("evaluate", 0)
        losses = method.evaluation_loss(small.batches[0])
    assert losses.shape == (len(method.inputs(small.batches[0])),)
    assert losses.isfinite().all()


def test_evaluation_repeats_and_changes_nothing(small, method):
    method.eval()
    before = copy.deepcopy(method.state_dict())
    found = []
    with torch.no_grad():
        for _ in range(2):
            seed_everything_at("evaluate", 0)
            found.append(method.evaluation_loss(small.batches[0]))
    assert torch.equal(*found)
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_the_labels_are_not_looked_at(key, small, method):
    if finishes(key):
        pytest.skip("it trains for the task itself")
    batch = other = small.batches[0]
    if small.on_a_graph:
        relabelled = copy.deepcopy(small.data)
        relabelled.graph.y = relabelled.graph.y.flip(0)
    else:
        other = batch[0], batch[1].flip(0)
    first, _ = loss_and_gradients(method.train(), batch)
    method.load_state_dict(small.build().state_dict())
    if small.on_a_graph:
        seed_everything_at("prepare", 0)
        method.prepare(relabelled)
    second, _ = loss_and_gradients(method.train(), other)
    assert torch.equal(first, second)


def test_one_that_finishes_the_task_says_what_its_network_makes_of_a_batch(key, small, method):
    own = type(method).outputs is not Method.outputs
    assert own == finishes(key), "FINISHES of the module and the method's outputs go together"
    if own:
        outputs, targets = method.eval().outputs(small.batches[0])
        assert len(outputs) == len(targets) == len(method.inputs(small.batches[0]))
        assert outputs.shape[1] == len(small.data.classes)


def test_the_same_seeds_give_the_same_run(small):
    first, second = (step(small.build(), small.batches).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = step(small.build(seed=1), small.batches).state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_its_state_goes_on_where_it_stopped(small):
    whole = step(small.build(), small.batches)
    half = step(small.build(), small.batches)
    resumed = small.build(seed=5)
    resumed.load_state_dict(half.state_dict())
    for one in (whole, resumed):
        loss, _ = loss_and_gradients(one.train(), small.batches[1])
        one.final = loss
    assert torch.equal(whole.final, resumed.final)


def test_bfloat16_autocast_trains(small, method):
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.train().loss(small.batches[0])
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_it_can_be_copied_and_pickled(small, method):
    step(method, small.batches[:1]).eval()
    seed_everything_at("evaluate", 0)
    with torch.no_grad():
        expected = method.evaluation_loss(small.batches[0])
        for copied in (copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
            seed_everything_at("evaluate", 0)
            assert torch.equal(copied.evaluation_loss(small.batches[0]), expected)


def test_pictures_are_images_of_the_batchs_shape(small, method):
    with torch.no_grad():
        columns = method.eval().pictures(small.batches[0])
    images = method.inputs(small.batches[0])
    for name, column in columns.items():
        assert name.strip() == name != ""
        assert column.shape == images.shape
        assert column.isfinite().all()


def test_names_that_do_not_decay_are_parameters(method):
    assert method.no_weight_decay() <= {name for name, _ in method.named_parameters()}


def test_an_unknown_argument_is_refused(key, small, method):
    with pytest.raises(ValueError, match="does not take this argument"):
        build_method(key, method.network, teacher=small.teacher(), no_such_argument=1)


def test_a_card_comes_with_recipes_and_a_protocol_that_can_be(key):
    if key not in OWN:
        assert recipes(key)
    TrainSpec.from_dict({"epochs": 20, **getattr(method_module(key), "PROTOCOL", {})})
