"""One number as an exact fraction: no floats, so 18.00 is 18 and 0.1 is exactly a tenth; no tolerance of any size.

Only ASCII digits count (`int` would also read Arabic-Indic ones), and a literal of more than a thousand digits is no
number here: Python refuses to convert beyond 4,300.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_DIGITS = 1_000

_INTEGER = r"[0-9]+"
_DECIMAL = r"(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_BRACED = rf"(?:\{{\s?(?P<{{0}}>[-+]?{_DECIMAL})\s?\}}|(?P<{{0}}_digit>[0-9]))"
_FRACTION = rf"\\frac\s?{_BRACED.replace('{0}', 'top')}\s?{_BRACED.replace('{0}', 'bottom')}"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)(?:(?P<whole>{_INTEGER})?{_FRACTION}"
    rf"|(?P<a>{_DECIMAL})/(?P<b>[-+]?{_DECIMAL})"
    rf"|\(?(?P<decimal>{_DECIMAL})(?P<repeating>\\overline\s?\{{?[0-9]+\}}?)?\)?"
    rf"(?:\*10(?:\^|\*\*)(?:\{{(?P<power>[-+]?[0-9]{{1,3}})\}}|(?P<power_digit>[0-9]))|[eE](?P<exponent>[-+]?[0-9]{{1,3}}))?)"
)


def parse_number(text: str) -> Fraction | None:
    r"""Return the value of a normalised integer, decimal, fraction, mixed number or a*10^{n}; None for all else.

    Examples: `-3`, `18.00`, `.5`, `3/4`, `\frac43`, `1\frac{4}{5}` (9/5), `6.72*10^{-5}`, `0.\overline{3}`.
    """
    if len(text) > MAX_DIGITS:
        return None
    match = _NUMBER.fullmatch(text.replace("{-}", "-"))
    if match is None or (("(" in text) != (")" in text)):
        return None
    groups = match.groupdict()
    sign = -1 if groups["sign"] == "-" else 1
    if groups["decimal"] is not None:
        value = _decimal(groups["decimal"], groups["repeating"])
        power = groups["power"] or groups["power_digit"] or groups["exponent"]
        return sign * value * Fraction(10) ** int(power) if power else sign * value
    top = Fraction(_pick(groups, "a", "top", "top_digit"))
    bottom = Fraction(_pick(groups, "b", "bottom", "bottom_digit"))
    if bottom == 0:
        return None
    whole = groups["whole"]
    if whole is not None:
        # k times a fraction is written as a product; k beside a fraction of plain integers is a mixed number.
        if top < 0 or bottom < 0 or top.denominator != 1 or bottom.denominator != 1:
            return None
        return sign * (int(whole) + top / bottom)
    return sign * top / bottom


def number_key(value: Fraction) -> str:
    """Return one spelling for each value."""
    return str(value.numerator) if value.denominator == 1 else f"{value.numerator}/{value.denominator}"


def _pick(groups: dict[str, str | None], *names: str) -> str:
    return next(found for name in names if (found := groups[name]) is not None)


def _decimal(text: str, repeating: str | None) -> Fraction:
    value = Fraction(text)
    if repeating is None:
        return value
    digits = "".join(character for character in repeating if character.isdigit())
    places = len(text.partition(".")[2])
    return value + Fraction(int(digits), 10**places * (10 ** len(digits) - 1))
