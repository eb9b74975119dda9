"""What an update says of its rollouts, and what is stored of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from luspo_cli.config.run import TrainRun
from luspo_cli.errors import RunError
from luspo_cli.policy.packing import policy_batch, rows_of
from luspo_cli.processes.ranks import ALONE
from luspo_cli.records import RowUpdate, ScoredGroup
from luspo_cli.runs.rollouts import store_rollouts

LENGTHS = [[3, 9, 1], [5, 5, 12], [2, 7, 4], [6, 1, 8]]
ADVANTAGES = [[1.0, -0.5, -0.5], [0.0, 0.0, 0.0], [0.0, 1.0, -1.0], [0.5, 0.2, -0.7]]
COLUMNS = [field.name for field in fields(RowUpdate)]

MakeGroups = Callable[..., list[ScoredGroup]]


def logprobs_of(updater: Any, groups: list[ScoredGroup]) -> list[list[float]]:
    """Of each rollout's tokens under the weights of now, a row at a time."""
    with torch.no_grad():
        passes = [updater.policy(policy_batch([row]))[0] for group in groups for row in rows_of(group)]
    return [part[0].tolist() for part in passes]


@pytest.mark.parametrize(("objective", "low", "high"), [("luspo", 2e-3, 2.5e-3), ("gspo", 2e-3, 2.5e-3)])
def test_ratios_marks_and_weights_are_those_of_the_update(
    make_updater: Callable[..., Any], make_groups: MakeGroups, objective: str, low: float, high: float
) -> None:
    """Two mini-batches of two groups: the second is trained on under weights that the first one moved."""
    groups = make_groups(LENGTHS, ADVANTAGES)
    updater, model = make_updater("update.mini_batches=2", "update.tokens_per_micro_batch=40", objective=objective)
    before = logprobs_of(updater, groups)
    stored = {name: value.clone() for name, value in model.state_dict().items()}
    updater.update(groups, 1e-2)
    rows = updater.rows.gathered(ALONE, with_tokens=True).updates()
    # The weights in between: the first mini-batch alone, counted as the only one.
    model.load_state_dict(stored)
    again, moved = make_updater("update.mini_batches=1", objective=objective)
    moved.load_state_dict(stored)
    again.update(groups[:2], 1e-2)
    between = logprobs_of(again, groups)
    cut = 0
    for place, (length, advantage) in enumerate(zip(chain(*LENGTHS), chain(*ADVANTAGES), strict=True)):
        row = rows[place]
        if advantage == 0:
            assert row is None
            continue
        assert row is not None
        assert (row.mini_batch, len(row.token_log_ratios)) == (place // 6, length)
        assert row.loss_weight == pytest.approx(1 if objective == "luspo" else 1 / length)
        steps = [0.0] * length
        if row.mini_batch:
            steps = [new - old for new, old in zip(between[place], before[place], strict=True)]
        assert row.token_log_ratios == pytest.approx(steps, abs=1e-4)
        ratio = math.exp(sum(row.token_log_ratios) / length)
        assert row.sequence_ratio == pytest.approx(ratio, rel=1e-6)
        marks = float(ratio < 1 - low and advantage < 0), float(ratio > 1 + high and advantage > 0)
        assert (row.clip_low_fraction, row.clip_high_fraction) == marks
        cut += sum(marks)
    assert cut > 0


def test_no_split_into_passes_changes_them(make_updater: Callable[..., Any], make_groups: MakeGroups) -> None:
    groups, found = make_groups(LENGTHS, ADVANTAGES), []
    for budget in (100_000, 1, 40):
        updater, _ = make_updater(f"update.tokens_per_micro_batch={budget}", "update.mini_batches=2", objective="grpo")
        updater.update(groups, 1e-2)
        found.append(updater.rows.gathered(ALONE, with_tokens=True).updates())
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert (one is None) == (two is None)
            if one is not None and two is not None:
                assert one.token_log_ratios == pytest.approx(two.token_log_ratios, abs=1e-4)
                assert one.loss_weight == two.loss_weight


def stored(folder: Path, step: int) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(folder / f"step-{step:06d}.parquet")


def test_columns_are_null_where_no_row_was_computed(tmp_path: Path, make_groups: MakeGroups) -> None:
    sampled = make_groups([[2, 3], [1, 1]], [[1.0, -1.0], [0.0, 0.0]])
    row = RowUpdate(1, 1.5, 0.0, 1.0, 0.0, 0.5, (0.25, 0.5))
    store_rollouts(tmp_path, 1, sampled, sampled[:1], [row, None])
    table = stored(tmp_path, 1)
    assert table.select(COLUMNS).to_pylist() == [
        {
            "mini_batch": 1, "sequence_ratio": 1.5, "clip_low_fraction": 0.0, "clip_high_fraction": 1.0,
            "dual_clip_fraction": 0.0, "loss_weight": 0.5, "token_log_ratios": [0.25, 0.5],
            "experts_changed": [],
        },
        *[dict.fromkeys(COLUMNS)] * 3,
    ]  # fmt: skip
    # A step in which nothing was computed has columns of the same types.
    store_rollouts(tmp_path, 2, sampled, sampled, [None] * 4)
    assert stored(tmp_path, 2).schema == table.schema
    store_rollouts(tmp_path, 3, sampled, sampled)
    assert stored(tmp_path, 3).column_names == [name for name in table.column_names if name not in COLUMNS]


def test_an_update_that_fails_leaves_its_rollouts(
    small_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the columns of the update; the failure is told as it is."""
    from doubles.runs import train
    from luspo_cli.training.update import Updater

    update = Updater.update

    def failing(self: Any, *given: Any) -> Any:
        if failing.calls:
            raise RunError("the loss was not finite")
        failing.calls += 1
        return update(self, *given)

    failing.calls = 0
    monkeypatch.setattr(Updater, "update", failing)
    with pytest.raises(RunError, match="the loss was not finite"):
        train(small_run(), tmp_path / "run")
    first, second = (stored(tmp_path / "run/rollouts", step) for step in (1, 2))
    assert set(first.column_names) - set(second.column_names) == set(COLUMNS)
    assert first["token_log_ratios"].null_count < len(first)
    assert second.num_rows == 16


@pytest.mark.parametrize("objective", ["gspo", "luspo"])
def test_a_balanced_clip_range_does_not_depend_on_micro_batches(
    make_updater: Callable[..., Any], make_groups: MakeGroups, objective: str
) -> None:
    """Three mini-batches of two groups: in each, what is cut below and above is as near as any pair of bounds brings it."""
    lengths, advantages = [*LENGTHS, [4, 8, 2], [3, 3, 7]], [*ADVANTAGES, [0.4, -1.0, 0.6], [1.0, 0.3, -1.3]]
    groups, found, metrics = make_groups(lengths, advantages), [], []
    for budget in (100_000, 1, 40):
        updater, _ = make_updater(
            "update.mini_batches=3", "rollout.problems=6", f"update.tokens_per_micro_batch={budget}",
            "objective.clip_band=balanced", objective=objective,
        )  # fmt: skip
        metrics.append(updater.update(groups, 1e-3))
        found.append(updater.rows.gathered(ALONE, with_tokens=False).updates())
    for others in metrics[1:]:
        for side in ("low", "high"):
            key = f"objective/balanced_clip_{side}"
            assert others[key] == pytest.approx(metrics[0][key], rel=1e-2)
    marks = [[row and (row.clip_low_fraction, row.clip_high_fraction) for row in rows] for rows in found]
    assert marks[0] == marks[1] == marks[2]
    objective_of = make_updater("objective.clip_band=balanced", objective=objective)[0].config.objective
    for mini_batch in (1, 2):
        rows = [
            (row, advantage, row.loss_weight)
            for row, advantage in zip(found[0], chain(*advantages), strict=True)
            if row is not None and row.mini_batch == mini_batch
        ]
        cut = sum(
            (row.clip_low_fraction - row.clip_high_fraction) * abs(advantage) * weight
            for row, advantage, weight in rows
        )

        def imbalance(shift: float, rows: Any = rows) -> float:
            low, high = objective_of.clip_low * math.exp(shift), objective_of.clip_high * math.exp(-shift)
            below = sum(-a * w for row, a, w in rows if a < 0 and row.sequence_ratio < 1 - low)
            above = sum(a * w for row, a, w in rows if a > 0 and row.sequence_ratio > 1 + high)
            return abs(below - above)

        assert abs(cut) <= min(imbalance(step / 100) for step in range(-800, 801)) + 1e-6
