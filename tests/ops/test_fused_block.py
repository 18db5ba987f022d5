"""The fused block's definition: the layers it stands for, its errors, and that nothing but ATen meets a CPU."""

import pytest
import torch
import torch.nn.functional as F

from torchstone.errors import CallError, ShapeError
from torchstone.instruments.macs import count_macs
from torchstone.models.image.convfirst import ConvFirst
from torchstone.models.image.convfirst.blocks import FusedConvFirst
from torchstone.ops.fused_block import fused_block, reference


def operands(channels=16, out=16, hidden=48, group_width=8, side=3, size=(2, 5, 7), dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=1.0):
        return (scale * torch.randn(*shape, generator=generator)).to(dtype)

    batch, height, width = size
    return (
        draw(batch, channels, height, width),
        draw(channels, group_width, side, side, scale=(group_width * side**2) ** -0.5),
        draw(channels),
        draw(hidden, channels, 1, 1, scale=channels**-0.5),
        draw(hidden),
        draw(out, hidden, 1, 1, scale=hidden**-0.5),
        draw(out),
    )


def by_slices(x, w0, b0, w1, b1, w2, b2, width):
    """The paper's order: the projection summed over slices of the hidden channels."""
    u = F.conv2d(x, w0, b0, padding=w0.shape[-1] // 2, groups=x.shape[1] // w0.shape[1])
    y = b2[:, None, None].expand(len(x), -1, *x.shape[2:]).clone()
    for start in range(0, len(w1), width):
        unit = slice(start, start + width)
        y += F.conv2d(F.silu(F.conv2d(u, w1[unit], b1[unit])), w2[:, unit])
    return x + y


@pytest.mark.parametrize("width", [1, 16, 20])
def test_summing_over_slices_of_the_hidden_channels_is_the_same(width):
    values = operands()
    torch.testing.assert_close(by_slices(*values, width), fused_block(*values), rtol=0, atol=1e-5)


def test_it_is_the_block_with_folded_norms():
    torch.manual_seed(0)
    block = ConvFirst(16, 16, expansion_ratio=3).eval()
    with torch.no_grad():
        for name, value in block.named_buffers():
            if value.is_floating_point():
                value += torch.rand_like(value) if "var" in name else torch.randn_like(value)
        x = torch.randn(2, 16, 6, 5)
        expected = block(x)
        fused = block.fuse()
        assert isinstance(fused, FusedConvFirst)
        torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-5)


def test_a_block_with_stride_keeps_its_layers():
    block = ConvFirst(16, 24, stride=2).eval()
    x = torch.randn(1, 16, 8, 8)
    with torch.no_grad():
        expected = block(x)
        fused = block.fuse()
        assert fused is block
        torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-5)


def test_arithmetic_is_counted_as_its_layers_are():
    values = operands()

    class Layer(torch.nn.Module):
        def forward(self, *tensors):
            return fused_block(*tensors)

    x, w0, _, w1, _, w2, _ = values
    assert count_macs(Layer(), values).total == reference.macs(x.shape, w0.shape, w1.shape, w2.shape)


def test_gradients_are_those_of_finite_differences():
    values = [value.double().requires_grad_() for value in operands(8, 8, 12, 4, size=(1, 3, 2))]
    assert torch.autograd.gradcheck(fused_block, values)


def test_a_group_may_be_a_channel_or_all_of_them():
    for group_width in (1, 16):
        assert fused_block(*operands(group_width=group_width)).shape == (2, 16, 5, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(16, 5, 7)}, "map \\(B, C, H, W\\)"),
        ({1: torch.zeros(16, 5, 3, 3)}, "g a divisor"),
        ({1: torch.zeros(16, 8, 2, 2)}, "odd side"),
        ({2: torch.zeros(8)}, "conv_bias must be \\(16,\\)"),
        ({3: torch.zeros(48, 8, 1, 1)}, "expand_weight must be \\(E, 16, 1, 1\\)"),
        ({5: torch.zeros(16, 40, 1, 1)}, "project_weight must be \\(O, 48, 1, 1\\)"),
        ({5: torch.zeros(24, 48, 1, 1), 6: torch.zeros(24)}, "as many channels out as in"),
        ({0: torch.zeros(2, 16, 5, 7, dtype=torch.int64)}, "floating-point"),
    ],
)
def test_operands_that_do_not_fit_are_named(change, message):
    values = list(operands())
    for index, value in change.items():
        values[index] = value
    with pytest.raises((ShapeError, CallError), match=message):
        fused_block(*values)
