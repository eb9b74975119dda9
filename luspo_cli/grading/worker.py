"""What the grader's workers run: our comparison, then math-verify for what that does not know.

math-verify and sympy are imported with this module, so that their second or more does not count against the time limit of
the first comparison; the calling process never imports it.
"""

from __future__ import annotations

from luspo_cli.grading import math_verify
from luspo_cli.grading.maths.decide import decide
from luspo_cli.grading.verdict import DecidedBy, Reason

math_verify.load()


def compare(gold: str, answer: str) -> tuple[Reason, DecidedBy]:
    """Compare an answer with the gold answer."""
    reason = decide(gold, answer)
    if reason is not None or not math_verify.may_know(gold, answer):
        return reason or Reason.DIFFERENT, DecidedBy.COMPARISON
    return Reason.SYMBOLIC if math_verify.equal(gold, answer) else Reason.DIFFERENT, DecidedBy.MATH_VERIFY


def can_read(gold: str) -> bool:
    """Whether math-verify reads the text as mathematics."""
    return math_verify.parsed(gold) is not None
