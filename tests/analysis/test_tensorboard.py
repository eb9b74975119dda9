"""TensorBoard's event files as torch writes them, read as runs."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from luspo_cli.analysis.comparison import compare_runs
from luspo_cli.analysis.history import read_run, read_runs
from luspo_cli.errors import UsageError

tensorboard = pytest.importorskip("torch.utils.tensorboard", reason="tensorboard is not installed")


def write(folder: Path, rows: list[dict[str, float]], suffix: str = "", *, new_style: bool = False) -> Path:
    """One event file in `folder` from rows of tags, each with its `step`."""
    writer = tensorboard.SummaryWriter(str(folder), filename_suffix=suffix)
    for row in rows:
        for tag, value in row.items():
            if tag != "step":
                writer.add_scalar(tag, value, int(row["step"]), new_style=new_style)
    writer.close()
    return folder


def trl(step: int, length: float, **more: float) -> dict[str, float]:
    return {"step": step, "train/completions/mean_length": length, "train/reward": 0.5, **more}


@pytest.mark.parametrize("new_style", [False, True])
def test_tags_of_trl_are_read(tmp_path: Path, new_style: bool) -> None:
    rows = [trl(1, 10.5), trl(2, 20.25), {"step": 2, "eval/loss": 3.0}, {"step": 3, "train/train_runtime": 1.0}]
    run = read_run(write(tmp_path / "trl-run", rows, new_style=new_style))
    assert (run.name, run.source, run.last_step) == ("trl-run", "trl", 2)
    assert run.column("response_length/mean").to_dict() == {1: 10.5, 2: 20.25}
    assert run.column("reward/total/mean").to_list() == [0.5, 0.5]
    assert run.notes == ()


def test_tags_of_verl_are_read_and_its_validations_passed_over(tmp_path: Path) -> None:
    rows = [
        {"step": 0, "val-core/acc": 0.1},
        {"step": 1, "response_length/mean": 8.0, "critic/score/mean": 0.25, "training/global_step": 1},
        {"step": 2, "response_length/mean": 6.0, "critic/score/mean": 0.5, "training/global_step": 2},
    ]
    run = read_run(write(tmp_path, rows))
    assert (run.source, run.column("response_length/mean").to_list()) == ("verl", [8.0, 6.0])


def test_our_own_tracked_series_is_read(tmp_path: Path) -> None:
    rows = [{"step": step, "response_length/mean": 5.0 * step, "tokens/total": 100.0 * step} for step in (1, 2)]
    run = read_run(write(tmp_path / "tensorboard", rows))
    assert (run.source, run.column("tokens/total").to_list()) == ("luspo", [100.0, 200.0])


def test_sessions_that_went_back_count_anew(tmp_path: Path) -> None:
    """Steps 1 to 4, then from 3 on again: its steps 3 and 4 are void, and said to be."""
    import time

    write(tmp_path, [trl(step, 1.0 * step) for step in (1, 2, 3, 4)], ".0")
    time.sleep(1.1)  # the name carries the second in which a file was begun
    write(tmp_path, [trl(step, 10.0 * step) for step in (3, 4, 5)], ".1")
    for given in (tmp_path, sorted(tmp_path.iterdir())[1]):
        run = read_run(given)
        assert run.column("response_length/mean").to_list() == [1.0, 2.0, 30.0, 40.0, 50.0]
        (note,) = run.notes
        assert "2 of its rows were recorded anew after a resume" in note
    with pytest.raises(UsageError, match="is given twice"):
        read_runs(sorted(tmp_path.iterdir()))


def test_folders_of_event_files_are_found_and_compared(tmp_path: Path, write_run: Any) -> None:
    write(tmp_path / "peers" / "grpo", [trl(step, 7.0) for step in (1, 2, 3)])
    write(tmp_path / "peers" / "gspo", [trl(step, 9.0) for step in (1, 2, 3)])
    runs = read_runs([tmp_path / "peers", write_run("ours")])
    assert [run.name for run in runs] == ["grpo", "gspo", "ours"]
    comparison = compare_runs(runs)
    assert {run.name: run.values["length_final"] for run in comparison.runs} == {"grpo": 7.0, "gspo": 9.0, "ours": 30.0}


def test_without_response_lengths_the_tags_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no response length: .*among its keys \(.*loss"):
        read_run(write(tmp_path, [{"step": 1, "train/loss": 1.0}]))


def test_without_the_package_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: Any) -> None:
    write(tmp_path, [trl(1, 1.0)])
    found = builtins.__import__

    def missing(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("tensorboard"):
            raise ImportError(name)
        return found(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UsageError, match=r"the package tensorboard is not installed: pip install 'luspo\[track\]'"):
        read_run(tmp_path)
