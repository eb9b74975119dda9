"""Where the answers of the vision benchmarks were read, and who compared them."""

from __future__ import annotations

import pytest

from luspo_cli.evaluation.benchmark import Benchmark, BenchmarkProblem
from luspo_cli.evaluation.benchmarks.logicvista import LOGICVISTA
from luspo_cli.evaluation.benchmarks.mathvista import MATHVISTA
from luspo_cli.evaluation.benchmarks.wemath import WEMATH
from luspo_cli.grading.verdict import DecidedBy, ReadFrom, Verdict

_QUESTION = "Which is right? Select from A, B, C, and D. (A) one (B) two (C) three (D) four"
_LABEL = BenchmarkProblem("1", _QUESTION, "B", "B", ("x",), {})
_NUMBER = {"choices": None, "answer_type": "integer", "precision": None}
_COUNT = BenchmarkProblem("1", "How many cats are there?", "5", "5", ("x",), _NUMBER)
_OPTION = BenchmarkProblem("1", "Which?", "B", "B", ("x",), {"options": {"A": "one", "B": "two", "C": "three"}})


@pytest.mark.parametrize(
    ("benchmark", "problem", "boxed", "tagged", "phrase", "bare"),
    [
        (LOGICVISTA, _LABEL, r"\boxed{B}", "<answer>B</answer>", "The answer is B.", "It is clear that B fits."),
        (MATHVISTA, _COUNT, r"\boxed{5}", "<answer>5</answer>", "The answer is 5.", "There are 5 cats."),
        (WEMATH, _OPTION, r"\boxed{B}", "<answer>B</answer>", "The answer is B.", "So two."),
    ],
)
def test_the_place_of_an_answer_is_told(
    benchmark: Benchmark, problem: BenchmarkProblem, boxed: str, tagged: str, phrase: str, bare: str
) -> None:
    found = [benchmark.find(problem, response) for response in (boxed, tagged, phrase, bare)]
    places = [None if one is None else one.read_from for one in found]
    assert places == [ReadFrom.BOX, ReadFrom.OTHER_MARK, ReadFrom.PHRASE, ReadFrom.INFERRED]
    assert {one.text for one in found if one is not None} == {problem.gold}


@pytest.mark.parametrize(
    ("benchmark", "problem", "decider"),
    [
        (LOGICVISTA, _LABEL, DecidedBy.EXACT),
        (MATHVISTA, _COUNT, DecidedBy.COMPARISON),
        (WEMATH, _OPTION, DecidedBy.EXACT),
    ],
)
def test_who_compared_is_told(benchmark: Benchmark, problem: BenchmarkProblem, decider: DecidedBy) -> None:
    for mode, wanted in (("rule", decider), ("official", DecidedBy.OFFICIAL)):
        for response in (f"Answer: {problem.gold}", "Answer: 1" if problem is _COUNT else "Answer: A"):
            verdict = benchmark.grade(problem, response, mode=mode)  # type: ignore[arg-type]
            assert isinstance(verdict, Verdict)
            assert verdict.decided_by is wanted
