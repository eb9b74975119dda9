"""The judge against a real server process, `transformers serve`: real HTTP, a real chat template, real generation.

The models are made here (tests/doubles/models.py): one whose weights always give the same reply, and an untrained one, whose
replies nobody can read. LUSPO_JUDGE_MODEL names the folder of an instruction-tuned model for the last test.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pyarrow.parquet
import pytest

from doubles.evaluation import ScriptedSampler, evaluation_of, never, scripted
from doubles.models import byte_model, stamping_model
from luspo_cli.errors import UsageError
from luspo_cli.evaluation.judge import Judge, Question, Reply
from luspo_cli.evaluation.runner import evaluate

pytestmark = pytest.mark.slow

STARTS_WITHIN_S = 300.0
SERVING = ("fastapi", "uvicorn", "openai")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The API's base and the process; models are loaded as requests name their folders."""
    absent = [name for name in SERVING if importlib.util.find_spec(name) is None]
    if absent:
        pytest.skip(f'{", ".join(absent)} absent; pip install "transformers[serving]" into this environment')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "auto"]
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)
    try:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not alive(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, f"no answer within {STARTS_WITHIN_S:.0f} s: {log.read_text()[-2000:]}"
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=60)


def alive(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_a_served_models_extraction_stands_beside_the_rules_verdict(server, tmp_path) -> None:
    url, _ = server
    judge = Judge(url, str(stamping_model(tmp_path / "stamp", "Final answer: 4")))
    judge.check()
    evaluation = evaluation_of(tmp_path, tmp_path / "out")
    finished = evaluate(evaluation, scripted(ScriptedSampler()), judge=judge)
    rows = pyarrow.parquet.read_table(evaluation.samples_file).to_pylist()
    assert [row["judge_extracted"] for row in rows] == ["4"] * 10
    assert [row["judge_correct"] for row in rows] == [row["id"] == "4" for row in rows]
    assert [row["correct"] for row in rows] == [row["id"] == "2" for row in rows]
    summary = finished.content["metrics"]["judge"]
    assert (summary["asked"], summary["judged"], summary["failed"]) == (10, 10, 0)
    assert (summary["accuracy"], summary["agreement"]) == (pytest.approx(0.2), pytest.approx(0.6))


def test_a_served_models_verdict_is_taken(server, tmp_path) -> None:
    url, _ = server
    stamp = stamping_model(tmp_path / "stamp", "Final answer: 4\nVerdict: CORRECT")
    heard: list[Reply] = []
    judge = Judge(url, str(stamp), task="verdict")
    judge.ask([Question("What is 5?", "it is 4", "5")], lambda index, reply: heard.append(reply))
    assert heard == [Reply("4", True)]


def test_an_untrained_models_replies_are_failures_and_no_data(server, tmp_path, caplog) -> None:
    url, _ = server
    judge = Judge(url, str(byte_model(tmp_path / "random")), max_tokens=40)
    evaluation = evaluation_of(tmp_path, tmp_path / "out")
    finished = evaluate(evaluation, scripted(ScriptedSampler()), judge=judge)
    said = caplog.messages
    summary = finished.content["metrics"]["judge"]
    assert (summary["judged"], summary["failed"], summary["accuracy"]) == (0, 10, None)
    assert any("judge failed on 10 of 10 samples" in line and "malformed reply" in line for line in said)
    assert finished.content["metrics"]["accuracy"] == pytest.approx(0.2)


def test_a_model_that_the_server_does_not_have_is_found_before_anything_is_drawn(server, tmp_path) -> None:
    url, _ = server
    with pytest.raises(UsageError, match="does not answer"):
        Judge(url, str(tmp_path / "nowhere"), attempts=1).check()


def test_a_real_model_reads_plain_answers_as_the_rule_does(server, tmp_path) -> None:
    folder = os.environ.get("LUSPO_JUDGE_MODEL")
    if not folder:
        pytest.skip("LUSPO_JUDGE_MODEL does not name the folder of an instruction-tuned model")
    url, _ = server
    responses = ["2 + 2 = 4, so the answer is 4.", r"We get \boxed{12}.", "It is 7 per box, so 3 boxes hold #### 21"]
    questions = [
        Question("What is 2 + 2?", responses[0], "4"),
        Question("What is 3 times 4?", responses[1], "12"),
        Question("A box holds 7 eggs. How many do three boxes hold?", responses[2], "21"),
    ]
    replies = Judge(url, folder, workers=1, timeout_s=240.0, attempts=1, max_tokens=64).ask(
        questions, lambda index, reply: None
    )
    assert [(reply.error, reply.extracted) for reply in replies] == [(None, "4"), (None, "12"), (None, "21")]


def test_verdicts_outlive_the_server_and_its_absence_is_counted(server, tmp_path) -> None:
    """The last test of the module: it kills the server."""
    url, process = server
    name = str(stamping_model(tmp_path / "stamp", "Final answer: 4"))

    class Killed(Judge):
        def ask(self, questions, on_reply):
            super().ask(questions[:6], on_reply)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=60)
            raise KeyboardInterrupt

    evaluation = evaluation_of(tmp_path, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        evaluate(evaluation, scripted(ScriptedSampler()), judge=Killed(url, name))
    finished = evaluate(evaluation, scripted(ScriptedSampler()), judge=Judge(url, name, attempts=1))
    summary = finished.content["metrics"]["judge"]
    assert (summary["judged"], summary["failed"]) == (6, 4)
    rows = pyarrow.parquet.read_table(evaluation.samples_file).to_pylist()
    assert [row["judge_extracted"] for row in rows] == ["4"] * 6 + [None] * 4
    assert all("no connection" in row["judge_error"] for row in rows[6:])
    again = evaluate(evaluation, never, judge=Judge(url, name, attempts=1))
    assert again.content["metrics"]["judge"]["judged"] == 6
    with pytest.raises(UsageError, match="no connection"):
        Judge(url, name).check()
