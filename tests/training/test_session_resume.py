"""What a session refuses to go on with, what it starts over, and that nothing but its own lines reaches stderr."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from doubles.runs import train
from luspo_cli.config.run import TrainRun
from luspo_cli.errors import RunError, UsageError
from luspo_cli.runs.folder import RunFolder
from luspo_cli.training import preflight, stages, start

TWO_STEPS = ("run.steps=2", "run.checkpoint_every=2", "evaluation.every=0")


def test_a_run_whose_record_was_lost_is_not_gone_on_with(
    small_run: Callable[..., TrainRun], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(small_run(*TWO_STEPS), tmp_path / "run")
    error = capfd.readouterr().err
    assert "Loading weights" not in error
    assert "Writing model shards" not in error
    (tmp_path / "run/metrics.jsonl").unlink()
    with pytest.raises(UsageError, match="lacks 1, 2 of the steps 1 to 2"):
        train(small_run(*TWO_STEPS), tmp_path / "run", "resume")
    train(small_run(*TWO_STEPS), tmp_path / "run", "replace")
    assert [record["step"] for record in RunFolder(tmp_path / "run").records()] == [1, 2]


def test_the_same_command_starts_over_what_failed_before_step_1(
    small_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RunError("optimizer settings that do not work")

    monkeypatch.setattr(stages, "make_optimizer", fail)
    with pytest.raises(RunError):
        train(small_run(*TWO_STEPS), tmp_path / "run")
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path / "run")) == [".lock", "config.json", "provenance.json"]
    train(small_run(*TWO_STEPS, "run.seed=3"), tmp_path / "run")
    assert [record["step"] for record in RunFolder(tmp_path / "run").records()] == [1, 2]
    assert json.loads((tmp_path / "run/config.json").read_text())["run"]["seed"] == 3


def test_a_revision_that_nothing_reads_is_refused_in_a_new_run_alone(
    small_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_run(*TWO_STEPS, "model.revision=v1")
    with pytest.raises(UsageError, match=r"model\.revision = 'v1' applies to hub ids only"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(preflight, "unread_revision", lambda *_: None)  # as an older version
    train(config, tmp_path / "run")
    monkeypatch.undo()
    train(config, tmp_path / "run", "resume")


def test_a_folder_in_use_is_refused_before_a_model_is_made(
    small_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "made_model", lambda *_: pytest.fail("a model was made"))
    with RunFolder(tmp_path / "run") as folder:
        folder.open(small_run().model_dump(mode="json"), "refuse")
        for how in ("refuse", "resume", "replace"):
            with pytest.raises(UsageError, match="another process is training in"):
                train(small_run(), tmp_path / "run", how)


@pytest.mark.parametrize("earlier", [False, True])
def test_a_full_disk_speaks_of_earlier_checkpoints_only_where_there_are_some(tmp_path: Path, earlier: bool) -> None:
    from luspo_cli.training.checkpoint import save_checkpoint

    class Full:
        def modules(self) -> list[Any]:
            return []

        def save_pretrained(self, *_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

    if earlier:
        (tmp_path / "step-000001").mkdir()
    with pytest.raises(RunError, match="No space left on device; nothing half-written was left") as caught:
        save_checkpoint(tmp_path, 2, Full(), None, None, [], 1)  # type: ignore[arg-type]
    assert ("earlier checkpoints are whole" in str(caught.value)) is earlier
