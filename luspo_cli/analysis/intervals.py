"""A mean over seeds and how far it can be trusted: Student's t with n - 1 degrees of freedom.

Three seeds are common here, so the normal quantile would be far too narrow (1.96 against 4.30). One seed has no
interval at all, and none is invented for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `n` seeds with its 95 % interval; `low` and `high` are None where n is 1."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half_width(self) -> float | None:
        return None if self.high is None else self.high - self.mean


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return mean and interval, mean ± t * s / sqrt(n) with s the Bessel-corrected deviation; None for no values."""
    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = student_quantile(n - 1) * deviation / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def student_quantile(degrees: int, level: float = LEVEL) -> float:
    """Return t such that a Student variable of `degrees` degrees of freedom lies in [-t, t] with chance `level`."""
    if degrees < 1:
        raise ValueError(f"degrees of freedom must be at least 1, got {degrees}")
    low, high = 0.0, 1.0
    while central_probability(high, degrees) < level:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        if central_probability(middle, degrees) < level:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def central_probability(t: float, degrees: int) -> float:
    """Return P(|T| <= t), the finite trigonometric sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine = math.cos(angle)
    odd = degrees % 2 == 1
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    if odd:
        return 2 / math.pi * (angle + (math.sin(angle) * total if degrees > 1 else 0.0))
    return math.sin(angle) * total
