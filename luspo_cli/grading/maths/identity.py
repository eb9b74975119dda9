"""Whether two expression trees are one function: exact fractions where they suffice, else 120 digits at many points.

Decided here: no simplifier. Two closed forms that agree to 60 digits, and still agree to 120, at several points are
equal; ones that differ are not, however close (1.4142 is not sqrt(2)). Free symbols take positive values first, where
the two sides must agree, then values of both signs, where they must agree wherever both are real (sqrt(x^2) is not x,
yet ln(ab) and ln(a)+ln(b) stay equal). The points are fixed: the same pair always gets the same verdict. Every
operation is bounded in size, so a tower of powers is refused and never computed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from luspo_cli.grading.maths.expression import Tree, mul, names, negative, number

_DIGITS = (60, 120)
_MAX_POWER_DIGITS = 3_000
_MAX_EXACT_BITS = 60_000
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
    anchor = _points(free, 1)[0]
    for digits in _DIGITS:
        evaluator = _evaluator(digits)
        try:
            a0, b0 = evaluator.value(first, anchor), evaluator.value(second, anchor)
            if _negligible(evaluator, a0) or _negligible(evaluator, b0):
                return False
            for point in _points(free, 7)[1:]:
                a, b = evaluator.value(first, point), evaluator.value(second, point)
                scale = abs(a * b0) + abs(b * a0)
                if abs(a * b0 - b * a0) > scale * evaluator.context.mpf(10) ** (20 - digits):
                    return False
        except Undefined:
            return False
    return True


def same_ratio(first: Sequence[Tree], second: Sequence[Tree]) -> bool:
    """Return whether two lists of terms stand in one ratio, no term being 0."""
    zero = number(0)
    if any(same_function(term, zero) for term in (*first, *second)):
        return False
    return all(same_function(mul(first[0], b), mul(second[0], a)) for a, b in zip(first[1:], second[1:], strict=True))


def exact_value(tree: Tree) -> Fraction:
    """Return the value of a tree of rational operations; TypeError where it has others, Undefined beyond bounds."""
    kind = tree[0]
    if kind == "num":
        return tree[1]
    if kind == "add":
        return _bounded(sum(map(exact_value, tree[1]), Fraction(0)))
    if kind == "mul":
        product = Fraction(1)
        for factor in tree[1]:
            product = _bounded(product * exact_value(factor))
        return product
    if kind == "inv":
        value = exact_value(tree[1])
        if value == 0:
            raise Undefined
        return 1 / value
    if kind == "pow":
        base, exponent = exact_value(tree[1]), exact_value(tree[2])
        if exponent.denominator != 1:
            raise TypeError
        bits = max(abs(base.numerator), base.denominator).bit_length()
        if (base == 0 and exponent <= 0) or (bits > 1 and abs(exponent) * bits > _MAX_EXACT_BITS):
            raise Undefined
        return base ** (int(exponent) if bits > 1 else int(exponent) % 2 + 2 * (base == 0))
    if kind == "call" and tree[1] == "factorial":
        value = exact_value(tree[2][0])
        if value.denominator != 1 or not 0 <= value <= _MAX_FACTORIAL:
            raise Undefined
        return Fraction(math.factorial(int(value)))
    if kind == "call" and tree[1] in ("gcd", "lcm", "min", "max"):
        values = [exact_value(argument) for argument in tree[2]]
        if tree[1] in ("min", "max"):
            return (min if tree[1] == "min" else max)(values)
        if any(value.denominator != 1 for value in values):
            raise Undefined
        whole = [int(value) for value in values]
        return Fraction(math.gcd(*whole) if tree[1] == "gcd" else math.lcm(*whole))
    raise TypeError(kind)


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() > _MAX_EXACT_BITS or value.denominator.bit_length() > _MAX_EXACT_BITS:
        raise Undefined
    return value


def _agree(first: Tree, second: Tree) -> bool:
    free = sorted(names(first, "sym") | names(second, "sym"))
    imaginary = "i" in names(first, "const") | names(second, "const")
    low, high = _evaluator(_DIGITS[0]), _evaluator(_DIGITS[1])
    compared = 0
    for place, point in enumerate(_points(free, 9 if free else 1)):
        try:
            values = [evaluator.value(tree, point) for evaluator in (low, high) for tree in (first, second)]
        except Undefined:
            if not free:
                return False
            continue
        mixed_signs = place >= 4
        if mixed_signs and not imaginary and not all(low.is_real(value) for value in values):
            continue
        if not _difference_vanishes(values, high):
            return False
        compared += 1
    return compared >= (4 if free else 1)


def _difference_vanishes(values: list[Any], high: _Evaluator) -> bool:
    """Whether a - b is 0: it is below the last digits, or it shrinks with the precision as rounding does."""
    coarse, fine = abs(values[0] - values[1]), abs(values[2] - values[3])
    ten = high.context.mpf(10)
    scale = abs(values[2]) + abs(values[3])
    return bool(fine == 0 or fine <= scale * ten**-90 or fine <= coarse * ten**-30)


def _negligible(evaluator: _Evaluator, value: Any) -> bool:
    return bool(abs(value) < evaluator.context.mpf(10) ** -40)


def _points(names: list[str], count: int) -> list[Mapping[str, Fraction]]:
    """Return fixed points: four with positive values, then values of both signs; thousandths between 0.3 and 3."""
    source = random.Random(20260205)
    points: list[Mapping[str, Fraction]] = []
    for place in range(count):
        signs = (1,) if place < 4 else (-1, 1) if len(names) > 1 else (-1,)
        points.append({name: Fraction(source.choice(signs) * source.randrange(311, 2999), 1000) for name in names})
    return points


@lru_cache(maxsize=len(_DIGITS))
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
        return bool(abs(self.context.im(value)) <= abs(value) * self.context.mpf(10) ** -40)

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
        return self._call(tree[1], [self._value(argument, point) for argument in tree[2]])

    def _power(self, base: Any, exponent: Any) -> Any:
        mp = self.context
        if base == 0:
            if mp.re(exponent) > 0:
                return mp.zero
            raise Undefined
        if abs(exponent) * (abs(mp.log(abs(base), 10)) + 1) > _MAX_POWER_DIGITS:
            raise Undefined
        return mp.power(base, exponent)

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
        if name == "abs":
            return abs(x)
        # `log` without a base is the natural one here; a verdict that hangs on its base is left to exact spelling.
        function = getattr(mp, _FUNCTIONS.get(name, name), None)
        if function is None:
            raise Undefined
        return function(x)


_FUNCTIONS = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}
