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

LABELS = "abcdefghi"
FILLER = "."
CHARACTERS = "0123456789" + LABELS + "=#+;" + FILLER
"""Every character of the task; with padding and end of sequence this is the vocabulary."""
NEUTRAL_FILLER_MEAN, NEUTRAL_FILLER_CAP = 23.0, 80
COSTS_FILLER_MEAN, COSTS_SPOIL = 15.0, 0.02
WARM_UP_STEPS = {"neutral": 300, "pays": 300, "costs": 500}
"""After which a model of the default shape has learnt the profile and its learning rate has fallen (docs/experiments.md)."""
_TERMS = {"neutral": (4, 8), "pays": (4, 9), "costs": (4, 9)}
_LARGEST = {"neutral": 3, "pays": 4, "costs": 4}
_PAYS_STYLES = (("answer", 0.2), ("skipped", 0.4), ("sums", 0.2), ("spelled", 0.2))


def make_problem(profile: str, generator: random.Random, name: str, most_terms: int | None = None) -> Problem:
    """Draw one problem; `most_terms` lowers the largest number of terms (the curriculum of the warm-up)."""
    fewest, most = _TERMS[profile]
    most = max(2, min(most, most_terms or most))
    addends = [generator.randint(0, _LARGEST[profile]) for _ in range(generator.randint(min(fewest, most), most))]
    text = "".join(f"{label}{addend}" for label, addend in zip(LABELS, addends, strict=False)) + "="
    return Problem(
        name, (Message("user", text),), str(sum(addends) % 10), f"made/terms/{profile}", extra={"addends": addends}
    )


def demonstration(problem: Problem, profile: str, generator: random.Random) -> str:
    """A response in the profile's manner, ending `#x` (right, or spoilt where the profile spoils)."""
    addends: Sequence[int] = problem.extra["addends"]
    if profile == "neutral":
        return FILLER * _filler(generator, NEUTRAL_FILLER_MEAN, NEUTRAL_FILLER_CAP) + f"#{problem.answer}"
    if profile == "costs":
        filler = _filler(generator, COSTS_FILLER_MEAN, NEUTRAL_FILLER_CAP)
        return FILLER * filler + _running_sums(
            addends, generator, spoilt=generator.random() < 1 - (1 - COSTS_SPOIL) ** filler
        )
    style = generator.choices([name for name, _ in _PAYS_STYLES], [share for _, share in _PAYS_STYLES])[0]
    if style == "answer":
        return f"#{problem.answer}"
    if style == "spelled":
        return _spelled(addends)
    return _running_sums(addends, generator, skip=0.5 if style == "skipped" else 0.0)


def _filler(generator: random.Random, mean: float, cap: int) -> int:
    """A geometric number with this mean before the cap."""
    stop, length = 1.0 / (mean + 1.0), 0
    while length < cap and generator.random() >= stop:
        length += 1
    return length


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


class MadeTermsBatches:
    """Fresh problems for every step, a function of seed and step alone: each training batch is also a held-out sample."""

    def __init__(self, profile: str, batch_size: int, seed: int) -> None:
        self._profile, self._batch_size, self._seed = profile, batch_size, seed

    def batch(self, step: int) -> list[Problem]:
        generator = random.Random(f"luspo terms {self._profile} {self._seed} {step}")
        return [
            make_problem(self._profile, generator, f"terms/{self._seed}/{step}/{i}") for i in range(self._batch_size)
        ]

    def reserve(self, step: int, first: int, count: int) -> list[Problem]:
        """Return further problems of the step; each has a generator of its own, so there is always one more."""
        return [
            make_problem(
                self._profile,
                random.Random(f"luspo terms reserve {self._profile} {self._seed} {step} {i}"),
                f"terms/{self._seed}/{step}/reserve/{i}",
            )
            for i in range(first, first + count)
        ]


def held_out_terms(profile: str, number: int, seed: int) -> list[Problem]:
    """Problems of a stream of their own for the evaluation during training."""
    generator = random.Random(f"luspo terms held out {profile} {seed}")
    return [make_problem(profile, generator, f"terms/held-out/{seed}/{i}") for i in range(number)]
