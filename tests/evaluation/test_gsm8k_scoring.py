"""GSM8K: golds, both published systems row by row, and where strict readings err."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from doubles.files import json_lines, write_json_lines
from luspo_cli.evaluation.benchmark import BenchmarkProblem, Mode
from luspo_cli.evaluation.benchmarks.gsm8k import GSM8K, GSM8K_TRAIN
from luspo_cli.evaluation.evaluate import score_responses
from luspo_cli.grading.verdict import Verdict

Folder = Callable[[str], Path]


def correct(response: str, gold: str = "18", *, mode: Mode = "rule", variant: str | None = None) -> bool:
    verdict = GSM8K.grade(BenchmarkProblem("0", "", gold, gold), response, mode=mode, variant=variant)
    assert isinstance(verdict, Verdict)
    return verdict.correct


def test_golds_are_integers_without_commas(data_folder: Folder) -> None:
    test, train = GSM8K.problems(data_folder("gsm8k")), GSM8K_TRAIN.problems(data_folder("gsm8k"))
    assert (len(test), len(train)) == (1319, 7473)
    assert (test[0].gold, train[0].gold) == ("18", "72")
    commas = [p for p in test if "," in p.raw_gold.rpartition("####")[2]]
    assert len(commas) == 14
    assert all(p.gold.lstrip("-").isdigit() for p in test + train)
    assert sum(p.gold.startswith("-") for p in test) == 2


@pytest.mark.parametrize(("system", "right"), [("6b_finetuning", 286), ("175b_verification", 742)])
def test_published_verdicts_are_reproduced_row_by_row(
    data_folder: Folder, tmp_path: Path, system: str, right: int
) -> None:
    rows = json_lines(data_folder("gsm8k") / "published" / f"{system}.jsonl")
    file = write_json_lines(tmp_path / "r.jsonl", [{"id": r["index"], "response": r["response"]} for r in rows])
    result = score_responses(GSM8K, data_folder("gsm8k"), file)
    ours = [result.graded[problem.id][0].correct for problem in result.problems]
    assert ours == [row["is_correct"] for row in rows]
    assert result.metrics["correct"] == right
    assert result.metrics["accuracy"] == right / 1319


@pytest.mark.parametrize(
    "response",
    [
        "#### 18",
        "####18",
        "#### $18",
        "#### 18.",
        "#### 18.00",
        "A: 18",
        r"\boxed{18}",
        "The answer is 18.",
        "The final answer is $18.",
        "Answer: 18 dollars per day",
        "She makes 9 * 2 = $18 every day.",
        "#### 12 was wrong\nso\n#### 18",
        r"\boxed{\$18.00}",
    ],
)
def test_right(response: str) -> None:
    assert correct(response)


@pytest.mark.parametrize(
    "response",
    [
        "#### 19",
        "A: 1.8",
        "18 hens, 2 eggs each",
        "",
        "A:",
        "the answer is 18%20",
        "#### 1,8",
        "#### 18.01",
        "<answer></answer> or 18",
        "so 18 <answer>",
    ],
)
def test_wrong(response: str) -> None:
    assert not correct(response)


def test_the_later_of_two_answer_lines_counts() -> None:
    assert correct("The answer is 5 more than twice 6.5, so 18.\nA: 18")
    assert correct("A: Let us think of 3 hens and 6 eggs. The answer is 18.")
    assert not correct("A: 18\nNo, the answer is 19.")
    assert not correct("The answer is 18.\nA: 19")


def test_thousands() -> None:
    assert correct("#### 70,000", "70000")
    assert correct("A: 70000", "70000")
    assert not correct("#### 70,00", "7000")


def test_the_official_mode_is_openais_strict_one() -> None:
    assert correct("#### 18", mode="official")
    assert correct("#### 1,800", "1800", mode="official")
    assert correct("#### 18\n#### 19", mode="official")  # the first mark
    for response in ("#### $18", "####18", "#### 18.", "#### 18.00", r"\boxed{18}", "A: 18"):
        assert not correct(response, mode="official")


def test_extraction_follows_the_prompt() -> None:
    both = "#### 18\nor, boxed, \\boxed{19}"
    assert correct(both, variant="verl")
    assert correct(both, "19", variant="qwen-boxed")
