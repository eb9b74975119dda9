"""Kept advantages by length and the pressure that follows: by hand, against loops, and as identities."""

from __future__ import annotations

import random
from dataclasses import replace
from math import ceil, isclose

import numpy as np
import pytest

from luspo_cli.errors import UsageError
from luspo_cli.metrics.by_length import (
    TrainedRows,
    kept_length_pressure,
    length_grid,
    length_profile,
    profile_record,
    trained_rows,
)
from luspo_cli.objectives.diagnostics import length_pressure


def rows(*columns: list[float]) -> TrainedRows:
    """Lengths, advantages, clipped low and high, weights."""
    lengths, advantages, low, high, weights = (np.array(column, dtype=np.float64) for column in columns)
    return TrainedRows(lengths, advantages, low, high, 1 - low - high, weights)


def test_the_grid_is_the_powers_of_root_2() -> None:
    assert length_grid(100).tolist() == [1, 2, 3, 4, 6, 8, 12, 16, 23, 32, 46, 64, 91]
    assert length_grid(91)[-1] == 91
    assert length_grid(90)[-1] == 64
    assert length_grid(1).tolist() == length_grid(0).tolist() == [1]
    grid = length_grid(2**15)
    assert grid.tolist() == sorted({ceil(2 ** (k / 2) - 1e-9) for k in range(31)})
    # A longer limit adds bins and moves none.
    assert np.array_equal(length_grid(4096), grid[: len(length_grid(4096))])


def test_bins_by_hand() -> None:
    """Two responses of 4 or 5 tokens, one of 6, two of 9; the 4 is cut low by half, one 9 is cut high."""
    given = rows([4, 5, 6, 9, 9], [-1, 2, 0, 1, 3], [0.5, 0, np.nan, 0, 0], [0, 0, np.nan, 0, 1], [1, 1, np.nan, 2, 2])
    record = profile_record(length_profile(given))
    assert record == {
        "from": [4, 6, 8],
        "rollouts": [2, 1, 2],
        "positive": [1, 0, 2],
        "negative": [1, 0, 0],
        "kept_positive": [1.0, 0.0, 0.5],
        "kept_negative": [-0.25, 0.0, 0.0],
        "clipped_low": [0.5, None, None],
        "clipped_high": [0.0, None, 0.5],
        "weight": [0.75, None, 1.0],
    }
    assert length_profile(given).kept[length_profile(given).rollouts > 0].tolist() == [0.75, 0.0, 0.5]


def test_pressure_by_hand() -> None:
    """Lengths 2 and 6 with A = 1 and -1, weight 1: (-2 - 2)/2 uncut; with the short one cut -2/2, with the long one too 0."""
    for cut, expected in (([0, 0], -2), ([1, 0], -1), ([0, 1], -1), ([1, 1], 0), ([0.5, 0], -1.5)):
        assert kept_length_pressure(rows([2, 6], [1, -1], [0, 0], cut, [1, 1])) == expected
    # w = 1/|y|: (-2/2 - 2/6)/(1/2 + 1/6) = -2, and -2/6/(2/3) = -1/2 without the short one.
    assert kept_length_pressure(rows([2, 6], [1, -1], [0, 0], [0, 0], [1 / 2, 1 / 6])) == pytest.approx(-2)
    assert kept_length_pressure(rows([2, 6], [1, -1], [0, 0], [1, 0], [1 / 2, 1 / 6])) == pytest.approx(-0.5)


def drawn(seed: int, number: int) -> TrainedRows:
    generator = random.Random(seed)
    return rows(
        [generator.randrange(0, 40) for _ in range(number)],
        [generator.choice([0.0, generator.gauss(0, 1)]) for _ in range(number)],
        *([generator.random() / 2 for _ in range(number)] for _ in range(2)),
        [generator.random() for _ in range(number)],
    )


@pytest.mark.parametrize("seed", range(3))
def test_pressure_is_the_covariance_with_the_mean_at_each_length(seed: int) -> None:
    """Cov(|y|, a(|y|) w(|y|)) with loops over lengths, where the weight is a function of the length."""
    found = drawn(seed, 200)
    found = replace(found, weights=1 / np.maximum(found.lengths, 1))
    listed = list(zip(found.lengths, found.advantages, found.kept, strict=True))
    by_length: dict[float, list[float]] = {}
    for length, advantage, kept in listed:
        if length:
            by_length.setdefault(length, []).append(advantage * kept)
    number = sum(map(len, by_length.values()))
    mean_length = sum(n * len(of_length) for n, of_length in by_length.items()) / number
    push = {n: sum(of_length) / len(of_length) / n for n, of_length in by_length.items()}
    mean_push = sum(push[n] * len(by_length[n]) for n in push) / number
    covariance = sum((n - mean_length) * (push[n] - mean_push) * len(by_length[n]) for n in push) / number
    scale = sum(abs(advantage) / length for length, advantage, _ in listed if length) / number
    assert float(kept_length_pressure(found)) == pytest.approx(covariance / scale, rel=1e-12)


def test_without_a_cut_it_is_the_length_pressure() -> None:
    found = drawn(5, 100)
    uncut = np.ones_like(found.kept)
    for name, weights in (("luspo", uncut), ("gspo", 1 / np.maximum(found.lengths, 1))):
        given = replace(found, kept=uncut, weights=weights)
        expected = length_pressure(found.advantages.tolist(), found.lengths.astype(int).tolist(), name)
        assert float(kept_length_pressure(given)) == pytest.approx(expected, rel=1e-12)
        assert float(kept_length_pressure(replace(given, weights=7 * weights))) == pytest.approx(expected, rel=1e-12)


def test_a_leading_axis_is_as_many_calls() -> None:
    parts = [drawn(seed, 60) for seed in range(4)]
    names = ("lengths", "advantages", "clipped_low", "clipped_high", "kept", "weights")
    together = TrainedRows(*(np.stack([getattr(part, name) for part in parts]) for name in names))
    starts = length_grid(40)
    whole = length_profile(together, starts)
    for place, part in enumerate(parts):
        own = length_profile(part, starts)
        for name in ("rollouts", "positive", "kept_positive", "kept_negative", "clipped_low", "clipped_high", "weight"):
            np.testing.assert_allclose(getattr(whole, name)[place], getattr(own, name), rtol=1e-12)
        assert isclose(kept_length_pressure(together)[place], kept_length_pressure(part), rel_tol=1e-12)


def test_bins_add_up_to_the_batch() -> None:
    found = drawn(8, 300)
    profile, present = length_profile(found), found.lengths > 0
    held = profile.rollouts > 0
    assert profile.rollouts.sum() == present.sum()
    assert (profile.kept * profile.rollouts)[held].sum() == pytest.approx(
        (found.advantages * found.kept)[present].sum()
    )


def test_without_a_cut_the_pressure_is_0_on_average_under_equal_weights_only() -> None:
    """One of four is wrong, each as likely: numerators add up to 0, but a short wrong one raises the divisor of 1/|y|."""
    lengths = np.tile([10.0, 20.0, 30.0, 40.0], (4, 1))
    advantages = np.where(np.eye(4) > 0, -(3**0.5), 3**-0.5)
    none, all_ = np.zeros((4, 4)), np.ones((4, 4))
    equal = kept_length_pressure(TrainedRows(lengths, advantages, none, none, all_, all_))
    assert equal == pytest.approx([10, 10 / 3, -10 / 3, -10])
    by_length = kept_length_pressure(TrainedRows(lengths, advantages, none, none, all_, 1 / lengths))
    assert by_length == pytest.approx([575 / 49, -25 / 37, -75 / 11, -325 / 31])
    assert by_length.mean() == pytest.approx(-1.5608, abs=1e-4)


def test_nothing_at_all() -> None:
    empty = rows([], [], [], [], [])
    assert kept_length_pressure(empty) == 0
    assert profile_record(length_profile(empty))["from"] == []
    silent = rows([3, 5], [0, 0], [np.nan] * 2, [np.nan] * 2, [np.nan] * 2)
    assert kept_length_pressure(silent) == 0
    assert profile_record(length_profile(silent))["kept_positive"] == [0.0, 0.0]


def test_columns_of_stored_rollouts() -> None:
    """Rows outside the batch are left out, rows that the update skipped count with advantage 0, older files are refused."""
    columns = {
        "in_batch": [True, True, False],
        "response_length": [4, 8, 90],
        "advantage": [1.0, 0.0, 3.0],
        "clip_low_fraction": [0.0, None, None],
        "clip_high_fraction": [0.25, None, None],
        "dual_clip_fraction": [0.25, None, None],
        "loss_weight": [1.0, None, None],
    }
    record = profile_record(length_profile(trained_rows(columns)))
    assert (record["from"], record["kept_positive"], record["weight"]) == ([4, 8], [0.5, 0.0], [0.5, None])
    del columns["loss_weight"]
    with pytest.raises(UsageError, match="the stored rollouts lack loss_weight: an earlier version wrote them"):
        trained_rows(columns)
