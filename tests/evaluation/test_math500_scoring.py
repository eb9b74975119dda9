"""MATH500 against its reference solutions and the hand-adjudicated answers of a published system."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest

from doubles.files import json_lines, write_json_lines
from luspo_cli.errors import UsageError
from luspo_cli.evaluation.benchmark import BenchmarkProblem
from luspo_cli.evaluation.benchmarks.math500 import MATH500
from luspo_cli.evaluation.evaluate import score_responses
from luspo_cli.grading.maths.decide import decide
from luspo_cli.grading.verdict import NeedsSymbolic, Reason

Folder = Callable[[str], Path]


def test_the_data_is_the_one_described(data_folder: Folder) -> None:
    problems = MATH500.problems(data_folder("math500"))
    assert len(problems) == 500
    assert Counter(p.extra["subject"] for p in problems)["Intermediate Algebra"] == 97
    assert {p.extra["level"] for p in problems} == {1, 2, 3, 4, 5}
    assert (problems[0].id, problems[0].aliases) == ("test/precalculus/807.json", ("0",))


def test_all_500_reference_solutions_are_right(data_folder: Folder) -> None:
    import json

    rows = json.loads((data_folder("math500") / "math500_test.json").read_text(encoding="utf-8"))
    problems = MATH500.problems(data_folder("math500"))
    wrong = []
    for row, problem in zip(rows, problems, strict=True):
        extracted = MATH500.extract(problem, row["solution"])
        if extracted is None or decide(problem.gold, extracted) is Reason.DIFFERENT:
            wrong.append((problem.id, problem.gold, extracted))
    assert wrong == []


def test_every_adjudicated_row_is_judged_as_by_hand(data_folder: Folder, tmp_path: Path) -> None:
    rows = json_lines(data_folder("math500") / "published" / "gpt.jsonl")
    file = write_json_lines(tmp_path / "r.jsonl", [{"id": r["unique_id"], "response": r["response"]} for r in rows])
    result = score_responses(MATH500, data_folder("math500"), file, workers=1)
    verdicts = {problem.id: result.graded[problem.id][0] for problem in result.problems}
    adjudicated = [row for row in rows if row["equal"] is not None]
    assert Counter(row["equal"] for row in adjudicated) == {True: 479, False: 3}
    wrong = [
        (row["index"], row["answer"], verdicts[row["unique_id"]])
        for row in adjudicated
        if verdicts[row["unique_id"]].correct != row["equal"]
    ]
    assert wrong == []
    assert sum(group["problems"] for group in result.metrics["by_level"].values()) == 500
    assert sum(group["correct"] for group in result.metrics["by_subject"].values()) == result.metrics["correct"]


def test_the_same_verdicts_from_a_given_extraction(data_folder: Folder, tmp_path: Path) -> None:
    rows = [r for r in json_lines(data_folder("math500") / "published" / "gpt.jsonl") if r["extracted"]]
    lines = [{"id": str(r["index"]), "response": "ignored", "extraction": r["extracted"]} for r in rows]
    result = score_responses(MATH500, data_folder("math500"), write_json_lines(tmp_path / "r.jsonl", lines), workers=1)
    for row in rows:
        if row["equal"] is not None:
            assert result.graded[row["unique_id"]][0].correct == row["equal"]


@pytest.mark.parametrize(
    ("response", "extracted"),
    [
        (r"first \boxed{1}, then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"The final answer is $\frac{1}{2}$. I hope it is correct.", r"\frac{1}{2}"),
        (r"**Answer:** $x = 5$", "x = 5"),
        (r"Answer: (-2, 1)", "(-2, 1)"),
        (r"the answer is \(3, 5, 7\).", "3, 5, 7"),
        (r"\boxed{\text{ANSWER}}", None),
        (r"\boxed{ANSWER}", None),
        (r"\boxed{\frac{1}{2}", None),
        ("a lot of thinking and then 17", None),
    ],
)
def test_extraction(response: str, extracted: str | None) -> None:
    assert MATH500.extract(BenchmarkProblem("0", "", "1", "1"), response) == extracted


def test_only_what_the_grammar_lacks_is_left_to_the_workers() -> None:
    problem = BenchmarkProblem("0", "", r"\sqrt{8}", r"\sqrt{8}")
    here = MATH500.compare(problem, r"2\sqrt2")
    assert not isinstance(here, NeedsSymbolic)
    assert (here.correct, here.reason) == (True, Reason.SYMBOLIC)
    total = r"\sum_{k=1}^{1} \sqrt{8}"
    assert MATH500.compare(problem, total) == NeedsSymbolic(total, r"\sqrt{8}", total)
    blank = MATH500.compare(problem, "  ")
    assert not isinstance(blank, NeedsSymbolic)
    assert blank.reason is Reason.NO_ANSWER


def test_there_is_no_official_mode() -> None:
    with pytest.raises(UsageError, match="no mode 'official'"):
        MATH500.require_mode("official")


def _golds(data_folder: Folder) -> list[str]:
    return sorted({problem.gold for problem in MATH500.problems(data_folder("math500"))})


def test_spacing_and_size_commands_do_not_matter(data_folder: Folder) -> None:
    wrong = []
    for gold in _golds(data_folder):
        roomy = re.sub(r"(?<![\\a-zA-Z,{])([-+=<>()])(?![a-zA-Z]*\\)", r" \1 ", gold)
        tight = (
            re.sub(r"(?<![a-zA-Z]) +| +(?![a-zA-Z])", "", gold)
            if r"\frac " not in gold and "text" not in gold
            else gold
        )
        large = gold.replace(r"\frac", r"\dfrac").replace("(", r"\big(").replace(")", r"\big)")
        for variant in (roomy, tight, large, rf"$\displaystyle{{}} {gold}$."):
            if decide(gold, variant) is Reason.DIFFERENT or decide(variant, gold) is Reason.DIFFERENT:
                wrong.append((gold, variant))
    assert wrong == []


def test_one_changed_digit_makes_any_gold_wrong(data_folder: Folder) -> None:
    accepted = []
    for gold in _golds(data_folder):
        for match in re.finditer("[0-9]", gold):
            digit = str((int(match.group(0)) + 1) % 10)
            changed = gold[: match.start()] + digit + gold[match.end() :]
            if decide(gold, changed) is not Reason.DIFFERENT:
                accepted.append((gold, changed))
    # The power of a unit is no part of the value.
    assert [pair for pair in accepted if "mbox" not in pair[0]] == []


@pytest.mark.slow
def test_no_two_different_golds_are_equal(data_folder: Folder) -> None:
    same = {
        frozenset(pair)
        for pair in (
            ("-2,1", "1,-2"),
            (r"10,\!080", "10080"),
            ("120", r"120^\circ"),
            (r"180^\circ", r"\pi"),  # as angles; docs/grading.md
            ("15", r"15\mbox{ cm}^2"),
            (r"2 \sqrt{5}", r"2\sqrt{5}"),
            ("30", r"30^\circ"),
            ("36", r"36^\circ"),
            ("36", r"\$36"),
            ("40", "40_9"),
            ("5", "x=5"),
            ("90", r"90^\circ"),
            (r"\frac14", r"\frac{1}{4}"),
        )
    }
    found = {frozenset(pair) for pair in permutations(_golds(data_folder), 2) if decide(*pair) is not Reason.DIFFERENT}
    assert found == same
