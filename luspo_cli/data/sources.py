r"""Where questions come from: named sources, local files, hub data sets, and arithmetic made on the spot.

A source yields bare questions and gold answers; the prompt around a question that DAPO's and verl's files carry is
taken off, so that one template can be put around all of them. GSM8K's gold answer is what follows the last `####`,
a number without its thousands commas; a row of GSM8K without that mark has no gold answer. A worked solution is
answered by its last `\boxed{}`. A file is of the split that a word of its name says: `test`, a word for validation, else train.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from luspo_cli.data.reading import (
    ANSWER_COLUMNS,
    QUESTION_COLUMNS,
    SUFFIXES,
    choose_column,
    column_names,
    data_files,
    read_rows,
    value_at,
)
from luspo_cli.data.values import answer_text, gold_answer, has_image, is_image_column, is_missing, read_question
from luspo_cli.errors import RunError, UsageError, first_line, nearest
from luspo_cli.grading.answers import has_box

_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev", "eval"), "validation"),
    "test": "test",
}


class LeftOut(StrEnum):
    """Why a row was not used; the first reason that applies is counted."""

    WITH_IMAGES = "with_images"
    """Images (or videos) belong to it, and only text is prepared."""
    QUESTION_NOT_TEXT = "question_not_text"
    EMPTY_QUESTION = "empty_question"
    ANSWER_NOT_TEXT = "answer_not_text_or_number"
    EMPTY_ANSWER = "empty_answer"
    UNREADABLE_TEXT = "unreadable_text"
    """Text with half of a surrogate pair, which is not Unicode."""
    OVERLONG = "overlong"
    """More prompt characters than allowed."""
    UNPARSABLE_ANSWER = "unparsable_answer"
    """Not one short value, or not readable by the verifier."""
    IN_TEST_SPLIT = "in_test_split"
    IN_VALIDATION_SPLIT = "in_validation_split"
    DUPLICATE = "duplicate"
    CONFLICTING_ANSWER = "conflicting_answer"
    """The question of an earlier row that was used, with another gold answer."""
    IN_EXCLUDED_BENCHMARK = "in_excluded_benchmark"


@dataclass(frozen=True, slots=True)
class SourceRow:
    """A bare question and its gold answer; None or "" where the source has none."""

    question: str
    answer: str | None
    number: int
    """Row of the source's split, counted from 0."""
    unfit: LeftOut | None = None
    """What the row's values alone forbid: images, or values of a type that is no text."""
    system: str = ""
    """The data's own system turn."""
    earlier_turns: bool = False
    """Whether turns of a conversation stood before the question."""
    from_solution: bool = False
    """Whether the answer is the last box of a worked solution."""


@dataclass(frozen=True, slots=True)
class Source:
    """An opened source: its splits by name, and what the manifest says of it."""

    name: str
    data_source: str
    prompt: str
    """The template used unless another is asked for."""
    splits: Mapping[str, Callable[[], Iterator[SourceRow]]]
    revision: str | None = None
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What the caller may say about a source."""

    from_path: Path | None = None
    question_column: str | None = None
    answer_column: str | None = None
    revision: str | None = None
    size: int = 2000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Published:
    hub_id: str
    hub_config: str | None
    data_source: str
    prompt: str
    splits: tuple[str, ...]
    gold: Callable[[Any], str | None] = gold_answer
    file_stem: str = ".*"
    """Pattern of the upstream files' names; GSM8K's folder holds others beside them."""


def _gsm8k_gold(value: Any) -> str | None:
    return gold_answer(value) if isinstance(value, str) and "####" in value else None


_PUBLISHED = {
    "gsm8k": _Published(
        "openai/gsm8k", "main", "gsm8k", "qwen-boxed", ("train", "test"), _gsm8k_gold, r"(?:train|test)(?:-\d+-of-\d+)?"
    ),
    "dapo-math-17k": _Published(
        "BytedTsinghua-SIA/DAPO-Math-17k", None, "math_dapo", "dapo", ("train",), file_stem=r"(?i:(?!.*aime).*)"
    ),
}
SOURCE_NAMES = (*_PUBLISHED, "arithmetic", "virl39k")


def open_source(name: str, options: SourceOptions) -> Source:
    """Return the source of that name, file, folder or hub id; files are read when its splits are.

    Raises:
        UsageError: no such source, file or column.
        RunError: the hub cannot be reached.
    """
    if options.from_path is not None and name not in _PUBLISHED:
        raise UsageError(
            f"--from names the files of {' or '.join(_PUBLISHED)}; "
            "for your own data give the path itself as the source."
        )
    if name == "virl39k":
        raise UsageError("virl39k holds images, and prepare-data reads text only so far; choose a text source.")
    if name == "arithmetic":
        return Source("arithmetic", "arithmetic", "qwen-boxed", {"train": lambda: _arithmetic(options)})
    if name in _PUBLISHED:
        return _open_published(name, _PUBLISHED[name], options)
    path = Path(name)
    if path.exists():
        return _open_local(path, options)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and path.suffix.lower() not in SUFFIXES:
        hub_id, _, config = name.partition(":")
        return _open_hub(name, _Published(hub_id, config or None, hub_id, "qwen-boxed", ("train", "test")), options)
    raise UsageError(
        f"'{name}' is neither a file or folder nor a known source{nearest(name, SOURCE_NAMES)}; the known sources are "
        f"{', '.join(SOURCE_NAMES)}, and a hub data set is written owner/name."
    )


def _open_published(name: str, published: _Published, options: SourceOptions) -> Source:
    if options.from_path is None:
        return _open_hub(name, published, options)
    by_split = {
        split: files
        for split, files in _files_by_split(options.from_path, published.file_stem).items()
        if split in published.splits
    }
    if not by_split:
        raise UsageError(
            f"{options.from_path} holds no {' or '.join(published.splits)} file of {name} ({', '.join(SUFFIXES)})."
        )
    splits = {split: _reader(files, options, published.gold) for split, files in by_split.items()}
    all_files = tuple(file for files in by_split.values() for file in files)
    return Source(name, published.data_source, published.prompt, splits, options.revision, all_files)


def _open_local(path: Path, options: SourceOptions) -> Source:
    by_split = {"train": [path]} if path.is_file() else _files_by_split(path)
    if not by_split:
        raise UsageError(f"{path} holds no data file ({', '.join(SUFFIXES)}).")
    splits = {split: _reader(files, options, gold_answer) for split, files in by_split.items()}
    all_files = tuple(file for files in by_split.values() for file in files)
    name = path.resolve().stem if path.is_file() else path.resolve().name
    return Source(name, name, "qwen-boxed", splits, None, all_files)


def split_of(name: str) -> str:
    """Return `train`, `test` or `validation`: what a word of a file's or split's name says, `train` where none does.

    Words decide and not letters: `interval` is no validation. Where two words disagree, the data is not for training.
    """
    said = _splits_said(name)
    return next((split for split in ("test", "validation") if split in said), "train")


def says_train(name: str) -> bool:
    """Whether a name says `train` itself, and no other split."""
    return _splits_said(name) == {"train"}


def _splits_said(name: str) -> set[str]:
    words = (word.rstrip("0123456789") for word in re.split(r"[^a-z0-9]+", name.lower()))
    return {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS}


def _files_by_split(path: Path, stem: str = ".*") -> dict[str, list[Path]]:
    """Return the data files of a path by split; one file that is given by itself is training data unless it says `test`."""
    if path.is_file():
        return {"test" if split_of(path.stem) == "test" else "train": [path]}
    if not path.is_dir():
        raise UsageError(f"There is no file or folder {path}.")
    by_split: dict[str, list[Path]] = {}
    for folder in (path, path / "main", path / "data"):  # the hub keeps its files in one of the latter two
        for file in data_files(folder) if folder.is_dir() else ():
            if re.fullmatch(stem, file.stem) is not None:
                by_split.setdefault(split_of(file.stem), []).append(file)
        if by_split:
            break
    return by_split


def _reader(
    files: list[Path], options: SourceOptions, gold: Callable[[Any], str | None]
) -> Callable[[], Iterator[SourceRow]]:
    chosen = [(file, _Columns.chosen(column_names(file), options, str(file), gold)) for file in files]

    def rows() -> Iterator[SourceRow]:
        number = 0
        for file, columns in chosen:
            for row in read_rows(file, columns.top_level()):
                yield columns.row(row, number)
                number += 1

    return rows


@dataclass(frozen=True, slots=True)
class _Columns:
    """The columns of one file or table that matter, and how its gold answers are read."""

    question: str
    answer: str
    images: tuple[str, ...]
    gold: Callable[[Any], str | None]

    @classmethod
    def chosen(
        cls, names: list[str], options: SourceOptions, place: str, gold: Callable[[Any], str | None]
    ) -> _Columns:
        question = choose_column(
            names, options.question_column, QUESTION_COLUMNS, option="--question-column", place=place
        )
        answer = choose_column(names, options.answer_column, ANSWER_COLUMNS, option="--answer-column", place=place)
        return cls(question, answer, tuple(name for name in names if is_image_column(name)), gold)

    def top_level(self) -> list[str]:
        """Return the names to read: a nested column comes with the whole of its outermost one."""
        return [column.partition(".")[0] for column in (self.question, self.answer)] + list(self.images)

    def row(self, row: Mapping[str, Any], number: int) -> SourceRow:
        """Return one row's question and gold answer, with what forbids its use."""
        raw = value_at(row, self.answer)
        question, text = read_question(value_at(row, self.question)), answer_text(raw)
        unfit = None
        # By the row's own keys: JSON rows may have columns that the first one has not.
        if question.has_images or any(is_image_column(name) and has_image(value) for name, value in row.items()):
            unfit = LeftOut.WITH_IMAGES
        elif not question.is_text:
            unfit = LeftOut.QUESTION_NOT_TEXT
        elif text is None and not is_missing(raw) and question.text:
            unfit = LeftOut.ANSWER_NOT_TEXT
        answer = self.gold(raw)
        solution = answer is not None and answer != text and has_box(text or "") and "####" not in (text or "")
        return SourceRow(question.text, answer, number, unfit, question.system, question.earlier_turns, solution)


def _open_hub(name: str, published: _Published, options: SourceOptions) -> Source:
    hub_id = published.hub_id
    try:
        import datasets

        loaded = datasets.load_dataset(hub_id, published.hub_config, revision=options.revision)
    except Exception as error:  # the hub client raises dozens of kinds; each one means "no data"
        how = f"give its files with --from PATH (`luspo prepare-data {name} --from PATH ...`)"
        raise RunError(
            f"{hub_id} is no local path and could not be loaded from the Hugging Face hub ({first_line(error)}); "
            "check the name and the network"
            + (f", or {how}." if name in _PUBLISHED else ", or download it and give the file as the source.")
        ) from error
    splits: dict[str, Callable[[], Iterator[SourceRow]]] = {}
    for split, table in loaded.items():
        names = list(table.column_names)
        names += [f"{column}.{inner}" for column in names for inner in _inner_names(table.features[column])]
        splits[str(split)] = _table_rows(table, _Columns.chosen(names, options, f"{hub_id} ({split})", published.gold))
    ordered = {split: splits[split] for split in (*published.splits, *splits) if split in splits}
    return Source(name, published.data_source, published.prompt, ordered, _commit(loaded) or options.revision)


def _commit(loaded: Mapping[Any, Any]) -> str | None:
    """Return the hub commit that the loaded files came from, where their addresses name it."""
    for table in loaded.values():
        for address in getattr(table.info, "download_checksums", None) or ():
            match = re.search(r"@([0-9a-f]{40})/", str(address))
            if match:
                return match.group(1)
    return None


def _inner_names(feature: Any) -> list[str]:
    return list(feature) if isinstance(feature, Mapping) else []


def _table_rows(table: Any, columns: _Columns) -> Callable[[], Iterator[SourceRow]]:
    def rows() -> Iterator[SourceRow]:
        for number, row in enumerate(table):
            yield columns.row(row, number)

    return rows


def _arithmetic(options: SourceOptions) -> Iterator[SourceRow]:
    """Yield sums, differences and products of two to four small numbers, none twice as long as they last."""
    generator = random.Random(f"luspo arithmetic {options.seed}")
    seen: set[str] = set()
    for number in range(options.size):
        for _ in range(1000):
            terms = [str(generator.randrange(100)) for _ in range(generator.randrange(2, 5))]
            text = terms[0]
            for term in terms[1:]:
                text += f" {generator.choice('+-*')} {term}"
            if text not in seen:
                break
        seen.add(text)
        yield SourceRow(f"What is {text}?", str(_value(text)), number)


def _value(expression: str) -> int:
    """Return the value of numbers joined by +, - and *, products first."""
    total = 0
    for signed in expression.replace(" - ", " + -").split(" + "):
        product = 1
        for factor in signed.split(" * "):
            product *= int(factor)
        total += product
    return total
