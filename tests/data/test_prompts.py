"""Templates against the prompts inside published files, and their removal."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from luspo_cli.data.problems import load_problems
from luspo_cli.data.prompts import PROMPTS, build_prompt, strip_prompt
from luspo_cli.errors import UsageError
from luspo_cli.records import Message

DATA = Path(os.environ.get("LUSPO_DATA", Path(__file__).resolve().parents[2] / "../shared/data"))


def test_qwen_boxed_has_a_system_turn() -> None:
    assert build_prompt("qwen-boxed", "What is 2+3?") == (
        Message("system", "Please reason step by step, and put your final answer within \\boxed{}."),
        Message("user", "What is 2+3?"),
    )


def test_dapo_word_for_word() -> None:
    (message,) = build_prompt("dapo", "What is 2+3?")
    assert message.content == (
        "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
        "$Answer (without quotes) where $Answer is the answer to the problem.\n\nWhat is 2+3?\n\n"
        'Remember to put your answer on its own line after "Answer:".'
    )


@pytest.mark.parametrize("name", PROMPTS)
def test_stripping_undoes_building(name: str) -> None:
    assert strip_prompt(build_prompt(name, "Find $x$.")[-1].content) == "Find $x$."


def test_boxed_suffix_is_the_one_in_published_files() -> None:
    file = DATA / "aime24/aime24.parquet"
    if not file.is_file():
        pytest.skip(f"needs {file} (set LUSPO_DATA)")
    for problem in load_problems(file):
        (message,) = problem.prompt
        question = strip_prompt(message.content)
        assert len(question) < len(message.content)
        assert build_prompt("boxed-suffix", question) == problem.prompt


def test_image_marks_are_completed() -> None:
    assert build_prompt("plain", "What is this?", images=2)[0].content == "<image><image>What is this?"
    assert build_prompt("plain", "In <image>?", images=1)[0].content == "In <image>?"


def test_unknown_template_lists_the_names() -> None:
    with pytest.raises(UsageError, match=r"no prompt template 'qwen-box' \(did you mean 'qwen-boxed'\?\).*dapo"):
        build_prompt("qwen-box", "?")
