"""MathVista by VLMEvalKit's deterministic rules, to compare with numbers that were made with it; not a mode of ours.

It asks for a letter where the benchmark asks for a choice: no nearest-choice guess, one letter only where two choices
have the gold's text, integers by `int(x)` on the text ("5.0" is wrong), floats equal without rounding, lists never.
Before it asks its judge it tries these rules on the raw response (the prefetch); any letter found stops the judge.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

REFUSED = "Z"
"""The letter of a response that declines."""

_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"answer is \**([A-D])", re.IGNORECASE)  # any case and no word end: "answer is choice" is C
_LAST_TOKENS = 4


def infer_letter(text: str, choices: Sequence[str]) -> str | None:
    """The letter that `text` names: a lone letter among the last four tokens, "answer is X", or a choice's text."""
    if any(refusal in text for refusal in _REFUSALS):
        return REFUSED
    letters = [chr(ord("A") + index) for index in range(len(choices))]
    tokens = text.translate(_PUNCTUATION).split()
    named = [letter for letter in letters if letter in tokens]
    if len(named) == 1 and tokens.index(named[0]) >= len(tokens) - _LAST_TOKENS:
        return named[0]
    if not named and REFUSED in tokens:
        return REFUSED
    match = _ANSWER_IS.search(text)
    if match and match[1].upper() in letters:
        return match[1].upper()
    lowered = text.lower()
    if len(lowered) > 2 * sum(map(len, choices)):
        return None
    contained = [letter for letter, choice in zip(letters, choices, strict=True) if choice.lower() in lowered]
    return contained[0] if len(contained) == 1 else None


def prefetch(response: str, choices: Sequence[str] | None, answer_type: str, gold: str) -> str | None:
    """What is taken from the raw response without a judge: a letter, or the gold where it is all of it (never a 0)."""
    if choices:
        return infer_letter(response, choices)
    value = _number(response, answer_type)
    return str(value) if value and value == _number(gold, answer_type) else None


def hit(extraction: str, choices: Sequence[str] | None, answer_type: str, gold: str) -> bool:
    """Whether an extraction counts as right."""
    if choices:
        return infer_letter(extraction, choices) == chr(ord("A") + list(choices).index(gold))
    value = _number(extraction, answer_type)
    return value is not None and value == _number(gold, answer_type)


def _number(text: str, answer_type: str) -> int | float | None:
    try:
        if answer_type == "integer":
            return int(text)
        return float(text) if answer_type == "float" else None
    except ValueError:
        return None
