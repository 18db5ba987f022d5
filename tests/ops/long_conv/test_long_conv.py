"""The long convolution is the sum that it stands for, at any length, and so is its block decomposition."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchstone.errors import CallError, ShapeError
from torchstone.instruments import count_macs
from torchstone.ops import block_fft, inverse_block_fft, long_conv, monarch_conv
from torchstone.ops.long_conv.monarch import block_sizes, dft_matrices
from torchstone.ops.long_conv.reference import fast_length

SIZES = [  # length, taps, taps ahead
    (1, 1, 1),
    (2, 1, 1),
    (7, 7, 6),
    (9, 3, 9),
    (16, 40, 50),
    (33, 5, 32),
    (100, 100, 0),
    (64, 0, 64),
    (127, 64, 100),
]


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def as_summed(u: Tensor, kernel: Tensor, backward: Tensor) -> Tensor:
    """The definition: one shifted copy of the sequence for every tap."""
    length = u.shape[-1]
    y = torch.zeros_like(u)
    for j in range(min(kernel.shape[-1], length)):
        y[..., j:] += kernel[:, j, None] * u[..., : length - j]
    for j in range(min(backward.shape[-1], length - 1)):
        y[..., : length - 1 - j] += backward[:, j, None] * u[..., j + 1 :]
    return y


@pytest.mark.parametrize("convolve", [long_conv, monarch_conv])
@pytest.mark.parametrize(("length", "taps", "ahead"), SIZES)
def test_it_is_the_sum_over_past_present_and_future(convolve, length, taps, ahead):
    u, kernel, backward = draw(2, 3, length), draw(3, taps), draw(3, ahead)
    expected = as_summed(u, kernel, backward)
    torch.testing.assert_close(convolve(u, kernel, backward), expected)
    torch.testing.assert_close(convolve(u, kernel), as_summed(u, kernel, backward[:, :0]))


def test_it_is_torchs_convolution_with_the_kernel_reversed():
    u, kernel = draw(2, 3, 50), draw(3, 50)
    torch.testing.assert_close(long_conv(u, kernel), F.conv1d(F.pad(u, (49, 0)), kernel.flip(-1)[:, None], groups=3))


def test_a_causal_convolution_does_not_see_the_future():
    u = draw(1, 2, 20).requires_grad_()
    long_conv(u, draw(2, 20))[0, :, 7].sum().backward()
    assert u.grad[..., :8].ne(0).all()
    assert u.grad[..., 8:].abs().max() < 1e-12


def test_nothing_wraps_round_the_ends():
    u = torch.zeros(1, 1, 30, dtype=torch.float64)
    u[..., -1] = 1
    causal = long_conv(u, torch.ones(1, 30, dtype=torch.float64))
    assert causal[..., :-1].abs().max() < 1e-12
    u = u.flip(-1)
    future = long_conv(u, torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 29, dtype=torch.float64))
    assert future.abs().max() < 1e-12


def test_several_kernels_a_channel_are_as_many_convolutions():
    u, kernel, backward = draw(2, 3, 17), draw(4, 3, 17), draw(4, 3, 9)
    for convolve in (long_conv, monarch_conv):
        y = convolve(u, kernel, backward)
        each = [convolve(u, kernel[c], backward[c]) for c in range(4)]
        torch.testing.assert_close(y, torch.stack(each, 1))


def test_float32_errors_are_rounding_at_a_hundred_thousand_points():
    u, kernel = draw(1, 1, 100_000, dtype=torch.float32), draw(1, 100_000, dtype=torch.float32)
    exact = long_conv(u.double(), kernel.double())
    error = (long_conv(u, kernel) - exact).abs().max() / exact.abs().max()
    assert error < 1e-6


def test_the_block_decomposition_is_equal_up_to_rounding():
    u, kernel = draw(2, 4, 3000, dtype=torch.float32), draw(4, 3000, dtype=torch.float32)
    expected = long_conv(u, kernel)
    assert (monarch_conv(u, kernel) - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("points", [1, 2, 3, 8, 16, 17, 100, 256, 500, 4096, 5000])
def test_the_block_fft_is_the_fourier_transform_in_natural_order(points):
    x = torch.complex(draw(2, 3, points), draw(3, 2, points).transpose(0, 1))
    size = 1 << (points - 1).bit_length()
    torch.testing.assert_close(block_fft(x), torch.fft.fft(x, size))
    torch.testing.assert_close(inverse_block_fft(block_fft(x))[..., :points], x)
    assert set(block_sizes(size)) <= {2, 4, 8, 16}


def test_every_channel_may_have_matrices_of_its_own_and_learns_them():
    x = draw(2, 3, 128)
    exact = dft_matrices((8, 16), dtype=torch.complex128)
    own = {size: matrix.repeat(3, 1, 1) for size, matrix in exact.items()}
    own[16][1] *= 2
    scaled = block_fft(x, own) / torch.fft.fft(x)
    torch.testing.assert_close(scaled[:, 0], torch.ones_like(scaled[:, 0]))
    torch.testing.assert_close(scaled[:, 1], 2 * torch.ones_like(scaled[:, 1]))
    learned = {size: matrix.clone().requires_grad_() for size, matrix in own.items()}
    monarch_conv(x[..., :64], draw(3, 64), matrices=learned, kernel_matrices=exact).square().sum().backward()
    assert all(matrix.grad.abs().amax((1, 2)).gt(0).all() for matrix in learned.values())


def test_learned_matrices_change_the_convolution_and_exact_ones_do_not():
    u, kernel = draw(2, 3, 60), draw(3, 60)
    exact = dft_matrices(dtype=torch.complex128)
    torch.testing.assert_close(monarch_conv(u, kernel, matrices=exact, kernel_matrices=exact), long_conv(u, kernel))
    other = {size: matrix + 0.1 * torch.complex(draw(size, size), draw(size, size)) for size, matrix in exact.items()}
    changed = monarch_conv(u, kernel, matrices=other, kernel_matrices=exact)
    assert (changed - long_conv(u, kernel)).abs().max() > 0.1


def test_an_activation_acts_on_both_parts_of_every_product():
    x = draw(2, 3, 16)
    spectrum = torch.fft.fft(x)
    expected = torch.complex(spectrum.real.relu(), spectrum.imag.relu())
    torch.testing.assert_close(block_fft(x, activation=torch.relu), expected)


def test_transform_lengths_are_not_below_what_is_asked_and_rarely_far_above():
    for points in range(1, 3000):
        length = fast_length(points)
        assert points <= length < 1.2 * points + 2
        assert length % 2 == 0


def test_cost_grows_as_n_log_n():
    class Convolution(torch.nn.Module):
        def forward(self, u: Tensor, kernel: Tensor) -> Tensor:
            return long_conv(u, kernel)

    def macs(length: int) -> int:
        u, kernel = torch.empty(1, 1, length, device="meta"), torch.empty(1, length, device="meta")
        count = count_macs(Convolution(), (u, kernel))
        assert not count.uncounted
        return count.total

    assert macs(1024) == round(3 * 1.25 * 2048 * 11)
    assert macs(1 << 20) / macs(1 << 10) == pytest.approx(1024 * 21 / 11, rel=1e-3)


def test_it_exports_for_any_length():
    class Convolution(torch.nn.Module):
        def forward(self, u: Tensor, kernel: Tensor, backward: Tensor) -> Tensor:
            return long_conv(u, kernel, backward)

    kernel, backward = draw(2, 12), draw(2, 30)
    shapes = ({0: torch.export.Dim("batch"), 2: torch.export.Dim("length")}, None, None)
    program = torch.export.export(Convolution(), (draw(3, 2, 20), kernel, backward), dynamic_shapes=shapes)
    for length in (5, 12, 31, 200):
        u = draw(2, 2, length)
        torch.testing.assert_close(program.module()(u, kernel, backward), long_conv(u, kernel, backward))


@pytest.mark.parametrize("convolve", [long_conv, monarch_conv])
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((3, 10), (3, 10)), r"u must be \(B, H, L\), got a tensor of shape \(3, 10\)"),
        (((2, 3, 10), (10,)), r"kernel must be \(H, K\) or \(C, H, K\), got a tensor of shape \(10,\)"),
        (((2, 3, 10), (4, 10)), r"kernel has 4 channels and u has 3"),
        (((2, 3, 10), (3, 10), (2, 10)), r"backward must be as the kernel but for its taps, \(3, 'K'\), got \(2, 10\)"),
        (((2, 3, 10), (5, 3, 10), (3, 10)), r"backward must be as the kernel"),
    ],
)
def test_sizes_that_do_not_fit_are_named(convolve, shapes, message):
    with pytest.raises(ShapeError, match=message):
        convolve(*(torch.zeros(shape) for shape in shapes))


def test_numbers_that_are_none_are_refused():
    with pytest.raises(CallError, match=r"kernel must hold real floating-point numbers, got torch\.int64"):
        long_conv(torch.zeros(1, 2, 3), torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(CallError, match=r"one device, got u on cpu, kernel on meta"):
        long_conv(torch.zeros(1, 2, 3), torch.zeros(2, 3, device="meta"))


def test_matrices_that_do_not_fit_are_named():
    x = torch.zeros(2, 3, 32)
    with pytest.raises(CallError, match=r"32 points needs a matrix of 2 rows, given are \[16\]"):
        block_fft(x, dft_matrices((16,)))
    with pytest.raises(ShapeError, match=r"matrix of 2 rows must be \(2, 2\) or \(H, 2, 2\), got \(4, 4\)"):
        block_fft(x, {2: torch.zeros(4, 4), 16: torch.zeros(16, 16)})
    with pytest.raises(ShapeError, match=r"matrices of 5 channels do not fit x of shape \(2, 3, 32\)"):
        block_fft(x, {size: matrix.repeat(5, 1, 1) for size, matrix in dft_matrices().items()})
    with pytest.raises(ShapeError, match="a transform of 16 points cannot take 32 elements"):
        block_fft(x, points=16)
