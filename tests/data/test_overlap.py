"""Overlap of training questions with benchmarks: equal after normalisation, contained where long, and not otherwise."""

from __future__ import annotations

import pytest

from luspo_cli.data.overlap import ExcludedQuestions, normalise_question, question_digest

LONG = (
    "Every morning Aya goes for a $9$-kilometer-long walk and stops at a coffee shop afterwards. When she walks at a "
    "constant speed of $s$ kilometers per hour, the walk takes her 4 hours, including $t$ minutes spent in the shop."
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is $2+3$?", "what is  2 + 3"),
        (r"Find \(x\).", "Find $x$"),
        (r"$\dfrac{1}{2}\,x$", r"\frac{1}{2} x"),
        (r"\left( 1,\ 2 \right)", "(1, 2)"),
        ("Find ５.", "find 5"),
    ],
)
def test_equal_after_normalisation(one: str, other: str) -> None:
    assert normalise_question(one) == normalise_question(other)
    assert question_digest(one) == question_digest(other)
    assert one in ExcludedQuestions([other])


def test_different_questions_stay_apart() -> None:
    assert "What is 2+3?" not in ExcludedQuestions(["What is 2+4?", ""])
    assert "" not in ExcludedQuestions(["", "x"])
    assert r"\leftarrow x" not in ExcludedQuestions(["arrow x"])


def test_long_texts_are_found_inside_others_both_ways() -> None:
    excluded = ExcludedQuestions([LONG])
    assert len(excluded) == 1
    assert f"Solve this problem. {LONG} Give an integer." in excluded
    assert LONG[: len(LONG) * 3 // 4] in excluded
    assert LONG[20:] in excluded
    assert LONG.replace("coffee", "tea") not in excluded


def test_short_texts_are_not_found_inside_others() -> None:
    assert "What is 2+3? Explain." not in ExcludedQuestions(["What is 2+3?"])
    assert "What is 2+3?" not in ExcludedQuestions(["What is 2+3? Explain."])
    assert "Every morning Aya goes for a walk" not in ExcludedQuestions([LONG])
