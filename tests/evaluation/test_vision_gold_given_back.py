"""Problems of the three benchmarks: their gold, written in the usual ways, is right, and another option is wrong.

Twenty of each kind show it of a reader; all of them are graded by `make test-slow`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from luspo_cli.evaluation.benchmark import Benchmark, BenchmarkProblem
from luspo_cli.evaluation.benchmarks.table import SUITES, load_benchmark
from luspo_cli.grading.verdict import Verdict

FORMS = [
    "\\boxed{%s}",
    "<think>maybe A or 7</think>\n$\\boxed{\\text{%s}}$",
    "Let us see: 3 + 4 = 7, so A, B.\n\n**Final answer:** \\boxed{%s}",
    "The answer is %s.",
    "Answer: %s",
    "<answer>%s</answer>",
]


def _correct(benchmark: Benchmark, problem: BenchmarkProblem, response: str) -> bool:
    verdict = benchmark.grade(problem, response)
    assert isinstance(verdict, Verdict)
    return verdict.correct


def _short_golds(problem: BenchmarkProblem) -> Iterator[str]:
    choices = problem.extra.get("choices")
    if choices:
        letter = chr(ord("A") + choices.index(problem.raw_gold))
        yield from (letter, f"({letter}) {problem.raw_gold}")
    elif problem.gold:
        yield problem.gold


@pytest.fixture(params=["some", pytest.param("all", marks=pytest.mark.slow)])
def chosen(request: pytest.FixtureRequest) -> Callable[[list[BenchmarkProblem]], list[BenchmarkProblem]]:
    """Return a function that picks 20 problems of each kind (choices or none, form of the answer), evenly spaced, or all."""

    def pick(problems: list[BenchmarkProblem]) -> list[BenchmarkProblem]:
        if request.param == "all":
            return problems
        kinds: dict[Any, list[BenchmarkProblem]] = {}
        for problem in problems:
            extra = problem.extra
            kind = (len(extra.get("choices") or ()), extra.get("answer_type"), extra.get("precision"))
            kinds.setdefault(kind, []).append(problem)
        return [problem for own in kinds.values() for problem in own[:: max(1, len(own) // 20)][:20]]

    return pick


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SUITES["vision"])
def test_gold_is_right(name: str, form: str, data_folder: Callable[[str], Path], chosen: Any) -> None:
    benchmark = load_benchmark(name)
    problems = chosen(benchmark.problems(data_folder(name)))
    wrong = [
        (problem.id, gold)
        for problem in problems
        for gold in _short_golds(problem)
        if not _correct(benchmark, problem, form % gold)
    ]
    assert wrong == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SUITES["vision"])
def test_another_answer_is_wrong(name: str, form: str, data_folder: Callable[[str], Path], chosen: Any) -> None:
    benchmark = load_benchmark(name)
    right = []
    for problem in chosen(benchmark.problems(data_folder(name))):
        choices = problem.extra.get("choices")
        gold = chr(ord("A") + choices.index(problem.raw_gold)) if choices else problem.gold
        other = next(letter for letter in "AB" if letter != gold)
        duplicate = choices and choices[ord(other) - ord("A")] == problem.raw_gold
        if not duplicate and _correct(benchmark, problem, form % other):
            right.append((problem.id, other))
    assert right == []
