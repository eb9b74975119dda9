r"""A normalised answer as an expression tree: one small grammar for LaTeX and for plain text (`3*sqrt(13)`, `7pi`).

Decided here: our own reader instead of a LaTeX package, because it must refuse what it does not know (a package that
skips it would make unequal answers equal), cost microseconds, and be bounded. Multiplication may be implied and binds
like `*`, so `1/2x` is x/2. An integer before a fraction of plain integers is a mixed number. `i` and `e` are the
constants.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from luspo_cli.grading.maths.numbers import MAX_DIGITS, parse_number
from luspo_cli.grading.maths.tokens import CONSTANTS, DERIVATIVE, FUNCTIONS, GREEK, NotUnderstood, Token, tokenise

MAX_DEPTH = 50
"""Brackets, powers, roots and functions inside of one another; what is deeper is no short answer."""

Tree = tuple[Any, ...]
"""("num", Fraction) · ("sym", name) · ("const", name) · ("add", trees) · ("mul", trees) · ("inv", tree) ·
("pow", base, exponent) · ("call", function, trees) · ("apply", unknown function, trees)"""

_OPEN = {"(": ")", "[": "]", "{": "}"}
_ITERATED = re.compile(r"\^\{?(?:-?[0-9]|n)\}?")
_FUNCTION_NAMES = frozenset(("phi", "varphi", "psi", *"fghFGHPQpq"))
_LONGEST_ARGUMENT = 20
_WITHOUT_BRACES = str.maketrans("", "", "{}")
_SIGNS = (("char", "+"), ("char", "-"))


def parse_expression(text: str) -> Tree:
    """Return the tree of a normalised expression; raises NotUnderstood for anything else."""
    value = parse_number(text)
    if value is not None:  # 1e-3 is a thousandth, not e - 3
        return number(value)
    if DERIVATIVE.search(text):
        raise NotUnderstood("a derivative")
    parser = _Parser(tokenise(text))
    tree = parser.sum()
    if not parser.at_end:
        raise NotUnderstood(text)
    return tree


class _Parser:
    """Recursive descent over the token list; every method consumes what it reads."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.at = 0
        self.depth = 0
        self.bars = 0

    @property
    def at_end(self) -> bool:
        return self.at >= len(self.tokens)

    def peek(self) -> Token:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def next(self) -> Token:
        token = self.peek()
        self.at += 1
        return token

    def accept(self, value: str) -> bool:
        if self.peek() == ("char", value):
            self.at += 1
            return True
        return False

    def expect(self, value: str) -> None:
        if not self.accept(value):
            raise NotUnderstood(f"{value} is missing")

    def sum(self) -> Tree:
        terms = [self.signed(self.term)]
        while self.peek() in _SIGNS:
            terms.append(self.signed(self.term))
        return add(*terms)

    def signed(self, read: Callable[[], Tree]) -> Tree:
        """Signs, as many as there are, and then what `read` reads: 2^-1, 3*-x, --5."""
        minus = False
        while self.peek() in _SIGNS:
            minus ^= self.next()[1] == "-"
        tree = read()
        return negative(tree) if minus else tree

    def term(self) -> Tree:
        factors = [self.power()]
        while True:
            if self.accept("*"):
                factors.append(self.signed(self.power))
            elif self.accept("/"):
                factors.append(("inv", self.signed(self.power)))
            elif self.starts_factor():
                if self.peek()[0] == "num":
                    raise NotUnderstood("two numbers side by side")
                factors.append(self.power())
            else:
                return mul(*factors)

    def starts_factor(self) -> bool:
        kind, value = self.peek()
        if kind == "char":
            return value in "([{" or (value == "|" and self.bars == 0)
        return kind in ("num", "letter", "command") and value not in ("rfloor", "rceil")

    def power(self) -> Tree:
        base = self.postfix()
        if self.accept("^"):
            self.deeper()
            base = self.factorial(("pow", base, self.signed(self.power)))
            self.depth -= 1
        return base

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NotUnderstood("too deep")

    def factorial(self, tree: Tree) -> Tree:
        if not self.accept("!"):
            return tree
        if self.peek() == ("char", "!"):  # 5!! is the double factorial to one and (5!)! to another
            raise NotUnderstood("!!")
        return ("call", "factorial", (tree,))

    def postfix(self) -> Tree:
        return self.factorial(self.inside())

    def inside(self) -> Tree:
        """An atom, one level deeper: whatever lies inside of something else is read from here."""
        self.deeper()
        tree = self.atom()
        self.depth -= 1
        return tree

    def atom(self) -> Tree:
        kind, value = self.next()
        if (kind, value) == ("char", "-"):  # \frac-1 2
            return negative(self.inside())
        if kind == "num":
            return self.number_or_mixed(value)
        if kind == "letter":
            return self.symbol(value)
        if kind == "command":
            return self.command(value)
        if kind == "char" and value in _OPEN:
            inner = self.sum()
            self.expect(_OPEN[value])
            return inner
        if (kind, value) == ("char", "|"):
            self.bars += 1
            inner = self.sum()
            self.expect("|")
            self.bars -= 1
            return ("call", "abs", (inner,))
        raise NotUnderstood(value)

    def number_or_mixed(self, text: str) -> Tree:
        if len(text) > MAX_DIGITS or text[0] in "eE":  # \log_2e3 takes the 2 alone, and leaves an exponent behind
            raise NotUnderstood("a number of too many digits, or an exponent without one")
        value = Fraction(text)
        if self.peek() == ("command", "frac") and "." not in text:
            start = self.at
            self.next()
            top, bottom = self.argument(), self.argument()
            if _is_plain_integer(top) and _is_plain_integer(bottom) and bottom[1] != 0:
                return number(value + top[1] / bottom[1])
            self.at = start
        return number(value)

    def symbol(self, name: str) -> Tree:
        if name in ("e", "i"):
            return ("const", name)
        letter = name
        while self.accept("'"):
            name += "'"
        if self.accept("_"):
            name += "_" + self.subscript()
        if letter in _FUNCTION_NAMES and (applied := self.applied(sure=letter == "f")) is not None:
            return ("apply", name + applied, self.function_arguments())
        return ("sym", name)

    def applied(self, *, sure: bool) -> str | None:
        """Read what stands between the name of a function and its argument, f^{-1}(x); None where it is a factor.

        f(a+b) is no product, which is `sure`. A height h, a force F or a price P may be one: they are functions of a lone
        letter or number, of x and of a function.
        """
        at = self.at
        exponent: list[str] = []
        if self.peek() == ("char", "^"):
            while self.tokens[at : at + 1] and self.tokens[at] != ("char", "(") and len(exponent) < 5:
                exponent.append(self.tokens[at][1])
                at += 1
            if not _ITERATED.fullmatch("".join(exponent)):
                return None
        if self.tokens[at : at + 1] != [("char", "(")]:
            return None
        rest = [value for _, value in self.tokens[at + 1 : at + _LONGEST_ARGUMENT]]
        inside = rest[: rest.index(")")] if ")" in rest else rest
        if not sure and not (len(inside) - inside.count("-") == 1 or inside[1:2] == ["("] or "x" in inside):
            return None
        self.at = at
        return "".join(exponent).translate(_WITHOUT_BRACES)

    def subscript(self) -> str:
        kind, value = self.next()
        if (kind, value) != ("char", "{"):
            if kind == "num":  # x_12 is x_1 times 2 in TeX
                if len(value) > 1:
                    self.at -= 1
                    self.tokens[self.at] = ("num", value[1:])
                return value[0]
            if kind in ("letter", "command"):
                return value
            raise NotUnderstood("a subscript is missing")
        parts: list[str] = []
        while not self.accept("}"):
            kind, value = self.next()
            if kind == "end" or value in "{}":
                raise NotUnderstood("a subscript that does not end")
            parts.append(value)
        return "".join(parts)

    def command(self, name: str) -> Tree:
        if name == "frac":
            top, bottom = self.argument(), self.argument()
            return mul(top, ("inv", bottom))
        if name == "sqrt":
            index: Tree = number(2)
            if self.peek() == ("char", "["):
                self.next()
                index = self.sum()
                self.expect("]")
            return ("call", "root", (self.argument(), index))
        if name == "plainsqrt":  # sqrt13 and sqrt(13), where \\sqrt13 is \\sqrt{1}3
            return ("call", "root", (self.inside(), number(2)))
        if name == "binom":
            return ("call", "binom", (self.argument(), self.argument()))
        if name in ("lfloor", "lceil"):
            inner = self.sum()
            if self.next() != ("command", "r" + name[1:]):
                raise NotUnderstood(f"\\{name} is not closed")
            return ("call", "floor" if name == "lfloor" else "ceil", (inner,))
        if name in FUNCTIONS:
            return self.call(name)
        if name in CONSTANTS:
            return ("const", CONSTANTS[name])
        if name in GREEK:
            return self.symbol(name)
        if name == "overrightarrow":
            self.expect("{")
            start, end = self.next(), self.next()
            self.expect("}")
            return ("sym", f"{name} {start[1]}{end[1]}")
        raise NotUnderstood(name)

    def call(self, name: str) -> Tree:
        """A function with `^2`, `_b` and its argument, bracketed or not: \\sin^2 x, \\log_2 8, sin(2x)."""
        power: Tree | None = None
        base: Tree | None = None
        while True:
            if self.accept("^"):
                power = self.exponent_of_function()
            elif name in ("log", "lg") and self.accept("_"):
                base = self.argument()
            else:
                break
        inverse = power == number(-1) and name in ("sin", "cos", "tan", "cot", "sec", "csc")
        arguments = self.function_arguments()
        if name in ("gcd", "lcm", "min", "max"):
            tree: Tree = ("call", name, arguments)
        elif len(arguments) != 1:
            raise NotUnderstood(f"{name} takes one argument")
        elif base is not None:
            tree = mul(("call", "ln", arguments), ("inv", ("call", "ln", (base,))))
        elif inverse:
            if name not in ("sin", "cos", "tan"):
                raise NotUnderstood(name)
            return ("call", "arc" + name, arguments)
        else:
            tree = ("call", "log10" if name == "lg" else name, arguments)
        return ("pow", tree, power) if power is not None else tree

    def exponent_of_function(self) -> Tree:
        kind, value = self.peek()
        if kind == "num":
            self.next()
            return number(Fraction(value))
        return self.argument()

    def function_arguments(self) -> tuple[Tree, ...]:
        if self.peek()[0] == "char" and self.peek()[1] in ("(", "[", "{"):
            closer = _OPEN[self.next()[1]]
            arguments = [self.sum()]
            while self.accept(","):
                arguments.append(self.sum())
            self.expect(closer)
            return tuple(arguments)
        if self.peek() == ("char", "-"):
            return (self.signed(self.power),)
        factors = [self.power()]
        while self.peek()[0] in ("num", "letter") or (self.peek()[0] == "command" and self.peek()[1] not in FUNCTIONS):
            if self.peek()[1] in ("rfloor", "rceil"):
                break
            factors.append(self.power())
        if self.accept("/"):  # \sin x/2
            factors.append(("inv", self.signed(self.power)))
        return (mul(*factors),)

    def argument(self) -> Tree:
        """One TeX argument: a braced group, one digit, one letter or one command."""
        kind, value = self.peek()
        if kind == "num":
            self.next()
            if len(value) > 1 and "." not in value:  # \frac43 is 4/3: one digit is taken, the others stay
                self.tokens[self.at - 1] = ("num", value[1:])
                self.at -= 1
                return number(int(value[0]))
            return number(Fraction(value))
        return self.inside()


def _is_plain_integer(tree: Tree) -> bool:
    return tree[0] == "num" and tree[1].denominator == 1 and tree[1] >= 0


def names(tree: Tree, kind: str) -> set[str]:
    """Return the names of the free symbols (`kind` sym) or of the constants (const) in `tree`."""
    if tree[0] == kind:
        return {tree[1]}
    found: set[str] = set()
    for child in tree[1:]:
        if isinstance(child, tuple):
            parts = [child] if child and isinstance(child[0], str) else child
            found = found.union(*(names(part, kind) for part in parts))
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
