r"""math-verify for what our own comparison does not know: sums, products, integrals, limits, determinants, set differences.

Decided here: math-verify reads the LaTeX, sympy decides exactly. Its own `verify` compares rounded numbers and falls back on
readings that drop units, cases and brackets, so it pays wrong answers (docs/grading.md has the table); here two expressions
are equal if their difference is shown to be 0, two sets if each holds the other, and nothing else is. It can
hang inside C code, so it is imported and run in workers that can be killed and nowhere else. Its own time limits
are off: they are a signal alarm, which C code never notices and which stays behind.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from luspo_cli.grading.maths.normalise import normalise
from luspo_cli.grading.maths.tokens import DERIVATIVE

_NEVER = re.compile(
    r"\\(?:equiv|pmod|forall|exists|l?dots|cdots|mid|text|neq?|approx)(?![A-Za-z])|[<>]|[0-9]\s?\}?\^\{?[0-9]+\^"
)
"""What math-verify leaves out of its reading or reads in part, and towers of powers, which only fill the memory."""
_BOUNDS = re.compile(r"_\s*\{[^{}]*\}")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_NO_WORDS = re.compile(r"d[a-z](?![a-z])|\\(?:begin|end)\{[a-zA-Z]+\}")
_LETTERS = re.compile(r"(?<![A-Za-z\\])[A-Za-z]+|\\[A-Za-z]+")
_LONGEST = 300


def may_know(gold: str, answer: str) -> bool:
    """Whether math-verify may be asked about two texts that our grammar does not understand: neither is words or prose."""
    # An equation has no value of its own, but for the bounds of a sum.
    return not any(
        len(side) > _LONGEST
        or _NEVER.search(side)
        or "=" in _BOUNDS.sub("", side)
        or _WORD.search(_NO_WORDS.sub("", side))
        or _differentiates_an_unknown(normalise(side).text)
        for side in (gold, answer)
    )


def _differentiates_an_unknown(text: str) -> bool:
    """Whether a derivative is taken of other letters than its own: sympy takes them for constants, so that dy/dx were 0."""
    derivative = DERIVATIVE.search(text)
    if derivative is None:
        return False
    own = {"d", "e", r"\frac", r"\pi"} | {f"{before}{letter}" for letter in derivative.groups() for before in ("", "d")}
    return not own.issuperset(_LETTERS.findall(text))


def equal(gold: str, answer: str) -> bool:
    """Whether sympy shows the two to be equal, as math-verify reads them; False for whatever it cannot read."""
    import sympy

    try:
        first, second = parsed(normalise(gold).text), parsed(normalise(answer).text)
        if isinstance(first, sympy.Expr) and isinstance(second, sympy.Expr):
            return (first - second).doit().equals(0) is True
        if isinstance(first, sympy.Set) and isinstance(second, sympy.Set):
            return all((one - other).is_empty is True for one, other in ((first, second), (second, first)))
    except MemoryError:
        raise  # the pool counts it, and starts a fresh worker
    except Exception:
        # Whatever a parser or solver raises on text that it cannot handle means "not shown equal".
        return False
    return False


def load() -> None:
    """Import math-verify and sympy, which takes a second or more and must not count against a comparison's time."""
    parsed("1")


def parsed(answer: str) -> Any:
    """Return what math-verify reads in a bare answer, or None where it reads no mathematics."""
    from math_verify import LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    parts = parse(f"${answer.strip().strip('$')}$", extraction_config=(LatexExtractionConfig(),), parsing_timeout=None)
    return next((part for part in parts if not isinstance(part, str)), None)
