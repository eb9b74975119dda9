"""Where two functions of letters are compared: of each sign, and for functions with corners and jumps in every piece.

Decided here: an identity of rational functions, exponentials and logarithms that holds at a few points holds everywhere.
One of absolute values, roots, floors, maxima or inverse sines holds piece by piece: such functions are compared at values
of every size, and along each letter on both sides of every place where one of them can change its piece. The points are
fixed: the same pair always gets the same verdict.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import partial

from luspo_cli.grading.maths.expression import Tree, add, mul, names, negative, number

Point = Mapping[str, Fraction]
Evaluate = Callable[[Tree, Point], float | None]
"""The real value of a tree at a point, roughly; None where it has none."""

POSITIVE = 4
"""So many points come first, with positive values: there both sides may be complex."""
_SEED = 20260205
_FEWEST_SIGNED = 5
_MOST_SIGNED = 16
_WIDE = 24
_MOST_LETTERS = 6
_MOST_SWITCHES = 24
_MOST_ON_LINES = 160
_MOST_LOOKS = 1_500
"""Rough values that are computed to find the switches: it bounds the time for hostile text."""
_CORNERS = frozenset(("abs", "min", "max", "root", "arcsin", "arccos", "arctan"))
_JUMPS = frozenset(("floor", "ceil"))
_PERIODIC = frozenset(("sin", "cos", "tan", "cot", "sec", "csc"))
_PERIODS = 4
_SIZES = [Fraction(round(100 * 1.7**step), 1000) for step in range(20)] + [
    Fraction(10**power) for power in range(4, 13)
]
_GRID = sorted([*_SIZES, *(-size for size in _SIZES)])
_HALVINGS = 12


def points(letters: Sequence[str]) -> list[Point]:
    """Return fixed points between 0.3 and 3: `POSITIVE` ones with positive values, then every other pattern of signs."""
    source = random.Random(_SEED)
    patterns = [(1,) * len(letters)] * POSITIVE
    others = _patterns_of_signs(len(letters))
    patterns += list(itertools.islice(itertools.cycle(others), max(_FEWEST_SIGNED, len(others))))
    return [
        {name: Fraction(sign * source.randrange(311, 2999), 1000) for name, sign in zip(letters, pattern, strict=True)}
        for pattern in patterns
    ]


def _patterns_of_signs(count: int) -> list[tuple[int, ...]]:
    """All but the positive one; of many letters those where one, or all but one, or all are negative."""
    if 2**count <= _MOST_SIGNED:
        return list(itertools.product((-1, 1), repeat=count))[:-1]
    single = [tuple(-1 if at == one else 1 for at in range(count)) for one in range(min(count, _MOST_SIGNED))]
    return [*single, *(tuple(-sign for sign in pattern) for pattern in single), (-1,) * count]


def further_points(trees: Sequence[Tree], letters: Sequence[str], evaluate: Evaluate) -> Iterator[Point]:
    """Yield points in the other pieces of `trees`, where these have pieces at all: of every size, then about every switch."""
    if not letters or not any(map(_has_pieces, trees)):
        return
    source = random.Random(_SEED + 1)
    wide = [{name: _of_any_size(source) for name in letters} for _ in range(_WIDE)]
    yield from wide
    switches = list(dict.fromkeys(itertools.chain.from_iterable(map(_switches, trees))))[:_MOST_SWITCHES]
    bases = [wide[0]] if len(letters) == 1 else [*points(letters)[POSITIVE - 1 : POSITIVE + 1], wide[0]]
    looks = itertools.count()

    def look(tree: Tree, point: Point) -> float | None:
        return evaluate(tree, point) if next(looks) < _MOST_LOOKS else None

    on_lines = (
        {**base, name: value}
        for base, name in itertools.product(bases, letters[:_MOST_LETTERS])
        for value in _along(switches, name, base, look)
    )
    yield from itertools.islice(on_lines, _MOST_ON_LINES)


def _of_any_size(source: random.Random) -> Fraction:
    """From hundredths to a thousand, of either sign; every other one is a whole number."""
    size = Fraction(source.randrange(1000, 9999) * 10 ** source.randrange(5), 10**5)
    size = size if source.randrange(2) else Fraction(math.ceil(size))
    return size * source.choice((-1, 1))


def _has_pieces(tree: Tree) -> bool:
    return any(_is_piecewise(part) for part in _parts(tree))


def _is_piecewise(tree: Tree) -> bool:
    if tree[0] == "call":
        return tree[1] in _CORNERS | _JUMPS and bool(names(tree, "sym"))
    whole = tree[0] == "pow" and tree[2][0] == "num" and tree[2][1].denominator == 1
    return tree[0] == "pow" and not whole and bool(names(tree[1], "sym"))


def _parts(tree: Tree) -> Iterator[Tree]:
    """Yield the tree and all trees in it."""
    yield tree
    for child in tree[1:]:
        if isinstance(child, tuple):
            for part in [child] if child and isinstance(child[0], str) else child:
                yield from _parts(part)


def _switches(tree: Tree) -> Iterator[Tree]:
    """Yield trees at whose zeros a part of `tree` can change its piece."""
    for part in _parts(tree):
        if not _is_piecewise(part):
            continue
        arguments = part[2] if part[0] == "call" else (part[1],)
        if part[1] in ("min", "max"):
            yield from (add(one, negative(other)) for one, other in itertools.combinations(arguments, 2))
        elif part[1] in _JUMPS:
            yield from (add(arguments[0], number(step)) for step in range(-_PERIODS, _PERIODS + 1))
        else:
            yield arguments[0]
        for inner in itertools.chain.from_iterable(map(_parts, arguments)):
            if not names(inner, "sym"):
                continue
            if inner[0] == "add":  # (x-5)^2 under a root
                yield inner
            elif inner[0] == "call" and inner[1] in _PERIODIC:
                quarter = mul(number(Fraction(1, 2)), ("const", "pi"))
                yield from (add(inner[2][0], mul(number(n), quarter)) for n in range(-_PERIODS, _PERIODS + 1))


def _along(switches: Sequence[Tree], letter: str, base: Point, evaluate: Evaluate) -> Iterator[Fraction]:
    """Yield values of `letter` at, between and beyond the zeros of the switches, the other letters being as in `base`."""
    zeros: set[Fraction] = set()
    for switch in switches:
        if letter in names(switch, "sym"):
            zeros.update(_zeros(partial(_value_on_line, switch, letter, base, evaluate)))
    places = sorted(zeros)
    if not places:
        return
    reach = 10 * (1 + max(map(abs, places)))
    yield from (places[0] - 1, places[-1] + 1, places[0] - reach, places[-1] + reach)
    yield from ((low + high) / 2 for low, high in itertools.pairwise(places))
    yield from places


def _value_on_line(tree: Tree, letter: str, base: Point, evaluate: Evaluate, value: Fraction) -> float | None:
    return evaluate(tree, {**base, letter: value})


def _zeros(function: Callable[[Fraction], float | None]) -> set[Fraction]:
    """Zeros of a real function: by formula up to degree 2, and there the extremum too, else roughly by changes of sign."""
    samples = [function(Fraction(at)) for at in range(4)]
    if None not in samples:
        f0, f1, f2, f3 = (value for value in samples if value is not None)
        square, size = (f2 - 2 * f1 + f0) / 2, max(abs(value) for value in (f0, f1, f2, f3))
        if abs(f3 - 3 * f2 + 3 * f1 - f0) <= 1e-9 * size:
            return _rounded(_zeros_of_square(square if abs(square) > 1e-9 * size else 0.0, f1 - f0 - square, f0))
    values = [function(at) for at in _GRID]
    found = []
    for (low, left), (high, right) in itertools.pairwise(zip(_GRID, values, strict=True)):
        if left is None or right is None or (left > 0) == (right > 0):
            continue
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            value = function(middle)
            if value is None:
                break
            low, high = (middle, high) if (value > 0) == (left > 0) else (low, middle)
        found.append(float(low + high) / 2)
    return _rounded(found)


def _zeros_of_square(a: float, b: float, c: float) -> list[float]:
    if a == 0:
        return [-c / b] if b else []
    top, under = -b / (2 * a), b * b - 4 * a * c
    root = math.sqrt(max(under, 0.0)) / (2 * a)
    return [top, top - root, top + root]


def _rounded(values: Sequence[float]) -> set[Fraction]:
    return {Fraction(value).limit_denominator(10**6) for value in values if math.isfinite(value) and abs(value) < 1e12}
