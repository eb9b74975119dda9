"""GSM8K, 1,319 test problems (arXiv 2110.14168). Data: openai/gsm8k, config main; the gold follows the last `####`.

Example: "Janet's ducks lay 16 eggs per day. She eats three for breakfast ..." -> 18. Mode `rule` reads
as every text benchmark does, and, where nothing is marked, the last number: the published protocol of this benchmark
(lm-evaluation-harness, `flexible-extract`), counted as inferred; training never pays it. Mode `official` is
OpenAI's own strict one: the first `#### ` followed by a number, equal as text once commas are gone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from luspo_cli.data.prompts import GSM8K_VERL, PromptTemplate
from luspo_cli.errors import UsageError
from luspo_cli.evaluation.benchmark import BenchmarkProblem, Mode
from luspo_cli.evaluation.text_benchmark import BOXED_PROMPTS, TextBenchmark
from luspo_cli.grading.answers import Extraction, answers_to_the_first_question, final_text, has_box, last_number
from luspo_cli.grading.maths.values import number_in
from luspo_cli.grading.verdict import DecidedBy, NeedsSymbolic, ReadFrom, Reason, Verdict

_OFFICIAL = re.compile(r"#### (-?[0-9.,]+)")


class Gsm8k(TextBenchmark):
    """Grade-school word problems with integer answers."""

    name = "GSM8K"
    version = 2
    size = 1319
    licence = "MIT"
    hub_ids = ("openai/gsm8k:main:test",)
    files = ("test.jsonl", "test.parquet")
    modes = ("rule", "official")
    prompts: Mapping[str, PromptTemplate] = BOXED_PROMPTS | {"verl": GSM8K_VERL}

    def normalise_gold(self, raw: Any, place: str) -> str:
        """Return the integer after the last `####`, without commas."""
        value = number_in(str(raw).rpartition("####")[2])
        if value is None or value.denominator != 1:
            raise UsageError(f"{place} has no integer after its last '####', and every problem of GSM8K has one.")
        return str(value.numerator)

    def find(
        self,
        problem: BenchmarkProblem,
        response: str,
        *,
        mode: Mode = "rule",
        variant: str | None = None,
        thought_open: bool = False,
    ) -> Extraction | None:
        """Return the marked answer, else the last number; in official mode what follows the first `#### `."""
        if mode == "official":
            match = _OFFICIAL.search(response)
            return Extraction(match.group(1).replace(",", ""), ReadFrom.OWN_MARK) if match else None
        found = super().find(problem, response, variant=variant, thought_open=thought_open)
        if found is not None:
            return found
        text = final_text(response, thought_open=thought_open)
        if text is None or has_box(text) or "<answer>" in text.lower():  # an empty mark is no answer
            return None
        number = last_number(next(answers_to_the_first_question(text)))
        return None if number is None else Extraction(number, ReadFrom.INFERRED)

    def compare(self, problem: BenchmarkProblem, extracted: str, *, mode: Mode = "rule") -> Verdict | NeedsSymbolic:
        """Compare as every text benchmark does, or in official mode as text."""
        if mode == "rule" or not extracted.strip():
            return super().compare(problem, extracted)
        right = extracted.strip() == problem.gold
        return Verdict(extracted, right, Reason.EXACT if right else Reason.DIFFERENT, decided_by=DecidedBy.OFFICIAL)


class Gsm8kTrain(Gsm8k):
    """The 7,473 training problems, for looking at what was trained on; not the benchmark."""

    name = "GSM8K-train"
    size = 7473
    hub_ids = ("openai/gsm8k:main:train",)
    files = ("train.jsonl", "train.parquet")


GSM8K = Gsm8k()
GSM8K_TRAIN = Gsm8kTrain()
