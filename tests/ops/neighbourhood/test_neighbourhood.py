"""The two products of neighbourhood attention: their definition with unfold, borders, gradients, errors."""

import pytest
import torch
import torch.nn.functional as F

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


def test_a_cpu_takes_the_reference_and_large_heads_do_everywhere():
    q = draw(1, 1, 4, 3, 3)
    assert not cuda.takes(q, q, dim=4, window=3)


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
