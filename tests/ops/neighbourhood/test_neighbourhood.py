"""The two products of neighbourhood attention: their definition with unfold, borders, gradients, errors."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from torchstone.errors import CallError, ShapeError
from torchstone.ops import neighbour_scores, neighbour_sum
from torchstone.ops.neighbourhood import cuda, reference


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def unfolded(x, window):
    """Copies of the map at every offset, (B, h, d, w * w, H, W)."""
    copies = F.unfold(x.flatten(1, 2), window, padding=window // 2)
    return copies.view(*x.shape[:3], window**2, *x.shape[3:])


@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("size", [(1, 1), (2, 6), (7, 5)])
def test_products_are_those_of_unfolded_maps(window, size):
    q, k, v = (draw(2, 3, 4, *size, seed=seed) for seed in range(3))
    weights = draw(2, 3, window**2, *size, seed=3)
    expected = torch.einsum("bhdyx,bhdjyx->bhjyx", q, unfolded(k, window))
    torch.testing.assert_close(neighbour_scores(q, k, window), expected)
    expected = torch.einsum("bhjyx,bhdjyx->bhdyx", weights, unfolded(v, window))
    torch.testing.assert_close(neighbour_sum(weights, v, window), expected)


def test_a_neighbour_outside_the_map_counts_nothing():
    ones = torch.ones(1, 1, 1, 3, 4)
    assert neighbour_scores(ones, ones, 3).sum(2)[0, 0].tolist() == [[4, 6, 6, 4], [6, 9, 9, 6], [4, 6, 6, 4]]


def test_offsets_run_row_by_row():
    places = torch.arange(20.0).view(1, 1, 1, 4, 5)
    found = neighbour_scores(torch.ones_like(places), places, 3)[0, 0, :, 1, 2]
    assert found.tolist() == [1, 2, 3, 6, 7, 8, 11, 12, 13]


def test_what_pixels_give_is_the_transpose_of_what_they_get():
    weights, v, u = draw(2, 2, 9, 4, 5), draw(2, 2, 3, 4, 5, seed=1), draw(2, 2, 3, 4, 5, seed=2)
    there, back = reference.total(weights, v, 3, False), reference.total(weights, u, 3, True)
    torch.testing.assert_close((there * u).sum(), (v * back).sum())


@pytest.fixture
def operators(monkeypatch):
    """The operators' own gradients, with the reference in the kernels' place."""
    for name in ("scores", "total"):
        monkeypatch.setattr(cuda, name, getattr(reference, name))
    return cuda


class Context:
    def __init__(self, saved, back=False):
        self.saved_tensors, self.window, self.back, self.needs_input_grad = saved, 3, back, (True, True, False)


@pytest.mark.parametrize("back", [False, True])
def test_gradients_of_the_operators_are_the_references(operators, back):
    weights, values = (x.requires_grad_() for x in (draw(2, 2, 9, 3, 4), draw(2, 2, 5, 3, 4, seed=1)))
    gradient = draw(2, 2, 5, 3, 4, seed=2)
    expected = torch.autograd.grad(reference.total(weights, values, 3, back), (weights, values), gradient)
    found = operators._differentiate_total(Context((weights.detach(), values.detach()), back), gradient)
    torch.testing.assert_close(found[:2], expected)
    q, k = (x.requires_grad_() for x in (draw(2, 2, 5, 3, 4), draw(2, 2, 5, 3, 4, seed=1)))
    gradient = draw(2, 2, 9, 3, 4, seed=2)
    expected = torch.autograd.grad(reference.scores(q, k, 3), (q, k), gradient)
    found = operators._differentiate_scores(Context((q.detach(), k.detach())), gradient)
    torch.testing.assert_close(found[:2], expected)


def test_arithmetic_of_the_operators_is_counted():
    assert cuda._scores_flops((2, 3, 8, 5, 7), (2, 3, 8, 5, 7), 3) == 2 * 2 * 3 * 8 * 35 * 9
    assert cuda._total_flops((2, 3, 25, 5, 7), (2, 3, 8, 5, 7), 5, False) == 2 * 2 * 3 * 8 * 35 * 25


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_is_summed_in_full(dtype):
    """Results are the rounded sums of products, no less exact; the kernels' bfloat16 runs on a GPU only."""
    q, k = draw(1, 2, 24, 5, 6).to(dtype), draw(1, 2, 24, 5, 6, seed=1).to(dtype)
    weights = draw(1, 2, 9, 5, 6, seed=2).to(dtype)
    exact = [x.double() for x in (q, k, weights)]
    half = torch.finfo(dtype).eps / 2
    for found, expected in (
        (neighbour_scores(q, k, 3), neighbour_scores(*exact[:2], 3)),
        (neighbour_sum(weights, k, 3), neighbour_sum(exact[2], exact[1], 3)),
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=half * 1.1, atol=1e-5 * expected.abs().max().item())


def test_autocast_mixes_types_without_loss():
    q, k = draw(1, 2, 8, 4, 5), draw(1, 2, 8, 4, 5, seed=1)
    expected = neighbour_scores(q.bfloat16().float(), k, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(neighbour_scores(q.bfloat16(), k, 3), expected)


def test_kernels_are_for_cuda_of_fitting_types_and_sizes():
    """A CPU takes the reference; on a GPU large heads, large windows and float64 do. It can be asked without one."""
    q = draw(1, 1, 4, 3, 3)
    assert not cuda.takes(q, q, dim=4, window=3)
    with FakeTensorMode():
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            q = torch.empty(1, 1, 4, 3, 3, device="cuda", dtype=dtype)
            assert cuda.takes(q, q, dim=128, window=7)
            assert not cuda.takes(q, q, dim=129, window=7)
            assert not cuda.takes(q, q, dim=128, window=9)
        q = torch.empty(1, 1, 4, 3, 3, device="cuda", dtype=torch.float64)
        assert not cuda.takes(q, q, dim=4, window=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [24, 129])
def test_calls_on_cuda_go_to_the_kernels_where_they_fit(dtype, dim, monkeypatch):
    taken = []
    for name in ("scores", "total"):
        operator = getattr(cuda, name)
        monkeypatch.setattr(cuda, name, lambda *x, operator=operator: (taken.append(operator), operator(*x))[1])
    with FakeTensorMode():
        q = torch.empty(1, 2, dim, 4, 5, device="cuda", dtype=dtype)
        s = neighbour_scores(q, q, 3)
        y = neighbour_sum(s, q, 3)
    assert (s.shape, s.dtype, s.device.type) == ((1, 2, 9, 4, 5), dtype, "cuda")
    assert (y.shape, y.dtype, y.device.type) == ((1, 2, dim, 4, 5), dtype, "cuda")
    assert len(taken) == (2 if dim <= cuda.LARGEST_DIM else 0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: neighbour_scores(draw(2, 3, 4, 5), draw(2, 3, 4, 5), 3), ShapeError, r"queries must be \(B, heads"),
        (lambda: neighbour_scores(draw(2, 3, 4, 5, 5), draw(2, 3, 4, 5, 6), 3), ShapeError, "keys must be as the"),
        (lambda: neighbour_scores(draw(2, 3, 4, 5, 5), draw(2, 3, 4, 5, 5), 2), CallError, "odd number of pixels"),
        (lambda: neighbour_sum(draw(2, 3, 9, 5, 5), draw(2, 3, 4, 5, 5), 5), ShapeError, "5x5 neighbours must be"),
        (lambda: neighbour_sum(draw(2, 3, 9, 5, 6), draw(2, 3, 4, 5, 5), 3), ShapeError, r"\(2, 3, 9, 5, 5\)"),
        (lambda: neighbour_sum(draw(9), draw(2, 3, 4, 5, 5), 0), CallError, "odd number of pixels, got 0"),
        (lambda: neighbour_scores(*(torch.ones(1, 1, 1, 2, 2).long(),) * 2, 3), CallError, "floating-point"),
    ],
)
def test_operands_that_do_not_fit_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
