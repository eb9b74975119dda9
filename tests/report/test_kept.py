"""Kept advantage by length, against sums done by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from doubles.reports import marked, rollout
from luspo_cli.analysis.history import read_runs
from luspo_cli.report import kept
from luspo_cli.report.kept import kept_maps


def test_sums_of_stored_rollouts_and_runs_without_marks(make_run) -> None:
    short, long = rollout("p", "1", advantage=1.0), rollout("p", "123", advantage=-2.0)
    unknown = dict.fromkeys(("clip_low_fraction", "clip_high_fraction", "dual_clip_fraction", "loss_weight"))
    rows = [
        marked(short), marked(short, clip_high_fraction=1.0), marked(long, loss_weight=0.25, clip_low_fraction=0.5),
        marked(long, **unknown), marked(long | {"advantage": 0.0}, **unknown), marked(long | {"in_batch": False}),
    ]  # fmt: skip
    newer = make_run("a", rollouts={1: rows, 4: rows[2:3]})
    older = make_run("b", "gspo", rollouts={1: [short]})
    found = kept_maps(read_runs([newer, older, make_run("c", "grpo")]))
    assert found is not None
    assert found["edges"] == [2, 3, 4, 6]
    one, other, none = found["runs"]
    columns = [[1, 1], [4, 4]]
    assert one["advantage"] == {"columns": columns, "sums": [[2, 0, -4], [0, 0, -2]], "counts": [[2, 0, 3], [0, 0, 1]]}
    assert one["kept"] == {"columns": columns, "sums": [[1, 0, -1], [0, 0, -1]], "counts": [[2, 0, 2], [0, 0, 1]]}
    assert one["weighted"]["sums"] == [[1, 0, -0.25], [0, 0, -0.25]]
    assert other == {"advantage": {"columns": [[1, 1]], "sums": [[1, 0, 0]], "counts": [[1, 0, 0]]}}
    assert none == {}


def test_what_every_step_recorded_is_added_up(make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "COLUMNS", 2)
    run: Path = make_run("a", steps=5, rollouts={1: [marked(rollout("p", "1", advantage=9.0))]})
    log = run / "metrics.jsonl"
    bins = {"from": [2, 8], "rollouts": [4, 2], "kept_positive": [0.5, 0.0], "kept_negative": [-0.25, -1.0]}
    lines = [json.loads(line) | {"by_length": bins} for line in log.read_text(encoding="utf-8").splitlines()]
    del lines[3]["by_length"]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = kept_maps(read_runs([run]))
    assert found is not None
    assert found["edges"] == [2, 3, 4, 6, 8, 12]
    assert found["runs"][0]["kept"] == {
        "columns": [[1, 3], [4, 5]],
        "sums": [[3, 0, 0, 0, -6], [1, 0, 0, 0, -2]],
        "counts": [[12, 0, 0, 0, 6], [4, 0, 0, 0, 2]],
    }
    assert found["runs"][0]["weighted"]["sums"] == [[9, 0, 0, 0, 0]]


def test_steps_that_cannot_be_read_are_left_out_and_counted(make_run) -> None:
    good = {"from": [2, 8], "rollouts": [4, 2], "kept_positive": [0.5, 0.0], "kept_negative": [-0.25, -1.0]}
    broken = [
        {key: value for key, value in good.items() if key != "from"}, None, [], {}, "text", good | {"rollouts": [4]},
        good | {"rollouts": None}, good | {"from": 2}, good | {"from": [0, 2]}, good | {"kept_negative": [None, -1.0]},
    ]  # fmt: skip
    rows = [marked(rollout("p", "1", advantage=1.0)), marked(rollout("p", "123", advantage=-2.0))]
    holes = {step: [rows[0], rows[1] | {"advantage": hole}] for step, hole in ((1, None), (2, float("nan")))}
    cut = [rows[0], rows[1] | {"in_batch": False, "advantage": None}]
    run: Path = make_run("a", steps=len(broken) + 1, rollouts=holes | {3: rows, 4: cut})
    log = run / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    for line, found in zip(lines, [*broken, good], strict=True):
        line["by_length"] = found
    log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = kept_maps(read_runs([run]))
    assert found is not None
    assert found["notes"] == [
        "10 steps of a whose by_length has no equally long lists of numbers are left out here.",
        "2 steps of a whose stored rollouts have an advantage or a length that is no number are left out here.",
    ]
    assert found["runs"][0]["kept"] == {
        "columns": [[11, 11]], "sums": [[1, 0, 0, 0, -2]], "counts": [[4, 0, 0, 0, 2]],
    }  # fmt: skip
    assert found["runs"][0]["advantage"]["columns"] == [[3, 3], [4, 4]]
    assert found["runs"][0]["advantage"]["sums"] == [[1, 0, -2, 0, 0], [1, 0, 0, 0, 0]]


def test_nothing_recorded_no_map(make_run) -> None:
    assert kept_maps(read_runs([make_run("a")])) is None
