"""A judge that fails: its failures are counted and shown, and are no verdicts; what it said once is not asked again."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from doubles.evaluation import ScriptedSampler, aime_folder, evaluation_of, never, scripted
from doubles.files import write_json_lines
from doubles.judge import user_text
from luspo_cli.app import app
from luspo_cli.config.eval import resolve_eval
from luspo_cli.errors import UsageError
from luspo_cli.evaluation.judge import Judge, make_judge
from luspo_cli.evaluation.runner import evaluate


def right_judge(body, number):
    """Reads what `What is N?` asks for, so the judge finds every response right."""
    return "Final answer: " + user_text(body).partition("What is ")[2].partition("?")[0]


def test_failures_are_left_out_of_the_accuracy_and_bound_it(serve, tmp_path) -> None:
    # Of the five problems with two samples, the judge fails on both of problem 0 and on one of problem 1.
    def answer(body, number):
        text = user_text(body)
        if "What is 0?" in text or ("What is 1?" in text and "boxed" in text):
            return 500, {}, b"broken"
        return right_judge(body, number) if "What is 4?" not in text else "Final answer: 7"

    server = serve(answer)
    evaluation = evaluation_of(tmp_path, tmp_path / "out")
    finished = evaluate(evaluation, scripted(ScriptedSampler()), judge=Judge(server.url, "m", attempts=1))
    summary = finished.content["metrics"]["judge"]
    # Shares of what was judged: problem 1: 1, 2: 1, 3: 1, 4: 0; problem 0 has none.
    assert summary["accuracy"] == pytest.approx(3 / 4)
    # All failures wrong: 0, 1/2, 1, 1, 0. All right: 1, 1, 1, 1, 0.
    assert summary["accuracy_bounds"] == pytest.approx([2.5 / 5, 4 / 5])
    counts = ("samples", "judged", "failed", "correct", "problems_not_judged")
    assert [summary[name] for name in counts] == [10, 7, 3, 5, 1]
    # The rule has problem 2 right alone, so the judge agrees on it and on problem 4.
    assert summary["agreement"] == pytest.approx(4 / 7)


def test_a_judge_that_never_answers_has_no_accuracy(serve, tmp_path, capsys) -> None:
    from luspo_cli.commands.eval import show_results

    server = serve(lambda body, number: "I would rather not say.")
    evaluation = evaluation_of(tmp_path, tmp_path / "out")
    finished = evaluate(evaluation, scripted(ScriptedSampler()), judge=Judge(server.url, "m"))
    summary = finished.content["metrics"]["judge"]
    assert (summary["accuracy"], summary["accuracy_interval_95"], summary["agreement"]) == (None, None, None)
    assert summary["accuracy_bounds"] == [0.0, 1.0]
    assert finished.content["metrics"]["accuracy"] == pytest.approx(0.2)  # the rule's own, untouched
    show_results([finished], as_json=False)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("FIVE"))
    assert line.split()[-2:] == ["–", "10"]  # judge %, judge failed


def test_a_kill_while_a_finished_result_is_judged_does_not_ask_twice(serve, tmp_path) -> None:
    server = serve(right_judge)
    evaluation = evaluation_of(tmp_path, tmp_path / "out")
    evaluate(evaluation, scripted(ScriptedSampler()))

    class Killed(Judge):
        def ask(self, questions, on_reply):
            super().ask(questions[:6], on_reply)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(evaluation, never, judge=Killed(server.url, "m"))
    assert "judge" not in json.loads(evaluation.json_file.read_text())
    finished = evaluate(evaluation, never, judge=Judge(server.url, "m"))
    assert len(server.requests) == 10
    assert finished.content["metrics"]["judge"]["accuracy"] == 1.0
    assert not (tmp_path / "out/.partial").exists()


def test_a_responses_file_is_judged_once_and_failures_alone_are_asked_again(serve, tmp_path) -> None:
    broken = [True]

    def answer(body, number):
        text = user_text(body)
        if broken[0] and "What is 3?" in text:
            return "hm"
        return "Final answer: 1"

    server = serve(answer)
    data = aime_folder(tmp_path / "aime24")
    responses = write_json_lines(tmp_path / "r.jsonl", [{"id": 60 + n, "response": f"it is {n}"} for n in range(5)])
    out = tmp_path / "scores.json"
    words = ["--benchmark", "aime24", "--responses", responses, "--data", data, "--out", out]
    words += ["--judge-url", server.url, "--judge-model", "m", "--judge-workers", "1", "--judge-timeout", "5"]
    first = CliRunner().invoke(app, ["eval", *map(str, words)])
    assert first.exit_code == 0, first.output
    assert "judge failed on 1 of 5 samples" in first.output
    broken[0] = False
    before = len(server.requests)
    assert before == 6  # the check, and five responses
    second = CliRunner().invoke(app, ["eval", *map(str, words)])
    assert second.exit_code == 0, second.output
    assert len(server.requests) == before + 2  # the check, and the one that failed
    judged = json.loads(out.read_text())["metrics"]["judge"]
    # Problem 61 is 1; the 25 problems without a response are wrong.
    assert (judged["failed"], judged["correct"], judged["accuracy"]) == (0, 1, pytest.approx(1 / 30))


def test_another_judge_is_asked_everything(serve, tmp_path) -> None:
    server = serve(right_judge)
    evaluation = evaluation_of(tmp_path, tmp_path / "out")
    evaluate(evaluation, scripted(ScriptedSampler()), judge=Judge(server.url, "m"))
    evaluate(evaluation, never, judge=Judge(server.url, "another"))
    assert [request["model"] for request in server.requests] == ["m"] * 10 + ["another"] * 10


def test_time_limit_and_requests_in_flight_are_set_on_the_command_line() -> None:
    named = {"judge_url": "http://localhost:1/v1", "judge_model": "m"}
    judge = make_judge(resolve_eval(named | {"judge_timeout": 2.5, "judge_workers": 3}).judge)
    assert (judge.timeout_s, judge.workers) == (2.5, 3)
    usual = make_judge(resolve_eval(named).judge)
    assert (usual.timeout_s, usual.workers) == (60.0, 8)
    for seconds in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(UsageError, match=r"--judge-timeout: judge.timeout_s = .*(greater than 0|finite)"):
            resolve_eval(named | {"judge_timeout": seconds})
    with pytest.raises(UsageError, match="--judge-workers goes with --judge-url"):
        resolve_eval({"judge_workers": 4})


def test_no_more_requests_are_in_flight_than_asked_for(serve) -> None:
    import threading
    import time

    now, most, lock = [0], [0], threading.Lock()

    def answer(body, number):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.03)
        with lock:
            now[0] -= 1
        return "Final answer: 4"

    from luspo_cli.evaluation.judge import Question

    server = serve(answer)
    judge = Judge(server.url, "m", workers=3)
    judge.ask([Question("Q", f"response {n}", "4") for n in range(12)], lambda index, reply: None)
    assert most[0] == 3
