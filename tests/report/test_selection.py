"""Which rollouts a page holds: whole groups, first and last steps, evenly, and never more than the limit."""

from __future__ import annotations

from itertools import pairwise

import pytest

from doubles.reports import Row, rollout
from luspo_cli.analysis.history import read_runs
from luspo_cli.report.selection import choose_rollouts, evenly, rule
from luspo_cli.runs.stored_rollouts import groups_of, stored_steps


def batch(problems: int, size: int = 4) -> list[Row]:
    return [rollout(f"p{problem}", "1") for problem in range(problems) for _ in range(size)]


def test_evenly_holds_both_ends() -> None:
    assert evenly(10, 4) == [0, 3, 6, 9]
    assert evenly(3, 8) == [0, 1, 2]
    assert evenly(5, 1) == [0]


def test_groups_are_rows_that_stand_together() -> None:
    assert groups_of(["a", "a", "b", "a"]) == [range(2), range(2, 3), range(3, 4)]


def test_everything_is_taken_where_it_fits(make_run) -> None:
    runs = read_runs([make_run("a", rollouts={1: batch(2), 3: batch(2)}), make_run("b", seed=1)])
    chosen = choose_rollouts(runs, 100)
    assert [(one.run, one.step, one.rollouts, one.stored) for one in chosen] == [(0, 1, 8, 8), (0, 3, 8, 8)]


@pytest.mark.parametrize(("limit", "steps"), [(20_000, 60), (400, 25), (64, 8), (16, 2)])
def test_first_and_last_steps_and_whole_groups_within_the_limit(make_run, limit: int, steps: int) -> None:
    stored = {step: batch(4) for step in range(1, 61)}
    runs = read_runs([make_run("a", steps=60, rollouts=stored)])
    chosen = choose_rollouts(runs, limit)
    assert sum(one.rollouts for one in chosen) <= limit
    assert (chosen[0].step, chosen[-1].step, len(chosen)) == (1, 60, steps)
    assert {len(group) for one in chosen for group in one.groups} == {4}
    places = [one.step for one in chosen]
    gaps = [later - earlier for earlier, later in pairwise(places)]
    assert max(gaps) - min(gaps) <= 1


def test_runs_of_other_intervals_share_their_steps(make_run) -> None:
    every, second = {step: batch(3) for step in range(1, 41)}, {step: batch(3) for step in range(1, 41, 2)}
    runs = read_runs([make_run("a", steps=40, rollouts=every), make_run("b", "gspo", steps=40, rollouts=second)])
    chosen = choose_rollouts(runs, 120)
    steps = [{one.step for one in chosen if one.run == run} for run in (0, 1)]
    assert steps[0] - {40} == steps[1]
    assert sum(one.rollouts for one in chosen) <= 120
    assert len({one.groups for one in chosen}) == 1  # the same places of each batch


def test_room_that_a_run_leaves_goes_to_the_next(make_run) -> None:
    runs = read_runs(
        [make_run("a", rollouts={1: batch(1)}), make_run("b", "gspo", rollouts={1: batch(5), 2: batch(5)})]
    )
    assert sum(one.rollouts for one in choose_rollouts(runs, 44)) == 44


def test_where_few_steps_are_stored_each_has_more_groups(make_run) -> None:
    stored = {step: batch(16) for step in range(10, 80, 10)}
    runs = read_runs([make_run(name, name, steps=70, rollouts=stored) for name in ("grpo", "gspo", "luspo")])
    chosen = choose_rollouts(runs, 700)
    assert [(one.run, one.step, one.rollouts) for one in chosen] == [
        (run, step, 32) for run in range(3) for step in stored
    ]  # of 233 rollouts a run each of seven steps can have 33, which is eight groups


def test_many_runs_stop_at_the_limit(make_run) -> None:
    runs = read_runs([make_run(f"r{seed}", seed=seed, rollouts={1: batch(1)}) for seed in range(5)])
    assert [one.run for one in choose_rollouts(runs, 8)] == [0, 1]


def test_the_rule_is_said(make_run) -> None:
    assert rule(8, 8, 100, 100) == "All 8 stored rollouts are on this page."
    assert rule(8, 4000, 10, 10).startswith("8 of 4,000 stored rollouts are on this page, at most 10: runs share")
    assert "at most 20,000 (900 of this size fit into a page)" in rule(880, 4000, 900, 20_000)


def test_steps_are_read_from_names(make_run) -> None:
    run = make_run("a", rollouts={2: batch(1), 10: batch(1)})
    (run / "rollouts/.step-000003.parquet.partial").touch()
    assert list(stored_steps(run)) == [2, 10]
    assert stored_steps(run / "absent") == {}
