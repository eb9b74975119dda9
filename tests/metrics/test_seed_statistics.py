"""Statistics of few seeds against published power, sums by hand, brute force and simulated coverage."""

from __future__ import annotations

import math
import random
import statistics
from itertools import product

import pytest

from luspo_cli.metrics.intervals import estimate, student_quantile
from luspo_cli.metrics.seed_statistics import (
    Resampled,
    detectable_difference,
    interquartile_mean,
    paired_mean,
    paired_power,
    probability_of_improvement,
    seeds_needed,
    sign_flip_p,
    smallest_p,
)


def test_power_is_the_published_one() -> None:
    """G*Power 3.1, t tests, matched pairs, two-sided 5 %: dz = 0.5 with 34 pairs has noncentrality 2.9155 and power 0.8078."""
    assert paired_power(0.5 * math.sqrt(34), 34) == pytest.approx(0.8077775, abs=2e-6)


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_seeds_needed_are_the_published_ones(effect: float, pairs: int) -> None:
    """Cohen's small, medium and large effect for a paired t test at 80 % power (Cohen 1988; G*Power gives the same)."""
    assert seeds_needed(effect, 1.0) == pairs
    assert seeds_needed(-3 * effect, 3.0) == pairs


@pytest.mark.parametrize("pairs", [2, 3, 5, 20, 60])
def test_power_without_a_difference_is_the_level(pairs: int) -> None:
    assert paired_power(0.0, pairs) == pytest.approx(0.05, abs=5e-8)


def test_power_of_two_pairs_by_integration_over_the_angle() -> None:
    """With one degree of freedom |T| > t means that (Z + shift, Y) lies within an angle of the axis: integrated over Z alone."""
    shift, limit, width = 10.0, student_quantile(1), 1e-3
    places = [-8 + width * place for place in range(int(16 / width))]
    by_hand = sum(
        width * math.exp(-z * z / 2) / math.sqrt(2 * math.pi) * math.erf(abs(z + shift) / limit / math.sqrt(2))
        for z in places
    )
    assert paired_power(shift, 2) == pytest.approx(by_hand, abs=1e-4)


def test_the_detectable_difference_has_the_power_it_claims() -> None:
    found = detectable_difference(2.0, 5)
    assert found is not None
    assert paired_power(found * math.sqrt(5) / 2.0, 5) == pytest.approx(0.8, abs=1e-6)
    assert detectable_difference(4.0, 5) == pytest.approx(2 * found)
    assert detectable_difference(2.0, 1) is None
    # In 4,000 experiments of five pairs with that true difference some 80 % of the intervals leave out 0.
    draw = random.Random(3)
    shown = 0
    for _ in range(4000):
        interval = estimate([draw.gauss(found, 2.0) for _ in range(5)])
        shown += interval is not None and interval.low is not None and interval.low > 0
    assert shown / 4000 == pytest.approx(0.8, abs=0.02)


def test_differences_out_of_reach_and_without_spread() -> None:
    assert seeds_needed(0.01, 1.0) is None
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1.0, 0.0) == 2
    assert seeds_needed(0.0, 0.0) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 2.0, 9.0], 4.0),  # nothing to leave out
        ([100.0, 1.0, 3.0, -50.0], 2.0),
        ([1.0, 2.0, 3.0, 4.0, 100.0], 3.0),  # one at each end
        ([float(n) for n in range(1, 9)], 4.5),
        ([0.0, 0.0, 1.0, 2.0, 4.0, 5.0, 90.0, 100.0, 100.0], 20.4),  # of nine, two at each end
    ],
)
def test_the_interquartile_mean_by_hand(values: list[float], expected: float) -> None:
    found = interquartile_mean(values)
    assert found is not None
    assert found.value == pytest.approx(expected)


def test_no_values_have_no_interquartile_mean() -> None:
    assert interquartile_mean([]) is None


def test_constant_values_have_intervals_of_width_zero() -> None:
    assert paired_mean([2.5] * 4) == Resampled(2.5, 2.5, 2.5)
    assert interquartile_mean([2.5] * 5) == Resampled(2.5, 2.5, 2.5)
    assert paired_mean([2.5]) == Resampled(2.5, None, None)


def test_the_bootstrap_of_two_pairs_is_their_range() -> None:
    """Its means are -1, 1 and 3 with a quarter, a half and a quarter: 2.5 % and 97.5 % lie in the outer ones."""
    assert paired_mean([-1.0, 3.0]) == Resampled(1.0, -1.0, 3.0)


def test_the_bootstrap_shifts_and_scales_with_its_values() -> None:
    values = [0.3, -1.2, 2.2, 0.9, 1.4]
    found, moved = paired_mean(values), paired_mean([10 * value + 3 for value in values])
    assert (moved.low, moved.high) == (pytest.approx(10 * found.low + 3), pytest.approx(10 * found.high + 3))


def test_the_bootstrap_covers_the_mean_of_many_seeds_and_too_rarely_that_of_few() -> None:
    draw = random.Random(11)

    def coverage(n: int) -> float:
        intervals = [paired_mean([draw.gauss(1.0, 2.0) for _ in range(n)]) for _ in range(600)]
        return sum(found.low < 1.0 < found.high for found in intervals) / 600

    assert coverage(30) == pytest.approx(0.94, abs=0.03)
    assert coverage(3) < 0.85  # why it never stands alone


def test_the_probability_of_improvement_counts_pairs_of_runs() -> None:
    """1, 2, 3 against 0, 2, 5: of nine pairs 1 > 0; 2 > 0, 2 = 2; 3 > 0, 3 > 2: four and a half."""
    assert probability_of_improvement([1.0, 2.0, 3.0], [0.0, 2.0, 5.0]).value == pytest.approx(0.5)
    assert probability_of_improvement([5.0, 6.0], [1.0, 2.0]) == Resampled(1.0, 1.0, 1.0)
    assert probability_of_improvement([1.0], [1.0]) == Resampled(0.5, None, None)


def test_the_probability_of_improvement_of_two_seeds_by_hand() -> None:
    """3, 1 against 2, 0: (3 > 2, 3 > 0, 1 < 2, 1 > 0) is 3/4; seed 0 alone: 1, seed 1 alone: 1. No draw is below 3/4."""
    found = probability_of_improvement([3.0, 1.0], [2.0, 0.0])
    assert (found.value, found.low, found.high) == (0.75, 0.75, 1.0)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0, 2.0, 3.0], 2 / 8),  # only + + + and - - - are as far from 0
        ([1.0, -2.0, 3.0], 6 / 8),  # sums 6, 4, 2, 0: all but 0 and 0 are at least 2
        ([0.0, 0.0], 1.0),
        ([5.0], 1.0),
        ([1.0] * 6, 2 / 64),
    ],
)
def test_sign_flips_by_hand(differences: list[float], p: float) -> None:
    assert sign_flip_p(differences) == pytest.approx(p)


def test_the_smallest_p_is_that_of_pairs_that_agree() -> None:
    assert [smallest_p(n) for n in (1, 3, 5, 6)] == [1.0, 0.25, 0.0625, 0.03125]
    assert all(sign_flip_p([1.0] * n) == smallest_p(n) for n in range(1, 10))


def test_sign_flips_beyond_the_exact_number_agree_with_it() -> None:
    draw = random.Random(5)
    values = [draw.gauss(0.45, 1.0) for _ in range(17)]
    total = abs(math.fsum(values))
    exact = statistics.fmean(
        abs(math.fsum(sign * value for sign, value in zip(signs, values, strict=True))) >= total - 1e-12
        for signs in product((1, -1), repeat=17)
    )
    assert sign_flip_p(values) == pytest.approx(exact, abs=0.01)
    assert sign_flip_p([1.0] * 40) == pytest.approx(1e-4)  # the pattern that was seen, among 10,000
