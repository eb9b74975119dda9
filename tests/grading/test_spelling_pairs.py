r"""Other spellings of an answer, both ways round: units, sets of the line, ratios, repeating decimals, words."""

from __future__ import annotations

import pytest
from different_pairs import DIFFERENT_BOTH_WAYS
from equal_pairs import EQUAL_BOTH_WAYS
from sign_and_unit_pairs import OTHER_SIGNS_AND_UNITS

from luspo_cli.grading.maths.decide import decide, decide_quickly
from luspo_cli.grading.maths.normalise import normalise
from luspo_cli.grading.verdict import Reason

DIFFERENT = DIFFERENT_BOTH_WAYS + OTHER_SIGNS_AND_UNITS


@pytest.mark.parametrize(("gold", "answer"), EQUAL_BOTH_WAYS)
def test_equal_whichever_is_the_gold(gold: str, answer: str) -> None:
    assert decide(gold, answer) not in (Reason.DIFFERENT, None)
    assert decide(answer, gold) not in (Reason.DIFFERENT, None)


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_different_whichever_is_the_gold(gold: str, answer: str) -> None:
    assert decide(gold, answer) is Reason.DIFFERENT
    assert decide(answer, gold) is Reason.DIFFERENT


def test_digits_without_their_base_answer_a_question_for_a_base_and_not_the_other_way_round() -> None:
    assert decide("10_2", "10") is Reason.STRUCTURAL
    assert decide("10", "10_2") is Reason.DIFFERENT


@pytest.mark.parametrize("text", sorted({text for pair in EQUAL_BOTH_WAYS + DIFFERENT for text in pair}))
def test_a_spelling_equals_itself_and_normalising_it_twice_changes_nothing(text: str) -> None:
    assert decide_quickly(text, text) is Reason.EXACT
    once = normalise(text).text
    assert normalise(once).text == once


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\sum_{k=1}^{n} k^2", r"\frac{n(n+1)(2n+1)}{6}"),
        (r"\int_0^1 x\,dx", r"\frac12"),
        (r"\lim_{x\to0}\frac{\sin x}{x}", "1"),
        (r"\prod_{k=1}^{3} k", "6"),
        (r"A\setminus B", r"A\cap B"),
        ("6", r"\sum_{k=1}^{3} k"),
    ],
)
def test_what_the_grammar_lacks_is_not_understood_and_not_called_different(gold: str, answer: str) -> None:
    assert decide(gold, answer) is None


def test_what_is_equal_by_its_spelling_needs_no_understanding() -> None:
    assert decide(r"\sum_{k=1}^n k", r"\sum _{k=1}^{n} k".replace("{n}", "n")) is Reason.EXACT
