"""Length pressure, by hand."""

from __future__ import annotations

import pytest

from luspo_cli.objectives.diagnostics import combine_diagnostics, length_pressure


def test_by_hand() -> None:
    # Lengths 2 and 6, mean 4, A = +1 for the short one and −1 for the long one.
    # w = 1/|y|: (1/2·(−2) + (−1/6)·2) / (1/2 + 1/6) = (−4/3) / (2/3) = −2.  w = 1: (−2 − 2) / 2 = −2.
    assert length_pressure([1.0, -1.0], [2, 6], "grpo") == pytest.approx(-2.0)
    assert length_pressure([1.0, -1.0], [2, 6], "luspo") == pytest.approx(-2.0)
    # A = +1 for both: (1/2·(−2) + 1/6·2) / (2/3) = (−2/3) / (2/3) = −1 against (−2 + 2) / 2 = 0.
    assert length_pressure([1.0, 1.0], [2, 6], "gspo") == pytest.approx(-1.0)
    assert length_pressure([1.0, 1.0], [2, 6], "luspo") == 0


def test_group_centred_advantages_give_the_closed_forms() -> None:
    # Σ A = 0, so the numerator is −mean|y| Σ A/|y| with w = 1/|y| and Σ A |y| with w = 1.
    advantages, lengths = [0.5, 1.5, -2.0], [3, 10, 4]
    mean = sum(lengths) / 3
    inverse = [a / n for a, n in zip(advantages, lengths, strict=True)]
    assert length_pressure(advantages, lengths, "gspo") == pytest.approx(
        -mean * sum(inverse) / sum(abs(x) for x in inverse)
    )
    expected = sum(a * n for a, n in zip(advantages, lengths, strict=True)) / sum(map(abs, advantages))
    for name in ("luspo", "dapo", "dr_grpo"):
        assert length_pressure(advantages, lengths, name) == pytest.approx(expected)


def test_edges() -> None:
    assert length_pressure([], [], "luspo") == 0
    assert length_pressure([0.0, 0.0], [3, 5], "gspo") == 0
    assert length_pressure([9.0, 1.0, -1.0], [0, 2, 6], "gspo") == length_pressure([1.0, -1.0], [2, 6], "gspo")
    assert length_pressure([1.0, -1.0], [4, 4], "luspo") == 0
    with pytest.raises(ValueError, match="one length for each"):
        length_pressure([1.0], [2, 3], "luspo")
    with pytest.raises(ValueError, match="did you mean 'gspo'"):
        length_pressure([1.0], [2], "gsp")


def test_combining_sums_and_takes_extremes() -> None:
    parts = [
        {"objective/loss": 1.0, "ratio/min": 0.9, "ratio/max": 1.1},
        {"objective/loss": 2.0},
        {"objective/loss": -0.5, "ratio/min": 0.95, "ratio/max": 1.3},
    ]
    assert combine_diagnostics(parts) == {"objective/loss": 2.5, "ratio/min": 0.9, "ratio/max": 1.3}
    assert combine_diagnostics([]) == {}
