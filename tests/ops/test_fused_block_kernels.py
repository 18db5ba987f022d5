"""The fused block's kernels under Triton's interpreter: outputs and gradients against the reference."""

import os

import pytest
import torch
from test_fused_block import operands

from torchstone.ops.fused_block import reference

pytestmark = pytest.mark.interpreter

BOUNDS = {torch.float32: 1e-5, torch.float16: 4e-3}
SHAPES = [
    {},
    {"channels": 32, "out": 24, "hidden": 40, "size": (1, 4, 9)},  # chunks, padded outputs, a ragged slice
    {"channels": 24, "out": 24, "hidden": 24, "group_width": 4, "side": 5, "size": (3, 3, 3)},  # padded chunk, 5x5
    {"group_width": 16, "side": 1, "size": (1, 1, 1)},
    {"channels": 8, "out": 8, "hidden": 16, "group_width": 1, "side": 7, "size": (1, 8, 6)},  # depthwise
]


@pytest.fixture(scope="module")
def kernels():
    pytest.importorskip("triton", reason="Triton's kernels exist on Linux only")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.fail("set TRITON_INTERPRET=1 before this process starts: TRITON_INTERPRET=1 pytest -m interpreter")
    from torchstone.ops.fused_block import triton_kernels

    return triton_kernels


def assert_close(ours, expected, dtype):
    bound = BOUNDS[dtype] * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(ours.float(), expected.float(), rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", BOUNDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_is_the_reference(kernels, shape, dtype):
    values = operands(**shape, dtype=dtype)
    residual = values[0].shape[1] == values[5].shape[0]
    expected = reference.fused_block(*(value.float() for value in values), residual=residual)
    assert_close(kernels.launch_forward(*values, residual), expected, dtype)


def test_without_residual(kernels):
    values = operands()
    expected = reference.fused_block(*values, residual=False)
    assert_close(kernels.launch_forward(*values, False), expected, torch.float32)


def test_any_memory_layout_is_read(kernels):
    values = list(operands())
    expected = reference.fused_block(*values, residual=True)
    values[0] = values[0].contiguous(memory_format=torch.channels_last)
    assert_close(kernels.launch_forward(*values, True), expected, torch.float32)
    values[0] = values[0].transpose(2, 3).contiguous().transpose(2, 3)
    assert_close(kernels.launch_forward(*values, True), expected, torch.float32)


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_backward_is_the_references(kernels, shape, monkeypatch):
    """The operator's own backward pass, its kernels called directly because there is no CUDA device."""
    monkeypatch.setattr(kernels, "fused_block_backward", kernels.launch_backward)
    values = [value.requires_grad_() for value in operands(**shape)]
    residual = values[0].shape[1] == values[5].shape[0]
    y = reference.fused_block(*values, residual=residual)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(y, values, dy)
    context = type("Context", (), {"saved_tensors": [value.detach() for value in values], "residual": residual})
    *found, nothing = kernels._gradients(context, dy)
    assert nothing is None
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, torch.float32)


def test_weight_gradients_are_the_sum_of_their_parts(kernels):
    """Enough pixels for several partial sums, the last of them ragged."""
    u, _, _, w1, b1, w2, _ = operands(size=(2, 13, 11))
    dy = torch.randn(2, 16, 13, 11, generator=torch.Generator().manual_seed(1))
    leaves = [tensor.requires_grad_() for tensor in (u, w1, b1, w2)]
    hidden = torch.nn.functional.silu(torch.nn.functional.conv2d(u, w1, b1))
    expected = torch.autograd.grad(torch.nn.functional.conv2d(hidden, w2), leaves, dy)
    found = kernels.launch_backward(*(tensor.detach() for tensor in (u, dy, w1, b1, w2)))
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs, torch.float32)


def test_groups_become_blocks_of_a_matrix(kernels):
    weight = operands(channels=24, group_width=4)[1]
    dense = kernels.chunk_matrices(weight)
    assert dense.shape == (9, 2, 16, 16)
    assert torch.equal(dense.count_nonzero(), torch.tensor(weight.numel()))
    assert torch.equal(dense[4, 1, 2, 3], weight[19, 2, 1, 1])  # channel 19 reads channel 18, the third of its group
