"""Answers against gold answers: the cheap decisions here, the symbolic ones in killable workers.

Most answers of a training batch are plain numbers or copies of each other, so each distinct (gold, answer) pair is
decided once: equal after normalisation is right, two different whole numbers or fractions are wrong, so is a word
against anything else, and only the rest goes to math-verify. A verdict of a worker that timed out or crashed is
remembered for one call only, since a loaded machine can cause it.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from types import TracebackType
from typing import Self

from luspo_cli.grading.pool import KillablePool
from luspo_cli.machine import usable_cores
from luspo_cli.records import VerificationStatus

MOST_WORKERS = 8
_REMEMBERED_PAIRS = 100_000
_LONGEST_REMEMBERED = 500
_LONGEST_NORMALISED = 2000
"""Characters; a longer answer is left to the workers, where a pattern that takes for ever can be killed."""
_COMPARE = "luspo_cli.grading.math_comparison:equal_answers"
_CAN_PARSE = "luspo_cli.grading.math_comparison:can_parse"

_SPACING = re.compile(r"\\[!,;: ]|~|\\(?:quad|qquad|left|right|displaystyle|limits)(?![a-zA-Z])|\s+")
_KEPT_SPACE = re.compile(r"(\\[a-zA-Z]+ (?=[a-zA-Z]))|\s")
_DELIMITERS = re.compile(r"\\\$|\$|\\[()\[\]]")
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|°")
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|boxed|fbox)\s*\{([^{}]*)\}")
_CHOICE_LETTER = re.compile(r"^\(?[A-Z]\)\s*(?=[-+]?[\d.]*\d)")
_BARE_FRACTION = re.compile(r"\\frac\s*(?:\{([^{}]*)\}|(\w))\s*(?:\{([^{}]*)\}|(\w))")
_BARE_ROOT = re.compile(r"\\sqrt\s*(\w)")
# Words that join, scale or compute are part of the value; any other one or two words after a number are its unit.
_NOT_A_UNIT = (
    r"(?:and|or|to|of|by|per|over|out|mod|times|plus|minus|less|more|half|pi|sin|cos|tan|cot|log|ln|exp|sqrt|"
    r"dozen|hundred|thousand|million|billion|trillion)"
)
_UNIT = re.compile(
    rf"^([-+]?[\d.,/]*\d)\s+(?!{_NOT_A_UNIT}\b)[a-zA-Z]{{2,}}"
    rf"(?:\s+(?!{_NOT_A_UNIT}\b)[a-zA-Z]{{2,}})?(?:\s?\^\s?\{{?[23]\}}?)?\s?\.?$"
)
_THOUSANDS = re.compile(r"^[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?$")
_INTEGER_ASSIGNMENT = re.compile(r"^[a-zA-Z]=(?=[-+]?\d+$)")
_DECIMAL = re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)$")
# At most 1,000 digits: Python refuses to read integers of more than 4,300, and text settles what is longer.
_FRACTION = re.compile(r"^([-+]?)(?:\\frac\{(-?\d{1,1000})\}\{(\d{1,1000})\}|(\d{1,1000})/(\d{1,1000})|(\d{1,1000}))$")
_WORD = re.compile(r"^[a-zA-Z]{3,}$")


def normalise_answer(answer: str) -> str:
    """Return `answer` without what carries no meaning: spacing, dollars, text wrappers, thousands commas, zeros, units.

    Example:
        normalise_answer(r"$\\dfrac12$"), normalise_answer("1,234.0")  # (r"\\frac{1}{2}", "1234")
    """
    if len(answer) > _LONGEST_NORMALISED:
        return answer.strip()
    text = answer.replace("−", "-").replace("{,}", ",")
    text = _DEGREES.sub("", text)
    text = _DELIMITERS.sub("", text)
    text = _SPACING.sub(" ", text)
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
    text = re.sub(r"\\%", "%", text)
    text = _WRAPPER.sub(lambda match: " " + match.group(1) + " ", text).strip()
    text = _CHOICE_LETTER.sub("", text)
    text = _UNIT.sub(r"\1", text)
    text = _BARE_FRACTION.sub(lambda m: rf"\frac{{{m[1] or m[2]}}}{{{m[3] or m[4]}}}", text)
    text = _BARE_ROOT.sub(r"\\sqrt{\1}", text)
    text = _KEPT_SPACE.sub(lambda match: match.group(1) or "", text)
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1]
    if _THOUSANDS.match(text):
        text = text.replace(",", "")
    text = _INTEGER_ASSIGNMENT.sub("", text)
    if _DECIMAL.match(text):
        text = _plain_decimal(text)
    return text


def decide_cheaply(gold: str, answer: str) -> bool | None:
    """Return the verdict where text alone settles it, else None."""
    gold_text, answer_text = normalise_answer(gold), normalise_answer(answer)
    if not gold_text or not answer_text:
        return False
    if gold_text == answer_text:
        return True
    if _WORD.match(gold_text) or _WORD.match(answer_text):
        # Read as mathematics, a word is a product of letters and equals its anagrams.
        return gold_text.lower() == answer_text.lower()
    gold_number, answer_number = _exact_number(gold_text), _exact_number(answer_text)
    if gold_number is None or answer_number is None:
        return None
    return gold_number == answer_number


class MathVerifier:
    """Compares answers with gold answers, in order; worker processes start with the first pair that needs them."""

    def __init__(self, *, workers: int = 0, timeout_s: float = 5.0, memory_bytes: int = 2 << 30) -> None:
        """`workers` 0 is one a core, at most 8; `timeout_s` bounds one comparison, `memory_bytes` one worker."""
        self._workers = workers or min(usable_cores(), MOST_WORKERS)
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._pool: KillablePool | None = None
        self._verdicts: OrderedDict[tuple[str, str], VerificationStatus] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes; a later call starts new ones."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def verify(
        self, pairs: Sequence[tuple[str, str | None]], *, on_done: Callable[[int], None] | None = None
    ) -> list[VerificationStatus]:
        """Return the status of each (gold, answer); an answer of None is NO_ANSWER. Never raises for a pair.

        `on_done` gets the number of decided pairs as it grows.
        """
        statuses: list[VerificationStatus | None] = [None] * len(pairs)
        undecided: OrderedDict[tuple[str, str], list[int]] = OrderedDict()
        for index, (gold, answer) in enumerate(pairs):
            if answer is None:
                statuses[index] = VerificationStatus.NO_ANSWER
            elif (known := self._recall((gold, answer))) is not None:
                statuses[index] = known
            elif (equal := decide_cheaply(gold, answer)) is not None:
                statuses[index] = VerificationStatus.CORRECT if equal else VerificationStatus.INCORRECT
            else:
                undecided.setdefault((gold, answer), []).append(index)
        if undecided:
            at_once = len(pairs) - sum(len(indices) for indices in undecided.values())
            counted = (lambda done: on_done(at_once + done)) if on_done else None
            outcomes = self._started_pool().map(list(undecided), on_done=counted)
            for (pair, indices), outcome in zip(undecided.items(), outcomes, strict=True):
                if outcome.ok:
                    status = VerificationStatus.CORRECT if outcome.value else VerificationStatus.INCORRECT
                    self._remember(pair, status)
                else:
                    status = VerificationStatus.TIMEOUT if outcome.timed_out else VerificationStatus.CRASHED
                for index in indices:
                    statuses[index] = status
        if on_done:
            on_done(len(pairs))
        return [status for status in statuses if status is not None]

    def unparsable(self, golds: Sequence[str]) -> list[bool]:
        """Return for each gold answer whether it is neither a number, a word, nor mathematics readable in time."""
        distinct = list(dict.fromkeys(gold for gold in golds if not _settled_by_text(gold)))
        bad: set[str] = set()
        if distinct:
            with KillablePool(
                _CAN_PARSE, workers=self._workers, timeout_s=self._timeout_s, memory_bytes=self._memory_bytes
            ) as pool:
                outcomes = pool.map([(gold,) for gold in distinct])
            bad = {gold for gold, outcome in zip(distinct, outcomes, strict=True) if not (outcome.ok and outcome.value)}
        return [gold in bad for gold in golds]

    def _started_pool(self) -> KillablePool:
        if self._pool is None:
            self._pool = KillablePool(
                _COMPARE, workers=self._workers, timeout_s=self._timeout_s, memory_bytes=self._memory_bytes
            )
        return self._pool

    def _recall(self, pair: tuple[str, str]) -> VerificationStatus | None:
        status = self._verdicts.get(pair)
        if status is not None:
            self._verdicts.move_to_end(pair)
        return status

    def _remember(self, pair: tuple[str, str], status: VerificationStatus) -> None:
        if len(pair[0]) + len(pair[1]) > _LONGEST_REMEMBERED:
            return
        self._verdicts[pair] = status
        if len(self._verdicts) > _REMEMBERED_PAIRS:
            self._verdicts.popitem(last=False)


def _exact_number(text: str) -> Fraction | None:
    """Return the value of a whole number or a fraction of two; a decimal may be rounded, so it is not exact."""
    match = _FRACTION.match(text)
    if match is None:
        return None
    sign, latex_top, latex_bottom, plain_top, plain_bottom, whole = match.groups()
    bottom = int(latex_bottom or plain_bottom or 1)
    if bottom == 0:
        return None
    return (-1 if sign == "-" else 1) * Fraction(int(latex_top or plain_top or whole), bottom)


def _settled_by_text(gold: str) -> bool:
    text = normalise_answer(gold)
    return bool(_DECIMAL.match(text) or _WORD.match(text) or _exact_number(text) is not None)


def _plain_decimal(text: str) -> str:
    """Return the shortest plain form of a decimal: `025` and `25.0` are `25`, `-0` is `0`."""
    plain = format(Decimal(text), "f")
    if "." in plain:
        plain = plain.rstrip("0").rstrip(".")
    return "0" if plain in ("-0", "") else plain.lstrip("+")
