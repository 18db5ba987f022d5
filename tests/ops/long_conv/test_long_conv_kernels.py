"""The kernels do what the reference does, values and gradients, under the interpreter: ``pytest -m interpreter``."""

import os

import pytest
import torch

from torchstone.ops.long_conv import cuda, reference

pytestmark = pytest.mark.interpreter

SIZES = [  # batch, channels, kernels a channel, length, taps, taps ahead
    (1, 1, 1, 5, 5, 0),
    (3, 2, 2, 100, 100, 0),
    (2, 1, 1, 128, 128, 127),
    (3, 1, 2, 130, 3, 129),
    (2, 2, 1, 200, 60, 7),
    (2, 1, 1, 600, 600, 0),
]


@pytest.fixture(scope="module")
def kernels():
    pytest.importorskip("triton", reason="Triton's kernels exist on Linux only")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.fail("set TRITON_INTERPRET=1 before this process starts: TRITON_INTERPRET=1 pytest -m interpreter")
    from torchstone.ops.long_conv import triton_kernels

    return triton_kernels


@pytest.fixture(scope="module")
def on_the_cpu(kernels):
    """The operators, with the interpreted kernels in the place of CUDA's."""
    cuda.convolve.register_kernel("cpu")(kernels.convolve)
    cuda.convolve_backward.register_kernel("cpu")(kernels.convolve_backward)
    return cuda


def operands(batch, channels, maps, length, kernel, ahead, dtype=torch.float32):
    generator = torch.Generator().manual_seed(length)
    shapes = ((batch, channels, length), (maps, channels, kernel), (maps, channels, ahead))
    u, forward, backward = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    taps, present = reference.by_lag(forward, backward, length)
    return u.requires_grad_(), taps.requires_grad_(), present


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "x".join(map(str, sizes)))
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float16, 1e-3)])
def test_values_and_gradients_are_those_of_the_reference(on_the_cpu, sizes, dtype, bound):
    u, taps, ahead = operands(*sizes, dtype=dtype)
    ours = on_the_cpu.convolve(u, taps, ahead)
    exact_u, exact_taps = u.detach().double().requires_grad_(), taps.detach().double().requires_grad_()
    exact = reference.convolve(exact_u, exact_taps, ahead)
    gradient = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours.backward(gradient)
    exact.backward(gradient.double())
    for value, true in ((ours, exact), (u.grad, exact_u.grad), (taps.grad, exact_taps.grad)):
        assert value.dtype == dtype
        assert (value.double() - true).abs().max() < bound * true.abs().max()


def test_only_what_is_asked_for_is_differentiated(on_the_cpu):
    u, taps, ahead = operands(3, 2, 1, 20, 20, 0)
    (alone,) = torch.autograd.grad(on_the_cpu.convolve(u, taps.detach(), ahead).square().sum(), u)
    both, _ = torch.autograd.grad(on_the_cpu.convolve(u, taps, ahead).square().sum(), (u, taps))
    torch.testing.assert_close(alone, both)
    _, missing = on_the_cpu.convolve_backward(torch.ones(3, 1, 2, 20), u.detach(), taps.detach(), ahead, True, False)
    assert missing.numel() == 0


def test_pairs_of_a_long_batch_are_shared_among_programs(on_the_cpu, kernels, monkeypatch):
    monkeypatch.setattr(kernels, "_PROGRAMS", 4)
    u, taps, ahead = operands(11, 2, 1, 9, 9, 4)
    ours, exact = on_the_cpu.convolve(u, taps, ahead), reference.convolve(u, taps, ahead)
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)
    gradient = torch.randn_like(ours)
    for value, true in zip(
        torch.autograd.grad(ours, (u, taps), gradient), torch.autograd.grad(exact, (u, taps), gradient), strict=True
    ):
        torch.testing.assert_close(value, true, rtol=1e-5, atol=1e-5)


def test_operands_may_lie_in_memory_as_they_like(on_the_cpu):
    u, taps, ahead = operands(2, 3, 2, 17, 17, 3)
    strided = torch.stack([u, u], -1)[..., 0]
    across = taps.transpose(0, 2).contiguous().transpose(0, 2)
    assert not strided.is_contiguous()
    assert not across.is_contiguous()
    ours = on_the_cpu.convolve(strided, across, ahead)
    torch.testing.assert_close(ours, reference.convolve(u, taps, ahead), rtol=1e-5, atol=1e-5)


def test_pytorch_accepts_the_operators(on_the_cpu):
    u, taps, ahead = operands(2, 1, 1, 8, 8, 2)
    torch.library.opcheck(on_the_cpu.convolve, (u, taps, ahead))
