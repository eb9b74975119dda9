"""AIME and AMC: cases on which published scorers disagree, every published layout, and the two sets called AMC23."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from doubles.files import write_json_lines
from luspo_cli.errors import UsageError
from luspo_cli.evaluation.benchmark import BenchmarkProblem
from luspo_cli.evaluation.benchmarks.aime24 import AIME24
from luspo_cli.evaluation.benchmarks.aime25 import AIME25
from luspo_cli.evaluation.benchmarks.amc23 import AMC23, AMC23_83
from luspo_cli.grading.verdict import Reason, Verdict

Folder = Callable[[str], Path]


def graded(gold: str, response: str, variant: str | None = None) -> Verdict:
    problem = BenchmarkProblem("0", "", AIME24.normalise_gold(gold, "a test"), gold)
    verdict = AIME24.grade(problem, response, variant=variant)
    assert isinstance(verdict, Verdict)
    return verdict


@pytest.mark.parametrize(
    ("gold", "response"),
    [
        ("25", "Answer: 025"),
        ("25", r"\boxed{025}"),
        ("025", r"\boxed{25}"),
        ("025", "Answer: 25"),
        ("25", "Answer: 25."),
        ("25", "The answer is 25."),
        ("25", "**Answer:** 25"),
        ("25", "**Answer**: 25"),
        ("25", "ANSWER : 25"),
        ("25", "Answer: 25.0"),
        ("25", r"Answer: $\boxed{25}$"),
        ("25", r"so we get \boxed{25}"),
        (r"336^\circ", r"\boxed{336}"),
        ("336", r"\boxed{336^\circ}"),
        ("27.0", r"\boxed{27}"),
        ("27", r"\boxed{\textbf{(B) } 27}"),
        ("25", "Answer: 25<|im_end|>"),
        ("25", r"\boxed{3} is not it, so \boxed{25}"),
        ("25", "<think>\\boxed{7}</think> \\boxed{25}"),
        ("25", r"\boxed 25 and no more"),
        ("25", r"\fbox{25}"),
        ("25", r"\boxed {25}"),
        ("25", r"\boxed{x = 25}"),
        ("25", r"\boxed{m + n = 16 + 9 = 25}"),
        ("25", r"\boxed{25 \text{ minutes}}"),
        ("1200", r"\boxed{1{,}200}"),
        ("1200", "Answer: 1,200"),
        ("-4", r"\boxed{-4}"),
        ("-4", r"\boxed{−4}"),
        ("25", "Final answer:\n\n25"),
    ],
)
def test_right(gold: str, response: str) -> None:
    assert graded(gold, response).correct


@pytest.mark.parametrize(
    ("gold", "response", "reason"),
    [
        ("25", "Answer: 2500", Reason.DIFFERENT),
        ("25", r"\boxed{0.25}", Reason.DIFFERENT),
        ("104", r"\boxed{104.005}", Reason.DIFFERENT),
        ("25", "Answer: 25\nAnswer: 26", Reason.DIFFERENT),
        ("25", r"\boxed{25} or \boxed{3}", Reason.DIFFERENT),
        ("25", r"\boxed{24 \text{ or } 25}", Reason.DIFFERENT),
        ("25", r"\boxed{25", Reason.NO_ANSWER),
        ("25", r"\boxed{25} \boxed{}", Reason.NO_ANSWER),
        ("25", r"\boxed{ANSWER}", Reason.NO_ANSWER),
        ("25", "<think> so it is \\boxed{25}", Reason.NO_ANSWER),
        ("25", "25", Reason.NO_ANSWER),
        ("25", "", Reason.NO_ANSWER),
        ("25", r"\boxed{٢٥}", Reason.DIFFERENT),
        ("4", r"\boxed{-4}", Reason.DIFFERENT),
        ("25", r"\boxed{25x}", Reason.DIFFERENT),
        ("25", r"\boxed{52_{8}}", Reason.DIFFERENT),
    ],
)
def test_wrong(gold: str, response: str, reason: Reason) -> None:
    verdict = graded(gold, response)
    assert not verdict.correct
    assert verdict.reason is reason


def test_extraction_follows_the_prompt() -> None:
    both = "Answer: 25\n\nThe box of step one was \\boxed{26}."
    assert graded("25", both, variant="dapo").correct
    assert graded("26", both, variant="qwen-boxed").correct
    assert graded("26", both).correct


def test_the_last_number_is_no_answer() -> None:
    problem = BenchmarkProblem("0", "", "25", "25")
    assert AIME24.extract(problem, "So there are 25 of them.") is None


def test_every_copy_of_aime24_has_the_same_golds(data_folder: Folder) -> None:
    lines = AIME24.problems(data_folder("aime24"))
    parquet = AIME24.problems(data_folder("aime24") / "aime24.parquet")
    assert len(lines) == len(parquet) == 30
    assert sorted(p.gold for p in lines) == sorted(p.gold for p in parquet)
    assert [p.id for p in lines] == [str(n) for n in range(60, 90)]
    assert lines[7].gold == "25"
    assert lines[7].raw_gold == "025"
    assert not parquet[0].question.endswith(r"\boxed{}.")
    assert sum(p.gold == "104" for p in lines) == 2


def test_aime25_has_30_integer_golds(data_folder: Folder) -> None:
    problems = AIME25.problems(data_folder("aime25"))
    assert len(problems) == 30
    assert (problems[19].gold, problems[19].raw_gold) == ("336", r"336^\circ")


def test_the_40_of_amc23_are_contained_in_the_83(data_folder: Folder) -> None:
    small, large = AMC23.problems(data_folder("amc23")), AMC23_83.problems(data_folder("amc23"))
    assert (len(small), len(large)) == (40, 83)
    assert {"-1"} == {p.gold for p in small if p.gold.startswith("-")}
    assert {p.gold for p in small} <= {p.gold for p in large}
    assert any(p.gold == "0" for p in large)
    # The ids of the 40 have gaps, so row numbers would be ambiguous and are not taken for ids.
    assert all(not p.aliases for p in small)
    with pytest.raises(UsageError, match="amc23-83"):
        AMC23.problems(data_folder("amc23") / "amc23.parquet")


def _made_rows(repeats: int) -> list[dict[str, Any]]:
    prompt = AIME24.prompts["dapo"]
    return [
        {
            "data_source": "math_dapo",
            "prompt": [{"role": "user", "content": prompt.render(f"What is {n % 30} + 0?")[0].content}],
            "reward_model": {"style": "rule-lighteval/MATH_v2", "ground_truth": str(n % 30)},
            "extra_info": {"index": n},
        }
        for n in range(30 * repeats)
    ]


def test_the_960_row_layout_is_30_problems_and_its_row_ids_lead_to_them(tmp_path: Path) -> None:
    import pandas

    file = tmp_path / "aime-2024.parquet"
    pandas.DataFrame(_made_rows(32)).to_parquet(file)
    problems = AIME24.problems(file)
    assert len(problems) == 30
    assert problems[3].question == "What is 3 + 0?"
    assert problems[3].id == "3"
    assert problems[3].aliases == tuple(str(3 + 30 * n) for n in range(1, 32))


def test_the_960_row_layout_without_ids_is_numbered_by_problem(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "extra_info"} for row in _made_rows(32)]
    problems = AIME24.problems(write_json_lines(tmp_path / "aime.jsonl", rows))
    assert [problem.id for problem in problems] == [str(n) for n in range(30)]


def test_unevenly_repeated_problems_are_refused(tmp_path: Path) -> None:
    file = write_json_lines(tmp_path / "aime.jsonl", _made_rows(2)[:-1])
    with pytest.raises(UsageError, match="59 rows with 30 different problems"):
        AIME24.problems(file)


@pytest.mark.parametrize(
    ("question", "answer"), [("Problem", "Answer"), ("question", "ground_truth"), ("PROBLEM", "answer")]
)
def test_columns_are_found_in_any_case(tmp_path: Path, question: str, answer: str) -> None:
    rows = [{question: f"What is {n}?", answer: n, "Solution": "wrong: 1000"} for n in range(30)]
    for name in ("rows.jsonl", "rows.json"):
        problems = AIME24.problems(write_json_lines(tmp_path / name, rows))
        assert [problem.gold for problem in problems] == [str(n) for n in range(30)]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"problem": "p", "answer": "1"}] * 1, "1 rows, and AIME24 has 30"),
        ([{"problem": f"p{n}", "answer": "x+1"} for n in range(30)], "integers only"),
        ([{"problem": f"p{n}"} for n in range(30)], "no gold answer"),
        ([{"answer": "5"}] * 30, "no question"),
        ([{"problem": f"p{n}", "answer": "1", "id": 7} for n in range(30)], "one id to two problems"),
    ],
)
def test_data_that_is_not_the_benchmark_stops_with_a_sentence(
    tmp_path: Path, rows: list[dict[str, Any]], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence.replace("+", r"\+")):
        AIME24.problems(write_json_lines(tmp_path / "test.jsonl", rows))


def test_a_folder_without_the_file_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"test\.jsonl"):
        AIME24.problems(tmp_path)
    with pytest.raises(UsageError, match="HuggingFaceH4/aime_2024"):
        AIME24.problems(tmp_path / "nowhere")


def test_prompts_hold_the_question_and_keep_latex_braces() -> None:
    problem = BenchmarkProblem("0", r"Find {x} in \frac{1}{2}.", "1", "1")
    system, user = AIME24.prompt(problem)
    assert (system.role, user.content) == ("system", problem.question)
    assert system.content.endswith(r"\boxed{}.")
    (dapo,) = AIME24.prompt(problem, "dapo")
    assert dapo.content.endswith('\n\nRemember to put your answer on its own line after "Answer:".')
    assert f"\n\n{problem.question}\n\n" in dapo.content
    with pytest.raises(UsageError, match="did you mean 'dapo'"):
        AIME24.prompt(problem, "dapoo")
