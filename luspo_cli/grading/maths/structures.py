r"""The shape of an answer: tuple, interval, union, set, list, matrix, equation, number in a base, or expression.

Decided here: brackets carry meaning ((3,4] is not (3,4)), order carries meaning in tuples and matrices and none in
sets, lists and unions, where every element is needed. `a \pm b` is the list of its two values. An inequality in one
symbol is the interval it describes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from luspo_cli.grading.maths.spelling import OR
from luspo_cli.grading.maths.tokens import DERIVATIVE

MAX_ITEMS = 64


@dataclass(frozen=True, slots=True)
class Expression:
    """Anything without a shape of its own."""

    text: str


@dataclass(frozen=True, slots=True)
class InBase:
    """Digits in a base, 52_8; `digits` in lower case without leading zeros."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Ordered:
    """A tuple, point, vector or interval; with two items the brackets tell an interval's ends."""

    opener: str
    items: tuple[str, ...]
    closer: str


@dataclass(frozen=True, slots=True)
class Unordered:
    """A set or a list of answers such as roots; a `union` holds intervals and is no list of them."""

    items: tuple[str, ...]
    union: bool = False
    braces: bool = False
    r"""Written as a set, \{1,2\}: an element that is written twice counts once."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Terms that stand in a ratio, 2:3; `clock` where they may be a time of day, 10:30."""

    terms: tuple[str, ...]
    clock: bool


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of entries, all of one length."""

    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Equation:
    """Two or more sides that are said to be equal."""

    sides: tuple[str, ...]


Shape = Expression | InBase | Ordered | Unordered | Ratio | Matrix | Equation

_BASED = re.compile(r"\(?([0-9A-Za-z]+)\)?_\{?(?:base)?([0-9]{1,2}|[a-z]+)\}?")
_BASE_IN_WORDS = re.compile(r"([0-9A-Za-z]+)\(?(?:in)?base-?\{?([0-9]{1,2}|[a-z]+)\}?\)?")
_BASE_NAME_LIST = "two three four five six seven eight nine ten eleven twelve"
_BASE_NAMES = {name: base for base, name in enumerate(_BASE_NAME_LIST.split(), start=2)} | {"sixteen": 16}
_MATRIX = re.compile(r"\\begin\s?\{([pbB]?(?:small)?matrix|array)\}(.*)\\end\s?\{\1\}", re.DOTALL)
_COLUMNS = re.compile(r"\{[clr|@{}\s]{1,40}\}")
_ROW_GAP = re.compile(r"\\\\(?:\[[^\]]{0,16}\])?|\\cr\b|\\hline\b")
_NOT_NOT = r"(?!\\(?:not|neg|lnot)(?![A-Za-z]))"
_MEMBER = re.compile(r"[A-Za-z](?:_[0-9A-Za-z])?\\in ?(.+)", re.DOTALL)
_NAME = re.compile(
    _NOT_NOT + r"\\?[A-Za-z]+'?(?:_(?:[0-9A-Za-z]|\{[0-9A-Za-z,]{1,8}\}))?(?:\([A-Za-z](?:,[A-Za-z]){0,3}\))?"
)
_RELATION = re.compile(r"\\leq ?|\\geq ?|<=|>=|<|>")
_PLUS_MINUS = re.compile(r"\\(pm|mp) ?")
_SYMBOL = re.compile(_NOT_NOT + r"\\?[A-Za-z]+(?:_[0-9A-Za-z])?")
_CLOCK = re.compile(r"(?:[01]?[0-9]|2[0-4]):[0-5][0-9]")
_APPLIED = re.compile(
    # A function at a place: f(3), f'(2), f^{-1}(5), P(A), and a small letter at a number, a(10).
    r"(?:(?:[fghpqA-Z]|\\[A-Za-z]+ ?)(?:'|_\{?[0-9a-z]\}?|\^\{?(?:-1|\([0-9]\))\}?){0,2}\((?:[^()=]|\([^()=]{0,40}\)){1,60}\)"
    r"|[a-z](?:'|_\{?[0-9a-z]\}?)?\(-?[0-9./]+\))"
)
_FIGURE = re.compile(
    # An angle, a segment, a length, an area, a function of an angle: \angle ABC, \overline{AB}, |AB|, [ABC], \sin A.
    r"m?\\angle ?\{?[A-Z]{1,3}\}?|\\over(?:line|rightarrow) ?\{[A-Z]{2}\}|\|[A-Z]{2}\||\|[zwv]\||\[[A-Z]{3,4}\]"
    r"|\\(?:sin|cos|tan|cot) ?(?:\\(?:theta|alpha|beta|gamma|angle ?[A-Z]{1,3})|\(?[A-C]\)?)"
)
_CHAIN = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:-[0-9]+(?:\.[0-9]+)?)+|[0-9]+(?:/[0-9]+)+")
_SPACED_MINUS = re.compile(r"[0-9]\s+[-−]|[-−]\s+[0-9]")
_CLOSERS = {"(": ")", "[": "]"}


def read_shape(text: str) -> Shape:
    """Return the shape of a normalised answer."""
    matrix = _read_matrix(text)
    if matrix is not None:
        return matrix
    based = read_base(text)
    if based is not None:
        return based
    member = _MEMBER.fullmatch(text)
    if member:
        return read_shape(member.group(1))
    if text == r"\emptyset":
        return Unordered((), braces=True)
    parts = split_top(text, (",", ";"))
    if len(parts) > 1 and all(parts):
        return Unordered(_expand(parts))
    parts = split_top(text, (OR, r"\cup"))
    if len(parts) > 1 and all(parts):
        shapes = [read_shape(part) for part in parts]
        intervals = [shape for shape in shapes if isinstance(shape, Ordered) and len(shape.items) == 2]
        if len(intervals) < len(parts):
            return Unordered(_expand(parts))
        texts = (one.opener + ",".join(one.items) + one.closer for one in intervals)
        return Unordered(tuple(texts), union=True)
    interval = read_inequality(text)
    if interval is not None:
        return interval[0]
    parts = split_top(text, (":",))
    if 2 <= len(parts) <= 4 and all(parts):
        return Ratio(tuple(parts), _CLOCK.fullmatch(text) is not None)
    sides = split_top(text, ("=",))
    if len(sides) > 1 and all(sides):
        return Equation(tuple(sides))
    return read_brackets(text)


def read_base(text: str) -> InBase | None:
    """Return the number in a base that `text` is (52_8, 4210_{5}, 52_{eight}), or None."""
    match = _BASED.fullmatch(text) or _BASE_IN_WORDS.fullmatch(text.replace(" ", ""))
    if match is None or not any(character.isdigit() for character in match.group(1)):
        return None
    base = int(match.group(2)) if match.group(2).isdigit() else _BASE_NAMES.get(match.group(2), 0)
    digits = match.group(1).lower().lstrip("0") or "0"
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits):
        return None
    return InBase(digits, base)


def is_name(text: str) -> bool:
    """Whether `text` names a value (x, y_1, f(x), \\theta, Area) and so may stand before an equals sign."""
    return _NAME.fullmatch(text) is not None


def is_as_written(text: str, raw: str) -> bool:
    """Whether numbers joined by hyphens or slashes are a date, a score, a range or the like, which nobody computes.

    Three numbers or more are (2023-01-02, 555-123-4567), as is a number with a leading zero (05/12), and the smaller
    before the larger: 2016-2017. `text`: in normal spelling; `raw`: as the answer spells it, 5 - 7 being a difference.
    """
    if _CHAIN.fullmatch(text) is None:
        return False
    parts = re.split("[-/]", text)
    if len(parts) > 2 or any(part.isdigit() and len(part) > 1 and part[0] == "0" for part in parts):
        return True
    return "-" in text and float(parts[0]) < float(parts[1]) and _SPACED_MINUS.search(raw) is None


def is_label(text: str) -> bool:
    """Whether `text` names what is asked for other than by a letter: f(3), P(A), \\angle ABC, or (x,y)."""
    if _APPLIED.fullmatch(text) or _FIGURE.fullmatch(text) or DERIVATIVE.fullmatch(text):
        return True
    shape = read_shape(text) if text.startswith(("(", "[")) else None
    return isinstance(shape, Ordered) and all(is_name(item) for item in shape.items)


def split_top(text: str, separators: tuple[str, ...]) -> list[str]:
    """Split `text` at separators outside all brackets; any closing bracket closes the last one, as intervals need."""
    parts: list[str] = []
    depth = start = at = 0
    while at < len(text):
        if depth == 0 and text.startswith(separators, at):
            separator = next(one for one in separators if text.startswith(one, at))
            # In plain text `<=` and `>=` hold no equals sign of their own.
            if separator != "=" or not at or text[at - 1] not in "<>!:":
                parts.append(text[start:at].strip())
                start = at = at + len(separator)
                continue
        if text[at] in "([{":
            depth += 1
        elif text[at] in ")]}":
            depth = max(0, depth - 1)
        at += 1
    return [*parts, text[start:].strip()]


def _read_matrix(text: str) -> Matrix | None:
    if text.startswith(("(\\begin", "[\\begin")) and text.endswith(("})", "}]")):  # an array in brackets
        text = text[1:-1]
    match = _MATRIX.fullmatch(text)
    if match is None:
        return None
    body = match.group(2)
    if match.group(1) == "array":
        body = _COLUMNS.sub("", body, count=1)
    rows = [row for row in _ROW_GAP.split(body) if row.strip()]
    return _matrix_of([split_top(row, ("&",)) for row in rows])


def _matrix_of(rows: list[list[str]]) -> Matrix | None:
    if not rows or any(len(row) != len(rows[0]) for row in rows) or len(rows) * len(rows[0]) > MAX_ITEMS:
        return None
    return Matrix(tuple(tuple(row) for row in rows))


def read_brackets(text: str) -> Shape:
    """Return the set, matrix, tuple or interval that `text` is in its brackets, else an expression."""
    if text.startswith(r"\{") and text.endswith(r"\}"):
        inner = text[2:-2].strip()
        if _closes_at_end(text[1:-2] + "}"):
            items = [item for item in split_top(inner, (",", ";")) if item]
            return Unordered(_expand(items), braces=True)
    opener, closer = text[:1], text[-1:]
    if opener in _CLOSERS and closer in (")", "]") and len(text) > 2 and _closes_at_end(text):
        items = split_top(text[1:-1], (",", ";"))
        if 2 <= len(items) <= MAX_ITEMS and all(items):
            rows = [read_brackets(item) for item in items]
            if opener == "[" and all(isinstance(row, Ordered) and row.opener == "[" for row in rows):
                matrix = _matrix_of([list(row.items) for row in rows if isinstance(row, Ordered)])
                if matrix is not None:
                    return matrix
            return Ordered(opener, tuple(items), closer)
    values = _expand([text])
    return Unordered(values) if len(values) > 1 else Expression(text)


def _closes_at_end(text: str) -> bool:
    depth = 0
    for at, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth <= 0:
            return at == len(text) - 1
    return False


def _expand(items: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    r"""Write each item with \pm as its two values; upper signs go together."""
    out: list[str] = []
    for item in items:
        sides = split_top(item, ("=",))
        # An equation between two expressions stays: only x = a \pm b names two values.
        if _PLUS_MINUS.search(item) is None or not (sides == [item] or (len(sides) == 2 and is_name(sides[0]))):
            out.append(item)
            continue
        out.append(_PLUS_MINUS.sub(lambda match: "+" if match.group(1) == "pm" else "-", item))
        out.append(_PLUS_MINUS.sub(lambda match: "-" if match.group(1) == "pm" else "+", item))
    return tuple(out)


def read_inequality(text: str) -> tuple[Ordered, str] | None:
    r"""Return (interval, x) of `a<x`, `x\leq b` or `a<x\leq b` with one symbol x; None where `text` is none of these."""
    relations = [match.group(0).strip() for match in _RELATION.finditer(text)]
    if not 1 <= len(relations) <= 2:
        return None
    sides = [side.strip() for side in _RELATION.split(text)]
    if not all(sides) or "=" in "".join(sides):
        return None
    upward = [relation in ("<", r"\leq", "<=") for relation in relations]
    closed = [relation not in ("<", ">") for relation in relations]
    if len(sides) == 3:
        low, symbol, high = sides if upward[0] else sides[::-1]
        if upward[0] != upward[1] or not _SYMBOL.fullmatch(symbol) or _SYMBOL.fullmatch(low):
            return None
        first, last = (closed[0], closed[1]) if upward[0] else (closed[1], closed[0])
        return Ordered("[" if first else "(", (low, high), "]" if last else ")"), symbol
    left, right = sides
    if _SYMBOL.fullmatch(left) and left not in (r"\pi", r"\infty"):
        symbol, bound, above = left, right, not upward[0]  # x > b lies above b
    elif _SYMBOL.fullmatch(right):
        symbol, bound, above = right, left, upward[0]
    else:
        return None
    if above:
        return Ordered("[" if closed[0] else "(", (bound, r"\infty"), ")"), symbol
    return Ordered("(", (r"-\infty", bound), "]" if closed[0] else ")"), symbol
