"""Grading that begins while other responses are still sampled pays what grading afterwards pays."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from luspo_cli.config.reward import RewardConfig
from luspo_cli.grading.verdict import Reason
from luspo_cli.records import Message, Problem, Rollout, StopReason
from luspo_cli.rewards import rubric as rubric_module
from luspo_cli.rewards.rubric import Rubric

LIMIT = 8
"""Tokens of a response."""
OWN = """
import os, time

def note(what):
    with open("calls", "a") as file:
        file.write(what + "\\n")

def right(solution_str, ground_truth, extra_info=None, **kwargs):
    note(solution_str)
    if solution_str == "hang":
        time.sleep(60)
    if solution_str == "exit":
        os._exit(5)
    if solution_str == "raise":
        return 1 / 0
    if solution_str == "nan":
        return float("nan")
    return {"score": len(solution_str) + extra_info["truncated"], "acc": solution_str == ground_truth, "pred": solution_str}

def rank(completions, response_length, **kwargs):
    if "hang" in completions:
        time.sleep(60)
    return [None if text == "5" else sorted(completions).index(text) for text in completions]
"""
TEXTS = [
    ["5", "abc", "", "too long"],
    ["hang", "5", "exit", "7"],
    ["raise", "nan", "5", "5"],
    ["x#5", r"\boxed{5}", r"\boxed{\sum_{k=1}^{2} k}", r"\boxed{\sum_{k=2}^{3} k}"],
]
KINDS: dict[str, dict[str, Any]] = {
    "a call a response": {"function": "own.py:right", "verifier": "function"},
    "a call a group": {"function": "own.py:rank", "verifier": "exact"},
    "both, with math beside": {
        "function": ["own.py:right", {"function": "own.py:rank", "weight": -0.5}],
        "accuracy_weight": 2.0,
        "truncated": "penalise",
        "truncated_reward": -1.0,
    },
    "no function": {"format": "boxed", "format_weight": 0.5, "kimi_length_weight": 0.25},
}


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)


def configured(**keys: Any) -> RewardConfig:
    settings = {
        "workers": 2,
        **({"function_seconds": 4.0, "function_failed_score": -3.0} if "function" in keys else {}),
    }
    return TypeAdapter(RewardConfig).validate_python(settings | keys)


def drawn() -> tuple[list[Problem], list[list[Rollout]]]:
    problems = [Problem(f"p/{i}", (Message("user", "2+3?"),), "5", "sums") for i in range(len(TEXTS))]
    groups = []
    for problem, texts in zip(problems, TEXTS, strict=True):
        tokens = [tuple(range(min(LIMIT, 1 + len(text)))) for text in texts]
        stops = [StopReason.LENGTH if len(own) == LIMIT else StopReason.END for own in tokens]
        groups.append([Rollout(problem.id, (1,), *one) for one in zip(tokens, texts, stops, strict=True)])
    return problems, groups


def rows(groups: Sequence[Sequence[Rollout]]) -> Iterator[tuple[int, Rollout]]:
    return enumerate(rollout for group in groups for rollout in group)


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_are_those_of_grading_afterwards(kind: str) -> None:
    """Responses that hang, end their process, raise or return no number are counted alike; the order of arrival is another."""
    problems, groups = drawn()
    with Rubric(configured(**KINDS[kind]), LIMIT) as rubric:
        afterwards = rubric.score_groups(problems, groups)
    arriving = list(rows(groups))
    random.Random(3).shuffle(arriving)
    with Rubric(configured(**KINDS[kind]), LIMIT) as rubric:
        with rubric.begin(problems, 4) as grading:
            for row, rollout in arriving[:-2]:  # of the last two the sampler says nothing
                grading.add(row, rollout)
            assert grading.rewards(groups) == afterwards
        assert rubric.score_groups(problems, groups) == afterwards
    errors = [own.functions[name].error for group in afterwards for own in group for name in own.functions]
    hung = {"a call a response": 1, "a call a group": 4, "both, with math beside": 1 + 4, "no function": 0}
    assert sum("took longer" in error for error in errors) == hung[kind]
    if kind == "no function":
        reasons = [own.verdict.reason for own in afterwards[3]]
        assert reasons == [Reason.NO_ANSWER, Reason.EXACT, Reason.DIFFERENT, Reason.SYMBOLIC]


def test_a_call_that_timed_out_counts_the_same_in_every_other_order() -> None:
    """The limit is not eaten by waiting: two hangs before everything else, and one worker."""
    problems, groups = drawn()
    config = configured(function="own.py:right", verifier="function", workers=1)
    with Rubric(config, LIMIT) as rubric:
        afterwards = rubric.score_groups(problems, groups)
        with rubric.begin(problems, 4) as grading:
            for row, rollout in sorted(rows(groups), key=lambda pair: pair[1].response != "hang"):
                grading.add(row, rollout)
            found = grading.rewards(groups)
    assert found == afterwards


def test_sampling_that_fails_leaves_no_worker(tmp_path: Path) -> None:
    problems, groups = drawn()
    processes = []

    def fail(rubric: Rubric) -> None:
        with rubric.begin(problems, 4) as grading:
            for row, rollout in rows(groups):
                grading.add(row, rollout)
            while not (tmp_path / "calls").exists():
                time.sleep(0.01)
            processes.extend(worker.process for worker in rubric._functions._pool._workers)
            raise ZeroDivisionError

    with Rubric(configured(function="own.py:right", verifier="function", function_seconds=60.0), LIMIT) as rubric:
        with pytest.raises(ZeroDivisionError):
            fail(rubric)
        assert processes
        assert all(process.poll() is not None for process in processes)
        assert rubric.score_groups(problems[:1], groups[:1])[0][0].accuracy == 1.0  # and the rubric can go on


def test_rollouts_that_do_not_fit() -> None:
    problems, groups = drawn()
    with Rubric(configured(), LIMIT) as rubric, rubric.begin(problems, 4) as grading:
        with pytest.raises(ValueError, match="given beside problem"):
            grading.add(4, groups[0][0])
        grading.add(0, groups[0][1])
        with pytest.raises(ValueError, match="another rollout"):
            grading.rewards(groups)


@pytest.mark.parametrize("cuda", [False, True])
def test_the_default_follows_the_device(cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rubric_module, "has_cuda", lambda: cuda)

    def grades(**keys: Any) -> bool:
        return Rubric(configured(**keys), LIMIT).grades_while_sampling

    assert grades() is cuda
    assert grades(while_sampling=True) is True
    assert grades(while_sampling=False) is False
    assert grades(verifier="exact", while_sampling=True) is False  # nothing is left to a worker
    assert grades(verifier="exact", function="own.py:right") is cuda
