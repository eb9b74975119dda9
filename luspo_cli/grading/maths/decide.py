"""Equal or not: spelling, then numbers, then shape element by element, then algebra; what none accepts is wrong.

The order is MATH500's, and every text benchmark with free-form answers uses it. `decide_quickly` settles what needs no
algebra, in the calling process; `decide` does everything and belongs in a worker that can be killed. The gold answer
comes first and may be the more explicit side: 52 answers 52_8, and 5 answers x=5.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from luspo_cli.grading.maths.expression import parse_expression
from luspo_cli.grading.maths.identity import proportional, same_function
from luspo_cli.grading.maths.normalise import (
    MAX_ANSWER_CHARACTERS,
    Normalised,
    is_words,
    joined_thousands,
    normalise,
)
from luspo_cli.grading.maths.numbers import number_key, parse_number
from luspo_cli.grading.maths.structures import (
    Equation,
    Expression,
    InBase,
    Matrix,
    Ordered,
    Shape,
    Unordered,
    is_name,
    read_base,
    read_shape,
)
from luspo_cli.grading.maths.tokens import NotUnderstood
from luspo_cli.grading.maths.trees import add, negative
from luspo_cli.grading.verdict import Reason

_CHOICE_LETTER = re.compile(r"[A-Z]")
_MAX_COMPARISONS = 2_000
_MAX_NESTING = 8


def decide_quickly(gold: str, answer: str) -> Reason | None:
    """Return the verdict's reason where spelling and single numbers settle it, else None. Linear time."""
    left, right = normalise(gold), normalise(answer)
    if right.choice is not None and _CHOICE_LETTER.fullmatch(left.text):
        return Reason.EXACT if right.choice == left.text else Reason.DIFFERENT
    if left.unit is not None and right.unit is not None and left.unit != right.unit:
        return Reason.DIFFERENT
    if not left.text or not right.text:
        return Reason.DIFFERENT
    if left.text == right.text:
        return Reason.EXACT
    if left.is_text or right.is_text:
        # Words are equal whatever their case; an equation may still name its value in words.
        if left.text.casefold() == right.text.casefold():
            return Reason.EXACT
        return Reason.DIFFERENT if "=" not in left.text + right.text else None
    if max(len(left.text), len(right.text)) > MAX_ANSWER_CHARACTERS:
        return Reason.DIFFERENT
    return _compare_numbers(left, right)


def decide(gold: str, answer: str) -> Reason:
    """Return the verdict's reason: one of exact, numeric, structural, symbolic, different. Bounded, but not short."""
    quick = decide_quickly(gold, answer)
    if quick is not None:
        return quick
    left, right = normalise(gold), normalise(answer)
    return _Comparison().texts(left.text, right.text, 0) or Reason.DIFFERENT


def answer_key(answer: str) -> str:
    """Return a key that equal numbers and equal spellings share; it makes the clusters of a majority vote."""
    normal = normalise(answer)
    value = _number(normal)
    if value is not None:
        return value
    return normal.text.casefold() if normal.is_text else normal.text


def _number(normal: Normalised) -> str | None:
    value = parse_number(joined_thousands(normal))
    return None if value is None else number_key(value)


def _compare_numbers(left: Normalised, right: Normalised) -> Reason | None:
    first, second = _number(left), _number(right)
    if first is not None and second is not None:
        if first == second:
            return Reason.NUMERIC
        # "100, 200, 300" may still be a list on both sides.
        return None if left.spaced_list or right.spaced_list else Reason.DIFFERENT
    based, other = read_base(left.text), read_base(right.text)
    if based is not None:
        if other is not None:
            return Reason.EXACT if based == other else Reason.DIFFERENT
        if second is not None:
            # A question that asks for base 8 has 52 as its answer as much as 52_8.
            return Reason.STRUCTURAL if right.text.lstrip("0") == based.digits else Reason.DIFFERENT
    if other is not None and first is not None:
        return Reason.NUMERIC if other.base == 10 and other.digits == first else Reason.DIFFERENT
    return None


class _Comparison:
    """One comparison with its budget of element pairs."""

    def __init__(self) -> None:
        self.left = _MAX_COMPARISONS

    def texts(self, gold: str, answer: str, nesting: int) -> Reason | None:
        """Compare two normalised texts; None where they are not shown equal."""
        self.left -= 1
        if self.left < 0 or nesting > _MAX_NESTING:
            return None
        if gold == answer:
            return Reason.EXACT
        first, second = parse_number(gold), parse_number(answer)
        if first is not None and second is not None:
            return Reason.NUMERIC if first == second else None
        return self.shapes(read_shape(gold), read_shape(answer), nesting + 1)

    def shapes(self, gold: Shape, answer: Shape, nesting: int) -> Reason | None:
        """Compare two shapes; None where they are not shown equal."""
        if nesting > _MAX_NESTING:
            return None
        if isinstance(gold, Equation) or isinstance(answer, Equation):
            return self.equations(gold, answer, nesting)
        if isinstance(gold, Expression) and isinstance(answer, Expression):
            return same_expression(gold.text, answer.text)
        if isinstance(gold, InBase) or isinstance(answer, InBase):
            return Reason.EXACT if gold == answer else None
        if isinstance(gold, Ordered) and isinstance(answer, Ordered):
            # With three items or more no bracket can mean an interval.
            if len(gold.items) == 2 and (gold.opener, gold.closer) != (answer.opener, answer.closer):
                return None
            return self.in_order(gold.items, answer.items, nesting)
        if isinstance(gold, Matrix) and isinstance(answer, Matrix):
            if len(gold.rows) != len(answer.rows):
                return None
            first, second = ([entry for row in matrix.rows for entry in row] for matrix in (gold, answer))
            return self.in_order(first, second, nesting)
        if isinstance(gold, Unordered) and isinstance(answer, Unordered) and gold.union == answer.union:
            return self.in_any_order(gold.items, answer.items, nesting)
        for one, other in ((gold, answer), (answer, gold)):
            # {5} and 5 are the same answer where one value is asked for.
            if isinstance(one, Unordered) and len(one.items) == 1 and not isinstance(other, Unordered):
                item = read_shape(one.items[0])
                pair: tuple[Shape, Shape] = (item, other) if one is gold else (other, item)
                return Reason.STRUCTURAL if _same_spelling(*pair) else self.shapes(pair[0], pair[1], nesting + 1)
        return None

    def in_order(self, gold: Sequence[str], answer: Sequence[str], nesting: int) -> Reason | None:
        if len(gold) != len(answer):
            return None
        same = all(self.texts(first, second, nesting) is not None for first, second in zip(gold, answer, strict=True))
        return Reason.STRUCTURAL if same else None

    def in_any_order(self, gold: Sequence[str], answer: Sequence[str], nesting: int) -> Reason | None:
        if len(gold) != len(answer):
            return None
        unused = list(answer)
        for item in gold:
            found = next((other for other in unused if self.texts(item, other, nesting) is not None), None)
            if found is None:
                return None
            unused.remove(found)
        return Reason.STRUCTURAL

    def equations(self, gold: Shape, answer: Shape, nesting: int) -> Reason | None:
        if isinstance(gold, Equation) and isinstance(answer, Equation):
            if len(gold.sides) != 2 or len(answer.sides) < 2:
                return Reason.STRUCTURAL if gold == answer else None
            if gold.sides[0] == answer.sides[0] and is_name(gold.sides[0]):
                values = [self.texts(gold.sides[1], side, nesting) for side in answer.sides[1:]]
                return Reason.STRUCTURAL if None not in values else None
            return same_equation(gold.sides, answer.sides) if len(answer.sides) == 2 else None
        equation, other = (gold, answer) if isinstance(gold, Equation) else (answer, gold)
        assert isinstance(equation, Equation)
        sides = equation.sides
        if is_name(sides[0]) or _is_label(sides[0]):
            sides = sides[1:]
        elif len(sides) == 2 and is_name(sides[1]):
            sides = sides[:1]
        elif equation is gold:
            return None
        # 5 = x, x = 1/2 = 0.5, 2 + 3 = 5: every side must be the value.
        for side in sides:
            shape = read_shape(side)
            pair = (shape, other) if equation is gold else (other, shape)
            if not _same_spelling(*pair) and self.shapes(*pair, nesting + 1) is None:
                return None
        return Reason.STRUCTURAL


def _same_spelling(first: Shape, second: Shape) -> bool:
    if first == second:
        return True
    if isinstance(first, Expression) and isinstance(second, Expression):
        values = parse_number(first.text), parse_number(second.text)
        return values[0] is not None and values[0] == values[1]
    return False


def _is_label(text: str) -> bool:
    """Whether `text` names what is asked for: `Area of the circle`, or a tuple of names such as (x,y)."""
    shape = read_shape(text)
    return is_words(text) or (isinstance(shape, Ordered) and all(is_name(item) for item in shape.items))


def same_expression(gold: str, answer: str) -> Reason | None:
    """Compare two expressions by algebra; None where they are not shown equal."""
    if is_words(gold) or is_words(answer):
        return Reason.EXACT if gold.casefold() == answer.casefold() else None
    try:
        first, second = parse_expression(gold), parse_expression(answer)
    except NotUnderstood:
        from luspo_cli.grading.maths.symbolic import same_by_sympy

        return Reason.SYMBOLIC if same_by_sympy(gold, answer) else None
    return Reason.SYMBOLIC if same_function(first, second) else None


def same_equation(gold: Sequence[str], answer: Sequence[str]) -> Reason | None:
    """Compare l1 = r1 and l2 = r2 as sets of solutions: equal if l1 - r1 = k (l2 - r2) for a constant k."""
    try:
        first, second = (
            add(parse_expression(sides[0]), negative(parse_expression(sides[1]))) for sides in (gold, answer)
        )
    except NotUnderstood:
        return None
    return Reason.SYMBOLIC if proportional(first, second) else None
