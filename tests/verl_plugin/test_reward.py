"""Our grading behind verl's reward function: the verdicts of training, its threads, its time limit, what it refuses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from luspo_cli.config.reward import RewardConfig
from luspo_cli.errors import UsageError
from luspo_cli.grading.answers import AnswerMark
from luspo_cli.grading.prompts import mark_of_prompt
from luspo_cli.records import Message, Problem, Rollout, StopReason
from luspo_cli.rewards.rubric import Rubric
from luspo_cli.verl_plugin.reward import borrowed, compute_score

HANG = r"\boxed{\sum_{n=1}^{2}\dfrac{5^{(5^{(5^{(5^5)})}-4)}-5}{16}}"
CASES = [
    # prompt, response, gold
    (r"Put it in \boxed{}.", r"so \boxed{\frac{1}{2}}", "0.5"),
    (r"Put it in \boxed{}.", r"so \boxed{\frac{1}{3}}", "0.5"),
    (r"Put it in \boxed{}.", r"so \boxed{", "0.5"),
    (r"Put it in \boxed{}.", r"<think>\boxed{0.5}", "0.5"),
    (r"Put it in \boxed{}.", r"\boxed{\sum_{k=1}^{n}k}", r"\frac{n(n+1)}{2}"),
    ("End with a line: #### N", "it is 7\n#### 5", "5"),
    ("End with a line: #### N", "it is 5", "5"),
    ("Give the answer in <answer> tags.", "5? <answer>6</answer>", "6"),
    ("Finish with 'Answer: X'.", "Answer: 12", "12"),
    ("What is it?", "", "12"),
]


def test_the_verdict_is_that_of_training() -> None:
    config = RewardConfig(format="boxed", format_weight=0.25, accuracy_weight=2.0, workers=1)
    settings = {"format": "boxed", "format_weight": 0.25, "accuracy_weight": 2.0}
    problems = [Problem(f"p/{n}", (Message("user", case[0]),), case[2], "p") for n, case in enumerate(CASES)]
    rollouts = [Rollout(f"p/{n}", (1,), (2,), case[1], StopReason.END) for n, case in enumerate(CASES)]
    with Rubric(config, 100) as rubric:
        rewards = rubric.score(problems, rollouts)
    assert {reward.accuracy for reward in rewards} == {0.0, 1.0}
    for (prompt, response, gold), reward in zip(CASES, rewards, strict=True):
        extra = {"answer_mark": str(mark_of_prompt([prompt]))}
        found = compute_score("p", response, gold, extra, **settings)
        assert found == {
            "score": reward.total,
            "acc": reward.accuracy,
            "format": reward.format,
            "no_answer": float(reward.verdict.extracted is None),
            "grading_timeout": 0.0,
            "grading_crashed": 0.0,
            "pred": reward.verdict.extracted or "",
            "reason": str(reward.verdict.reason),
        }


def test_the_mark_is_the_rows_or_the_runs() -> None:
    response = "so 4\n#### 5\nand \\boxed{4}"
    assert compute_score("p", response, "4")["acc"] == 1.0
    assert compute_score("p", response, "5", {"answer_mark": "hashes"})["acc"] == 1.0
    assert compute_score("p", response, "5", {"answer_mark": "boxed"}, mark=AnswerMark.HASHES)["acc"] == 1.0
    assert compute_score("p", r"\boxed{4}", "4", thought_open=True)["acc"] == 0.0
    assert compute_score("p", r"</think> \boxed{4}", "4", thought_open=True)["acc"] == 1.0


def test_a_hang_is_counted_among_the_verdicts_of_others() -> None:
    """As verl calls it: one response a call, from a pool of threads."""
    responses = [HANG if n in (3, 11) else rf"\boxed{{{n % 5}}}" for n in range(32)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        found = list(pool.map(lambda response: compute_score("p", response, "2", timeout_s=1.0), responses))
    assert [n for n, one in enumerate(found) if one["grading_timeout"]] == [3, 11]
    assert [n for n, one in enumerate(found) if one["acc"]] == [n for n in range(32) if n % 5 == 2 and n not in (3, 11)]
    assert all(
        (one["reason"], one["score"], one["no_answer"]) == ("timeout", 0.0, 0.0) for one in (found[3], found[11])
    )


def test_a_call_does_not_wait_for_one_that_is_not_back() -> None:
    with borrowed({"timeout_s": 2.0}) as rubric:
        assert compute_score("p", r"\boxed{5}", "5", timeout_s=2.0)["acc"] == 1.0
        with borrowed({"timeout_s": 2.0}) as other:
            assert other is not rubric


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"formatt": "boxed"}, "reward_kwargs.formatt is not known.*did you mean 'format'"),
        ({"overlong_buffer": 100}, "overlong_buffer.*reward_manager.name=dapo"),
        ({"workers": 4}, "workers.*reward.num_workers"),
        ({"verifier": "exact"}, "how a response ended"),
        ({"function": "mine.py:score"}, "give it as reward.custom_reward_function"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"mark": "box"}, "answer mark 'box' is not known.*did you mean 'boxed'"),
    ],
)
def test_what_has_no_meaning_here_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((UsageError, ValueError), match=message):
        compute_score("p", r"\boxed{5}", "5", **settings)


def test_what_verl_passes_beside_a_reward_model_is_left_alone() -> None:
    found = compute_score("p", r"\boxed{5}", "5", reward_router_address="here:1", reward_model_tokenizer=object())
    assert found["score"] == 1.0
