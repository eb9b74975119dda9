"""Student intervals against published quantiles and sums done by hand."""

from __future__ import annotations

import math

import pytest

from luspo_cli.metrics.intervals import LEVEL, estimate, rank_correlation, student_quantile

# Two-sided 95 % quantiles as printed in statistical tables.
PUBLISHED = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 30: 2.042, 120: 1.980}


@pytest.mark.parametrize(("degrees", "quantile"), PUBLISHED.items())
def test_quantiles_are_the_published_ones(degrees: int, quantile: float) -> None:
    assert student_quantile(degrees) == pytest.approx(quantile, abs=5e-4)


@pytest.mark.parametrize("degrees", [*range(1, 32), 40, 60, 200])
def test_between_the_quantiles_lies_the_integral_of_the_density(degrees: int) -> None:
    """Student's density, summed over small parts of [-t, t]: each value of the table, and the expansion beyond it."""
    t, parts = student_quantile(degrees), 20000
    norm = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    middles = ((part + 0.5) * t / parts for part in range(parts))
    integral = 2 * norm * t / parts * sum((1 + x * x / degrees) ** (-(degrees + 1) / 2) for x in middles)
    assert integral == pytest.approx(LEVEL, abs=3e-7 if degrees > 30 else 1e-7)


def test_no_degree_of_freedom_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        student_quantile(0)


def test_interval_by_hand() -> None:
    # 1, 2, 6: mean 3, deviations -2 -1 3, s = sqrt(14 / 2), half width 4.30265 * sqrt(7) / sqrt(3).
    found = estimate([1.0, 2.0, 6.0])
    assert found is not None
    assert found.mean == 3.0
    assert found.half_width == pytest.approx(4.302652730 * math.sqrt(7 / 3), rel=1e-9)
    assert found.low == pytest.approx(3.0 - 6.572411, abs=1e-5)
    assert found.n == 3


def test_one_value_has_no_interval_and_none_no_estimate() -> None:
    one = estimate([4.0])
    assert one is not None
    assert (one.mean, one.low, one.high, one.half_width, one.n) == (4.0, None, None, None, 1)
    assert estimate([]) is None


def test_equal_values_have_an_interval_of_width_zero() -> None:
    found = estimate([0.5, 0.5])
    assert found is not None
    assert (found.low, found.high) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1.0),
        ([1, 2, 3, 4], [9, 4, 3, 1], -1.0),
        # Differences of rank 0, 1, 1, 0: 1 - 6 · 2 / (4 · 15).
        ([1, 2, 3, 4], [1, 3, 2, 4], 0.8),
        # The tied ranks 1.5, 1.5, 3 against 1, 2, 3: covariance 1.5, squares 1.5 and 2.
        ([5, 5, 6], [1, 2, 3], 1.5 / 3**0.5),
        ([5, 5, 5], [1, 2, 3], None),
        ([1, 2], [3, 5], 1.0),
        ([1], [3], None),
    ],
)
def test_rank_correlation(first: list[float], second: list[float], expected: float | None) -> None:
    assert rank_correlation(first, second) == pytest.approx(expected)
