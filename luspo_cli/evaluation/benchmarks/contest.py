"""Contests whose answers are all integers (AIME, AMC as Qwen2.5-Math poses it): what equals the integer is right.

Answers are compared as everywhere (docs/grading.md). No tolerance: Qwen's grader takes 2500 for 25 (percent) and 104.005
for 104 (relative 1e-4). 25.0, 025 and `\\textbf{(B) } 25` are the integer 25. Two problems of AIME24 share an answer, so
samples are kept by problem id.
"""

from __future__ import annotations

from typing import Any

from luspo_cli.errors import UsageError
from luspo_cli.evaluation.text_benchmark import TextBenchmark
from luspo_cli.grading.maths.values import number_in


class IntegerBenchmark(TextBenchmark):
    """A text benchmark with integer golds."""

    def normalise_gold(self, raw: Any, place: str) -> str:
        """Return the gold as a plain integer: `025`, `27.0` and `336^\\circ` become 25, 27 and 336."""
        value = number_in(str(raw))
        if value is None or value.denominator != 1:
            raise UsageError(f"{place} has the gold answer {str(raw)[:40]!r}, and {self.name} has integers only.")
        return str(value.numerator)
