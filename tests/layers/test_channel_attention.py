"""Efficient channel attention: its definition, its limits, and that it fits into anybody's network."""

import copy
import pickle

import pytest
import torch
from timm.layers import CecaModule, EcaModule
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from torchstone.errors import CallError, ShapeError
from torchstone.layers import EfficientChannelAttention, EfficientChannelAttentionNS, adaptive_kernel_size

pytestmark = pytest.mark.system("ecanet")

LAYERS = [EfficientChannelAttention, EfficientChannelAttentionNS]


def by_definition(x, rows):
    """The docstrings' equations, channel by channel; ``rows[c]`` are the k weights of channel c."""
    batch, channels = x.shape[:2]
    k = rows.shape[1]
    out = torch.empty_like(x)
    for n in range(batch):
        for c in range(channels):
            near = [(j, c + j - (k - 1) // 2) for j in range(k)]
            gate = sum(rows[c, j] * x[n, i].mean() for j, i in near if 0 <= i < channels)
            out[n, c] = x[n, c] * torch.sigmoid(gate)
    return out


def gate_of(layer, x):
    return (layer(x) / x)[:, :, 0, 0]


@pytest.mark.parametrize(
    ("channels", "k"), [(1, 1), (7, 1), (8, 3), (32, 3), (64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)]
)
def test_kernel_size_grows_with_the_logarithm_of_the_channels(channels, k):
    assert adaptive_kernel_size(channels) == k
    assert EfficientChannelAttention(channels).conv.weight.shape == (1, 1, k)
    assert EfficientChannelAttention(channels, 9).conv.weight.shape == (1, 1, 9)


def test_kernel_size_is_the_nearest_odd_number():
    for channels in range(1, 3000, 7):
        exact = (torch.tensor(float(channels)).log2().item() + 1) / 2
        assert abs(adaptive_kernel_size(channels) - exact) <= 1
        assert adaptive_kernel_size(channels) % 2 == 1
    assert adaptive_kernel_size(256, gamma=1, b=2) == 11


@pytest.mark.parametrize(("channels", "k"), [(7, 3), (6, 5), (3, 7), (5, 1)])
def test_outputs_follow_the_definition(channels, k):
    x = torch.randn(2, channels, 3, 4)
    shared = EfficientChannelAttention(channels, k)
    torch.testing.assert_close(shared(x), by_definition(x, shared.conv.weight[0].expand(channels, k)))
    own = EfficientChannelAttentionNS(channels, k)
    torch.testing.assert_close(own(x), by_definition(x, own.conv.weight[:, 0]))


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_are_right(layer):
    layer = layer(5, 3).double()
    x = torch.randn(2, 5, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, _: layer(x), (x, layer.conv.weight))


def test_equals_timms_layer_with_the_same_weights():
    theirs = EcaModule(kernel_size=5)
    ours = EfficientChannelAttention(24, 5)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 24, 5, 6)
    torch.testing.assert_close(ours(x), theirs(x))


def test_channels_beyond_the_ends_are_zero_not_those_of_the_other_end():
    ours, circular = EfficientChannelAttention(8, 3), CecaModule(kernel_size=3)
    circular.load_state_dict(ours.state_dict())
    x = torch.rand(1, 8, 4, 4) + 0.5
    differs = (ours(x) - circular(x)).abs().amax((0, 2, 3)) > 1e-4
    assert differs.tolist() == [True] + 6 * [False] + [True]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_gate_sees_the_k_nearest_channels_alone(layer):
    layer = layer(9, 5)
    nn.init.ones_(layer.conv.weight)
    x = torch.rand(1, 9, 2, 2) + 0.5
    other = x.clone()
    other[:, 4] += 1
    changed = (gate_of(layer, x) != gate_of(layer, other))[0]
    assert changed.nonzero().flatten().tolist() == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_gate_does_not_see_where_in_the_map_a_value_is(layer):
    layer, x = layer(6, 3), torch.randn(2, 6, 4, 4)
    order = torch.randperm(16)
    shuffled = x.flatten(2)[..., order].view_as(x)
    torch.testing.assert_close(layer(shuffled), layer(x).flatten(2)[..., order].view_as(x))


def test_with_equal_weights_in_all_channels_the_unshared_layer_is_the_shared_one():
    shared, own = EfficientChannelAttention(10, 3), EfficientChannelAttentionNS(10, 3)
    with torch.no_grad():
        own.conv.weight.copy_(shared.conv.weight.expand(10, 1, 3))
    x = torch.randn(2, 10, 3, 3)
    torch.testing.assert_close(own(x), shared(x))


def test_weights_are_k_or_k_for_each_channel():
    assert sum(p.numel() for p in EfficientChannelAttention(64, 5).parameters()) == 5
    assert sum(p.numel() for p in EfficientChannelAttentionNS(64, 5).parameters()) == 320
    for layer in LAYERS:
        assert layer(64, 5).conv.weight.abs().max() <= 5**-0.5


@pytest.mark.parametrize("layer", LAYERS)
def test_bad_arguments_and_inputs_are_named(layer):
    for kernel_size, nearest in ((4, "3 and 5"), (0, "1 and 3"), (-3, "1 and 3")):
        with pytest.raises(CallError, match=f"got {kernel_size}; the nearest are {nearest}"):
            layer(8, kernel_size)
    with pytest.raises(CallError, match="channels must be at least 1"):
        layer(0)
    with pytest.raises(CallError, match="gamma"):
        layer(8, gamma=0)
    for shape in ((2, 9, 4, 4), (8, 4, 4), (2, 8)):
        with pytest.raises(ShapeError, match=r"\(B, 8, H, W\)"):
            layer(8)(torch.zeros(shape))


@pytest.mark.parametrize("layer", LAYERS)
def test_fits_into_timms_resnet(layer):
    def network(**options):
        return ResNet(BasicBlock, (1, 1, 1, 1), channels=(8, 16, 16, 32), num_classes=3, block_args=options)

    model = network(attn_layer=layer)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    added = [p for name, p in model.named_parameters() if ".se." in name]
    assert len(added) == 4
    assert all(p.grad is not None for p in added)
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in network().parameters()) == sum(
        p.numel() for p in added
    )


@pytest.mark.parametrize("layer", LAYERS)
def test_can_be_copied_and_keeps_half_precision(layer):
    layer, x = layer(6, 3), torch.randn(2, 6, 4, 4)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_the_unshared_layer_leaves_python_with_a_dynamic_batch(warm_compiler, warm_onnx, tmp_path):
    layer, x = EfficientChannelAttentionNS(6, 3).eval(), torch.randn(2, 6, 4, 4)
    with torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), layer(x))
        batch = torch.export.Dim("batch", min=1, max=64)
        exported = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},))
        torch.testing.assert_close(exported.module()(x[:1]), layer(x[:1]))
        torch.onnx.export(exported, (x,), tmp_path / "layer.onnx", dynamo=True, verbose=False)
        session = warm_onnx.InferenceSession(tmp_path / "layer.onnx", providers=["CPUExecutionProvider"])
        x = torch.randn(5, 6, 4, 4)
        (answer,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(answer), layer(x), rtol=1e-4, atol=1e-5)
