"""Words, boxes and choices beside a value, judged by hand: what changes the value is a part of the answer wherever it stands."""

from __future__ import annotations

import pytest

from luspo_cli.grading.answers import AnswerMark, extract_answer, last_boxed
from luspo_cli.grading.grader import compare


def is_paid(gold: str, response: str, mark: AnswerMark = AnswerMark.BOX) -> bool:
    found = extract_answer(response, mark)
    if found is None:
        return False
    decision = compare(gold, found.text)
    return decision is not None and decision.reason.is_right


LEADS = [
    "not", "minus", "negative", "more than", "at least", "at most", "less than", "less than or equal to",
    "no more than", "twice", "half", "half of", "half the", "two", "the square of", "the reciprocal of",
    "twice the value of", "divisible by", "up to", "anything except", "isn't", "never",
    "cannot be", "can never be", "does not equal", "not to be",
]  # fmt: skip
TAILS = [
    "squared", "cubed", "factorial", "or six", "and a half", "plus one", "minus two", "over two", "times ten",
    "tenths", "halves", "seventeenths", "thousands", "millions", "dozens", "million", "quadrillion", "lakh", "crores",
    "more than x", "mod x", "x", "choose two", "divided by two", "below zero", "is wrong", "isn't it",
]  # fmt: skip
HARMLESS = ["pints", "dollars", "red apples", "times", "square feet", "percent", "in total"]


@pytest.mark.parametrize("lead", LEADS)
def test_words_in_front_that_change_the_value_count_on_every_marked_line(lead: str) -> None:
    for response in (
        f"The answer is {lead} $5$.",
        f"Answer: {lead} $5$",
        f"A: it is {lead} $5$",
        f"**Final Answer**\n{lead} \\(5\\)",
    ):
        assert not is_paid("5", response)
    assert not is_paid("5", f"#### {lead} $5$", AnswerMark.HASHES)


@pytest.mark.parametrize(
    "line", ["-$5$", "- $5$", r"\pm $5$", "> $5$", "≥$5$", "√$5$", "$5$/x", "$5$ + x", "$5$^n", r"$5$ \times x"]
)
def test_signs_beside_a_formula_are_a_part_of_it(line: str) -> None:
    assert not is_paid("5", f"Answer: {line}")
    assert is_paid("5", "Answer: x = $5$")
    assert is_paid("5", "Answer: ~ $5$ – as was said!")


@pytest.mark.parametrize("tail", TAILS)
def test_words_behind_that_change_the_value_count_in_every_place(tail: str) -> None:
    marked = (f"#### 5 {tail}", f"The answer is $5$ {tail}", f"The answer is 5 {tail}.")
    for response in (*marked, rf"\boxed{{5\text{{ {tail}}}}}", rf"\boxed{{5 {tail}}}"):
        assert not is_paid("5", response)
        assert not is_paid("5", response, AnswerMark.HASHES)


@pytest.mark.parametrize("tail", HARMLESS)
def test_what_is_counted_is_no_part_of_the_value(tail: str) -> None:
    assert is_paid("5", f"#### 5 {tail}", AnswerMark.HASHES)
    assert is_paid("5", f"The answer is $5$ {tail}.")
    assert is_paid("5", rf"\boxed{{5\text{{ {tail}}}}}")


@pytest.mark.parametrize(
    ("gold", "response"),
    [
        ("5", "Answer: There are $5$ ways"),
        ("5", "Answer: She has exactly $5$ apples, no more."),
        ("5", "Answer: the value of the expression is equal to $5$"),
        ("5", "The answer is given by $5$"),
        ("5", "The answer is therefore $5$"),
        ("5", "The answer is about $5$"),
        ("5", "The answer is $5$, since there is no other."),
        (r"\frac12", r"Answer: The probability that she does not win is $\frac12$"),
        ("5", "The answer is $5$ because it is less than six"),
        ("5", "Answer: the maximum of $5$"),
        ("5", "Answer: We get $5$ marbles in the third box"),
        ("(1,2)", "The answer is the ordered pair $(1,2)$"),
        ("[0,1)", "The answer is the half-open interval $[0,1)$"),
        ("-3", "The answer is the negative number $-3$"),
        ("B", "The answer is option $B$"),
        ("5000000", "The answer is $5$ million"),
        ("-5", "The answer is minus $5$"),
        ("-5", r"\boxed{\text{minus }5}"),
        ("5", r"\boxed{5\text{ units squared}}"),
        ("5", "答案：5个"),
        ("5", "答案：5平方厘米"),
        ("5", "答案：x的值为$5$"),
        ("5", "答案：不等式的解为$5$"),
        ("5", "答案：不超过x的最大整数是$5$"),
    ],
)
def test_prose_that_leaves_the_value_alone_is_dropped(gold: str, response: str) -> None:
    assert is_paid(gold, response)


@pytest.mark.parametrize(
    "answer",
    [
        "不可能是$5$",
        "不等于$5$",
        "5以上",
        "5的平方",
        "5次方",
        "5不对",
        "5打",
        "5成",
        "不是$5$",
        "大于$5$",
        "至少$5$",
        "负$5$",
        "$5$以上",
        "$5$的平方",
    ],
)
def test_chinese_words_that_change_the_value(answer: str) -> None:
    assert not is_paid("5", f"答案：{answer}")
    assert not is_paid("5", f"答案：{answer}", AnswerMark.CHINESE)


@pytest.mark.parametrize(
    "answer",
    [
        r"\text{(A) cannot be true}", "(A) isn't right", "(A) can't be it", "(A) is not it",
        "(A) not right", "(A) C", "(A) B",
        r"\text{(A) C}", "(A) 5; C", "A. 5; C", "(A) 27 (but C is also possible)", "(A) or C", "(A) perhaps also C",
    ],
)  # fmt: skip
def test_a_choice_that_is_denied_or_followed_by_another_is_none(answer: str) -> None:
    assert not is_paid("A", rf"\boxed{{{answer}}}")


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("A", "A)"), ("A", "A."), ("C", "(C) Plane"), ("D", "(D) is even"), ("D", "(D) P(A) = 1"), ("C", r"\textbf{(C) } B = 3"),
        ("E", r"\text{(E) cannot be determined}"), ("B", "(B) AB"), ("B", "(B) no real solutions"), ("D", "(D) A point"),
        ("A", "(A) A"),
        ("B", "(B) no"), ("no", "(B) no"), ("E", "(E) no solution"),
        ("D", "(D) not enough information"), ("C", "(C) never"),
    ],
)  # fmt: skip
def test_the_text_of_a_choice_may_be_anything_else(gold: str, answer: str) -> None:
    assert is_paid(gold, rf"\boxed{{{answer}}}")


def test_a_box_in_a_box_is_read_with_what_stands_around_it() -> None:
    assert last_boxed(r"\boxed{6 \boxed{5}}") == r"6  \boxed{5}"
    assert not is_paid("5", r"\boxed{6 \boxed{5}}")
    assert not is_paid("65", r"\boxed{6\boxed{5}}")
    assert not is_paid("5", r"\boxed{-\boxed{5}}")
    assert is_paid("5", r"\boxed{x = \boxed{5}}")
    assert is_paid("5", r"\boxed{\boxed{\boxed{5}}}")
    assert last_boxed(r"\boxed{4} and \boxed{5}") == "5"
    assert last_boxed(r"\boxed{ and \boxed{5}") == "5"
