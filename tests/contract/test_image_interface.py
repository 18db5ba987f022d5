"""Every image model keeps timm's interface to the letter."""

import copy
import inspect

import pytest
import timm
import torch
from _image import SIZE, assert_same, build, channels
from timm.data import resolve_model_data_config
from timm.models import group_parameters
from timm.optim import param_groups_layer_decay
from torch import nn

from torchstone import create_model, register_with_timm


def test_forward_is_features_then_head(mini, x):
    with torch.no_grad():
        features = mini.forward_features(x)
        assert_same(mini.forward_head(features), mini(x))
        assert mini(x).shape == (2, mini.num_classes)
        assert mini.forward_head(features, pre_logits=True).shape == (2, mini.head_hidden_size)
    assert mini.num_features in features.shape[1:]


def test_arguments_have_timms_names(mini):
    for method, names in {
        "forward_head": {"x", "pre_logits"},
        "reset_classifier": {"num_classes", "global_pool"},
        "set_grad_checkpointing": {"enable"},
        "group_matcher": {"coarse"},
        "forward_intermediates": {"x", "indices", "norm", "stop_early", "output_fmt", "intermediates_only"},
    }.items():
        assert names <= set(inspect.signature(getattr(mini, method)).parameters), method


def test_classifier_is_the_one_that_the_configuration_names(mini):
    classifier = mini.get_classifier()
    assert classifier is mini.get_submodule(mini.pretrained_cfg["classifier"])
    assert classifier.out_features == mini.num_classes
    assert mini.pretrained_cfg["num_classes"] == 1000
    assert mini.default_cfg == mini.pretrained_cfg


def test_first_convolution_is_the_one_that_the_configuration_names(card, mini):
    first = mini.get_submodule(mini.pretrained_cfg["first_conv"])
    assert first.weight.shape[1] == channels(card)


def test_timms_data_pipeline_resolves_the_preprocessing(card, mini):
    config = resolve_model_data_config(mini)
    assert config["input_size"] == (channels(card), SIZE, SIZE)
    assert len(config["mean"]) == len(config["std"]) == 3


def test_classifier_can_be_replaced(mini, x):
    model = copy.deepcopy(mini)
    with torch.no_grad():
        pooled = mini.forward_head(mini.forward_features(x), pre_logits=True)
        model.reset_classifier(7)
        assert model.num_classes == 7
        assert model(x).shape == (2, 7)
        assert model.get_classifier().out_features == 7
        assert_same(model.forward_head(model.forward_features(x), pre_logits=True), pooled)  # the rest is untouched
        model.reset_classifier(0)
        assert model.num_classes == 0
        assert_same(model(x), pooled)
        model.reset_classifier(3)
        assert model(x).shape == (2, 3)


def test_head_can_be_taken_off(mini, x):
    model = copy.deepcopy(mini)
    model.reset_classifier(0, "")
    with torch.no_grad():
        assert model(x).shape == mini.forward_features(x).shape


@pytest.mark.parametrize("num_classes", [0, 1, 5])
def test_number_of_classes(card, x, num_classes):
    model = build(card, num_classes=num_classes).eval()
    with torch.no_grad():
        assert model(x).shape == (2, num_classes or model.head_hidden_size)


@pytest.mark.parametrize("in_chans", [1, 4])
def test_input_channels(card, in_chans):
    if card.input.in_chans != "any":
        pytest.skip(f"takes {card.input.in_chans} channels only")
    model = build(card, in_chans=in_chans).eval()
    with torch.no_grad():
        assert model(torch.randn(2, in_chans, SIZE, SIZE)).shape == (2, model.num_classes)


def test_feature_info_tells_the_maps_that_come(mini, x):
    with torch.no_grad():
        last, maps = mini.forward_intermediates(x)
        assert_same(last, mini.forward_features(x))
    assert len(maps) == len(mini.feature_info)
    for info, feature in zip(mini.feature_info, maps, strict=True):
        assert feature.shape == (2, info["num_chs"], SIZE // info["reduction"], SIZE // info["reduction"])
        assert isinstance(mini.get_submodule(info["module"]), nn.Module)


def test_intermediate_maps_can_be_chosen(mini, x):
    with torch.no_grad():
        _, maps = mini.forward_intermediates(x)
        chosen = mini.forward_intermediates(x, indices=[0, len(maps) - 1], intermediates_only=True)
        assert_same(chosen[0], maps[0], 0)
        assert_same(chosen[1], maps[-1], 0)
        last_two = mini.forward_intermediates(x, indices=2, intermediates_only=True)
        assert [feature.shape for feature in last_two] == [feature.shape for feature in maps[-2:]]
        _, early = mini.forward_intermediates(x, indices=[0], stop_early=True)
        assert_same(early[0], maps[0], 0)


def test_features_only_gives_the_maps_of_the_whole_model(card, x):
    whole, features = build(card).eval(), build(card, features_only=True).eval()
    with torch.no_grad():
        maps = whole.forward_intermediates(x, intermediates_only=True)
        expected = [maps[index] for index in features.feature_info.out_indices]
        got = features(x)
    assert features.feature_info.channels() == [feature.shape[1] for feature in got]
    assert features.feature_info.reduction() == [SIZE // feature.shape[-1] for feature in got]
    for ours, theirs in zip(got, expected, strict=True):
        assert_same(ours, theirs)


def test_features_only_takes_out_indices(card, x):
    model = build(card, features_only=True, out_indices=(0, 1)).eval()
    with torch.no_grad():
        assert [feature.shape[1] for feature in model(x)] == model.feature_info.channels()
    assert len(model.feature_info.channels()) == 2


@pytest.mark.parametrize("coarse", [False, True])
def test_parameters_group_by_depth(mini, coarse):
    groups = group_parameters(mini, mini.group_matcher(coarse=coarse))
    names = [name for members in groups.values() for name in members]
    assert sorted(names) == sorted(name for name, _ in mini.named_parameters())
    depth = {name: layer for layer, members in groups.items() for name in members}
    first, classifier = (f"{mini.pretrained_cfg[name]}.weight" for name in ("first_conv", "classifier"))
    assert len(groups) >= 3
    assert depth[first] == min(groups)
    assert depth[classifier] == max(groups)


def test_layer_decay_takes_every_parameter_once(mini):
    groups = param_groups_layer_decay(mini, layer_decay=0.5)
    parameters = [parameter for group in groups for parameter in group["params"]]
    assert len(parameters) == len({id(parameter) for parameter in parameters}) == len(list(mini.parameters()))


def test_no_weight_decay_names_parameters(mini):
    assert set(mini.no_weight_decay()) <= {name for name, _ in mini.named_parameters()}


def test_timm_creates_the_same_model(card, mini, x):
    name = register_with_timm()[card.small_form]
    assert name in (card.small_form, f"ts_{card.small_form}")
    model = timm.create_model(name).eval()
    assert type(model) is type(mini)
    model.load_state_dict(mini.state_dict())
    with torch.no_grad():
        assert_same(model(x), mini(x), 0)


def test_every_variant_is_built_without_memory_and_takes_its_size(card, warm_timm):
    assert card.networks
    called = {}  # of each size the smallest variant: others differ in widths and depths
    for variant in card.networks:
        with torch.device("meta"):
            model = create_model(variant.name).eval()
        assert all(parameter.is_meta for parameter in model.parameters()), variant.name
        assert model.num_classes == model.pretrained_cfg["num_classes"]
        size = model.pretrained_cfg["input_size"]
        called[size] = min(called.get(size, model), model, key=lambda model: len(list(model.modules())))
    for size, model in called.items():
        with torch.no_grad():
            answer = model(torch.empty(2, *size, device="meta"))
        assert answer.shape == (2, model.num_classes), size
