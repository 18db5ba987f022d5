"""Schedules and optimizers."""

import math

import pytest
import torch
from torch import nn

from torchstone.errors import CallError, UnknownName
from torchstone.training.optimizers import create_optimizer, learning_rate_scales, undecayed_parameters
from torchstone.training.recipe import TrainSpec
from torchstone.training.schedules import learning_rate, weight_decay
from torchstone.training.supervised import _average

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


def test_cosine_last_begins_where_it_is_told_and_ends_at_the_floor():
    spec = TrainSpec(lr=1.0, epochs=6, warmup_epochs=1, warmup_lr=0.005, min_lr=0.001, schedule="cosine_last")
    found = [learning_rate(spec, step, STEPS) for step in range(60)]
    assert found[:11] == pytest.approx([0.005 + 0.995 * step / 10 for step in range(11)])
    assert found[10:] == pytest.approx([0.001 + 0.4995 * (1 + math.cos(math.pi * k / 49)) for k in range(50)])
    assert found[-1] == pytest.approx(0.001)


def test_weight_decay_goes_from_its_value_to_its_end():
    spec = TrainSpec(epochs=3, weight_decay=0.04, weight_decay_end=0.2)
    found = [weight_decay(spec, step, STEPS) for step in range(30)]
    assert found == pytest.approx([0.2 - 0.08 * (1 + math.cos(math.pi * step / 29)) for step in range(30)])
    assert {weight_decay(TrainSpec(weight_decay=0.3), step, STEPS) for step in range(5)} == {0.3}


def scales(name, **train):
    import timm

    with torch.device("meta"):
        model = timm.create_model(name, num_classes=train.pop("num_classes", 10))
    found = learning_rate_scales(model, TrainSpec(layer_decay=0.5, **train))
    assert found.keys() == {name for name, _ in model.named_parameters()}
    return {name: round(-math.log2(scale)) for name, scale in found.items()}  # layers below the top


def test_layer_decay_falls_from_the_head_to_the_stem():
    depth = scales("resnet18")
    assert [depth[name] for name in ("fc.bias", "layer4.1.conv1.weight", "layer4.0.bn1.weight")] == [0, 1, 2]
    assert depth["layer1.0.conv1.weight"] == 8
    assert depth["conv1.weight"] == depth["bn1.bias"] == 9


def test_blocks_of_a_stage_can_be_one_layer_as_in_spark():
    depth = scales("resnet50", layer_blocks=[3, 2, 3, 3])
    blocks = {
        stage: [depth[f"layer{stage}.{b}.conv1.weight"] for b in range(n)] for stage, n in enumerate((3, 4, 6, 3), 1)
    }
    assert blocks == {1: [6] * 3, 2: [5, 5, 4, 4], 3: [3, 3, 3, 2, 2, 2], 4: [1] * 3}
    assert (depth["fc.weight"], depth["conv1.weight"]) == (0, 7)
    convnext = scales("convnext_small", layer_blocks=[3, 3, 3, 3])
    assert [convnext[f"stages.2.blocks.{b}.norm.weight"] for b in (0, 2, 3, 26)] == [10, 10, 9, 2]
    assert (convnext["stem.0.weight"], convnext["stages.3.downsample.1.weight"], convnext["head.fc.bias"]) == (13, 1, 0)


def test_a_network_without_a_classifier_has_its_last_blocks_at_the_whole_rate():
    assert scales("resnet18", num_classes=0)["layer4.1.conv1.weight"] == 0
    assert scales("resnet18", num_classes=0, layer_blocks=[2] * 4)["layer1.0.conv1.weight"] == 3


def test_layer_decay_needs_layers_and_blocks_that_fit():
    with pytest.raises(CallError, match="needs a model with group_matcher"):
        learning_rate_scales(Net(), TrainSpec(layer_decay=0.5))
    with pytest.raises(CallError, match="layer_blocks has 3 numbers; this model has 4 stages"):
        scales("resnet18", layer_blocks=[1, 1, 1])
    with pytest.raises(CallError, match=r"means nothing without train\.layer_decay"):
        TrainSpec(layer_blocks=[1])


def test_groups_carry_their_factor_and_whether_they_decay():
    net = Net()
    groups = create_optimizer(net, TrainSpec(), undecayed_parameters(net), {"conv.weight": 0.25}).param_groups
    found = {
        net_name: group
        for net_name, p in net.named_parameters()
        for group in groups
        if any(p is q for q in group["params"])
    }
    assert (found["conv.weight"]["lr_scale"], found["conv.weight"]["decays"]) == (0.25, True)
    assert (found["table"]["lr_scale"], found["table"]["decays"]) == (1.0, False)


def test_the_moving_average_follows_parameters_and_buffers():
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.BatchNorm1d(1))
    average = _average(model, 0.75)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model[0].weight += 1
        model[1].running_mean += 2
    average.update(model)
    torch.testing.assert_close(average.module[0].weight, before["0.weight"] + 0.25)
    torch.testing.assert_close(average.module[1].running_mean, before["1.running_mean"] + 0.5)
    assert not any(parameter.requires_grad for parameter in average.parameters())
