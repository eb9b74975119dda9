r"""One comparison of two mathematical answers with math-verify; imported inside worker processes only.

math-verify's own time-outs are off: they use a signal alarm, which C code never notices and which leaves an alarm
behind; the pool kills instead. Its `verify` takes the gold answer first and is not symmetric. An error while comparing
is raised, not read as "different": the pool counts it.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

logging.getLogger("math_verify").setLevel(logging.CRITICAL)

_LATEX = (LatexExtractionConfig(),)
_PLAIN = (ExprExtractionConfig(),)
_BARE_PI = re.compile(r"(?<![a-zA-Z\\])pi(?![a-zA-Z])")


def equal_answers(gold: str, answer: str) -> bool:
    """Whether `answer` says the same as `gold`; both are bare answers without their box."""
    return bool(verify(_parse_answer(gold), _parse_answer(answer), timeout_seconds=None, raise_on_error=True))


def can_parse(gold: str) -> bool:
    """Whether `gold` is read as mathematics; what is not can only be matched as the same text."""
    return any(not isinstance(part, str) for part in _parse_answer(gold))


def _parse_answer(answer: str) -> list[Any]:
    # math-verify reads a plain `pi` as the product of p and i.
    answer = _BARE_PI.sub(r"\\pi ", answer)
    # A formula inside prose is found by its dollars; a bare answer is put between dollars to be found.
    text = answer if "$" in answer.replace(r"\$", "") else f"${answer}$"
    parts = parse(text, extraction_config=_LATEX, parsing_timeout=None)
    if any(not isinstance(part, str) for part in parts):
        return list(parts)
    return list(parse(answer, extraction_config=_PLAIN, parsing_timeout=None)) or list(parts)


_parse_answer("1")  # compiles math-verify's patterns before the first task's clock starts
