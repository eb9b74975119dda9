"""Rollout to reward, end to end: weights, breakdown, truncated rollouts, made tasks, golds that nothing can match."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from luspo_cli.config.reward import RewardConfig
from luspo_cli.errors import UsageError
from luspo_cli.records import Message, Problem, Rollout, StopReason
from luspo_cli.rewards.exact import score_exact
from luspo_cli.rewards.rubric import Rubric

REPO = Path(__file__).resolve().parents[2]


def problem(answer: str, number: int = 0) -> Problem:
    return Problem(f"p/{number}", (Message("user", "?"),), answer, "p")


def rollout(response: str, length: int = 10, *, truncated: bool = False, number: int = 0) -> Rollout:
    reason = StopReason.LENGTH if truncated else StopReason.END
    return Rollout(f"p/{number}", (1,), tuple(range(length)), response, reason)


def test_weighted_sum_by_hand() -> None:
    config = RewardConfig(
        accuracy_weight=2.0, format="boxed", format_weight=0.5, overlong_buffer=20, overlong_weight=3.0, workers=1
    )
    cases = [
        # response, length, accuracy, format, overlong, total
        (r"\boxed{5}", 70, 1.0, 1.0, 0.0, 2.5),
        (r"\boxed{5}", 85, 1.0, 1.0, -0.25, 1.75),
        (r"\boxed{6}", 90, 0.0, 1.0, -0.5, -1.0),
        ("Answer: 5", 80, 1.0, 0.0, 0.0, 2.0),
        ("who knows", 100, 0.0, 0.0, -1.0, -3.0),
    ]
    with Rubric(config, 100) as rubric:
        rewards = rubric.score([problem("5")] * 5, [rollout(text, length) for text, length, *_ in cases])
    for reward, (_, _, accuracy, form, overlong, total) in zip(rewards, cases, strict=True):
        assert (reward.accuracy, reward.format, reward.overlong) == (accuracy, form, overlong)
        assert reward.total == pytest.approx(total)
    assert [reward.verdict.extracted for reward in rewards] == ["5", "5", "6", "5", None]
    counts = Counter(reward.verdict.status for reward in rewards)
    assert (counts["correct"], counts["incorrect"], counts["no_answer"]) == (3, 1, 1)
    assert (counts["timeout"], counts["crashed"]) == (0, 0)


def test_truncated_rollouts_are_judged_and_pay_for_length() -> None:
    config = RewardConfig(overlong_buffer=20, workers=1)
    responses = [r"\boxed{5} and then on and on", r"so it is \boxed{5", r"<think>\boxed{5} but wait"]
    with Rubric(config, 100) as rubric:
        rewards = rubric.score([problem("5")] * 3, [rollout(text, 100, truncated=True) for text in responses])
    assert [reward.verdict.status for reward in rewards] == ["correct", "no_answer", "no_answer"]
    assert [reward.overlong for reward in rewards] == [-1.0] * 3
    assert [reward.total for reward in rewards] == [0.0, -1.0, -1.0]


def test_hangs_are_counted_and_the_rest_is_right() -> None:
    hang = r"\boxed{\sum_{n=1}^{2}\dfrac{5^{(5^{(5^{(5^5)})}-4)}-5}{16}}"
    responses = [hang if n in (7, 40) else r"\boxed{\frac{\sqrt{8}}{2}}" for n in range(64)]
    with Rubric(RewardConfig(timeout_s=1.0, workers=2), 100) as rubric:
        rewards = rubric.score([problem(r"\sqrt{2}")] * 64, [rollout(text) for text in responses])
    counts = Counter(reward.verdict.status for reward in rewards)
    assert counts["timeout"] == 2
    assert counts["correct"] == 62
    assert [index for index, reward in enumerate(rewards) if reward.total == 0.0] == [7, 40]


def test_exact_tasks_need_the_end_of_the_sequence() -> None:
    with Rubric(RewardConfig(verifier="exact"), 96) as rubric:
        rewards = rubric.score(
            [problem("7")] * 6,
            [
                rollout("abc#7"),
                rollout("#7"),
                rollout("abc#7", truncated=True),
                rollout("abc#8"),
                rollout("a#b#7"),
                rollout("abc#7 "),
            ],
        )
    assert [reward.verdict.status for reward in rewards] == [
        "correct",
        "correct",
        "no_answer",
        "incorrect",
        "no_answer",
        "incorrect",
    ]


@pytest.mark.parametrize(
    ("response", "ended", "expected"),
    [
        ("#5", True, ("correct", "5")),
        ("a\nb#5", True, ("correct", "5")),
        ("a#5", False, ("no_answer", None)),
        ("a#", True, ("no_answer", None)),
        ("a5", True, ("no_answer", None)),
        ("", True, ("no_answer", None)),
        ("a##5", True, ("no_answer", None)),
        ("a#5#", True, ("no_answer", None)),
        ("a#05", True, ("incorrect", "05")),
        ("a#5\n", True, ("incorrect", "5\n")),
    ],
)
def test_score_exact(response: str, ended: bool, expected: tuple[str, str | None]) -> None:
    verdict = score_exact(response, "5", ended=ended)
    assert (verdict.status, verdict.extracted) == expected


def test_score_text_agrees_with_score() -> None:
    config = RewardConfig(format="boxed", format_weight=0.1, overlong_buffer=20, workers=1)
    with Rubric(config, 100) as rubric:
        (whole,) = rubric.score([problem("1/2")], [rollout(r"\boxed{0.5}", 90)])
        assert rubric.score_text(r"\boxed{0.5}", "1/2", length=90) == whole
    assert whole.total == pytest.approx(1 + 0.1 - 0.5)


def test_golds_that_nothing_can_match_are_named() -> None:
    golds = ["5", r"\frac{1}{", " ", "(1,2)"]
    problems = [problem(gold, number) for number, gold in enumerate(golds)]
    with Rubric(RewardConfig(workers=1), 100) as rubric:
        assert rubric.check_golds(problems) == ["p/1", "p/2"]
    with Rubric(RewardConfig(verifier="exact"), 100) as rubric:
        assert rubric.check_golds([problem("7"), problem("", 1), problem("a#b", 2)]) == ["p/1", "p/2"]


def test_mismatched_rollouts_and_impossible_buffers_are_refused() -> None:
    with Rubric(RewardConfig(verifier="exact"), 96) as rubric:
        with pytest.raises(ValueError, match="p/1"):
            rubric.score([problem("7")], [rollout("#7", number=1)])
        with pytest.raises(ValueError, match=r"shorter|longer"):
            rubric.score([problem("7")], [])
        assert rubric.score([], []) == []
    with pytest.raises(UsageError, match="overlong_buffer"):
        Rubric(RewardConfig(overlong_buffer=96), 96)


def test_rewards_import_without_torch() -> None:
    code = (
        "import sys; import luspo_cli.rewards.rubric; "
        "sys.exit(bool({'torch', 'sympy', 'math_verify', 'pandas', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO).returncode == 0
