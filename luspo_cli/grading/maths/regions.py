r"""Sets of real numbers: intervals, inequalities, unions, differences and finite sets, compared as the sets they are.

Decided here: (0,36)\setminus\{9\} is (0,9)\cup(9,36), x \neq 2 is (-\infty,2)\cup(2,\infty), and (0,1]\cup(1,2) is
(0,2). Two sets are compared on the points where either changes and on the gaps between them, so nothing is simplified.
The ends must be numbers: a set with a letter in its ends is compared by its spelling elsewhere. An inequality in x is
none in y.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from luspo_cli.grading.maths.expression import parse_expression
from luspo_cli.grading.maths.identity import Undefined, real_value, same_number
from luspo_cli.grading.maths.spelling import OR
from luspo_cli.grading.maths.structures import MAX_ITEMS, Ordered, Unordered, read_brackets, read_inequality, split_top
from luspo_cli.grading.maths.tokens import NotUnderstood

_OPERATORS = (r"\cup", OR, r"\cap", r"\setminus")
_MARKS = re.compile(rf"\\(?:cup|cap|setminus|leq|geq|neq|infty|mathbb\{{R\}})(?![a-z])|[<>{OR}]|\}}-\\\{{")
_DIFFERENCE = re.compile(r"(\\mathbb\{R\}|[)\]}])-(?=\\\{)")
_MEMBER = re.compile(r"([A-Za-z])\\in ?(.+)", re.DOTALL)
_BUILDER = re.compile(r"\\\{ ?([A-Za-z])(?:\\in ?\\mathbb\{R\})?[|:](.+)\\\}", re.DOTALL)
_UNEQUAL = re.compile(r"([A-Za-z])\\neq ?(.+)", re.DOTALL)
_NAMED = re.compile(r"([A-Za-z])=(.+)", re.DOTALL)
_DEEPEST = 4

Test = Callable[[int], bool]
"""Whether a place of the line lies in the set: place 2n is the n-th end, 2n+1 the gap behind it, -1 all before."""


class _NotASet(Exception):
    """The text is no set of real numbers with ends that are numbers."""


@dataclass
class _Line:
    """The ends of two sets on the line of real numbers."""

    ends: list[Any] = field(default_factory=list)
    """As they were met."""
    rank: list[int] = field(default_factory=list)
    """Of each end its position in ascending order, once all are known."""

    def add(self, text: str) -> int:
        """Return the number of the end that `text` is."""
        try:
            value = real_value(parse_expression(text))
        except (NotUnderstood, Undefined):
            raise _NotASet from None
        known = next((at for at, end in enumerate(self.ends) if same_number(end, value)), None)
        if known is not None:
            return known
        if len(self.ends) >= MAX_ITEMS:
            raise _NotASet
        self.ends.append(value)
        return len(self.ends) - 1

    def places(self) -> list[int]:
        """Rank the ends and return all places of the line: the finite ends, and the gaps before, between and after."""
        order = sorted(range(len(self.ends)), key=self.ends.__getitem__)
        self.rank = [order.index(at) for at in range(len(order))]
        bounds = [-math.inf, *(self.ends[at] for at in order), math.inf]
        points = [2 * at for at, end in enumerate(bounds[1:-1]) if abs(end) != math.inf]
        return points + [2 * at - 1 for at in range(len(bounds) - 1) if bounds[at] < bounds[at + 1]]


def same_region(gold: str, answer: str) -> bool | None:
    """Return whether two normalised texts are one set of real numbers; None where either is no such set."""
    # Points and plain lists have a comparison of their own: one side at least must be written as a set of the line.
    if not (_MARKS.search(gold) or _MARKS.search(answer)):
        return None
    line = _Line()
    letters: list[set[str]] = [set(), set()]
    try:
        first, second = (_read(text, line, found, 0) for text, found in zip((gold, answer), letters, strict=True))
        same = all(first(place) == second(place) for place in line.places())
    except _NotASet:
        return None
    return same and len(letters[0] | letters[1]) <= max(map(len, letters)) <= 1


def _read(text: str, line: _Line, letters: set[str], depth: int) -> Test:
    if depth > _DEEPEST:
        raise _NotASet
    text = _DIFFERENCE.sub(r"\1\\setminus", text.strip())
    parts, operators = _split(text)
    tests = [_term(part, line, letters, depth) for part in parts]
    test = tests[0]
    for operator, other in zip(operators, tests[1:], strict=True):
        test = _joined(operator, test, other)
    return test


def _joined(operator: str, left: Test, right: Test) -> Test:
    if operator == r"\cap":
        return lambda place: left(place) and right(place)
    if operator == r"\setminus":
        return lambda place: left(place) and not right(place)
    return lambda place: left(place) or right(place)


def _split(text: str) -> tuple[list[str], list[str]]:
    parts = split_top(text, _OPERATORS)
    if len(parts) > MAX_ITEMS:
        raise _NotASet
    operators, at = [], 0
    for part in parts[:-1]:
        at = text.index(part, at) + len(part)
        at += len(text[at:]) - len(text[at:].lstrip())
        operators.append(next(operator for operator in _OPERATORS if text.startswith(operator, at)))
        at += len(operators[-1])
    return parts, operators


def _term(text: str, line: _Line, letters: set[str], depth: int) -> Test:
    if text == r"\mathbb{R}":
        return lambda place: True
    builder, member, unequal, named = (p.fullmatch(text) for p in (_BUILDER, _MEMBER, _UNEQUAL, _NAMED))
    if builder or member:
        match = builder or member
        assert match is not None
        inner: set[str] = set()
        test = _read(match[2], line, inner, depth + 1)
        if inner - {match[1]}:
            raise _NotASet
        if member:  # the letter of a set builder is bound: {y | y > 2} is {x | x > 2}
            letters.add(match[1])
        return test
    if unequal or named:
        match = unequal or named
        assert match is not None
        letters.add(match[1])
        point = _points(split_top(match[2], (",",)), line)
        return (lambda place: not point(place)) if unequal else point
    interval = read_inequality(text)
    if interval is not None:
        letters.add(interval[1])
        return _interval(interval[0], line)
    shape = read_brackets(text)
    if isinstance(shape, Ordered) and len(shape.items) == 2:
        return _interval(shape, line)
    if isinstance(shape, Unordered) and shape.braces:
        return _points(shape.items, line)
    if text.startswith("(") and text.endswith(")"):
        return _read(text[1:-1], line, letters, depth + 1)
    raise _NotASet


def _points(items: Sequence[str], line: _Line) -> Test:
    ends = {line.add(item) for item in items}
    return lambda place: any(place == 2 * line.rank[end] for end in ends)


def _interval(shape: Ordered, line: _Line) -> Test:
    low, high = (line.add(item) for item in shape.items)
    left, right = shape.opener == "[", shape.closer == "]"
    if line.ends[low] > line.ends[high] or (low == high and not (left and right)):
        raise _NotASet
    if any(closed and abs(line.ends[end]) == math.inf for closed, end in ((left, low), (right, high))):
        raise _NotASet  # infinity is no real number

    def test(place: int) -> bool:
        first, last = 2 * line.rank[low], 2 * line.rank[high]
        return first < place < last or (left and place == first) or (right and place == last)

    return test
