"""Fast correlation of short signals after Winograd, with matrices by the Cook-Toom method (Lavin and Gray, CVPR 2016).

F(n, r) computes n outputs of a correlation with r taps, ``y_k = sum_t d_{k+t} g_t``, by n + r - 1 multiplications
instead of n r: both operands become values of polynomials at n + r - 2 points and at infinity::

    y = AT [(G g) * (BT d)]                       one dimension
    Y = AT [(G g G^T) * (BT d BT^T)] AT^T         two

The convolutions of a network reach a computational efficiency above 1 this way, measured against the operations of the
direct sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from torchstone.errors import CallError, ShapeError, unknown_name

FRACTIONS = ("filter", "output", "data", "apart")


@dataclass(frozen=True)
class CookToom:
    """The matrices of F(n, r), with a = n + r - 1 products.

    Attributes:
        output: AT, (n, a).
        filter: G, (a, r).
        data: BT, (a, a).
        scale: the denominators f, (a,); where they are neither in AT nor G nor BT, products are divided by them.
        fractions: which matrix holds them.
    """

    output: Tensor
    filter: Tensor
    data: Tensor
    scale: Tensor
    fractions: str

    def correlate(self, d: Float[Tensor, "*batch a"], g: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch n"]:
        """n outputs of the correlation of ``d`` (..., a) with ``g`` (..., r).

        Raises:
            ShapeError: other lengths than these matrices are made for.
        """
        self._check(d, g, 1)
        output, filter_, data = (matrix.to(d.dtype) for matrix in (self._output(), self.filter, self.data))
        return ((g @ filter_.T) * (d @ data.T)) @ output.T

    def correlate2d(
        self, d: Float[Tensor, "*batch a a"], g: Float[Tensor, "*batch r r"]
    ) -> Float[Tensor, "*batch n n"]:
        """n x n outputs of the correlation of ``d`` (..., a, a) with ``g`` (..., r, r).

        Raises:
            ShapeError: other sides than these matrices are made for.
        """
        self._check(d, g, 2)
        output, filter_, data = (matrix.to(d.dtype) for matrix in (self._output(), self.filter, self.data))
        return output @ ((filter_ @ g @ filter_.T) * (data @ d @ data.T)) @ output.T

    @property
    def saving(self) -> float:
        """Multiplications of the direct sum over those of F(n, r), in one dimension."""
        outputs, products = self.output.shape
        return outputs * self.filter.shape[1] / products

    def _output(self) -> Tensor:
        return self.output / self.scale if self.fractions == "apart" else self.output

    def _check(self, d: Tensor, g: Tensor, dimensions: int) -> None:
        products, taps = self.filter.shape
        for name, given, side in (("d", d, products), ("g", g, taps)):
            if tuple(given.shape[-dimensions:]) != (side,) * dimensions:
                raise ShapeError(
                    f"{name} must end in {(side,) * dimensions}, got a tensor of shape {tuple(given.shape)}"
                )


def cook_toom(
    outputs: int, taps: int, points: Sequence[Fraction | int | float] | None = None, *, fractions: str = "filter"
) -> CookToom:
    """The matrices of F(outputs, taps), exact before they become float64.

    Args:
        outputs: n.
        taps: r.
        points: n + r - 2 different points; by default 0, 1, -1, 2, -2, 1/2, -1/2, 4, -4, ...
        fractions: what holds the denominators: the ``filter``'s matrix G, the ``output``'s AT, the ``data``'s BT, or
            none of them (``apart``).

    Raises:
        CallError: fewer than one output or tap, fewer than two products, or points that are equal or of another number.
        UnknownName: no such place for the denominators.

    Source:
        Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016; andravin/wincnn.

    Example:
        >>> f23 = cook_toom(2, 3)
        >>> f23.correlate(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 1.0, 1.0])).tolist()
        [6.0, 9.0]
    """
    if min(outputs, taps) < 1 or outputs + taps < 3:
        raise CallError(f"F(n, r) needs positive n and r with n + r > 2, got F({outputs}, {taps})")
    if fractions not in FRACTIONS:
        raise unknown_name("place for the fractions", fractions, FRACTIONS)
    products = outputs + taps - 1
    finite = products - 1
    a = [Fraction(point) for point in (points if points is not None else default_points(finite))]
    if len(a) != finite or len(set(a)) != finite:
        raise CallError(f"F({outputs}, {taps}) needs {finite} different points, got {[str(point) for point in a]}")

    denominators = [prod((a[i] - a[k] for k in range(finite) if k != i), start=Fraction(1)) for i in range(finite)]
    scale = [*denominators, Fraction(1)]
    if scale[0] < 0:
        scale[0] = -scale[0]
    lagrange = [_lagrange(a, i, denominators[i]) for i in range(finite)]  # row i: coefficients of x^0, x^1, ...
    zero = Fraction(0)
    remainder = [-sum((lagrange[i][j] * a[i] ** finite for i in range(finite)), zero) for j in range(finite)]
    data = [[*row, zero] for row in lagrange] + [[*remainder, Fraction(1)]]
    output = [list(column) for column in zip(*_powers(a, outputs), strict=True)]
    filter_ = _powers(a, taps)
    if fractions != "data":
        data = [[scale[i] * value for value in row] for i, row in enumerate(data)]
    if fractions == "filter":
        filter_ = [[value / scale[i] for value in row] for i, row in enumerate(filter_)]
    if fractions == "output":
        output = [[value / scale[i] for i, value in enumerate(row)] for row in output]
    return CookToom(_tensor(output), _tensor(filter_), _tensor(data), _tensor([scale])[0], fractions)


def default_points(count: int) -> list[Fraction]:
    """0, 1, -1, 2, -2, 1/2, -1/2, 4, -4, 1/4, ...: small powers of two, which cost no multiplication."""
    points, power = [Fraction(0), Fraction(1), Fraction(-1)], Fraction(2)
    while len(points) < count:
        points += [power, -power, 1 / power, -1 / power]
        power *= 2
    return points[:count]


def _powers(points: Sequence[Fraction], columns: int) -> list[list[Fraction]]:
    """A polynomial's values from its coefficients: at the points, and at infinity."""
    return [[a**j for j in range(columns)] for a in points] + [[Fraction(j == columns - 1) for j in range(columns)]]


def _lagrange(points: Sequence[Fraction], i: int, denominator: Fraction) -> list[Fraction]:
    """Coefficients, constant first, of the polynomial that is 1 at point i and 0 at the others."""
    coefficients = [1 / denominator]
    for k, a in enumerate(points):
        if k != i:  # times (x - a)
            coefficients = [
                lower - a * same
                for lower, same in zip([Fraction(0), *coefficients], [*coefficients, Fraction(0)], strict=True)
            ]
    return coefficients


def _tensor(rows: Sequence[Sequence[Fraction]]) -> Tensor:
    return torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)
