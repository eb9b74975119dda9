"""The judge over HTTP: protocol, retries, time limits, malformed replies; its verdicts beside the rule's."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from doubles.evaluation import ScriptedSampler, aime_folder, evaluation_of, never, scripted
from doubles.files import write_json_lines
from doubles.judge import user_text
from luspo_cli.app import app
from luspo_cli.errors import UsageError
from luspo_cli.evaluation import judge as judge_module
from luspo_cli.evaluation.judge import EXTRACT, LONGEST_RESPONSE, VERDICT, Judge, Question, Reply, read_reply
from luspo_cli.evaluation.runner import evaluate


def ask(judge: Judge, *responses: str) -> list[Reply]:
    heard: dict[int, Reply] = {}
    replies = judge.ask([Question("Q", response, "4") for response in responses], heard.__setitem__)
    assert [heard[index] for index in range(len(responses))] == replies
    return replies


@pytest.mark.parametrize(
    ("text", "task", "reply"),
    [
        ("Final answer: 42", "extract", Reply("42")),
        ("**Final answer:** \\frac{1}{2}", "extract", Reply(r"\frac{1}{2}")),
        ("final answer: 3\nno wait\nFinal Answer: 4 ", "extract", Reply("4")),
        ("<think>Final answer: 9</think>\nFinal answer: NONE", "extract", Reply(None)),
        ("Final answer: none.", "extract", Reply(None)),
        ("Final answer: 4\nVerdict: CORRECT", "verdict", Reply("4", True)),
        ("Final answer: 4\n**Verdict:** wrong", "verdict", Reply("4", False)),
        ("Final answer: NONE\nVerdict: WRONG", "verdict", Reply(None, False)),
    ],
)
def test_replies_are_read_by_their_last_marked_lines(text, task, reply) -> None:
    assert read_reply(text, task) == reply


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("42", "extract"),
        ("", "extract"),
        ("Final answer:", "extract"),
        ("The final answer: is 42, I think", "extract"),
        ("Final answer: the answer as the response writes it, or NONE", "extract"),  # a small model's echo
        ("Final answer: 4", "verdict"),
        ("Final answer: 4\nVerdict: INCORRECT", "verdict"),
        ("Verdict: CORRECT", "verdict"),
    ],
)
def test_a_reply_without_its_lines_is_an_error_and_no_guess(text, task) -> None:
    reply = read_reply(text, task)
    assert (reply.extracted, reply.correct) == (None, None)
    assert reply.error.startswith("malformed reply")


def test_marks_inside_inserted_texts_are_left_alone() -> None:
    messages = VERDICT.render("Q {gold}", "R {question} {x}", "G {response}")
    asked = messages[-1]["content"]
    assert all(text in asked for text in ("Q {gold}", "R {question} {x}", "G {response}"))


@pytest.mark.parametrize("prompt", [EXTRACT, VERDICT])
def test_the_shown_replies_are_replies_that_we_read(prompt) -> None:
    task = "extract" if prompt is EXTRACT else "verdict"
    messages = prompt.render("Q", "R", "G")
    assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * 3, "user"]
    replies = [read_reply(message["content"], task) for message in messages if message["role"] == "assistant"]
    assert [reply.extracted for reply in replies] == ["6.5", "A", None]
    assert [reply.correct for reply in replies] == ([None] * 3 if prompt is EXTRACT else [True, False, False])


def test_the_extractor_does_not_see_the_gold_answer() -> None:
    assert "SECRET" not in json.dumps(EXTRACT.render("Q", "R", "SECRET"))
    assert "SECRET" in json.dumps(VERDICT.render("Q", "R", "SECRET"))


def test_the_request_is_a_chat_completion_with_key_and_bounded_text(serve) -> None:
    server = serve(lambda body, number: "Final answer: 4")
    judge = Judge(server.url, "some-model", key="sesame")
    assert ask(judge, "x" * 50_000 + " so it is 4") == [Reply("4")]
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert (request["model"], request["temperature"], server.keys) == ("some-model", 0, ["Bearer sesame"])
    assert "so it is 4" in user_text(request)
    assert len(user_text(request)) < LONGEST_RESPONSE + 1_000


def test_replies_keep_their_order_and_empty_responses_are_not_sent(serve) -> None:
    def answer(body: dict[str, Any], number: int) -> str:
        said = user_text(body).partition("<response>\n")[2].partition("\n")[0]
        time.sleep(0.02 * (3 - int(said)))  # the first asked is the last to come back
        return f"Final answer: {said}"

    server = serve(answer)
    assert ask(Judge(server.url, "m"), "0", "1", " ", "2") == [Reply("0"), Reply("1"), Reply(None), Reply("2")]
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_tried_again(serve, status) -> None:
    busy = status, {"Retry-After": "0.01"}, b"busy"
    server = serve(lambda body, number: busy if number < 2 else "Final answer: 4")
    assert ask(Judge(server.url, "m"), "4") == [Reply("4")]
    assert len(server.requests) == 3


def test_attempts_are_bounded_and_the_error_is_kept(serve) -> None:
    server = serve(lambda body, number: (503, {}, b"over\nloaded"))
    assert ask(Judge(server.url, "m", attempts=3), "4") == [Reply(error="HTTP 503: over loaded")]
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_not_tried_again_and_the_key_is_not_shown(serve, status) -> None:
    server = serve(lambda body, number: (status, {}, b"bad key sesame"))
    assert ask(Judge(server.url, "m", key="sesame"), "4") == [Reply(error=f"HTTP {status}: bad key ***")]
    assert len(server.requests) == 1


def test_a_silent_server_costs_its_time_limit_and_no_more(serve) -> None:
    def answer(body: dict[str, Any], number: int) -> str:
        time.sleep(2)
        return "Final answer: 4"

    server = serve(answer)
    started = time.monotonic()
    assert ask(Judge(server.url, "m", timeout_s=0.2, attempts=2), "4") == [Reply(error="no reply in 0.2 s")]
    assert time.monotonic() - started < 1.5
    assert len(server.requests) == 2


def test_a_server_that_dribbles_is_cut_off(serve) -> None:
    class Dribble(bytes):
        pass

    server = serve(lambda body, number: (200, {"Content-Length": "1000"}, Dribble(b"{")))
    plain = server.http.RequestHandlerClass
    before = plain.do_POST

    def slowly(self: Any) -> None:
        before(self)
        for _ in range(40):
            time.sleep(0.05)
            try:
                self.wfile.write(b" ")
                self.wfile.flush()
            except OSError:
                return

    plain.do_POST = slowly
    started = time.monotonic()
    (reply,) = ask(Judge(server.url, "m", timeout_s=0.3, attempts=1), "4")
    assert reply == Reply(error="no reply in 0.3 s")
    assert time.monotonic() - started < 1.5


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"<html>", "no chat completion"),
        (b'{"choices": []}', "no chat completion"),
        (b'{"choices": [{"message": {"content": null}}]}', "holds no text"),
        (b"[" * 100_000, "no chat completion"),
        (b" " * (judge_module.LONGEST_BODY + 1), "more than"),
    ],
)
def test_a_reply_that_is_no_chat_completion_is_an_error(serve, raw, said) -> None:
    server = serve(lambda body, number: (200, {}, raw))
    (reply,) = ask(Judge(server.url, "m", attempts=2), "4")
    assert said in reply.error


def test_a_reply_that_is_cut_short_is_an_error(serve) -> None:
    server = serve(lambda body, number: (200, {"Content-Length": "500", "Connection": "close"}, b"{}"))
    (reply,) = ask(Judge(server.url, "m", attempts=1, timeout_s=1), "4")
    assert reply.error is not None


def test_a_dead_endpoint_is_not_asked_for_ever(serve) -> None:
    server = serve(lambda body, number: (500, {}, b"dead"))
    replies = ask(Judge(server.url, "m", attempts=1, workers=4), *[f"response {n}" for n in range(200)])
    assert all(reply.error for reply in replies)
    assert sum(reply.error == "HTTP 500: dead" for reply in replies) == len(server.requests) < 30
    assert replies[-1].error.startswith("not asked")


def test_unreadable_replies_do_not_stop_the_others(serve) -> None:
    server = serve(lambda body, number: "I would rather not." if number < 40 else "Final answer: 4")
    replies = ask(Judge(server.url, "m", workers=1), *[f"response {n}" for n in range(50)])
    assert [reply.error is None for reply in replies] == [False] * 40 + [True] * 10


def test_an_endpoint_that_is_not_there_is_found_before_anything_is_drawn(serve) -> None:
    server = serve(lambda body, number: (404, {}, b"no such model"))
    with pytest.raises(UsageError, match=r"'m' at .* does not answer \(HTTP 404: no such model\)"):
        Judge(server.url, "m").check()
    with pytest.raises(UsageError, match="no connection"):
        Judge("http://127.0.0.1:9/v1", "m").check()


def reading(body: dict[str, Any], number: int) -> str:
    """A judge by rule: the number after `####`, but 3 for problem 2; unreadable for boxes in problem 4."""
    text = user_text(body)
    if "What is 4?" in text and "boxed{2}" in text:
        return "hm"
    return "Final answer: 3" if "What is 2?" in text else "Final answer: 2"


def test_verdicts_stand_beside_the_rules_and_failures_are_counted(serve, tmp_path, caplog) -> None:
    server = serve(reading)
    evaluation = evaluation_of(tmp_path, tmp_path / "out")
    finished = evaluate(evaluation, scripted(ScriptedSampler()), judge=Judge(server.url, "m"))
    said = caplog.messages
    rows = pyarrow.parquet.read_table(evaluation.samples_file).to_pylist()
    # The rule: all responses say 2, problem 2 is right. The judge reads 3 there, and 2 elsewhere: none is right.
    assert [row["correct"] for row in rows] == [row["id"] == "2" for row in rows]
    assert [row["judge_extracted"] for row in rows] == ["2", "2", "2", "2", "3", "3", "2", "2", "2", None]
    assert [row["judge_correct"] for row in rows] == [False] * 9 + [None]
    assert [row["judge_error"] for row in rows] == [None] * 9 + ["malformed reply: 'hm'"]
    summary = finished.content["metrics"]["judge"]
    assert (summary["asked"], summary["failed"], summary["samples"]) == (10, 1, 10)
    assert (summary["accuracy"], summary["correct"]) == (0.0, 0)
    assert summary["agreement"] == pytest.approx(7 / 9)  # the two right samples of problem 2 are judged wrong
    assert (summary["prompt"], summary["prompt_version"]) == ("luspo-extract", 1)
    assert finished.content["metrics"]["accuracy"] == pytest.approx(0.2)
    assert any("judge failed on 1 of 10 samples" in line for line in said)
    assert finished.content["problems"][4]["samples"][1]["judge_error"] == "malformed reply: 'hm'"


def test_a_judge_comes_later_without_the_model_and_failures_alone_are_asked_again(serve, tmp_path) -> None:
    evaluation = evaluation_of(tmp_path, tmp_path / "out")
    evaluate(evaluation, scripted(ScriptedSampler()))
    first, second = serve(reading), serve(lambda body, number: "Final answer: 4")
    evaluate(evaluation, never, judge=Judge(first.url, "m"))
    assert len(first.requests) == 10
    finished = evaluate(evaluation, never, judge=Judge(second.url, "m"))
    assert len(second.requests) == 1  # the one that failed
    assert finished.content["metrics"]["judge"]["failed"] == 0
    assert finished.content["metrics"]["judge"]["correct"] == 1
    assert evaluate(evaluation, never).content["metrics"]["judge"]["failed"] == 0  # kept where no judge is named


def test_a_kill_while_judging_does_not_ask_twice(serve, tmp_path) -> None:
    def dying(body: dict[str, Any], number: int) -> str:
        return "Final answer: 2"

    server = serve(dying)
    evaluation = evaluation_of(tmp_path, tmp_path / "out")

    class Killed(Judge):
        def ask(self, questions: Any, on_reply: Any) -> Any:
            super().ask(questions[:6], on_reply)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(evaluation, scripted(ScriptedSampler()), judge=Killed(server.url, "m", workers=1))
    log = tmp_path / "out/.partial/FIVE/judge.jsonl"
    log.write_bytes(log.read_bytes() + b'\n{"judge": "torn')
    evaluate(evaluation, scripted(ScriptedSampler()), judge=Judge(server.url, "m"))
    assert len(server.requests) == 10


def test_the_verdict_task_takes_the_judges_word(serve, tmp_path) -> None:
    server = serve(lambda body, number: "Final answer: two\nVerdict: CORRECT")
    evaluation = evaluation_of(tmp_path, tmp_path / "out")
    finished = evaluate(evaluation, scripted(ScriptedSampler()), judge=Judge(server.url, "m", task="verdict"))
    summary = finished.content["metrics"]["judge"]
    assert (summary["accuracy"], summary["correct"], summary["agreement"]) == (1.0, 10, pytest.approx(0.2))
    assert "<reference>" in user_text(server.requests[0])


def test_responses_from_elsewhere_with_a_judge(serve, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("A_KEY", "sesame")
    server = serve(lambda body, number: "Final answer: 1")
    data = aime_folder(tmp_path / "aime24")
    # Problem 60 is 0 and 61 is 1; equal responses to one problem are asked once.
    lines = [{"id": 60, "responses": ["it is 1", "it is 1"]}, {"id": 61, "responses": ["it is 1", ""]}]
    responses = write_json_lines(tmp_path / "responses.jsonl", lines)
    out = tmp_path / "scores.json"
    words = ["--benchmark", "aime24", "--responses", responses, "--data", data, "--out", out]
    words += ["--judge-url", server.url, "--judge-model", "m", "--judge-key-env", "A_KEY"]
    result = CliRunner().invoke(app, ["eval", *map(str, words)])
    assert result.exit_code == 0, result.output
    assert len(server.requests) == 3  # the check before, and two distinct responses
    assert set(server.keys) == {"Bearer sesame"}
    content = json.loads(out.read_text())
    by_id = {problem["id"]: problem["samples"] for problem in content["problems"]}
    assert [sample["judge_correct"] for sample in by_id["60"]] == [False, False]
    assert [sample["judge_correct"] for sample in by_id["61"]] == [True, False]
    missing = {"extracted": None, "correct": False, "reason": "missing", "read_from": "none", "decided_by": "nobody"}
    assert by_id["62"] == [missing]
    assert content["metrics"]["judge"]["accuracy"] == pytest.approx(0.5 / 30)
    assert "sesame" not in out.read_text()
    assert Path(out).stat().st_size > 0
