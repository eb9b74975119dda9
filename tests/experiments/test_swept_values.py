"""`--sweep`: one training for each value, in a folder that names it."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from luspo_cli.errors import UsageError
from luspo_cli.experiments import sweep
from luspo_cli.experiments.sweep import train_runs


def test_a_sweep_trains_each_value_in_a_folder_of_its_own(tmp_path, monkeypatch) -> None:
    shown: list[str] = []
    config = lambda objective, seed, preset, sets: {"run": {"seed": seed, "steps": 3}, "sets": list(sets)}  # noqa: E731
    monkeypatch.setattr(sweep, "configuration", config)
    monkeypatch.setattr(
        sweep, "train_missing", lambda trainings, command, **_: shown.extend(" ".join(command(t)) for t in trainings)
    )
    monkeypatch.setattr(sweep, "side_by_side", lambda *_: 1)
    options = {"preset": "tiny", "sets": ["run.steps=3"], "processes": 1, "display": nullcontext()}
    values = ["update.learning_rate=0.0001", "update.learning_rate=0.001"]
    runs = train_runs(["gspo"], 2, tmp_path, **options, sweep=values)
    assert [run.name for run in runs] == [f"gspo-{value}-seed{seed}" for seed in (0, 1) for value in values]
    assert "--set run.steps=3 --set update.learning_rate=0.001 --set run.seed=1" in shown[3]
    with pytest.raises(UsageError, match=r"--sweep run\.steps: runs of one comparison"):
        train_runs(["gspo"], 2, tmp_path, **options, sweep=["run.steps=3"])
