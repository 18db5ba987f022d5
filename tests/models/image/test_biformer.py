"""BiFormer: routing attention against full attention and its own equations, padding, networks, dense prediction."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import nn

from torchstone import create_model
from torchstone.errors import CallError, ShapeError, UnknownName
from torchstone.instruments.macs import count_macs
from torchstone.models.image.biformer import (
    AttentionLePE,
    AttentionLePE2d,
    BiFormer,
    BiFormerBlock,
    BiFormerSTL,
    BiFormerSTL2d,
    BiLevelRoutingAttention,
    BiLevelRoutingAttention2d,
    DenseBiFormer,
    convert_official,
    dense_backbone,
)
from torchstone.models.image.biformer.attention import ConvolutionMixer, fixed_routes

SMALL = {"dims": (16, 24), "depths": (1, 2), "head_dim": 8, "regions": 2, "topks": (1, 3), "num_classes": 5}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def lively(model):
    """With weights and statistics as after training."""
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


def regions_of(x, side):
    """(B, H, W, C) -> (B, S^2, T, C), written out."""
    rows = [part.chunk(side, 2) for part in x.chunk(side, 1)]
    return torch.stack([region.flatten(1, 2) for row in rows for region in row], 1)


# Routing attention


def test_with_all_regions_it_is_full_attention_and_local_enhancement():
    layer = lively(BiLevelRoutingAttention(16, num_heads=2, regions=3, topk=9, side_dwconv=5))
    x = torch.randn(2, 6, 9, 16)
    q, k, v = layer.qkv(x.flatten(1, 2)).chunk(3, -1)
    heads = [((q[..., s] @ k[..., s].mT) * 16**-0.5).softmax(-1) @ v[..., s] for s in (slice(0, 8), slice(8, 16))]
    mixed = torch.cat(heads, -1).view(2, 6, 9, 16)
    values = v.view(2, 6, 9, 16).permute(0, 3, 1, 2)
    enhancement = F.conv2d(values, layer.lepe.weight, layer.lepe.bias, padding=2, groups=16).permute(0, 2, 3, 1)
    assert_equal(layer(x), layer.wo(mixed + enhancement))


def test_regions_are_routed_by_their_means():
    layer = lively(BiLevelRoutingAttention(16, num_heads=2, regions=3, topk=4))
    x = torch.randn(2, 6, 9, 16)
    found = layer.trace(x)
    q, k, _ = (regions_of(y, 3) for y in layer.qkv(x).chunk(3, -1))
    products = 16**-0.5 * q.mean(2) @ k.mean(2).mT
    assert torch.equal(found.routes, products.topk(4, -1).indices)
    assert_equal(found.weights, products.topk(4, -1).values.softmax(-1))
    assert torch.equal(found.output, layer(x))
    keys = torch.stack([k[b][found.routes[b]].flatten(1, 2) for b in (0, 1)]).unflatten(-1, (2, 8)).transpose(2, 3)
    logits = q.unflatten(-1, (2, 8)).transpose(2, 3) @ keys.mT
    assert_equal(found.attention, (logits * 16**-0.5).softmax(-1))


def test_without_enhancement_regions_may_stand_anywhere():
    """Content decides, not place: moving whole regions moves the answer with them."""
    layer = lively(BiLevelRoutingAttention(8, num_heads=2, regions=2, topk=2, side_dwconv=0))
    x = torch.randn(1, 4, 4, 8)
    moved = torch.cat([x[:, :, 2:], x[:, :, :2]], 2)
    answer = layer(x)
    assert_equal(layer(moved), torch.cat([answer[:, :, 2:], answer[:, :, :2]], 2))


def test_both_forms_agree_on_maps_that_the_regions_divide():
    first, second = BiLevelRoutingAttention(8, 2, 2, 3), BiLevelRoutingAttention2d(8, 2, 2, 3)
    lively(first)
    state = {n: v[..., None, None] if "lepe" not in n and v.ndim == 2 else v for n, v in first.state_dict().items()}
    second.load_state_dict(state)
    x = torch.randn(2, 6, 8, 8)
    assert_equal(second(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), first(x))


def test_the_first_form_pads_before_the_projection():
    layer = lively(BiLevelRoutingAttention(8, 2, regions=3, topk=2, auto_pad=True))
    x = torch.randn(2, 5, 7, 8)
    padded = F.pad(x, (0, 0, 0, 2, 0, 1))
    assert_equal(layer(x), layer(padded)[:, :5, :7])


def test_the_second_form_pads_behind_the_projection_and_has_more_regions():
    layer = lively(BiLevelRoutingAttention2d(8, 2, regions=3, topk=5))
    x = torch.randn(1, 8, 13, 9)  # regions of 4x3: four rows of three
    found = layer.trace(x)
    assert found.routes.shape == (1, 12, 5)
    q, k, v = (F.pad(y, (0, 0, 0, 3)).permute(0, 2, 3, 1) for y in layer.qkv(x).chunk(3, 1))

    def cut(y):
        return torch.stack([part.flatten(1, 2) for row in y.split(4, 1) for part in row.split(3, 2)], 1)

    q, k, v = cut(q), cut(k), cut(v)
    there = torch.tensor([4, 4, 4, 1]).repeat_interleave(3)[:, None] * 3  # tokens of each region that are no padding
    means = [y.sum(2) / there for y in (q, k)]
    routes = (means[0] @ means[1].mT).topk(5, -1).indices
    assert torch.equal(found.routes, routes)
    keys, values = k[0][routes[0]].flatten(1, 2), v[0][routes[0]].flatten(1, 2)
    heads = [
        ((q[0, ..., s] @ keys[..., s].mT) * 8**-0.5).softmax(-1) @ values[..., s] for s in (slice(0, 4), slice(4, 8))
    ]
    out = torch.cat(heads, -1).view(4, 3, 4, 3, 8).permute(0, 2, 1, 3, 4).reshape(1, 16, 9, 8)[:, :13]
    expected = layer.wo(out.permute(0, 3, 1, 2) + layer.lepe(layer.qkv(x).chunk(3, 1)[2]))
    assert_equal(layer(x), expected)


@pytest.mark.parametrize(
    ("mode", "pool"),
    [
        ("ada_avgpool", lambda x: F.adaptive_avg_pool2d(x, 2)),
        ("ada_maxpool", lambda x: F.adaptive_max_pool2d(x, 2)),
        ("avgpool", lambda x: F.avg_pool2d(x, 3)),
        ("maxpool", lambda x: F.max_pool2d(x, 3)),
    ],
)
def test_keys_and_values_are_pooled_within_their_region(mode, pool):
    options = {"kv_downsample_mode": mode, "kv_per_win": 2, "kv_downsample_ratio": 3, "side_dwconv": 0}
    layer = lively(BiLevelRoutingAttention(8, 1, regions=2, topk=4, **options))
    x = torch.randn(1, 8, 12, 8)  # regions of 4x6
    q, k, v = (regions_of(y, 2)[0] for y in layer.qkv(x).chunk(3, -1))
    keys, values = (
        pool(y.unflatten(1, (4, 6)).permute(0, 3, 1, 2)).flatten(2).mT.flatten(0, 1) for y in (k, v)
    )  # of all regions
    out = ((q @ keys.T) * 8**-0.5).softmax(-1) @ values
    expected = out.view(2, 2, 4, 6, 8).permute(0, 2, 1, 3, 4).reshape(1, 8, 12, 8)
    assert_equal(layer(x), layer.wo(expected))


def test_soft_routing_multiplies_keys_and_values():
    hard = lively(BiLevelRoutingAttention(8, 2, regions=2, topk=1))
    soft = BiLevelRoutingAttention(8, 2, regions=2, topk=1, soft_routing=True)
    soft.load_state_dict(hard.state_dict())
    x = torch.randn(1, 4, 4, 8)
    assert_equal(soft(x), hard(x))  # the softmax over one region is 1
    more = lively(BiLevelRoutingAttention(8, 2, regions=2, topk=3, soft_routing=True))
    plain = copy.deepcopy(more)
    plain.soft_routing = False
    assert not torch.allclose(more(x), plain(x))


def test_gradients_reach_the_router_when_asked_for():
    x = torch.randn(1, 4, 4, 8)
    options = {"soft_routing": True, "diff_routing": True, "param_routing": True}
    layer = BiLevelRoutingAttention(8, 2, regions=2, topk=3, **options)
    layer(x).square().sum().backward()
    assert layer.emb.weight.grad.abs().sum() > 0
    detached = BiLevelRoutingAttention(8, 2, regions=2, topk=3, soft_routing=True)
    assert not detached.trace(x).weights.requires_grad
    assert layer.trace(x).weights.requires_grad


def test_fixed_routes_do_not_look_at_the_content():
    assert fixed_routes("nearest", 3, 5)[4] == [4, 1, 3, 5, 7]
    assert fixed_routes("nearest", 4, 1) == [[region] for region in range(16)]
    drawn = fixed_routes("random", 4, 6)
    assert all(len(set(routes)) == 6 for routes in drawn)
    assert drawn == fixed_routes("random", 4, 6)
    windows = lively(BiLevelRoutingAttention(8, 2, regions=2, topk=1, side_dwconv=0, router="nearest"))
    x = torch.randn(1, 4, 4, 8)
    other = x.clone()
    other[:, 2:] = torch.randn(1, 2, 4, 8)
    assert_equal(windows(other)[:, :2], windows(x)[:, :2])
    assert torch.equal(windows.trace(x).routes, windows.trace(other).routes)


def test_last_stages_attention_reads_local_enhancement_from_its_input():
    layer = lively(AttentionLePE(16))
    x = torch.randn(2, 3, 5, 16)
    q, k, v = (y.unflatten(-1, (8, 2)).transpose(1, 2) for y in layer.qkv(x.flatten(1, 2)).chunk(3, -1))
    mixed = (((q @ k.mT) * 2**-0.5).softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
    enhancement = layer.lepe(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert_equal(layer(x), layer.proj(mixed + enhancement))


def test_the_other_forms_reads_it_from_the_values():
    layer = lively(AttentionLePE2d(16))
    x = torch.randn(2, 16, 3, 5)
    parts = layer.qkv(x).chunk(3, 1)
    q, k, v = (y.flatten(2).unflatten(1, (8, 2)) for y in parts)  # (B, h, d, HW)
    mixed = (v @ ((q.mT @ k) * 2**-0.5).softmax(-1).mT).reshape(x.shape)
    assert_equal(layer(x), layer.proj(mixed + layer.lepe(parts[2])))


def test_convolutions_may_stand_in_the_place_of_attention():
    """Their names in the authors' files count a layer in front that has no weights."""
    block, other = (BiFormerBlock(8, ConvolutionMixer(8)) for _ in range(2))
    names = {"proj_in": "1", "dwconv": "2", "proj_out": "3", "fc1": "0", "fc2": "3"}
    official = {}
    for name, value in lively(block).state_dict().items():
        official["stages.2.1." + ".".join(names.get(part, part) for part in name.split("."))] = value
    ours = convert_official(official, other)
    other.load_state_dict({name.removeprefix("stages.2.1."): value for name, value in ours.items()})
    x = torch.randn(1, 8, 5, 6)
    assert torch.equal(other(x), block(x))
    attention = block.attn
    y = attention.proj_out(attention.dwconv(attention.proj_in(x)))
    assert_equal(attention(x.permute(0, 2, 3, 1)), y.permute(0, 2, 3, 1))


# Block and networks


def test_norms_may_stand_behind_the_shortcuts():
    mixer = BiLevelRoutingAttention(8, 2, regions=2, topk=2)
    block = lively(BiFormerBlock(8, mixer, pre_norm=False, layer_scale=0.3, mlp_dwconv=True))
    x = torch.randn(2, 8, 4, 4)
    y = (x + block.pos_embed(x)).permute(0, 2, 3, 1)
    y = block.norm1(y + block.gamma1 * block.attn(y))
    hidden = block.mlp.dwconv(block.mlp.fc1(y).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    y = block.norm2(y + block.gamma2 * block.mlp.fc2(F.gelu(hidden)))
    assert_equal(block(x), y.permute(0, 3, 1, 2))


def test_small_variant_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = create_model("biformer_small")
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_536_232


def test_it_costs_what_the_authors_network_costs():
    with torch.device("meta"):
        counted = count_macs(create_model("biformer_tiny"), torch.empty(1, 3, 224, 224))
    assert counted.total / 1e9 == pytest.approx(2.22, abs=0.005)
    assert not counted.uncounted


def test_stochastic_depth_grows_linearly_over_all_blocks():
    model = BiFormer(**{**SMALL, "depths": (2, 3)}, drop_path_rate=0.4)
    rates = [block.drop_path for stage in model.stages for block in stage]
    assert [rate.drop_prob if isinstance(rate, DropPath) else 0 for rate in rates] == pytest.approx(
        [0, 0.1, 0.2, 0.3, 0.4]
    )


@pytest.mark.parametrize("topk", [0, -1, -2])
def test_a_stage_may_have_another_mixer(topk):
    model = lively(BiFormer(**{**SMALL, "topks": (1, topk)}))
    assert isinstance(model.stages[0][0].attn, BiLevelRoutingAttention)
    assert not isinstance(model.stages[1][0].attn, BiLevelRoutingAttention)
    assert model(torch.randn(2, 3, 16, 24)).shape == (2, 5)


def test_routing_regions_do_not_change_the_weights():
    coarse, fine = (BiFormer(**{**SMALL, "regions": regions}) for regions in (2, 4))
    fine.load_state_dict(coarse.state_dict())
    assert fine(torch.randn(1, 3, 64, 64)).shape == (1, 5)


def test_padding_takes_any_size_and_changes_nothing_where_none_is_needed():
    strict, padding = lively(BiFormer(**SMALL)), BiFormer(**SMALL, auto_pad=True).eval()
    padding.load_state_dict(strict.state_dict())
    x = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        assert torch.equal(padding(x), strict(x))
        maps = padding.forward_intermediates(torch.randn(1, 3, 37, 50), intermediates_only=True)
        assert padding(torch.randn(1, 3, 1, 1)).shape == (1, 5)
    assert [tuple(m.shape[-2:]) for m in maps] == [(10, 13), (5, 7)]


def test_the_later_form_takes_any_size_from_one_pixel_a_region_on():
    model = lively(BiFormerSTL2d(**{**SMALL, "topks": (1, 3)}))
    with torch.no_grad():
        assert model(torch.randn(2, 3, 37, 21)).shape == (2, 5)
    with pytest.raises(ShapeError, match="at least 16 pixels"):
        model(torch.randn(2, 3, 15, 32))


@pytest.mark.parametrize("network", [BiFormer, BiFormerSTL, BiFormerSTL2d])
def test_fused_networks_answer_the_same(network):
    model = lively(network(**SMALL))
    fused = copy.deepcopy(model).fuse()
    for name, module in fused.named_modules():
        for first, second in pairwise(list(module.children())):
            assert not (isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d)), name
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert_equal(fused(x), model(x))


# Dense prediction


def test_dense_backbone_normalises_maps_beside_the_trunk():
    network = lively(BiFormer(**SMALL, auto_pad=True))
    x = torch.randn(2, 3, 37, 50)
    with torch.no_grad():
        trunk = network.forward_intermediates(x, intermediates_only=True)
        dense = lively(DenseBiFormer(copy.deepcopy(network)))
        dense.load_state_dict({**dense.state_dict(), **{n: v for n, v in network.state_dict().items() if "stage" in n}})
        dense.downsample_layers.load_state_dict(network.downsample_layers.state_dict())
        maps = dense(x)
    for found, of_trunk, norm in zip(maps, trunk, dense.extra_norms, strict=True):
        expected = F.layer_norm(of_trunk.permute(0, 2, 3, 1), (len(norm.weight),), norm.weight, norm.bias, 1e-6)
        assert_equal(found, expected.permute(0, 3, 1, 2))


def test_dense_backbone_trains_with_checkpointing():
    backbone = dense_backbone("biformer_mini32", regions=3)
    backbone.set_grad_checkpointing()
    maps = backbone(torch.randn(2, 3, 41, 35))
    assert [tuple(m.shape[1:]) for m in maps] == [(32, 21, 18), (64, 11, 9), (128, 6, 5)]
    assert [info["num_chs"] for info in backbone.feature_info] == [32, 64, 128]
    sum(m.square().mean() for m in maps).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_weights_of_a_classifier_start_a_dense_backbone(tmp_path):
    torch.save(create_model("biformer_mini32", num_classes=7).state_dict(), tmp_path / "weights.pth")
    backbone = dense_backbone("biformer_mini32", pretrained=tmp_path / "weights.pth", regions=5)
    kept = torch.load(tmp_path / "weights.pth", weights_only=True)["stages.1.0.attn.qkv.weight"]
    assert torch.equal(backbone.stages[1][0].attn.qkv.weight, kept)


# Errors


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: BiLevelRoutingAttention(16, 3), CallError, "16 channels are not a multiple of .* heads, 3"),
        (lambda: BiLevelRoutingAttention(16, 2, 2, 5), CallError, "topk must be from 1 to 4, got 5"),
        (lambda: BiLevelRoutingAttention(16, diff_routing=True), CallError, "diff_routing needs soft_routing"),
        (lambda: BiLevelRoutingAttention(16, param_routing=True), CallError, "param_routing needs diff_routing"),
        (lambda: BiLevelRoutingAttention(16, side_dwconv=4), CallError, "must be odd, or 0 for none, got 4"),
        (lambda: BiLevelRoutingAttention(16, kv_downsample_mode="fracpool"), UnknownName, "did you mean"),
        (lambda: BiLevelRoutingAttention(16, kv_downsample_mode="ada_maxpool", kv_per_win=-1), CallError, "got -1"),
        (
            lambda: BiLevelRoutingAttention(16, kv_downsample_mode="avgpool", kv_downsample_ratio=0),
            CallError,
            "kv_downsample_ratio must be positive for avgpool, got 0",
        ),
        (lambda: BiLevelRoutingAttention(16, param_attention="o"), UnknownName, "qkv"),
        (lambda: BiLevelRoutingAttention(16, router="nearby"), UnknownName, "did you mean 'nearest'"),
        (lambda: BiLevelRoutingAttention(16)(torch.zeros(1, 8, 7, 16)), ShapeError, "14x7, or build with auto_pad"),
        (
            lambda: BiLevelRoutingAttention(16, 2, 2, kv_downsample_mode="avgpool")(torch.zeros(1, 6, 8, 16)),
            ShapeError,
            "regions of 3x4 cannot be pooled by 4",
        ),
        (lambda: BiLevelRoutingAttention2d(16)(torch.zeros(1, 16, 8, 6)), ShapeError, "got 8x6"),
        (lambda: BiFormer(**{**SMALL, "topks": (1, 2, 3)}), CallError, "topks has 3 values for 2 stages"),
        (lambda: BiFormer(**{**SMALL, "topks": (1, -3)}), CallError, "positive, 0, -1 or -2, got -3"),
        (lambda: BiFormer(**{**SMALL, "dims": (16, 20)}), CallError, "20 channels are not a multiple of the 8"),
        (lambda: BiFormer(**SMALL, stem_stride=3), CallError, "stem_stride must be 2 or 4"),
        (lambda: BiFormerSTL2d(**{**SMALL, "topks": (1, -2)}), CallError, "or -1 for attention"),
        (lambda: BiFormer(**SMALL)(torch.zeros(1, 3, 17, 32)), ShapeError, "16x32; build it with auto_pad=True"),
        (
            lambda: DenseBiFormer(BiFormer(**SMALL))(torch.zeros(1, 3, 17, 32)),
            ShapeError,
            "16x32; build it with auto_pad=True",
        ),
        (lambda: DenseBiFormer(BiFormerSTL(**SMALL)), CallError, "BiFormerSTL is no BiFormer: take biformer_tiny"),
        (lambda: dense_backbone("biformer_smal"), UnknownName, "biformer_small"),
    ],
)
def test_wrong_calls_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
