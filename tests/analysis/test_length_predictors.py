"""The comparison of predictors of length drift: windows, sign and rank by hand."""

from __future__ import annotations

import pytest

from bench.length_predictors import LAST_DRIFT, row, sign_agreement, windows_of


def record(length: float, pressure: float | None) -> dict[str, float]:
    found = {"response_length/mean": length, "length_pressure/gspo": 9.0}
    return found if pressure is None else {**found, "expected_length_pressure/run": pressure}


def test_windows_do_not_overlap_and_a_short_rest_is_left_out() -> None:
    records = [
        record(length, pressure)
        for length, pressure in ((10, 1), (12, 3), (8, None), (8, None), (20, -1), (22, -3), (5, 7))
    ]
    lengths, found = windows_of(records, "gspo", 2)
    assert lengths == [11, 8, 21]
    assert found["expected pressure (kept advantages)"] == [2, None, -2]
    assert found["pressure of all advantages, own weight"] == [9, 9, 9]
    assert found[LAST_DRIFT] == [None, -3, 13]
    assert found["length of right less of wrong"] == [None, None, None]


def test_sign() -> None:
    pairs = [(1.0, 2.0), (-1.0, 1.0), (0.0, 5.0), (-3.0, -1.0)]
    assert sign_agreement(pairs) == pytest.approx(2 / 3)
    assert sign_agreement([(0.0, 1.0)]) is None


def test_a_line_says_how_many_runs_had_a_number() -> None:
    runs = [
        ([10.0, 8.0, 6.0, 7.0], {"x": [-1.0, -2.0, 1.0, 4.0]}),
        ([10.0, 8.0, 6.0, 7.0], {"x": [None, None, None, None]}),
    ]
    assert row("x", runs) == "| x | 1 of 2 | 1.00 | 0.87 | 1 of 1 | – |"
