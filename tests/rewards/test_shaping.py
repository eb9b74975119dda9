"""Format reward and overlong penalty by hand numbers."""

from __future__ import annotations

import pytest

from luspo_cli.rewards.shaping import format_reward, overlong_penalty


@pytest.mark.parametrize(
    ("length", "expected"),
    [(0, 0.0), (16384, 0.0), (16385, -1 / 4096), (17408, -0.25), (18432, -0.5), (20479, -4095 / 4096), (20480, -1.0)],
)
def test_overlong_penalty_with_the_numbers_of_dapo(length: int, expected: float) -> None:
    assert overlong_penalty(length, 20480, 4096) == pytest.approx(expected, abs=0)


def test_overlong_penalty_beyond_the_limit_and_truncated() -> None:
    assert overlong_penalty(30_000, 20480, 4096) == -1.0
    assert overlong_penalty(10, 20480, 4096, truncated=True) == -1.0


def test_overlong_penalty_off() -> None:
    assert overlong_penalty(20480, 20480, 0, truncated=True) == 0.0


@pytest.mark.parametrize(
    ("response", "form", "expected"),
    [
        (r"so \boxed{5}", "boxed", 1.0),
        (r"so \boxed{5", "boxed", 0.0),
        (r"so \boxed{}", "boxed", 0.0),
        (r"<think>\boxed{5}", "boxed", 0.0),
        ("x\n#### 5", "gsm8k", 1.0),
        ("x\n#### 5\n\n", "gsm8k", 1.0),
        ("x\n#### 1,250", "gsm8k", 1.0),
        ("x #### 5", "gsm8k", 0.0),
        ("x\n#### 5\nmore", "gsm8k", 0.0),
        ("x\n####5", "gsm8k", 0.0),
        ("x\n#### five", "gsm8k", 0.0),
        ("x\nAnswer: 5", "answer-line", 1.0),
        ("x\n**Answer:** 5", "answer-line", 1.0),
        ("x\nAnswer:", "answer-line", 0.0),
        ("x\nAnswer: **", "answer-line", 0.0),
        ("Answer: 5\nx", "answer-line", 0.0),
        (r"\boxed{5}", "none", 0.0),
    ],
)
def test_format_reward(response: str, form: str, expected: float) -> None:
    assert format_reward(response, form) == expected  # type: ignore[arg-type]
