"""TransNeXt: attention, positions and scales against the paper's equations, also at sizes it was not built for."""

import copy
from math import log

import pytest
import torch
import torch.nn.functional as F

from torchstone import create_model
from torchstone.errors import CallError, ShapeError, UnknownName
from torchstone.instruments.macs import count_macs
from torchstone.models.image.transnext import (
    AggregatedAttention,
    ConvolutionalGLU,
    ConvolutionalMLP,
    FixedPositionBias,
    Gaze,
    GlobalAttention,
    TransNeXt,
    convert_official,
    relative_positions,
)

SMALL = {
    "img_size": 32,
    "dims": (8, 16),
    "depths": (1, 1),
    "heads": (2, 2),
    "mlp_ratios": (4, 4),
    "windows": (3, None),
    "pools": (2, 1),
    "num_classes": 5,
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def lively(model):
    """With parameters as after training."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def assert_equal(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


# Positions


def test_coordinates_are_those_of_every_pair():
    """Pair by pair, with cells of different sizes that share pixels: 7 rows in 3 cells."""
    queries, keys, trained = (7, 4), (3, 2), (5, 9)
    found = relative_positions(queries, keys, trained)
    centres = [
        F.adaptive_avg_pool1d(torch.arange(q, dtype=torch.float32)[None], k)[0].tolist()
        for q, k in zip(queries, keys, strict=True)
    ]
    coordinates = found.table.flatten(0, 1)[found.index].view(7, 4, 3, 2, 2)
    for y in range(7):
        for x in range(4):
            for k, down in enumerate(centres[0]):
                for m, right in enumerate(centres[1]):
                    offsets = torch.tensor([(y - down) / 4 * 8, (x - right) / 8 * 8])
                    expected = offsets.sign() * (offsets.abs() + 1).log2() / 3
                    assert_equal(coordinates[y, x, k, m], expected)


def test_no_coordinate_occurs_twice_where_cells_are_alike():
    table = relative_positions((6, 8), (3, 2), (7, 7)).table
    assert len(table.flatten(0, 1).unique(dim=0)) == table.shape[0] * table.shape[1]


def test_a_larger_map_has_the_coordinates_of_the_smaller_among_its_own():
    small, large = (relative_positions((s, s), (s, s), (6, 6)).table.flatten(0, 1) for s in (6, 9))
    assert {tuple(row) for row in small.tolist()} < {tuple(row) for row in large.tolist()}


def bias_of(attention, size):
    """The bias of every query and cell, cells in reading order: (heads, Qh, Qw, Kh, Kw)."""
    bias = attention.position(size)[0]
    return bias.flip(2).unflatten(2, attention.gaze.pooled(size)).unflatten(1, size)


@torch.no_grad()
@pytest.mark.parametrize(
    ("size", "pooled"),
    [((4, 6), (2, 3)), ((6, 4), (3, 2)), ((7, 5), (3, 2)), ((5, 8), (2, 4)), ((1, 3), (1, 1))],  # evenly spaced or not
)
def test_bias_of_pooled_cells_is_the_mlp_of_every_offset(size, pooled):
    """Pair by pair, from the equation: maps that are no squares, of the trained size and of others."""
    attention = lively(AggregatedAttention(6, 2, Gaze((4, 6), (4, 6), pool=2, window=3)))
    first, second = attention.position.fc1, attention.position.fc2
    found = bias_of(attention, size)
    assert found.shape == (2, *size, *pooled)
    cells = [
        [[i for i in range(side) if k * side < (i + 1) * count and i * count < (k + 1) * side] for k in range(count)]
        for side, count in zip(size, pooled, strict=True)
    ]
    for y in range(size[0]):
        for x in range(size[1]):
            for k, rows in enumerate(cells[0]):
                for m, columns in enumerate(cells[1]):
                    apart = (y - sum(rows) / len(rows)) / 3 * 8, (x - sum(columns) / len(columns)) / 5 * 8
                    offset = torch.tensor([(1 if r > 0 else -1) * log(abs(r) + 1, 2) / log(8, 2) for r in apart])
                    hidden = (first.weight @ offset + first.bias).clamp(min=0)
                    assert_equal(found[:, y, x, k, m], second.weight @ hidden + second.bias)


def test_bias_extrapolates_from_offset_to_offset():
    """Two pixels have the same bias in a map of any size."""
    attention = lively(GlobalAttention(8, 2, Gaze((4, 4), (4, 4))))
    small, large = bias_of(attention, (4, 4)), bias_of(attention, (6, 7))
    assert_equal(large[:, :4, :4, :4, :4], small)


def test_bias_of_another_size_can_be_interpolated():
    attention = lively(GlobalAttention(8, 2, Gaze((4, 4), (4, 4), positions="interpolate")))
    over_keys = F.interpolate(bias_of(attention, (4, 4)).flatten(1, 2), size=(6, 8), mode="bilinear")
    over_keys = over_keys.flatten(2).transpose(1, 2).unflatten(2, (4, 4))  # (heads, keys, query row and column)
    expected = F.interpolate(over_keys, size=(6, 8), mode="bilinear").flatten(2).transpose(1, 2)
    assert_equal(bias_of(attention, (6, 8)).flatten(3).flatten(1, 2), expected)


def test_bias_has_room_for_keys_that_are_no_cells():
    attention = lively(GlobalAttention(8, 2, Gaze((4, 4), (4, 4))))
    bias = attention.position((4, 4), spare=1, dtype=torch.bfloat16)
    assert bias.dtype == torch.bfloat16
    assert not bias[..., -1].any()
    assert torch.equal(bias[..., :-1], attention.position((4, 4)).bfloat16())


def test_geometry_of_the_built_size_is_that_computed_for_it():
    gaze, other = Gaze((6, 4), (4, 4), 2, 3), Gaze((8, 8), (4, 4), 2, 3)
    assert torch.equal(gaze.lengths((6, 4)), other.lengths((6, 4)))
    assert torch.equal(gaze.outside((6, 4)), other.outside((6, 4)))
    assert torch.equal(gaze.offsets((6, 4)).index, other.offsets((6, 4)).index)


def test_length_counts_neighbours_on_the_map_and_pooled_cells():
    lengths = Gaze((4, 6), (4, 4), pool=2, window=3).lengths((4, 6))
    assert_equal(lengths[0, 0], torch.tensor(log(4 + 6)))
    assert_equal(lengths[0, 2], torch.tensor(log(6 + 6)))
    assert_equal(lengths[2, 2], torch.tensor(log(9 + 6)))
    assert_equal(Gaze((4, 6), (4, 4)).lengths((8, 8)), torch.full((8, 8), log(64)))
    frozen = Gaze((4, 6), (4, 4), pool=2, window=3, length_scale="trained")
    assert_equal(frozen.lengths((8, 8))[3, 3], torch.tensor(log(9 + 6)))


# Attention


def by_pairs(layer, x, pooled):
    """Aggregated attention pixel by pixel, key by key."""
    _, height, width, dim = x.shape
    d, window, gaze = dim // layer.heads, layer.gaze.window, layer.gaze
    scale = F.softplus(layer.temperature).flatten()
    z = F.gelu(layer.sr(x)).permute(0, 3, 1, 2)
    z = layer.norm(F.adaptive_avg_pool2d(z, pooled).permute(0, 2, 3, 1)).flatten(1, 2)
    bias = bias_of(layer, (height, width)).flatten(3)  # (heads, H, W, P)
    found = torch.zeros_like(x)
    for head in range(layer.heads):
        part = slice(head * d, (head + 1) * d)
        q = F.normalize(layer.q(x)[..., part], dim=-1)
        k, v = (value[..., part] for value in layer.kv(x).chunk(2, -1))
        pooled_k, pooled_v = (value[..., part] for value in layer.kv(z).chunk(2, -1))
        for y in range(height):
            for u in range(width):
                near = []
                for tap in range(window**2):
                    down, right = tap // window - window // 2, tap % window - window // 2
                    if 0 <= y + down < height and 0 <= u + right < width:
                        near.append((tap, k[0, y + down, u + right], v[0, y + down, u + right]))
                length = log(len(near) + z.shape[1])
                query = (q[0, y, u] + layer.query_embedding[head, 0]) * scale[head] * length
                logits = [query @ F.normalize(key, dim=0) + layer.window_bias[head, tap] for tap, key, _ in near]
                logits += list(F.normalize(pooled_k[0], dim=1) @ query + bias[head, y, u])
                weights = torch.stack(logits).softmax(0)
                total = weights[len(near) :] @ pooled_v[0]
                for weight, (tap, _, value) in zip(weights, near, strict=False):
                    token = q[0, y, u] @ layer.learnable_tokens[head, :, tap] + layer.learnable_bias[head, 0, tap]
                    total = total + (weight + token) * value
                found[0, y, u, part] = total
    assert gaze.pooled((height, width)) == pooled
    return layer.proj(found)


@torch.no_grad()
@pytest.mark.parametrize(
    ("gaze", "pooled"),
    [
        (Gaze((4, 6), (4, 4), pool=2, window=3), (2, 3)),
        (Gaze((8, 8), (4, 4), pool=2, window=3), (2, 3)),  # built for another size
        (Gaze((4, 6), (4, 4), pool=2, window=5, pooled=2), (2, 2)),
    ],
)
def test_aggregated_attention_is_the_equation(gaze, pooled):
    layer = lively(AggregatedAttention(6, 2, gaze))
    x = torch.randn(1, 4, 6, 6)
    assert_equal(layer(x), by_pairs(layer, x, pooled))


@torch.no_grad()
def test_global_attention_is_the_equation():
    layer = lively(GlobalAttention(8, 2, Gaze((3, 4), (4, 4))))
    x = torch.randn(2, 3, 4, 8)
    q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in layer.qkv(x.flatten(1, 2)).chunk(3, -1))
    q, k = F.normalize(q, dim=-1) + layer.query_embedding, F.normalize(k, dim=-1)
    logits = q @ k.mT * F.softplus(layer.temperature) * log(12) + bias_of(layer, (3, 4)).flatten(3).flatten(1, 2)
    y = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
    assert_equal(layer(x), layer.proj(y).view_as(x))


@torch.no_grad()
def test_ablations_leave_parts_out():
    gaze = Gaze((4, 4), (4, 4), pool=2)
    pooled_only = AggregatedAttention(6, 2, gaze)
    names = {name for name, _ in pooled_only.named_parameters()}
    assert not {"window_bias", "learnable_tokens", "learnable_bias"} & names
    assert lively(pooled_only)(torch.randn(1, 4, 4, 6)).shape == (1, 4, 4, 6)
    plain = TransNeXt(**SMALL, learned=())
    assert not [name for name, _ in plain.named_parameters() if "embedding" in name or "learnable" in name]
    assert any("window_bias" in name for name, _ in plain.named_parameters())


def test_one_layer_sees_the_whole_map():
    """One layer sees the whole map, although its window is 3 x 3."""
    layer = lively(AggregatedAttention(6, 2, Gaze((8, 8), (8, 8), pool=4, window=3)))
    x = torch.randn(1, 8, 8, 6, requires_grad=True)
    layer(x)[0, 0, 0].sum().backward()
    assert (x.grad[0].abs().amax(-1) > 0).all()


def test_attention_dropout_keeps_the_mean():
    """Neighbours and cells are dropped one by one, so that outputs are right on average."""
    layer = lively(AggregatedAttention(6, 2, Gaze((4, 4), (4, 4), pool=2, window=3), attn_drop=0.2))
    x = torch.randn(1, 4, 4, 6)
    with torch.no_grad():
        expected, drawn = layer(x), layer.train()(x.expand(4000, -1, -1, -1))
    sure = 5 * drawn.std(0) / 4000**0.5
    assert (sure > 0).all()
    assert ((drawn.mean(0) - expected[0]).abs() <= sure).all()


def test_the_share_of_the_neighbours_survives_half_precision():
    """Their logit is large beside what bfloat16 tells apart; in one channel it would be off by some percent."""
    layer = AggregatedAttention(8, 1, Gaze((8, 8), (8, 8), pool=4, window=3))
    layer.position.fc2.weight.data.zero_()
    together = torch.linspace(9, 12, 64).view(1, 1, 64, 1)
    q, k, v = torch.zeros(1, 1, 64, 8), torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 4, 8).bfloat16()
    q[..., 0], k[..., 0] = 10.0, 1.0  # exact in bfloat16
    _, share = layer.attended_with(together, q, k, v, (8, 8))
    expected = together.exp() / (together.exp() + 4 * torch.tensor(10.0).exp())
    assert share.dtype == torch.bfloat16
    torch.testing.assert_close(share.float(), expected, rtol=2**-7, atol=0)


def test_autocast_changes_little():
    model = lively(TransNeXt(**SMALL))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(x)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.05 * expected.abs().max().item())


def test_attention_dropout_acts_while_training_only():
    for layer in (
        AggregatedAttention(6, 2, Gaze((4, 4), (4, 4), pool=2, window=3), attn_drop=0.5),
        GlobalAttention(6, 2, Gaze((4, 4), (4, 4)), attn_drop=0.5),
    ):
        x = torch.randn(1, 4, 4, 6)
        assert not torch.equal(layer.train()(x), layer(x))
        assert torch.equal(layer.eval()(x), layer(x))


@torch.no_grad()
def test_gate_of_the_glu_sees_the_neighbours():
    layer = lively(ConvolutionalGLU(6, 4))
    x = torch.randn(2, 5, 4, 6)
    gate, value = layer.fc1(x).split(16, -1)
    gate = F.conv2d(gate.permute(0, 3, 1, 2), layer.dwconv.weight, layer.dwconv.bias, padding=1, groups=16)
    assert_equal(layer(x), layer.fc2(F.gelu(gate).permute(0, 2, 3, 1) * value))


@torch.no_grad()
def test_feed_forward_networks_of_the_ablation():
    """Without the convolution the gate is the pixel's own; without the gate hidden channels make up for it."""
    x = torch.randn(2, 5, 4, 6)
    glu = lively(ConvolutionalGLU(6, 4, convolve=False))
    gate, value = glu.fc1(x).split(16, -1)
    assert_equal(glu(x), glu.fc2(F.gelu(gate) * value))
    mlp = lively(ConvolutionalMLP(6, 4))
    hidden = F.conv2d(mlp.fc1(x).permute(0, 3, 1, 2), mlp.dwconv.weight, mlp.dwconv.bias, padding=1, groups=24)
    assert_equal(mlp(x), mlp.fc2(F.gelu(hidden).permute(0, 2, 3, 1)))
    assert mlp.fc1.weight.numel() + mlp.fc2.weight.numel() == 2 * 4 * 36 == 3 * 16 * 6
    for name, layer in (("conv_glu", ConvolutionalGLU), ("glu", ConvolutionalGLU), ("conv_mlp", ConvolutionalMLP)):
        block = TransNeXt(**SMALL, feed_forward=name).stages[0].blocks[0]
        assert isinstance(block.mlp, layer)
        assert (name == "glu") == isinstance(block.mlp.dwconv, torch.nn.Identity)


# Network


@pytest.mark.parametrize(
    ("name", "side", "parameters", "gmacs"),
    [("transnext_micro", 224, 12_809_304, 2.649), ("transnext_micro_AAAA", 256, 13_114_008, 3.326)],
)
def test_variant_has_the_size_and_cost_of_the_authors(name, side, parameters, gmacs):
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    count = count_macs(model, torch.empty(1, 3, side, side, device="meta"))
    assert not count.uncounted
    assert count.total / 1e9 == pytest.approx(gmacs, rel=0.01)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("transnext_tiny", 28_258_960),
        ("transnext_small", 49_741_564),
        ("transnext_small_384", 49_741_564),
        ("transnext_base", 89_721_496),
        ("transnext_base_384", 89_721_496),
    ],
)
def test_larger_variant_has_the_size_of_the_authors(name, parameters):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in create_model(name).parameters()) == parameters


@pytest.mark.parametrize("size", [(48, 40), (29, 37), (1, 1), (3, 32)])
@pytest.mark.parametrize("positions", ["extrapolate", "interpolate"])
def test_other_sizes_are_taken(size, positions):
    model = lively(TransNeXt(**SMALL, positions=positions))
    with torch.no_grad():
        answer = model(torch.randn(2, 3, *size))
        assert answer.shape == (2, 5)
        assert answer.isfinite().all()
        maps = model.forward_intermediates(torch.randn(2, 3, *size), intermediates_only=True)
    assert [tuple(m.shape[2:]) for m in maps] == [tuple(-(-side // s) for side in size) for s in (4, 8)]


def test_a_fixed_pooled_map_makes_the_cost_linear_in_pixels():
    options = {**SMALL, "pools": (2, 2), "windows": (3, 3), "pooled": 2, "img_size": 64}
    model = TransNeXt(**options).to("meta")

    def cost(side):
        return count_macs(model, torch.empty(1, 3, side, side, device="meta"))

    def of_pixels(side):  # without the position MLP, whose cost is that of offsets, and the pooled cells' projections
        return sum(
            macs
            for name, macs in cost(side).by_module.items()
            if name and "position" not in name and "kv" not in name and name != "head"
        )

    assert of_pixels(128) == 4 * of_pixels(64)


def test_length_scale_matters_at_other_sizes_only():
    recomputed = lively(TransNeXt(**SMALL))
    frozen = TransNeXt(**SMALL, length_scale="trained").eval()
    frozen.load_state_dict(recomputed.state_dict())
    with torch.no_grad():
        x = torch.randn(1, 3, 32, 32)
        assert torch.equal(recomputed(x), frozen(x))
        x = torch.randn(1, 3, 64, 64)
        assert not torch.allclose(recomputed(x), frozen(x), atol=1e-4)


def test_deploy_form_keeps_offsets_not_pairs():
    """The last stage's bias of all pairs is a million numbers a head at 1024 pixels; its offsets are four thousand."""
    attention = GlobalAttention(8, 2, Gaze((32, 32), (7, 7)))
    attention.position = FixedPositionBias(attention.position)
    kept = {name: buffer.numel() for name, buffer in attention.position.named_buffers() if "gaze" not in name}
    assert kept == {"table": 2 * 63 * 63}
    assert list(attention.position.state_dict()) == ["table"]


def test_fused_network_keeps_its_size_or_interpolates():
    x, larger = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 48, 48)
    for positions in ("extrapolate", "interpolate"):
        model = lively(TransNeXt(**SMALL, positions=positions))
        fused = copy.deepcopy(model).fuse()
        assert not [name for name, _ in fused.named_parameters() if "position" in name]
        with torch.no_grad():
            assert_equal(fused(x), model(x))
            if positions == "interpolate":
                assert_equal(fused(larger), model(larger))
            else:
                with pytest.raises(ShapeError, match="positions of maps of 8x8, got 12x12"):
                    fused(larger)


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 0.1), (torch.float64, 1e-4)])
def test_network_can_be_converted_and_still_takes_other_sizes(dtype, share):
    model = lively(TransNeXt(**SMALL))
    for size in (32, 40):
        x = torch.randn(1, 3, size, size)
        with torch.no_grad():
            expected, found = model(x), copy.deepcopy(model).to(dtype)(x.to(dtype))
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=share * expected.abs().max().item())


def test_what_must_not_decay_is_named():
    model = TransNeXt(**SMALL)
    names = model.no_weight_decay()
    assert {name.rsplit(".", 1)[-1] for name in names if "position" not in name} == {
        "temperature",
        "query_embedding",
        "window_bias",
    }
    assert any("position.fc1.weight" in name for name in names)
    assert not any("learnable" in name for name in names)


def test_our_own_layout_is_left_as_it_is():
    model = TransNeXt(**SMALL)
    state = model.state_dict()
    converted = convert_official(state, model)
    assert converted.keys() == state.keys()


def test_temperature_starts_at_the_papers():
    attention = GlobalAttention(8, 2, Gaze((4, 4), (4, 4)))
    assert_equal(F.softplus(attention.temperature), torch.full((2, 1, 1), 1 / 0.24))


# Errors


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: TransNeXt(img_size=(100, 20)), CallError, "multiples of 32, got 100x20; the nearest is 96x32"),
        (lambda: TransNeXt(img_size=32), CallError, "at least 64 pixels, got 32x32: give a pretrain_size"),
        (lambda: TransNeXt(dims=(8, 16)), CallError, "depths has 4 values for 2 stages"),
        (lambda: TransNeXt(**{**SMALL, "heads": (3, 2)}), CallError, "8 channels are not a multiple of 3 heads"),
        (lambda: TransNeXt(**{**SMALL, "windows": (4, None)}), CallError, "must be odd"),
        (lambda: TransNeXt(**SMALL, learned=("query_embeding",)), UnknownName, "did you mean 'query_embedding'"),
        (lambda: TransNeXt(**SMALL, positions="extrapolation"), UnknownName, "extrapolate"),
        (lambda: TransNeXt(**SMALL, length_scale="log"), UnknownName, "trained"),
        (lambda: TransNeXt(**SMALL, feed_forward="convglu"), UnknownName, "did you mean 'conv_glu'"),
        (lambda: TransNeXt(**{**SMALL, "pools": (0, 1)}), CallError, "at least 1 pixel a side .* got pool 0"),
        (lambda: TransNeXt(**SMALL, pooled=0), CallError, "pooled must be 1 to 8, or None"),
        (lambda: TransNeXt(**SMALL, pretrain_size=0), CallError, "at least 16 pixels, got 0x0"),
        (lambda: TransNeXt(**SMALL)(torch.zeros(1, 4, 32, 32)), ShapeError, "takes 3 channels, got 4"),
        (lambda: relative_positions((4, 4), (5, 4), (4, 4)), CallError, "cannot be pooled to 5x4"),
        (lambda: relative_positions((4, 4), (2, 2), (1, 4)), CallError, "at least 2x2 pixels, got 1x4"),
        (lambda: TransNeXt(**SMALL, pooled=9), CallError, "8x8 pixels cannot be pooled to 9x9"),
    ],
)
def test_wrong_calls_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
