"""Read the option letter of a We-Math response: the benchmark's own string rule, and a reading without its traps.

The official rule takes the first character after the last word "Answer", so "(B)" and "The answer is B." are
nothing and "As shown ..." is A. The rule reading asks the requested template first, then box, answer tag, answer
phrase, a marked letter, and a capital standing alone; never the first letter of a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from luspo_cli.grading.answers import final_text, has_box, last_boxed, last_match
from luspo_cli.grading.free_text.choices import choice_position, read_choice
from luspo_cli.grading.free_text.segments import answer_tails, ends, letter_pattern

OFFICIAL_LETTERS = "ABCDEFGH"

_REMOVED = str.maketrans("", "", "><:.")
_TEMPLATE = re.compile(r"<\s{0,3}answer\s{0,3}>\s{0,5}[:：]?\s{0,5}<{0,3}\s{0,5}\(?([A-Ga-g])(?![\w'’])", re.IGNORECASE)
_TAG = re.compile(r"<answer>([^<]{0,400})</answer>", re.IGNORECASE)
_ANSWER_COLON = re.compile(
    r"\b(?i:answer)\**\s{0,8}[:：.]\**\s{0,8}(?i:option )?"
    rf"\(?({letter_pattern('G')}|[a-g](?=[).\s]{{0,3}}(?:\n|$)))"
)
_LETTER = re.compile(rf"\W{{0,6}}(?i:text|option |choice )?\W{{0,2}}({letter_pattern('G')}|[a-g](?=\W{{0,4}}$))")
_HEAD = re.compile(r"\W{0,4}([A-G])(?:[.:)：）]|\s?$)", re.MULTILINE)
_PARENTHESISED = re.compile(r"[(（]\s?([A-G])\s?[)）]")
_STANDING = re.compile(r"(?<![\w'’^\\=+*/-])([A-G])(?![\w'’(^=+*/-])", re.ASCII)
_SHORT = 200
"""Characters up to which a capital standing alone is read: longer texts on figures are full of points A and B."""
_SENTENCE_START = re.compile(r"(?:^|[.!?\n]\s{0,4})[A-G]\s(?=[a-z])")


def official_letter(response: str | None) -> str | None:
    """The first of A..H after the last "Answer" once spaces and `> < : .` are gone, or None."""
    text = (response or "").rpartition("Answer")[2].strip().translate(_REMOVED).strip()
    return text[0] if text and text[0] in OFFICIAL_LETTERS else None


def read_letter(response: str, options: Mapping[str, str], question: str = "") -> str | None:
    """The option letter that `response` gives, one of the keys of `options`, or None."""
    shown = final_text(response)
    if shown is None or not shown.strip():
        return None
    text = ends(shown.strip())
    template = last_match(_TEMPLATE, text)
    if template is not None:
        return _among(template[1], options)
    if has_box(shown):
        return short_letter(last_boxed(shown) or "", options)
    tags = _TAG.findall(text)
    if tags:
        return short_letter(tags[-1], options)
    colons = _ANSWER_COLON.findall(text)
    if colons:
        return _among(colons[-1], options)
    return next(filter(None, _readings(text, options, question)), None)


def _readings(text: str, options: Mapping[str, str], question: str) -> Iterator[str | None]:
    """What each way to read a letter without a mark finds, the most trusted first."""
    for tail in answer_tails(text):
        yield short_letter(tail, options)
    head = _HEAD.match(text)
    yield head[1] if head is not None and head[1] in options else None
    marked = {letter for letter in _PARENTHESISED.findall(text) if letter in options}
    yield marked.pop() if len(marked) == 1 else None
    texts = list(options.values())
    position = read_choice(text, texts, question) if texts else None
    yield None if position is None else list(options)[position]
    blanked = _SENTENCE_START.sub(lambda match: " " * len(match[0]), text)
    standing = [letter for letter in _STANDING.findall(blanked) if letter in options]
    yield standing[-1] if standing and len(text) <= _SHORT else None


def short_letter(text: str, options: Mapping[str, str]) -> str | None:
    """The letter that a short answer (a box, a tag, a stored extraction) begins with, or whose option text it is."""
    match = _LETTER.match(text[:_SHORT].strip())
    letter = None if match is None else _among(match[1], options)
    if letter is not None:
        return letter
    position = choice_position(text, list(options.values())) if options else None
    return None if position is None else list(options)[position]


def _among(letter: str, options: Collection[str]) -> str | None:
    return letter.upper() if letter.upper() in options else None
