"""Agreement of `rule` mode with published verdicts: the floors, and that every disagreement is classed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.agreement.adjudicated import ADJUDICATED
from bench.agreement.agreement import Agreement, agreement, main

FLOORS = {
    "MathVista/bard": 0.98,
    "MathVista/chatgpt_2shot_solution": 0.945,
    "MathVista/claude": 0.98,
    "MathVista/frequent_guess": 1.0,
    "MathVista/gpt4_2shot_solution_use_ocr": 0.89,
    "MathVista/idefics_9b_instruct": 0.955,
    "MathVista/llava_llama_2_13b": 0.925,
    "MathVista/llavar": 0.94,
    "LogicVista/GPT4": 0.99,
    "LogicVista/pix2struct": 0.99,
    "LogicVista/BLIP2": 0.98,
    "LogicVista/LLAVA7B": 0.97,
    "LogicVista/miniGPTvicuna7B": 0.96,
    "LogicVista/GIT-large": 0.985,
    "LogicVista/deplot": 1.0,
}
"""Share of rows on which the `rule` verdict is the published one."""
OFFICIAL_FLOORS = FLOORS | {
    "MathVista/chatgpt_2shot_solution": 0.965,
    "MathVista/claude": 0.99,
    "MathVista/gpt4_2shot_solution_use_ocr": 0.92,
    "MathVista/idefics_9b_instruct": 0.958,
    "MathVista/llavar": 0.94,
}
"""The same for our extraction under the official comparison."""


@pytest.fixture(scope="module")
def results(data_folder: Callable[[str], Path]) -> dict[str, Agreement]:
    data_folder("logicvista")
    found = agreement(data_folder("mathvista").parent)
    return {f"{result.benchmark}/{result.system}": result for result in found}


def test_floors(results: dict[str, Agreement]) -> None:
    rule = {name: result.agreed / result.rows for name, result in results.items()}
    official = {name: result.agreed_official / result.rows for name, result in results.items()}
    assert {name: share for name, share in rule.items() if share < FLOORS[name]} == {}
    assert {name: share for name, share in official.items() if share < OFFICIAL_FLOORS[name]} == {}
    assert rule.keys() == FLOORS.keys()


def test_every_disagreement_is_classed_and_no_class_is_stale(results: dict[str, Agreement]) -> None:
    unread = {name: [d.id for d in result.disagreements if d.cause == "unread"] for name, result in results.items()}
    assert {name: ids for name, ids in unread.items() if ids} == {}
    differing = {name: {d.id for d in result.disagreements} for name, result in results.items()}
    stale = {name: sorted(rows.keys() - differing[name]) for name, rows in ADJUDICATED.items()}
    assert {name: ids for name, ids in stale.items() if ids} == {}


def test_where_the_floor_is_out_of_reach_the_official_rule_or_the_judge_is_why(results: dict[str, Agreement]) -> None:
    guesses, judge = results["MathVista/chatgpt_2shot_solution"], results["MathVista/idefics_9b_instruct"]
    assert guesses.causes["c"] == judge.causes["c"] == 0
    assert guesses.agreed_official / guesses.rows >= 0.965
    assert guesses.causes["a"] / guesses.rows > 0.035
    assert judge.causes["b"] / judge.rows > 0.035


def test_the_documented_table_is_the_printed_one(
    results: dict[str, Agreement], data_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    main(str(data_folder("mathvista").parent))
    document = (Path(__file__).resolve().parents[2] / "docs" / "benchmarks-vision.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() in document


def test_the_documented_goals_are_the_printed_ones(
    data_folder: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    main(str(data_folder("mathvista").parent), goals=True)
    document = (Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    printed = capsys.readouterr().out.strip()
    assert printed in document
    missed = [line.split("|")[1].strip() for line in printed.splitlines() if "| no, by" in line]
    assert missed == ["MathVista/chatgpt_2shot_solution", "MathVista/idefics_9b_instruct"]
