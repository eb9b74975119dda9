"""What a question or answer column holds, as text: foreign data has numbers, decimals, messages and text in parts.

A value that is there and is no text is told apart from one that is missing, so that nobody looks for holes in data that has none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any

from luspo_cli.data.prompts import IMAGE_MARK, PROMPTS, strip_prompt
from luspo_cli.grading.answers import has_box, last_boxed

_IMAGE_COLUMN = re.compile(
    r"(?:decoded_)?(?:image|img|picture|pic|video)s?_?\d*(?:_(?:path|file|name|url|bytes)s?)?", re.IGNORECASE
)
_LONGEST_GOLD = 300
_MOST_BOXES = 50
_WITH_THOUSANDS = re.compile(r"[-+]?\$?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
"""A number whose commas part thousands; those of a tuple or a list belong to the answer."""
_SYSTEM_ROLES = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Question:
    """The bare question of one row, and what else its column holds."""

    text: str
    """"" where there is none."""
    is_text: bool = True
    """Whether the value is text at all; a missing one counts as empty text."""
    has_images: bool = False
    """Whether it has image parts or `<image>` marks."""
    system: str = ""
    """The data's own system turn; a template's is taken off with the rest of the template."""
    earlier_turns: bool = False
    """Whether turns of a conversation stand before the question."""


def answer_text(value: Any) -> str | None:
    """Return a gold answer as text: whole numbers without their fraction, text stripped; None where there is none."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, Decimal):
        # By its digits: arithmetic would round a decimal of many places.
        digits = f"{value:f}" if value.is_finite() else ""
        digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
        return "0" if digits == "-0" else digits or None
    if isinstance(value, list | tuple) and len(value) == 1:
        return answer_text(value[0])
    if isinstance(value, int):
        return str(value)
    text, _ = _content(value)
    return (text or "").strip() or None


def gold_answer(value: Any) -> str | None:
    """Return a gold answer as text: what follows the last `####` (a number without commas), or the content of the last box."""
    text = answer_text(value)
    if text is None:
        return None
    if "####" in text:
        marked = text.rpartition("####")[2].strip()
        return (marked.replace(",", "") if _WITH_THOUSANDS.fullmatch(marked) else marked) or None
    return _box_of_solution(text) or text


def _box_of_solution(text: str) -> str | None:
    """Return the content of the last box in a text; None where there is none, or several make up one short answer."""
    if not has_box(text):
        return None
    boxes: list[str | None] = []
    rest = text
    while has_box(rest) and len(boxes) < _MOST_BOXES:
        boxes.append(last_boxed(rest))
        rest = rest[: max(rest.rfind(r"\boxed"), rest.rfind(r"\fbox"))]
    return boxes[0] if len(set(boxes)) == 1 or not is_readable_gold(text) else None


def is_readable_gold(answer: str) -> bool:
    """Whether an answer can be one short value: a single line of at most 300 characters with balanced braces."""
    return len(answer) <= _LONGEST_GOLD and "\n" not in answer and answer.count("{") == answer.count("}")


def is_missing(value: Any) -> bool:
    """Whether a column holds nothing for a row: null, NaN, blank text, an empty list or object."""
    if isinstance(value, float | Decimal):
        return math.isnan(value) if isinstance(value, float) else value.is_nan()
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, Sequence | Mapping) and not value)


def read_question(value: Any) -> Question:
    """Return the question of a text, of text in parts, or of a list of messages (its last user turn)."""
    if is_missing(value):
        return Question("")
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, list) or not any(isinstance(turn, Mapping) and "role" in turn for turn in turns):
        return _question(value)
    turns = [turn for turn in turns if isinstance(turn, Mapping)]
    asked = [place for place, turn in enumerate(turns) if turn.get("role") == "user"]
    if not asked:
        return Question("")
    system = "\n".join(_content(turn.get("content"))[0] or "" for turn in turns if turn.get("role") in _SYSTEM_ROLES)
    if system.strip() in {template.system for template in PROMPTS.values()}:
        system = ""
    earlier = any(turn.get("role") not in _SYSTEM_ROLES for turn in turns[: asked[-1]])
    return _question(turns[asked[-1]].get("content"), system.strip(), earlier)


def question_text(value: Any) -> str:
    """Return the bare question alone; "" where there is none."""
    return read_question(value).text


@lru_cache(maxsize=1024)
def is_image_column(name: str) -> bool:
    """Whether a top-level column holds images (or videos), by its name."""
    return _IMAGE_COLUMN.fullmatch(name) is not None


def has_image(value: Any) -> bool:
    """Whether an image column holds one for a row: bytes, a path, or either inside lists and objects."""
    if isinstance(value, Mapping):
        return any(has_image(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return any(has_image(inner) for inner in value)
    return not is_missing(value) and not isinstance(value, bool | int | float)


def _question(value: Any, system: str = "", earlier_turns: bool = False) -> Question:
    text, images = _content(value)
    if text is None:
        return Question("", is_text=is_missing(value))
    bare = strip_prompt(text.strip()).strip()
    return Question(bare, True, images or IMAGE_MARK in bare, system, earlier_turns)


def _content(value: Any) -> tuple[str | None, bool]:
    """Return a message's content as text, None where it is no text, and whether parts of it are images."""
    if isinstance(value, str):
        return value, False
    if isinstance(value, Mapping):
        text = value.get("text", value.get("content") if "role" in value else None)
        if isinstance(text, str):
            return text, False
        return (text if text is None else _content(text)[0]), "image" in str(value.get("type", ""))
    if not isinstance(value, list) or not all(isinstance(part, Mapping) for part in value):
        return None, False  # a list of bare texts is a list, not one text
    parts = [_content(part) for part in value]
    images = any(image for _, image in parts)
    # An image part has no text of its own; any other part without text is not understood.
    if any(text is None and not image for text, image in parts):
        return None, images
    return "".join(text or "" for text, _ in parts), images
