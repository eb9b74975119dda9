"""Intervals for a mean of shares, without numpy: what training and evaluation say about the same kind of number."""

from __future__ import annotations

import math

Z_95 = 1.959964
"""Of the normal distribution: 95 % lie within."""


def wilson_interval(mean: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's interval of a share `mean` that was seen in `n` independent problems (JASA 22, 1927); within [0, 1].

    Unlike a bootstrap or a normal interval it does not shrink to a point where all n were alike: 0 of 30 is 0 to 11.4 %.
    """
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)
