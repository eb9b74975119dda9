"""MathVista's own comparison, given an extraction (arXiv 2310.02255; scripts of lupantech/MathVista, 2023 and today).

Always string equality with the gold after normalising the extraction. It has no "no answer" for multiple choice: what
is neither a letter nor a choice becomes the choice at the smallest edit distance, so a refusal is scored as a guess.
That is reproduced here bit for bit and used nowhere else; `rule` mode never guesses.

The tables of 2023 read integers with `int(x)` on the text, so "5.0" failed; the present script accepts it. Both are
kept: `IntegerRule.CURRENT` for new numbers, `IntegerRule.HISTORICAL` for the published ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum

from rapidfuzz.distance import Levenshtein

from luspo_cli.grading.free_text.segments import answer_tails, first_sentence, visible_text

_PARENTHESISED_LETTER = re.compile(r"\(([a-zA-Z])\)")


class IntegerRule(StrEnum):
    """How an integer extraction is read."""

    CURRENT = "int(float(x))"
    """Truncates toward zero: "2.9" is 2."""
    HISTORICAL = "int(x)"
    """Text of an integer only: "5.0" is no answer."""


def nearest_choice(text: str, choices: Sequence[str]) -> str:
    """The choice at the smallest edit distance, the first one on ties."""
    distances = [Levenshtein.distance(text, choice) for choice in choices]
    return choices[distances.index(min(distances))]


def names_a_choice(extraction: str, choices: Sequence[str]) -> bool:
    """Whether the official comparison reads `extraction` without guessing: a letter in range or a choice verbatim."""
    text = _letter_or_text(extraction)
    return text in _letters(len(choices)) or text in choices


def normalize_extraction(
    extraction: str | None,
    choices: Sequence[str] | None,
    answer_type: str,
    precision: float | None,
    *,
    integer_rule: IntegerRule = IntegerRule.CURRENT,
) -> str | None:
    """The text that the official script compares with the gold, or None where it finds no answer."""
    if choices:
        text = _letter_or_text("None" if extraction is None else extraction)
        letters = _letters(len(choices))
        return choices[letters.index(text)] if text in letters else nearest_choice(text, choices)
    if answer_type == "list":
        return str(extraction)
    if extraction is None:
        return None
    try:
        if answer_type == "integer":
            return str(int(extraction) if integer_rule is IntegerRule.HISTORICAL else int(float(extraction)))
        return str(round(float(extraction), int(precision or 0)))
    except (ValueError, OverflowError):
        return None


def short_extraction(response: str, choices: Sequence[str] | None, answer_type: str) -> str | None:
    """What the official extraction takes without its judge: nothing, a choice verbatim, a bare number; else None."""
    if response == "":
        return ""
    if choices:
        return response if response in choices else None
    try:
        if answer_type == "integer":
            return str(int(response))
        if answer_type == "float":
            return str(float(response))
    except ValueError:
        return None
    return None


def unread_answer(response: str) -> str:
    """What stands after the last answer phrase of a response that names no answer, or ""."""
    tails = answer_tails(visible_text(response) or "")
    return first_sentence(tails[0])[:200] if tails else ""


def _letter_or_text(extraction: str) -> str:
    stripped = extraction.strip()
    letter = _PARENTHESISED_LETTER.search(stripped)
    return letter[1].upper() if letter else stripped


def _letters(count: int) -> list[str]:
    return [chr(ord("A") + index) for index in range(count)]
