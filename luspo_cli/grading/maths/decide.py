"""Equal, different, or not understood: spelling, then numbers, sets of the line, shape by shape, then algebra.

The order is the same for every text answer, in training as in evaluation. Every step is bounded in time and memory, so
`decide` needs no worker process. What holds a sum, an integral, a limit or another command that our grammar lacks, and
is not equal by its spelling, is not understood: None, never "different". The gold answer comes first and may be the
more explicit side: 52 answers 52_8, and 5 answers x=5.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from luspo_cli.grading.maths.expression import MAX_DEPTH, add, negative, parse_expression
from luspo_cli.grading.maths.identity import proportional, same_function, same_ratio
from luspo_cli.grading.maths.normalise import (
    MAX_ANSWER_CHARACTERS,
    Normalised,
    is_words,
    joined_thousands,
    normalise,
    normalised_pair,
)
from luspo_cli.grading.maths.numbers import number_key, parse_number
from luspo_cli.grading.maths.regions import same_region
from luspo_cli.grading.maths.structures import (
    Equation,
    Expression,
    InBase,
    Matrix,
    Ordered,
    Ratio,
    Shape,
    Unordered,
    is_as_written,
    is_label,
    is_name,
    read_base,
    read_shape,
    split_top,
)
from luspo_cli.grading.maths.tokens import DERIVATIVE, NotUnderstood
from luspo_cli.grading.maths.units import clash, conversion
from luspo_cli.grading.verdict import Reason

_UNKNOWN_COMMAND = re.compile(
    r"\\(?:sum|prod|i{0,3}int|oint|lim|limsup|liminf|det|bmod|pmod|mod|setminus|cap|partial|nabla|infty_)(?![A-Za-z])"
)
"""What math-verify reads and our grammar does not."""
_LONG_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")
_DIFFERENTIAL = re.compile(r"d[a-z](?![A-Za-z])|\\(?:begin|end)\{[a-z]+\}")
_ROMAN_OR_WORD = re.compile(
    r"[IVXLCDM]{2}|[A-Z][a-z]|an|as|at|do|go|he|hi|if|in|is|it|no|of|oh|ok|on|or|so|to|up|us|we"
)
_SPELT = re.compile(r"[A-Za-z0-9 ,.'\"-]*(?<![A-Za-z])[A-Za-z]{3,}[A-Za-z0-9 ,.'\"-]*")
_CHOICE_LETTER = re.compile(r"[A-Z]")
_MAX_COMPARISONS = 1_000
"""Pairs of elements that one decision compares: lists of 40 elements in any order; each pair costs a millisecond or two."""
_SUM_OF_NAMES = re.compile(r"[a-z](?:\+[a-z]){1,5}")
"""`m+n = 25` names what is asked for; `x+y = 0` is an equation."""
_MAX_NESTING = 8


def decide_quickly(gold: str, answer: str) -> Reason | None:
    """Return the verdict's reason where spelling and single numbers settle it, else None. Linear time."""
    left, right = normalised_pair(gold, answer)
    for one, other in ((left, right), (right, left)):
        if one.choice is not None and _CHOICE_LETTER.fullmatch(other.text):
            return Reason.EXACT if one.choice == other.text else Reason.DIFFERENT
    if left.choice is not None and right.choice is not None and left.choice != right.choice:
        return Reason.DIFFERENT
    if clash(left.unit, right.unit):
        return _compare_converted(left, right)
    if not left.text or not right.text:
        return Reason.DIFFERENT
    if left.text == right.text:
        return Reason.EXACT
    if is_as_written(left.text, gold) or is_as_written(right.text, answer):
        return Reason.DIFFERENT
    if left.is_text or right.is_text:
        # Words are equal whatever their case; an equation may still name its value in words.
        if left.text.casefold() == right.text.casefold():
            return Reason.EXACT
        return Reason.DIFFERENT if "=" not in left.text + right.text else None
    if _is_no_short_answer(left.text) or _is_no_short_answer(right.text):
        return Reason.DIFFERENT
    if _SPELT.fullmatch(left.text) and left.text.casefold() == right.text.casefold():
        return Reason.EXACT
    texts = (left.text, right.text)
    # A product of two letters has no order; "no" and "IV" are words, and "on" and "VI" other ones.
    if all(len(text) == 2 and text.isalpha() for text in texts) and any(map(_ROMAN_OR_WORD.fullmatch, texts)):
        return Reason.EXACT if left.text.lower() == right.text.lower() else Reason.DIFFERENT
    return _compare_numbers(left, right)


def decide(gold: str, answer: str) -> Reason | None:
    """Return the verdict's reason (exact, numeric, structural, symbolic, different), None for what is not understood."""
    reason = decide_quickly(gold, answer)
    left, right = normalised_pair(gold, answer)
    if reason is Reason.DIFFERENT or (reason is None and clash(left.unit, right.unit)):
        return Reason.SYMBOLIC if _equal_in_pure_numbers(left, right) else Reason.DIFFERENT
    if reason is not None:
        return reason
    region = same_region(left.text, right.text)
    if region is not None:
        return Reason.STRUCTURAL if region else Reason.DIFFERENT
    reason = _Comparison().texts(left.text, right.text, 0)
    if reason is None and _equal_in_pure_numbers(left, right):
        return Reason.SYMBOLIC
    if reason is None and _beyond_our_grammar(left.text, right.text):
        return None
    return reason or Reason.DIFFERENT


def _is_no_short_answer(text: str) -> bool:
    """Whether `text` is beyond what is parsed: too long, or brackets too deep inside of one another."""
    depth = deepest = 0
    for character in text[:MAX_ANSWER_CHARACTERS]:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return len(text) > MAX_ANSWER_CHARACTERS or deepest > MAX_DEPTH or text.count(r"\in") > MAX_DEPTH


def _compare_converted(left: Normalised, right: Normalised) -> Reason | None:
    """Compare two numbers in units that differ; None where one is no plain number or is an angle."""
    assert left.unit is not None
    assert right.unit is not None
    if {left.unit, right.unit} == {"degree", "radian"}:
        return None
    factor = conversion(left.unit, right.unit)
    first, second = parse_number(joined_thousands(left)), parse_number(joined_thousands(right))
    if factor is None or first is None or second is None:
        return Reason.DIFFERENT
    return Reason.NUMERIC if first * factor == second else Reason.DIFFERENT


def _equal_in_pure_numbers(left: Normalised, right: Normalised) -> bool:
    r"""Whether they are equal once a percentage is read as hundredths, or degrees as radians beside a value with \pi."""
    for one, other in ((left, right), (right, left)):
        if one.unit == "percent" and other.unit is None:
            pure = f"({one.text})/100"
        elif one.unit == "degree" and other.unit in (None, "radian") and r"\pi" in other.text:
            pure = rf"({one.text})*\pi/180"
        else:
            continue
        return same_expression(pure, other.text) is not None
    return False


def _beyond_our_grammar(gold: str, answer: str) -> bool:
    """Whether another reader may know more; never for words, which it would read as products of letters."""
    if any(_LONG_WORD.search(_DIFFERENTIAL.sub("", text)) for text in (gold, answer)):
        return False
    return any(one.search(text) for text in (gold, answer) for one in (_UNKNOWN_COMMAND, DERIVATIVE))


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
        if isinstance(gold, Ratio) or isinstance(answer, Ratio):
            return self.ratios(gold, answer)
        if _by_name(gold) or _by_name(answer):
            return self.assignments(gold, answer, nesting)
        column = [shape for shape in (gold, answer) if isinstance(shape, Matrix) and len(shape.rows[0]) == 1]
        if len(column) == 1 and any(isinstance(shape, Ordered) and shape.opener == "(" for shape in (gold, answer)):
            # A vector may be written as a column or between round brackets.
            return self.in_order(_entries(gold), _entries(answer), nesting)
        if isinstance(gold, Matrix) and isinstance(answer, Matrix):
            same = len(gold.rows) == len(answer.rows)
            return self.in_order(_entries(gold), _entries(answer), nesting) if same else None
        if isinstance(gold, Unordered) and isinstance(answer, Unordered) and gold.union == answer.union:
            if gold.braces and answer.braces:
                return self.as_sets(gold.items, answer.items, nesting)
            return self.in_any_order(gold.items, answer.items, nesting)
        if nesting > 1:
            return None
        for one, other in ((gold, answer), (answer, gold)):
            # {5} and 5 are the same answer where one value is asked for.
            if isinstance(one, Unordered) and len(one.items) == 1 and not isinstance(other, Unordered):
                item = read_shape(one.items[0])
                if isinstance(item, Unordered):  # {{1}} and {1} are two sets
                    return None
                pair: tuple[Shape, Shape] = (item, other) if one is gold else (other, item)
                return Reason.STRUCTURAL if _same_spelling(*pair) else self.shapes(*pair, nesting + 1)
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

    def as_sets(self, gold: Sequence[str], answer: Sequence[str], nesting: int) -> Reason | None:
        """Compare as sets: each element of one is one of the other, and how often it is written does not count."""
        for items, others in ((gold, answer), (answer, gold)):
            for item in items:
                pairs = ((item, other) if items is gold else (other, item) for other in others)
                if not any(self.texts(first, second, nesting) is not None for first, second in pairs):
                    return None
        return Reason.STRUCTURAL

    def ratios(self, gold: Shape, answer: Shape) -> Reason | None:
        """Compare ratios as fractions are: 4:6 is 2:3, and 2:3 is 2/3; two times of day must be the same one."""
        terms = [
            shape.terms if isinstance(shape, Ratio) else (shape.text, "1") if isinstance(shape, Expression) else ()
            for shape in (gold, answer)
        ]
        clocks = [isinstance(shape, Ratio) and shape.clock for shape in (gold, answer)]
        if len(terms[0]) != len(terms[1]) or not terms[0] or all(clocks):
            return None
        if any(clocks) and not (isinstance(gold, Ratio) and isinstance(answer, Ratio)):
            return None
        try:
            first, second = ([parse_expression(term) for term in side] for side in terms)
        except NotUnderstood:
            return None
        return Reason.SYMBOLIC if same_ratio(first, second) else None

    def assignments(self, gold: Shape, answer: Shape, nesting: int) -> Reason | None:
        """Compare x = 1, y = 2 with its like, or with (1,2) in the alphabetical order of the names."""
        first, second = _by_name(gold), _by_name(answer)
        if first and second and first.keys() != second.keys():
            return None
        if not all(isinstance(shape, Ordered | Unordered) for shape in (gold, answer)):
            return None
        values = [
            [named[name] for name in sorted(named)] if named else _entries(shape)
            for shape, named in ((gold, first), (answer, second))
        ]
        return self.in_order(values[0], values[1], nesting)

    def equations(self, gold: Shape, answer: Shape, nesting: int) -> Reason | None:
        if isinstance(gold, Equation) and isinstance(answer, Equation):
            if len(gold.sides) != 2 or len(answer.sides) < 2:
                return Reason.STRUCTURAL if gold == answer else None
            labels = [is_label(shape.sides[0]) for shape in (gold, answer)]
            if gold.sides[0] == answer.sides[0] and (labels[0] or is_name(gold.sides[0])):
                values = [self.texts(gold.sides[1], side, nesting) for side in answer.sides[1:]]
                return Reason.STRUCTURAL if None not in values else None
            if any(labels):  # f(3) = 9 and f(1) = 3 are no products with f
                return None
            return same_equation(gold.sides, answer.sides) if len(answer.sides) == 2 else None
        equation, other = (gold, answer) if isinstance(gold, Equation) else (answer, gold)
        assert isinstance(equation, Equation)
        sides = equation.sides
        sum_of_names = _SUM_OF_NAMES.fullmatch(sides[0]) and other != Expression("0")
        if is_name(sides[0]) or is_words(sides[0]) or is_label(sides[0]) or sum_of_names:
            sides = sides[1:]
        elif len(sides) == 2 and is_name(sides[1]):
            sides = sides[:1]
        elif equation is gold:
            return None
        # 5 = x, x = 1/2 = 0.5, 2 + 3 = 5: every side must be the value.
        for side in sides:
            shape = read_shape(side)
            pair = (shape, other) if equation is gold else (other, shape)
            if not _same_spelling(*pair) and self.shapes(*pair, nesting) is None:
                return None
        return Reason.STRUCTURAL


def _same_spelling(first: Shape, second: Shape) -> bool:
    if first == second:
        return True
    if isinstance(first, Expression) and isinstance(second, Expression):
        values = parse_number(first.text), parse_number(second.text)
        return values[0] is not None and values[0] == values[1]
    return False


def _entries(shape: Shape) -> Sequence[str]:
    if isinstance(shape, Matrix):
        return [entry for row in shape.rows for entry in row]
    return shape.items if isinstance(shape, Ordered | Unordered) else ()


def _by_name(shape: Shape) -> dict[str, str] | None:
    """Return the values by name of x = 1, y = 2 (in brackets or not): two equations or more, each for another name."""
    if not isinstance(shape, Ordered | Unordered) or len(shape.items) < 2:
        return None
    sides = [split_top(item, ("=",)) for item in shape.items]
    if not all(len(pair) == 2 and is_name(pair[0]) for pair in sides):
        return None
    values = {pair[0].lstrip("\\"): pair[1] for pair in sides}
    return values if len(values) == len(sides) else None


def same_expression(gold: str, answer: str) -> Reason | None:
    """Compare two expressions by algebra; None where they are not shown equal."""
    if is_words(gold) or is_words(answer):
        return Reason.EXACT if gold.casefold() == answer.casefold() else None
    try:
        first, second = parse_expression(gold), parse_expression(answer)
    except (NotUnderstood, RecursionError):  # a thousand nested sines are beyond the parser and nobody's answer
        return None
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
