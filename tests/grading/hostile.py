"""Responses that try to break a grader: everything that has hung, crashed or fooled one, and random mixtures of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

FRAGMENTS = (
    "\\boxed{", "\\boxed{{{", "}", "\\fbox{", "\\boxed 25", "\\boxed", "Answer: ", "**Answer:** ", "the answer is ",
    "#### ", "A: ", "<think>", "</think>", "<|im_end|>", "$", "$$", "\\(", "\\)", "\\[", "\\]", "\x00", "\u202e",
    "\u200f", "\u2066", "\u0663\u0664", "\uff12\uff15", "९९", "\U0001d7d8", "\ud800", "\u2028", "\n", "\r", "\t",
    "9^{9^{9^{9}}}", "2^2^2^2^2^2", "10^{10^{10}}", "100000!", "((((10!)!)!)!)", "\\binom{10^9}{5\\cdot10^8}",
    "\\frac{", "\\frac1", "\\sqrt{", "\\sqrt[", "1e999999", "1E+400", ".", ",", "1,234", "1,23,4", "-", "--", "+-+-",
    "\\pm", "\\mp", "\\infty", "\\cup", "\\in", "\\left(", "\\right]", "(", ")", "[", "]", "\\{", "\\}", "x=", "x<",
    "\\leq", "=", "==", "|", "||", "_", "__8", "52_8", "^", "^^", "\\begin{pmatrix}", "\\end{pmatrix}", "&", "\\\\",
    "\\text{", "\\text{and}", " and ", " or ", "\\%", "%", "\\$", "^\\circ", "\\sum_{k=1}^{10^9} k",
    "\\int_0^1 x^x dx", "\\lim_{x\\to0}", "\\overline{AB}", "0.\\overline{3}", "sqrt(", "pi", "e", "i", "east",
    "(B) ", "{,}", "\\!", "\\,", "\\frac{0}{0}", "\\frac{1}{0}", "0^0", "\\log_0 0", "\\ln 0", "\\tan\\frac{\\pi}{2}",
    "e^{e^{e^{e^e}}}", "\\", "\\\\\\", "{", "\ue000", "\ue001", "\ue002", "½", "√", "²", "ﷺ", "true", "None", "nan",
    "NaN", "inf", "\\gcd(10^{3000},7)", "\\max(", "\\sin", "\\arcsin 5", "\\lfloor 1.5", "12 34 56", "1 2/3", "'",
    '"', "`", "*",
)  # fmt: skip


def hostile_responses(count: int, seed: int = 0) -> Iterator[str]:
    """Yield `count` responses, the same for the same seed; a few are hundreds of kilobytes long."""
    source = random.Random(seed)
    for number in range(count):
        kind = number % 10
        if kind < 5:
            body = "".join(source.choices(FRAGMENTS, k=source.randrange(1, 30)))
            yield body if source.random() < 0.3 else "\\boxed{" + body + "}"
        elif kind < 7:
            body = "".join(source.choices([*"0123456789", *FRAGMENTS], k=source.randrange(1, 12)))
            yield "Answer: " + body
        elif kind == 7:
            yield "\\boxed{" + source.choice(FRAGMENTS) * source.randrange(1, 400) + "}"
        elif kind == 8:
            yield "\\boxed{" + source.choice("0123456789-") * source.randrange(1, 9_000) + "}"
        else:
            deep = source.randrange(1, 600)
            opener, closer = source.choice(
                [("{", "}"), ("(", ")"), ("\\sqrt{", "}"), ("2^{", "}"), ("\\frac{1}{", "}")]
            )
            yield "\\boxed{" + opener * deep + "7" + closer * deep + "}"


def megabytes() -> list[str]:
    """Return responses of a megabyte each, one for every fragment that a pattern could trip over."""
    size = 1_000_000
    whole = [fragment * (size // len(fragment)) for fragment in FRAGMENTS if len(fragment) <= 9]
    starts = ("Answer: ", "\\boxed{", "#### ", "<think>", "A: $")
    mixed = [
        start + body * (size // len(body)) for start in starts for body in (" ", "$ x ", "\\(", "1", "1,", ". A", "*")
    ]
    return whole + mixed


def hostile_answers() -> list[str]:
    """Return answers, without a box, of every shape that could cost a comparison time or memory."""
    count, roots = range(60), [rf"\sqrt{{{n}}}" for n in range(60)]
    return [
        "9^{9^{9^{9}}}", "2^{" * 35 + "2" + "}" * 35, "x^{x^{x^{x}}}", "i^i^i^i^i", "e^{10000}", r"\tan(10^{2000})",
        "3000!", "100000!", "1000!!", r"(\pi)!!!", r"\binom{3000}{1500}", r"\binom{10^9}{5\cdot10^8}",
        r"\binom{2999.5}{1400.3}", r"\gcd(3000!,2999!)", r"\log_{1.0000001}(2)", "1e999", "9" * 1000, "9" * 5000,
        "1/" + "9" * 990, "0." + "3" * 900 + "...", "0." + "12" * 18 + "...", "3\u0305" * 900, "1 000 " * 300,
        "(" * 900 + "1" + ")" * 900, r"\sqrt{" * 300 + "2" + "}" * 300, r"\sin" * 400 + "x", "-" * 1500, "'" * 1500,
        "|" * 1500, r"\frac" + "-" * 700, r"x\in " * 300 + "1", "[1," * 300, "f(" * 300 + "3" + ")" * 300 + "=9",
        "f(" + "(" * 30 + "a" * 60 + ")" * 29 + "=9", "P(" + "(a)" * 60 + "(=3", r"{1 \over " * 200 + "2" + "}" * 200,
        ",".join(map(str, range(600))), ",".join(roots), ",".join(root + "+0" for root in reversed(roots)),
        r"\{" + ",".join(roots) + r"\}", ",".join(rf"\binom{{x+{n}}}{{y}}" for n in count),
        ",".join(rf"\binom{{x+{n}}}{{y}}+0" for n in reversed(count)), ",".join(f"x_{n}=1" for n in count),
        r"\cup".join(f"({n},{n + 1})" for n in count), r"\cup".join(f"({a},{b})" for a, b in pairwise(roots)),
        "+".join(roots), "+".join(f"x_{n}" for n in range(250)), "*".join(f"({letter}+1)" for letter in "abcdfghjklmnopq"),
        r"\begin{pmatrix}" + r"\\".join(["&".join([r"\sqrt{2}"] * 8)] * 8) + r"\end{pmatrix}", "1:2:3:4", "a:" * 400,
        "7 " + "red " * 400 + "apples", "5 " + "cm/" * 300, r"\text{" * 300 + "a" + "}" * 300, r"\text{ cm}" * 150,
        "\u0303" * 1900, "\ue000" * 1000, "\U0001f600" * 1900, "１２３４" * 400, r"\sum_{k=1}^{10^9} k", "7" * 1_000_000,
    ]  # fmt: skip
