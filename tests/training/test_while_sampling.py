"""Runs that grade while they sample are the runs that grade afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from doubles.processes import wait_until
from doubles.runs import records, train, weight_bytes, without_times
from luspo_cli.config.run import TrainRun
from luspo_cli.rollout.in_process.sampler import InProcessSampler

OWN = """
import time

def length(solution_str, ground_truth, extra_info, **kwargs):
    with open("calls", "a") as file:
        file.write("x")
    if len(solution_str) % 5 == 3:
        time.sleep(60)
    return {"score": -extra_info["response_length"], "acc": ground_truth in solution_str}

def rank(completions, **kwargs):
    return [sorted(completions).index(text) for text in completions]
"""


@pytest.fixture
def own(small_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainRun]:
    """Return `small_run` of a step in a folder with own.py, graded while sampling or not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    return lambda on, *sets: small_run(f"reward.while_sampling={str(on).lower()}", "run.steps=1", *sets)


def same(one: Path, other: Path) -> None:
    """Metrics but for times, weights, stored rollouts and held-out answers, bit for bit."""
    assert without_times(one) == without_times(other)
    assert weight_bytes(one, 1) == weight_bytes(other, 1)
    files = ("rollouts/step-000001.parquet", "evals/held-out.jsonl", "evals/held-out/step-000001.parquet")
    for name in files:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_with_functions_of_ones_own_that_hang_now_and_then(own: Callable[..., TrainRun], tmp_path: Path) -> None:
    sets = ('reward.function=["own.py:length", "own.py:rank"]', "reward.function_seconds=3", "reward.truncated=mask")
    for on in (True, False):
        train(own(on, "reward.workers=8", *sets), tmp_path / str(on))
    same(tmp_path / "True", tmp_path / "False")
    (overlapped,), (plain,) = records(tmp_path / "True"), records(tmp_path / "False")
    assert 0 < overlapped["reward/length/failed"] < 16
    assert overlapped["update/rows_masked"] > 0
    assert overlapped["time/reward_while_sampling"] <= overlapped["time/rollout"]
    assert "time/reward_while_sampling" not in plain


def test_with_the_rubric_alone(own: Callable[..., TrainRun], tmp_path: Path) -> None:
    for on in (True, False):
        train(
            own(on, "reward.verifier=math", "reward.format=answer-line", "reward.format_weight=0.5"), tmp_path / str(on)
        )
    same(tmp_path / "True", tmp_path / "False")


@pytest.mark.parametrize("on", [True, False])
def test_grading_begins_before_sampling_ends(
    own: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: bool
) -> None:
    """The first call of the step, while the sampler has not returned yet."""
    calls, sample, begun = tmp_path / "calls", InProcessSampler.sample_groups, []

    def sampling(self: InProcessSampler, *arguments: Any, **options: Any) -> Any:
        calls.unlink(missing_ok=True)
        groups = sample(self, *arguments, **options)
        begun.append(wait_until(calls.exists, 60 if on else 0))
        return groups

    monkeypatch.setattr(InProcessSampler, "sample_groups", sampling)
    config = own(on, "reward.function=own.py:length", "reward.function_seconds=0.5", "evaluation.every=0")
    train(config, tmp_path / "run")
    assert begun[-1] is on
    assert json.loads((tmp_path / "run/config.json").read_text())["reward"]["while_sampling"] is on


def test_sampling_that_fails_ends_the_run_and_its_workers(
    own: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luspo_cli.grading import pool

    started, start = [], pool.KillablePool._start
    sample = InProcessSampler.sample_groups

    def starting(self: pool.KillablePool) -> Any:
        started.append(start(self))
        return started[-1]

    def sampling(self: InProcessSampler, *arguments: Any, **options: Any) -> Any:
        sample(self, *arguments, **options)
        raise ZeroDivisionError("the device is gone")

    monkeypatch.setattr(pool.KillablePool, "_start", starting)
    monkeypatch.setattr(InProcessSampler, "sample_groups", sampling)
    with pytest.raises(ZeroDivisionError):
        train(own(True, "reward.function=own.py:length", "evaluation.every=0"), tmp_path / "run")
    assert len(started) > 1  # more than the one that looked at the function
    assert all(worker.process.poll() is not None for worker in started)
