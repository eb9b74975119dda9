"""Units that may follow an answer: a known one is taken off and remembered, and so is what it is worth.

Decided here: a value without a unit equals the value with one (the question named the unit); two known units must
agree, and where they measure the same thing they are converted, so 50 mm is 5 cm and 5 cm is not 5 m. Single letters
(m, s, g) are variables unless they stand in `\\text{}`, where any word may be taken off that does not change the value
(`words`), or in `m/s`.
"""

from __future__ import annotations

import re
from fractions import Fraction

from luspo_cli.grading.maths.words import changes_value, goes_on

_SPELLINGS = {
    "degree": "degrees deg",
    "celsius": "°c",
    "fahrenheit": "°f",
    "radian": "radians rad",
    "cent": "cents ¢",
    "dollar": "dollars usd bucks",
    "euro": "euros eur",
    "pound sterling": "gbp",
    "yuan": "rmb cny 元",
    "percent": "percents pct",
    "inch": "inches in",
    "foot": "feet ft",
    "yard": "yards yd yds",
    "mile": "miles mi",
    "millimeter": "millimeters millimetre millimetres mm 毫米",
    "centimeter": "centimeters centimetre centimetres cm cms 厘米",
    "meter": "meters metre metres m 米",
    "kilometer": "kilometers kilometre kilometres km kms 千米 公里",
    "millisecond": "milliseconds ms",
    "second": "seconds sec secs s 秒",
    "minute": "minutes min mins 分钟",
    "hour": "hours hr hrs h 小时",
    "day": "days 天",
    "week": "weeks 周",
    "month": "months 个月",
    "year": "years yr yrs 年",
    "milligram": "milligrams mg",
    "gram": "grams g 克",
    "kilogram": "kilograms kg kgs 千克 公斤",
    "pound": "pounds lb lbs",
    "ounce": "ounces oz",
    "liter": "liters litre litres l 升",
    "milliliter": "milliliters millilitre millilitres ml 毫升",
    "gallon": "gallons",
    "joule": "joules j",
    "newton": "newtons n",
    "watt": "watts w",
    "volt": "volts v",
    "hertz": "hz",
    "ohm": "ohms",
}
_CANONICAL = {name: name for name in _SPELLINGS} | {
    spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings.split()
}
_CANONICAL |= {"mph": "mile/hour", "kmh": "kilometer/hour", "kph": "kilometer/hour"}
_WORTH = {
    kind: {unit: Fraction(worth) for unit, worth in units.items()}
    for kind, units in {
        "length": {"millimeter": "1/1000", "centimeter": "1/100", "meter": "1", "kilometer": "1000"},
        "imperial length": {"inch": "1", "foot": "12", "yard": "36", "mile": "63360"},
        "time": {"millisecond": "1/1000", "second": "1", "minute": "60", "hour": "3600", "day": "86400"}
        | {"week": "604800"},
        "mass": {"milligram": "1/1000", "gram": "1", "kilogram": "1000"},
        "imperial mass": {"ounce": "1", "pound": "16"},
        "volume": {"milliliter": "1", "liter": "1000"},
        "money": {"cent": "1", "dollar": "100"},
    }.items()
}
# Things that are counted: taken off after a number, and equal to no unit at all.
_COUNTED = frozenset(
    (
        "unit", "units", "way", "ways", "people", "person", "persons", "student", "students", "time", "times",
        "point", "points", "book", "books", "apple", "apples", "egg", "eggs", "coin", "coins", "ticket", "tickets",
        "piece", "pieces", "page", "pages", "integer", "integers", "solution", "solutions", "child", "children",
        "men", "boys", "girls", "cats", "dogs", "cars", "pens",
    )
)  # fmt: skip
_MULTIPLIERS = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_MULTIPLIED = re.compile(rf"(-?[0-9][0-9,]{{0,20}}(?:\.[0-9]{{1,20}})?) ?({'|'.join(_MULTIPLIERS)})s?")

_ALL = sorted(_CANONICAL, key=len, reverse=True)
# A bare word must be longer than a letter, and "in" and "min" are also words of mathematics.
_BARE = [
    name for name in (*_ALL, *_COUNTED) if (len(name) > 1 or not name.isascii()) and name not in ("in", "min", "ms")
]
_NAME = "(?:" + "|".join(map(re.escape, sorted(_BARE, key=len, reverse=True))) + ")"
_ANY = "(?:" + "|".join(map(re.escape, _ALL)) + ")"
_POWER = r"(?:\s?\^?\s?\{?\s?[23]\s?\}?(?![0-9A-Za-z])|\s(?:squared|cubed)\b)"
_PER = rf"\s?(?:/|\bper\b)\s?{_ANY}{_POWER}?"
_SHAPED = r"(?:square|cubic|sq\.?|cu\.?)\s{1,4}"
_TAIL = re.compile(
    rf"\s*(?<![A-Za-z\\])(?:{_SHAPED})?(?:{_NAME}|in(?=\s?\^)|m(?=\s?/\s?s))(?![A-Za-z]){_POWER}?(?:{_PER})?\.?$",
    re.IGNORECASE,
)
_GLUED = re.compile(rf"(?<=[0-9}})])\s?(?:{_NAME}{_POWER}?(?:{_PER})?|m\s?/\s?s{_POWER}?)$", re.IGNORECASE)
_UNIT = re.compile(
    rf"(?P<shaped>{_SHAPED})?(?P<name>{_ANY})(?P<power>{_POWER})?(?:\s?(?:/|\bper\b)\s?(?P<per>{_ANY})(?P<square>{_POWER})?)?",
    re.IGNORECASE,
)
_FRACTION = re.compile(rf"\\frac ?\{{ ?({_ANY}) ?\}} ?\{{ ?({_ANY}) ?\}}$")
_NOUNS = re.compile(r"(?<=[0-9)}])((?: [A-Za-z][a-z'-]+){1,4})$")
_CHINESE_TAIL = re.compile(r"(?<=[0-9)}])\s?([\u4e00-\u9fff]{1,4})$")
_SHORT = re.compile(r"(?P<stem>.*[0-9)}])(?P<unit>(?:in|min|ms|[mshgl])(?:\^\{?[23]\}?)?)", re.DOTALL)
"""Units that are letters or words of mathematics unless something says that a unit is meant."""
_LONGEST_TAIL = 64
"""Characters at the end of an answer in which a unit or a noun is looked for: the longest of ours has 40."""


def canonical_unit(text: str) -> str | None:
    """Return the canonical name of a unit ("km/h" is "kilometer/hour", "cm^2" "centimeter^2"), None where unknown."""
    text = _FRACTION.sub(r"\1/\2", text.strip())
    match = _UNIT.fullmatch(text.rstrip("."))
    if match is None:
        return None
    unit = _CANONICAL[match["name"].lower()]
    power = _exponent((match["shaped"] or "") + (match["power"] or ""))
    per = f"/{_CANONICAL[match['per'].lower()]}{_exponent(match['square'] or '')}" if match["per"] else ""
    return unit + power + per


def _exponent(text: str) -> str:
    text = text.lower()
    return "^2" if "2" in text or "sq" in text else "^3" if "3" in text or "cu" in text else ""


def split_unit(text: str) -> tuple[str, str | None] | None:
    """Split a bare unit or noun off the end of `text` into (stem, canonical unit or None); None where none is there."""
    start = max(0, len(text) - _LONGEST_TAIL)
    tail = text[start:]
    for match in (_FRACTION.search(tail), _TAIL.search(tail), _GLUED.search(tail), _chinese(tail), _counted(tail)):
        stem = text[: start + match.start()].rstrip() if match is not None else ""
        # Only what ends like a value has a unit: "east" alone, or "x = min", is no quantity.
        if match and (stem[-1:].isdigit() or stem[-1:] in (")", "}") or stem.endswith("pi") or multiplied(stem)):
            return stem, canonical_unit(match.group(0))
    return None


def short_unit(text: str) -> tuple[str, str] | None:
    """Split "10in" or "5m^2", in normal spelling, into value and canonical unit; for where a unit of its kind is expected."""
    match = _SHORT.fullmatch(text)
    unit = canonical_unit(match["unit"]) if match is not None else None
    return None if match is None or unit is None else (match["stem"], unit)


def _counted(tail: str) -> re.Match[str] | None:
    """Nouns with their adjectives ("red apples"); short words may be products of letters and are none."""
    match = _NOUNS.search(tail)
    words = match.group(1).split() if match else []
    if match is None or goes_on(match.group(1)):
        return None
    last = words[-1]
    spelt = len(last) > 3 and re.search("[aeiouy]", last) is not None and sorted(set(last)) != list(last)
    return match if last in _COUNTED or (spelt and all(len(word) > 2 for word in words)) else None


def _chinese(tail: str) -> re.Match[str] | None:
    match = _CHINESE_TAIL.search(tail)
    return None if match is None or changes_value(match.group(1)) else match


def multiplied(text: str) -> str | None:
    """Return "9 dozen" or "2.5 million" as a plain fraction or integer, None where `text` is neither."""
    match = _MULTIPLIED.fullmatch(text)
    return match and str(Fraction(match[1].replace(",", "")) * _MULTIPLIERS[match[2]])


def clash(first: str | None, second: str | None) -> bool:
    """Whether two known units differ; a degree may be one of a scale of temperature."""
    if first is None or second is None or first == second:
        return False
    return not ("degree" in (first, second) and {first, second} & {"celsius", "fahrenheit"})


def conversion(first: str, second: str) -> Fraction | None:
    """Return how many of `second` one `first` is, or None where they do not measure the same thing."""
    top, _, bottom = first.partition("/")
    other_top, _, other_bottom = second.partition("/")
    if bottom or other_bottom:
        upper, lower = conversion(top, other_top), conversion(bottom, other_bottom)
        return None if upper is None or lower is None else upper / lower
    (name, _, power), (other, _, same) = first.partition("^"), second.partition("^")
    for worth in _WORTH.values():
        if name in worth and other in worth and power == same:
            return (worth[name] / worth[other]) ** int(power or 1)
    return None
