"""AIME 2026, HMMT February 2026 and BRUMO 2025 on made rows in the layout of MathArena's dataset cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas
import pytest

from doubles.files import write_json_lines
from luspo_cli.errors import UsageError
from luspo_cli.evaluation.benchmark import Benchmark, BenchmarkProblem
from luspo_cli.evaluation.benchmarks.matharena import AIME26, BRUMO25, HMMT_FEB26
from luspo_cli.evaluation.benchmarks.table import load_benchmark
from luspo_cli.evaluation.responses import Sample
from luspo_cli.evaluation.scorer import score_samples
from luspo_cli.grading.verdict import NeedsSymbolic, Verdict

FORMS = (r"\frac{3 \sqrt{2}}{7}", "42", r"2^{100} - 1", r"(1,2), (3,4)", r"\frac{\pi}{4}", r"1 - \frac{2}{e}")
"""Answers of the forms that such contests ask for; the problems are made up."""
TYPES = (["Algebra"], ["Geometry", "Number Theory"], ["Combinatorics"])


def rows_of(number: int, forms: tuple[Any, ...] = FORMS) -> list[dict[str, Any]]:
    return [
        {
            "problem_idx": n + 1,
            "problem": f"Compute what is asked for in problem ${n + 1}$.",
            "answer": forms[n % len(forms)],
            "problem_type": TYPES[n % 3],
        }
        for n in range(number)
    ]


def parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    pandas.DataFrame(rows).to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize(("benchmark", "number"), [(HMMT_FEB26, 33), (BRUMO25, 30)])
def test_the_published_layout_is_read_with_its_own_numbers_as_ids(
    tmp_path: Path, benchmark: Benchmark, number: int
) -> None:
    problems = benchmark.problems(parquet(tmp_path / "data", rows_of(number)))
    assert [problem.id for problem in problems] == [str(n) for n in range(1, number + 1)]
    # Numbers start at 1, so a row number is another problem's own id and leads nowhere.
    assert all(not problem.aliases for problem in problems)
    assert problems[0].gold == r"\frac{3 \sqrt{2}}{7}"
    assert problems[1].extra["types"] == ("Geometry", "Number Theory")


def test_aime_has_integer_columns_and_integer_golds(tmp_path: Path) -> None:
    rows = [
        {key: row[key] for key in ("problem_idx", "answer", "problem")} for row in rows_of(30, tuple(range(300, 330)))
    ]
    problems = AIME26.problems(parquet(tmp_path / "data", rows))
    assert (problems[29].id, problems[29].gold) == ("30", "329")
    with pytest.raises(UsageError, match="integers only"):
        AIME26.problems(write_json_lines(tmp_path / "rows.jsonl", rows_of(30)))


@pytest.mark.parametrize(("name", "number"), [("aime26", 29), ("hmmt-feb26", 30), ("brumo25", 33)])
def test_another_number_of_problems_is_refused(tmp_path: Path, name: str, number: int) -> None:
    file = write_json_lines(tmp_path / "rows.jsonl", rows_of(number, tuple(range(9))))
    with pytest.raises(UsageError, match=f"{number} rows, and {load_benchmark(name).name} has"):
        load_benchmark(name).problems(file)


@pytest.mark.parametrize("answer", [None, "", True])
def test_a_row_without_an_answer_is_refused(tmp_path: Path, answer: Any) -> None:
    rows = rows_of(33)
    rows[4]["answer"] = answer
    with pytest.raises(UsageError, match=r"Row 4 of .*no gold answer"):
        HMMT_FEB26.problems(write_json_lines(tmp_path / "rows.jsonl", rows))


@pytest.mark.parametrize(
    ("gold", "response", "right"),
    [
        (r"\frac{3 \sqrt{2}}{7}", r"so it is $\boxed{\dfrac{3\sqrt2}{7}}$", True),
        (r"\frac{3 \sqrt{2}}{7}", r"\boxed{\frac{6}{7\sqrt{2}}}", True),
        (r"\frac{3 \sqrt{2}}{7}", r"\boxed{0.6061}", False),
        (r"2^{100} - 1", r"\boxed{(2^{50}-1)(2^{50}+1)}", True),
        (r"2^{100} - 1", r"\boxed{2^{100}}", False),
        (r"(1,2), (3,4)", r"\boxed{(3, 4), (1, 2)}", True),
        (r"(1,2), (3,4)", r"\boxed{(1, 2)}", False),
        (r"1 - \frac{2}{e}", r"\boxed{\frac{e-2}{e}}", True),
        (r"\frac{\pi}{4}", r"\boxed{\arctan 1}", True),
        ("42", r"<think>\boxed{42}", False),
    ],
)
def test_answers_of_every_form_are_compared(gold: str, response: str, right: bool) -> None:
    verdict = HMMT_FEB26.grade(BenchmarkProblem("1", "", gold, gold), response)
    assert not isinstance(verdict, NeedsSymbolic)
    assert isinstance(verdict, Verdict)
    assert verdict.correct is right


def test_a_problem_of_two_types_counts_in_both(tmp_path: Path) -> None:
    problems = HMMT_FEB26.problems(write_json_lines(tmp_path / "rows.jsonl", rows_of(33)))
    right = [problem for problem in problems if "Geometry" in problem.extra["types"]]
    samples = [Sample(problem.id, rf"\boxed{{{problem.gold}}}") for problem in right]
    result = score_samples(HMMT_FEB26, problems, samples).to_json()
    table = result["metrics"]["by_type"]
    assert {name: (row["problems"], row["correct"]) for name, row in table.items()} == {
        "Algebra": (11, 0.0),
        "Combinatorics": (11, 0.0),
        "Geometry": (11, 11.0),
        "Number Theory": (11, 11.0),
    }
    assert result["metrics"]["accuracy"] == pytest.approx(11 / 33)


def test_the_prompt_of_matharena_is_the_instruction_an_empty_line_and_the_problem() -> None:
    problem = BenchmarkProblem("1", "Compute $1+1$.", "2", 2)
    (turn,) = BRUMO25.prompt(problem, "matharena")
    assert turn.content == "Put your final answer within \\boxed{}.\n\nCompute $1+1$."
    (turn,) = AIME26.prompt(problem, "matharena")
    assert turn.content.splitlines()[1:] == [
        "The answer is an integer between 0 and 999 inclusive.",
        "",
        "Compute $1+1$.",
    ]
