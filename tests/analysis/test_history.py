"""Run folders and peers' logs read by column name; every bad input is one sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from luspo_cli.analysis.history import read_run, read_runs
from luspo_cli.analysis.logs import read_json_lines
from luspo_cli.errors import UsageError


def test_a_run_is_read_by_column_name(write_run) -> None:
    folder = write_run(
        "luspo-seed3",
        seed=3,
        lengths=[10, 20],
        planned=5,
        response_length__correct=[None, 4.0],
        reward__accuracy__mean=[0.25, 0.5],
    )
    run = read_run(folder)
    assert (run.name, run.objective, run.seed, run.source) == ("luspo-seed3", "luspo", 3, "luspo")
    assert (run.first_step, run.last_step, run.planned_steps, run.finished) == (1, 2, 5, False)
    assert run.column("response_length/mean").to_dict() == {1: 10.0, 2: 20.0}
    assert math.isnan(run.column("response_length/correct").loc[1])
    assert run.column("reward/accuracy/mean").loc[2] == 0.5
    assert run.provenance == {"seed": 3}
    assert run.notes == ()


def test_a_run_that_reached_its_last_step_is_finished(write_run) -> None:
    assert read_run(write_run("a", lengths=[1, 2, 3])).finished is True


def test_a_metric_that_was_never_recorded_names_what_is_there(write_run) -> None:
    run = read_run(write_run("a"))
    with pytest.raises(UsageError, match=r"no metric 'policy/entropy'; it has response_length/mean"):
        run.column("policy/entropy")
    with pytest.raises(UsageError, match=r"did you mean 'policy/entropy'"):
        run.column("policy/entrpy")


@pytest.mark.parametrize("torn", ['{"step": 4, "resp', "{", "null", "[1]"])
def test_a_torn_last_line_is_left_out_and_reported(write_run, torn: str) -> None:
    folder = write_run("a")
    with (folder / "metrics.jsonl").open("a") as log:
        log.write(torn)
    run = read_run(folder)
    assert run.last_step == 3
    assert len(run.notes) == 1
    assert "line 4, the last, is torn" in run.notes[0]


def test_a_whole_last_line_without_line_feed_counts(write_run) -> None:
    folder = write_run("a")
    log = folder / "metrics.jsonl"
    log.write_text(log.read_text().rstrip("\n"))
    assert (read_run(folder).last_step, read_run(folder).notes) == (3, ())


def test_lines_end_with_a_line_feed_only(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes('{"step": 1,\r "text": "a\u2028b\u0085c\x0cd"}\n\n'.replace("\x0c", "\\f").encode())
    rows, torn = read_json_lines(log)
    assert (len(rows), torn) == (1, None)
    assert rows[0]["text"] == "a\u2028b\u0085c\x0cd"


def _edit(folder: Path, old: str, new: str) -> None:
    log = folder / "metrics.jsonl"
    text = log.read_text()
    assert old in text
    log.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('{"step": 2,', '{"step" 2,', "line 2 of 3 is not a JSON object; only the last line may be torn"),
        ('"step": 2', '"step": 1', r"step 1 is recorded twice \(line 2\)"),
        ('"step": 3', '"step": 4', r"step 4 follows step 2 \(line 3\)"),
        ('"step": 1', '"step": 7', r"step 2 follows step 7 \(line 2\)"),
        ('"step": 2', '"step": "2"', "row 2 has no whole number under 'step'"),
        ('"step": 2, ', "", "row 2 has no whole number under 'step'"),
        ("20.0", '"20"', "'response_length/mean' is '20' where a number belongs"),
        ("20.0", "true", "'response_length/mean' is True where a number belongs"),
    ],
)
def test_a_log_that_does_not_fit_is_refused(write_run, old: str, new: str, message: str) -> None:
    folder = write_run("a")
    _edit(folder, old, new)
    with pytest.raises(UsageError, match=message) as refusal:
        read_run(folder)
    assert "metrics.jsonl" in str(refusal.value)


def test_missing_first_steps_are_refused(write_run) -> None:
    folder = write_run("a")
    log = folder / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[2:]))
    with pytest.raises(UsageError, match="the first recorded step is 3 and not 1"):
        read_run(folder)


def test_held_out_evaluations_know_the_policy_before_training(write_run) -> None:
    folder = write_run("a", lengths=[1.0, 2.0], evaluation__accuracy=[None, 0.5])
    assert read_run(folder).evaluations["evaluation/accuracy"].to_dict() == {2: 0.5}
    log = folder / "evals" / "held-out.jsonl"
    log.parent.mkdir()
    rows = [{"step": step, "evaluation/accuracy": step / 4, "evaluation/accuracy_low": 0.0} for step in (0, 2, 3)]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"st')
    run = read_run(folder)
    assert run.evaluations.to_dict() == {"evaluation/accuracy": {0: 0.0, 2: 0.5}}
    assert run.table.index.tolist() == [1, 2]
    assert len(run.notes) == 1
    assert "line 4, the last, is torn" in run.notes[0]
    log.write_text(json.dumps(rows[1]) + "\n" + json.dumps(rows[0]) + "\n")
    with pytest.raises(UsageError, match="step 0 comes after step 2"):
        read_run(folder)


def test_an_empty_log_is_refused(write_run) -> None:
    folder = write_run("a")
    (folder / "metrics.jsonl").write_text("\n")
    with pytest.raises(UsageError, match="has no step yet"):
        read_run(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", r"config\.json is not readable JSON"),
        ("config.json", "[]", r"config\.json is not readable JSON: it holds no JSON object"),
        ("config.json", "{}", "names no objective"),
        ("provenance.json", "x", r"provenance\.json is not readable JSON"),
        ("config.json", None, r"has no config\.json"),
        ("metrics.jsonl", None, r"has no metrics\.jsonl"),
    ],
)
def test_a_broken_or_missing_file_is_refused(write_run, file: str, content: str | None, message: str) -> None:
    folder = write_run("a")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(UsageError, match=message):
        read_run(folder)


def test_paths_that_are_no_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_run(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UsageError, match="is not a run"):
        read_run(tmp_path / "notes.txt")
    with pytest.raises(UsageError, match="No run was given"):
        read_runs([])


def test_names_are_as_short_as_they_can_be(write_run) -> None:
    first, second = write_run("a/luspo-seed0"), write_run("b/luspo-seed0")
    assert [run.name for run in read_runs([first, second])] == ["a/luspo-seed0", "b/luspo-seed0"]
    assert [run.name for run in read_runs([first / "metrics.jsonl"])] == ["luspo-seed0"]


def test_a_path_given_twice_is_refused(write_run) -> None:
    folder = write_run("a")
    with pytest.raises(UsageError, match="given twice"):
        read_runs([folder, folder / ".." / "a"])


def test_one_run_as_folder_and_as_file_is_refused(write_run, tmp_path: Path) -> None:
    folder = write_run("a")
    state = tmp_path / "trl" / "checkpoint-9" / "trainer_state.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"log_history": [{"step": 9, "completions/mean_length": 1.0}]}))
    for one, other in ((folder, folder / "metrics.jsonl"), (state.parents[1], state), (state.parent, state.parents[1])):
        with pytest.raises(UsageError, match="given twice, the second time as"):
            read_runs([one, other])


def test_names_that_cannot_differ_are_whole_paths(tmp_path: Path) -> None:
    row = json.dumps({"step": 1, "completions/mean_length": 1.0}) + "\n"
    for name in ("a.jsonl", "a.log.jsonl", "a/logging.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(row)
    paths = [tmp_path / "a.jsonl", tmp_path / "a"]
    assert [run.name for run in read_runs(paths)] == [str(path) for path in paths]
    assert [run.name for run in read_runs([paths[0], tmp_path / "a.log.jsonl"])] == ["a", "a.log"]


def test_a_parent_folder_stands_for_the_runs_below_it(write_run, tmp_path: Path) -> None:
    write_run("runs/tiny/b-seed0")
    write_run("runs/tiny/a-seed0")
    write_run("runs/other/a-seed0")
    started = write_run("runs/tiny/a-seed1")
    (started / "metrics.jsonl").unlink()
    model = tmp_path / "runs" / "other" / "a-seed0" / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "runs" / ".hidden").mkdir()
    state = tmp_path / "runs" / "trl" / "checkpoint-2" / "trainer_state.json"
    state.parent.mkdir(parents=True)
    state.write_text(json.dumps({"log_history": [{"step": 2, "completions/mean_length": 1.0}]}))
    runs = read_runs([tmp_path / "runs"])
    assert [run.name for run in runs] == ["other/a-seed0", "tiny/a-seed0", "tiny/b-seed0", "runs/trl"]
    assert runs[0].notes == (f"4 runs found below {tmp_path / 'runs'}; left out, as they have no step yet: {started}.",)
    assert len(read_runs([tmp_path / "runs" / "other", tmp_path / "runs" / "trl"])) == 2
    with pytest.raises(UsageError, match="given twice"):
        read_runs([tmp_path / "runs", tmp_path / "runs" / "tiny" / "a-seed0"])
    with pytest.raises(UsageError, match=r"it has no config\.json"):
        read_runs([tmp_path / "runs" / ".hidden"])


def test_blank_lines_are_passed_over(write_run) -> None:
    folder = write_run("a")
    log = folder / "metrics.jsonl"
    log.write_text(log.read_text().replace("\n", "\n\n \n"))
    assert (read_run(folder).last_step, read_run(folder).notes) == (3, ())


def test_a_trl_log_is_translated(tmp_path: Path) -> None:
    for step, lengths in ((10, [50.0]), (20, [50.0, 40.0])):
        state = tmp_path / "trl" / f"checkpoint-{step}" / "trainer_state.json"
        state.parent.mkdir(parents=True)
        history = [
            {"step": 10 * (place + 1), "completions/mean_length": length, "clip_ratio/low_mean": 0.1, "reward": 1.0}
            for place, length in enumerate(lengths)
        ]
        state.write_text(json.dumps({"max_steps": 20, "log_history": [*history, {"step": step, "eval_loss": 1.0}]}))
    run = read_run(tmp_path / "trl")
    assert (run.source, run.objective, run.seed, run.finished) == ("trl", "trl", None, True)
    assert run.column("response_length/mean").to_dict() == {10: 50.0, 20: 40.0}
    assert run.column("objective/clip_low_fraction").loc[10] == 0.1


def test_a_verl_log_is_translated(tmp_path: Path) -> None:
    log = tmp_path / "gspo.jsonl"
    rows = [
        {"step": 0, "data": {"val-core/acc": 0.1}},
        {"step": 1, "data": {"response_length/mean": 900.0, "response_length/clip_ratio": 0.2, "actor/pg_loss": 0.0}},
        {"step": 2, "data": {"response_length/mean": 950.0, "response_length/clip_ratio": 0.1, "actor/pg_loss": 0.1}},
    ]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = read_run(log)
    assert (run.name, run.source, run.planned_steps, run.finished) == ("gspo", "verl", None, None)
    assert run.column("response_length/mean").to_dict() == {1: 900.0, 2: 950.0}
    assert run.column("response/truncated_fraction").loc[2] == 0.1


def test_a_peer_log_with_steps_out_of_order_or_without_lengths_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "trainer_state.json"
    state.write_text(json.dumps({"log_history": [{"step": s, "completions/mean_length": 1.0} for s in (2, 1)]}))
    with pytest.raises(UsageError, match="step 1 comes after step 2"):
        read_run(state)
    state.write_text(json.dumps({"log_history": [{"step": 1, "loss": 1.0}]}))
    with pytest.raises(
        UsageError, match=r"no response length: none of .*completions/mean_length.* \(step, loss\); rename"
    ):
        read_run(state)
    state.write_text(json.dumps({"log_history": []}))
    with pytest.raises(UsageError, match="has no step yet"):
        read_run(state)
    state.write_text("{}")
    with pytest.raises(UsageError, match="not a TRL trainer_state"):
        read_run(state)
