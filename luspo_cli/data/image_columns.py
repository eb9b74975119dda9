"""Which images a row names: by path, by bytes, or as base64 text, one or several, in a column or inside its messages.

Of several filled image columns a numbered series (`image_1`, `image_2`) belongs together, and a plain name (`image`) goes before
one that says how it is kept (`image_path`, `decoded_image`); columns that none of these rules orders are not guessed at.
"""

from __future__ import annotations

import ast
import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from luspo_cli.data.left_out import LeftOut
from luspo_cli.data.missing import is_missing
from luspo_cli.data.prompts import IMAGE_MARK

_KEPT_AS = r"(?:_?(?P<kept>(?:path|file|name|url|bytes)s?))?"
_IMAGE_COLUMN = re.compile(
    rf"(?P<decoded>decoded_)?(?P<word>(?:image|img|picture|pic)s?)_?(?P<number>\d*){_KEPT_AS}", re.IGNORECASE
)
_VIDEO_COLUMN = re.compile(rf"(?:decoded_)?videos?_?\d*{_KEPT_AS}", re.IGNORECASE)
_NUMBERED_MARK = re.compile(r"<image[ _](\d+)>", re.IGNORECASE)
_MODELS_MARK = re.compile(r"(?:<\|vision_start\|>)?<\|image_pad\|>(?:<\|vision_end\|>)?")
"""How chat templates of the Qwen models write an image's place."""
BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")
"""First bytes of the image formats that are read."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Of the image formats that are read."""
_IMAGE_PATH = re.compile(r"[^\n]{1,500}\.(?:png|jpe?g|webp|gif|bmp|tiff?)", re.IGNORECASE)
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD", "Qk", "SUkqA", "TU0AK")
"""Of JPEG, PNG, WEBP, GIF, BMP and TIFF."""
_SHORTEST_BASE64 = 60
_LONGEST_LITERAL = 100_000
"""Characters of a list as Python writes it."""
_INNER = ("bytes", "path", "image", "image_url", "url")
"""Keys of an object that stands for one image; the first that holds something counts."""


@dataclass(frozen=True, slots=True)
class RawImage:
    """One image as a row names it: its bytes or its path; neither where the row has a hole in its place."""

    content: bytes | None = None
    path: str | None = None


@lru_cache(maxsize=1024)
def is_image_column(name: str) -> bool:
    """Whether a top-level column holds images, by its name."""
    return _IMAGE_COLUMN.fullmatch(name) is not None


@lru_cache(maxsize=1024)
def is_video_column(name: str) -> bool:
    """Whether a top-level column holds videos, by its name."""
    return _VIDEO_COLUMN.fullmatch(name) is not None


def raw_images(value: Any) -> tuple[RawImage, ...]:
    """The images that a cell names, in order; () where it holds nothing.

    A list of paths, or an object, that is written out as text, in JSON or as Python does (`['a.png']`), is read as what it says.

    Something that names no image, a number or an object of unknown keys, is a hole: its row is counted, never used without it.
    """
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        value = _written_out(value)
    items = value if isinstance(value, list | tuple) else (value,)
    return () if all(map(_holds_nothing, items)) else tuple(map(_raw_image, items))


def _written_out(text: str) -> Any:
    """What the text of a list or object says; the text itself, a path, where it says none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if len(text) > _LONGEST_LITERAL:  # a parsed tree takes a hundred times the room of its text
        return text
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _holds_nothing(value: Any) -> bool:
    if isinstance(value, bytes):
        return False  # a file of no bytes is an image that cannot be read
    if isinstance(value, Mapping | list):
        return all(map(_holds_nothing, value.values() if isinstance(value, Mapping) else value))
    return value is False or is_missing(value)


def _raw_image(value: Any) -> RawImage:
    if isinstance(value, bytes | bytearray | memoryview):
        return RawImage(content=bytes(value))
    if isinstance(value, Mapping):
        found = (_raw_image(value.get(key)) for key in _INNER)
        return next((image for image in found if image != RawImage()), RawImage())
    if not isinstance(value, str) or not value.strip():
        return RawImage()
    text = value.strip()
    encoded = text.partition("base64,")[2] if text.startswith("data:") else text if _is_base64(text) else ""
    if not encoded:
        return RawImage(path=text.removeprefix("file://"))
    try:
        return RawImage(content=base64.b64decode(encoded))
    except (binascii.Error, ValueError):
        return RawImage(content=b"")  # no image can be read from it


def _is_base64(text: str) -> bool:
    return len(text) >= _SHORTEST_BASE64 and text.startswith(_BASE64_STARTS) and "." not in text


def images_of_row(row: Mapping[str, Any], names: Iterable[str]) -> tuple[RawImage, ...] | LeftOut:
    """The images in a row's columns of these names; a reason where more than one column could be meant.

    An empty column of a numbered series is a hole where a later one is filled.
    """
    series: dict[tuple[str, ...], list[tuple[int, tuple[RawImage, ...]]]] = {}
    for name in names:
        match = _IMAGE_COLUMN.fullmatch(name)
        if match is not None and ((images := raw_images(row.get(name))) or match["number"]):
            kind = tuple((match[part] or "").lower() for part in ("decoded", "word", "kept"))
            series.setdefault(kind, []).append((int(match["number"] or 0), images))
    filled = {kind: columns for kind, columns in series.items() if any(images for _, images in columns)}
    plain = [kind for kind in filled if not kind[0] and not kind[2]]
    kinds = plain or list(filled)
    if len(kinds) > 1:
        return LeftOut.IMAGE_COLUMNS_UNCLEAR
    columns = sorted(filled[kinds[0]], key=lambda column: column[0]) if kinds else []
    while columns and not columns[-1][1]:
        columns.pop()
    return tuple(image for _, images in columns for image in images or (RawImage(),))


def unread_image_columns(rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> tuple[str, ...]:
    """Those of these columns that hold images and nothing else in the rows, by bytes or by a path with an image's suffix."""
    met = list(rows)
    found = {name: [image for row in met for image in raw_images(row.get(name))] for name in names}
    return tuple(name for name, images in found.items() if images and all(map(_looks_like_an_image, images)))


def _looks_like_an_image(image: RawImage) -> bool:
    if image.content is not None:
        return image.content.startswith(BEGINNINGS)
    return names_an_image(image.path or "")


def names_an_image(path: str) -> bool:
    """Whether a path has the suffix of an image format that is read."""
    return _IMAGE_PATH.fullmatch(path) is not None


def with_marks(question: str, images: Sequence[RawImage]) -> tuple[str, tuple[RawImage, ...]]:
    """A question whose marks are numbered (`<image 1>`) or a model's own with marks of ours, and its images in their order.

    Numbers that do not fit the images stay, as marks without an image.
    """
    question = _MODELS_MARK.sub(IMAGE_MARK, question)
    numbers = [int(number) for number in _NUMBERED_MARK.findall(question)]
    if IMAGE_MARK in question or set(numbers) != set(range(1, len(images) + 1)):
        return question, tuple(images)
    return _NUMBERED_MARK.sub(IMAGE_MARK, question), tuple(images[number - 1] for number in numbers)


def without_marks(question: str) -> str:
    """A question with a space in the place of each mark, in any spelling."""
    return _NUMBERED_MARK.sub(" ", _MODELS_MARK.sub(" ", question.replace(IMAGE_MARK, " ")))


def lost_mark(question: str) -> str | None:
    """The first numbered mark that found no image."""
    found = _NUMBERED_MARK.search(question)
    return None if found is None else found[0]
