"""Intervals of means, without numpy until values are resampled: seeds by Student, shares by Wilson, problems by bootstrap.

Three seeds are common here, so the normal quantile would be far too narrow for them (1.96 against 4.30). One seed has no interval
at all, and none is invented for it. Where all problems scored alike neither resampling nor a deviation shows any spread, which is
not certainty: then the interval is Wilson's.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95
Z_95 = 1.959964
"""Of the normal distribution: 95 % lie within."""
RESAMPLES = 2_000
SEED = 0
_STUDENT_95 = (
    12.706204736,
    4.302652730,
    3.182446305,
    2.776445105,
    2.570581836,
    2.446911851,
    2.364624252,
    2.306004135,
    2.262157163,
    2.228138852,
    2.200985160,
    2.178812830,
    2.160368656,
    2.144786688,
    2.131449546,
    2.119905299,
    2.109815578,
    2.100922040,
    2.093024054,
    2.085963447,
    2.079613845,
    2.073873068,
    2.068657610,
    2.063898562,
    2.059538553,
    2.055529439,
    2.051830516,
    2.048407142,
    2.045229642,
    2.042272456,
)
"""t such that 95 % of Student's distribution lie within [-t, t], for 1, 2, ... 30 degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `n` seeds with its 95 % interval; `low` and `high` are None where n is 1."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def half_width(self) -> float | None:
        """Half of the interval's length; None where there is no interval."""
        return None if self.high is None else self.high - self.mean


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return mean and interval, mean ± t * s / sqrt(n) with s the Bessel-corrected deviation; None for no values."""
    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Estimate(mean, None, None, 1)
    half = student_quantile(n - 1) * statistics.stdev(values) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def student_quantile(degrees: int) -> float:
    """Return t such that a Student variable of `degrees` degrees of freedom lies in [-t, t] with a chance of 95 %."""
    if degrees < 1:
        raise ValueError(f"degrees of freedom must be at least 1, got {degrees}")
    if degrees <= len(_STUDENT_95):
        return _STUDENT_95[degrees - 1]
    # Expansion around the normal quantile (Abramowitz and Stegun 26.7.5); from 31 degrees on it is right to 2e-6.
    z = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def wilson_interval(mean: float, n: int) -> tuple[float, float]:
    """Wilson's interval of a share `mean` that was seen in `n` independent problems (JASA 22, 1927); within [0, 1].

    Unlike a bootstrap or a normal interval it does not shrink to a point where all n were alike: 0 of 30 is 0 to 11.4 %.
    """
    z = Z_95
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy_interval(per_problem: Sequence[float], samples: int) -> tuple[float, float]:
    """95 % interval of the mean over problems: normal over their means; Wilson's with one sample each or equal means."""
    n, mean = len(per_problem), statistics.fmean(per_problem)
    if samples == 1 or n == 1 or len(set(per_problem)) == 1:
        return wilson_interval(mean, n)
    half = Z_95 * statistics.stdev(per_problem) / math.sqrt(n)
    return max(0.0, mean - half), min(1.0, mean + half)


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Percentile interval (95 %) of the mean of `values` over `RESAMPLES` resamplings; None for fewer than two values.

    The resamplings are always the same ones, so equal values have an equal interval. Where all are equal it is Wilson's.
    """
    if len(values) < 2:
        return None
    if len(set(values)) == 1:
        return wilson_interval(values[0], len(values))
    import numpy

    generator = numpy.random.Generator(numpy.random.PCG64(SEED))
    array = numpy.asarray(values, dtype=numpy.float64)
    means = numpy.array([array[generator.integers(0, len(array), len(array))].mean() for _ in range(RESAMPLES)])
    low, high = numpy.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def paired_interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean of differences between two shares of each problem, within [-1, 1]; None for fewer than two.

    `bootstrap_interval`; where all are equal, as far to both sides as Wilson's interval of 0 of n reaches.
    """
    if len(differences) < 2 or len(set(differences)) > 1:
        return bootstrap_interval(differences)
    reach = wilson_interval(0.0, len(differences))[1]
    return max(-1.0, differences[0] - reach), min(1.0, differences[0] + reach)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's correlation of paired values; None for fewer than two pairs, or where all of one side are equal."""
    if len(first) < 2 or any(len(set(side)) == 1 for side in (first, second)):
        return None
    return statistics.correlation(_ranks(first), _ranks(second))


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1, equal values sharing their mean rank."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) + 1) / 2 for value in values]
