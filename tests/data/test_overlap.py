"""Overlap of training questions with benchmarks: equal after normalisation, contained where long, and not otherwise."""

from __future__ import annotations

import pytest

from luspo_cli.data.overlap import ExcludedQuestions, Overlap, normalise_question, question_digest

LONG = (
    "Every morning Aya goes for a $9$-kilometer-long walk and stops at a coffee shop afterwards. When she walks at a "
    "constant speed of $s$ kilometers per hour, the walk takes her 4 hours, including $t$ minutes spent in the shop."
)


def excluded_by(*questions: str) -> ExcludedQuestions:
    """Questions without pictures."""
    return ExcludedQuestions((question, ()) for question in questions)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is $2+3$?", "what is  2 + 3"),
        (r"Find \(x\).", "Find $x$"),
        (r"$\dfrac{1}{2}\,x$", r"\frac{1}{2} x"),
        (r"\left( 1,\ 2 \right)", "(1, 2)"),
        ("Find ５.", "find 5"),
        ("In <image 1>, find <|image_pad|>x.", "<image>in <image>, find x"),
    ],
)
def test_equal_after_normalisation(one: str, other: str) -> None:
    assert normalise_question(one) == normalise_question(other)
    assert question_digest(one) == question_digest(other)
    assert excluded_by(other).overlap(one) is Overlap.WHOLE


def test_different_questions_stay_apart() -> None:
    assert excluded_by("What is 2+4?", "").overlap("What is 2+3?") is Overlap.NOTHING
    assert excluded_by("", "x").overlap("") is Overlap.NOTHING
    assert excluded_by("arrow x").overlap(r"\leftarrow x") is Overlap.NOTHING


def test_long_texts_are_found_inside_others_both_ways() -> None:
    excluded = excluded_by(LONG)
    assert len(excluded) == 1
    assert excluded.overlap(f"Solve this problem. {LONG} Give an integer.") is Overlap.WHOLE
    assert excluded.overlap(LONG[: len(LONG) * 3 // 4]) is Overlap.WHOLE
    assert excluded.overlap(LONG[20:]) is Overlap.WHOLE
    assert excluded.overlap(LONG.replace("coffee", "tea")) is Overlap.NOTHING


def test_short_texts_are_not_found_inside_others() -> None:
    assert excluded_by("What is 2+3?").overlap("What is 2+3? Explain.") is Overlap.NOTHING
    assert excluded_by("What is 2+3? Explain.").overlap("What is 2+3?") is Overlap.NOTHING
    assert excluded_by(LONG).overlap("Every morning Aya goes for a walk") is Overlap.NOTHING


@pytest.mark.parametrize("text", ["Find x.", f"Solve: {LONG} Thanks."])
def test_pictures_decide_where_both_sides_have_them(text: str) -> None:
    """By all pictures in their order; one side without any, or with some that cannot be read, leaves the words."""
    asked = "find x" if text == "Find x." else LONG
    excluded = ExcludedQuestions([(asked, ("a", "b")), (asked, ("c",)), ("other", ())])
    assert len(excluded) == 3
    assert excluded.overlap(text, ("a", "b")) is Overlap.WHOLE
    assert excluded.overlap(text, ("c",)) is Overlap.WHOLE
    for shown in (("b", "a"), ("a",), ("d",)):
        assert excluded.overlap(text, shown) is Overlap.OTHER_PICTURES
    assert excluded.overlap(text) is Overlap.WORDS_ALONE
    assert excluded.overlap("other") is Overlap.WHOLE
    assert excluded.overlap("other", ("a",)) is Overlap.WORDS_ALONE
    unread = ExcludedQuestions([(asked, None), (asked, ("a",))])
    assert [unread.overlap(text, shown) for shown in ((), ("a",), ("b",))] == [
        Overlap.WORDS_ALONE,
        Overlap.WHOLE,
        Overlap.WORDS_ALONE,
    ]


def test_a_question_that_its_picture_asks_is_known_by_the_picture() -> None:
    excluded = ExcludedQuestions([("<image>", ("a",)), ("<image>", None)])
    assert len(excluded) == 1
    assert excluded.overlap("<image>", ("a",)) is Overlap.WHOLE
    assert excluded.overlap("<image>", ("b",)) is Overlap.OTHER_PICTURES
