"""ConvFirst, MBConv and their network: the equations, folding, what a stack is made of, and errors."""

import pytest
import torch
import torch.nn.functional as F

from torchstone import create_model
from torchstone.errors import CallError, UnknownName
from torchstone.models.image.convfirst import ConvFirst, ConvFirstNet, MBConv, MLPBlock, StackedBlocks
from torchstone.models.image.convfirst.blocks import FusedConvFirst

pytestmark = pytest.mark.system("conv_efficiency")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def lively(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for name, value in model.named_buffers():
            if value.is_floating_point():
                value += torch.rand_like(value) if "var" in name else 0.3 * torch.randn_like(value)
    return model.eval()


def norm(x, layer):
    shape = (-1, 1, 1)
    scale = layer.weight / (layer.running_var + layer.eps).sqrt()
    return (x - layer.running_mean.view(shape)) * scale.view(shape) + layer.bias.view(shape)


def test_conv_first_is_its_equation():
    block = lively(ConvFirst(16, 16, expansion_ratio=3))
    conv, n0, expand, n1, _, project, n2 = block.layers
    x = torch.randn(2, 16, 5, 7)
    u = norm(F.conv2d(x, conv.weight, padding=1, groups=2), n0)
    y = norm(F.conv2d(F.silu(norm(F.conv2d(u, expand.weight), n1)), project.weight), n2)
    torch.testing.assert_close(block(x), x + y, rtol=1e-4, atol=1e-5)


def test_mbconv_is_its_equation():
    block = lively(MBConv(8, 12, stride=2, expansion_ratio=2))
    expand, n0, _, conv, n1, _, project, n2 = block.layers
    x = torch.randn(2, 8, 6, 6)
    h = F.silu(norm(F.conv2d(x, expand.weight), n0))
    h = F.silu(norm(F.conv2d(h, conv.weight, stride=2, padding=1, groups=2), n1))
    torch.testing.assert_close(block(x), norm(F.conv2d(h, project.weight), n2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("block", "residual"),
    [
        (ConvFirst(16, 16), True),
        (ConvFirst(16, 24), False),
        (ConvFirst(16, 16, stride=2), False),
        (MBConv(16, 16), True),
        (MLPBlock(16, 16), True),
        (MLPBlock(16, 8), False),
    ],
)
def test_the_residual_is_there_where_shapes_agree(block, residual):
    assert block.residual is residual
    with torch.no_grad():
        for parameter in block.layers[-1].parameters():
            parameter.zero_()
        x = torch.randn(1, 16, 6, 6)
        assert torch.equal(block.eval()(x), x) is residual


def test_groups_do_not_see_each_other_before_the_expansion():
    conv = ConvFirst(16, 16).layers[0]
    x = torch.randn(1, 16, 5, 5)
    changed = x.clone()
    changed[:, :8] += 1
    with torch.no_grad():
        assert torch.equal(conv(x)[:, 8:], conv(changed)[:, 8:])


def test_the_authors_blocks_have_his_parameters():
    for name, count in (("convfirst_block", 54_784), ("mbconv_block", 52_352)):
        assert sum(parameter.numel() for parameter in create_model(name).parameters()) == count


@pytest.mark.parametrize("extra_depth", [0, 1, 2, 3])
def test_mlp_blocks_stand_around_the_stack(extra_depth):
    stack = StackedBlocks(8, depth=2, extra_depth=extra_depth)
    kinds = [[type(block).__name__ for block in part] for part in (stack.pre, stack.blocks, stack.post)]
    before, after = (extra_depth + 1) // 2, extra_depth // 2
    assert kinds == [["MLPBlock"] * before, ["ConvFirst"] * 2, ["MLPBlock"] * after]


def test_a_stack_has_a_deploy_form():
    stack = lively(StackedBlocks(8, depth=2, extra_depth=1))
    x = torch.randn(2, 8, 5, 5)
    with torch.no_grad():
        expected = stack(x)
        torch.testing.assert_close(stack.fuse()(x), expected, rtol=1e-3, atol=1e-4)
    assert isinstance(stack.blocks[0], FusedConvFirst)


def test_the_deploy_form_is_the_same_function():
    network = lively(create_model("convfirst_mini32", num_classes=5))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network(x)
        assert network.fuse() is network
        torch.testing.assert_close(network(x), expected, rtol=1e-3, atol=1e-4)
    assert not [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert sum(isinstance(module, FusedConvFirst) for module in network.modules()) == 3  # all but stride 2


def test_squeeze_and_excitation_stands_in_mbconv_stages_only():
    plain, scaled = (create_model("convfirst_mini32", squeeze_excitation=on) for on in (False, True))
    added = set(scaled.state_dict()) - set(plain.state_dict())
    assert added
    assert all(name.startswith("stages.2.") and "fc" in name for name in added)
    x = torch.randn(2, 3, 32, 32)
    network = lively(scaled)
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(network.fuse()(x), expected, rtol=1e-3, atol=1e-4)


def test_full_networks_are_of_convnexts_size():
    with torch.device("meta"):
        tiny, nano, peer = (create_model(name) for name in ("convfirst_tiny", "convfirst_nano", "convnext_tiny"))
    count = {model: sum(parameter.numel() for parameter in model.parameters()) for model in (tiny, nano, peer)}
    assert 0.9 < count[tiny] / count[peer] < 1.1
    assert count[nano] < 0.6 * count[tiny]


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: ConvFirst(12, 12),
            CallError,
            "12 channels cannot be convolved in groups of 8; the nearest number is 16",
        ),
        (lambda: MBConv(8, 8, kernel_size=4), CallError, "must be odd, got 4"),
        (lambda: StackedBlocks(8, block="ConvLast"), UnknownName, "did you mean 'ConvFirst'"),
        (lambda: ConvFirstNet(dims=(8, 16)), CallError, "dims has 2 values for 4 stages"),
        (lambda: ConvFirstNet(strides=(2, 2)), CallError, "strides has 1 values for 4 stages"),
        (lambda: ConvFirstNet(blocks=("ConvFirst",) * 3 + ("MBCon",)), UnknownName, "did you mean 'MBConv'"),
    ],
)
def test_wrong_arguments_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()
