"""Derivatives, functions, vectors, dates and denials, judged by hand: none is a product or sum of its letters and numbers."""

from __future__ import annotations

import pytest

from luspo_cli.grading.golds import understood
from luspo_cli.grading.worker import compare

OTHER = [
    (r"\frac{dy}{dx}", r"\frac{y}{x}"),
    (r"\frac{dy}{dx}", "0"),
    (r"\frac{dy}{dx}", r"\frac{dV}{dt}"),
    (r"\frac{dV}{dt}=3", r"\frac{V}{t}=3"),
    (r"2\frac{dy}{dx}", r"\frac{2y}{x}"),
    (r"\frac{d^2y}{dx^2}", r"\frac{dy}{x^2}"),
    (r"\frac{\mathrm{d}y}{\mathrm{d}x}", r"\frac{y}{x}"),
    (r"\frac{d}{dx}x^2", "x"),
    (r"\frac{\Delta y}{\Delta x}", r"\frac{y}{x}"),
    ("dy/dx", "y/x"),
    ("2023-01-02", "2020"),
    ("2020-01-03", "2020-02-02"),
    ("2016-2017", "-1"),
    ("555-1234", "-679"),
    ("1/2/2023", "1/4046"),
    ("01/02", "1/2"),
    ("f(f(x))", "f^2x"),
    ("f(a+b)", "f(a)+f(b)"),
    ("f(2x)", "2f(x)"),
    ("f(x,y)", "f(y,x)"),
    ("f^{-1}(x)", r"\frac{x}{f}"),
    ("f^{-1}(x)", r"\frac{1}{f(x)}"),
    ("f'(x)", "f(x)"),
    ("g(f(x))", "f(g(x))"),
    ("F(b)-F(a)", "F(b-a)"),
    ("P(A)+P(B)", "P(A+B)"),
    ("g(3-2x)", "3g-2gx"),
    (r"\phi(a)\phi(b)", r"\phi^2ab"),
    (r"\vec a\cdot\vec b", r"\vec a\times\vec b"),
    (r"\vec a\times\vec b", r"\vec b\times\vec a"),
    (r"\vec{a}×\vec{b}", r"\vec a\cdot\vec b"),
    (r"\mathbf{a}\cdot\mathbf{b}", r"\mathbf{a}\times\mathbf{b}"),
    (r"\vec{AB}", r"\vec{BA}"),
    (r"\overrightarrow{AB}+\overrightarrow{BC}", r"\overrightarrow{BA}+\overrightarrow{BC}"),
    ("3", r"\not= 3"),
    ("3", r"\neq 3"),
    (r"(3,\infty)", r"\not> 3"),
    ("x=3", r"x\not=3"),
    (r"(2,\infty)", r"(2,\infty]"),
    (r"(-\infty,2]", r"[-\infty,2]"),
]
SAME = [
    (r"\frac{dy}{dx}", r"\dfrac{dy}{dx}"),
    (r"\frac{dV}{dt}=3", r"\frac{dV}{dt} = 3.0"),
    ("3", r"\frac{dV}{dt}=3"),
    (r"\frac{d}{dx}x^2", "2x"),
    (r"\frac{d+1}{2}", "(d+1)/2"),
    (r"\frac{ad}{bd}", r"\frac ab"),
    ("7", "21-14"),
    ("-2", "5 - 7"),
    ("2-1/2", "1.5"),
    ("2016-2017", "2016–2017"),
    ("007", "7"),
    ("f(a+b)", "f(b+a)"),
    ("f(x)+f(y)", "f(y)+f(x)"),
    ("2f(x)", "f(x)+f(x)"),
    ("f(3)", "f(1+2)"),
    (r"\frac{h(a+b)}{2}", r"\frac{ha+hb}{2}"),
    ("P(1+r)^2", "P(r+1)^2"),
    ("p(1-p)", "p-p^2"),
    (r"\gamma(x+1)", r"\gamma x+\gamma"),
    ("P(A)P(B)", "P(B)P(A)"),
    ("F(b)-F(a)", "-F(a)+F(b)"),
    ("4", "f(2)=4"),
    (r"2\vec{a}+\vec{b}", r"\vec b+2\vec a"),
    (r"\frac12\vec{AB}+\frac12\vec{AC}", r"\frac12(\vec{AC}+\vec{AB})"),
    (r"\vec a\times\vec b", r"\mathbf a \times \mathbf b"),
    ("(1,2)", r"\vec{AB}=(1,2)"),
    (r"\vec{AB}", r"\overrightarrow{AB}"),
    ("6", r"2\times\mathbf{3}"),
    ("12", "3×4"),
    (r"x\neq 2", r"x\not=2"),
    (r"60*\degree", r"60^\circ"),
]


@pytest.mark.parametrize(("gold", "answer"), [*OTHER, *((b, a) for a, b in OTHER)])
def test_no_product(gold: str, answer: str) -> None:
    assert not compare(gold, answer)[0].is_right


@pytest.mark.parametrize(("gold", "answer"), SAME)
def test_the_same(gold: str, answer: str) -> None:
    assert compare(gold, answer)[0].is_right


@pytest.mark.parametrize("gold", [r"\frac{dV}{dt}=3", "f(f(x))", r"\vec{AB}", "2016-2017"])
def test_such_golds_are_understood(gold: str) -> None:
    assert understood(gold)
