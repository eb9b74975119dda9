r"""Where questions come from: named sources, local files, hub data sets, and arithmetic made on the spot.

A source yields bare questions and gold answers; the prompt around a question that DAPO's and verl's files carry is
taken off, so that one template can be put around all of them. GSM8K's gold answer is what follows the last `####`,
a number without its thousands commas; a row of GSM8K without that mark has no gold answer. A worked solution is
answered by its last `\boxed{}`. A file is of the split that a word of its name says: `test`, a word for validation, else train.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from luspo_cli.data.archives import ImagePlaces, archives_of, is_archive, stem_of, unpacked_tables
from luspo_cli.data.columns import ROWS_LOOKED_AT, Columns, SourceOptions, SourceRow, source_rows
from luspo_cli.data.easy_vqa import easy_vqa
from luspo_cli.data.hub import hub_tables
from luspo_cli.data.image_columns import IMAGE_SUFFIXES, unread_image_columns
from luspo_cli.data.published import EASY_VQA, PUBLISHED, SOURCE_NAMES, Published
from luspo_cli.data.reading import SUFFIXES, column_names, data_files, read_rows, saved_splits
from luspo_cli.errors import UsageError, nearest

_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev", "eval"), "validation"),
    "test": "test",
}


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
    facts: Mapping[str, type] = field(default_factory=dict)
    """Further fields of `extra_info` that its rows fill, and their types."""
    pass_rate_column: str | None = None
    licence: str | None = None
    """Of a known source, as its own page says."""
    unread_images: tuple[str, ...] = ()
    """Columns that look like images and are called otherwise."""
    unpacked: object = None
    """Holds the tables of an archive on the disk for as long as the source is at hand."""
    stands_for: tuple[str, ...] = ()
    """Of an archive of images: the names of the data files beside it, which are read."""
    image_files: int = 0
    """In an archive that holds its data files itself."""


def open_source(name: str, options: SourceOptions) -> Source:
    """Return the source of that name, file, folder or hub id; files are read when its splits are.

    Raises:
        UsageError: no such source, file or column.
        RunError: the hub cannot be reached.
    """
    if options.from_path is not None and name not in (*PUBLISHED, EASY_VQA):
        raise UsageError(
            f"--from names the files of {' or '.join((*PUBLISHED, EASY_VQA))}; for your own data give the path itself as"
            " the source."
        )
    if name == "arithmetic":
        return Source("arithmetic", "arithmetic", "qwen-boxed", {"train": lambda: _arithmetic(options)})
    if name == EASY_VQA:
        rows, files = easy_vqa(options.from_path)
        return Source(name, name, "plain", rows, files=files, facts={"category": str}, licence="MIT")
    if name in PUBLISHED:
        published = PUBLISHED[name]
        return _open_hub(name, published, options) if options.from_path is None else _given(name, published, options)
    path = Path(name)
    if path.exists():
        return _open_local(path, options)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and path.suffix.lower() not in SUFFIXES:
        hub_id, _, config = name.partition(":")
        return _open_hub(name, Published(hub_id, config or None), options)
    raise UsageError(
        f"'{name}' is neither a file or folder nor a known source{nearest(name, SOURCE_NAMES)}; the known sources are "
        f"{', '.join(SOURCE_NAMES)}, and a hub data set is written owner/name."
    )


def _given(name: str, published: Published, options: SourceOptions) -> Source:
    """A known source whose upstream files are at hand."""
    assert options.from_path is not None
    by_split, unpacked, images = _tables(options.from_path, published.file_stem)
    by_split = {split: files for split, files in by_split.items() if split in published.splits}
    if not by_split:
        raise UsageError(
            f"{options.from_path} holds no {' or '.join(published.splits)} file of {name} ({', '.join(SUFFIXES)})"
            f"{', and there is none beside it' if is_archive(options.from_path) else ''}."
        )
    return _from_files(name, published, by_split, options, options.from_path, unpacked, images)


def _open_local(path: Path, options: SourceOptions) -> Source:
    single = path.is_file() and not is_archive(path)
    by_split, unpacked, images = ({"train": [path]}, None, []) if single else _tables(path)
    if not by_split:
        raise UsageError(f"{path} holds no data file ({', '.join(SUFFIXES)}).")
    name = path.resolve().stem if single else stem_of(path.resolve().name)
    return _from_files(name, Published(name), by_split, options, path, unpacked, images)


def _from_files(
    name: str,
    published: Published,
    by_split: Mapping[str, list[Path]],
    options: SourceOptions,
    given: Path,
    unpacked: TemporaryDirectory[str] | None,
    images: Sequence[str],
) -> Source:
    """The source of data files that were found in or beside the file, folder or archive `given`; `images` are the archive's."""
    pictures = {str(PurePosixPath(image).with_suffix("")): image for image in images}
    facts: dict[str, type] = {}
    rate: str | None = None
    splits: dict[str, Callable[[], Iterator[SourceRow]]] = {}
    archives = archives_of(given)
    known: dict[Path, Any] = {}
    unread: dict[str, None] = {}
    for split, files in by_split.items():
        chosen = []
        for file in files:
            beside = [] if unpacked else [file.parent, given]
            places = ImagePlaces([*options.images_from, *archives], beside=beside, stem=file.stem, known=known)
            names = column_names(file)
            columns = Columns.chosen(names, options, str(file), published.gold, places)
            unread |= dict.fromkeys(
                unread_image_columns(islice(read_rows(file), ROWS_LOOKED_AT), columns.unread(names))
            )
            if file.suffix.lower() == ".json" and file != given and len([*islice(read_rows(file), 2)]) == 1:
                own = _picture_beside(file) if unpacked is None else pictures.get(_inside(file, unpacked))
                columns = replace(columns, picture=own)
            chosen.append((file, columns))
            facts |= columns.facts()
            rate = rate or columns.pass_rate
        splits[split] = _reader(chosen)
    all_files = (given,) if unpacked else tuple(file for files in by_split.values() for file in files)
    source = published.data_source or published.hub_id
    return Source(
        name,
        source,
        published.prompt,
        splits,
        options.revision,
        all_files,
        facts,
        rate,
        published.licence,
        tuple(unread),
        unpacked,
        tuple(file.name for file in all_files) if is_archive(given) and given.is_file() and not unpacked else (),
        len(images) if unpacked else 0,
    )


def _open_hub(name: str, published: Published, options: SourceOptions) -> Source:
    tables, unread, revision = hub_tables(name, published, options)
    facts: dict[str, type] = {}
    for _, columns in tables.values():
        facts |= columns.facts()
    rates = [columns.pass_rate for _, columns in tables.values() if columns.pass_rate]
    return Source(
        name,
        published.data_source or published.hub_id,
        published.prompt,
        {split: rows for split, (rows, _) in tables.items()},
        revision,
        facts=facts,
        pass_rate_column=rates[0] if rates else None,
        licence=published.licence,
        unread_images=unread,
    )


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


def _tables(path: Path, stem: str = ".*") -> tuple[dict[str, list[Path]], TemporaryDirectory[str] | None, list[str]]:
    """The data files of a file, a folder or an archive by split, what holds an archive's own ones on the disk, and its images.

    An archive of images alone stands for the data files beside it.
    """
    if not (path.is_file() and is_archive(path)):
        return _files_by_split(path, stem), None, []
    images: list[str] = []
    unpacked = unpacked_tables(path, SUFFIXES, images)
    if unpacked is None:
        return _files_by_split(path.resolve().parent, stem), None, images
    top = Path(unpacked.name)
    while len(inner := [*top.iterdir()]) == 1 and inner[0].is_dir():
        top = inner[0]
    return _files_by_split(top, stem), unpacked, images


def _inside(file: Path, unpacked: TemporaryDirectory[str]) -> str:
    """An unpacked file's name in its archive, without the suffix."""
    return file.relative_to(unpacked.name).with_suffix("").as_posix()


def _picture_beside(file: Path) -> str | None:
    """The image file of the same name in the same folder."""
    there = (file.with_suffix(suffix) for suffix in IMAGE_SUFFIXES)
    return next((picture.name for picture in there if picture.is_file()), None)


def _files_by_split(path: Path, stem: str) -> dict[str, list[Path]]:
    """Return the data files of a path by split; one file that is given by itself is training data unless it says `test`."""
    if path.is_file():
        return {"test" if split_of(path.stem) == "test" else "train": [path]}
    if not path.is_dir():
        raise UsageError(f"There is no file or folder {path}.")
    by_split: dict[str, list[Path]] = {}
    for split in saved_splits(path):
        by_split.setdefault(split_of(split), []).extend(data_files(path / split) if (path / split).is_dir() else [])
    if by_split:
        return by_split
    for folder in (path, path / "main", path / "data"):  # the hub keeps its files in one of the latter two
        for file in data_files(folder) if folder.is_dir() else ():
            if re.fullmatch(stem, file.stem) is not None:
                by_split.setdefault(split_of(file.stem), []).append(file)
        if by_split:
            break
    return by_split


def _reader(chosen: list[tuple[Path, Columns]]) -> Callable[[], Iterator[SourceRow]]:
    def rows() -> Iterator[SourceRow]:
        number = 0
        for file, columns in chosen:
            for row in source_rows(read_rows(file, columns.top_level()), columns, number):
                yield row
                number = row.number + 1

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
