"""ECA-Net: where the attention sits, what it adds, and that the authors' files are taken."""

import copy
import functools
import re

import pytest
import torch
import torchvision
from timm.models import group_parameters
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from torchstone import create_model
from torchstone.errors import CallError, ShapeError, UnknownName
from torchstone.layers import EfficientChannelAttentionNS
from torchstone.models.image.ecanet import (
    ECABasicBlock,
    ECABottleneck,
    ECAInvertedResidual,
    ECAMobileNetV2,
    ECAResNet,
    LinearChannelGate,
)

KERNEL_SIZES = {
    "eca_resnet18": (3, 5, 7, 7),
    "eca_resnet34": (3, 3, 5, 7),
    "eca_resnet50": (3, 5, 5, 7),
    "eca_resnet101": (3, 3, 5, 7),
    "eca_resnet152": (3, 3, 5, 7),
}


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@functools.cache
def on_meta(name, **kwargs):
    """The network without memory for its weights; shared, so tests do not change it."""
    with torch.device("meta"):
        return create_model(name, **kwargs)


def torchvisions_parameters(name):
    """How many parameters torchvision's network of this name has."""
    return torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]


def kernel_sizes(model):
    """Kernel size of every attention, in the order of the blocks."""
    return [
        value.shape[-1] for name, value in model.state_dict().items() if re.search(r"(eca|conv\.\d)\.conv\.w", name)
    ]


@pytest.fixture
def narrow():
    """An ECA-ResNet-18 of an eighth of the width, after some training steps' worth of statistics."""
    return lively(create_model("eca_resnet18", width=8, num_classes=5))


def lively(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, std=0.2)
    return model.eval()


# What the attention adds ----------------------------------------------------------------------------------------------


def test_a_resnet50_has_exactly_80_more_weights():
    assert parameters(on_meta("eca_resnet50")) - parameters(on_meta("eca_resnet50", attention="none")) == 80
    assert parameters(on_meta("eca_resnet50")) - torchvisions_parameters("resnet50") == 80


@pytest.mark.parametrize("name", KERNEL_SIZES)
def test_every_block_of_a_stage_has_the_kernel_size_of_the_released_file(name):
    model = on_meta(name)
    for stage, k in enumerate(KERNEL_SIZES[name], start=1):
        assert set(kernel_sizes(model.get_submodule(f"layer{stage}"))) == {k}
    added = sum(k * len(model.get_submodule(f"layer{i}")) for i, k in enumerate(KERNEL_SIZES[name], start=1))
    assert parameters(model) - torchvisions_parameters(name.removeprefix("eca_")) == added


def test_mobilenet_has_kernel_size_1_below_96_channels():
    assert kernel_sizes(on_meta("eca_mobilenet_v2")) == 10 * [1] + 7 * [3]
    assert kernel_sizes(on_meta("eca_mobilenet_v2", width_mult=0.5)) == 10 * [1] + 7 * [3]
    plain = on_meta("eca_mobilenet_v2", attention="none")
    assert parameters(plain) == torchvisions_parameters("mobilenet_v2")


def test_kernel_sizes_follow_from_the_channels_when_they_are_not_given():
    model = on_meta("eca_resnet50", k_size=None)
    assert [kernel_sizes(model.get_submodule(f"layer{i}"))[0] for i in (1, 2, 3, 4)] == [5, 5, 5, 7]
    model = on_meta("eca_resnet34", k_size=None)
    assert [kernel_sizes(model.get_submodule(f"layer{i}"))[0] for i in (1, 2, 3, 4)] == [3, 5, 5, 5]
    assert set(kernel_sizes(on_meta("ecanet_mini32"))) == {3}


@pytest.mark.parametrize(
    ("name", "layers", "theirs"),
    [
        ("eca_resnet18", {"layers": (1, 1, 1, 1)}, lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=7)),
        ("eca_resnet50", {"layers": (1, 1, 1, 1)}, lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=7)),
        ("eca_mobilenet_v2", {}, lambda: torchvision.models.mobilenet_v2(num_classes=7)),
    ],
    ids=["basic", "bottleneck", "mobilenet"],
)
def test_without_attention_the_networks_are_torchvisions(name, layers, theirs):
    theirs = lively(theirs())
    with torch.device("meta"):
        ours = create_model(name, attention="none", num_classes=7, **layers).eval()
    state = {name.replace("classifier.1.", "classifier."): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(state, assign=True)
    x = torch.randn(1, 3, 45, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("attention", "added"),
    [
        ("eca", 6 * 3),
        ("eca_ns", 3 * 2 * (8 + 16 + 32)),
        ("se_var1", 0),
        ("se_var2", 2 * (8 + 16 + 32)),
        ("se_var3", 2 * (8**2 + 16**2 + 32**2)),
        ("se_gc", 2 * (8 + 16 + 32 * 2)),
        ("none", 0),
    ],
)
def test_the_peers_differ_in_the_attention_alone(attention, added):
    options = {"layers": (2, 2, 2), "width": 8, "k_size": (3, 3, 3), "num_classes": 10}
    model, plain = (create_model("ecanet_mini32", attention=kind, **options) for kind in (attention, "none"))
    assert parameters(model) - parameters(plain) == added
    assert {name for name in model.state_dict() if ".eca." not in name} == set(plain.state_dict())


def test_squeeze_and_excitation_reduces_by_16():
    model = create_model("ecanet_mini32", attention="se", width=32)
    assert [model.layer1[0].eca.fc1.out_channels, model.layer3[0].eca.fc1.out_channels] == [2, 8]
    assert create_model("ecanet_mini32", attention="se", width=8).layer1[0].eca.fc1.out_channels == 1


@pytest.mark.parametrize("groups", [None, 1, 2, 6])
def test_a_linear_gate_follows_its_equation(groups):
    gate, x = LinearChannelGate(6, groups), torch.randn(2, 6, 3, 4)
    matrix = torch.eye(6) if groups is None else torch.block_diag(*gate.weight)
    expected = x * torch.sigmoid(x.mean((2, 3)) @ matrix.T)[:, :, None, None]
    torch.testing.assert_close(gate(x), expected)
    assert sum(parameter.numel() for parameter in gate.parameters()) == (0 if groups is None else 6 * 6 // groups)


def test_every_channel_on_its_own_is_the_unshared_attention_of_one_weight():
    own, gate = EfficientChannelAttentionNS(6, 1), LinearChannelGate(6, 6)
    gate.load_state_dict({"weight": own.conv.weight})
    x = torch.randn(2, 6, 3, 4)
    torch.testing.assert_close(gate(x), own(x))


# Where it sits --------------------------------------------------------------------------------------------------------


class Nothing(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


@pytest.mark.parametrize(("block", "channels"), [(ECABasicBlock, 8), (ECABottleneck, 32)])
def test_the_attention_scales_the_branch_and_not_the_shortcut(block, channels):
    for in_channels, stride in ((channels, 1), (6, 1), (channels, 2)):
        model, x = lively(block(in_channels, 8, stride)), torch.randn(2, in_channels, 7, 8)
        model.eca = Nothing()
        with torch.no_grad():
            assert torch.equal(model(x), model.downsample(x).relu())
        assert isinstance(model.downsample, nn.Identity) == (in_channels == channels and stride == 1)


def test_the_attention_follows_the_last_norm():
    model, x = lively(ECABottleneck(16, 4)), torch.randn(2, 16, 5, 5)
    with torch.no_grad():
        branch = model.bn3(model.conv3(model.bn2(model.conv2(model.bn1(model.conv1(x)).relu())).relu()))
        torch.testing.assert_close(model(x), (model.eca(branch) + x).relu())
    block = ECAInvertedResidual(8, 8)
    assert [type(module).__name__ for module in block.conv[-2:]] == ["BatchNorm2d", "EfficientChannelAttention"]


def test_the_stride_is_in_the_3x3_convolution():
    assert ECABottleneck(16, 8, stride=2).conv1.stride == (1, 1)
    assert ECABottleneck(16, 8, stride=2).conv2.stride == (2, 2)


@pytest.mark.parametrize(("arguments", "has_shortcut"), [((8, 8, 1), True), ((8, 8, 2), False), ((8, 12, 1), False)])
def test_inverted_residuals_add_the_input_where_the_shape_stays(arguments, has_shortcut):
    block = lively(ECAInvertedResidual(*arguments))
    block.conv[-1] = Nothing()
    x = torch.randn(1, 8, 6, 6)
    with torch.no_grad():
        assert torch.equal(block(x), x if has_shortcut else torch.zeros_like(block(x)))


def test_mobilenets_channels_are_cut_not_rounded_and_the_last_ones_only_widen():
    model = on_meta("eca_mobilenet_v2", width_mult=0.2)
    assert [info["num_chs"] for info in model.feature_info] == [3, 4, 6, 19, 64]
    assert model.num_features == 1280
    assert on_meta("eca_mobilenet_v2", width_mult=1.4).num_features == 1792


# Interface ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mobilenet():
    torch.manual_seed(0)
    return lively(create_model("eca_mobilenet_v2", width_mult=0.25, num_classes=6))


def test_maps_of_mobilenet(mobilenet):
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        last, maps = mobilenet.forward_intermediates(x)
        assert torch.equal(last, mobilenet.forward_features(x))
        assert [tuple(m.shape[1:]) for m in maps] == [(4, 32, 32), (6, 16, 16), (8, 8, 8), (24, 4, 4), (80, 2, 2)]
        early, _ = mobilenet.forward_intermediates(x, indices=[1], stop_early=True)
        assert torch.equal(early, maps[1])
        features = create_model("eca_mobilenet_v2", width_mult=0.25, features_only=True, out_indices=(1, 3)).eval()
        features.model.load_state_dict(
            {k: v for k, v in mobilenet.state_dict().items() if k in features.model.state_dict()}
        )
        for ours, expected in zip(features(x), (maps[1], maps[3]), strict=True):
            assert torch.equal(ours, expected)
    assert len(features.model.features) == 14
    assert features.feature_info.channels() == [6, 24]


@pytest.mark.parametrize("coarse", [False, True])
def test_mobilenets_parameters_group_by_depth(mobilenet, coarse):
    groups = group_parameters(mobilenet, mobilenet.group_matcher(coarse))
    depth = {name: layer for layer, names in groups.items() for name in names}
    assert depth.keys() == dict(mobilenet.named_parameters()).keys()
    order = [depth[name] for name in depth if name.startswith("features.")]
    assert order == sorted(order)
    assert len(groups) == (8 if coarse else 20)
    assert max(groups) == depth["classifier.weight"]


@pytest.mark.parametrize(
    "build",
    [
        lambda: ECAMobileNetV2(0.25, num_classes=6),
        lambda: ECAResNet(ECABottleneck, (2, 1), width=8, num_classes=6),
        lambda: ECAResNet(ECABasicBlock, (1, 1), width=8, attention="se", num_classes=6),
    ],
    ids=["mobilenet", "bottleneck", "se"],
)
def test_norms_fold_into_the_convolutions(build):
    model, x = lively(build()), torch.randn(2, 3, 48, 48)
    fused = copy.deepcopy(model).train().fuse()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert not fused.training
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("stem_stride", "reductions"), [(1, [1, 1, 2, 4]), (2, [2, 2, 4, 8]), (4, [2, 4, 8, 16])])
def test_the_stem_says_how_much_smaller_the_maps_are(stem_stride, reductions):
    model = create_model("ecanet_mini32", stem_stride=stem_stride, width=4).eval()
    assert [info["reduction"] for info in model.feature_info] == reductions
    with torch.no_grad():
        maps = model.forward_intermediates(torch.randn(1, 3, 32, 32), intermediates_only=True)
    assert [32 // feature.shape[-1] for feature in maps] == reductions


def test_a_stage_can_be_observed(narrow):
    seen = []
    narrow.layer2.register_forward_hook(lambda *call: seen.append(call[-1].shape))
    narrow(torch.randn(1, 3, 64, 64))
    assert seen == [(1, 16, 8, 8)]


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k_size": (3, 3)}, "list of 4 odd numbers"),
        ({"k_size": 3557}, "got 3557"),
        ({"k_size": (3, 4, 5, 7)}, "got 4; the nearest are 3 and 5"),
        ({"stem_stride": 3}, "stem_stride must be 1, 2 or 4"),
        ({"global_pool": ""}, "give a global_pool"),
        ({"k_sizes": (3, 3, 3, 3)}, "k_sizes"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(CallError, match=message):
        on_meta("eca_resnet18", **arguments)


def test_mistyped_names_get_the_nearest():
    with pytest.raises(UnknownName, match="eca_ns"):
        on_meta("eca_resnet18", attention="ecans")
    with pytest.raises(UnknownName, match="avgmax"):
        on_meta("eca_resnet18", global_pool="avg_max")
    with pytest.raises(UnknownName, match="eca_resnet50"):
        create_model("ecaresnet50")


def test_mobilenets_bad_arguments_are_named():
    with pytest.raises(CallError, match="1/16"):
        on_meta("eca_mobilenet_v2", width_mult=0.05)
    with pytest.raises(CallError, match="list of 2 odd numbers"):
        on_meta("eca_mobilenet_v2", k_size=(1, 3, 3))
    with pytest.raises(ShapeError, match="3 channels"):
        on_meta("eca_mobilenet_v2")(torch.empty(1, 4, 32, 32, device="meta"))


def test_a_linear_gates_bad_arguments_and_inputs_are_named():
    for groups in (4, 0, -1):
        with pytest.raises(CallError, match=f"divide the 6 channels, got {groups}"):
            LinearChannelGate(6, groups)
    with pytest.raises(ShapeError, match=r"\(B, 6, H, W\)"):
        LinearChannelGate(6, 2)(torch.zeros(1, 5, 2, 2))


def test_only_maps_in_channels_first_are_given(narrow):
    with pytest.raises(CallError, match="NCHW"):
        narrow.forward_intermediates(torch.zeros(1, 3, 32, 32), output_fmt="NHWC")


# The authors' files ---------------------------------------------------------------------------------------------------


def released(model, path, *, renamed=lambda name: name, counters=True):
    """Write a model's weights as the authors' training script does: in a container, from a data-parallel wrapper."""
    state = {f"module.{renamed(name)}": value for name, value in model.state_dict().items()}
    if not counters:
        state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9).state_dict()
    content = {
        "epoch": 100,
        "arch": "eca",
        "state_dict": state,
        "best_prec1": torch.tensor(77.4),
        "optimizer": optimizer,
    }
    torch.save(content, path)
    return path


def assert_same_weights(model, expected):
    state = model.state_dict()
    assert state.keys() == expected.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in expected.state_dict().items())


def test_a_released_file_is_taken_whole(narrow, tmp_path):
    path = released(narrow, tmp_path / "eca_resnet18_k3577.pth.tar")
    assert_same_weights(create_model("eca_resnet18", pretrained=path, width=8, num_classes=5), narrow)


def test_kernel_sizes_are_read_off_the_file(tmp_path):
    source = create_model("eca_resnet18", k_size=(5, 3, 3, 9), width=8)
    path = released(source, tmp_path / "eca_resnet18_k5339.pth.tar")
    assert_same_weights(create_model("eca_resnet18", pretrained=path, width=8), source)
    with pytest.raises(CallError, match=r"layer4\.0\.eca\.conv\.weight is \(1, 1, 9\), the model has \(1, 1, 7\)"):
        create_model("eca_resnet18", pretrained=path, width=8, k_size=(5, 3, 3, 7))


def test_mobilenets_file_is_taken_whole(tmp_path):
    source = create_model("eca_mobilenet_v2", width_mult=0.25, k_size=(3, 5))
    path = released(
        source, tmp_path / "eca_mobilenetv2.pth.tar", renamed=lambda name: name.replace("classifier.", "classifier.1.")
    )
    assert_same_weights(create_model("eca_mobilenet_v2", pretrained=path, width_mult=0.25), source)


def test_files_without_batch_counters_are_taken(narrow, tmp_path):
    path = released(narrow, tmp_path / "old.pth.tar", counters=False)
    assert_same_weights(create_model("eca_resnet18", pretrained=path, width=8, num_classes=5), narrow)


def test_files_of_another_network_are_refused(narrow, tmp_path):
    path = released(narrow, tmp_path / "eca_resnet18_k3577.pth.tar")
    with pytest.raises(CallError, match=r"missing: layer1\.2\.conv1\.weight"):
        create_model("eca_resnet34", pretrained=path, width=8)
    with pytest.raises(CallError, match=r"unexpected: layer1\.0\.eca\.conv\.weight"):
        create_model("eca_resnet18", pretrained=path, width=8, num_classes=5, attention="none")


def test_classifier_and_first_convolution_adapt(narrow, tmp_path):
    path = released(narrow, tmp_path / "eca_resnet18_k3577.pth.tar")
    model = create_model("eca_resnet18", pretrained=path, width=8, num_classes=3, in_chans=1)
    torch.testing.assert_close(model.conv1.weight, narrow.conv1.weight.sum(1, keepdim=True))
    assert model.fc.weight.shape == (3, 64)
    assert torch.equal(model.layer4[1].conv2.weight, narrow.layer4[1].conv2.weight)


def test_where_the_authors_files_are_is_said():
    with pytest.raises(CallError, match=r"eca_resnet50_k3557, https://drive\.google\.com"):
        create_model("eca_resnet50", pretrained=True)
