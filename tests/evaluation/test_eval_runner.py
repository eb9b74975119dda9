"""Drawing in chunks, going on after a kill, refusing what does not belong together, scoring again without the model."""

from __future__ import annotations

import fcntl
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from doubles.evaluation import ScriptedSampler, evaluation_of, never, scripted
from luspo_cli.config.eval import EvalRun
from luspo_cli.errors import RunError, UsageError
from luspo_cli.evaluation.runner import Evaluation, check, chunk_seed, evaluate
from luspo_cli.evaluation.samples import PartialSamples, read_samples


def rows_of(evaluation: Evaluation) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(evaluation.samples_file).to_pylist()


def chunks_in(out: Path) -> list[str]:
    return sorted(file.name for file in out.glob(".partial/FIVE/chunk-*.parquet"))


def killed_after(tmp_path: Path, out: Path, calls: int) -> Evaluation:
    evaluation = evaluation_of(tmp_path, out)
    with pytest.raises(KeyboardInterrupt):
        evaluate(evaluation, scripted(ScriptedSampler(dies_at=calls)))
    return evaluation


def test_every_sample_is_stored_and_the_metrics_follow_from_them(tmp_path) -> None:
    evaluation = evaluation_of(tmp_path, tmp_path / "out")
    sampler = ScriptedSampler()
    finished = evaluate(evaluation, scripted(sampler))
    assert [ids for ids, _ in sampler.calls] == [["0", "1"], ["2", "3"], ["4"]]
    assert [seed for _, seed in sampler.calls] == [chunk_seed(0, "FIVE", start) for start in (0, 2, 4)]
    rows = rows_of(evaluation)
    assert [(row["id"], row["sample"]) for row in rows] == [(str(n), s) for n in range(5) for s in (0, 1)]
    assert {row["prompt_variant"] for row in rows} == {"verl"}
    assert {row["seed"] for row in rows} == {0}
    # Every response says 2, so problem "2" alone is right, with both of its samples.
    assert [row["correct"] for row in rows] == [row["id"] == "2" for row in rows]
    assert {row["extracted"] for row in rows} == {"2"}
    assert {(row["reason"], row["correct"]) for row in rows} == {("exact", True), ("different", False)}
    content = json.loads(evaluation.json_file.read_text())
    metrics = content["metrics"]
    assert metrics["avg@2"] == metrics["pass@2"] == metrics["maj@2"] == pytest.approx(1 / 5)
    assert (metrics["correct"], metrics["samples"]) == (2, 10)
    lengths = [row["response_length"] for row in rows]
    assert metrics["response_length/mean"] == pytest.approx(statistics.fmean(lengths))
    assert metrics["response_length/max"] == max(lengths)
    assert metrics["response_length/correct"] == pytest.approx(statistics.fmean(lengths[4:6]))
    assert metrics["response_length/incorrect"] == pytest.approx(statistics.fmean(lengths[:4] + lengths[6:]))
    cut = [row["stop_reason"] == "length" for row in rows]
    assert any(cut)
    assert metrics["truncated_fraction"] == pytest.approx(statistics.fmean(cut))
    assert content["sampling"]["samples"] == 2
    assert json.loads(json.dumps(finished.content)) == content
    assert (finished.drawn, finished.found) == (10, 0)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["FIVE.json", "FIVE.parquet"]


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_going_on_draws_only_the_missing_chunks_and_gives_the_same_bytes(tmp_path, calls) -> None:
    whole = evaluation_of(tmp_path, tmp_path / "whole")
    evaluate(whole, scripted(ScriptedSampler()))
    evaluation = killed_after(tmp_path, tmp_path / "out", calls)
    assert not evaluation.json_file.exists()
    assert len(chunks_in(tmp_path / "out")) == calls
    sampler = ScriptedSampler()
    finished = evaluate(evaluation, scripted(sampler))
    assert [ids for ids, _ in sampler.calls] == [["0", "1"], ["2", "3"], ["4"]][calls:]
    assert (finished.drawn, finished.found) == (10 - 4 * calls, 4 * calls)
    assert evaluation.samples_file.read_bytes() == whole.samples_file.read_bytes()
    assert evaluation.json_file.read_bytes() == whole.json_file.read_bytes()
    assert not (tmp_path / "out" / ".partial").exists()


def test_where_answers_were_read_is_stored_and_counted(tmp_path) -> None:
    evaluation = evaluation_of(tmp_path, tmp_path / "out")
    metrics = evaluate(evaluation, scripted(ScriptedSampler())).content["metrics"]
    # The prompt `verl` asks for `####`, which every first sample has; every second one has a box.
    assert [row["read_from"] for row in rows_of(evaluation)] == ["own_mark", "box"] * 5
    assert metrics["read_from"] == {"own_mark": 5, "box": 5}
    assert metrics["decided_by"] == {"comparison": 10}


def test_what_an_older_grader_scored_is_scored_anew_without_the_model(tmp_path) -> None:
    evaluation = evaluation_of(tmp_path, tmp_path / "out")
    evaluate(evaluation, scripted(ScriptedSampler()))
    content = json.loads(evaluation.json_file.read_text())
    whole = evaluation.json_file.read_bytes()
    del content["grader_version"]
    evaluation.json_file.write_text(json.dumps({**content, "metrics": {**content["metrics"], "accuracy": 0.9}}))
    assert evaluate(evaluation, never).content["metrics"]["accuracy"] == pytest.approx(1 / 5)
    assert evaluation.json_file.read_bytes() == whole


def test_an_opened_thought_is_no_answer_when_scored_anew_either(tmp_path) -> None:
    class Thinking(ScriptedSampler):
        @staticmethod
        def _rollout(prompt, options, row, number):
            return replace(ScriptedSampler._rollout(prompt, options, row, number), thought_open=number == 1)

    evaluation = evaluation_of(tmp_path, tmp_path / "out")
    for mode, load in (("rule", scripted(Thinking())), ("official", never), ("rule", never)):
        found = evaluate(evaluation_of(tmp_path, tmp_path / "out", mode=mode), load)
    assert (found.drawn, found.found) == (0, 10)
    assert [row["extracted"] for row in rows_of(evaluation)] == ["2", None] * 5


def test_whether_a_thought_was_open_is_stored_with_each_sample(tmp_path) -> None:
    class Thinking(ScriptedSampler):
        @staticmethod
        def _rollout(prompt, options, row, number):
            return replace(ScriptedSampler._rollout(prompt, options, row, number), thought_open=number == 1)

    evaluation = evaluation_of(tmp_path, tmp_path / "out")
    evaluate(evaluation, scripted(Thinking()))
    assert [row["thought_open"] for row in rows_of(evaluation)] == [False, True] * 5
    assert [sample.thought_open for sample in read_samples(evaluation.samples_file)] == [False, True] * 5


def test_samples_of_a_version_without_a_column_have_its_default(tmp_path) -> None:
    evaluation = evaluation_of(tmp_path, tmp_path / "out")
    evaluate(evaluation, scripted(ScriptedSampler()))
    table = pyarrow.parquet.read_table(evaluation.samples_file)
    pyarrow.parquet.write_table(table.drop_columns(["thought_open"]), evaluation.samples_file)
    finished = evaluate(evaluation_of(tmp_path, tmp_path / "out", mode="official"), never)
    assert (finished.drawn, finished.found) == (0, 10)
    assert [row["thought_open"] for row in rows_of(evaluation)] == [False] * 10


def test_the_result_holds_its_configuration_resolved_and_without_its_place(tmp_path) -> None:
    evaluation = evaluation_of(tmp_path, tmp_path / "out", seed=3)
    finished = evaluate(evaluation, scripted(ScriptedSampler()))
    stored = json.loads(evaluation.json_file.read_text())["config"]
    assert stored == finished.content["config"]
    assert (stored["sampling"]["seed"], stored["benchmark"]["prompt"]) == (3, "verl")
    assert "output" not in stored
    assert EvalRun.model_validate_json(json.dumps(stored)).sampling == evaluation.config.sampling


def test_chat_template_arguments_belong_to_the_samples(tmp_path) -> None:
    evaluation = evaluation_of(tmp_path, tmp_path / "out")
    evaluate(evaluation, scripted(ScriptedSampler()))
    assert (
        "chat_template" not in evaluation.identity()
    )  # results from before the key are of templates without arguments
    other = evaluation_of(tmp_path, tmp_path / "out", chat_template={"enable_thinking": False})
    with pytest.raises(UsageError, match="other settings: chat_template"):
        evaluate(other, never)


def test_another_seed_draws_other_samples(tmp_path) -> None:
    drawn = []
    for seed in (0, 1):
        evaluation = evaluation_of(tmp_path, tmp_path / str(seed), seed=seed)
        evaluate(evaluation, scripted(ScriptedSampler()))
        drawn.append([row["response"] for row in rows_of(evaluation)])
    assert drawn[0] != drawn[1]


def test_a_limit_draws_the_same_first_problems_and_says_so(tmp_path) -> None:
    whole, part = evaluation_of(tmp_path, tmp_path / "whole"), evaluation_of(tmp_path, tmp_path / "part", limit=4)
    for evaluation in (whole, part):
        evaluate(evaluation, scripted(ScriptedSampler()))
    assert [row["response"] for row in rows_of(part)] == [row["response"] for row in rows_of(whole)][:8]
    content = json.loads(part.json_file.read_text())
    assert (content["n_problems"], content["benchmark_size"], content["sampling"]["limit"]) == (4, 5, 4)


@pytest.mark.parametrize("spoil", [lambda file: file.write_bytes(b"PAR1 torn"), lambda file: file.unlink()])
def test_a_damaged_or_missing_chunk_is_drawn_again(tmp_path, spoil) -> None:
    evaluation = killed_after(tmp_path, tmp_path / "out", 2)
    spoil(tmp_path / "out/.partial/FIVE/chunk-00000.parquet")
    (tmp_path / "out/.partial/FIVE/.chunk-00004.parquet.partial").write_bytes(b"half")
    sampler = ScriptedSampler()
    evaluate(evaluation, scripted(sampler))
    assert [ids for ids, _ in sampler.calls] == [["0", "1"], ["4"]]
    assert len(rows_of(evaluation)) == 10


@pytest.mark.parametrize("other", [{"temperature": 0.5}, {"max_rows": 6}, {"seed": 3}])
def test_chunks_of_other_settings_are_refused_and_kept(tmp_path, other) -> None:
    killed_after(tmp_path, tmp_path / "out", 2)
    evaluation = evaluation_of(tmp_path, tmp_path / "out", **other)
    (key,) = other
    with pytest.raises(UsageError, match=rf"other settings: {key} .*--replace"):
        evaluate(evaluation, never)
    assert len(chunks_in(tmp_path / "out")) == 2


def test_other_weights_under_the_same_name_are_refused_and_another_name_is_not(tmp_path) -> None:
    evaluation = killed_after(tmp_path, tmp_path / "out", 1)
    with pytest.raises(UsageError, match="weights"):
        check(replace(evaluation, weights="other"), replace_other=False)
    assert check(replace(evaluation, model="./the/model"), replace_other=False) is False


def test_a_finished_result_is_not_drawn_again(tmp_path) -> None:
    evaluation = evaluation_of(tmp_path, tmp_path / "out")
    evaluate(evaluation, scripted(ScriptedSampler()))
    before = evaluation.json_file.read_bytes()
    finished = evaluate(evaluation, never, replace_other=True)
    assert (finished.drawn, finished.found) == (0, 10)
    assert evaluation.json_file.read_bytes() == before
    with pytest.raises(UsageError, match=r"samples \(2 there, 4 now\)"):
        evaluate(evaluation_of(tmp_path, tmp_path / "out", samples=4), never)


def test_replace_draws_anew_and_goes_on_with_its_own_chunks(tmp_path) -> None:
    evaluate(evaluation_of(tmp_path, tmp_path / "out"), scripted(ScriptedSampler()))
    other = evaluation_of(tmp_path, tmp_path / "out", samples=4)
    with pytest.raises(KeyboardInterrupt):
        evaluate(other, scripted(ScriptedSampler(dies_at=3)), replace_other=True)
    assert json.loads(other.json_file.read_text())["n_samples"] == 2  # the old result stands until the new one is whole
    finished = evaluate(other, scripted(ScriptedSampler()), replace_other=True)
    assert (finished.drawn, finished.found) == (8, 12)
    assert json.loads(other.json_file.read_text())["n_samples"] == 4


def test_another_mode_scores_the_same_samples_without_the_model(tmp_path) -> None:
    evaluation = evaluation_of(tmp_path, tmp_path / "out")
    evaluate(evaluation, scripted(ScriptedSampler()))
    samples = [row["response"] for row in rows_of(evaluation)]
    finished = evaluate(evaluation_of(tmp_path, tmp_path / "out", mode="official"), never)
    # The official rule reads `#### 2` and no box: the second sample of problem 2 has no answer.
    assert [row["correct"] for row in rows_of(evaluation)[4:6]] == [True, False]
    assert finished.content["metrics"]["no_answer_fraction"] == 0.5
    assert [row["response"] for row in rows_of(evaluation)] == samples


def test_a_sample_file_that_does_not_fit_its_result_is_refused(tmp_path) -> None:
    evaluation = evaluation_of(tmp_path, tmp_path / "out")
    evaluate(evaluation, scripted(ScriptedSampler()))
    evaluation.samples_file.write_bytes(b"nothing")
    with pytest.raises(RunError, match="remove both files"):
        evaluate(evaluation, never)


def test_a_kill_between_the_two_result_files_is_mended(tmp_path) -> None:
    evaluation = killed_after(tmp_path, tmp_path / "out", 2)
    evaluation.samples_file.write_bytes(b"of an earlier try")
    finished = evaluate(evaluation, scripted(ScriptedSampler()))
    assert finished.found == 8
    assert len(rows_of(evaluation)) == 10


def test_two_processes_do_not_draw_into_one_folder(tmp_path) -> None:
    evaluation = killed_after(tmp_path, tmp_path / "out", 1)
    with (tmp_path / "out/.partial/FIVE.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="Another process"):
            evaluate(evaluation, scripted(ScriptedSampler()))
    evaluate(evaluation, scripted(ScriptedSampler()))


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_written(tmp_path) -> None:
    evaluation = evaluation_of(tmp_path, tmp_path / "out")
    longest = max(len(problem.question) for problem in evaluation.problems)
    prompt = evaluation.benchmark.prompt(evaluation.problems[0], "verl")
    tokens = sum(len(turn.content) for turn in prompt)
    assert longest == len(evaluation.problems[0].question)  # all prompts are equally long
    with pytest.raises(UsageError, match=rf"has {tokens} tokens .* lower --max-response-tokens to 7 or less"):
        evaluate(evaluation, scripted(ScriptedSampler(), context=tokens + 7))
    assert not (tmp_path / "out").exists()
    evaluate(evaluation, scripted(ScriptedSampler(), context=tokens + 8))


def test_chunks_with_wrong_rows_are_not_taken(tmp_path) -> None:
    killed_after(tmp_path, tmp_path / "out", 1)
    partial = PartialSamples(tmp_path / "out", "FIVE")
    assert len(partial.get(0, ["0", "1"], 2) or ()) == 4
    assert partial.get(0, ["0", "2"], 2) is None
    assert partial.get(0, ["0", "1"], 1) is None
    assert partial.get(2, ["2", "3"], 2) is None
