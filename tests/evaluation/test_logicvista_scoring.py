"""LogicVista: published matches and tables from the published label lists, and the reader by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from doubles.files import json_lines, write_json_lines
from luspo_cli.evaluation.benchmark import BenchmarkProblem
from luspo_cli.evaluation.benchmarks.logicvista import LOGICVISTA
from luspo_cli.evaluation.evaluate import score_responses
from luspo_cli.grading.free_text.labels import read_labels
from luspo_cli.grading.verdict import Reason, Verdict

SYSTEMS = ["BLIP2", "GIT-large", "GPT4", "LLAVA7B", "deplot", "miniGPTvicuna7B", "pix2struct"]
LISTED = "What comes next? Select from A, B, C, and D. (A) 4 mph (B) 60 mph (C) A, B (D) None of these"

ECHO = (
    "based on the image, what comes next? select from a, b, c, and d. ( a ) 4 mph ( b ) 60 mph ( c ) a, b ( d ) none "
)
ECHO += "of these. answer : "


@pytest.fixture(scope="module")
def folder(data_folder: Callable[[str], Path]) -> Path:
    return data_folder("logicvista")


@pytest.fixture(scope="module")
def problems(folder: Path) -> list[BenchmarkProblem]:
    return LOGICVISTA.problems(folder)


def _grade(problem: BenchmarkProblem, response: str, mode: str = "rule", extraction: object = None) -> Verdict:
    given = None if extraction is None else LOGICVISTA.read_extraction(extraction)
    verdict = LOGICVISTA.grade(problem, response, mode=mode, extraction=given)  # type: ignore[arg-type]
    assert isinstance(verdict, Verdict)
    return verdict


@pytest.mark.parametrize("system", SYSTEMS)
def test_match_and_tables_from_the_published_lists(folder: Path, problems: list[BenchmarkProblem], system: str) -> None:
    scores = json.loads((folder / "published" / "scores.json").read_text(encoding="utf-8"))[system]
    rows = {row["id"]: row for row in json_lines(folder / "published" / f"{system}.jsonl")}
    graded = {problem.id: [_grade(problem, "", "official", rows[problem.id]["extracted"])] for problem in problems}
    assert [key for key in rows if graded[key][0].correct != bool(rows[key]["match"])] == []
    metrics = LOGICVISTA.aggregate(problems, graded)
    assert {key: metrics["overall"][key] for key in ("correct", "total")} == scores["overall"]
    for name in ("skill", "broad_capability", "specific_capability"):
        built = {value: {k: cell[k] for k in ("correct", "total")} for value, cell in metrics[name].items()}
        assert built == scores[name], name
    assert [metrics["capability"][name]["total"] for name in ("diagram", "ocr")] == [323, 212]


def test_golds_as_sets(problems: list[BenchmarkProblem]) -> None:
    gold = {problem.id: problem.gold for problem in problems}
    assert (gold["v1_1"], gold["v1_20"], gold["v1_4"], gold["v1_382"]) == ("A, C", "3", "G", "")


def test_the_problem_without_a_gold(problems: list[BenchmarkProblem]) -> None:
    problem = next(problem for problem in problems if problem.id == "v1_382")
    assert _grade(problem, "", "official").correct
    assert not _grade(problem, "", "rule").correct
    assert not _grade(problem, "A", "rule").correct


def test_several_labels_are_all_needed_in_any_order(problems: list[BenchmarkProblem]) -> None:
    problem = next(problem for problem in problems if problem.id == "v1_1")
    assert _grade(problem, "C, A").correct
    assert _grade(problem, "\\boxed{A and C}").correct
    assert not _grade(problem, "A").correct
    assert not _grade(problem, "A, B, C, D").correct
    assert _grade(problem, "", "official", ["c", "a"]).correct
    assert not _grade(problem, "", "official", ["a", "a", "c"]).correct


def test_official_mode_cannot_read_a_label_beyond_e(problems: list[BenchmarkProblem]) -> None:
    problem = next(problem for problem in problems if problem.id == "v1_4")
    assert not _grade(problem, "G", "official").correct
    assert _grade(problem, "G", "rule").correct


@pytest.mark.parametrize(
    ("response", "labels"),
    [
        ("B", "B"),
        (" (b) ", "B"),
        ("A, C", "AC"),
        ("The answer is A and C.", "AC"),
        ("The correct answer is D) 10 cm.", "D"),
        ("Options A-D are shown; the correct choice is (B).", "B"),
        ("Which of A, B, C, or D? Therefore, it is C.", "C"),
        ("A cube can be made from the net.", ""),
        ("A is correct.", "A"),
        ("So the R&D spend grew.", ""),
        ("(A) one (B) two (C) three", "ABC"),
        ("Option A is incorrect. The answer is B.", "B"),
        ("<think>A</think> ASSISTANT: B", "B"),
        ("USER: (A) or (B)? ASSISTANT: B", "B"),
        ("\\boxed{}", ""),
        ("<think>B", ""),
        ("", ""),
        ("3", "3"),
        ("I cannot see the image.", ""),
    ],
)
def test_labels_by_hand(response: str, labels: str) -> None:
    assert read_labels(response, "Which is it?") == frozenset(labels)


@pytest.mark.parametrize(
    ("response", "labels"),
    [
        ("60mph", "B"),
        ("The speed is 60 mph.", "B"),
        ("It is A, B", "C"),
        ("None of these", "D"),
        ("4 mph or 60 mph", "AB"),
        ("4", ""),
        (ECHO + "d", "D"),
        (ECHO, ""),
    ],
)
def test_option_texts_and_echoes_by_hand(response: str, labels: str) -> None:
    assert read_labels(response, LISTED) == frozenset(labels)


def test_denominator_with_missing_and_unknown_ids(folder: Path, tmp_path: Path) -> None:
    rows = [{"id": "v1_0", "response": "C"}, {"id": "v9_0", "response": "C"}]
    result = score_responses(LOGICVISTA, folder, write_json_lines(tmp_path / "r.jsonl", rows))
    assert (result.metrics["overall"]["correct"], result.metrics["overall"]["total"]) == (1, 448)
    handed = result.to_json()["responses"]
    assert (handed["missing"], handed["unknown"]) == (447, 1)
    assert sum(cell["total"] for cell in result.metrics["skill"].values()) == 448


def test_prompt_keeps_the_official_wording(problems: list[BenchmarkProblem]) -> None:
    content = LOGICVISTA.prompt(problems[0], "official")[0].content
    assert "should only contain letters/numbers, do not add extra explaination." in content
    assert content.endswith(f"question: {problems[0].question}\nanswer: ")
    assert _grade(problems[0], "zzz").reason is Reason.NO_ANSWER
