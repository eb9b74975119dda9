"""The judgement of one response: right or wrong, why, where its answer was read and who decided.

Training reward and evaluation speak of it in these words. The values of the enums are written to result files and stay
stable. What the judgement rests on is shown with it: an answer in the place that the prompt asked for is better
evidence than one inferred from a sentence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

GRADER_VERSION = 3
"""Rises when a verdict can change. Version 1 stands for the two graders before there was one; it was never written down."""


class Reason(StrEnum):
    """Why a response got its verdict."""

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
    FUNCTION = "function"
    """A function of the user's own calls it right."""
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

    @property
    def is_right(self) -> bool:
        """Whether an answer compared with this result equals the gold answer."""
        return self in _RIGHT


_RIGHT = frozenset({Reason.EXACT, Reason.NUMERIC, Reason.STRUCTURAL, Reason.SYMBOLIC, Reason.NEAREST, Reason.FUNCTION})


class ReadFrom(StrEnum):
    """Where in a response its answer was read."""

    OWN_MARK = "own_mark"
    """In the mark that the prompt asked for, where that is not the box."""
    BOX = "box"
    r"""In the last `\\boxed{}`."""
    OTHER_MARK = "other_mark"
    """In an explicit mark that the prompt did not ask for."""
    PHRASE = "phrase"
    """In a sentence such as "the answer is 5"."""
    INFERRED = "inferred"
    """From the text without a mark or a phrase; only where a benchmark's published protocol does so."""
    GIVEN = "given"
    """Handed in with the response: somebody else read it."""
    NONE = "none"
    """Nowhere."""


class DecidedBy(StrEnum):
    """Who compared the answer with the gold answer."""

    COMPARISON = "comparison"
    """Our own bounded comparison."""
    MATH_VERIFY = "math-verify"
    """math-verify, in a worker that can be killed: what our grammar does not understand."""
    EXACT = "exact"
    """The check of the made tasks, or of labels: the same text."""
    OFFICIAL = "official"
    """The benchmark's own script."""
    FUNCTION = "function"
    """A function of the user's own."""
    JUDGE = "judge"
    """A language model."""
    NOBODY = "nobody"
    """There was no answer to compare."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one response. `extracted` is None where no answer was found."""

    extracted: str | None
    correct: bool
    reason: Reason
    read_from: ReadFrom = ReadFrom.NONE
    decided_by: DecidedBy = DecidedBy.NOBODY

    @property
    def status(self) -> str:
        """The reason in the five words of stored rollouts: correct, incorrect, no_answer, timeout, crashed."""
        if self.correct:
            return "correct"
        return "incorrect" if self.reason is Reason.DIFFERENT else str(self.reason)

    def read(self, read_from: ReadFrom) -> Verdict:
        """The same verdict on an answer that was read there."""
        return replace(self, read_from=read_from)


@dataclass(frozen=True, slots=True)
class NeedsSymbolic:
    """A comparison left to a worker: right if `answer` equals `gold`, else `different`.

    `extracted` is what the final verdict stores; `gold` and `answer` are the expressions that the worker reads.
    """

    extracted: str
    gold: str
    answer: str


NO_ANSWER = Verdict(None, False, Reason.NO_ANSWER)


def counts(verdicts: Iterable[Verdict]) -> dict[str, dict[str, int]]:
    """How many of the verdicts were read where and decided by whom, by name; what does not occur is left out."""
    places: Counter[str] = Counter()
    deciders: Counter[str] = Counter()
    for verdict in verdicts:
        places[str(verdict.read_from)] += 1
        deciders[str(verdict.decided_by)] += 1
    return {"read_from": dict(sorted(places.items())), "decided_by": dict(sorted(deciders.items()))}
