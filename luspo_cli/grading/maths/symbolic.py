r"""Sympy for the expressions that our own grammar does not know: sums, integrals, limits, derivatives.

It reads LaTeX with the parser that math-verify uses, and it can hang, so it runs only in workers that can be killed.
One side must hold a command that our grammar lacks; words never get here, since a LaTeX parser would read them as
products of letters and find anagrams equal.
"""

from __future__ import annotations

import re

from luspo_cli.grading.maths.decide import decide
from luspo_cli.grading.verdict import Reason

_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_KNOWN_TO_SYMPY = re.compile(r"\\(?:sum|prod|int|lim|frac\{d|det|bmod)(?![A-Za-z])")
_DIFFERENTIAL = re.compile(r"d[a-z](?![a-z])")
_FRACTION = re.compile(r"\\frac ?([0-9a-zA-Z]|\{[^{}]*\}) ?([0-9a-zA-Z]|\{[^{}]*\})")
_LONGEST = 300


def is_for_sympy(text: str) -> bool:
    """Whether `text` holds a command that our own grammar lacks and sympy may know."""
    return len(text) <= _LONGEST and _KNOWN_TO_SYMPY.search(text) is not None


def same_by_sympy(gold: str, answer: str) -> bool:
    """Return whether sympy shows gold - answer to be 0; False for whatever it cannot read."""
    if max(len(gold), len(answer)) > _LONGEST or not (is_for_sympy(gold) or is_for_sympy(answer)):
        return False
    if any(_WORD.search(_DIFFERENTIAL.sub("", text)) for text in (gold, answer)):
        return False
    import sympy
    from latex2sympy2_extended import latex2sympy

    try:
        first, second = (latex2sympy(_brace_fractions(text)) for text in (gold, answer))
        if not (isinstance(first, sympy.Expr) and isinstance(second, sympy.Expr)):
            return False
        difference = (first - second).doit()
        return bool(difference.equals(0))
    except Exception:
        # Whatever a parser raises on text that it cannot read means "not shown equal"; the sample counts as different.
        return False


def decide_fully(gold: str, answer: str) -> Reason:
    """Return the reason of `decide`, and of sympy for what `decide` does not understand."""
    reason = decide(gold, answer)
    if reason is None:
        return Reason.SYMBOLIC if same_by_sympy(gold, answer) else Reason.DIFFERENT
    return reason


def _brace_fractions(text: str) -> str:
    return _FRACTION.sub(
        lambda match: "\\frac" + "".join("{" + part.strip("{}") + "}" for part in match.groups()), text
    )
