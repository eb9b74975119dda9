r"""Which mark a prompt asks for, recognised by its text, so that data made elsewhere is read as its prompt wants.

Recognised are our own templates (data/prompts.py), verl's and DAPO's, the `<answer>` prompts of R1-Zero, open-r1 and
TinyZero, `A:` and 答案. The wording must ask for the mark: a question that merely holds the word "answer" changes
nothing. `\boxed{}`, and whatever is not recognised, is read as boxed. Where a prompt asks for two (`Answer: \boxed{...}`)
the outer one is its own mark, and a box inside it is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from luspo_cli.grading.answers import AnswerMark

_ASKS = r"(?:after|follow|following|form|format|with|using|write|as|like|by|line|prefix|say|output|begins?|starts?)"
_PATTERNS: tuple[tuple[AnswerMark, re.Pattern[str]], ...] = (
    (AnswerMark.TAGS, re.compile(r"<answer>", re.IGNORECASE)),
    (
        AnswerMark.HASHES,
        re.compile(rf"\b{_ASKS}\b[^\n]{{0,40}}####|####\s{{0,4}}[<\[{{(]?\s?(?:answer|your|the|final|N\b)", re.I),
    ),
    (
        AnswerMark.ANSWER_LINE,
        re.compile(rf"\b{_ASKS}\b[^\n]{{0,60}}?\W(?:final\s|the\s)?answer[\"'”’*]{{0,3}}\s{{0,2}}[:：]", re.IGNORECASE),
    ),
    (AnswerMark.A_LINE, re.compile(rf"\b{_ASKS}\b[^\n]{{0,40}}?[\"'“‘`]A[:：]|\n\s{{0,4}}A[:：]\s{{0,4}}\Z")),
    (
        AnswerMark.HEADING,
        re.compile(rf"\b{_ASKS}\b[^\n]{{0,60}}?(?:\*\*|#{{1,6}}\s)final\sanswer(?:\*\*|\s|\Z)", re.IGNORECASE),
    ),
    (
        AnswerMark.CHINESE,
        re.compile(r"(?:以|用|按|写|填|格式|形式|开头|输出|给出)[^\n]{0,20}答案\s{0,2}[”\"'」』]?\s{0,2}[:：]|答案[:：][^\n]{0,12}(?:格式|形式|开头)"),
    ),
)  # fmt: skip


def mark_of_prompt(turns: Iterable[str]) -> AnswerMark:
    """Return the mark that the turns of a prompt, as texts, ask for; the box where they ask for none that is known."""
    text = "\n".join(turns)
    return next((mark for mark, pattern in _PATTERNS if pattern.search(text)), AnswerMark.BOX)
