"""Which training questions are also evaluation questions: compared as text after normalisation, never by id or answer.

Equal texts overlap; so do two texts of which one contains the other, where the contained one is long (100 characters
and more after normalisation): benchmarks are copied with an added sentence or without their last one. Paraphrases and
translations are not found. Of questions with pictures the pictures must be the same too, in the same order: "Find x." stands
under many. Only where an excluded question, or the training question, has none at hand do the words alone decide.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum, auto

from luspo_cli.data.image_columns import without_marks
from luspo_cli.data.pictures import pictures
from luspo_cli.data.prompts import strip_prompt
from luspo_cli.records import Problem

LONG_TEXT = 100
"""Characters, after normalisation, from which containment counts as overlap."""
_ANCHOR = 64
_SPACING = re.compile(r"\\[!,;: ]|\\(?:quad|qquad|left|right|displaystyle|limits)(?![a-zA-Z])|[\s~$]+|\\[()\[\]]")
_FRACTION = re.compile(r"\\[dtc]frac(?![a-zA-Z])")


def normalise_question(text: str) -> str:
    """Return `text` in lower case without image marks, white space, LaTeX spacing, formula delimiters and closing punctuation."""
    text = unicodedata.normalize("NFKC", without_marks(text)).lower()
    text = _FRACTION.sub(r"\\frac", text)
    return _SPACING.sub("", text).rstrip(".?!:;,")


def question_digest(text: str, images: Sequence[str] = ()) -> bytes:
    """Return 16 bytes that are equal for questions equal after normalisation, with the same images.

    `images`: what tells each one's picture; one wording under two pictures is two questions.
    """
    whole = "\0".join((normalise_question(text), *images))
    return hashlib.blake2b(whole.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Overlap(Enum):
    """What of a training question is also in an excluded one."""

    NOTHING = auto()
    OTHER_PICTURES = auto()
    """Its words, but every excluded question of these words has other pictures."""
    WORDS_ALONE = auto()
    """Its words; on one side there are no pictures at hand."""
    WHOLE = auto()
    """Words and pictures, or words where neither side has pictures."""


class ExcludedQuestions:
    """The questions that training must not contain; memory grows with them, not with the training data."""

    def __init__(self, questions: Iterable[tuple[str, tuple[str, ...] | None]]) -> None:
        """`questions`: text, and what tells the picture of each image; None where it has images and they cannot be read."""
        self._pictures: dict[str, set[tuple[str, ...] | None]] = {}
        for question, shown in questions:
            text = normalise_question(question)
            if text or shown:
                self._pictures.setdefault(text, set()).add(shown)
        self._long = sorted(text for text in self._pictures if len(text) >= LONG_TEXT)
        self._joined = "\0".join(self._long)
        self._by_anchor: dict[str, list[str]] = {}
        for text in self._long:
            self._by_anchor.setdefault(text[:_ANCHOR], []).append(text)

    def __len__(self) -> int:
        """Distinct questions: one wording under two pictures is two."""
        return sum(map(len, self._pictures.values()))

    def overlap(self, question: str, shown: tuple[str, ...] = ()) -> Overlap:
        """What of a question with these pictures, in their order, is excluded."""
        alike = {known for text in self._alike(normalise_question(question)) for known in self._pictures[text]}
        if not alike:
            return Overlap.NOTHING
        if shown in alike:
            return Overlap.WHOLE
        return Overlap.OTHER_PICTURES if shown and all(alike) else Overlap.WORDS_ALONE

    def _alike(self, text: str) -> Iterator[str]:
        """The excluded texts that equal `text`, are long and in it, or contain it where it is long."""
        if text in self._pictures:
            yield text
        if len(text) < LONG_TEXT or not self._long:
            return
        if text in self._joined:
            yield from (candidate for candidate in self._long if text in candidate)
        for start in range(len(text) - LONG_TEXT + 1):
            for candidate in self._by_anchor.get(text[start : start + _ANCHOR], ()):
                if text.startswith(candidate, start):
                    yield candidate


def held_out_warning(
    train: Sequence[Problem], held_out: Sequence[Problem], train_path: str, held_out_path: str
) -> str | None:
    """Return one sentence where held-out questions are trained on, None where none is; the paths name both in it.

    Compared by the questions themselves: one file under two names, or a copy of it, is found too.
    """
    trained = {_by_name(problem) for problem in train}
    others = [problem for problem in held_out if _by_name(problem) not in trained]
    # Images are looked at only where the words are the same and the files are not.
    trained_words = {_words(problem) for problem in train if problem.images} if others else set()
    unsure = [problem for problem in others if problem.images and _words(problem) in trained_words]
    words = {_words(problem) for problem in unsure}
    same_words = [problem for problem in train if problem.images and _words(problem) in words] if words else []
    known = pictures([*unsure, *same_words], broken_by_name=True)

    def shown(problem: Problem) -> bytes:
        return question_digest(_question(problem), [repr(known[image.name]) for image in problem.images])

    seen = {shown(problem) for problem in same_words}
    shared = len(held_out) - len(others) + sum(shown(problem) in seen for problem in unsure)
    if not shared:
        return None
    amount = "all" if shared == len(held_out) else f"{shared} of the"
    return (
        f"{amount} {len(held_out)} held-out questions of data.held_out ({held_out_path}) are training questions of data.train"
        f" ({train_path}) too, so their accuracy is training accuracy: prepare the data with --held-out, or name another file"
    )


def _words(problem: Problem) -> bytes:
    return question_digest(_question(problem))


def _by_name(problem: Problem) -> bytes:
    return question_digest(_question(problem), [image.name for image in problem.images])


def _question(problem: Problem) -> str:
    # Of several turns all belong to the question; the prompt template around it does not.
    return "\n".join(strip_prompt(message.content) for message in problem.prompt if message.role == "user")
