"""One row of a source and the columns it is read from: question, gold answer, images, and what else is kept of it.

What a row's values alone forbid is said here; whether its images can be read, and whether it repeats another, is not.
"""

from __future__ import annotations

import hashlib
import marshal
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from luspo_cli.data.archives import ImagePlaces
from luspo_cli.data.image_columns import (
    RawImage,
    images_of_row,
    is_image_column,
    is_video_column,
    raw_images,
    with_marks,
)
from luspo_cli.data.left_out import LeftOut
from luspo_cli.data.missing import is_missing
from luspo_cli.data.reading import ANSWER_COLUMNS, QUESTION_COLUMNS, choose_column, value_at
from luspo_cli.data.values import Question, answer_text, read_question
from luspo_cli.grading.answers import has_box

FACTS: Mapping[str, tuple[str, type]] = MappingProxyType(
    {
        "qid": ("qid", str),
        "category": ("category", str),
        "source": ("source", str),
        "PassRate_7BBase": ("pass_rate_7b", float),
        "PassRate_32BTrained": ("pass_rate_32b", float),
    }
)
"""Column of a source -> its field of `extra_info`, and of which type."""
PASS_RATE_COLUMNS = ("PassRate_7BBase", "pass_rate", "PassRate_32BTrained")
ROWS_LOOKED_AT = 20
"""Of a table, in search of columns of images that are not read."""
_NO_PLACES = ImagePlaces(())


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What the caller may say about a source."""

    from_path: Path | None = None
    question_column: str | None = None
    answer_column: str | None = None
    revision: str | None = None
    size: int = 2000
    seed: int = 0
    image_columns: tuple[str, ...] = ()
    images_from: tuple[Path, ...] = ()
    pass_rate_column: str | None = None


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A bare question and its gold answer; None or "" where the source has none."""

    question: str
    answer: str | None
    number: int
    """Row of the source's split, counted from 0."""
    unfit: LeftOut | None = None
    """What the row's values alone forbid: videos, or values of a type that is no text."""
    system: str = ""
    """The data's own system turn."""
    earlier_turns: bool = False
    """Whether turns of a conversation stood before the question."""
    from_solution: bool = False
    """Whether the answer is the last box of a worked solution."""
    images: tuple[RawImage, ...] = ()
    places: ImagePlaces = _NO_PLACES
    """Where images that are named by path are looked for."""
    kept_images: tuple[str, ...] = ()
    """Names under which a preparation keeps the images, once it does."""
    pass_rate: float | None = None
    """None where the source has none, or none was measured."""
    facts: Mapping[str, str | float | None] = field(default_factory=dict)
    """Field of `extra_info` -> value."""
    repeats: int | None = None
    """Number of the first row with these very values; nothing else of this one is then filled in."""


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of one file or table that matter, and how its gold answers are read."""

    question: str
    answer: str
    images: tuple[str, ...]
    """Those that were asked for by name; none: those that are called like images."""
    pass_rate: str | None
    named: tuple[str, ...]
    """Top-level columns that are read beside question and answer."""
    gold: Callable[[Any], str | None]
    places: ImagePlaces
    picture: str | None = None
    """The image of a row that names none: of a file with one row, the image file of the same name."""

    @classmethod
    def chosen(
        cls,
        names: list[str],
        options: SourceOptions,
        place: str,
        gold: Callable[[Any], str | None],
        places: ImagePlaces,
    ) -> Columns:
        """The columns by the options, or by their usual names; UsageError where there is none, with those there are."""

        def choose(wanted: str | None, usual: Iterable[str], option: str) -> str:
            return choose_column(names, wanted, [*usual], option=option, place=place)

        question = choose(options.question_column, QUESTION_COLUMNS, "--question-column")
        answer = choose(options.answer_column, ANSWER_COLUMNS, "--answer-column")
        images = tuple(choose(name, (), "--image-column") for name in options.image_columns)
        usual = [name for name in PASS_RATE_COLUMNS if name in names]
        wanted = options.pass_rate_column
        rate = choose(wanted, usual, "--pass-rate-column") if wanted or usual else None
        named = {name for name in names if name in FACTS or is_image_column(name) or is_video_column(name)}
        named |= {column.partition(".")[0] for column in (*images, *((rate,) if rate else ()))}
        return cls(question, answer, images, rate, tuple(name for name in names if name in named), gold, places)

    def top_level(self) -> list[str]:
        """Return the names to read: a nested column comes with the whole of its outermost one."""
        return [*(column.partition(".")[0] for column in (self.question, self.answer)), *self.named]

    def unread(self, names: Sequence[str]) -> list[str]:
        """Those of the table's columns in which nobody looks for images; a column that is called like images is none."""
        taken = (self.question, self.answer, *self.images)
        return [name for name in names if name not in taken and not is_image_column(name)]

    def facts(self) -> dict[str, type]:
        """The fields of `extra_info` that these columns fill, and their types."""
        fields = dict(FACTS[name] for name in self.named if name in FACTS)
        return fields if self.pass_rate is None or self.pass_rate in FACTS else fields | {"pass_rate": float}

    def row(self, row: Mapping[str, Any], number: int) -> SourceRow:
        """Return one row's question, gold answer and images, with what forbids its use."""
        raw = value_at(row, self.answer)
        text = answer_text(raw)
        question, images = read_asked(row, self.question, self.images)
        if not images and self.picture is not None:
            text_with_marks, images = with_marks(question.text, (RawImage(path=self.picture),))
            question = replace(question, text=text_with_marks)
        unfit: LeftOut | None = None
        # By the row's own keys: JSON rows may have columns that the first one has not.
        if question.has_videos or any(is_video_column(name) and raw_images(value) for name, value in row.items()):
            unfit = LeftOut.WITH_VIDEOS
        elif isinstance(images, LeftOut):
            unfit = images
        elif not question.is_text:
            unfit = LeftOut.QUESTION_NOT_TEXT
        elif text is None and not is_missing(raw) and question.text:
            unfit = LeftOut.ANSWER_NOT_TEXT
        answer = self.gold(raw)
        solution = answer is not None and answer != text and has_box(text or "") and "####" not in (text or "")
        rate = None if self.pass_rate is None else _rate(value_at(row, self.pass_rate))
        facts: dict[str, str | float | None] = {}
        for column, (name, kind) in FACTS.items():
            if column in self.named:
                facts[name] = _rate(row.get(column)) if kind is float else answer_text(row.get(column))
        if "pass_rate" in self.facts():
            facts["pass_rate"] = rate
        return SourceRow(
            question.text,
            answer,
            number,
            unfit,
            question.system,
            question.earlier_turns,
            solution,
            () if isinstance(images, LeftOut) else images,
            self.places,
            pass_rate=rate,
            facts=facts,
        )


def source_rows(rows: Iterable[Mapping[str, Any]], columns: Columns, first: int = 0) -> Iterator[SourceRow]:
    """The rows of one file or table, numbered from `first`.

    DAPO-Math-17k is published with each problem about a hundred times: a row whose values are all those of an earlier one is
    named after it and not read again, unless it has images.
    """
    # Of a table with images their bytes would be gone through for nothing.
    without = not columns.images and columns.picture is None and not any(map(is_image_column, columns.named))
    known: dict[bytes, int] = {}
    for number, row in enumerate(rows, start=first):
        digest = _digest_of_values(row) if without else None
        earlier = known.get(digest) if digest is not None else None
        if earlier is not None:
            yield SourceRow("", None, number, repeats=earlier)
            continue
        read = columns.row(row, number)
        if digest is not None and not read.images:
            known[digest] = number
        yield read


def _digest_of_values(row: Mapping[str, Any]) -> bytes | None:
    """16 bytes that tell a row's names and values from others'; None where a value is of a type that has no such form."""
    try:
        # Version 2 of the form: later ones depend on how often a string is referred to.
        values = marshal.dumps(dict(row), 2)
    except ValueError:
        return None
    return hashlib.blake2b(values, digest_size=16).digest()


def read_asked(
    row: Mapping[str, Any], column: str, image_columns: Sequence[str] = ()
) -> tuple[Question, tuple[RawImage, ...] | LeftOut]:
    """A row's question with marks of ours, and its images in their order, or why nobody knows which they are.

    `image_columns`: those that were asked for by name; none: those that are called like images.
    """
    question = read_question(value_at(row, column))
    images: tuple[RawImage, ...] | LeftOut = question.images
    if not images and image_columns:
        images = tuple(image for name in image_columns for image in raw_images(value_at(row, name)))
    elif not images:
        images = images_of_row(row, row)
    text, marked = with_marks(question.text, () if isinstance(images, LeftOut) else images)
    return replace(question, text=text), images if isinstance(images, LeftOut) else marked


def _rate(value: Any) -> float | None:
    """A pass rate; None where there is none, or a negative number says that none was measured."""
    try:
        rate = float(value)
    except (TypeError, ValueError):
        return None
    return rate if math.isfinite(rate) and rate >= 0 else None
