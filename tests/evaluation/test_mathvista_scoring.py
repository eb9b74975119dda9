"""MathVista against its own prompts, verdicts and published tables."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from doubles.files import json_lines, write_json_lines
from luspo_cli.errors import UsageError
from luspo_cli.evaluation.benchmark import BenchmarkProblem
from luspo_cli.evaluation.benchmarks.mathvista import MATHVISTA, TABLES, MathVista, official_query
from luspo_cli.evaluation.benchmarks.mathvista_official import IntegerRule, nearest_choice, normalize_extraction
from luspo_cli.evaluation.evaluate import score_responses
from luspo_cli.grading.verdict import Reason, Verdict

SYSTEMS = [
    "bard",
    "chatgpt_2shot_code",
    "chatgpt_2shot_code_use_ocr",
    "chatgpt_2shot_solution",
    "claude",
    "frequent_guess",
    "gpt4_2shot_code",
    "gpt4_2shot_solution_use_ocr",
    "idefics_9b_instruct",
    "llava_llama_2_13b",
    "llavar",
]


@pytest.fixture(scope="module")
def folder(data_folder: Callable[[str], Path]) -> Path:
    return data_folder("mathvista")


@pytest.fixture(scope="module")
def problems(folder: Path) -> list[BenchmarkProblem]:
    return MATHVISTA.problems(folder)


def _problem(**extra: Any) -> BenchmarkProblem:
    answer = extra.pop("answer")
    base = {"choices": None, "answer_type": "text", "precision": None, "unit": None, "question_type": "free_form"}
    base |= dict.fromkeys(TABLES[2:-1], "x") | {"skills": ()}
    return BenchmarkProblem("1", extra.pop("question", "Which?"), answer, answer, ("images/1.jpg",), base | extra)


def _verdict(benchmark: MathVista, problem: BenchmarkProblem, response: str, **how: Any) -> Verdict:
    verdict = benchmark.grade(problem, response, **how)
    assert isinstance(verdict, Verdict)
    return verdict


def test_official_prompt_of_every_problem(folder: Path, problems: list[BenchmarkProblem]) -> None:
    published = json.loads((folder / "query_testmini.json").read_text(encoding="utf-8"))
    built = {problem.id: official_query(problem) for problem in problems}
    assert built.keys() == published.keys()
    assert [key for key in built if built[key].strip() != published[key].strip()] == []
    assert sum(built[key] == published[key] for key in built) == 995


def test_prompt_has_one_image_mark_and_the_box_only_where_asked(problems: list[BenchmarkProblem]) -> None:
    for variant, boxed in (("official", False), ("boxed", True)):
        contents = [MATHVISTA.prompt(problem, variant)[0].content for problem in problems]
        assert {content.count("<image>") for content in contents} == {1}
        assert {"\\boxed{}" in content for content in contents} == {boxed}


@pytest.mark.parametrize("system", SYSTEMS)
def test_verdicts_and_tables_as_published(folder: Path, problems: list[BenchmarkProblem], system: str) -> None:
    rows = {row["pid"]: row for row in json_lines(folder / "published" / f"{system}.jsonl")}
    scores = json.loads((folder / "published" / "scores.json").read_text(encoding="utf-8"))[system]
    then = MathVista(IntegerRule(scores["integer_rule"]))
    now, historical, as_published = {}, {}, []
    for problem in problems:
        row = rows[problem.id]
        extra = problem.extra
        arguments = (row["extraction"], extra["choices"], extra["answer_type"], extra["precision"])
        assert normalize_extraction(*arguments) == row["prediction_current"]
        assert normalize_extraction(*arguments, integer_rule=then.integer_rule) == row["prediction"]
        now[problem.id] = [_verdict(MATHVISTA, problem, "", mode="official", extraction=row["extraction"])]
        historical[problem.id] = [_verdict(then, problem, "", mode="official", extraction=row["extraction"])]
        assert now[problem.id][0].correct == row["true_false_current"]
        assert historical[problem.id][0].correct == row["true_false"]
        embedded = {**extra, "grade": row["grade"], "skills": tuple(row["skills"])}
        as_published.append(dataclasses.replace(problem, extra=embedded))
    published, current = scores["published"], scores["current_rule_with_dataset_metadata"]
    metrics = then.aggregate(as_published, historical)
    assert f"{100 * metrics['average']['accuracy']:.1f}" == published["average"]["accuracy"]
    assert metrics["average"]["correct"] == published["average"]["correct"]
    for name in TABLES:
        built = {
            value: {"accuracy": f"{100 * cell['accuracy']:.2f}", "correct": cell["correct"], "total": cell["total"]}
            for value, cell in metrics["tables"][name].items()
        }
        assert built == published[name], name
    metrics = MATHVISTA.aggregate(problems, now)
    for name in TABLES:
        counts = {value: {k: cell[k] for k in ("correct", "total")} for value, cell in metrics["tables"][name].items()}
        assert counts == current[name], name
    assert metrics["accuracy"] == current["average"]["correct"] / 1000


def test_the_nearest_choice_has_the_smallest_distance_of_the_textbook_recurrence() -> None:
    def textbook(left: str, right: str) -> int:
        row = list(range(len(right) + 1))
        for i, x in enumerate(left, 1):
            before, row[0] = row[0], i
            for j, y in enumerate(right, 1):
                before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
        return row[-1]

    assert textbook("kitten", "sitting") == 3
    generator = random.Random(0)
    for _ in range(300):
        text, *choices = ("".join(generator.choices("abc°", k=generator.randrange(60))) for _ in range(5))
        assert nearest_choice(text, choices) == min(choices, key=lambda choice: textbook(text, choice))


@pytest.mark.parametrize(
    ("extraction", "extra", "wanted"),
    [
        ("2.9", {"answer_type": "integer"}, "2"),
        ("-0.5", {"answer_type": "integer"}, "0"),
        ("1,234", {"answer_type": "integer"}, None),
        ("$5", {"answer_type": "integer"}, None),
        ("1/2", {"answer_type": "integer"}, None),
        ("inf", {"answer_type": "integer"}, None),
        ("-0.04", {"answer_type": "float", "precision": 1}, "-0.0"),
        ("[2014,2016]", {"answer_type": "list"}, "[2014,2016]"),
        ("b", {"choices": ("cat", "dog")}, "cat"),
        ("I say (b)", {"choices": ("cat", "dog")}, "dog"),
        ("", {"choices": ("cats", "dog")}, "dog"),
        ("I cannot see the image", {"choices": ("no", "the image")}, "the image"),
    ],
)
def test_official_rule_by_hand(extraction: str, extra: dict[str, Any], wanted: str | None) -> None:
    full = {"choices": None, "answer_type": "text", "precision": None} | extra
    assert normalize_extraction(extraction, full["choices"], full["answer_type"], full["precision"]) == wanted


def test_historical_integer_rule_refuses_a_decimal_point_and_empty_can_be_no_answer() -> None:
    assert normalize_extraction("5.0", None, "integer", None, integer_rule=IntegerRule.HISTORICAL) is None
    assert normalize_extraction("5.0", None, "integer", None) == "5"


@pytest.mark.parametrize(
    ("problem", "response", "right", "reason"),
    [
        (_problem(answer="18", choices=("9", "12", "18", "18")), "\\boxed{D}", True, Reason.EXACT),
        (_problem(answer="18", choices=("9", "12", "18", "18")), "\\boxed{C}", True, Reason.EXACT),
        (_problem(answer="(b)", choices=("(c)", "(a)", "(e)", "(d)", "(b)")), "The answer is (E).", True, Reason.EXACT),
        (_problem(answer="(b)", choices=("(c)", "(a)", "(e)", "(d)", "(b)")), "\\boxed{B}", False, Reason.DIFFERENT),
        (_problem(answer="Yes", choices=("Yes", "No")), "I cannot determine the answer.", False, Reason.NO_ANSWER),
        (_problem(answer="2", answer_type="integer"), "\\boxed{2.9}", False, Reason.DIFFERENT),
        (_problem(answer="1234", answer_type="integer"), "\\boxed{1,234}", True, Reason.NUMERIC),
        (_problem(answer="0.5", answer_type="float", precision=1), "\\boxed{\\frac{1}{2}}", True, Reason.NUMERIC),
        (_problem(answer="0.0", answer_type="float", precision=1), "The answer is -0.04", True, Reason.NUMERIC),
        (_problem(answer="1.2", answer_type="float", precision=1), "\\boxed{1.26}", False, Reason.DIFFERENT),
        (_problem(answer="0.33", answer_type="float", precision=2), "It is 0." + "3" * 90, True, Reason.NUMERIC),
        (_problem(answer="1", answer_type="integer"), "The answer is 0." + "9" * 90, False, Reason.DIFFERENT),
        (_problem(answer="[2014, 2016]", answer_type="list"), "so [2014,2016]", True, Reason.STRUCTURAL),
        (_problem(answer="5", answer_type="integer"), "<think>it is 5", False, Reason.NO_ANSWER),
        (_problem(answer="5", answer_type="integer"), "<think>4</think>The answer is 5.", True, Reason.NUMERIC),
    ],
)
def test_rule_mode_by_hand(problem: BenchmarkProblem, response: str, right: bool, reason: Reason) -> None:
    verdict = _verdict(MATHVISTA, problem, response)
    assert (verdict.correct, verdict.reason) == (right, reason)


def test_official_mode_shows_that_it_guessed() -> None:
    problem = _problem(answer="Yes", choices=("Yes", "No"))
    verdict = _verdict(MATHVISTA, problem, "The answer is: Cannot be guessed, yes?", mode="official", extraction="Yess")
    assert (verdict.correct, verdict.reason) == (True, Reason.NEAREST)


def test_missing_duplicate_and_unknown_ids_are_counted(folder: Path, tmp_path: Path) -> None:
    rows = [
        {"id": "2", "response": "x"},
        {"id": "2", "response": "y"},
        {"pid": "3", "response": "B"},
        {"id": "zz", "response": "1"},
    ]
    result = score_responses(MATHVISTA, folder, write_json_lines(tmp_path / "r.jsonl", rows))
    handed = result.to_json()["responses"]
    assert (handed["missing"], handed["unknown"], handed["duplicate"]) == (998, 1, 1)
    assert result.metrics["average"]["total"] == 1000
    assert sum(cell["total"] for cell in result.metrics["tables"]["question_type"].values()) == 1000


def test_a_short_or_doubled_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "testmini.json"
    row = {"question": "q", "image": "i", "answer": "1", "question_type": "free_form", "answer_type": "integer"}
    row |= {"metadata": dict.fromkeys(TABLES, "x")}
    file.write_text(json.dumps({"1": {**row, "pid": "1"}}))
    with pytest.raises(UsageError, match="holds 1 rows and MathVista has 1,000"):
        MATHVISTA.problems(tmp_path)
    file.write_text('{"1": {}, "1": {}}')
    with pytest.raises(UsageError, match="more than once"):
        MATHVISTA.problems(tmp_path)
    with pytest.raises(UsageError, match="holds no MathVista data"):
        MATHVISTA.problems(tmp_path / "nowhere")
