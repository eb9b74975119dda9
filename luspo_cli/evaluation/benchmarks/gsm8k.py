"""GSM8K, 1,319 test problems (arXiv 2110.14168). Data: openai/gsm8k, config main; the gold follows the last `####`.

Example: "Janet's ducks lay 16 eggs per day. She eats three for breakfast ..." -> 18. Mode `rule` is the flexible
reading (box, `####`, "answer is", `A:`, else the last number; exact decimals, so 18.00 is 18); mode `official` is
OpenAI's own strict one: the first `#### ` followed by a number, equal as text once commas are gone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from luspo_cli.data import prompts as templates
from luspo_cli.errors import UsageError
from luspo_cli.evaluation.benchmark import BenchmarkProblem, Mode, PromptTemplate
from luspo_cli.evaluation.text_benchmark import BOXED_PROMPTS, TextBenchmark, template_of
from luspo_cli.grading.answers import Form, last_answer_line
from luspo_cli.grading.maths.numbers import number_key
from luspo_cli.grading.maths.values import number_in
from luspo_cli.grading.verdict import Reason

_A_MARK = re.compile(r"^[ \t*]{0,8}A[ \t*]{0,4}:", re.MULTILINE)
_OFFICIAL = re.compile(r"#### (-?[0-9.,]+)")


class Gsm8k(TextBenchmark):
    """Grade-school word problems with integer answers."""

    name = "GSM8K"
    version = 1
    size = 1319
    licence = "MIT"
    hub_ids = ("openai/gsm8k:main:test",)
    files = ("test.jsonl", "test.parquet")
    modes = ("rule", "official")
    default_forms = (Form.BOXED, Form.HASHES, Form.ANSWER_LINE, Form.A_LINE, Form.LAST_NUMBER)
    prompts: Mapping[str, PromptTemplate] = {
        "qwen-boxed": BOXED_PROMPTS["qwen-boxed"],
        "verl": template_of(templates.GSM8K_VERL),
        "dapo": BOXED_PROMPTS["dapo"],
    }

    def normalise_gold(self, raw: Any, place: str) -> str:
        """Return the integer after the last `####`, without commas."""
        value = number_in(str(raw).rpartition("####")[2])
        if value is None or value.denominator != 1:
            raise UsageError(f"{place} has no integer after its last '####', and every problem of GSM8K has one.")
        return str(value.numerator)

    def extract(
        self, problem: BenchmarkProblem, response: str, *, mode: Mode = "rule", variant: str | None = None
    ) -> str | None:
        """Return the answer in our flexible reading, or OpenAI's strict one."""
        if mode == "official":
            match = _OFFICIAL.search(response)
            return match.group(1).replace(",", "") if match else None
        return super().extract(problem, response, mode=mode, variant=variant)

    def forms(self, response: str, variant: str | None) -> tuple[Form, ...]:
        """Of `A:` and "answer is" the later one marks the answer: either may stand in the reasoning before it."""
        forms = super().forms(response, variant)
        mark = None
        for mark in _A_MARK.finditer(response):  # noqa: B007 - the last match is what is wanted
            pass
        if mark is None or last_answer_line(response[mark.end() :]) is not None:
            return forms
        rest = tuple(form for form in forms if form is not Form.A_LINE)
        at = rest.index(Form.ANSWER_LINE)
        return (*rest[:at], Form.A_LINE, *rest[at:])

    def judge(self, problem: BenchmarkProblem, extracted: str, mode: Mode) -> Reason | None:
        """Compare as exact decimals, or in official mode as text."""
        if extracted.strip() == problem.gold:
            return Reason.EXACT
        value = None if mode == "official" else number_in(extracted)
        return Reason.NUMERIC if value is not None and number_key(value) == problem.gold else Reason.DIFFERENT

    def answer_key(self, extracted: str) -> str:
        """Return the number, or the text where it is none."""
        value = number_in(extracted)
        return extracted.strip() if value is None else number_key(value)


class Gsm8kTrain(Gsm8k):
    """The 7,473 training problems, for looking at what was trained on; not the benchmark."""

    name = "GSM8K-train"
    size = 7473
    hub_ids = ("openai/gsm8k:main:train",)
    files = ("train.jsonl", "train.parquet")


GSM8K = Gsm8k()
GSM8K_TRAIN = Gsm8kTrain()
