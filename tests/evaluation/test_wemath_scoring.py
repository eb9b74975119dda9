"""We-Math: both synthetic result sets to the printed digit, the edge cases, and the counts that the paper reports."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from doubles.files import json_lines, write_json_lines
from luspo_cli.commands.display.format import DASH
from luspo_cli.commands.display.results import breakdown
from luspo_cli.evaluation.benchmark import BenchmarkProblem
from luspo_cli.evaluation.benchmarks.wemath import WEMATH, FourCounts, count_groups, four_dimensions
from luspo_cli.evaluation.evaluate import score_responses
from luspo_cli.grading.free_text.letters import official_letter, read_letter
from luspo_cli.grading.free_text.options import split_options
from luspo_cli.grading.verdict import Reason, Verdict

RIGHT, WRONG = Verdict("A", True, Reason.EXACT), Verdict("B", False, Reason.DIFFERENT)
OPTIONS = {"A": "4 cm", "B": "6 cm", "C": "8 cm", "D": "No correct answer"}


def printed(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The rows as the official scripts print them: percent with two decimals, counts in parentheses."""
    rows = {}
    for setting in ("strict", "loose"):
        table, label = metrics[setting], setting.capitalize()
        rows[f"Score ({label})"] = f"{table['score']:.2%}"
        for key, name in (
            ("ik", "InsufficientKnowledge"),
            ("ig", "InadequateGeneralization"),
            ("cm", "CompleteMastery"),
            ("rm", "RoteMemorization"),
        ):
            rows[f"{name} ({label})"] = f"{table[f'{key}_rate']:.2%} ({table[key]:g})"
    names = {"one": "One-step(S1)", "two": "Two-step(S2)", "three": "Three-step(S3)"}
    rows |= {names[step]: f"{cell['accuracy']:.2%}" for step, cell in metrics["steps"].items()}
    return rows | {domain: f"{accuracy:.2%}" for domain, accuracy in metrics["domains"].items()}


@pytest.fixture(scope="module")
def folder(data_folder: Callable[[str], Path]) -> Path:
    return data_folder("wemath")


@pytest.fixture(scope="module")
def problems(folder: Path) -> list[BenchmarkProblem]:
    return WEMATH.problems(folder)


@pytest.mark.parametrize("system", ["all_correct", "random_mixed"])
@pytest.mark.parametrize("mode", ["official", "rule"])
def test_printed_rows_of_the_official_scripts(
    folder: Path, problems: list[BenchmarkProblem], system: str, mode: str
) -> None:
    key, letter = ("official_string_rule", "official_letter") if mode == "official" else ("intended_letter", "intended")
    wanted = json.loads((folder / "published" / "scores.json").read_text(encoding="utf-8"))[system][key]
    by_id = {problem.id: problem for problem in problems}
    graded = {}
    for row in json_lines(folder / "published" / f"{system}.jsonl"):
        identifier = WEMATH.row_id(row)
        assert identifier is not None
        verdict = WEMATH.grade(by_id[identifier], row["response"], mode=mode)  # type: ignore[arg-type]
        assert isinstance(verdict, Verdict)
        assert verdict.extracted == row[letter], row
        if mode == "official":
            assert verdict.correct == row["official_correct"]
        graded[identifier] = [verdict]
    metrics = WEMATH.aggregate(problems, graded)
    assert printed(metrics) == wanted["four_dimensional"] | wanted["accuracy"]
    counts, strict, loose = wanted["counts"], metrics["strict"], metrics["loose"]
    assert (strict["ik"], strict["ig"]) == (counts["InsufficientKnowledge"], counts["InadequateGeneralization"])
    assert (strict["cm"], strict["rm"]) == (counts["CompleteMastery_strict"], counts["RoteMemorization_strict"])
    assert (loose["cm"], loose["rm"]) == (counts["CompleteMastery_loose"], counts["RoteMemorization_loose"])


@pytest.mark.parametrize(
    ("counts", "score", "rote"),
    [
        ((164, 80, 185, 96), "42.86%", "34.16%"),
        ((209, 76, 125, 115), "31.05%", "47.92%"),
        ((342, 40, 35, 108), "10.48%", "75.52%"),
        ((164, 80, 278, 3), "60.57%", "1.07%"),
        ((209, 76, 232, 8), "51.43%", "3.33%"),
        ((342, 40, 114, 29), "25.52%", "20.28%"),
    ],
)
def test_counts_reported_in_the_paper(counts: tuple[int, int, int, int], score: str, rote: str) -> None:
    table = FourCounts(*counts)
    assert table.groups == 525
    assert (f"{table.score:.2%}", f"{table.rm_rate:.2%}") == (score, rote)


def test_categories_of_single_groups() -> None:
    cases = {
        ((True, True), True): (0, 0, 1, 0, 1, 0),
        ((True, False), True): (0, 0, 0, 1, 1, 0),
        ((False, False), True): (0, 0, 0, 1, 0, 1),
        ((True, True), False): (0, 1, 0, 0, 0, 0),
        ((True, False), False): (1, 0, 0, 0, 0, 0),
    }
    for group, (ik, ig, strict_cm, strict_rm, loose_cm, loose_rm) in cases.items():
        found = count_groups([group])
        assert found["strict"] == FourCounts(ik, ig, strict_cm, strict_rm)
        assert found["loose"] == FourCounts(ik, ig, loose_cm, loose_rm)


def test_no_composed_problem_right_gives_a_rote_rate_of_zero(problems: list[BenchmarkProblem]) -> None:
    graded = {problem.id: [WRONG if problem.extra["composed"] else RIGHT] for problem in problems}
    metrics = four_dimensions(problems, graded)["strict"]
    assert (metrics["rm_rate"], metrics["ig"], metrics["score"]) == (0.0, 525, 0.5)


def test_missing_rows_are_wrong_and_keep_their_group(problems: list[BenchmarkProblem]) -> None:
    composed = [problem.id for problem in problems if problem.extra["composed"]][:100]
    graded = {problem.id: [WRONG] for problem in problems if problem.id not in composed}
    metrics = four_dimensions(problems, graded)["strict"]
    assert (metrics["ik"], metrics["score"]) == (525, 0.0)  # the official script credits 100 groups: 19.05 %
    first = {problem.id: [RIGHT] for problem in problems if not problem.extra["key"].endswith("_1")}
    metrics = four_dimensions(problems, first)
    assert (metrics["strict"]["rm"], metrics["loose"]["cm"]) == (525, 525)


def test_duplicated_row_adds_no_group(folder: Path, tmp_path: Path, problems: list[BenchmarkProblem]) -> None:
    rows = [{"ID": "2steps_1", "key": "2steps_multi", "response": f"Answer: {letter}"} for letter in "AB"]
    result = score_responses(WEMATH, folder, write_json_lines(tmp_path / "r.jsonl", rows))
    assert result.to_json()["responses"]["duplicate"] == 1
    strict = result.metrics["strict"]
    assert strict["ik"] + strict["ig"] + strict["cm"] + strict["rm"] == 525


def test_a_line_of_no_problems_has_no_accuracy(problems: list[BenchmarkProblem]) -> None:
    one_step = [problem for problem in problems if not problem.extra["composed"]]
    metrics = WEMATH.aggregate(one_step, {problem.id: [RIGHT] for problem in one_step})
    assert metrics["steps"]["three"] == {"accuracy": None, "correct": 0, "total": 0}
    content = {"benchmark": "wemath", "metrics": metrics, "blind": {"metrics": metrics}}
    table = breakdown(content, ["steps"])
    assert table is not None
    cells = {str(row[0]).strip(): row[1:] for row in zip(*(column.cells for column in table.columns), strict=True)}
    assert cells["one"][0::2] == ("1,215", "99.7 to 100.0", "+0.0")
    assert cells["three"] == ("0", DASH, DASH, DASH, DASH)


def test_a_mean_over_concepts_is_called_one() -> None:
    content = {
        "benchmark": "We-Math",
        "metrics": {"domains": {"Angles": 0.5}, "steps": {"one": {"accuracy": 0.5, "correct": 1, "total": 2}}},
    }
    table = breakdown(content, ["domains", "steps"])
    assert table is not None
    rows = [
        tuple(cell for cell in row if cell) for row in zip(*(column.cells for column in table.columns), strict=True)
    ]
    assert [row[0] for row in rows] == ["by domains, mean over concepts", "  Angles", "by steps", "  one"]
    assert rows[1][1:] == (DASH, "50.0", DASH)


def test_samples_are_averaged(problems: list[BenchmarkProblem]) -> None:
    graded = {problem.id: [RIGHT, WRONG] for problem in problems}
    metrics = four_dimensions(problems, graded)
    assert metrics["strict"]["score"] == 0.5
    assert metrics["strict"]["cm"] == 262.5


def test_groups_and_domains(problems: list[BenchmarkProblem]) -> None:
    groups = {problem.extra["group"] for problem in problems}
    assert len(groups) == 525
    assert len({problem.extra["domain"] for problem in problems} - {None}) == 12
    assert len({problem.extra["concept"] for problem in problems if not problem.extra["composed"]}) == 67
    assert {problem.images[0].name.split("/")[0] for problem in problems} == {"2steps", "3steps"}


def test_options_are_split_around_the_debris(problems: list[BenchmarkProblem]) -> None:
    by_id = {problem.id: problem.extra["options"] for problem in problems}
    assert all(problem.gold in problem.extra["options"] for problem in problems)
    assert list(by_id["2steps_94/2steps_1"]) == ["A", "B", "C", "F"]
    assert list(by_id["3steps_38/3steps_1"].values()) == ["45°", "60°", "120°", "No correct answer"]
    assert len(by_id["2steps_48/2steps_multi"]) == 4
    sizes = [len(options) for options in by_id.values()]
    assert (sizes.count(7), sizes.count(6)) == (2, 3)
    assert split_options("no list here") == {}


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("<Answer>: <<B>>", "B"),
        ("B. six", "B"),
        ("(B)", None),
        ("**Answer:** B", None),
        ("answer: B", None),
        ("Answer: b", None),
        ("The answer is B.", None),
        ("\\boxed{B}", None),
        ("Answer: Option B", None),
        ("Answer：B", None),
        ("Answers: B", None),
        ("As shown in the figure", "A"),
        ("Based on it", "B"),
        ("Answer: B ... the Answer was checked", None),
        ("", None),
    ],
)
def test_official_letter_by_hand(response: str, letter: str | None) -> None:
    assert official_letter(response) == letter


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("<Thought process>: <<The Answer is A?>> <Answer>: <<C>>", "C"),
        ("<think>Answer: A</think><answer>B</answer>", "B"),
        ("<think>Answer: A", None),
        ("First A, then \\boxed{\\text{B}}", "B"),
        ("\\boxed{b}", "B"),
        ("\\boxed{}", None),
        ("**Answer:** B", "B"),
        ("answer：c", "C"),
        ("The answer is B because 2 x 3 = 6.", "B"),
        ("The answer is a cube.", None),
        ("Answer: E", None),
        ("(B)", "B"),
        ("C. 8 cm", "C"),
        ("As shown in the figure, nothing follows", None),
        ("Based on triangle ABC, hard to say.", None),
        ("The length is 8 cm.", "C"),
    ],
)
def test_rule_letter_by_hand(response: str, letter: str | None) -> None:
    assert read_letter(response, OPTIONS, "How long is it?") == letter


def test_prompt_quotes_the_template(problems: list[BenchmarkProblem]) -> None:
    content = WEMATH.prompt(problems[0], "official")[0].content
    assert content.startswith("<image>Now, we require you to solve a multiple-choice math question.")
    assert f"Question: {problems[0].question}\nOption: {problems[0].extra['option']}\n" in content
    assert content.endswith("<Thought process>: <<your thought process>> <Answer>: <<your option>>")
