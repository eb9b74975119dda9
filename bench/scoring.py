"""How fast short mathematical answers are scored: luspo's scorer beside math-verify in a plain loop, and as verl calls it.

The responses are made here (right answers in many spellings, near misses, wrong ones, no answer), so the table needs no
data. math-verify runs on a slice, since it takes minutes for all; the ratio is of responses a second. verl's `math_verify`
scorer is math-verify's metric with a boxed gold, LaTeX targets for it, and LaTeX and plain targets for the response; it
is called here with the same arguments, without verl. Run it as

    python -m bench scoring [--responses 100000] [--loop 1000] [--json FILE]
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from results import Results, Values, print_table, with_ratio
from shared.child import reset_peak, resident_peak_gib

from luspo_cli.evaluation.benchmark import BenchmarkProblem
from luspo_cli.evaluation.benchmarks.table import load_benchmark
from luspo_cli.evaluation.responses import Sample
from luspo_cli.evaluation.scorer import score_samples

PROBLEMS = 500
Loop = Callable[[list[tuple[BenchmarkProblem, "Made"]], int], tuple[float, float]]
"""Problems and how many responses → seconds and the share that was called right."""


@dataclass(frozen=True, slots=True)
class Made:
    """A gold answer with equal spellings and answers that are different."""

    gold: str
    equal: tuple[str, ...]
    different: tuple[str, ...]


def integer(source: random.Random) -> Made:
    """A plain integer, as six in ten golds of MATH500 are."""
    n = source.randrange(-99, 20_000)
    return Made(str(n), (str(n), f"{n:,}", f"{n}.0", f"x={n}", rf"{n}^\circ", f"{2 * n}/2"), (str(n + 1), str(-n - 3)))


def fraction(source: random.Random) -> Made:
    """A fraction in lowest terms."""
    value = Fraction(source.randrange(1, 60), source.choice([7, 11, 13, 61, 64, 67]))
    a, b = value.numerator, value.denominator
    equal = (
        rf"\frac{{{a}}}{{{b}}}",
        f"{a}/{b}",
        rf"\dfrac{{{2 * a}}}{{{2 * b}}}",
        rf"\left(\frac{{{a}}}{{{b}}}\right)",
    )
    return Made(rf"\frac{{{a}}}{{{b}}}", equal, (rf"\frac{{{b}}}{{{a}}}", f"{a}/{b + 1}", f"{a / b:.4f}1"))


def radical(source: random.Random) -> Made:
    """A multiple of a square root."""
    k, r = source.randrange(2, 20), source.choice([2, 3, 5, 6, 7, 10, 11, 13])
    equal = (
        rf"{k}\sqrt{{{r}}}",
        rf"\sqrt{{{k * k * r}}}",
        f"{k}*sqrt({r})",
        rf"\sqrt{r} \cdot {k}" if r < 10 else f"{k}√{r}",
    )
    return Made(
        rf"{k}\sqrt{{{r}}}", equal, (rf"{k}\sqrt{{{r + 1}}}", rf"\sqrt{{{k * r}}}", f"{(k * k * r) ** 0.5:.3f}")
    )


def polynomial(source: random.Random) -> Made:
    """A product of two linear factors."""
    a, b = source.randrange(1, 12), source.randrange(1, 12)
    equal = (f"(x+{a})(x+{b})", f"x^2+{a + b}x+{a * b}", f"(x + {b})(x + {a})")
    return Made(f"(x+{a})(x+{b})", equal, (f"x^2+{a * b}x+{a + b}", f"(x+{a})(x-{b})"))


def interval(source: random.Random) -> Made:
    """A half-open interval."""
    a = source.randrange(-9, 9)
    b = a + source.randrange(1, 9)
    equal = (f"({a},{b}]", rf"\left( {a}, {b} \right]", rf"x \in ({a},{b}]", rf"{a} < x \le {b}")
    return Made(f"({a},{b}]", equal, (f"({a},{b})", f"[{a},{b}]", f"({b},{a}]"))


KINDS: tuple[tuple[Callable[[random.Random], Made], float], ...] = (
    (integer, 0.6),
    (fraction, 0.15),
    (radical, 0.1),
    (polynomial, 0.1),
    (interval, 0.05),
)


def make_problems(source: random.Random) -> list[tuple[BenchmarkProblem, Made]]:
    """Return made problems in MATH500's mixture of answers."""
    makers, weights = zip(*KINDS, strict=True)
    found = [maker(source) for maker in source.choices(makers, weights, k=PROBLEMS)]
    return [(BenchmarkProblem(str(n), "", made.gold, made.gold), made) for n, made in enumerate(found)]


def make_responses(
    problems: list[tuple[BenchmarkProblem, Made]], count: int, source: random.Random
) -> Iterator[Sample]:
    """Yield samples: 55 % right, 35 % wrong (half of them near misses), 10 % without an answer."""
    for number in range(count):
        problem, made = problems[number % len(problems)]
        kind = source.random()
        if kind < 0.55:
            answer = source.choice(made.equal)
        elif kind < 0.72:
            answer = source.choice(made.different)
        elif kind < 0.9:
            answer = str(source.randrange(10_000))
        else:
            yield Sample(problem.id, "I could not finish this one, so there is no answer here.")
            continue
        yield Sample(problem.id, rf"First we simplify, then we add. So the answer is \boxed{{{answer}}}.")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, default=100_000)
    parser.add_argument("--loop", type=int, default=1_000, help="responses for math-verify in a loop; 0: leave it out")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    problems = make_problems(random.Random(0))
    cases: dict[str, Callable[[], Values]] = {"luspo": lambda: score_all(problems, options.responses, options.workers)}
    if options.loop:
        cases["math-verify in a loop"] = lambda: loop_through(math_verify_loop, problems, options.loop)
        cases["as verl calls it"] = lambda: loop_through(verl_loop, problems, options.loop)
    kept = {name: getattr(options, name) for name in ("responses", "loop", "workers")}
    results = Results("grading", options.json, **kept)
    medians = results.interleaved(cases, options.repeats)
    shown = with_ratio(medians, "luspo", "per second", "luspo: times as many")
    print_table("scorer", shown, ("responses", "seconds", "per second", "right", "peak MiB", "luspo: times as many"))
    print(f"\nverdicts: {medians['luspo']['reasons']}; peak memory of the main process, {options.workers} workers")
    results.print_machine()


def score_all(problems: list[tuple[BenchmarkProblem, Made]], count: int, workers: int) -> Values:
    """All responses through luspo's scorer."""
    samples = make_responses(problems, count, random.Random(1))
    reset_peak()
    start = time.perf_counter()
    result = score_samples(load_benchmark("math500"), [problem for problem, _ in problems], samples, workers=workers)
    seconds = time.perf_counter() - start
    return {
        "responses": count,
        "seconds": seconds,
        "per second": count / seconds,
        "right": result.metrics["correct"] / count,
        "peak MiB": resident_peak_gib() * 1024,
        "reasons": ", ".join(f"{name} {number}" for name, number in result.metrics["reasons"].items()),
    }


def loop_through(loop: Loop, problems: list[tuple[BenchmarkProblem, Made]], count: int) -> Values:
    """A slice of them through another scorer, one by one."""
    seconds, share = loop(problems, count)
    return {"responses": count, "seconds": seconds, "per second": count / seconds, "right": share}


def math_verify_loop(problems: list[tuple[BenchmarkProblem, Made]], count: int) -> tuple[float, float]:
    """Return the seconds that math-verify takes for `count` responses one by one, and the share it calls right."""
    from math_verify import parse, verify

    golds = {problem.id: problem.gold for problem, _ in problems}
    parse(r"$\frac{1}{2}$"), verify(parse("$1$"), parse("$1$"))  # its imports are not to be timed
    samples = list(make_responses(problems, count, random.Random(1)))
    start = time.perf_counter()
    right = sum(verify(parse(f"${golds[sample.problem_id]}$"), parse(sample.response)) for sample in samples)
    return time.perf_counter() - start, right / count


def verl_loop(problems: list[tuple[BenchmarkProblem, Made]], count: int) -> tuple[float, float]:
    """Return the same for math-verify's metric with the arguments of verl's `math_verify` scorer."""
    import contextlib
    import logging

    from math_verify.errors import TimeoutException
    from math_verify.metric import math_metric
    from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of every response without an answer
    score = math_metric((LatexExtractionConfig(),), (ExprExtractionConfig(), LatexExtractionConfig()))
    golds = {problem.id: rf"\boxed{{{problem.gold}}}" for problem, _ in problems}
    samples = list(make_responses(problems, count, random.Random(1)))
    right = 0.0
    start = time.perf_counter()
    for sample in samples:
        with contextlib.suppress(TimeoutException, ValueError):  # the scorer returns 0 for what the metric cannot read
            right += score([golds[sample.problem_id]], [sample.response])[0]
    return time.perf_counter() - start, right / count


if __name__ == "__main__":
    main()
