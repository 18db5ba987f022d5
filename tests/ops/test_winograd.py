"""Winograd's correlation: the direct sums, whatever points and wherever the fractions are."""

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

from torchstone.errors import CallError, ShapeError, UnknownName
from torchstone.ops.winograd import FRACTIONS, cook_toom, default_points

pytestmark = pytest.mark.system("conv_efficiency")


@pytest.mark.parametrize("fractions", FRACTIONS)
@pytest.mark.parametrize(("outputs", "taps"), [(2, 3), (4, 3), (6, 3), (2, 5), (3, 2), (1, 2), (2, 1)])
def test_outputs_are_the_direct_sums(outputs, taps, fractions):
    torch.manual_seed(0)
    d, g = torch.randn(5, outputs + taps - 1).double(), torch.randn(5, taps).double()
    expected = torch.stack([(d[:, k : k + taps] * g).sum(1) for k in range(outputs)], 1)
    torch.testing.assert_close(cook_toom(outputs, taps, fractions=fractions).correlate(d, g), expected)


def test_two_dimensions_are_a_convolution():
    torch.manual_seed(0)
    d, g = torch.randn(3, 6, 6).double(), torch.randn(3, 3, 3).double()
    expected = F.conv2d(d[None], g[:, None], groups=3)[0]
    torch.testing.assert_close(cook_toom(4, 3).correlate2d(d, g), expected)


def test_any_different_points_will_do():
    d, g = torch.arange(4.0).double(), torch.tensor([1.0, -2.0, 3.0]).double()
    given = cook_toom(2, 3, [Fraction(3), Fraction(-1, 3), Fraction(7)])
    torch.testing.assert_close(given.correlate(d, g), cook_toom(2, 3).correlate(d, g))


def test_multiplications_are_saved():
    assert cook_toom(2, 3).saving == 1.5
    assert cook_toom(4, 3).saving == 2


def test_default_points_are_different():
    points = default_points(16)
    assert len(set(points)) == 16
    assert points[:7] == [0, 1, -1, 2, -2, Fraction(1, 2), Fraction(-1, 2)]


def test_wrong_calls_are_refused():
    with pytest.raises(CallError, match=r"needs 3 different points"):
        cook_toom(2, 3, [0, 1, 1])
    with pytest.raises(CallError, match=r"got F\(0, 3\)"):
        cook_toom(0, 3)
    with pytest.raises(UnknownName, match="'filter'"):
        cook_toom(2, 3, fractions="filters")
    with pytest.raises(ShapeError, match=r"d must end in \(4,\)"):
        cook_toom(2, 3).correlate(torch.zeros(5), torch.zeros(3))
