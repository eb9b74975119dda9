r"""Pairs of gold and answer, judged by hand: what must be equal, and what must not. The gold comes first."""

from __future__ import annotations

import pytest

from luspo_cli.grading.maths.decide import answer_key, decide_quickly
from luspo_cli.grading.maths.normalise import normalise
from luspo_cli.grading.verdict import Reason
from luspo_cli.grading.worker import compare


def decide(gold: str, answer: str) -> Reason:
    """As the grader decides, with the worker's part in this process."""
    return compare(gold, answer)[0]


EQUAL = [
    ("(1,2)", "(x, y) = (1, 2)"),
    ("(1,2)", r"\{(1,2)\}"),
    (r"\frac13", r"\frac{1}{3} \approx 0.333"),
    ("6-5i", r"6-5\mathrm{i}"),
    ("5", r"\text{Answer: } 5"),
    ("5", "The final answer is: 5"),
    ("20^\\circ", r"20^{\circ}\text{C}"),
    ("(1,2,3)", r"\vec{v} = \langle 1,2,3\rangle"),
    ("2", r"2\,\mathrm{m}"),
    (r"\pm 5", "5, -5"),
    ("-5,5", r"\pm5"),
    ("12", r"12 \text{ cm}^{2}"),
    (r"\frac{1}{2}", "0.5"),
    (r"\frac{1}{2}", "1/2"),
    (r"\frac12", ".5"),
    (r"\frac12", r"\dfrac{1}{2}"),
    ("9/5", r"1\frac{4}{5}"),
    (r"1\frac{4}{5}", "9/5"),
    (r"1\frac{4}{5}", "1 4/5"),
    ("3,5,7", "7, 3, 5"),
    ("1,-2", r"x=1 \text{ or } x=-2"),
    ("1,-2", "-2 and 1"),
    ("1,-2", r"\{1,-2\}"),
    ("1,-2", "x = 1, -2"),
    ("1,-2", "x=1,x=-2"),
    ("(3,4]", "(3, 4]"),
    (r"x \in [-2,7]", "[-2,7]"),
    (r"x \in [-2,7]", r"-2 \le x \le 7"),
    (r"(-\infty,2)\cup(3,\infty)", r"(3,\infty)\cup(-\infty,2)"),
    (r"(-\infty,2)\cup(3,\infty)", r"x<2 \text{ or } x>3"),
    (r"(2,\infty)", "x>2"),
    (r"(2,\infty)", r"(2,+\infty)"),
    (r"(2,\infty)", "(2, inf)"),
    (r"(-\infty,0]", r"x \le 0"),
    ("y = 2x+3", "2x - y + 3 = 0"),
    ("y = 2x+3", "2x+3"),
    ("y=-2x", "-2x"),
    ("5x-7y+11z+4=0", "-5x+7y-11z-4=0"),
    ("5x-7y+11z+4=0", "10x-14y+22z=-8"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"),
    (r"3 \pm 2\sqrt{2}", "3+2sqrt(2),3-2sqrt(2)"),
    (r"\{1\pm\sqrt{5},-2\}", r"-2,1-\sqrt5,1+\sqrt5"),
    (r"1 \pm \sqrt{19}", r"x = 1 \pm \sqrt{19}"),
    (r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}", r"\begin{bmatrix}-1&0\\0&-1\end{bmatrix}"),
    (
        r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}",
        r"\begin{pmatrix} -\frac13 \\[2pt] \frac23 \\ \frac53 \end{pmatrix}",
    ),
    (r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}", "[[-1,0],[0,-1]]"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\left(\begin{array}{c} 1 \\ 2 \end{array}\right)"),
    (r"\text{(C)}", "C"),
    (r"\text{(C)}", "(C)"),
    (r"\text{(C)}", r"\textbf{(C)}"),
    (r"\text{(C)}", "(C) Plane"),
    ("27", r"\textbf{(B) } 27"),
    (r"\text{even}", "Even"),
    (r"\text{Evelyn}", "Evelyn."),
    (r"\text{east}", r"\text{east}"),
    ("52_8", "52_{8}"),
    ("52_8", "52"),
    ("52_8", r"52_{\text{eight}}"),
    ("4210_{5}", "4210_5"),
    (r"\sqrt{13}", "sqrt(13)"),
    (r"7\pi", "7pi"),
    (r"7\pi", "7*pi"),
    (r"7\pi", "7π"),
    (r"3\sqrt{13}", "3√13"),
    (r"\frac{20000}{\pi}", "20000/pi"),
    (r"\left(3,\frac{\pi}{2}\right)", "(3,pi/2)"),
    (r"10,\!080", "10080"),
    (r"10,\!080", "10,080"),
    (r"11,\! 111,\! 111,\! 100", "11111111100"),
    ("58,500", "58500"),
    (r"\$32,\!348", "32348"),
    (r"\$18.90", "18.9"),
    (r"\$36", "36 dollars"),
    (r"5.4 \text{ cents}", "5.4"),
    (r"864 \mbox{ inches}^2", r"864 \text{ square inches}"),
    (r"864 \mbox{ inches}^2", "864 in^2"),
    (r"15\mbox{ cm}^2", r"15 \text{ cm}^2"),
    (r"15\mbox{ cm}^2", "15"),
    (r"\frac{270}7\text{ degrees}", r"\frac{270}{7}^\circ"),
    (r"90^\circ", "90 degrees"),
    ("x=5", "5"),
    ("5", "x=5"),
    ("5", r"x = \frac{10}{2} = 5"),
    ("5", "2+3=5"),
    ("5", "5=x"),
    ("6-5i", "-5i+6"),
    (r"\frac{3}{4}i", "0.75i"),
    ("(a+5)(b+2)", "(b+2)(a+5)"),
    ("(a+5)(b+2)", "ab+2a+5b+10"),
    ("2k+2", "2(k+1)"),
    (r"\frac{11+9a}{20}", "(11+9a)/20"),
    (r"\frac{11+9a}{20}", r"\frac{11}{20}+\frac{9a}{20}"),
    (r"\cot x", r"\frac{\cos x}{\sin x}"),
    (r"\cot x", r"1/\tan x"),
    (r"\sin^2 x", r"1-\cos^2(x)"),
    (r"\sqrt{50}", r"5\sqrt{2}"),
    ("2^{10}", "1024"),
    (r"\log_2 8", "3"),
    ("10!", "3628800"),
    (r"\binom{10}{3}", "120"),
    (r"e^{i\pi}", "-1"),
    (r"\frac{\sqrt3}{3}", r"\frac{1}{\sqrt{3}}"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}"),
    (r"\sqrt[3]{-8}", "-2"),
    ("|x-1|", "|1-x|"),
    (r"\ln(ab)", r"\ln a+\ln b"),
    (r"6.72 \times 10^{-5}", ".0000672"),
    (r"50\%", "50"),
    (r"2 \sqrt{5}", r"\sqrt{20}"),
    ("100, 200, 300", "300, 100, 200"),
    ("5r^5", "5 r^{5}"),
    ("x^8 + x^7 + 1", "1+x^7+x^8"),
    (r"0.\overline{3}", "1/3"),
    (r"\{5\}", "5"),
    ("(-2,1)", r"\left(-2,1\right)"),
    (r"\theta", r"\theta"),
    (r"2\theta", "2theta"),
    (r"\sum_{k=1}^{3} k", "6"),
    (r"\frac{n(n+1)}{2}", r"\sum_{k=1}^{n} k"),
    (r"\int_0^1 x dx", r"\frac12"),
    ("n(n-1)", "n^2-n"),
    ("(n!)^2", "n! n!"),
    ("f(x)=2x+1", "2x+1"),
    ("f(x) = 2x+1", "f(x)=1+2x"),
    (r"\text{Monday}", "monday"),
    (r"\frac{x}{2}", "x/2"),
    ("1/2x", "x/2"),
    (r"-\frac{\pi}{6}", "-pi/6"),
    (r"-\frac{\pi}{6}", r"\frac{-\pi}{6}"),
    (r"\frac{1}{3},\frac{2}{3}", "2/3,1/3"),
    (r"2\frac{3}{4}\pi", r"\frac{11\pi}{4}"),
    (r"\frac{3}{2}\sqrt{3}", r"3\sqrt{3}/2"),
    (r"\frac{1}{2} \cdot \pi", r"\pi/2"),
    (r"\lfloor 2.5 \rfloor", "2"),
    (r"\min(2,3)", "2"),
    (r"\operatorname{lcm}(4,6)", "12"),
    ("x_1+x_2", "x_2+x_1"),
    ("x_{12}", "x_{12}"),
    ("(1,2),(3,4)", "(3,4),(1,2)"),
    ("(1,2)", r"(\frac{2}{2},2)"),
    ("p - q", "-q+p"),
    (r"\emptyset", r"\varnothing"),
    (r"\mathbb{R}", r"\R"),
    (r"120^\circ", "120"),
    (r"\text{Area} = 5", "5"),
    ("5", r"\text{Area} = 5"),
    ("5", "A=5"),
    ("3R^2", "3 R^2"),
    ("6r^2-4r-24", "2(3r^2-2r-12)"),
    (r"\sqrt{-4}", "2i"),
    (r"18+2\pi", r"2(9+\pi)"),
    ("x+2", "y = x+2"),
    ("(3,4]", r"3<x\leq 4"),
    ("[1,2,3]", "(1,2,3)"),
    (r"\frac{9}{256}", "9/256"),
]

DIFFERENT = [
    ("6-5", r"6-5\mathrm{i}"),
    ("(1,2)", "(x, y) = (2, 1)"),
    (r"\frac13", r"\approx 0.333"),
    ("0.33", r"\frac13 \approx 0.33"),
    ("5", r"\pm 5"),
    ("{1,2}", "(1,2)"),
    ("25", "2500"),
    ("25", "0.25"),
    ("104", "104.005"),
    ("(3,4]", "(3,4)"),
    ("[3,4]", "(3,4)"),
    ("3,5,7", "3,5"),
    ("3,5,7", "3"),
    ("3,5,7", "3,5,7,9"),
    ("3,5,7", "3,5,5"),
    ("1,-2", "1,2"),
    ("1,-2", "1"),
    ("52_8", "528"),
    ("52_8", "52_9"),
    ("52_8", "42"),
    ("52", "52_8"),
    (r"1\frac{4}{5}", "14/5"),
    (r"137 \frac{1}{2}", "1371/2"),
    (r"\frac{11+9a}{20}", "11+9a/20"),
    (r"\text{even}", "odd"),
    (r"\text{east}", "seat"),
    (r"\text{east}", r"\text{west}"),
    (r"\text{(C)}", "B"),
    (r"\text{(C)}", "(B) Plane"),
    (r"\sqrt{2}", "1.4142"),
    (r"\sqrt{2}", "1.41421356237309504880168872420969807856967187537694"),
    (r"\pi", "3.14"),
    (r"\pi", "22/7"),
    (r"\frac13", "0.333"),
    (r"\frac13", "0.3333333333333333333333"),
    ("x", r"\sqrt{x^2}"),
    ("y=2x+3", "y=2x+4"),
    ("y=2x+3", "x=2y+3"),
    ("y=-2x", "y=2x"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "1,2"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
    (r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}", r"\begin{pmatrix} -1 & 0 \\ 0 & 1 \end{pmatrix}"),
    ("58,500", "500,58"),
    ("58,500", "58"),
    ("58,500", "58.5"),
    (r"5.4 \text{ cents}", r"5.4 \text{ dollars}"),
    (r"90^\circ", r"90 \text{ radians}"),
    ("x=5", "-5"),
    ("x=5", "y=5"),
    ("5", "x=5=6"),
    (r"(-\infty,2)\cup(3,\infty)", r"(-\infty,2)"),
    (r"(-\infty,2)\cup(3,\infty)", r"(-\infty,2]\cup(3,\infty)"),
    (r"(-\infty,2)\cup(3,\infty)", r"(-\infty,2),(3,\infty)"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}"),
    ("10^{100}", "10^{100}+1"),
    ("2^{10000}", "2^{10000}+1"),
    (r"\infty", r"-\infty"),
    (r"\infty", r"\infty+1"),
    ("0", "e^{-1000}"),
    ("0", "10^{-200}"),
    ("6-5i", "6+5i"),
    ("x^2", "x^{2.0001}"),
    ("x", "y"),
    ("R^2", "r^2"),
    ("5", "5x"),
    ("5", r"\text{five}"),
    ("", "5"),
    ("5", ""),
    (r"\text{Evelyn}", "Evelyn or Navin"),
    ("9^{9^{9^{9^9}}}", "9^{9^{9^{9^8}}}"),
    ("100000!", "1"),
    ("1", r"\frac{1}{0}"),
    ("0", r"\frac{0}{0}"),
    ("3", "3!"),
    (r"\frac{1}{2}", r"\frac{1}{2}, 3"),
    ("2", r"\{2,3\}"),
    ("12", "1 2"),
    ("abc", "abd"),
    ("x>2", r"x\geq 2"),
    (r"(2,\infty)", "x<2"),
    ("x^2+y^2=1", "x^2+y^2=2"),
    ("5", "5, 5"),
    ("-5", "5"),
    ("1/2", "2"),
    ("6xyz", "6"),
    ("5m", "5"),
    (r"\text{no}", "no solution"),
    ("7", "7 or 8"),
    ("42", "4_2"),
    ("1,234", "1,2,3,4"),
    ("3", "|x|"),
    ("x_1", "x_2"),
    ("x_{12}", "x_1 2"),
    (r"\sin x", r"\sin"),
    ("0.5", "5"),
    (r"\sqrt{3}", r"\sqrt{3}i"),
    (r"\frac{3}{56}", r"\frac{3}{5}6"),
]


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_equal(gold: str, answer: str) -> None:
    assert decide(gold, answer) is not Reason.DIFFERENT


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_different(gold: str, answer: str) -> None:
    assert decide(gold, answer) is Reason.DIFFERENT


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_presentation_does_not_matter(gold: str, answer: str) -> None:
    spaced = answer.replace("+", " + ").replace("=", r"\;=\,")
    assert decide(gold, rf"$\displaystyle {spaced} $.") is not Reason.DIFFERENT
    assert decide(gold, rf"\boxed{{{answer}}}") is not Reason.DIFFERENT
    assert decide(gold, f"  {answer}\n") is not Reason.DIFFERENT


@pytest.mark.parametrize("text", sorted({text for pair in EQUAL + DIFFERENT for text in pair}))
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise(text).text
    assert normalise(once).text == once


@pytest.mark.parametrize("text", sorted({text for pair in EQUAL for text in pair}))
def test_every_answer_equals_itself(text: str) -> None:
    assert decide_quickly(text, text) is Reason.EXACT


def test_reasons_tell_how_the_verdict_was_reached() -> None:
    assert decide("5", "5") is Reason.EXACT
    assert decide("0.5", r"\frac12") is Reason.NUMERIC
    assert decide("(1,2]", "(1, 4/2]") is Reason.STRUCTURAL
    assert decide(r"\sqrt{8}", r"2\sqrt{2}") is Reason.SYMBOLIC


def test_the_quick_decision_never_contradicts_the_full_one() -> None:
    for gold, answer in EQUAL + DIFFERENT:
        quick = decide_quickly(gold, answer)
        assert quick is None or quick is decide(gold, answer)


def test_answer_keys_join_spellings_and_part_values() -> None:
    assert len({answer_key(text) for text in ("0.5", r"\frac{1}{2}", "1/2", r"\dfrac12", ".50")}) == 1
    assert len({answer_key(text) for text in ("Even", r"\text{even}", "even.")}) == 1
    assert answer_key("(1,2)") != answer_key("(1,2]")
    assert answer_key("25") != answer_key("-25")
