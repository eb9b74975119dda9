"""Extraction: each rule with the case that breaks it, and hostile text in bounded time."""

from __future__ import annotations

import time

import pytest

from luspo_cli.grading.answers import Form, extract_answer, final_text, has_box, last_boxed, last_number

CASES = [
    # the last box, braces counted
    (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
    (r"\boxed{3} or rather \boxed{25}", "25"),
    (r"\boxed{3} or \fbox{4}", "4"),
    (r"\boxed {25}", "25"),
    ("\\boxed\n{25}", "25"),
    (r"\boxed{\boxed{7}}", "7"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{\left\{ 1,2 \right.}", r"\left\{ 1,2 \right."),
    (r"$\boxed 25$ is it", "25"),
    (r"\boxed 25 apples", "25"),
    (r"\boxed{25}. Answer: 26", "25"),
    (r"Answer: $\boxed{25}$", "25"),
    # a box that holds nothing decides nevertheless
    (r"\boxed{3} then \boxed{}", None),
    (r"Answer: 3 and \boxed{ }", None),
    (r"\boxed{3", None),
    (r"\boxed{3} then \boxed{\frac{1}{2}", None),
    (r"\boxed", None),
    (r"\boxed$", None),
    (r"\boxed{ANSWER}", None),
    (r"\boxed{\text{ANSWER}}", None),
    (r"\boxed{\text{your answer}}", None),
    (r"\boxed{...}", None),
    (r"\boxedness 25", None),
    # GSM8K's mark
    ("6 * 3 = 18\n#### 18", "18"),
    ("#### 1,234", "1,234"),
    ("#### $18", "18"),
    ("#### -5.50", "-5.50"),
    ("#### 18 dollars.", "18"),
    ("#### 3\n#### 4\n", "4"),
    ("#### Step 1\nmore", None),
    ("#### 1. Compute the sum", None),
    ("#### Final step\nThe answer is 5", "5"),
    # answer lines
    ("Answer: 25", "25"),
    ("**Answer:** 25", "25"),
    ("**Answer**: 25", "25"),
    ("ANSWER : 25.", "25"),
    ("Answer: 25.0", "25.0"),
    ("Answer：25", "25"),
    ("Answer: 25 then\nAnswer: 26", "26"),
    ("The final answer is: $x=25$ because", "x=25"),
    ("the answer is 25. This is because of 7", "25"),
    ("The answer is $3$ and $5$", "$3$ and $5$"),
    ("Answer:\n$$25$$", "25"),
    (r"Answer: \(\frac12\)", r"\frac12"),
    (r"Answer: $\$18$", r"\$18"),
    ("Answer: 25<|im_end|>", "25"),
    ("Answer: 25<|im_end|>\n<|im_start|>user", "25"),
    ("Answer: 25</s>", "25"),
    ("Answer: $Answer", None),
    ("Answer:", None),
    ("The answer isn't known", None),
    # thoughts
    (r"<think>\boxed{3}</think> \boxed{4}", "4"),
    (r"<think>\boxed{3}</think> four", None),
    (r"<think>\boxed{3}", None),
    (r"\boxed{3}</think>", None),
    (r"<think>a</think>\boxed{4}<think>\boxed{5}", "4"),
    (r"<THINK>a</THINK><think>b \boxed{1}</think>\boxed{2}", "2"),
    # nothing to find
    ("", None),
    ("the value 25 occurs", None),
    ("<|im_end|>", None),
]


@pytest.mark.parametrize(("response", "expected"), CASES)
def test_extract_answer(response: str, expected: str | None) -> None:
    assert extract_answer(response) == expected


def test_last_number_only_where_asked_for() -> None:
    text = "there were 1,234 of 5.5, or -3/4"
    assert extract_answer(text) is None
    assert extract_answer(text, (Form.BOXED, Form.LAST_NUMBER)) == "-3/4"
    assert last_number("18.") == "18"
    assert last_number("none") is None


def test_a_line_is_a_form_of_its_own() -> None:
    text = "Q: how many?\nA: 42."
    assert extract_answer(text) is None
    assert extract_answer(text, (Form.A_LINE,)) == "42"


def test_order_of_forms_decides() -> None:
    text = "Answer: 5\n#### 6"
    assert extract_answer(text) == "6"
    assert extract_answer(text, (Form.ANSWER_LINE, Form.HASHES)) == "5"


def test_formula_bars_are_not_a_special_token() -> None:
    assert final_text("0 <|x|> 3") == "0 <|x|> 3"
    assert final_text("a<|endoftext|>b") == "a\nb"


def test_box_in_unfinished_form_is_present_but_empty() -> None:
    assert has_box(r"\boxed{3")
    assert last_boxed(r"\boxed{3") is None


@pytest.mark.parametrize(
    "text",
    [
        "answer" + " " * 200_000,
        "answer: " * 50_000,
        r"\boxed{" * 50_000,
        r"\boxed{" + "{" * 200_000,
        "\\boxed" + " " * 200_000,
        "answer: " + r"\(" * 50_000,
        "answer: " + "$" * 100_000,
        "#" * 200_000,
        "####" + " " * 200_000 + "x",
        ("#### " + " " * 3000 + "x\n") * 50,
        "1," * 100_000 + "x",
        "<think>" * 50_000,
        "<|" + "a" * 200_000,
        "answer: " + ". " * 100_000,
        "*" * 200_000 + "A",
    ],
    ids=lambda text: text[:12],
)
def test_hostile_text_is_cheap(text: str) -> None:
    started = time.perf_counter()
    extract_answer(text, tuple(Form))
    assert time.perf_counter() - started < 2.0
