"""Explicit Runge-Kutta integration of dx/dt = f(x), through which gradients flow, for the continuous networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchstone.errors import CallError, WorkError


class StepsExceeded(WorkError):
    """An integration that would need more steps than it may take."""


@dataclass(frozen=True)
class Tableau:
    """Coefficients of a method: k_s = f(x + h sum_r a_sr k_r), x(t + h) = x + h sum_s b_s k_s.

    ``error`` are the coefficients of the difference to an embedded method of lower order, for methods that choose h.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    error: tuple[float, ...] = ()


METHODS = {
    "euler": Tableau(((),), (1.0,)),
    "midpoint": Tableau(((), (1 / 2,)), (0.0, 1.0)),
    "rk4": Tableau(((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)),  # the 3/8 rule
    "dopri5": Tableau(
        (
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
        (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    ),
}
"""``dopri5`` (Dormand and Prince 1980, order 5) chooses its steps; the others take steps of a given size."""

SAFETY, SHRINK, GROW = 0.9, 0.2, 10.0


@dataclass(frozen=True)
class Integration:
    """x(time) for dx/dt = f(x), x(0) = x.

    Attributes:
        method: one of :data:`METHODS`.
        step_size: of the methods with steps of one size; the last step is cut to end at the time.
        atol: ``dopri5`` keeps the root mean square of error / (atol + rtol |x|) of a step at 1 or below.
        rtol: see ``atol``.
        max_steps: steps, rejected ones included, after which it gives up.
    """

    method: str = "dopri5"
    step_size: float = 1.0
    atol: float = 1e-7
    rtol: float = 1e-9
    max_steps: int = 1000

    def __call__(self, derivative: Callable[[Tensor], Tensor], x: Tensor, time: float) -> Tensor:
        """Integrate.

        Args:
            derivative: f, of and to the shape of x.
            x: the start.
            time: how far.

        Raises:
            StepsExceeded: more than ``max_steps``: a stiff equation, or a tolerance that the precision of the numbers
                cannot meet.
            CallError: ``dopri5`` while a network is exported, which must not depend on the numbers in its inputs.
        """
        return self._adaptive(derivative, x, time) if METHODS[self.method].error else self._even(derivative, x, time)

    def _even(self, derivative: Callable[[Tensor], Tensor], x: Tensor, time: float) -> Tensor:
        steps = max(1, math.ceil(time / self.step_size - 1e-9))
        if steps > self.max_steps:
            raise StepsExceeded(f"{steps} steps of {self.step_size:g} to reach {time:g}, max_steps is {self.max_steps}")
        for k in range(steps):
            h = min(self.step_size, time - k * self.step_size)
            x, _ = _step(derivative, x, derivative(x), h, METHODS[self.method])
        return x

    def _adaptive(self, derivative: Callable[[Tensor], Tensor], x: Tensor, time: float) -> Tensor:
        if torch.compiler.is_exporting():
            even = ", ".join(name for name, tableau in METHODS.items() if not tableau.error)
            raise CallError(f"{self.method} chooses its steps by the numbers it meets: export with one of {even}")
        tableau = METHODS[self.method]
        slope = derivative(x)
        if not slope.isfinite().all():
            return x + time * slope  # not finite either, which shows where losses are checked
        now, h = 0.0, self._first_step(derivative, x, slope, time)
        for _ in range(self.max_steps):
            last = h >= time - now
            h = min(h, time - now)
            following, slopes = _step(derivative, x, slope, h, tableau)
            error = _moved(torch.zeros_like(x), h, tableau.error, [slope.detach() for slope in slopes])
            ratio = self._norm(error, x, following)
            if math.isnan(ratio):
                ratio = math.inf  # a step that went too far is tried again, shorter
            if ratio <= 1:
                if last:
                    return following
                x, now, slope = following, now + h, slopes[-1]  # the last slope of a step is the first of the next
            h *= min(GROW, max(SHRINK, SAFETY * max(ratio, 1e-10) ** -0.2))
        raise StepsExceeded(
            f"after {self.max_steps} steps the integration to {time:g} was at {now:g}: raise max_steps, or the "
            "tolerances atol and rtol"
        )

    def _norm(self, error: Tensor, x: Tensor, other: Tensor) -> float:
        allowed = self.atol + self.rtol * torch.maximum(x.detach().abs(), other.detach().abs())
        return float((error / allowed).square().mean().sqrt())

    @torch.no_grad()
    def _first_step(self, derivative: Callable[[Tensor], Tensor], x: Tensor, slope: Tensor, time: float) -> float:
        """A first step that a method of order 5 is likely to accept (Hairer, Norsett and Wanner, section II.4)."""
        size, speed = self._norm(x, x, x), self._norm(slope, x, x)
        guess = 1e-6 if min(size, speed) < 1e-5 else 0.01 * size / speed
        bend = self._norm(derivative(x + guess * slope) - slope, x, x) / guess
        fastest = max(speed, bend)
        second = (0.01 / fastest) ** 0.2 if fastest > 1e-15 else max(1e-6, 1e-3 * guess)
        return min(100 * guess, second, time)


def _step(
    derivative: Callable[[Tensor], Tensor], x: Tensor, slope: Tensor, h: float, tableau: Tableau
) -> tuple[Tensor, list[Tensor]]:
    """One step of size h from x, where the slope is known, and the slopes that it took."""
    slopes = [slope]
    for row in tableau.a[1:]:
        slopes.append(derivative(_moved(x, h, row, slopes)))
    return _moved(x, h, tableau.b, slopes), slopes


def _moved(x: Tensor, h: float, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    """x + h sum_s weights_s slopes_s."""
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            x = x + h * weight * slope
    return x
