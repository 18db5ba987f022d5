"""Each operator that computes, against the sum of products that it stands for."""

from math import log2, prod

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from torchstone.instruments import count_macs
from torchstone.instruments.free_operators import is_free
from torchstone.instruments.mac_formulas import mac_formulas


class Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def macs(function, *inputs) -> int:
    """MACs of a function, all of whose operators must be counted."""
    count = count_macs(function if isinstance(function, nn.Module) else Calls(function), inputs)
    assert not count.uncounted
    return count.total


def positive_definite(*shape):
    a = torch.randn(*shape)
    return a @ a.mT + shape[-1] * torch.eye(shape[-1])


PRODUCTS = {
    "matrices": (lambda a, b: a @ b, [(5, 7), (7, 3)], 5 * 7 * 3),
    "batched matrices": (torch.matmul, [(2, 4, 5, 7), (2, 4, 7, 3)], 8 * 5 * 7 * 3),
    "vectors": (torch.dot, [(9,), (9,)], 9),
    "matrix and vector": (torch.mv, [(5, 7), (7,)], 35),
    "matrix and vector, added": (torch.addmv, [(5,), (5, 7), (7,)], 35),
    "outer product, added": (torch.addr, [(5, 7), (5,), (7,)], 35),
    "matrices, added": (torch.addmm, [(5, 3), (5, 7), (7, 3)], 105),
    "batches, summed": (torch.addbmm, [(5, 3), (2, 5, 7), (2, 7, 3)], 210),
    "batches, added": (torch.baddbmm, [(2, 5, 3), (2, 5, 7), (2, 7, 3)], 210),
    "in place": (lambda c, a, b: c.addmm_(a, b), [(5, 3), (5, 7), (7, 3)], 105),
    "batches in place": (lambda c, a, b: c.baddbmm_(a, b), [(2, 5, 3), (2, 5, 7), (2, 7, 3)], 210),
    "einsum": (lambda a, b: torch.einsum("bihd,bjhd->bhij", a, b), [(2, 5, 3, 4), (2, 6, 3, 4)], 2 * 3 * 5 * 6 * 4),
    "three factors": (F.bilinear, [(5, 3), (5, 4), (6, 3, 4)], 5 * 6 * 3 * 4),
    "distances": (torch.cdist, [(2, 5, 3), (2, 6, 3)], 2 * 5 * 6 * 3),
    "many distances": (torch.cdist, [(30, 3), (40, 3)], 30 * 40 * 3),
    "distances within": (torch.pdist, [(5, 3)], 10 * 3),
    "convolution over time": (lambda x, w, b: torch.conv_tbc(x, w, b), [(7, 2, 3), (3, 3, 5), (5,)], 5 * 2 * 3 * 3 * 5),
    "attention": (F.scaled_dot_product_attention, [(2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8)], 2 * (2 * 4 * 5 * 7 * 8)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name):
    function, shapes, expected = PRODUCTS[name]
    assert macs(function, *(torch.randn(shape) for shape in shapes)) == expected


def test_products_of_integers_count_too():
    a, b = torch.ones(32, 16, dtype=torch.int8), torch.ones(16, 8, dtype=torch.int8)
    assert macs(torch._int_mm, a, b) == 32 * 16 * 8


def test_a_complex_product_is_four_real_ones():
    a, b = torch.randn(5, 7, dtype=torch.complex64), torch.randn(7, 3, dtype=torch.complex64)
    assert macs(torch.mm, a, b) == 4 * 105
    assert macs(torch.mv, a, b[:, 0]) == 4 * 35


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
def test_a_sparse_matrix_has_its_stored_elements_only(layout):
    adjacency = getattr(torch.diag(torch.ones(8)), layout)()
    assert macs(lambda x: adjacency @ x, torch.randn(8, 5)) == 8 * 5


def test_a_product_of_sparse_matrices_counts_the_pairs_that_meet():
    a = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]).to_sparse()
    b = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 1.0]]).to_sparse()
    assert macs(lambda x: (a @ b).to_dense() + x, torch.zeros(2, 2)) == 1 + 2 + 2


LAYERS = {
    "convolution": (nn.Conv2d(6, 8, 3, stride=2, padding=1), (2, 6, 9, 9), 2 * 25 * 8 * 6 * 9),
    "grouped convolution": (nn.Conv2d(6, 12, 3, groups=3), (2, 6, 9, 9), 2 * 49 * 12 * 2 * 9),
    "depthwise convolution": (nn.Conv2d(6, 6, (1, 11), padding=(0, 5), groups=6), (1, 6, 9, 9), 81 * 6 * 11),
    "convolution, one dimension": (nn.Conv1d(4, 5, 3), (2, 4, 10), 2 * 8 * 5 * 4 * 3),
    "convolution, three dimensions": (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), 27 * 3 * 2 * 8),
    "transposed convolution": (nn.ConvTranspose2d(6, 4, 2, stride=2), (2, 6, 5, 5), 2 * 25 * 6 * 4 * 4),
    "grouped transposed convolution": (nn.ConvTranspose2d(6, 4, 3, groups=2), (1, 6, 5, 5), 25 * 6 * 2 * 9),
    "linear": (nn.Linear(7, 3), (2, 5, 7), 2 * 5 * 7 * 3),
    "linear without bias": (nn.Linear(7, 3, bias=False), (5, 7), 5 * 7 * 3),
    "recurrence": (nn.RNN(4, 6), (5, 2, 4), 10 * (4 * 6 + 6 * 6)),
    "gated recurrence": (nn.GRU(4, 6), (5, 2, 4), 10 * 3 * (4 * 6 + 6 * 6)),
    "LSTM": (nn.LSTM(4, 6), (5, 2, 4), 10 * 4 * (4 * 6 + 6 * 6)),
    "LSTM of two layers, both ways": (
        nn.LSTM(4, 6, num_layers=2, bidirectional=True, batch_first=True),
        (2, 5, 4),
        10 * 2 * 4 * (4 * 6 + 6 * 6) + 10 * 2 * 4 * (12 * 6 + 6 * 6),
    ),
    "LSTM with a projection": (nn.LSTM(4, 6, proj_size=3), (5, 2, 4), 10 * (4 * 6 * (4 + 3) + 6 * 3)),
    "transformer layer": (
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        (3, 5, 8),
        3 * (5 * 8 * 24 + 2 * 5 * 5 * 8 + 5 * 8 * 8 + 2 * 5 * 8 * 16),
    ),
    "normalisation and activation": (nn.Sequential(nn.BatchNorm2d(3), nn.GELU(), nn.Softmax(1)), (2, 3, 4, 4), 0),
    "pooling": (nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1)), (1, 3, 8, 8), 0),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    layer, shape, expected = LAYERS[name]
    assert macs(layer, torch.randn(shape)) == expected


FOURIER = {
    "real": (torch.fft.rfft, (3, 64), 1.25 * 3 * 64 * 6),
    "inverse real": (lambda x: torch.fft.irfft(x, n=64), (3, 33), 1.25 * 3 * 64 * 6),
    "real, any number of points": (torch.fft.rfft, (3, 60), round(1.25 * 3 * 60 * log2(60))),
    "two dimensions": (torch.fft.rfft2, (3, 16, 32), 1.25 * 3 * 512 * 9),
    "two dimensions, inverse": (lambda x: torch.fft.irfft2(x, s=(16, 32)), (3, 16, 17), 1.25 * 3 * 512 * 9),
    "three dimensions": (torch.fft.rfftn, (4, 8, 16), 1.25 * 512 * 9),
    "along the first axis": (lambda x: torch.fft.rfft(x, dim=0), (64, 3), 1.25 * 3 * 64 * 6),
    "padded": (lambda x: torch.fft.rfft(x, n=128), (3, 64), 1.25 * 3 * 128 * 7),
    "one point": (torch.fft.rfft, (3, 1), 0),
}


@pytest.mark.parametrize("name", FOURIER)
def test_real_fourier_transforms_count_five_quarters_n_log_n(name):
    function, shape, expected = FOURIER[name]
    complex_input = "inverse" in name
    assert macs(function, torch.randn(shape, dtype=torch.complex64 if complex_input else torch.float32)) == expected


def test_complex_fourier_transforms_count_twice_as_much():
    x = torch.randn(3, 64, dtype=torch.complex64)
    assert macs(torch.fft.fft, x) == macs(torch.fft.ifft, x) == 2.5 * 3 * 64 * 6
    assert macs(torch.fft.fft2, x) == round(2.5 * 3 * 64 * log2(3 * 64))


SAMPLING = {
    "bilinear": ({"mode": "bilinear"}, 4),
    "bicubic": ({"mode": "bicubic"}, 16),
    "nearest": ({"mode": "nearest"}, 0),
}


@pytest.mark.parametrize("name", SAMPLING)
def test_a_sample_is_a_weighted_sum_of_its_neighbours(name):
    options, neighbours = SAMPLING[name]
    image, grid = torch.randn(2, 3, 8, 8), torch.rand(2, 5, 6, 2)
    assert macs(lambda x, g: F.grid_sample(x, g, align_corners=False, **options), image, grid) == neighbours * 180
    assert macs(lambda x: F.interpolate(x, size=(5, 6), **options), image) == neighbours * 180


def test_sampling_in_volumes_and_lines():
    volume, grid = torch.randn(2, 3, 4, 4, 4), torch.rand(2, 5, 6, 7, 3)
    assert macs(lambda x, g: F.grid_sample(x, g, align_corners=False), volume, grid) == 8 * 2 * 3 * 5 * 6 * 7
    assert macs(lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"), volume) == 8 * volume.numel() * 8
    assert macs(lambda x: F.interpolate(x, size=10, mode="linear"), torch.randn(2, 3, 5)) == 2 * 60


def test_antialiased_resizing_grows_its_filter_with_the_scale():
    image = torch.randn(2, 3, 16, 32)
    small = macs(lambda x: F.interpolate(x, size=(8, 8), mode="bilinear", antialias=True), image)
    assert small == 6 * (8 * 16 * 8 + 8 * 8 * 4)  # 8 taps along the width, then 4 along the height


def test_affine_grids():
    assert macs(lambda theta: F.affine_grid(theta, [2, 3, 4, 5], False), torch.randn(2, 2, 3)) == 2 * 20 * 2 * 3


def test_deformable_convolution_samples_then_convolves():
    x, offset, weight = torch.randn(2, 4, 8, 8), torch.zeros(2, 18, 6, 6), torch.randn(5, 4, 3, 3)
    counted = macs(torchvision.ops.deform_conv2d, x, offset, weight)
    assert counted == 2 * 36 * (5 * 4 * 9 + 4 * 4 * 9)


def test_region_sampling():
    x, regions = torch.randn(1, 3, 16, 16), torch.tensor([[0.0, 0.0, 0.0, 8.0, 8.0]])
    fixed = macs(lambda x, r: torchvision.ops.roi_align(x, r, 4, sampling_ratio=2), x, regions)
    assert fixed == 3 * 16 * 4 * 4
    per_pixel = macs(lambda x, r: torchvision.ops.roi_align(x, r, 4), x, regions)  # 8x8 pixels in 4x4 bins
    assert per_pixel == 3 * 16 * 4 * 4


N = 12
ALGEBRA = {
    "solve": (lambda a: torch.linalg.solve(a, torch.ones(N, 2)), N**3 / 3 + 2 * N**2),
    "inverse": (torch.linalg.inv, N**3),
    "determinant": (torch.linalg.det, N**3 / 3),
    "log determinant": (torch.logdet, N**3 / 3),
    "Cholesky": (torch.linalg.cholesky, N**3 / 6),
    "triangular solve": (
        lambda a: torch.linalg.solve_triangular(a.triu(), torch.ones(N, 2), upper=True),
        2 * N**2 / 2,
    ),
    "QR": (torch.linalg.qr, 2 * (N**3 * 2 / 3)),
    "symmetric eigenvectors": (torch.linalg.eigh, N**3 * 4.5),
    "eigenvectors": (torch.linalg.eig, N**3 * 12.5),
    "singular vectors": (lambda a: torch.linalg.svd(a, full_matrices=False), N**3 * 11),
    "all singular vectors": (torch.linalg.svd, N**3 * 10.5),
    "pseudoinverse": (torch.linalg.pinv, N**3 * 12),
    "least squares": (
        lambda a: torch.linalg.lstsq(a, torch.ones(N, 2)).solution,
        N**3 * 2 / 3 + 2 * (N**2 + N**2 / 2),
    ),
    "exponential": (torch.linalg.matrix_exp, 5 * N**3),
    "square power": (lambda a: torch.linalg.matrix_power(a, 2), N**3),
}


@pytest.mark.parametrize("name", ALGEBRA)
def test_linear_algebra_counts_leading_terms(name):
    function, expected = ALGEBRA[name]
    assert macs(function, positive_definite(N, N)) == round(expected)


def test_linear_algebra_is_counted_for_every_matrix_of_a_batch():
    assert macs(torch.linalg.inv, positive_definite(3, 2, N, N)) == 6 * N**3


def test_formulas_agree_with_torch_where_it_counts_too():
    query = torch.randn(1, 2, 5, 8)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        by_products = macs(F.scaled_dot_product_attention, query, query, query)
    assert macs(F.scaled_dot_product_attention, query, query, query) == by_products == 2 * prod((2, 5, 5, 8))


def every_operator():
    for qualified in torch._C._dispatch_get_all_op_names():
        namespace, _, rest = qualified.partition("::")
        name, _, overload = rest.partition(".")
        packet = getattr(torch.ops.aten, name, None) if namespace == "aten" else None
        if packet is not None and (overload or "default") in packet.overloads():
            yield getattr(packet, overload or "default")


def test_no_operator_is_both_counted_and_free():
    counted = flop_registry.keys() | mac_formulas().keys()
    operators = list(every_operator())
    assert len(operators) > 2000
    assert [str(operator) for operator in operators if operator._overloadpacket in counted and is_free(operator)] == []


@pytest.mark.parametrize("name", ["_native_multi_head_attention", "quantized_lstm", "hspmm"])
def test_operators_that_compute_without_a_formula_are_not_free(name):
    packet = getattr(torch.ops.aten, name)
    assert not any(is_free(getattr(packet, overload)) for overload in packet.overloads())


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.ConvTranspose1d])
def test_gradients_of_a_convolution_cost_as_much_as_the_convolution_each(kind, groups):
    x, layer = torch.randn(2, 8, 30, requires_grad=True), kind(8, 12, 5, groups=groups)
    once = macs(layer, x.detach())
    with FlopCounterMode(display=False, custom_mapping=mac_formulas()) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() // 2 == 3 * once
