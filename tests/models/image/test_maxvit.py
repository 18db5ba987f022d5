"""MaxViT: partitions, attention and blocks against the paper's equations and timm's own network."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, _tf_cfg
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from torchstone import create_model
from torchstone.errors import CallError, ShapeError, UnknownName
from torchstone.layers import MBConv, RelativePositionBias, grid_merge, grid_partition, window_merge, window_partition
from torchstone.layers.mbconv import SqueezeExcitation
from torchstone.models.image.maxvit import (
    Attention,
    AttentionBlock,
    MaxViT,
    MaxViTBlock,
    convert_official,
)

SMALL = {"dims": (8, 16), "depths": (1, 2), "stem_width": 8, "head_dim": 8, "num_classes": 5}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def lively(model):
    """With statistics and biases as after training."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def assert_equal(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


# Partitions and bias


@pytest.mark.parametrize(("cut", "merge"), [(window_partition, window_merge), (grid_partition, grid_merge)])
def test_merging_undoes_a_partition(cut, merge):
    x = torch.randn(2, 6, 8, 3)
    groups = cut(x, (3, 2))
    assert groups.shape == (2 * 2 * 4, 3, 2, 3)
    assert torch.equal(merge(groups, 6, 8), x)


def pixels(height, width):
    """A map that holds its own coordinates."""
    return torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1)[None]


def test_windows_are_neighbours():
    windows = window_partition(pixels(6, 8), (3, 2))
    assert windows[5].flatten(0, 1).tolist() == [[y, x] for y in (3, 4, 5) for x in (2, 3)]


def test_grids_span_the_map():
    grids = grid_partition(pixels(6, 8), (3, 2))
    assert grids[5].flatten(0, 1).tolist() == [[y, x] for y in (1, 3, 5) for x in (1, 5)]


def test_bias_of_a_pair_is_that_of_its_offset():
    layer = RelativePositionBias((2, 3), heads=2)
    bias, table = layer(), layer.relative_position_bias_table
    places = [(y, x) for y in range(2) for x in range(3)]
    for i, (y, x) in enumerate(places):
        for j, (v, u) in enumerate(places):
            assert torch.equal(bias[:, i, j], table[:, v - y + 1, u - x + 2])


# Blocks


def test_attention_is_the_equation():
    layer = lively(Attention(8, (2, 3), head_dim=4))
    x = torch.randn(5, 2, 3, 8)
    tokens = x.flatten(1, 2)
    q, k, v = F.linear(tokens, layer.qkv.weight, layer.qkv.bias).chunk(3, -1)
    heads = [
        ((q[..., s] @ k[..., s].mT) / 2 + layer.rel_pos()[h]).softmax(-1) @ v[..., s]
        for h, s in enumerate((slice(0, 4), slice(4, 8)))
    ]
    expected = F.linear(torch.cat(heads, -1), layer.proj.weight, layer.proj.bias).view_as(x)
    assert_equal(layer(x), expected)


def test_grid_attention_is_window_attention_of_the_shuffled_map():
    window, grid = (lively(AttentionBlock(8, (2, 4), name, head_dim=4)) for name in ("window", "grid"))
    grid.load_state_dict(window.state_dict())
    x = torch.randn(2, 6, 8, 8)
    shuffled = window_merge(grid_partition(x, (2, 4)), 6, 8)
    assert_equal(window_merge(grid_partition(grid(x), (2, 4)), 6, 8), window(shuffled))


def seen_by_the_middle(block, side=16):
    """Which input pixels the output at (5, 5) depends on."""
    x = torch.randn(1, 8, side, side, requires_grad=True)
    block(x)[0, :, 5, 5].sum().backward()
    return x.grad[0].abs().amax(0) > 0


def test_one_block_with_a_grid_sees_the_whole_image_and_without_it_the_window_only():
    def block(attentions):
        model = lively(MaxViTBlock(8, 8, 1, (4, 4), (4, 4), attentions, head_dim=4))
        model.conv.se = nn.Identity()  # its mean sees everything, of every block alike
        return model

    window = torch.zeros(16, 16, dtype=torch.bool)
    window[3:9, 3:9] = True  # the window, 4 to 7, and the convolution's border
    assert torch.equal(seen_by_the_middle(block(["window"])), window)
    assert seen_by_the_middle(block(["window", "grid"])).all()


def test_shortcut_pools_the_map_and_projects_it():
    block = lively(MBConv(6, 8, stride=2))
    nn.init.zeros_(block.conv3_1x1.weight)
    nn.init.zeros_(block.conv3_1x1.bias)
    x = torch.randn(2, 6, 4, 6)
    assert_equal(block(x), block.shortcut.expand(F.avg_pool2d(x, 2)))


# Network


@pytest.mark.parametrize("sizes", [{}, {"window_size": 2, "grid_size": 4}])
def test_timms_network_gives_the_same_answer(sizes):
    kwargs = {"dims": (8, 8, 16, 24), "depths": (1, 2, 1, 1), "stem_width": 8, "head_dim": 8, "num_classes": 5}
    ours = lively(MaxViT((128, 256), **kwargs, **sizes))
    network = {"embed_dim": (8, 8, 16, 24), "depths": (1, 2, 1, 1), "stem_width": 8, "head_hidden_size": 24}
    config = MaxxVitCfg(**network, stem_bias=True, block_type=("M",) * 4, **_tf_cfg())
    attention = config.transformer_cfg
    attention.dim_head = 8
    for name, size in sizes.items():
        setattr(attention, name, (size, size))
    theirs = MaxxVit(config, img_size=(128, 256), num_classes=5).eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 128, 256)
    with torch.no_grad():
        assert_equal(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [
        ("maxvit_small_224", 1000, 68_927_956),
        ("maxvit_large_224", 1000, 211_785_560),
        ("maxvit_xlarge_224", 21_843, 506_987_643),
    ],
)
def test_variant_has_the_published_number_of_parameters(name, classes, parameters):
    with torch.device("meta"):
        model = create_model(name)
    assert model.num_classes == classes
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_cost_grows_linearly_with_pixels():
    model = MaxViT(64, **SMALL).to("meta")

    def flops(side):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.forward_features(torch.empty(1, 3, side, side, device="meta"))
        return counter.get_total_flops()

    squeezes = [module for module in model.modules() if isinstance(module, SqueezeExcitation)]
    once = sum(2 * layer.weight.numel() for squeeze in squeezes for layer in (squeeze.fc1, squeeze.fc2))
    assert flops(128) - once == 4 * (flops(64) - once)


def test_stochastic_depth_grows_as_the_authors_have_it():
    model = MaxViT(64, **{**SMALL, "depths": (2, 3)}, drop_path_rate=0.5)
    rates = [block.conv.drop_path for stage in model.stages for block in stage.blocks]
    assert [rate.drop_prob if isinstance(rate, DropPath) else 0 for rate in rates] == pytest.approx(
        [0, 0.1, 0.2, 0.3, 0.4]
    )


def test_ablations_leave_attention_out():
    whole, bare = MaxViT(64, **SMALL), MaxViT(64, **SMALL, attentions=())
    assert not [name for name, _ in bare.named_parameters() if "attn" in name]
    assert {name for name, _ in whole.named_parameters() if "attn" not in name} == {
        name for name, _ in bare.named_parameters()
    }


def test_any_image_size_that_the_strides_divide_can_be_built_for():
    model = MaxViT((24, 40), **SMALL)
    assert model.window == model.grid == (3, 5)
    assert model(torch.randn(1, 3, 24, 40)).shape == (1, 5)
    assert model(torch.randn(1, 3, 48, 40)).shape == (1, 5)


def test_head_normalises_before_its_hidden_layer():
    model = lively(MaxViT(64, **SMALL, head_hidden=12))
    x = torch.randn(2, 16, 3, 5)
    hidden = F.layer_norm(x.mean((2, 3)), (16,), model.head.norm.weight, model.head.norm.bias, eps=1e-5)
    hidden = model.head.pre_logits.fc(hidden).tanh()
    assert_equal(model.forward_head(x, pre_logits=True), hidden)
    assert_equal(model.forward_head(x), model.head.fc(hidden))


def test_fused_network_keeps_only_the_norms_in_front_of_blocks():
    model = lively(MaxViT(64, **SMALL))
    fused = copy.deepcopy(model).fuse()
    norms = [name for name, module in fused.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(name.endswith("pre_norm") for name in norms)
    assert len(norms) == 3
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_equal(fused(x), model(x))


# Checkpoints


def test_bias_tables_are_resized_to_the_model():
    small, large = MaxViT(32, **SMALL), MaxViT(64, **SMALL)
    converted = convert_official(small.state_dict(), large)
    large.load_state_dict(converted)
    name = "stages.0.blocks.0.attn_grid.attn.rel_pos.relative_position_bias_table"
    table = small.state_dict()[name]
    expected = F.interpolate(table[None], size=(15, 15), mode="bilinear")[0]
    assert torch.equal(large.state_dict()[name], expected)
    assert convert_official(large.state_dict(), large).keys() == converted.keys()


def test_weights_of_one_size_start_a_model_of_another(tmp_path):
    torch.save(MaxViT(32, **SMALL).state_dict(), tmp_path / "weights.pth")
    model = create_model("maxvit_mini32", pretrained=tmp_path / "weights.pth", **{**SMALL, "img_size": 64})
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 5)


def test_preprocessing_is_that_of_the_released_weights():
    ours, theirs = create_model("maxvit_mini32").pretrained_cfg, timm.get_pretrained_cfg("maxvit_tiny_tf_384.in1k")
    assert ours["classifier"] == theirs.classifier
    with torch.device("meta"):
        config = create_model("maxvit_tiny_384").pretrained_cfg
    for name in ("input_size", "pool_size", "mean", "std", "crop_pct", "crop_mode", "interpolation", "first_conv"):
        assert config[name] == getattr(theirs, name), name


# Errors


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: MaxViT(100), CallError, "multiples of 32, got 100x100"),
        (lambda: MaxViT(64, dims=(8, 16)), CallError, "dims has 2 values for 4 stages"),
        (lambda: MaxViT(64, **{**SMALL, "dims": (8, 12)}), CallError, "12 channels are not a multiple of the 8"),
        (lambda: MaxViT(64, **SMALL, attentions=("windows",)), UnknownName, "did you mean 'window'"),
        (lambda: MaxViT(64, **SMALL, global_pool="average"), UnknownName, "avg"),
        (lambda: MaxViT(64, **SMALL, global_pool=""), CallError, "5 classes need"),
        (lambda: MaxViT(64, **SMALL)(torch.zeros(1, 3, 64, 65)), ShapeError, "64x65: the nearest are 64x64"),
        (lambda: MaxViT(64, **SMALL)(torch.zeros(1, 3, 0, 64)), ShapeError, "got 0x64"),
    ],
)
def test_wrong_calls_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
