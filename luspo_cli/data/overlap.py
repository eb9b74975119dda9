"""Which training questions are also evaluation questions: compared as text after normalisation, never by id or answer.

Equal texts overlap; so do two texts of which one contains the other, where the contained one is long (100 characters
and more after normalisation): benchmarks are copied with an added sentence or without their last one. Paraphrases and
translations are not found.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence

from luspo_cli.data.pictures import pictures
from luspo_cli.data.prompts import IMAGE_MARK
from luspo_cli.records import Problem

LONG_TEXT = 100
"""Characters, after normalisation, from which containment counts as overlap."""
_ANCHOR = 64
_SPACING = re.compile(r"\\[!,;: ]|\\(?:quad|qquad|left|right|displaystyle|limits)(?![a-zA-Z])|[\s~$]+|\\[()\[\]]")
_FRACTION = re.compile(r"\\[dtc]frac(?![a-zA-Z])")


def normalise_question(text: str) -> str:
    """Return `text` in lower case without image marks, white space, LaTeX spacing, formula delimiters and closing punctuation."""
    text = unicodedata.normalize("NFKC", text.replace(IMAGE_MARK, " ")).lower()
    text = _FRACTION.sub(r"\\frac", text)
    return _SPACING.sub("", text).rstrip(".?!:;,")


def question_digest(text: str, images: Sequence[str] = ()) -> bytes:
    """Return 16 bytes that are equal for questions equal after normalisation, with the same images.

    `images`: what tells each one's picture; one wording under two pictures is two questions.
    """
    whole = "\0".join((normalise_question(text), *images))
    return hashlib.blake2b(whole.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class ExcludedQuestions:
    """The questions that training must not contain; memory grows with them, not with the training data."""

    def __init__(self, questions: Iterable[str]) -> None:
        texts = sorted({normalised for question in questions if (normalised := normalise_question(question))})
        self._exact = frozenset(texts)
        self._long = [text for text in texts if len(text) >= LONG_TEXT]
        self._joined = "\0".join(self._long)
        self._by_anchor: dict[str, list[str]] = {}
        for text in self._long:
            self._by_anchor.setdefault(text[:_ANCHOR], []).append(text)

    def __len__(self) -> int:
        return len(self._exact)

    def __contains__(self, question: object) -> bool:
        """Whether `question` equals an excluded one, contains a long one, or is long and contained in one."""
        if not isinstance(question, str):
            return False
        text = normalise_question(question)
        if text in self._exact:
            return True
        if len(text) < LONG_TEXT or not self._long:
            return False
        if text in self._joined:
            return True
        starts = range(len(text) - LONG_TEXT + 1)
        return any(
            text.startswith(candidate, start)
            for start in starts
            for candidate in self._by_anchor.get(text[start : start + _ANCHOR], ())
        )


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
    # Of several turns all belong to the question.
    return "\n".join(message.content for message in problem.prompt if message.role == "user")
