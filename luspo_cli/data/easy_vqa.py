"""easy-VQA (MIT): questions on pictures of one coloured shape, as its Python package carries them, with its own split.

The package is read where it is installed, or as the wheel, a zip file or a folder that is named; nothing in it is run.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from luspo_cli.data.archives import MOST_BYTES
from luspo_cli.data.columns import SourceRow
from luspo_cli.data.image_columns import RawImage
from luspo_cli.data.published import EASY_VQA
from luspo_cli.errors import UsageError, first_line

SHAPES = ("circle", "rectangle", "triangle")
_INNER = ("", "data", "easy_vqa/data")
"""Where the splits are below what was named."""


def easy_vqa(place: Path | None) -> tuple[dict[str, Callable[[], Iterator[SourceRow]]], tuple[Path, ...]]:
    """The splits of the data set in `place`, or of the installed package, and the files that they are read from.

    UsageError where it is not there.
    """
    place = place or _installed()
    if place is None:
        raise UsageError(
            f"{EASY_VQA} is a Python package, which is not installed: pip install easy-vqa, or name its wheel or folder"
            " with --from."
        )
    try:
        top: Any = zipfile.Path(place) if place.is_file() else place
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"{place} cannot be read as a wheel or zip file: {first_line(error)}.") from error
    for inner in _INNER:
        root = top.joinpath(*inner.split("/")) if inner else top
        found = {split: root / split for split in ("train", "test") if (root / split / "questions.json").is_file()}
        if found:
            files = (place,) if place.is_file() else tuple(folder / "questions.json" for folder in found.values())
            return {split: _reader(folder) for split, folder in found.items()}, files
    raise UsageError(
        f"{place} holds no train/questions.json of {EASY_VQA}; name its wheel, a zip file of it, or its folder."
    )


def category(answer: str) -> str:
    """What a question asks for, by its answer."""
    return "yes or no" if answer in ("yes", "no") else "shape" if answer in SHAPES else "colour"


def _installed() -> Path | None:
    spec = find_spec("easy_vqa")
    return Path(spec.origin).parent / "data" if spec is not None and spec.origin else None


def _reader(folder: Any) -> Callable[[], Iterator[SourceRow]]:
    def rows() -> Iterator[SourceRow]:
        picture = lru_cache(maxsize=16)(lambda number: _picture(folder, number))
        for number, (question, answer, image) in enumerate(_questions(folder)):
            facts: Mapping[str, str] = {"category": category(answer)}
            yield SourceRow(question, answer, number, images=(picture(image),), facts=facts)

    return rows


def _questions(folder: Any) -> list[tuple[str, str, int]]:
    try:
        entries = json.loads((folder / "questions.json").read_bytes())
        found = [(question, answer, image) for question, answer, image in entries]
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{folder}/questions.json is no list of question, answer and image: {first_line(error)}."
        ) from error
    if bad := next((entry for entry in found if list(map(type, entry)) != [str, str, int]), None):
        raise UsageError(f"{folder}/questions.json has an entry that is no question, answer and image number: {bad!r}.")
    return found


def _picture(folder: Any, number: int) -> RawImage:
    """The bytes of a picture, one more than may be of one that is too large; its path where it is not there."""
    try:
        with (folder / "images" / f"{number}.png").open("rb") as stream:
            return RawImage(content=stream.read(MOST_BYTES + 1))
    except (OSError, KeyError, zipfile.BadZipFile):
        return RawImage(path=f"images/{number}.png")
