"""Whole runs of several processes: one process's run again, across resumes with other numbers; and what follows when one is lost.

The processes are real and talk over gloo. The draws are those of one process, so responses are equal as long as no draw falls
into the last bits of a logit; weights differ by the order of sums.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from doubles import rank_cases
from doubles.processes import run_processes
from doubles.runs import as_arguments, assert_close, records, train
from luspo_cli.app import app
from luspo_cli.config.run import TrainRun
from luspo_cli.errors import RunError, UsageError

ONE_MINUTE = 60.0


def train_together(config: TrainRun, path: Path, processes: int, crash_after: int = 0) -> list[str]:
    """Train with so many processes; what the first one said. The others say nothing."""
    path.mkdir(exist_ok=True)
    codes = run_processes(processes, rank_cases.run_session, config.model_dump_json(), path, crash_after)
    assert codes == [0] * processes
    said = [path / f"said-{rank}.txt" for rank in range(processes)]
    texts = [file.read_text() for file in said]
    for file in said:
        file.unlink()
    assert all(text == ("PeerFailed stopped by the test" if crash_after else "") for text in texts[1:])
    return texts[0].splitlines()


@pytest.mark.parametrize(("sharding", "tied"), [("none", "false"), ("full", "true")])
def test_a_run_goes_on_with_other_numbers_of_processes(
    small_run: Callable[..., TrainRun], tmp_path: Path, sharding: str, tied: str
) -> None:
    """Two processes, then one, then two: the run of one process throughout."""
    import pyarrow.parquet as pq

    config = small_run(f"model.sharding={sharding}", f"model.shape.tied_head={tied}")
    train(config, tmp_path / "whole")
    assert train_together(config, tmp_path / "run", 2, crash_after=2)[-1] == "RunError stopped by the test"
    assert os.listdir(tmp_path / "run/checkpoints") == ["step-000002"]
    with pytest.raises(ZeroDivisionError):
        train(config, tmp_path / "run", "resume", crash_after=4)
    assert "going on after step 4" in train_together(config, tmp_path / "run", 2)
    assert_close(tmp_path / "whole", tmp_path / "run", 5)
    for step in (1, 2, 4):
        tables = [pq.read_table(tmp_path / f"{p}/rollouts/step-{step:06d}.parquet") for p in ("whole", "run")]
        assert tables[0]["response_tokens"] == tables[1]["response_tokens"]
    whole, theirs = ((tmp_path / p / "evals/held-out.jsonl").read_text() for p in ("whole", "run"))
    assert [json.loads(line)["step"] for line in whole.splitlines()] == [0, 2, 4, 5]
    assert whole == theirs
    found = json.loads((tmp_path / "run/provenance.json").read_text())
    assert [part["hardware"]["processes"] for part in (found, *found["resumed"])] == [2, 1, 2]
    names = [{f.name for f in (tmp_path / p / "checkpoints/step-000005").rglob("*")} for p in ("whole", "run")]
    assert names[0] == names[1]


def test_batches_that_wait_are_those_of_one_process(small_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    """Two processes up to a checkpoint with waiting batches, then one: the lagged run of one process."""
    config = small_run("rollout.lag=1", "reward.truncated=mask", "run.steps=4")
    train(config, tmp_path / "whole")
    assert train_together(config, tmp_path / "run", 2, crash_after=2)[-1] == "RunError stopped by the test"
    assert (tmp_path / "run/checkpoints/step-000002/trainer/waiting.json").is_file()
    train(config, tmp_path / "run", "resume")
    assert [record["update/lag"] for record in records(tmp_path / "run")] == [None, 1, 1, 1]
    assert_close(tmp_path / "whole", tmp_path / "run", 4)


def test_each_process_scores_its_own_share_with_rewards_of_ones_own(
    small_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    """A function that takes a group, and one whose calls fail, called while sampling: the rewards and counts of one process."""
    (tmp_path / "own.py").write_text(
        "def rank(completions, **kwargs):\n    return [sorted(completions).index(text) for text in completions]\n"
        "def odd(solution_str, **kwargs):\n    return 0.1 / (len(solution_str) % 2)\n"
    )
    functions = ", ".join(f'"{tmp_path}/own.py:{name}"' for name in ("rank", "odd"))
    config = small_run(
        f"reward.function=[{functions}]", "reward.while_sampling=true", "run.steps=2", "run.checkpoint_every=2"
    )
    train(config, tmp_path / "whole")
    said = train_together(config, tmp_path / "run", 2)
    assert_close(tmp_path / "whole", tmp_path / "run", 2)
    assert all(0 < record["reward/odd/failed"] < 16 for record in records(tmp_path / "run"))
    failures = [line.partition(": reward function 'odd' failed for")[0] for line in said if "'odd' failed" in line]
    assert failures == ["warning: held-out evaluation"]  # once, by the first process


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_other_parts_of_the_engine_over_three_processes(
    small_run: Callable[..., TrainRun], tmp_path: Path, sharding: str
) -> None:
    """A reference, more processes than problems a round may have, dynamic sampling; and bfloat16, whose sampler is a copy."""
    config = small_run(
        f"model.sharding={sharding}", "objective.kl_coefficient=0.1", "rollout.dynamic_sampling=true",
        "rollout.problems=2", "rollout.max_sampling_rounds=3", "run.steps=3",
    )  # fmt: skip
    train(config, tmp_path / "whole")
    train_together(config, tmp_path / "run", 3)
    assert_close(tmp_path / "whole", tmp_path / "run", 3)
    low = small_run(f"model.sharding={sharding}", "model.compute_dtype=bfloat16", "run.steps=2")
    train_together(low, tmp_path / "low", 3)
    assert len(records(tmp_path / "low")) == 2


def test_the_end_of_one_process_reaches_the_others_at_once(tmp_path: Path) -> None:
    codes = run_processes(3, rank_cases.lose_one, tmp_path, "ends", 120.0)
    assert codes == [0, 0, -signal.SIGKILL]
    for rank in (0, 1):
        kind, sentence, seconds = torch.load(tmp_path / f"{rank}.found", weights_only=False)
        assert kind == ("PeerFailed" if rank else "PeerLost")  # one of a machine says it
        assert sentence == (
            f"lost process 2 of 3 on {socket.gethostname()} (ended or killed); the others stop. Every checkpoint is whole: go on"
            " with --resume, with any number of processes"
        )
        assert seconds < ONE_MINUTE


@pytest.mark.slow
def test_a_process_that_hangs_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    assert run_processes(2, rank_cases.lose_one, tmp_path, "sleeps", 20.0) == [0, 0]
    kind, sentence, seconds = torch.load(tmp_path / "0.found", weights_only=False)
    assert kind == "PeerLost"
    assert "had no answer from the others for 20 s (run.wait_for_processes_s), and stops" in sentence
    assert 15 < seconds < 40


def launch(config: TrainRun, folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "luspo_cli", *as_arguments(config, folder), "--processes", "2", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


LAUNCHERS = {
    # Without the two dashes torchrun takes --run for an abbreviation of one of its own options.
    "torchrun": ["torch.distributed.run", "--nproc-per-node", "2", "-m", "--"],
    # With --cpu accelerate starts one process, whatever --num_processes says; this is its way to start several, with GPUs or not.
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                   "--mixed_precision", "no", "--dynamo_backend", "no", "-m"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHERS)
def test_other_launchers_start_the_same_run(small_run: Callable[..., TrainRun], tmp_path: Path, name: str) -> None:
    config = small_run()
    (tmp_path / "other").mkdir()
    command = [sys.executable, "-m", *LAUNCHERS[name], "luspo_cli", *as_arguments(config, tmp_path / "other")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (tmp_path / "own").mkdir()
    _, said = launch(config, tmp_path / "own").communicate(timeout=300)
    assert "done:" in said
    assert len(records(tmp_path / "own/run")) == config.run.steps
    assert_close(tmp_path / "other/run", tmp_path / "own/run", config.run.steps)
    found = json.loads((tmp_path / "other/run/provenance.json").read_text())
    assert found["hardware"]["processes"] == 2


def wait_for_steps(path: Path, launcher: subprocess.Popen[str], steps: int) -> None:
    deadline = time.monotonic() + 300
    metrics = path / "metrics.jsonl"
    while not (metrics.exists() and len(metrics.read_bytes().splitlines()) >= steps):
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def copies(launcher: subprocess.Popen[str]) -> dict[int, int]:
    """Rank → process id of the launcher's children."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parent = re.search(r"PPid:\s+(\d+)", (folder / "status").read_text())
                variables = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if parent and int(parent[1]) == launcher.pid:
                found |= {int(v[5:]): int(folder.name) for v in variables if v.startswith(b"RANK=")}
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes in /proc")
@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_killed_process_ends_the_others_within_a_minute_and_the_run_goes_on(
    small_run: Callable[..., TrainRun], tmp_path: Path, rank: int
) -> None:
    config = small_run("run.steps=100000", "evaluation.every=0")
    launcher = launch(config, tmp_path)
    wait_for_steps(tmp_path / "run", launcher, 3)
    running = copies(launcher)
    assert sorted(running) == [0, 1]
    os.kill(running[rank], signal.SIGKILL)
    killed = time.monotonic()
    _, said = launcher.communicate(timeout=2 * ONE_MINUTE)
    assert time.monotonic() - killed < ONE_MINUTE
    assert launcher.returncode == 1
    assert "Traceback" not in said
    sentences = [line for line in said.splitlines() if line.startswith("luspo:")]
    assert sentences == [
        f"luspo: process {rank} of 2 was killed by SIGKILL (often for want of memory); the others were stopped. Every"
        f" checkpoint is whole: go on with: luspo train --run {tmp_path / 'run'} --resume --processes 2"
    ]
    assert (tmp_path / "run/run.log").read_text().endswith(f" {sentences[0]}\n")
    assert not [pid for pid in running.values() if Path(f"/proc/{pid}/cmdline").exists()]
    steps = (tmp_path / "run/metrics.jsonl").read_bytes().count(b"\n")  # a torn line may follow
    with pytest.raises(ZeroDivisionError):
        train(config, tmp_path / "run", "resume", crash_after=steps + 2)
    assert [record["step"] for record in records(tmp_path / "run")] == list(range(1, steps + 3))


def test_ctrl_c_finishes_the_step_on_all_and_writes_one_checkpoint(
    small_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    launcher = launch(small_run("run.steps=100000", "run.checkpoint_every=0"), tmp_path)
    wait_for_steps(tmp_path / "run", launcher, 1)
    launcher.send_signal(signal.SIGINT)
    _, said = launcher.communicate(timeout=2 * ONE_MINUTE)
    assert launcher.returncode == 130, said
    last = records(tmp_path / "run")[-1]["step"]
    assert said.count("stopping after this step") == 1
    go_on = f"stopped after step {last}; go on with: luspo train --run {tmp_path / 'run'} --resume --processes 2\n"
    assert said.count(go_on) == 1
    assert os.listdir(tmp_path / "run/checkpoints") == [f"step-{last:06d}"]


@pytest.mark.slow
def test_a_failure_of_the_first_process_is_said_once(small_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    """A made model that misses its gate: the others have nothing to add, nor has the launcher."""
    launcher = launch(small_run("warmup.gate=true"), tmp_path)
    _, said = launcher.communicate(timeout=2 * ONE_MINUTE)
    assert launcher.returncode == 1, said
    assert said.count("is not fit to draw conclusions from") == 1
    assert [line for line in said.splitlines() if line.startswith("luspo:")] == [said.splitlines()[-1]]
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("processes", "environment", "sentence"),
    [
        ("0", {}, "--processes must be 1 or more, not 0"),
        (
            "100000",
            {},
            "^100000 processes are more than 4 for each of this machine's .* processor cores: give --processes",
        ),
        ("2", {"RANK": "1", "WORLD_SIZE": "4"}, r"this is process 1 of 4 of another launcher .* leave out --processes"),
        ("2", {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, "leave out --processes"),
    ],
)
def test_processes_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, processes: str, environment: dict[str, str], sentence: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["train", "--preset", "tiny", "--processes", processes])
    assert isinstance(result.exception, UsageError)
    assert re.search(sentence, str(result.exception))


def test_an_occupied_folder_is_refused_before_a_process_is_started(
    small_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luspo_cli.processes import supervise as module

    def started(*_: Any, **__: Any) -> None:
        raise RunError("a process was started")

    monkeypatch.setattr(module.subprocess, "Popen", started)
    arguments = as_arguments(small_run(), tmp_path)
    with pytest.raises(RunError, match="a process was started"):
        CliRunner().invoke(app, [*arguments, "--processes", "2"], catch_exceptions=False)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/other.txt").write_text("not a run")
    with pytest.raises(UsageError, match="is no run folder"):
        CliRunner().invoke(app, [*arguments, "--processes", "2"], catch_exceptions=False)
