"""Kept advantage by length, against sums done by hand."""

from __future__ import annotations

import pytest

from doubles.reports import marked, rollout
from luspo_cli.analysis.history import read_runs
from luspo_cli.report.kept import kept_advantages, length_edges, quantities


def test_edges_are_whole_and_hold_every_length() -> None:
    assert length_edges(3, 6, 18) == [3, 4, 5, 6, 7]
    assert length_edges(5, 5) == [5, 6]
    edges = length_edges(2, 999)
    assert (edges[0], edges[-1], len(edges)) == (2, 1000, 19)
    assert edges == sorted(set(edges))
    assert length_edges(0, 3) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"clip_low_fraction": 0.25, "clip_high_fraction": 0.25, "loss_weight": 0.5},
         {"advantage": 2.0, "kept": 1.0, "weighted": 0.5}),
        ({"clip_low_fraction": 1.0, "clip_high_fraction": 0.0}, {"advantage": 2.0, "kept": 0.0}),
        ({"clip_low_fraction": None, "clip_high_fraction": None, "loss_weight": None}, {"advantage": 2.0}),
        ({"advantage": 0.0, "clip_low_fraction": None, "clip_high_fraction": None, "loss_weight": None},
         {"advantage": 0.0, "kept": 0.0, "weighted": 0.0}),
        ({"in_batch": False, "clip_low_fraction": 0.0, "clip_high_fraction": 0.0}, {}),
    ],
)  # fmt: skip
def test_what_a_rollout_adds(changes: dict, expected: dict) -> None:
    assert quantities({"advantage": 2.0, "in_batch": True, **changes}) == expected


def test_sums_by_step_and_length_and_runs_without_marks(make_run) -> None:
    short, long = rollout("p", "1", advantage=1.0), rollout("p", "123", advantage=-2.0)
    rows = [marked(short), marked(short, clip_high_fraction=1.0), marked(long, loss_weight=0.25)]
    newer = make_run("a", rollouts={1: rows, 4: rows[2:]})
    older = make_run("b", "gspo", rollouts={1: [short]})
    found = kept_advantages(read_runs([newer, older, make_run("c", "grpo")]))
    assert found is not None
    assert found["edges"] == [2, 3, 4, 5]
    one, other, none = found["runs"]
    assert one["steps"] == [1, 4]
    assert one["advantage"] == {"sums": [[2, 0, -2], [0, 0, -2]], "counts": [[2, 0, 1], [0, 0, 1]]}
    assert one["kept"] == {"sums": [[1, 0, -2], [0, 0, -2]], "counts": [[2, 0, 1], [0, 0, 1]]}
    assert one["weighted"]["sums"] == [[1, 0, -0.5], [0, 0, -0.5]]
    assert other == {"steps": [1], "advantage": {"sums": [[1, 0, 0]], "counts": [[1, 0, 0]]}}
    assert none is None


def test_no_stored_rollouts_no_map(make_run) -> None:
    assert kept_advantages(read_runs([make_run("a")])) is None
