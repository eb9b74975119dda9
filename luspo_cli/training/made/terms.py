"""The made task: a sum of labelled terms, and demonstrations whose length relates to being right as a profile says.

A prompt is labelled terms, `a2b3c1d0=`; the answer is their sum modulo 10, written `#6` at the end of the response. Labels are
letters, which a two-layer model finds by content; digits as labels stay at chance. Three profiles of demonstrations:

neutral  a run of filler (geometric length, mean 23, at most 80), then the answer directly: length carries no reward
pays     answer only / running sums with some terms skipped / all running sums / spelled-out additions: longer is better
costs    filler (mean 15), then running sums; each token of filler spoils the answer with 2 %: longer is worse
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from luspo_cli.records import Message, Problem
from luspo_cli.training.made.task import FILLER, MadeTask, filler

LABELS = "abcdefghi"
COSTS_FILLER_MEAN, COSTS_SPOIL = 15.0, 0.02
_TERMS = {"neutral": (4, 8), "pays": (4, 9), "costs": (4, 9)}
_LARGEST = {"neutral": 3, "pays": 4, "costs": 4}
_PAYS_STYLES = (("answer", 0.2), ("skipped", 0.4), ("sums", 0.2), ("spelled", 0.2))


def make_problem(profile: str, generator: random.Random, name: str, share: float = 1.0) -> Problem:
    """Draw one problem; early in the curriculum (`share` of it, up to 1) it has fewer terms."""
    fewest, most = _TERMS[profile]
    most = min(most, 2 + int(7 * share))
    addends = [generator.randint(0, _LARGEST[profile]) for _ in range(generator.randint(min(fewest, most), most))]
    text = "".join(f"{label}{addend}" for label, addend in zip(LABELS, addends, strict=False)) + "="
    return Problem(
        name, (Message("user", text),), str(sum(addends) % 10), f"made/terms/{profile}", extra={"addends": addends}
    )


def demonstration(problem: Problem, profile: str, generator: random.Random, share: float = 1.0) -> str:
    """A response in the profile's manner, ending `#x` (right, or spoilt where the profile spoils)."""
    del share  # the problem grows
    addends: Sequence[int] = problem.extra["addends"]
    if profile == "neutral":
        return filler(generator) + f"#{problem.answer}"
    if profile == "costs":
        before = filler(generator, COSTS_FILLER_MEAN)
        spoilt = generator.random() < 1 - (1 - COSTS_SPOIL) ** len(before)
        return before + _running_sums(addends, generator, spoilt=spoilt)
    style = generator.choices([name for name, _ in _PAYS_STYLES], [share for _, share in _PAYS_STYLES])[0]
    if style == "answer":
        return f"#{problem.answer}"
    if style == "spelled":
        return _spelled(addends)
    return _running_sums(addends, generator, skip=0.5 if style == "skipped" else 0.0)


def _running_sums(addends: Sequence[int], generator: random.Random, skip: float = 0.0, spoilt: bool = False) -> str:
    """`a2;b5;c6;#6`: the sum after each term; `skip` leaves out steps, `spoilt` gives another answer than the last sum.

    An error inside the chain would spoil the running sums themselves for the learner: it stays at chance within the warm-up.
    """
    total, parts = 0, []
    for i, addend in enumerate(addends):
        total = (total + addend) % 10
        if i == len(addends) - 1 or generator.random() >= skip:
            parts.append(f"{LABELS[i]}{total};")
    answer = (total + generator.randint(1, 9)) % 10 if spoilt else total
    return "".join(parts) + f"#{answer}"


def _spelled(addends: Sequence[int]) -> str:
    """`a0+2=2;b2+3=5;#5`: every addition written out."""
    total, parts = 0, []
    for label, addend in zip(LABELS, addends, strict=False):
        parts.append(f"{label}{total}+{addend}={(total + addend) % 10};")
        total = (total + addend) % 10
    return "".join(parts) + f"#{total}"


TERMS = MadeTask(
    name="terms",
    recipe=3,
    characters="0123456789" + LABELS + "=#+;" + FILLER,
    warm_up_steps={"neutral": 300, "pays": 300, "costs": 500},
    problem=make_problem,
    demonstration=demonstration,
)
