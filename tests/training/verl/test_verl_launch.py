"""The launcher around a stand-in for verl: the run folder that grows, failures, Ctrl-C, and no process left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from doubles.verl import stand_in
from luspo_cli.config.data import DataConfig
from luspo_cli.processes.contained import descendants
from luspo_cli.records import Message, Problem
from luspo_cli.training.verl.data import write_problems
from luspo_cli.training.verl.watch import last_error

SMALL = """
[model]
path = "made-up/model"
compute_dtype = "bfloat16"
[data]
train = "data"
max_prompt_tokens = 8
[rollout]
problems = 2
group_size = 2
max_response_tokens = 8
[update]
mini_batches = 1
[run]
engine = "verl"
steps = 3
rollouts_every = 2
[verl]
gpus_per_node = 1
"""
LIMIT_S = 120


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with problems and a configuration."""
    (tmp_path / "data").mkdir()
    problems = [
        Problem(f"made/{one}", (Message("user", f"Question {one}?"),), {"a": "5", "b": "7"}[one], "made")
        for one in "ab"
    ]
    write_problems(tmp_path / "data" / "train.parquet", problems, "train", DataConfig())
    (tmp_path / "small.toml").write_text(SMALL)
    return tmp_path


def luspo(place: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "luspo_cli",
        "train",
        "--run",
        "run",
        "--verl-python",
        str(place / "verl" / "python"),
    ]
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, *more], cwd=place, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=LIMIT_S)
    return process.returncode, said


def steps(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]


def wait_for(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not there():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_run_becomes_a_run_folder(place: Path) -> None:
    stand_in(place / "verl")
    status, said = ended(luspo(place, "--config", "small.toml"))
    assert status == 0, said
    assert [one["step"] for one in steps(place)] == [1, 2, 3]
    last = steps(place)[-1]
    assert last["tokens/total"] == 48
    assert last["reward/accuracy/mean"] == 0.5
    assert last["group/mixed_fraction"] == 1.0
    assert last["reward/read_from/box"] == 4
    stored = pq.read_table(place / "run" / "rollouts" / "step-000002.parquet").to_pylist()
    assert sorted({row["problem_id"] for row in stored}) == ["made/train/0", "made/train/1"]
    assert [row["status"] for row in stored] == ["incorrect", "correct"] * 2
    assert stored[1]["advantage"] == pytest.approx(2**-0.5, rel=1e-5)
    assert "response_length" not in stored[0]
    assert not (place / "run" / "rollouts" / "step-000003.parquet").exists()
    for step in (2, 3):  # keep_checkpoints
        assert (place / "run" / "checkpoints" / f"step-{step:06d}" / "model" / "config.json").is_file()
    found = json.loads((place / "run" / "provenance.json").read_text())
    assert found["engine"]["packages"]["verl"] == "0.9.1"
    assert "dataset len: 4" in (place / "run" / "run.log").read_text()
    assert "trainer.total_training_steps=3" in (place / "run" / "verl" / "command.sh").read_text()
    outputs = (
        ["compare", "run", "--json"],
        ["plot-length", "run", "--out", "a.svg"],
        ["compare", "run", "--html", "a.html"],
    )
    for command in (*outputs, ["inspect", "run"]):
        luspo_command = [sys.executable, "-m", "luspo_cli", *command]
        read = subprocess.run(luspo_command, cwd=place, capture_output=True, text=True, check=False)
        assert read.returncode == 0, (command, read.stderr)
    assert re.search(r"made/train/0: 1 of 2 right\n.*\n.*\n +right +reward 1, advantage \+0\.71: ", read.stdout)


def test_a_run_that_is_not_there_cannot_go_on(place: Path) -> None:
    stand_in(place / "verl")
    for more in ([], ["--dry-run"]):
        status, said = ended(luspo(place, "--config", "small.toml", "--resume", *more))
        assert status == 2
        assert said.startswith("luspo: there is no run to resume in run: it has no config.json")
    assert not (place / "run").exists()


def test_a_run_that_died_goes_on_from_verls_checkpoint(place: Path) -> None:
    stand_in(place / "verl", "dies")
    status, said = ended(luspo(place, "--config", "small.toml"))
    assert status == 1
    assert "exit status 3 after step 2" in said
    stand_in(place / "verl")
    status, said = ended(luspo(place, "--resume"))
    assert status == 0, said
    assert [one["step"] for one in steps(place)] == [1, 2, 3]
    assert steps(place)[-1]["tokens/total"] == 48


def test_a_failed_start_shows_verls_last_error(place: Path) -> None:
    stand_in(place / "verl", "fails")
    status, said = ended(luspo(place, "--config", "small.toml"))
    assert status == 1
    assert "verl failed with exit status 1 before its first step: RuntimeError: no GPU for worker 3" in said
    assert "HYDRA_FULL_ERROR" not in said.splitlines()[-1]
    assert (place / "run" / "run.log").read_text().endswith(f" {said.splitlines()[-1]}\n")
    stand_in(place / "verl")  # mended: the same command again
    assert ended(luspo(place, "--config", "small.toml"))[0] == 0


@pytest.mark.parametrize(
    ("mode", "said_of_it"),
    [("old", "is too old"), ("queueless", "pip install TransferQueue"), ("bare", "verl knows no loss 'luspo'")],
)
def test_what_verls_environment_lacks_is_said_before_anything_is_written(
    place: Path, mode: str, said_of_it: str
) -> None:
    stand_in(place / "verl", mode)
    status, said = ended(luspo(place, "--config", "small.toml"))
    assert status == 2
    assert said_of_it in said
    assert not (place / "run").exists()


@pytest.mark.parametrize(
    ("number", "mode"), [(signal.SIGINT, "hangs"), (signal.SIGKILL, "hangs"), (signal.SIGTERM, "hangs stubborn")]
)
def test_nothing_outlives_the_launcher(place: Path, number: signal.Signals, mode: str) -> None:
    stand_in(place / "verl", mode)
    process = luspo(place, "--config", "small.toml")
    pids = place / "verl" / "pids"
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    left = [int(pid) for pid in pids.read_text().split()]
    assert set(left) <= set(descendants(process.pid))
    process.send_signal(number)
    status, said = ended(process)
    wait_for(lambda: not any(map(alive, left)))
    if number != signal.SIGKILL:
        assert status == 128 + number, said
        assert "--resume" in said
    assert not os.path.exists(f"/proc/{left[0]}")


def test_the_last_error_is_the_exception_and_not_what_comes_after_it() -> None:
    lines = [
        "(TaskRunnerV1 pid=7, ip=10.0.0.1) step:1 - a:1",
        "\x1b[36m(TaskRunnerV1 pid=7)\x1b[0m Traceback (most recent call last):",
        '\x1b[36m(TaskRunnerV1 pid=7)\x1b[0m   File "x.py", line 3, in f',
        "\x1b[36m(TaskRunnerV1 pid=7)\x1b[0m ValueError: bad value",
        "Set the environment variable HYDRA_FULL_ERROR=1",
    ]
    shown, cause = last_error(lines)
    assert cause == "ValueError: bad value"
    assert shown[0] == "Traceback (most recent call last):"
    assert last_error(["one", "", "two"]) == (["one", "two"], "two")
    assert last_error([]) == ([], "")
