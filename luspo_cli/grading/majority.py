"""maj@k: whether the answer that most of a problem's responses give is right.

Responses without an answer have no vote; on a tie the answer whose first vote came first is elected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from luspo_cli.grading.maths.decide import answer_key

_GOLD = "\0gold"


def majority_is_correct(answers: Iterable[tuple[str | None, bool]], answer_key: Callable[[str], str]) -> bool:
    """Whether the most frequent answer is right; no answer at all is wrong.

    `answers`: of each response the answer that was compared, None without one, and whether it is right. `answer_key` gives equal
    answers one key.
    """
    sizes: Counter[str] = Counter()
    for extracted, correct in answers:
        if extracted is not None:
            # Right answers are one cluster however they are written: each was shown equal to the gold.
            sizes[_GOLD if correct else answer_key(extracted)] += 1
    return bool(sizes) and max(sizes, key=lambda key: sizes[key]) == _GOLD  # max keeps the first of equals


def answer_key_of(verifier: str) -> Callable[[str], str]:
    """The key that equal answers share under a `reward.verifier`: `exact` compares spellings, others numbers too."""
    return str.strip if verifier == "exact" else answer_key
