"""Pressures and bins of a step: of the objective that ran, of the others on its log-ratios, and again from what was stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doubles.runs import records, train
from luspo_cli.advantages import ADVANTAGES
from luspo_cli.config.objective import NAMED_OBJECTIVES
from luspo_cli.config.run import TrainRun
from luspo_cli.metrics.by_length import kept_length_pressure, length_profile, profile_record, trained_rows
from luspo_cli.processes.ranks import ALONE
from luspo_cli.records import ScoredGroup
from luspo_cli.training.length_diagnostics import diagnose

LENGTHS = [[3, 9, 1, 6], [5, 5, 12, 2], [2, 7, 4, 4], [6, 1, 8, 11]]
RIGHT = [[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]]
"""Rewards; the second group carries no signal."""
MakeGroups = Callable[..., list[ScoredGroup]]


def diagnosed(make_updater: Callable[..., Any], make_groups: MakeGroups, objective: str, *sets: str) -> dict[str, Any]:
    """The numbers of two mini-batches of which the first one moves the policy far."""
    estimator = ADVANTAGES[NAMED_OBJECTIVES[objective].advantage]
    groups = [
        replace(group, rewards=tuple(replace(reward, total=r) for reward, r in zip(group.rewards, right, strict=True)))
        for group, right in zip(make_groups(LENGTHS, [estimator(right) for right in RIGHT]), RIGHT, strict=True)
    ]
    updater, _ = make_updater("update.mini_batches=2", *sets, objective=objective)
    updater.update(groups, 1e-2)
    return diagnose(updater.rows, ALONE, groups, updater.config, with_tokens=False)[0]


@pytest.mark.parametrize("name", list(NAMED_OBJECTIVES))
def test_an_objective_on_its_own_log_ratios_is_what_ran(
    make_updater: Callable[..., Any], make_groups: MakeGroups, name: str
) -> None:
    """What `row_outcomes` says beside the update is what the update did; mini-batches of equal counts."""
    found = diagnosed(make_updater, make_groups, name)
    own, ran = found[f"expected_length_pressure/{name}"], found["expected_length_pressure/run"]
    same_counts = NAMED_OBJECTIVES[name].aggregation != "token-mean"  # N/M differs between the mini-batches
    assert ran == pytest.approx(own, rel=1e-5 if same_counts else 0.2, abs=1e-6)
    clips = name in ("gspo", "luspo", "fspo")
    assert (abs(found["expected_length_pressure/clip"]) > 1e-3) >= clips
    assert {f"expected_length_pressure/{other}" for other in NAMED_OBJECTIVES} <= found.keys()


def test_on_policy_the_clip_makes_no_pressure(make_updater: Callable[..., Any], make_groups: MakeGroups) -> None:
    found = diagnosed(make_updater, make_groups, "luspo", "update.mini_batches=1")
    assert found["expected_length_pressure/clip"] == 0
    for name in ("luspo", "dapo", "gspo", "sapo"):
        raw = found[f"length_pressure/{'gspo' if name in ('gspo', 'sapo') else 'luspo'}"]
        assert found[f"expected_length_pressure/{name}"] == pytest.approx(raw, rel=1e-4)
    assert found["by_length"]["clipped_low"] == [None if n == 0 else 0.0 for n in found["by_length"]["negative"]]


def test_no_split_into_passes_changes_them(
    make_updater: Callable[..., Any], make_groups: MakeGroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither that of the update nor that of the outcomes under other objectives."""
    from luspo_cli.training import row_updates

    whole = diagnosed(make_updater, make_groups, "grpo")
    monkeypatch.setattr(row_updates, "ELEMENTS", 20)
    for budget in (1, 40):
        found = diagnosed(make_updater, make_groups, "grpo", f"update.tokens_per_micro_batch={budget}")
        for key, value in whole.items():
            if key.startswith("expected_"):
                assert found[key] == pytest.approx(value, abs=1e-3), key
        assert found["by_length"]["rollouts"] == whole["by_length"]["rollouts"]


def test_stored_rollouts_give_the_numbers_of_the_record(small_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    train(small_run("objective.clip_low=1e-4", "objective.clip_high=1e-4"), tmp_path / "run")
    cut = 0.0
    for record in records(tmp_path / "run"):
        assert record["time/diagnostics"] < record["time/total"]
        file = tmp_path / f"run/rollouts/step-{record['step']:06d}.parquet"
        if file.exists():
            found = trained_rows(pq.read_table(file).to_pydict())
            assert profile_record(length_profile(found)) == record["by_length"]
            pressure = float(kept_length_pressure(found))
            assert record["expected_length_pressure/run"] == pytest.approx(pressure, rel=1e-9)
            cut += np.nansum(found.clipped_low + found.clipped_high)
    assert cut > 0
