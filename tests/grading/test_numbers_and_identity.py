"""Numbers against Python's own fractions, expressions against identities of school algebra and float64 arithmetic."""

from __future__ import annotations

import contextlib
import math
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luspo_cli.grading.maths.expression import parse_expression
from luspo_cli.grading.maths.identity import Undefined, _Evaluator, proportional, same_function
from luspo_cli.grading.maths.normalise import normalise
from luspo_cli.grading.maths.numbers import number_key, parse_number
from luspo_cli.grading.maths.structures import read_shape
from luspo_cli.grading.maths.tokens import NotUnderstood
from luspo_cli.grading.maths.values import number_in


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-3", Fraction(-3)),
        ("18.00", Fraction(18)),
        (".5", Fraction(1, 2)),
        ("3/4", Fraction(3, 4)),
        (r"\frac43", Fraction(4, 3)),
        (r"1\frac{4}{5}", Fraction(9, 5)),
        (r"-1\frac{1}{2}", Fraction(-3, 2)),
        ("6.72*10^{-5}", Fraction(672, 10_000_000)),
        (r"0.\overline{3}", Fraction(1, 3)),
        (r"0.1\overline{6}", Fraction(1, 6)),
        ("1/0", None),
        ("1..2", None),
        ("", None),
        ("٣", None),
        ("9" * 1001, None),
        ("1e999", Fraction(10) ** 999),
        ("1e9999", None),
    ],
)
def test_parse_number(text: str, value: Fraction | None) -> None:
    assert parse_number(text) == value


@given(st.fractions(max_denominator=10_000))
def test_every_spelling_of_a_fraction_is_its_value(value: Fraction) -> None:
    a, b = value.numerator, value.denominator
    for text in (f"{a}/{b}", rf"\frac{{{a}}}{{{b}}}", rf"\dfrac {{{3 * a}}} {{{3 * b}}}", f"${a}/{b}$"):
        assert parse_number(normalise(text).text) == value
    assert parse_number(number_key(value)) == value


@given(st.integers(-(10**12), 10**12))
def test_every_spelling_of_an_integer_is_its_value(value: int) -> None:
    latex_groups = f"{value:,}".replace(",", r",\!")
    for text in (
        f"{value:,}",
        f"{value}.00",
        latex_groups,
        f"{value:,}".replace(",", "{,}"),
        rf"\${value}",
        f"x={value}",
    ):
        assert number_in(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$1,234.00", 1234),
        (r"\textbf{(B) } 27", 27),
        ("27 minutes in all", 27),
        ("m + n = 16 + 9 = 25", 25),
        ("She makes $18 every day", 18),
        (r"336^\circ", 336),
        ("2 or 3", None),
        ("between 2 and 3", None),
        ("twenty", None),
        ("x^2", None),
        ("25 x", None),
        ("x - 5", None),
        ("10-15 hours", None),
        ("5 (that is, 5.0)", None),
        ("it's 5, isn't it", 5),
        ("$2^{10}$", None),
    ],
)
def test_number_in_words(text: str, value: int | None) -> None:
    assert number_in(text) == value


IDENTITIES = [
    ("(x+1)^2", "x^2+2x+1"),
    ("x^3-y^3", "(x-y)(x^2+xy+y^2)"),
    (r"\sin(2x)", r"2\sin x\cos x"),
    (r"\cos^2 x", r"\frac{1+\cos 2x}{2}"),
    (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt{6}}"),
    (r"\sqrt[3]{54}", r"3\sqrt[3]{2}"),
    (r"\frac{1}{\sqrt{2}-1}", r"\sqrt{2}+1"),
    (r"\log_4 8", r"\frac{3}{2}"),
    (r"\frac{x^2-1}{x-1}", "x+1"),
    ("2^{n+1}", r"2\cdot2^n"),
    (r"\binom{n}{2}", "n(n-1)/2"),
    ("(n+1)!", "(n+1)n!"),
    ("(2+3i)(2-3i)", "13"),
    (r"e^{2\pi i}", "1"),
    (r"\sin\frac{\pi}{5}", r"\frac{\sqrt{10-2\sqrt5}}{4}"),
    (r"\arctan 1", r"\frac{\pi}{4}"),
]


@pytest.mark.parametrize(("first", "second"), IDENTITIES)
def test_identities_hold_and_their_perturbations_do_not(first: str, second: str) -> None:
    left, right = (parse_expression(normalise(text).text) for text in (first, second))
    assert same_function(left, right)
    assert same_function(right, left)
    # A perturbation far below double precision must be seen.
    off = parse_expression(f"({normalise(second).text})+10^{{-40}}")
    assert not same_function(left, off)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (r"\sqrt{x^2}", "x"),
        ("|x|", "x"),
        (r"\sqrt{2}", "1.41421356237309504880168872420969807856967187537694807317667973799"),
        (r"\frac{22}{7}", r"\pi"),
        ("1/2x", "1/(2x)"),
        ("x_1", "x"),
        ("X", "x"),
        (r"\infty", r"\infty+1"),
        ("0", "10^{-2000}"),
        ("2^{12000}", "2^{12000}+1"),
    ],
)
def test_close_is_not_equal(first: str, second: str) -> None:
    assert not same_function(*(parse_expression(normalise(text).text) for text in (first, second)))


def _random_expression(source: random.Random, depth: int) -> str:
    if depth == 0:
        return source.choice(["x", "y", "2", "3", "7", r"\pi"])
    first, second = (_random_expression(source, depth - 1) for _ in range(2))
    return source.choice(
        [
            f"({first}+{second})",
            f"({first}-{second})",
            f"{first}*({second})",
            rf"\frac{{{first}}}{{{second}}}",
            rf"\sqrt{{({first})^2+1}}",
            f"({first})^2",
            rf"\sin({first})",
        ]
    )


def _float(text: str, x: float, y: float) -> float:
    """A float64 oracle: the same text as Python source."""
    code = text.replace(r"\pi", "pi").replace(r"\sin", "sin").replace("^", "**")
    while r"\frac" in code or r"\sqrt" in code:
        at = max(code.rfind(r"\frac"), code.rfind(r"\sqrt"))  # the innermost one holds no other
        command = code[at : at + 5]
        first, end = _group(code, at + 5)
        if command == r"\frac":
            second, end = _group(code, end)
            code = f"{code[:at]}(({first})/({second})){code[end:]}"
        else:
            code = f"{code[:at]}sqrt({first}){code[end:]}"
    return eval(code, {"pi": math.pi, "sin": math.sin, "sqrt": math.sqrt, "x": x, "y": y})


def _group(code: str, at: int) -> tuple[str, int]:
    depth = 0
    for end in range(at, len(code)):
        depth += (code[end] == "{") - (code[end] == "}")
        if depth == 0:
            return code[at + 1 : end], end + 1
    raise AssertionError(code)


@pytest.mark.parametrize("seed", range(150))
def test_values_agree_with_float64(seed: int) -> None:
    source = random.Random(seed)
    text = _random_expression(source, 3)
    x, y = Fraction(source.randrange(311, 2999), 1000), Fraction(source.randrange(311, 2999), 1000)
    try:
        value = _Evaluator(60).value(parse_expression(text), {"x": x, "y": y})
    except Undefined:
        return
    try:
        expected = _float(text, float(x), float(y))
    except ZeroDivisionError:
        return
    if abs(expected) < 1e12:
        assert float(value) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_equations_are_equal_up_to_a_factor_other_than_zero() -> None:
    line = parse_expression("y-2x-3")
    assert proportional(line, parse_expression("4x-2y+6"))
    assert not proportional(line, parse_expression("y-2x+3"))
    assert not proportional(line, parse_expression("(y-2x-3)(y+1)"))
    assert not proportional(line, parse_expression("0(y-2x-3)"))


@pytest.mark.parametrize(
    "text", ["", "1+", "(1", "1 2", r"\frac", r"\foo", "sin", "a#b", "2^", "|x", r"\sqrt{", "x__2", "{}"]
)
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(NotUnderstood):
        parse_expression(text)


@pytest.mark.parametrize(
    "text", ["9^{9^{9^{9}}}", "100000!", "((9!)!)!", "10^{10^{10}}", "e^{e^{e^{e^{e}}}}", "2^{-10^{30}}"]
)
def test_towers_are_refused_and_never_computed(text: str) -> None:
    tree = parse_expression(text)
    assert not same_function(tree, parse_expression("7"))
    with pytest.raises(Undefined):
        _Evaluator(60).value(tree, {})


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=list(r"\{}()[]^_+-*/=<>,;|&!.$ 0123456789xyeipqrstfracbegn" + "\ue002"), max_size=60))
def test_reading_any_text_ends_well(text: str) -> None:
    normal = normalise(text)
    read_shape(normal.text)
    with contextlib.suppress(NotUnderstood):
        parse_expression(normal.text)
