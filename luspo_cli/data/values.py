"""What a question or answer column holds, as text: foreign data has numbers, decimals, messages and text in parts.

A value that is there and is no text is told apart from one that is missing, so that nobody looks for holes in data that has none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from luspo_cli.data.image_columns import RawImage, raw_images
from luspo_cli.data.missing import is_missing
from luspo_cli.data.prompts import IMAGE_MARK, PROMPTS, strip_prompt
from luspo_cli.grading.answers import has_box, last_boxed

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
    images: tuple[RawImage, ...] = ()
    """Those that its parts hold themselves; a part that names none is a mark alone."""
    has_videos: bool = False
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
    return (_content(value).text or "").strip() or None


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
    system = "\n".join(_content(turn.get("content")).text or "" for turn in turns if turn.get("role") in _SYSTEM_ROLES)
    if system.strip() in {template.system for template in PROMPTS.values()}:
        system = ""
    earlier = any(turn.get("role") not in _SYSTEM_ROLES for turn in turns[: asked[-1]])
    question = _question(turns[asked[-1]].get("content"), system.strip(), earlier)
    # What was shown before the last question belongs to it: without a mark of their own these images go before it, beside marks
    # of others the numbers differ and the row is counted.
    shown = tuple(image for turn in turns[: asked[-1]] for image in _content(turn.get("content")).images)
    return replace(question, images=shown + question.images)


def question_text(value: Any) -> str:
    """Return the bare question alone; "" where there is none."""
    return read_question(value).text


def _question(value: Any, system: str = "", earlier_turns: bool = False) -> Question:
    content = _content(value)
    if content.text is None:
        return Question("", is_text=is_missing(value))
    bare = strip_prompt(content.text.strip()).strip()
    return Question(bare, True, content.images, content.has_videos, system, earlier_turns)


@dataclass(frozen=True, slots=True)
class _Content:
    """A message's content: its text, None where it is no text, each image part an `<image>` mark in it."""

    text: str | None
    images: tuple[RawImage, ...] = ()
    has_videos: bool = False


def _content(value: Any) -> _Content:
    if isinstance(value, str):
        return _Content(value)
    if isinstance(value, Mapping):
        kind = str(value.get("type", ""))
        if "image" in kind:
            named = (raw_images(value.get(key)) for key in ("image", "image_url", "url", "path", "bytes"))
            return _Content(IMAGE_MARK, next((images for images in named if images), ()))
        if "video" in kind:
            return _Content("", has_videos=True)
        text = value.get("text", value.get("content") if "role" in value else None)
        return _Content(text if text is None or isinstance(text, str) else _content(text).text)
    if not isinstance(value, list) or not all(isinstance(part, Mapping) for part in value):
        return _Content(None)  # a list of bare texts is a list, not one text
    parts = [_content(part) for part in value]
    images = tuple(image for part in parts for image in part.images)
    videos = any(part.has_videos for part in parts)
    texts = [part.text for part in parts]
    # A part without text that is neither image nor video is not understood.
    return _Content(None if None in texts else "".join(text or "" for text in texts), images, videos)
