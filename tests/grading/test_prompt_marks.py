"""The mark that a prompt asks for, by its text."""

from __future__ import annotations

import pytest

from luspo_cli.data.prompts import PROMPTS, build_prompt
from luspo_cli.grading.answers import AnswerMark
from luspo_cli.grading.prompts import mark_of_prompt

M = AnswerMark
PROMPTS_OF_OTHERS = [
    (r"Please reason step by step, and put your final answer within \boxed{}.", M.BOX),
    ("What is 2+3?", M.BOX),
    ("Which answer is right? Explain your answer.", M.BOX),
    ("A school wants an answer: how many?", M.BOX),
    ('Let\'s think step by step and output the final answer after "####".', M.HASHES),
    ("Finish with #### <answer>", M.TAGS),
    ("At the end write your answer in the form: #### answer", M.HASHES),
    ("The last line of your response should be of the form Answer: $ANSWER (without quotes)", M.ANSWER_LINE),
    ("Put the result on a line starting with 'Final Answer:'.", M.ANSWER_LINE),
    (r"End with a line of the form Answer: \boxed{$ANSWER}", M.ANSWER_LINE),
    (
        "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags.",
        M.TAGS,
    ),
    ("Return the final answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>.", M.TAGS),
    ('End your reply with a line of the form "A: number".', M.A_LINE),
    ("Q: How many eggs?\nA:", M.A_LINE),
    ("请一步步推理，最后以“答案：”的格式给出结果。", M.CHINESE),
    (r"请通过逐步推理来解答问题，并把最终答案放置于\boxed{}中。", M.BOX),
    ("这道题的答案是什么？", M.BOX),
]


@pytest.mark.parametrize(("prompt", "mark"), PROMPTS_OF_OTHERS)
def test_mark_of_a_prompt(prompt: str, mark: AnswerMark) -> None:
    assert mark_of_prompt([prompt]) is mark
    assert mark_of_prompt([prompt, "Find x."]) is mark or mark is AnswerMark.A_LINE


@pytest.mark.parametrize("name", list(PROMPTS))
def test_our_own_templates_ask_for_what_they_say(name: str) -> None:
    turns = build_prompt(name, "What is the answer to 6 times 7?")
    assert mark_of_prompt(turn.content for turn in turns) is (PROMPTS[name].asks_for or AnswerMark.BOX)
