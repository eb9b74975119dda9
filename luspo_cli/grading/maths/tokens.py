"""An expression as tokens: numbers, LaTeX commands, single letters, and the names that plain text spells out."""

from __future__ import annotations

import re

MAX_TOKENS = 800

Token = tuple[str, str]
"""("num", digits) · ("command", name) · ("letter", x) · ("char", symbol)"""


class NotUnderstood(Exception):
    """The text is no expression of this grammar."""


FUNCTIONS = frozenset(
    (
        "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "ln", "log",
        "lg", "exp", "sqrt", "abs", "floor", "ceil", "gcd", "lcm", "min", "max",
    )
)  # fmt: skip
_ALIASES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "tg": "tan", "ctg": "cot"}
GREEK = frozenset(
    (
        "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota",
        "kappa", "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "varphi", "chi", "psi",
        "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega",
    )
)  # fmt: skip
CONSTANTS = {"pi": "pi", "infty": "inf", "infinity": "inf", "inf": "inf", "e": "e", "i": "i"}
DERIVATIVE = re.compile(
    r"\\frac ?\{ ?(?:d|\\Delta) ?(?:\^\{?[0-9n]\}? ?)?(?:\\?[A-Za-z]+ ?)?(?:\([^()]{0,40}\))? ?\}"
    r" ?\{ ?(?:d|\\Delta) ?(\\?[A-Za-z]+)(?:\^\{?[0-9n]\}?)? ?\}"
    r"|(?<![A-Za-z\\])d(?:\^\{?[0-9n]\}?)?[A-Za-z]?/d([A-Za-z])(?:\^\{?[0-9n]\}?)?(?![A-Za-z])"
)
"""dy/dx, or a quotient of differences, in normal spelling: its d and its letters are no factors. A group holds the x."""
_TOKEN = re.compile(
    r"\s*(?:(?P<num>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][0-9]{1,3}(?![0-9]))?)|\\(?P<command>[a-zA-Z]+|[{}|])|(?P<letters>[A-Za-z]+)|(?P<power>\*\*)"
    r"|(?P<char>[-+*/^_(){}\[\]|!',]))"
)


def tokenise(text: str) -> list[Token]:
    """Return the tokens of `text`; raises NotUnderstood at the first character that is none of them."""
    tokens: list[Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or len(tokens) > MAX_TOKENS:
            raise NotUnderstood(text)
        at = match.end()
        kind = match.lastgroup
        assert kind is not None
        value = match.group(kind)
        if kind == "power":
            tokens.append(("char", "^"))
        elif kind == "letters":
            tokens.extend(_split_letters(value))
        elif kind == "command" and value in "{}|":
            tokens.append(("char", "|" if value == "|" else value))
        else:
            tokens.append((kind, value))
    return tokens


def _split_letters(run: str) -> list[Token]:
    """Read a run of plain letters: the name of a function or constant, or a product of one-letter symbols."""
    name = _ALIASES.get(run, run)
    if name == "sqrt":
        return [("command", "plainsqrt")]
    if name in FUNCTIONS or name in ("pi", "infty", "infinity", "inf") or (len(name) > 2 and name in GREEK):
        return [("command", name)]
    for known in ("sqrt", "pi"):  # xsqrt(2), pix
        head, found, tail = run.partition(known)
        if found and len(head) <= 2 and len(tail) <= 2:
            command = ("command", "plainsqrt" if known == "sqrt" else known)
            return [*(("letter", x) for x in head), command, *(("letter", x) for x in tail)]
    return [("letter", letter) for letter in run]
