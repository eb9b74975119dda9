r"""Contests of 2025 and 2026 as MathArena publishes them: AIME 2026 (30), HMMT February 2026 (33), BRUMO 2025 (30 problems).

One layout: `problem_idx` (from 1), `problem`, `answer` and, but for AIME, `problem_type`, a list. AIME's answers are integers,
those of the other two texts of any form (MathArena's dataset cards and the settings of eth-sri/matharena, docs/benchmarks.md).
Example of the form: "Compute ..." -> `\frac{3 \sqrt{2}}{7}`. The prompt `matharena` is theirs: the instruction of the
contest, an empty line, the problem. Known deviation: MathArena asks the model again where its parser finds no answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luspo_cli.data.prompts import PromptTemplate
from luspo_cli.evaluation.benchmark import BenchmarkProblem
from luspo_cli.evaluation.benchmarks.contest import IntegerBenchmark
from luspo_cli.evaluation.scores import by_group
from luspo_cli.evaluation.text_benchmark import BOXED_PROMPTS, TextBenchmark
from luspo_cli.grading.answers import AnswerMark
from luspo_cli.grading.verdict import Verdict

_LICENCE = "CC BY-NC-SA 4.0 (MathArena); problems: the contest"
_BOX = r"Put your final answer within \boxed{}."


def _prompts(instruction: str) -> Mapping[str, PromptTemplate]:
    return BOXED_PROMPTS | {"matharena": PromptTemplate("matharena", AnswerMark.BOX, before=instruction + "\n\n")}


class Aime26(IntegerBenchmark):
    """AIME I and II of 2026."""

    name = "AIME26"
    version = 1
    size = 30
    licence = _LICENCE
    hub_ids = ("MathArena/aime_2026::train", "math-ai/aime26::test")
    files = ("test.jsonl", "aime26.parquet", "train-00000-of-00001.parquet", "test.parquet")
    prompts = _prompts(_BOX + "\nThe answer is an integer between 0 and 999 inclusive.")


class TypedContest(TextBenchmark):
    """A contest with answers of any form and a list of types for each problem."""

    version = 1
    licence = _LICENCE
    files = ("test.jsonl", "train-00000-of-00001.parquet", "test.parquet")
    prompts = _prompts(_BOX)

    def details(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the types of the problem, where the data has them."""
        types = row.get("problem_type")
        return {} if types is None else {"types": (types,) if isinstance(types, str) else tuple(map(str, types))}

    def aggregate(
        self, problems: Sequence[BenchmarkProblem], graded: Mapping[str, Sequence[Verdict]]
    ) -> dict[str, Any]:
        """Return the common metrics, and accuracy by type: a problem of two types counts in both."""
        return super().aggregate(problems, graded) | {"by_type": by_group(problems, graded, "types")}


class HmmtFeb26(TypedContest):
    """HMMT of February 2026: the 33 problems with a final answer that MathArena published."""

    name = "HMMT-Feb26"
    size = 33
    hub_ids = ("MathArena/hmmt_feb_2026::train",)


class Brumo25(TypedContest):
    """BRUMO of April 2025."""

    name = "BRUMO25"
    size = 30
    hub_ids = ("MathArena/brumo_2025::train",)


AIME26 = Aime26()
HMMT_FEB26 = HmmtFeb26()
BRUMO25 = Brumo25()
