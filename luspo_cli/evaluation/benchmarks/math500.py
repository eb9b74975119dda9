"""MATH-500, 500 problems of MATH (arXiv 2103.03874) chosen by Lightman et al. (arXiv 2305.20050).

Data: HuggingFaceH4/MATH-500. Example: "Convert the point (0,3) in rectangular coordinates to polar coordinates. ..." ->
`\\left( 3, \\frac{\\pi}{2} \\right)`.
Reference graders: Qwen2.5-Math, math-verify, two of rasbt/reasoning-from-scratch; ours differs where they err
(docs/benchmarks.md has the list). Results are also given by level (1 to 5) and by subject.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luspo_cli.evaluation.benchmark import BenchmarkProblem
from luspo_cli.evaluation.scores import by_group
from luspo_cli.evaluation.text_benchmark import TextBenchmark
from luspo_cli.grading.verdict import Verdict


class Math500(TextBenchmark):
    """500 problems of MATH with answers of every form."""

    name = "MATH500"
    version = 2
    size = 500
    licence = "MIT (problems of MATH, through openai/prm800k); copy: Apache-2.0"
    hub_ids = ("HuggingFaceH4/MATH-500::test",)
    files = ("test.jsonl", "math500_test.json", "math500.parquet", "test.parquet")

    def details(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return level and subject."""
        return {key: row[key] for key in ("level", "subject") if row.get(key) is not None}

    def aggregate(
        self, problems: Sequence[BenchmarkProblem], graded: Mapping[str, Sequence[Verdict]]
    ) -> dict[str, Any]:
        """Return the common metrics, and accuracy by level and by subject."""
        metrics = super().aggregate(problems, graded)
        for key in ("level", "subject"):
            metrics[f"by_{key}"] = by_group(problems, graded, key)
        return metrics


MATH500 = Math500()
