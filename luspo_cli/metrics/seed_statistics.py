"""What a few seeds can show: resampling, sign flips and power for differences between paired runs.

The unit is the seed: runs of equal seed share their problems and first weights, so resampling takes them together. Interquartile
mean and probability of improvement are those of rliable (Agarwal et al., arXiv 2108.13264), whose tasks are here the one task at
hand. A bootstrap of fewer than some eight seeds is too narrow (it never sees a value beyond the ones it has): it stands beside
Student's interval and never in its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from luspo_cli.metrics.intervals import SEED, student_quantile

RESAMPLES = 10_000
POWER = 0.8
"""The usual one: four times in five a difference of this size is shown."""
MOST_EXACT = 16
"""Pairs up to which every pattern of signs is looked at."""
MOST_SEEDS = 1_000
"""Beyond this many seeds a difference counts as out of reach."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Resampled:
    """A statistic with its 95 % percentile interval over resampled seeds; `low` and `high` are None for one seed."""

    value: float
    low: float | None
    high: float | None


def interquartile_mean(values: Sequence[float]) -> Resampled | None:
    """Mean of the middle half: a quarter of the values, rounded down, is left out at each end; None for no values.

    With fewer than four values nothing is left out, and it is the mean.
    """
    if not values:
        return None
    found = np.asarray(values, dtype=np.float64)
    drawn = np.sort(found[_draws(len(found))], axis=1)
    return _resampled(_middle_mean(np.sort(found)[None])[0], _middle_mean(drawn), len(found))


def paired_mean(differences: Sequence[float]) -> Resampled:
    """Mean of the differences, with the interval over resampled pairs."""
    found = np.asarray(differences, dtype=np.float64)
    return _resampled(found.mean(), found[_draws(len(found))].mean(axis=1), len(found))


def probability_of_improvement(first: Sequence[float], second: Sequence[float]) -> Resampled:
    """Chance that a run of `first` is above a run of `second`, over all pairs of runs; equal ones count half.

    `first[i]` and `second[i]` are of one seed, and are resampled together.
    """
    one, other = np.asarray(first, dtype=np.float64)[:, None], np.asarray(second, dtype=np.float64)[None]
    above = (one > other) + 0.5 * (one == other)  # [n, n]
    draws = _draws(len(above))
    counts = np.stack([(draws == seed).sum(axis=1) for seed in range(len(above))], axis=1)  # [RESAMPLES, n]
    drawn = ((counts @ above) * counts).sum(axis=1) / len(above) ** 2
    return _resampled(above.mean(), drawn, len(above))


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of the mean under random signs: if neither is better, each difference could as well have the other sign.

    Exact up to `MOST_EXACT` pairs; beyond that over `RESAMPLES` patterns, the one that was seen included.
    """
    found = np.asarray(differences, dtype=np.float64)
    n = len(found)
    if n <= MOST_EXACT:
        signs = np.array(list(product((1.0, -1.0), repeat=n)))
    else:
        random = np.random.Generator(np.random.PCG64(SEED))
        signs = np.concatenate([np.ones((1, n)), random.choice((1.0, -1.0), size=(RESAMPLES - 1, n))])
    sums = np.abs(signs @ found)
    return float((sums >= sums[0] * (1 - 1e-12)).mean())


def smallest_p(pairs: int) -> float:
    """The smallest two-sided p that a sign-flip test of so many pairs can reach, 2 / 2^n: 0.25 for three."""
    return 2.0 ** (1 - pairs)


def detectable_difference(deviation: float, pairs: int) -> float | None:
    """The smallest true difference that a paired t test of so many pairs shows with a chance of `POWER`; None for one pair.

    `deviation`: of the differences between seeds.
    """
    return None if pairs < 2 else _detectable_shift(pairs) * deviation / math.sqrt(pairs)


def seeds_needed(difference: float, deviation: float) -> int | None:
    """The fewest pairs that show a true difference of this size with a chance of `POWER`; None beyond `MOST_SEEDS`."""
    if deviation == 0:
        return 2 if difference else None
    low, high = 1, MOST_SEEDS
    effect = abs(difference) / deviation
    if paired_power(effect * math.sqrt(high), high) < POWER:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if paired_power(effect * math.sqrt(middle), middle) < POWER else (low, middle)
    return high


def paired_power(shift: float, pairs: int) -> float:
    """Chance that a two-sided paired t test at 5 % rejects; `shift`: true difference over its standard error.

    The noncentral t distribution as the mean of normal ones over the scale of the estimated deviation, its square chi-squared
    over its degrees of freedom.
    """
    degrees = pairs - 1
    # The estimated deviation over the true one lies within 11 of its own deviations of 1.
    low, high = max(0.0, 1 - 8 / math.sqrt(degrees)), 1 + 8 / math.sqrt(degrees)
    nodes, weights = _gauss_legendre()
    scale = low + (high - low) * (nodes + 1) / 2
    half = degrees / 2
    log_density = math.log(2) + half * math.log(half) - math.lgamma(half) + (degrees - 1) * np.log(scale)
    density = weights * np.exp(log_density - half * scale**2)
    limit = student_quantile(degrees) * scale
    rejected = _normal_below(shift - limit) + _normal_below(-shift - limit)
    return float((density * rejected).sum() / density.sum())


@cache
def _gauss_legendre() -> tuple[Array, Array]:
    """Points from -1 to 1 and their weights; as many as take a smooth integrand to twelve digits."""
    nodes, weights = np.polynomial.legendre.leggauss(128)
    return nodes, weights


@cache
def _detectable_shift(pairs: int) -> float:
    low, high = 0.0, 3 * student_quantile(pairs - 1) + 10
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if paired_power(middle, pairs) < POWER else (low, middle)
    return high


def _normal_below(values: Array) -> Array:
    return np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in values])


def _draws(n: int) -> NDArray[np.int64]:
    """Which seeds each resampling takes, [RESAMPLES, n]: always the same ones, so equal values have equal intervals."""
    return np.random.Generator(np.random.PCG64(SEED)).integers(0, n, size=(RESAMPLES, n))


def _middle_mean(in_order: Array) -> Array:
    """Mean of the middle half of each row, whose values increase."""
    n = in_order.shape[1]
    cut = n // 4
    return np.asarray(in_order[:, cut : n - cut].mean(axis=1))


def _resampled(value: float, drawn: Array, n: int) -> Resampled:
    if n < 2:
        return Resampled(float(value), None, None)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Resampled(float(value), float(low), float(high))
