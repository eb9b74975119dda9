"""VLMEvalKit's deterministic MathVista rules, against its verdicts on the stored systems."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.agreement.vlmevalkit import hit, infer_letter, prefetch
from doubles.files import json_lines
from luspo_cli.evaluation.benchmarks.mathvista import MATHVISTA


def test_hits_and_prefetches_of_every_stored_row(data_folder: Callable[[str], Path]) -> None:
    folder = data_folder("mathvista")
    problems = {problem.id: problem for problem in MATHVISTA.problems(folder)}
    scores = json.loads((folder / "published" / "scores.json").read_text(encoding="utf-8"))
    for system, score in scores.items():
        hits = prefetched = 0
        for row in json_lines(folder / "published" / f"{system}.jsonl"):
            problem = problems[row["pid"]]
            how = (problem.extra["choices"], problem.extra["answer_type"], problem.raw_gold)
            right = hit(row["extraction"], *how)
            taken = prefetch(row.get("response", row.get("execution")), *how)
            assert right == row["vlmevalkit_hit_on_extraction"], (system, problem.id)
            wanted = row["vlmevalkit_prefetch"]
            assert taken == (None if wanted is None else str(wanted)), (system, problem.id)
            hits += right
            prefetched += taken is not None
        assert hits == score["vlmevalkit_rule_on_official_extraction"]["correct"]
        assert prefetched == score["vlmevalkit_prefetched_rows"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("\\boxed{B}", "B"),
        ("<answer>B</answer>", None),
        ("B is first, and then come four more words", None),
        ("A or B", None),
        ("The answer is **C** as everybody can see here", "C"),
        ("I can't process this file.", "Z"),
        ("it is a blue cat", "B"),
    ],
)
def test_letter_matcher_by_hand(text: str, letter: str | None) -> None:
    assert infer_letter(text, ("brown dog", "blue cat", "grey horse")) == letter
