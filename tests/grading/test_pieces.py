"""Functions of letters in pieces (absolute values, roots, floors, maxima, inverse sines), judged by hand in both directions."""

from __future__ import annotations

import pytest

from luspo_cli.grading.maths.decide import decide

SAME = [
    ("|a||b|", "|ab|"),
    ("|x-5|", "|5-x|"),
    (r"\sqrt{(x-5)^2}", "|x-5|"),
    (r"\sqrt{x^2-10x+25}", "|5-x|"),
    (r"\max(x,4)", r"\max(4,x)"),
    (r"\max(a,b)", r"\frac{a+b+|a-b|}{2}"),
    (r"\min(a,b)+\max(a,b)", "a+b"),
    (r"\lfloor x+1\rfloor", r"\lfloor x\rfloor+1"),
    (r"\lfloor\frac{n}{3}\rfloor", r"\lfloor n/3\rfloor"),
    (r"-\lfloor -x\rfloor", r"\lceil x\rceil"),
    (r"\lfloor 3\cdot\frac13\sqrt{x}\rfloor", r"\lfloor\sqrt x\rfloor"),
    (r"\sqrt{x^4}", "x^2"),
    (r"\sqrt{x^2+y^2}", "(x^2+y^2)^{1/2}"),
    (r"\sqrt{\frac ab}", r"\frac{\sqrt a}{\sqrt b}"),
    (r"\sqrt{x^2y}", r"|x|\sqrt y"),
    (r"\frac{1}{\sqrt{x+1}-\sqrt{x}}", r"\sqrt{x+1}+\sqrt{x}"),
    (r"\sqrt[3]{x^3}", "x"),
    (r"\sqrt{100-x^2}", r"\sqrt{(10-x)(10+x)}"),
    (r"\ln|ab|", r"\ln|a|+\ln|b|"),
    (r"\sqrt{1-\cos^2 x}", r"|\sin x|"),
    (r"\frac{x}{\sqrt{x^2+1}}", r"\sin(\arctan x)"),
    ("|x^2-4|", "|x-2||x+2|"),
    ("y=|x-5|", "2y=2|5-x|"),
    ("y=|x-5|", "|x-5|-y=0"),
]
OTHER = [
    # signs: each letter has its own
    ("|a|+|b|", "|a+b|"),
    ("|xy|", "xy"),
    ("|x||y|", "xy"),
    (r"\sqrt{x^2y^2}", "xy"),
    (r"\sqrt{a^2b}", r"a\sqrt b"),
    (r"\frac{|ab|}{2}", r"\frac{ab}{2}"),
    (r"\sqrt{a^2/b^2}", "a/b"),
    (r"\frac{|a|}{a}", r"\frac{|b|}{b}"),
    (r"\sqrt{a^2}+\sqrt{b^2}", "|a+b|"),
    ("|x-y|", "||x|-|y||"),
    ("|abcde|", "abcde"),
    ("|a+b+c+d+e|", "|a|+|b|+|c|+|d|+|e|"),
    ("|a|+|b|=c", "|a+b|=c"),
    # pieces far away, and narrow ones between two constants
    ("|x-5|", "5-x"),
    ("|x+5|", "x+5"),
    (r"\sqrt{(x-5)^2}", "5-x"),
    (r"\sqrt[4]{(x-7)^4}", "7-x"),
    ("((x-7)^2)^{1/2}", "7-x"),
    ("|x-1000|", "1000-x"),
    ("|x-y-z|", "y+z-x"),
    ("|x^3-8|", "8-x^3"),
    ("|e^x-100|", "100-e^x"),
    (r"|\ln x-20|", r"20-\ln x"),
    ("y=|x-5|", "y=5-x"),
    (r"\max(x,4)", "4"),
    (r"\max(x,20000)", "20000"),
    (r"\min(n,100)", "n"),
    (r"\max(a,b,c)", r"\max(a,b)"),
    ("|x-3|+|x+3|", "6"),
    ("|x-5|+|x-6|", "|2x-11|"),
    ("|x-1|+|x-1.001|", "|2x-2.001|"),
    (r"\sqrt{x^2-10x+25}+\sqrt{x^2-12x+36}", "|2x-11|"),
    # jumps and periods
    (r"\lfloor n/10\rfloor", r"\lfloor n/20\rfloor"),
    (r"\lfloor x\rfloor", r"\lceil x\rceil-1"),
    (r"\lfloor x+0.5\rfloor", r"\lfloor x+0.49\rfloor"),
    (r"\lfloor x\rfloor+\lfloor y\rfloor", r"\lfloor x+y\rfloor"),
    (r"\arctan(\tan(x/2))", "x/2"),
    (r"\arccos(\cos x)", "|x|"),
    (r"|\sin x|", r"\sin|x|"),
    (r"\arctan x+\arctan y", r"\arctan\frac{x+y}{1-xy}"),
    # rational functions are compared exactly
    ("x", "x+10^{-150}"),
    (r"\frac{1}{x+y}", r"\frac{1}{x+y+10^{-200}}"),
]


@pytest.mark.parametrize(("gold", "answer"), [*SAME, *((b, a) for a, b in SAME)])
def test_the_same_in_every_piece(gold: str, answer: str) -> None:
    reason = decide(gold, answer)
    assert reason is not None
    assert reason.is_right


@pytest.mark.parametrize(("gold", "answer"), [*OTHER, *((b, a) for a, b in OTHER)])
def test_another_in_one_piece(gold: str, answer: str) -> None:
    reason = decide(gold, answer)
    assert reason is not None
    assert not reason.is_right
