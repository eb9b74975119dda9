"""Whether two expression trees are one function: exact fractions where they suffice, else 120 digits, at many points.

Decided here: no simplifier. Rational operations are computed exactly. Other closed forms are equal if they agree to 90 of
120 digits, or if their difference shrinks from 60 to 120 digits as rounding does; ones that differ are not, however close
(1.4142 is not sqrt(2)). Free symbols take positive values first, where the two sides must agree, then values of both signs,
where they must agree wherever both are real (sqrt(x^2) is not x, yet ln(ab) and ln(a)+ln(b) stay equal); `points` has them.
Every operation is bounded in size, so a tower of powers is refused and never computed.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from luspo_cli.grading.maths.expression import Tree, mul, names, negative, number
from luspo_cli.grading.maths.points import POSITIVE, Point, further_points, points

_DIGITS = (60, 120)
_ROUGH_DIGITS = 20
_MAX_POWER_DIGITS = 3_000
_MAX_EXACT_BITS = 60_000
_MAX_EXACT_BITS_AT_A_POINT = 4_000
_MAX_FACTORIAL = 3_000
_MAX_EXPONENTIAL = 10_000


class Undefined(Exception):
    """The expression has no value here: a division by zero, an infinity, a number beyond every bound, or a letter without one."""


def same_function(first: Tree, second: Tree) -> bool:
    """Return whether the two trees are equal everywhere; False where neither can be evaluated."""
    if first == second:
        return True
    try:
        return exact_value(first) == exact_value(second)
    except Undefined:
        return False
    except TypeError:  # not of rational operations alone
        return _agree(first, second)


def real_value(tree: Tree) -> Any:
    """Return the value of a tree at 120 digits, or an infinity; raises Undefined where it is not real or holds a symbol."""
    infinity = ("const", "inf")
    evaluator = _evaluator(_DIGITS[1])
    if tree in (infinity, negative(infinity)):
        return evaluator.context.inf if tree == infinity else -evaluator.context.inf
    value = evaluator.value(tree, {})
    if not evaluator.is_real(value):
        raise Undefined
    return evaluator.context.re(value)


def same_number(first: Any, second: Any) -> bool:
    """Return whether two values of `real_value` agree but for rounding in the last digits."""
    scale = abs(first) + abs(second)
    return bool(first == second or (scale != math.inf and abs(first - second) <= scale * type(first)("1e-90")))


def proportional(first: Tree, second: Tree) -> bool:
    """Return whether first = k * second for one constant k other than 0, as two equations f = 0 of one solution set."""
    free = sorted(names(first, "sym") | names(second, "sym"))
    if not free:
        return False
    anchor, *places = points(free)
    for digits in _DIGITS:
        evaluator = _evaluator(digits)
        try:
            a0, b0 = _values(evaluator, first, second, anchor)
            if _negligible(evaluator, a0) or _negligible(evaluator, b0):
                return False
            if not all(_in_ratio(evaluator, _values(evaluator, first, second, at), (a0, b0)) for at in places):
                return False
        except Undefined:
            return False
    for point in further_points((first, second), free, _rough_value):
        try:
            values = _values(evaluator, first, second, point)
            if all(map(evaluator.is_real, values)) and not _in_ratio(evaluator, values, (a0, b0)):
                return False
        except Undefined:
            continue
    return True


def _values(evaluator: _Evaluator, first: Tree, second: Tree, point: Point) -> tuple[Any, Any]:
    return evaluator.value(first, point), evaluator.value(second, point)


def _in_ratio(evaluator: _Evaluator, values: tuple[Any, Any], ratio: tuple[Any, Any]) -> bool:
    left, right = values[0] * ratio[1], values[1] * ratio[0]
    return bool(
        abs(left - right) <= (abs(left) + abs(right)) * evaluator.context.mpf(10) ** (20 - evaluator.context.dps)
    )


def same_ratio(first: Sequence[Tree], second: Sequence[Tree]) -> bool:
    """Return whether two lists of terms stand in one ratio, no term being 0."""
    zero = number(0)
    if any(same_function(term, zero) for term in (*first, *second)):
        return False
    return all(same_function(mul(first[0], b), mul(second[0], a)) for a, b in zip(first[1:], second[1:], strict=True))


def exact_value(tree: Tree, point: Point | None = None) -> Fraction:
    """Return the value of a tree of rational operations; TypeError where it has others, Undefined beyond bounds.

    `point`: the values of its letters, where it has any.
    """
    kind = tree[0]
    most_bits = _MAX_EXACT_BITS_AT_A_POINT if point else _MAX_EXACT_BITS
    if kind == "num":
        return tree[1]
    if kind == "sym" and point is not None:
        return point[tree[1]]
    if kind == "add":
        return _bounded(sum((exact_value(term, point) for term in tree[1]), Fraction(0)), most_bits)
    if kind == "mul":
        product = Fraction(1)
        for factor in tree[1]:
            product = _bounded(product * exact_value(factor, point), most_bits)
        return product
    if kind == "inv":
        value = exact_value(tree[1], point)
        if value == 0:
            raise Undefined
        return 1 / value
    if kind == "pow":
        base, exponent = exact_value(tree[1], point), exact_value(tree[2], point)
        if exponent.denominator != 1:
            raise TypeError
        bits = max(abs(base.numerator), base.denominator).bit_length()
        if (base == 0 and exponent <= 0) or (bits > 1 and abs(exponent) * bits > most_bits):
            raise Undefined
        return base ** (int(exponent) if bits > 1 else int(exponent) % 2 + 2 * (base == 0))
    if kind == "call" and tree[1] in _EXACT:
        return _exact_call(tree[1], [exact_value(argument, point) for argument in tree[2]])
    raise TypeError(kind)


_EXACT = frozenset(("factorial", "gcd", "lcm", "min", "max", "abs", "floor", "ceil"))


def _exact_call(name: str, values: list[Fraction]) -> Fraction:
    if name in ("abs", "floor", "ceil"):
        return abs(values[0]) if name == "abs" else Fraction((math.floor if name == "floor" else math.ceil)(values[0]))
    if name in ("min", "max"):
        return (min if name == "min" else max)(values)
    if name == "factorial":
        if values[0].denominator != 1 or not 0 <= values[0] <= _MAX_FACTORIAL:
            raise Undefined
        return Fraction(math.factorial(int(values[0])))
    if any(value.denominator != 1 for value in values):
        raise Undefined
    whole = [int(value) for value in values]
    return Fraction(math.gcd(*whole) if name == "gcd" else math.lcm(*whole))


def _bounded(value: Fraction, bits: int) -> Fraction:
    if value.numerator.bit_length() > bits or value.denominator.bit_length() > bits:
        raise Undefined
    return value


def _agree(first: Tree, second: Tree) -> bool:
    free = sorted(names(first, "sym") | names(second, "sym"))
    imaginary = "i" in names(first, "const") | names(second, "const")
    compared = 0
    for place, point in enumerate(points(free) if free else [{}]):
        same = _agree_at(first, second, point, complex_too=imaginary or place < POSITIVE)
        if same is False or (same is None and not free):
            return False
        compared += same is True
    for point in further_points((first, second), free, _rough_value):
        same = _agree_at(first, second, point, complex_too=imaginary)
        if same is False:
            return False
        compared += same is True
    return compared >= (4 if free else 1)


def _agree_at(first: Tree, second: Tree, point: Point, *, complex_too: bool) -> bool | None:
    """Whether both have the same value at a point; None where one has none, or none that is real."""
    if point:
        try:
            return exact_value(first, point) == exact_value(second, point)
        except (Undefined, TypeError):
            pass
    low, high = map(_evaluator, _DIGITS)
    try:
        fine = high.value(first, point), high.value(second, point)
        if not complex_too and not all(map(high.is_real, fine)):
            return None
        if high.differ_in_last_digits(*fine):
            return True
        # What is left may be rounding: then it shrinks with the precision.
        coarse = low.value(first, point), low.value(second, point)
    except Undefined:
        return None
    return bool(abs(fine[0] - fine[1]) <= abs(coarse[0] - coarse[1]) * high.context.mpf(10) ** -30)


def _rough_value(tree: Tree, point: Point) -> float | None:
    evaluator = _evaluator(_ROUGH_DIGITS)
    try:
        value = evaluator.value(tree, point)
        return float(evaluator.context.re(value)) if evaluator.is_real(value) else None
    except (Undefined, OverflowError):
        return None


def _negligible(evaluator: _Evaluator, value: Any) -> bool:
    return bool(abs(value) < evaluator.context.mpf(10) ** -40)


@lru_cache(maxsize=len(_DIGITS) + 1)
def _evaluator(digits: int) -> _Evaluator:
    """One for each precision: making a context takes longer than most comparisons."""
    return _Evaluator(digits)


class _Evaluator:
    """Values of trees at `digits` digits, in an mpmath context of its own."""

    def __init__(self, digits: int) -> None:
        from mpmath.ctx_mp import MPContext

        self.context: Any = MPContext()
        self.context.dps = digits

    def is_real(self, value: Any) -> bool:
        """Whether the imaginary part is rounding alone."""
        if isinstance(value, self.context.mpf):
            return True
        return bool(abs(self.context.im(value)) <= abs(value) * self.context.mpf(10) ** -min(40, self.context.dps // 2))

    def differ_in_last_digits(self, first: Any, second: Any) -> bool:
        """Whether two values differ by less than the last quarter of their digits, or not at all."""
        bound = (abs(first) + abs(second)) * self.context.mpf(10) ** -(self.context.dps * 3 // 4)
        return bool(abs(first - second) <= bound)

    def value(self, tree: Tree, point: Mapping[str, Fraction]) -> Any:
        """Return the value of `tree` at `point`; raises Undefined where there is none."""
        try:
            result = self._value(tree, point)
        except (ZeroDivisionError, ValueError, OverflowError, TypeError, KeyError) as error:
            raise Undefined from error
        if not self.context.isfinite(result):
            raise Undefined
        return result

    def _value(self, tree: Tree, point: Mapping[str, Fraction]) -> Any:
        kind, mp = tree[0], self.context
        if kind in ("num", "sym"):
            value = tree[1] if kind == "num" else point[tree[1]]
            return mp.mpf(value.numerator) / value.denominator
        if kind == "const":
            return {"pi": +mp.pi, "e": +mp.e, "i": mp.j, "inf": mp.inf}[tree[1]]
        if kind == "add":
            return mp.fsum(self._value(term, point) for term in tree[1])
        if kind == "mul":
            return mp.fprod(self._value(factor, point) for factor in tree[1])
        if kind == "inv":
            return 1 / self._value(tree[1], point)
        if kind == "pow":
            return self._power(self._value(tree[1], point), self._value(tree[2], point))
        if kind == "apply":
            return self._unknown(tree[1], [self._value(argument, point) for argument in tree[2]])
        return self._call(tree[1], [self._value(argument, point) for argument in tree[2]])

    def _unknown(self, name: str, arguments: list[Any]) -> Any:
        """A function that nothing is known of: one without symmetries for each name, so that only equal arguments agree."""
        mp = self.context
        slope = 1 + mp.mpf(zlib.crc32(name.encode()) % 997) / 1000
        value = slope
        for argument in arguments:
            if abs(argument) > _MAX_EXPONENTIAL:
                raise Undefined
            value = mp.cos(slope * argument + value) + value * argument / 7
        return value

    def _power(self, base: Any, exponent: Any) -> Any:
        mp = self.context
        if base == 0:
            if mp.re(exponent) > 0:
                return mp.zero
            raise Undefined
        if abs(exponent) * (abs(mp.mag(base)) * math.log10(2) + 1) > _MAX_POWER_DIGITS:
            raise Undefined
        return mp.sqrt(base) if exponent == 0.5 else mp.power(base, exponent)

    def _call(self, name: str, arguments: list[Any]) -> Any:
        mp = self.context
        x = arguments[0]
        if mp.isfinite(x) and abs(x) > mp.mpf(10) ** _MAX_POWER_DIGITS:
            raise Undefined
        if name == "root":
            # An odd root of a negative real number is real, as school has it.
            index = arguments[1]
            if self.is_real(x) and mp.re(x) < 0 and index == int(mp.re(index)) and int(mp.re(index)) % 2 == 1:
                return -self._power(-mp.re(x), 1 / index)
            return self._power(x, 1 / index) if x != 0 else mp.zero
        if name in ("exp", "sinh", "cosh", "tanh") and abs(x) > _MAX_EXPONENTIAL:
            raise Undefined
        if name == "factorial":
            if abs(x) > _MAX_FACTORIAL:
                raise Undefined
            return mp.gamma(x + 1)
        if name == "binom":
            if max(abs(x), abs(arguments[1])) > _MAX_FACTORIAL:
                raise Undefined
            return mp.binomial(x, arguments[1])
        if name in ("floor", "ceil", "min", "max") and not all(self.is_real(value) for value in arguments):
            raise Undefined
        if name in ("min", "max"):
            return (min if name == "min" else max)(mp.re(value) for value in arguments)
        if name in ("floor", "ceil"):
            whole = mp.nint(mp.re(x))
            # Rounding in the last digits must not fall over the edge: \floor of 3 * (1/3) is 1.
            if abs(mp.re(x) - whole) <= (1 + abs(whole)) * mp.mpf(10) ** (10 - mp.dps):
                return whole
        if name == "abs":
            return abs(x)
        # `log` without a base is the natural one here; a verdict that hangs on its base is left to exact spelling.
        function = getattr(mp, _FUNCTIONS.get(name, name), None)
        if function is None:
            raise Undefined
        return function(x)


_FUNCTIONS = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}
