"""Kernels are taken where they fit, and nowhere else."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from torchstone.instruments.mac_formulas import mac_formulas
from torchstone.ops import dispatch, long_conv
from torchstone.ops.long_conv import cuda, reference

OP = torch.ops.torchstone.long_conv


def operators(*, length=100, device="cuda", dtype=torch.float32, batch=2):
    """The operators that a convolution of tensors without values calls, and what it returns."""
    with FakeTensorMode(), FlopCounterMode(display=False, custom_mapping=mac_formulas()) as counter:
        u, kernel = (torch.empty(shape, device=device, dtype=dtype) for shape in ((batch, 3, length), (4, 3, length)))
        result = long_conv(u, kernel)
    return counter.get_flop_counts().get("Global", {}), result


def test_cuda_tensors_take_the_kernel():
    used, result = operators()
    assert list(used) == [OP]
    assert result.shape == (2, 4, 3, 100)
    assert result.device.type == "cuda"


@pytest.mark.parametrize(
    "call",
    [{"device": "cpu"}, {"dtype": torch.float64}, {"length": 4000}],
    ids=["on a CPU", "in float64", "when it is too long for a chip"],
)
def test_the_reference_is_taken(call):
    used, result = operators(**call)
    assert used
    assert OP not in used
    assert result.shape == (2, 4, 3, call.get("length", 100))


def test_an_export_meets_the_reference(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    used, _ = operators()
    assert OP not in used


@pytest.mark.parametrize(("wants_u", "wants_taps"), [(True, True), (True, False), (False, True)])
def test_a_device_without_kernels_computes_the_reference(wants_u, wants_taps):
    assert not dispatch.has_kernels(torch.device("cpu"))
    u, taps = torch.randn(3, 2, 40, requires_grad=True), torch.randn(4, 2, 60, requires_grad=True)
    expected = reference.convolve(u, taps, 25)
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    with torch.no_grad():
        torch.testing.assert_close(cuda.run(u, taps, 25), expected)
        ours = cuda.run_backward(gradient, u, taps, 25, wants_u, wants_taps)
    for value, wanted, x in zip(ours, (wants_u, wants_taps), (u, taps), strict=True):
        torch.testing.assert_close(value, x.grad if wanted else torch.empty(0), rtol=1e-4, atol=1e-4)


def test_nothing_is_no_work_for_a_kernel():
    used, result = operators(batch=0)
    assert OP not in used
    assert result.shape == (0, 4, 3, 100)


def test_kernels_count_as_the_reference_does():
    (kernel,), (*reference,) = (operators(device=device)[0].values() for device in ("cuda", "cpu"))
    assert kernel == pytest.approx(sum(reference), abs=2)


def test_gradients_pass_through_the_operators():
    u, taps = torch.empty(2, 3, 50, device="meta"), torch.empty(4, 3, 60, device="meta")
    with FlopCounterMode(display=False) as counter:
        cuda.convolve(u.requires_grad_(), taps.requires_grad_(), 20).sum().backward()
    assert u.grad.shape == u.shape
    assert taps.grad.shape == taps.shape
    assert torch.ops.torchstone.long_conv_backward in counter.get_flop_counts()["Global"]


def test_importing_the_operators_does_not_import_triton():
    import subprocess
    import sys

    code = "import sys, torchstone.ops; sys.exit('torchstone.ops.long_conv.triton_kernels' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
