"""The judgement of one response: right or wrong, and why; training reward and evaluation speak of it in these words."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a sample got its verdict; the values are written to result files and stay stable."""

    EXACT = "exact"
    """Equal after normalisation."""
    NUMERIC = "numeric"
    """Equal as numbers."""
    STRUCTURAL = "structural"
    """Equal element by element (tuple, interval, set, list, matrix, equation)."""
    SYMBOLIC = "symbolic"
    """Equal by symbolic algebra."""
    NEAREST = "nearest"
    """Official modes only: the answer was mapped to the nearest choice, and that choice is right."""
    DIFFERENT = "different"
    """An answer was found and is not the gold answer."""
    NO_ANSWER = "no_answer"
    """No final answer could be extracted; wrong."""
    TIMEOUT = "timeout"
    """The comparison ran past its time limit; wrong, and counted."""
    CRASHED = "crashed"
    """The comparison ended its worker or raised; wrong, and counted."""
    MISSING = "missing"
    """No response was handed in for this problem; wrong, and counted."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one sample. `extracted` is None where no answer was found."""

    extracted: str | None
    correct: bool
    reason: Reason


@dataclass(frozen=True, slots=True)
class NeedsSymbolic:
    """A comparison left to symbolic algebra: right if `answer` equals `gold`, else `different`.

    `extracted` is what the final verdict stores; `gold` and `answer` are the expressions that the worker reads.
    """

    extracted: str
    gold: str
    answer: str
