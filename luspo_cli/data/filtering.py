"""Which rows of a source are used: each other one is counted under the first reason that applies, and never repaired.

A question that repeats is kept once, and a repeat with another gold answer is counted apart, since one of the two is wrong; a
training question that is also in the test split, or in an excluded benchmark, is left out of training. One wording under two
pictures is two questions: pictures are compared by their pixels. Of a benchmark's question they may not be at hand; then the
words alone decide, and that is counted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from luspo_cli.data.columns import SourceRow
from luspo_cli.data.image_columns import lost_mark
from luspo_cli.data.image_store import ImageStore
from luspo_cli.data.left_out import LeftOut, UnusableImage
from luspo_cli.data.overlap import ExcludedQuestions, Overlap, question_digest
from luspo_cli.data.prompts import IMAGE_MARK, TURN_TOKENS, build_prompt, spelt_placeholder
from luspo_cli.data.sources import Source, split_of
from luspo_cli.data.values import is_readable_gold

_CHECKED_AT_ONCE = 512
_EVALUATION_SPLITS = {"test": LeftOut.IN_TEST_SPLIT, "validation": LeftOut.IN_VALIDATION_SPLIT}
_PROGRESS_ROWS = 500
_LONGEST_EXAMPLE = 300

Outcomes = dict[int, tuple[LeftOut, int]]
"""Row of a split -> why a row with the same values is left out, and how often that counts in `Counts.words_alone`."""
_DUPLICATE = LeftOut.DUPLICATE, 0
Progress = Callable[[str, int, int], None]
"""Called with the split, the rows read and the rows kept so far."""
FindUnparsable = Callable[[Sequence[str]], Sequence[bool]]
"""Says for each gold answer whether the verifier cannot read it."""


@dataclass(slots=True)
class Seen:
    """Digests of what was met so far."""

    answers: dict[bytes, bytes] = field(default_factory=dict)
    """Question of a row that was used -> its answer."""
    evaluation: dict[bytes, LeftOut] = field(default_factory=dict)
    """Questions of the test and validation splits, used or not -> why no other split may hold them."""
    unparsable: dict[bytes, bool] = field(default_factory=dict)
    """Answer -> the verifier's opinion."""
    categories: set[str] = field(default_factory=set)
    """Of the rows read, while only some are used."""


@dataclass(slots=True)
class Counts:
    """What became of the rows of one split."""

    read: int = 0
    kept: int = 0
    left_out: Counter[LeftOut] = field(default_factory=Counter)
    examples: dict[LeftOut, str] = field(default_factory=dict)
    """Reason -> what is wrong with the first image that was left out for it."""
    from_solutions: int = 0
    """Used rows whose gold answer is the last box of a worked solution."""
    system_replaced: int = 0
    """Used rows whose own system turn gave way to the template's."""
    earlier_turns: int = 0
    """Used rows of which only the last turn of a conversation was kept."""
    words_alone: int = 0
    """Rows left out for a benchmark's words alone, since one of the two questions has no pictures at hand."""
    other_pictures: int = 0
    """Used rows with a benchmark's words under other pictures."""

    def as_manifest(self) -> dict[str, Any]:
        return {
            "rows_read": self.read,
            "rows_used": self.kept,
            "rows_read_beyond_limit": self.read - self.kept - self.left_out.total(),
            "left_out": {reason.value: self.left_out[reason] for reason in LeftOut},
            "first_left_out": {reason.value: said for reason, said in self.examples.items()},
            "golds_from_solutions": self.from_solutions,
            "system_turns_replaced": self.system_replaced,
            "earlier_turns_dropped": self.earlier_turns,
            "excluded_by_words_alone": self.words_alone,
            "words_of_excluded_with_other_pictures": self.other_pictures,
        }


@dataclass(frozen=True, slots=True)
class PassRates:
    """The pass rates that are trained on, both ends included; None: no bound."""

    lowest: float | None = None
    highest: float | None = None

    def unfit(self, rate: float | None) -> LeftOut | None:
        """Why a row of this pass rate is not used."""
        if self.lowest is None and self.highest is None:
            return None
        if rate is None:
            return LeftOut.PASS_RATE_MISSING
        too_low = self.lowest is not None and rate < self.lowest
        too_high = self.highest is not None and rate > self.highest
        return LeftOut.PASS_RATE_OUTSIDE if too_low or too_high else None


@dataclass(frozen=True, slots=True)
class Filter:
    """The rules of one preparation, applied to one split at a time."""

    prompt: str | None
    longest_prompt: int
    pass_rates: PassRates
    categories: frozenset[str]
    """Those whose rows are used; none: all."""
    excluded: ExcludedQuestions
    images: ImageStore
    unparsable: FindUnparsable | None
    progress: Progress | None

    def usable(self, source: Source, split: str, counts: Counts, seen: Seen) -> Iterator[SourceRow]:
        """Yield the rows that can be used, images kept, counting the others; reads ahead by one block of answers."""
        block: list[SourceRow] = []
        outcomes: Outcomes = {}
        for row in source.splits[split]():
            counts.read += 1
            if self.progress is not None and counts.read % _PROGRESS_ROWS == 0:
                self.progress(split, counts.read, counts.kept)
            if row.repeats is not None and row.repeats in outcomes:
                _leave_out(row.repeats, outcomes, counts)
                continue
            # A repeat whose first row is not decided yet waits behind it in the block.
            fitting = row if row.repeats is not None else self._fitting(row, source, split, counts, seen)
            if isinstance(fitting, LeftOut):
                counts.left_out[fitting] += 1
                outcomes[row.number] = fitting, 0
                continue
            block.append(fitting)
            if self.unparsable is None or len(block) >= _CHECKED_AT_ONCE:
                yield from self._new(block, split, counts, seen, outcomes)
                block = []
        yield from self._new(block, split, counts, seen, outcomes)

    def _fitting(self, row: SourceRow, source: Source, split: str, counts: Counts, seen: Seen) -> SourceRow | LeftOut:
        """The row with its images kept, or why it cannot be used as far as it alone tells."""
        if (reason := self._unfit(row, source, split, seen)) is not None:
            return reason
        try:
            return self._with_images(row)
        except UnusableImage as error:
            counts.examples.setdefault(error.reason, f"row {row.number}: {_one_line(str(error))}")
            return error.reason

    def _unfit(self, row: SourceRow, source: Source, split: str, seen: Seen) -> LeftOut | None:
        """Why a row cannot be used, as far as the row alone tells, without a look at its images."""
        if row.unfit is not None:
            return row.unfit
        if not row.question:
            return LeftOut.EMPTY_QUESTION
        if not row.answer:
            return LeftOut.EMPTY_ANSWER
        if not (_is_unicode(row.question) and _is_unicode(row.answer)):
            return LeftOut.UNREADABLE_TEXT
        if spelt_placeholder((row.system, row.question)) is not None:
            return LeftOut.PLACEHOLDER_IN_TEXT
        if spelt_placeholder((row.system, row.question), TURN_TOKENS) is not None:
            return LeftOut.TURN_TOKEN_IN_TEXT
        prompt = build_prompt(self.prompt or source.prompt, row.question, images=len(row.images), system=row.system)
        if sum(len(message.content) for message in prompt) > self.longest_prompt:
            return LeftOut.OVERLONG
        if self.categories:
            category = str(row.facts.get("category") or "")
            seen.categories.update({category} - {""})
            if category not in self.categories:
                return LeftOut.OTHER_CATEGORY
        if split_of(split) == "train" and (reason := self.pass_rates.unfit(row.pass_rate)) is not None:
            return reason
        return None if is_readable_gold(row.answer) else LeftOut.UNPARSABLE_ANSWER

    def _with_images(self, row: SourceRow) -> SourceRow:
        """The row with its images kept; raises UnusableImage."""
        marks, images, lost = row.question.count(IMAGE_MARK), len(row.images), lost_mark(row.question)
        if lost is not None or (marks and marks != images):
            said = f"{marks} '{IMAGE_MARK}' marks" if lost is None else f"the mark {lost}, which fits no image"
            raise UnusableImage(LeftOut.IMAGE_MARKS_DIFFER, f"its text has {said}, and it has {images} images")
        kept = tuple(self.images.keep(image, row.places) for image in row.images)
        return replace(row, images=(), kept_images=kept)  # a block of rows holds no bytes of images

    def _new(
        self, block: list[SourceRow], split: str, counts: Counts, seen: Seen, outcomes: Outcomes
    ) -> Iterator[SourceRow]:
        """Yield the rows of a block that the verifier can read and that repeat nothing."""
        answers = {_digest(row.answer or ""): row.answer or "" for row in block if row.repeats is None}
        unknown = {digest: text for digest, text in answers.items() if digest not in seen.unparsable}
        if self.unparsable is not None and unknown:
            seen.unparsable.update(zip(unknown, self.unparsable([*unknown.values()]), strict=True))
        for row in block:
            if row.repeats is not None:
                _leave_out(row.repeats, outcomes, counts)
                continue
            by_words = counts.words_alone
            reason = self._repeated(row, split, counts, seen)
            if reason is None:
                outcomes[row.number] = _DUPLICATE
                yield row
            else:
                outcomes[row.number] = reason, counts.words_alone - by_words
                counts.left_out[reason] += 1

    def _repeated(self, row: SourceRow, split: str, counts: Counts, seen: Seen) -> LeftOut | None:
        """Why a row that fits cannot be used; one without a reason counts as used from here on."""
        pictures = self.images.pictures(row.kept_images)
        question = question_digest(row.question, pictures)
        answer = _digest(row.answer or "")
        own = _EVALUATION_SPLITS.get(split_of(split))
        elsewhere = seen.evaluation.setdefault(question, own) if own else seen.evaluation.get(question)
        if seen.unparsable.get(answer):
            return LeftOut.UNPARSABLE_ANSWER
        if elsewhere is not None and elsewhere is not own:
            return elsewhere
        if question in seen.answers:
            return LeftOut.DUPLICATE if seen.answers[question] == answer else LeftOut.CONFLICTING_ANSWER
        overlap = self.excluded.overlap(row.question, pictures) if split != "test" else Overlap.NOTHING
        counts.words_alone += overlap is Overlap.WORDS_ALONE
        counts.other_pictures += overlap is Overlap.OTHER_PICTURES
        if overlap in (Overlap.WORDS_ALONE, Overlap.WHOLE):
            return LeftOut.IN_EXCLUDED_BENCHMARK
        seen.answers[question] = answer
        return None


def _leave_out(repeated: int, outcomes: Outcomes, counts: Counts) -> None:
    """Count a row as the one that it repeats decides."""
    reason, by_words = outcomes[repeated]
    counts.left_out[reason] += 1
    counts.words_alone += by_words


def _one_line(said: str) -> str:
    """What is said of foreign data, which may hold anything, for the manifest and the screen."""
    return " ".join(said.encode("utf-8", "backslashreplace").decode().split())[:_LONGEST_EXAMPLE]


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
