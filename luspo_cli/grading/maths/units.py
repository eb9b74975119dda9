"""Units that may follow an answer. A known unit is taken off and remembered; nothing else at the end of an answer is.

Single letters (m, s, g) are variables unless they stand in `\\text{}`, where any word may be taken off.
"""

from __future__ import annotations

import re

_SPELLINGS = {
    "degree": "degrees deg",
    "radian": "radians rad",
    "cent": "cents",
    "dollar": "dollars usd bucks",
    "euro": "euros eur",
    "percent": "percents pct",
    "inch": "inches in",
    "foot": "feet ft",
    "yard": "yards yd yds",
    "mile": "miles mi",
    "millimeter": "millimeters millimetre millimetres mm",
    "centimeter": "centimeters centimetre centimetres cm",
    "meter": "meters metre metres m",
    "kilometer": "kilometers kilometre kilometres km",
    "second": "seconds sec secs s",
    "minute": "minutes min mins",
    "hour": "hours hr hrs h",
    "day": "days",
    "week": "weeks",
    "month": "months",
    "year": "years yr yrs",
    "gram": "grams g",
    "kilogram": "kilograms kg",
    "pound": "pounds lb lbs",
    "ounce": "ounces oz",
    "liter": "liters litre litres",
    "milliliter": "milliliters ml",
    "gallon": "gallons",
    "mile per hour": "mph",
}
_CANONICAL = {name: name for name in _SPELLINGS} | {
    spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings.split()
}
# Things that are counted: taken off after a number, and equal to no unit at all.
_COUNTED = frozenset(
    (
        "unit", "units", "way", "ways", "people", "person", "persons", "student", "students", "time", "times",
        "point", "points", "book", "books", "apple", "apples", "egg", "eggs", "coin", "coins", "ticket", "tickets",
        "piece", "pieces", "page", "pages", "integer", "integers", "solution", "solutions", "child", "children",
    )
)  # fmt: skip
# A bare word must be longer than a letter, and "in" and "min" are also words of mathematics.
_BARE = sorted((name for name in (*_CANONICAL, *_COUNTED) if len(name) > 1 and name not in ("in", "min")), key=len)
_NAME = "(?:" + "|".join(re.escape(name) for name in reversed(_BARE)) + ")"
_TAIL = re.compile(
    rf"\s*\b((?:square|cubic|sq\.?|cu\.?)\s{{1,4}})?({_NAME}|in(?=\s{{0,4}}\^))"
    rf"(?:\s{{0,4}}(?:/|per)\s{{0,4}}{_NAME})?(?:\s{{0,4}}\^\s{{0,4}}(?:[23]|\{{[23]\}}))?\.?$",
    re.IGNORECASE,
)
_GLUED = re.compile(rf"(?<=[0-9}})])({_NAME})(?:\^(?:[23]|\{{[23]\}}))?$", re.IGNORECASE)
_LONGEST_TAIL = 48


def canonical_unit(text: str) -> str | None:
    """Return the canonical name of the unit in `text` ("inches" → "inch"), or None where it is not a known unit."""
    words = [word for word in re.split(r"[^a-z]+", text.lower()) if word not in ("", "square", "cubic", "sq", "cu")]
    if words[1:2] == ["per"] and len(words) == 3:
        return " per ".join(_CANONICAL.get(word, word) for word in (words[0], words[2]))
    return _CANONICAL.get(words[0]) if len(words) == 1 else None


def split_unit(text: str) -> tuple[str, str | None] | None:
    """Split a bare unit off the end of `text` into (stem, canonical unit or None); None where none is there."""
    start = max(0, len(text) - _LONGEST_TAIL)
    tail = text[start:]
    match = _TAIL.search(tail) or _GLUED.search(tail)
    if match is None:
        return None
    stem = text[: start + match.start()].rstrip()
    # Only what ends like a value has a unit: "east" alone, or "x = min", is no quantity.
    if not stem or not (stem[-1].isdigit() or stem[-1] in ")}]" or stem.endswith(("pi", "\\pi"))):
        return None
    return stem, canonical_unit(match.group(0).strip().rstrip("^23{}."))
