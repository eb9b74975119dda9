"""Expression trees: tuples (kind, ...), with sums and products flat, so depth grows only with brackets and powers."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

Tree = tuple[Any, ...]
"""("num", Fraction) · ("sym", name) · ("const", name) · ("add", trees) · ("mul", trees) · ("inv", tree) ·
("pow", base, exponent) · ("call", function, trees)"""


def symbols(tree: Tree) -> set[str]:
    """Return the names of the free symbols."""
    if tree[0] == "sym":
        return {tree[1]}
    found: set[str] = set()
    for child in tree[1:]:
        if isinstance(child, tuple):
            found |= symbols(child) if child and isinstance(child[0], str) else set().union(*map(symbols, child))
    return found


def constants(tree: Tree) -> set[str]:
    """Return the names of the constants in `tree`."""
    if tree[0] == "const":
        return {tree[1]}
    found: set[str] = set()
    for child in tree[1:]:
        if isinstance(child, tuple):
            found |= constants(child) if child and isinstance(child[0], str) else set().union(*map(constants, child))
    return found


def number(value: int | Fraction) -> Tree:
    """Return the tree of a number."""
    return ("num", Fraction(value))


def add(*trees: Tree) -> Tree:
    """Return the sum of `trees`."""
    return trees[0] if len(trees) == 1 else ("add", trees)


def mul(*trees: Tree) -> Tree:
    """Return the product of `trees`."""
    return trees[0] if len(trees) == 1 else ("mul", trees)


def negative(tree: Tree) -> Tree:
    """Return -tree."""
    return ("num", -tree[1]) if tree[0] == "num" else mul(number(-1), tree)
