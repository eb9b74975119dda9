"""Extraction: each rule with the case that breaks it, and hostile text in bounded time."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from luspo_cli.grading import answers
from luspo_cli.grading.answers import AnswerMark, extract_answer, final_text, has_box, last_boxed, last_number
from luspo_cli.grading.verdict import ReadFrom

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


def answer(response: str, mark: AnswerMark = AnswerMark.BOX, *, thought_open: bool = False) -> str | None:
    found = extract_answer(response, mark, thought_open=thought_open)
    return None if found is None else found.text


@pytest.mark.parametrize(("response", "expected"), CASES)
def test_extract_answer(response: str, expected: str | None) -> None:
    assert answer(response) == expected


OWN, BOX, OTHER, PHRASE = ReadFrom.OWN_MARK, ReadFrom.BOX, ReadFrom.OTHER_MARK, ReadFrom.PHRASE
M = AnswerMark
MARKS = [
    # the prompt's own mark first, then the box, then the others
    ("#### 5\n\\boxed{6}", M.HASHES, "5", OWN),
    ("#### 5\n\\boxed{6}", M.BOX, "6", BOX),
    ("A: 5\n\\boxed{6}", M.A_LINE, "5", OWN),
    ("A: 5\n\\boxed{6}", M.BOX, "6", BOX),
    ("Answer: 5\n\\boxed{6}", M.ANSWER_LINE, "5", OWN),
    ("Answer: 5\n\\boxed{6}", M.HASHES, "6", BOX),
    ("<answer>5</answer>\n\\boxed{6}", M.TAGS, "5", OWN),
    ("<answer>5</answer>\n\\boxed{6}", M.BOX, "6", BOX),
    ("答案：5\n\\boxed{6}", M.CHINESE, "5", OWN),
    ("答案：5\n\\boxed{6}", M.BOX, "6", BOX),
    ("**Final Answer**\n5\nwhere \\boxed{6}", M.HEADING, "5", OWN),
    ("Answer: 5\n#### 6", M.BOX, "6", OTHER),
    ("Answer: 5\n#### 6", M.ANSWER_LINE, "5", OWN),
    ("The answer is 5\n#### 6", M.ANSWER_LINE, "6", OTHER),
    ("so the answer is 5", M.ANSWER_LINE, "5", PHRASE),
    ("so the answer is 5", M.BOX, "5", PHRASE),
    ("Q: how many?\nA: 42.", M.BOX, "42", OTHER),
    ("Q: how many?\nA: 42.", M.A_LINE, "42", OWN),
    ("A: I think of 3 hens.\nThe answer is 18.", M.BOX, "18", PHRASE),
    ("The answer is 18.\nA: 19", M.BOX, "19", OTHER),
    # tags
    ("<answer> \\boxed{7} </answer>", M.TAGS, "7", OWN),
    ("<answer>The answer is $7$.</answer>", M.TAGS, "7", OWN),
    ("<answer>5</answer> no, <ANSWER>7</ANSWER>", M.BOX, "7", OTHER),
    ("<answer>5</answer> <answer></answer>", M.BOX, None, None),
    ("<answer>5</answer> <answer>7", M.BOX, None, None),
    ("<answer> answer here </answer>", M.TAGS, None, None),
    # formulas where the mark asked for them
    ("#### \\frac{1}{2}", M.HASHES, r"\frac{1}{2}", OWN),
    ("#### \\boxed{9}", M.HASHES, "9", OWN),
    ("#### \\frac{1}{2}", M.BOX, None, None),
    ("#### 70{,}000", M.HASHES, "70,000", OWN),
    ("#### \\$70{,}000", M.BOX, "70,000", OTHER),
    ("#### 3x", M.BOX, "3x", OTHER),
    ("#### 5 million", M.HASHES, "5 million", OWN),
    ("#### 5 pints", M.HASHES, "5", OWN),
    # a Markdown heading is no mark where the response still comes to its answer
    ("#### Step 2: add\n2 + 3 is \\boxed{5}", M.HASHES, "5", BOX),
    ("#### Step 2: add\nso the answer is 5", M.HASHES, "5", PHRASE),
    # headings
    ("### Final Answer\n\n\\[\n5\n\\]", M.BOX, "5", OTHER),
    ("**Final Answer**\n$$ x=5 $$\nas said", M.BOX, "x=5", OTHER),
    ("**Final Answer**\nThe answer is 5.", M.BOX, "5", OTHER),
    ("__The final answer__\n5", M.BOX, "5", OTHER),
    ("the final answer\nwas far", M.BOX, "was far", OTHER),
    # Chinese
    ("所以答案是5。谢谢", M.BOX, "5", OTHER),
    ("**答案**：$5$", M.BOX, "5", OTHER),
    ("答案不是5", M.BOX, None, None),
    ("答案是否为5", M.BOX, None, None),
    # colours are no part of an answer
    (r"\boxed{\color{blue}{5}}", M.BOX, "{5}", BOX),
    (r"\boxed{\textcolor{red}{5}}", M.BOX, "{5}", BOX),
    (r"\boxed{\colorbox{yellow}{5}}", M.BOX, "{5}", BOX),
    # a base model goes on with the next question
    ("#### 5\n\nQuestion: and then?\n#### 6", M.BOX, "5", OTHER),
    ("\\boxed{5}\n\n### Problem 2: and then?\n\\boxed{6}", M.BOX, "5", BOX),
    ("The answer is 5.\n\nQ: more?\nA: The answer is 6.", M.BOX, "5", PHRASE),
    ("Question: how many?\n\\boxed{5}", M.BOX, "5", BOX),
    ("I restate.\nQuestion: how many?\n\\boxed{5}", M.BOX, "5", BOX),
]


@pytest.mark.parametrize(("response", "mark", "expected", "place"), MARKS)
def test_the_mark_of_the_prompt_decides(
    response: str, mark: AnswerMark, expected: str | None, place: ReadFrom | None
) -> None:
    found = extract_answer(response, mark)
    assert (found and found.text, found and found.read_from) == (expected, place)


@pytest.mark.parametrize("mark", list(AnswerMark))
def test_a_thought_that_the_prompt_opened_holds_no_answer(mark: AnswerMark) -> None:
    spelt = {
        M.BOX: r"\boxed{5}", M.TAGS: "<answer>5</answer>", M.HASHES: "#### 5", M.HEADING: "**Final Answer**\n5",
        M.ANSWER_LINE: "Answer: 5", M.A_LINE: "A: 5", M.CHINESE: "答案：5",
    }[mark]  # fmt: skip
    inside, after = f"I think\n{spelt}\nperhaps", f"I think\n</think>\n{spelt}"
    assert answer(inside, mark) == "5"
    assert answer(inside, mark, thought_open=True) is None
    assert answer(after, mark, thought_open=True) == "5"
    assert answer(f"<think>{inside}", mark) is None


def test_the_last_number_is_no_answer() -> None:
    text = "there were 1,234 of 5.5, or -3/4"
    assert answer(text) is None
    assert last_number(text) == "-3/4"
    assert last_number("18.") == "18"
    assert last_number(r"it is \$70{,}000") == "70,000"
    assert last_number("none") is None


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
        "x\nQuestion:\n" * 20_000,
        "<answer>" * 50_000,
        "答案：" * 50_000,
        "**Final Answer**\n" * 20_000,
        "Answer:\n$$" + " " * 200_000,
        "Answer:\n\\[" + "x" * 200_000,
    ],
    ids=lambda text: text[:12],
)
def test_hostile_text_is_cheap(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However an answer is marked, the patterns together are handed the text a bounded number of times."""
    handed = 0

    class Counting:
        def __init__(self, pattern: re.Pattern[str]) -> None:
            self.pattern = pattern

        def __getattr__(self, name: str) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                nonlocal handed
                at = 1 if name == "sub" else 0
                handed += len(arguments[at]) - sum(arguments[at + 1 :])  # all but what lies before a start
                return getattr(self.pattern, name)(*arguments)

            return call

    for name, value in vars(answers).items():
        if isinstance(value, re.Pattern) and name not in (
            "_CHINESE_MARK",
            "_HEADING",
        ):  # these two are told by identity
            monkeypatch.setattr(answers, name, Counting(value))
    for mark in AnswerMark:
        handed = 0
        extract_answer(text, mark)
        assert len(text) <= handed <= 12 * len(text)
