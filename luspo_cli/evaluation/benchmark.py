"""What a benchmark is: data plus four small functions (problems, prompt, extract + compare, aggregate) and a version.

Extract, compare and aggregate are three separate steps, each testable alone, so a stored extraction can be scored again
without the model. A comparison that only symbolic algebra can settle is returned as `NeedsSymbolic` and settled by the
scorer in a worker that can be killed: nothing in a benchmark can hang. `version` rises when a score can change.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from luspo_cli.config.eval import Mode
from luspo_cli.data.prompts import PromptTemplate
from luspo_cli.errors import UsageError, nearest
from luspo_cli.evaluation.problems import BenchmarkProblem
from luspo_cli.evaluation.scores import summarise
from luspo_cli.grading.answers import Extraction, final_text, has_box
from luspo_cli.grading.free_text.segments import answer_tails, visible_text
from luspo_cli.grading.verdict import NO_ANSWER, NeedsSymbolic, ReadFrom, Verdict
from luspo_cli.records import Message
from luspo_cli.rewards.functions import RewardFunctions


class Benchmark(ABC):
    """One benchmark; subclasses set the fields and write the functions. Instances hold no state."""

    name: str
    version: int
    modality: Literal["text", "vision"] = "text"
    size: int
    """Problems in the benchmark; any other number of rows stops the evaluation."""
    licence: str
    hub_ids: tuple[str, ...] = ()
    """Where the data is published, the default first; `id:config:split`."""
    prompts: Mapping[str, PromptTemplate]
    default_prompt: str = "qwen-boxed"
    modes: tuple[Mode, ...] = ("rule",)
    tables: tuple[str, ...] = ()
    """Tables of the metrics that are shown below the score, dotted."""

    @abstractmethod
    def problems(self, source: Path) -> list[BenchmarkProblem]:
        """Read all problems from a folder or file; raises UsageError where the file is not this benchmark."""

    def from_hub(self) -> list[BenchmarkProblem]:
        """Return all problems from the hub; UsageError where they cannot be had there."""
        published = f" (published as {self.hub_ids[0].partition(':')[0]})" if self.hub_ids else ""
        raise UsageError(f"{self.name} needs its files{published}: give their folder with --data.")

    def own_files(self) -> dict[str, str] | None:
        """Return what a benchmark of the user's own is made of, file → sha256; None for one of ours."""
        return None

    def functions(self) -> RewardFunctions | None:
        """Return the function of the user's own that judges responses in the place of `find` and `compare`; None without."""
        return None

    def prompt(self, problem: BenchmarkProblem, variant: str | None = None) -> tuple[Message, ...]:
        """Return the turns for `problem` in the prompt `variant` (None: the default); raises UsageError if unknown."""
        return self.template(variant).render(problem.question)

    @abstractmethod
    def extract(
        self, problem: BenchmarkProblem, response: str, *, mode: Mode = "rule", variant: str | None = None
    ) -> str | None:
        """Return the final answer of `response` as written, or None where there is none. Pure, linear time."""

    def find(
        self,
        problem: BenchmarkProblem,
        response: str,
        *,
        mode: Mode = "rule",
        variant: str | None = None,
        thought_open: bool = False,
    ) -> Extraction | None:
        """Return what `extract` returns and where it stood; `thought_open`: the response begins inside a thought."""
        if thought_open and final_text(response, thought_open=True) is None:
            return None
        text = self.extract(problem, response, mode=mode, variant=variant)
        return None if text is None else Extraction(text, self.read_from(problem, response, text, mode))

    def read_from(self, problem: BenchmarkProblem, response: str, extracted: str, mode: Mode) -> ReadFrom:
        """Return where an extracted answer stood: box, answer tag or answer phrase, else inferred from the text."""
        shown = visible_text(response) or ""
        if mode == "rule" and has_box(shown):
            return ReadFrom.BOX
        # Readers ask the phrases first, so an answer that a phrase alone gives was read there.
        for tail in answer_tails(shown):
            if self.extract(problem, f"Answer: {tail}", mode=mode) == extracted:
                return ReadFrom.OTHER_MARK if f"<answer>{tail}" in shown else ReadFrom.PHRASE
        return ReadFrom.INFERRED

    def uses_grader(self, mode: Mode) -> bool:
        """Whether answers are compared as the reward of training compares them, by `grading.grader`."""
        return False

    @abstractmethod
    def compare(self, problem: BenchmarkProblem, extracted: str, *, mode: Mode = "rule") -> Verdict | NeedsSymbolic:
        """Compare an extracted answer with the gold answer. Pure and fast; leaves algebra to `NeedsSymbolic`."""

    def grade(
        self,
        problem: BenchmarkProblem,
        response: str,
        *,
        mode: Mode = "rule",
        extraction: str | None = None,
        variant: str | None = None,
    ) -> Verdict | NeedsSymbolic:
        """Extract (unless an `extraction` is given, which may be empty) and compare."""
        extracted = extraction
        if extracted is None:
            extracted = self.extract(problem, response, mode=mode, variant=variant)
        if extracted is None:
            return NO_ANSWER
        return self.compare(problem, extracted, mode=mode)

    def aggregate(
        self, problems: Sequence[BenchmarkProblem], graded: Mapping[str, Sequence[Verdict]]
    ) -> dict[str, Any]:
        """Return the metrics over all `problems`; a problem without verdicts in `graded` (by id) is wrong."""
        return summarise(problems, graded, answer_key=self.answer_key)

    def answer_key(self, extracted: str) -> str:
        """Return a key that equal answers share; it makes the clusters of maj@k."""
        return extracted.strip()

    def row_id(self, row: Mapping[str, Any]) -> str | None:
        """Return the problem id of one line of a responses file, or None where it names none."""
        value = row.get("id")
        if isinstance(value, float) and value.is_integer():  # tables write whole numbers as 60.0
            value = int(value)
        return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None

    def read_extraction(self, value: Any) -> str:
        """Return the `extraction` field of a responses file as text; called only where it is not null."""
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def template(self, variant: str | None = None) -> PromptTemplate:
        """Return the prompt template called `variant` (None: the default); raises UsageError if unknown."""
        name = variant or self.default_prompt
        if name not in self.prompts:
            known = ", ".join(self.prompts)
            raise UsageError(
                f"{self.name} has no prompt '{name}'{nearest(name, self.prompts)}; choose one of: {known}."
            )
        return self.prompts[name]

    def require_mode(self, mode: str) -> None:
        """Raise UsageError unless this benchmark can be scored in `mode`."""
        if mode not in self.modes:
            raise UsageError(f"{self.name} has no mode '{mode}'; choose one of: {', '.join(self.modes)}.")
