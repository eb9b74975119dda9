"""One number out of a short answer in words, for the benchmarks whose answers are all plain numbers.

Decided here: the whole answer must be the number (units, `x =` and a choice letter aside), or hold exactly one number
among words. Two different numbers are no answer: picking one would be guessing.
"""

from __future__ import annotations

import re
from fractions import Fraction

from luspo_cli.grading.maths.normalise import MAX_ANSWER_CHARACTERS, joined_thousands, normalise
from luspo_cli.grading.maths.numbers import parse_number
from luspo_cli.grading.maths.spelling import TEXT_CLOSE, TEXT_OPEN, plain_characters, rewrite_commands

_IN_WORDS = re.compile(
    r"(?<![0-9A-Za-z_.,^/*+])-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]+)?(?:/[0-9]+)?(?![0-9A-Za-z_^/*+])"
)
_SYMBOL = re.compile(r"(?<![A-Za-z'])[ijknpqrtxyz](?![A-Za-z'])")
_AS_SPACE = str.maketrans(dict.fromkeys((TEXT_OPEN, TEXT_CLOSE, "*", "$"), " "))


def number_in(answer: str) -> Fraction | None:
    """Return the one number that `answer` states, or None: `$1,234.00`, `x = 27`, `(B) 27`, `27 minutes in all`."""
    if len(answer) > MAX_ANSWER_CHARACTERS:
        return None
    normal = normalise(answer)
    text = joined_thousands(normal)
    value = parse_number(text)
    if value is not None:
        return value
    text = text.rpartition("=")[2].rpartition(r"\approx")[2].strip()
    value = parse_number(text)
    if value is not None:
        return value
    words = rewrite_commands(plain_characters(answer.rpartition("=")[2])).translate(_AS_SPACE)
    if re.search(r"[\\^{}|]", words) or _SYMBOL.search(words):  # an expression, whatever numbers it holds
        return None
    found = {match.group(0).replace(",", "") for match in _IN_WORDS.finditer(words) if match.group(0) not in ("", "-")}
    return parse_number(found.pop()) if len(found) == 1 else None
