"""Schedules and optimizers."""

import math

import pytest
import torch
from torch import nn

from torchstone.errors import CallError, UnknownName
from torchstone.training.optimizers import create_optimizer, undecayed_parameters
from torchstone.training.recipe import TrainSpec
from torchstone.training.schedules import learning_rate

STEPS = 10


def rates(**train):
    spec = TrainSpec(lr=1.0, **train)
    return [learning_rate(spec, step, STEPS) for step in range(spec.epochs * STEPS)]


def test_warm_up_is_linear_and_reaches_the_peak():
    warm = rates(epochs=4, warmup_epochs=1.5, schedule="constant")[: int(1.5 * STEPS) + 1]
    assert warm[:15] == pytest.approx([(step + 1) / 15 for step in range(15)])
    assert warm[15] == 1.0


def test_cosine_falls_from_the_peak_to_the_floor():
    after = rates(epochs=5, warmup_epochs=1, min_lr=0.1)[STEPS:]
    assert after == pytest.approx([0.1 + 0.45 * (1 + math.cos(math.pi * step / 40)) for step in range(40)])
    assert after[0] == 1.0
    assert after[20] == pytest.approx(0.55)
    assert 0.1 < after[-1] < 0.102


def test_step_is_a_tenth_every_so_many_epochs():
    assert rates(epochs=6, schedule="step", decay_epochs=2)[::STEPS] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_exponential_falls_once_an_epoch():
    fallen = rates(epochs=3, schedule="exponential")
    assert fallen == pytest.approx([0.98 ** (step // STEPS) for step in range(30)])
    assert rates(epochs=3, schedule="exponential", decay_rate=0.5, min_lr=0.4)[-1] == 0.4


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.table = nn.Parameter(torch.zeros(4, 4))
        self.frozen = nn.Parameter(torch.zeros(4, 4), requires_grad=False)

    def no_weight_decay(self):
        return {"table"}


def test_vectors_and_what_the_model_names_do_not_decay():
    net = Net()
    optimizer = create_optimizer(net, TrainSpec(weight_decay=0.05), undecayed_parameters(net))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    names = {name: decay.get(id(parameter)) for name, parameter in net.named_parameters()}
    assert names == {
        "conv.weight": 0.05,
        "conv.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "table": 0.0,
        "frozen": None,
    }


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"optimizer": "sgd"}, {"nesterov": True, "momentum": 0.9}),
        ({"optimizer": "momentum", "momentum": 0.5}, {"nesterov": False, "momentum": 0.5}),
        ({"optimizer": "adamw", "optimizer_args": {"betas": [0.5, 0.9], "eps": 1e-6}}, {"eps": 1e-6}),
        ({"optimizer": "lamb"}, {"lr": 1e-3}),
        ({"optimizer": "rmsproptf"}, {"momentum": 0.9}),
    ],
)
def test_optimizers_are_timms(train, expected):
    group = create_optimizer(Net(), TrainSpec(**train), frozenset()).param_groups[0]
    assert {name: group[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"optimizer": "adamww"}, "did you mean 'adamw'"),
        ({"momentum": 0.9}, "train.momentum means nothing with train.optimizer=adamw"),
        ({"optimizer": "sgd", "optimizer_args": {"betas": [0, 1]}}, "optimizer_args.betas means nothing"),
        ({"optimizer": "sgd", "optimizer_args": {"momentum": 0.9}}, "give the momentum as train.momentum"),
        ({"optimizer_args": {"beta": 0.9}}, "optimizer_args do not fit train.optimizer=adamw: .*beta"),
        ({"optimizer_args": {"betas": [0.9, 3.0]}}, "optimizer_args do not fit train.optimizer=adamw: Invalid beta"),
    ],
)
def test_settings_that_an_optimizer_lacks_are_refused(train, message):
    with pytest.raises(CallError, match=message) as refusal:
        create_optimizer(Net(), TrainSpec(**train), frozenset())
    assert isinstance(refusal.value, UnknownName) == ("did you mean" in message)
