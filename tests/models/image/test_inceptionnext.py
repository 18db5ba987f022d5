"""InceptionNeXt: what its parts compute, against the paper's equations, dense convolutions and timm's own version."""

import copy
from functools import partial

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d
from timm.models.convnext import ConvNeXt as TimmConvNeXt
from timm.models.convnext import checkpoint_filter_fn
from timm.models.inception_next import InceptionDWConv2d as TimmMixer
from timm.models.inception_next import MetaNeXt as TimmMetaNeXt
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchstone import create_model
from torchstone.catalog import card
from torchstone.errors import CallError, ShapeError, UnknownName
from torchstone.models.image.inceptionnext import (
    ConvNeXt,
    InceptionDWConv2d,
    MetaNeXt,
    MetaNeXtBlock,
    MlpHead,
    PartialConv2d,
    convert_convnext,
)
from torchstone.models.image.inceptionnext.blocks import PointwiseConv2d

SMALL = {"depths": (1, 2, 1, 1), "dims": (16, 24, 32, 40), "num_classes": 5}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def lively(model):
    """The model with weights and statistics in which every parameter matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        for norm in model.modules():
            if isinstance(norm, _BatchNorm) and norm.track_running_stats:
                norm.running_mean += 0.3 * torch.randn_like(norm.running_mean)
                norm.running_var *= 0.5 + torch.rand_like(norm.running_var)
    return model.eval()


def assert_equal(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5 * max(1.0, expected.abs().max().item()))


# Token mixers


@pytest.mark.parametrize(
    ("dim", "ratio", "widths"),
    [
        (96, 1 / 8, (60, 12, 12, 12)),
        (192, 1 / 8, (120, 24, 24, 24)),
        (384, 1 / 8, (240, 48, 48, 48)),
        (768, 1 / 8, (480, 96, 96, 96)),
        (40, 1 / 4, (10, 10, 10, 10)),
        (36, 0.2, (15, 7, 7, 7)),
        (24, 1 / 3, (0, 8, 8, 8)),
    ],
)
def test_branches_take_whole_channels_and_the_identity_the_rest(dim, ratio, widths):
    mixer = InceptionDWConv2d(dim, branch_ratio=ratio)
    assert mixer.widths == widths
    assert mixer(torch.randn(1, dim, 5, 6)).shape == (1, dim, 5, 6)


def test_mixer_has_the_parameters_of_the_papers_formula():
    width, square, band = 12, 3, 11
    parameters = sum(parameter.numel() for parameter in InceptionDWConv2d(96).parameters())
    assert parameters == width * (square**2 + 2 * band) + 3 * width


@pytest.mark.parametrize(("square", "band"), [(3, 11), (5, 7)])
def test_inception_mixer_is_a_dense_depthwise_convolution_with_few_taps(square, band):
    mixer = lively(InceptionDWConv2d(20, square, band, branch_ratio=1 / 5))
    centre, near = band // 2, slice(band // 2 - square // 2, band // 2 + square // 2 + 1)
    dense, bias = torch.zeros(20, 1, band, band), torch.zeros(20)
    dense[:8, 0, centre, centre] = 1
    dense[8:12, :, near, near], bias[8:12] = mixer.dwconv_hw.weight, mixer.dwconv_hw.bias
    dense[12:16, :, centre : centre + 1, :], bias[12:16] = mixer.dwconv_w.weight, mixer.dwconv_w.bias
    dense[16:, :, :, centre : centre + 1], bias[16:] = mixer.dwconv_h.weight, mixer.dwconv_h.bias
    x = torch.randn(2, 20, 13, 9)
    assert_equal(mixer(x), F.conv2d(x, dense, bias, padding=centre, groups=20))


def test_partial_convolution_takes_the_last_channels():
    mixer = PartialConv2d(16, kernel_size=3, conv_ratio=0.3)  # floor(4.8) = 4 channels
    x = torch.randn(2, 16, 6, 7)
    y = mixer(x)
    assert torch.equal(y[:, :12], x[:, :12])
    assert_equal(y[:, 12:], F.conv2d(x[:, 12:], mixer.conv.weight, mixer.conv.bias, padding=1, groups=4))


def test_partial_convolution_of_all_channels_is_a_depthwise_convolution():
    mixer = PartialConv2d(8, kernel_size=5)
    x = torch.randn(2, 8, 6, 7)
    assert torch.equal(mixer(x), mixer.conv(x))
    assert mixer.conv.weight.shape == (8, 1, 5, 5)


# Block and heads


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_pointwise_convolution_is_a_1x1_convolution(memory):
    layer = PointwiseConv2d(6, 10)
    x = torch.randn(2, 6, 4, 5).contiguous(memory_format=memory)
    assert_equal(layer(x), F.conv2d(x, layer.weight, layer.bias))


@pytest.mark.parametrize("scale", [1e-6, None])
def test_block_computes_its_equation(scale):
    block = lively(MetaNeXtBlock(24, mlp_ratio=3, ls_init_value=scale))
    x = torch.randn(2, 24, 7, 6)
    mean, var = (v[:, None, None] for v in (block.norm.running_mean, block.norm.running_var))
    normed = (block.token_mixer(x) - mean) / (var + 1e-5).sqrt()
    normed = normed * block.norm.weight[:, None, None] + block.norm.bias[:, None, None]
    hidden = F.conv2d(normed, block.mlp.fc1.weight, block.mlp.fc1.bias)
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    branch = F.conv2d(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias)
    gamma = 1 if scale is None else block.gamma[:, None, None]
    assert hidden.shape[1] == 72
    assert_equal(block(x), x + gamma * branch)


def test_a_fresh_block_is_almost_the_identity():
    x = torch.randn(2, 24, 7, 6)
    torch.testing.assert_close(MetaNeXtBlock(24)(x), x, rtol=0, atol=1e-4)


def test_a_dropped_branch_leaves_the_sample_and_a_kept_one_is_scaled_up():
    block = MetaNeXtBlock(24, ls_init_value=1.0, drop_path=0.5)
    block.norm.eval()
    x = torch.randn(1, 24, 7, 6).expand(32, -1, -1, -1)
    branch = (block(x) - x).flatten(1).abs().amax(1)
    block.drop_path.eval()
    whole = (block(x) - x).flatten(1).abs().amax(1)
    dropped = branch < 1e-6
    assert 0 < dropped.sum() < 32
    assert_equal(branch[~dropped], 2 * whole[~dropped])


def test_head_normalises_after_the_activation():
    head = lively(MlpHead(10, 4))
    x = torch.randn(2, 10, 3, 5)
    hidden = F.gelu(F.linear(x.mean((2, 3)), head.fc1.weight, head.fc1.bias))
    hidden = F.layer_norm(hidden, (30,), head.norm.weight, head.norm.bias, eps=1e-6)
    assert_equal(head(x, pre_logits=True), hidden)
    assert_equal(head(x), F.linear(hidden, head.fc2.weight, head.fc2.bias))


# Networks beside timm's


@pytest.mark.parametrize("size", [(64, 96), (75, 91)])
def test_timms_network_gives_the_same_answer(size):
    mixer = {"band_kernel_size": 9, "branch_ratio": 1 / 4}
    ours = lively(MetaNeXt(**SMALL, token_mixers=partial(InceptionDWConv2d, **mixer)))
    timms = TimmMetaNeXt(**SMALL, token_mixers=partial(TimmMixer, **mixer)).eval()
    timms.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert_equal(ours(x), timms(x))
        for mine, theirs in zip(ours.forward_intermediates(x)[1], timms.forward_intermediates(x)[1], strict=True):
            assert_equal(mine, theirs)


def test_timms_tiny_gives_the_same_answer():
    ours = create_model("inceptionnext_tiny").eval()
    with torch.device("meta"):
        timms = timm.create_model("inception_next_tiny").eval()
    timms.load_state_dict(ours.state_dict(), assign=True)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_equal(ours(x), timms(x))


def official_convnext(depths, dims, num_classes, in_chans=3):
    """A random state dict in the layout of Meta's ConvNeXt."""
    state = {}

    def affine(name, *shape):
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(shape) / 4, torch.randn(shape[0]) / 4

    affine("downsample_layers.0.0", dims[0], in_chans, 4, 4)
    affine("downsample_layers.0.1", dims[0])
    for i, dim in enumerate(dims):
        if i:
            affine(f"downsample_layers.{i}.0", dims[i - 1])
            affine(f"downsample_layers.{i}.1", dim, dims[i - 1], 2, 2)
        for j in range(depths[i]):
            affine(f"stages.{i}.{j}.dwconv", dim, 1, 7, 7)
            affine(f"stages.{i}.{j}.norm", dim)
            affine(f"stages.{i}.{j}.pwconv1", 4 * dim, dim)
            affine(f"stages.{i}.{j}.pwconv2", dim, 4 * dim)
            state[f"stages.{i}.{j}.gamma"] = torch.randn(dim)
    affine("norm", dims[-1])
    affine("head", num_classes, dims[-1])
    return state


def test_timms_convnext_reads_the_same_checkpoint_to_the_same_answer(tmp_path):
    state = official_convnext(**SMALL)
    torch.save({"model": state}, tmp_path / "official.pth")
    ours = create_model("convnext_tiny", pretrained=tmp_path / "official.pth", **SMALL).eval()
    timms = TimmConvNeXt(**SMALL).eval()
    timms.load_state_dict(checkpoint_filter_fn(state, timms))
    x = torch.randn(2, 3, 64, 75)
    with torch.no_grad():
        assert_equal(ours(x), timms(x))


def test_official_checkpoint_adapts_to_other_classes_and_channels(tmp_path):
    torch.save(official_convnext(**SMALL), tmp_path / "official.pth")
    options = {**SMALL, "num_classes": 7, "in_chans": 1}
    ours = create_model("convnext_tiny", pretrained=tmp_path / "official.pth", **options).eval()
    assert ours(torch.randn(2, 1, 64, 64)).shape == (2, 7)


def test_official_checkpoint_gives_features_only(tmp_path):
    torch.save(official_convnext(**SMALL), tmp_path / "official.pth")
    whole, features = (
        create_model("convnext_tiny", pretrained=tmp_path / "official.pth", features_only=only, **SMALL).eval()
        for only in (False, True)
    )
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for ours, expected in zip(features(x), whole.forward_intermediates(x)[1], strict=True):
            assert_equal(ours, expected)


def test_our_own_checkpoint_passes_the_converter_unchanged():
    model = ConvNeXt(**SMALL)
    state = model.state_dict()
    assert convert_convnext(state, model) == state


def test_checkpoint_of_another_ablation_is_refused(tmp_path):
    torch.save(official_convnext(**SMALL), tmp_path / "official.pth")
    with pytest.raises(CallError, match=r"token_mixer\.conv\.weight is \(16, 1, 7, 7\), the model has \(4, 1, 3, 3\)"):
        create_model("convnext_tiny_k3_par1_4", pretrained=tmp_path / "official.pth", **SMALL)


def test_small_variant_has_the_official_number_of_parameters():
    with torch.device("meta"):
        model = create_model("inceptionnext_small")
    assert sum(parameter.numel() for parameter in model.parameters()) == 49_374_016


@pytest.mark.parametrize(
    ("suffix", "width", "kernel"),
    [
        ("", 96, 7),
        ("_k5", 96, 5),
        ("_k3", 96, 3),
        ("_k3_par1_2", 48, 3),
        ("_k3_par3_8", 36, 3),
        ("_k3_par1_4", 24, 3),
        ("_k3_par1_8", 12, 3),
        ("_k3_par1_16", 6, 3),
    ],
)
def test_ablation_has_the_named_kernel_on_the_named_share_of_the_channels(suffix, width, kernel):
    with torch.device("meta"):
        model = create_model(f"convnext_tiny{suffix}", depths=(1, 1, 1, 1))
    shapes = [stage.blocks[0].token_mixer.conv.weight.shape for stage in model.stages]
    assert shapes == [(width * 2**i, 1, kernel, kernel) for i in range(4)]


def test_every_paper_variant_has_a_checkpoint_to_load():
    assert all(bool(variant.weights) == variant.paper for variant in card("inceptionnext").variants)


# Options


def test_stochastic_depth_grows_linearly_over_the_blocks():
    model = MetaNeXt(**SMALL, drop_path_rate=0.4)
    rates = [
        block.drop_path.drop_prob if isinstance(block.drop_path, DropPath) else 0.0
        for stage in model.stages
        for block in stage.blocks
    ]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def hidden_channels(model):
    return [stage.blocks[0].mlp.fc1.out_channels for stage in model.stages]


def mixer_types(model):
    return [type(stage.blocks[0].token_mixer) for stage in model.stages]


@pytest.mark.parametrize(
    ("option", "seen", "expected"),
    [
        ({"mlp_ratios": 2}, hidden_channels, [32, 48, 64, 80]),
        (
            {"mlp_ratios": (4, 3, 2.5, 1)},
            hidden_channels,
            [64, 72, 80, 40],
        ),
        ({}, hidden_channels, [64, 96, 128, 120]),
        ({"token_mixers": nn.Identity}, mixer_types, [nn.Identity] * 4),
        (
            {"token_mixers": [nn.Identity, PartialConv2d, InceptionDWConv2d, nn.Identity]},
            mixer_types,
            [nn.Identity, PartialConv2d, InceptionDWConv2d, nn.Identity],
        ),
        ({"norm_layer": LayerNorm2d}, lambda m: {type(m.stem[1]), type(m.stages[1].downsample[0])}, {LayerNorm2d}),
        ({"norm_layer": LayerNorm2d}, lambda m: type(m.stages[0].blocks[0].norm), LayerNorm2d),
        ({"act_layer": nn.ReLU}, lambda m: type(m.stages[0].blocks[0].mlp.act), nn.ReLU),
        ({"ls_init_value": None}, lambda m: m.stages[0].blocks[0].gamma, None),
        ({"ls_init_value": 0.5}, lambda m: m.stages[0].blocks[0].gamma.tolist(), [0.5] * 16),
        ({"drop_rate": 0.3}, lambda m: m.head.drop.p, 0.3),
        ({"head_fn": partial(MlpHead, mlp_ratio=2)}, lambda m: m.head_hidden_size, 80),
        ({"patch_size": 2}, lambda m: m.forward_features(torch.zeros(1, 3, 32, 32)).shape, (1, 40, 2, 2)),
        ({"in_chans": 1}, lambda m: m(torch.zeros(1, 1, 32, 32)).shape, (1, 5)),
    ],
)
def test_option_acts(option, seen, expected):
    assert seen(MetaNeXt(**{**SMALL, **option}).eval()) == expected


@pytest.mark.parametrize("pooling", ["avg", "max", "avgmax"])
def test_pooling_is_the_named_one(pooling):
    model = lively(MetaNeXt(**SMALL, global_pool=pooling))
    x = torch.randn(2, 40, 3, 2)
    mean, largest = x.mean((2, 3)), x.amax((2, 3))
    pooled = {"avg": mean, "max": largest, "avgmax": (mean + largest) / 2}[pooling]
    assert_equal(model.forward_head(x, pre_logits=True), model.head.features(pooled))


def test_weights_start_as_the_authors_start_them():
    model = MetaNeXt(num_classes=100, depths=(1, 1), dims=(64, 256), mlp_ratios=4)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            assert module.bias.abs().max() == 0
            if module.weight.numel() > 10_000:
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(model.stages[0].blocks[0].gamma, torch.full((64,), 1e-6))


def test_head_comes_back_after_it_was_taken_off():
    model = MetaNeXt(**SMALL, drop_rate=0.3).double()
    model.reset_classifier(0, "")
    assert model.head_hidden_size == model.num_features == 40
    model.reset_classifier(3, "max")
    assert model.head.drop.p == 0.3
    assert model(torch.randn(2, 3, 32, 32, dtype=torch.double)).shape == (2, 3)


def test_features_only_drops_what_no_feature_needs():
    model = create_model("inceptionnext_mini32", features_only=True, out_indices=(0, 1))
    assert len(model.model.stages) == 2
    assert not [name for name, _ in model.named_parameters() if "head" in name]
    assert [tuple(m.shape) for m in model(torch.zeros(2, 3, 4, 5))] == [(2, 24, 2, 2), (2, 48, 1, 1)]
    with pytest.raises(ShapeError, match="at least 4 pixels"):
        model(torch.zeros(2, 3, 3, 8))


def test_checkpointing_updates_batch_statistics_once():
    plain = lively(MetaNeXt(**SMALL)).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.stages[1].blocks.grad_checkpointing = True
    x = torch.randn(2, 3, 64, 64)
    for model in (plain, checkpointed):
        model(x).square().sum().backward()
    assert plain.stages[1].blocks[0].norm.num_batches_tracked == 1
    for (name, ours), expected in zip(checkpointed.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, expected), name
    assert checkpointed.stages[1].blocks[0].norm.momentum == 0.1


# Deploy form


def test_fused_network_has_no_batch_norm_and_no_layer_scale():
    model = MetaNeXt(**SMALL).fuse()
    assert not [module for module in model.modules() if isinstance(module, _BatchNorm)]
    assert not [name for name, _ in model.named_parameters() if "gamma" in name]
    assert not model.training


@pytest.mark.parametrize(
    "model",
    [
        partial(MetaNeXt, **SMALL),
        partial(MetaNeXt, **SMALL, ls_init_value=None),
        partial(MetaNeXt, **SMALL, norm_layer=partial(nn.BatchNorm2d, affine=False)),
        partial(MetaNeXt, **SMALL, norm_layer=LayerNorm2d),
        partial(MetaNeXt, **SMALL, norm_layer=partial(nn.BatchNorm2d, track_running_stats=False)),
        partial(ConvNeXt, **SMALL, kernel_sizes=3, conv_ratios=1 / 4),
    ],
    ids=["inceptionnext", "no layer scale", "no affine", "layer norm", "no statistics", "convnext"],
)
def test_fusing_changes_no_answer_and_can_be_repeated(model):
    model = lively(model())
    x = torch.randn(2, 3, 75, 64)
    with torch.no_grad():
        expected = model(x)
        assert model.fuse() is model
        assert_equal(model(x), expected)
        assert_equal(model.fuse()(x), expected)


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: InceptionDWConv2d(96, branch_ratio=0.4), r"38 of 96 channels.*between 0.0104 and 0.333"),
        (lambda: InceptionDWConv2d(4), r"0 of 4 channels"),
        (lambda: InceptionDWConv2d(96, square_kernel_size=4), "odd sides, got 4x4"),
        (lambda: InceptionDWConv2d(96, band_kernel_size=10), "odd sides, got 1x10"),
        (lambda: PartialConv2d(16, conv_ratio=0.01), "convolves 0 of 16 channels"),
        (lambda: PartialConv2d(16, conv_ratio=1.5), "convolves 24 of 16 channels"),
        (lambda: MetaNeXt(depths=(1, 1), dims=(16, 32, 64)), "dims has 3 values for 2 stages"),
        (lambda: MetaNeXt(depths=(1, 1), dims=(16, 32)), "mlp_ratios has 4 values for 2 stages"),
        (lambda: MetaNeXt(**SMALL, token_mixers=[nn.Identity]), "token_mixers has 1 values for 4 stages"),
        (lambda: ConvNeXt(**SMALL, kernel_sizes=(3, 3)), "kernel_sizes has 2 values for 4 stages"),
        (lambda: ConvNeXt(**SMALL, conv_ratios=(1, 1, 1)), "conv_ratios has 3 values for 4 stages"),
        (lambda: MetaNeXt(**SMALL, global_pool=""), "a classifier for 5 classes needs pooled features"),
        (lambda: MetaNeXt(**SMALL).forward_intermediates(torch.zeros(1, 3, 32, 32), output_fmt="NLC"), "NCHW"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(CallError, match=message):
        call()


def test_unknown_pooling_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownName, match="did you mean 'avg"):
        MetaNeXt(**SMALL, global_pool="average")


def test_images_too_small_for_the_strides_are_refused():
    with pytest.raises(ShapeError, match="at least 32 pixels high and wide, got 64x31"):
        MetaNeXt(**SMALL)(torch.zeros(1, 3, 64, 31))
