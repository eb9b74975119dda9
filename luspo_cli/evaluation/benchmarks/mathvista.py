"""MathVista (testmini).

Name: MathVista, split testmini, 1,000 problems (540 multiple choice, 418 integer, 40 float, 2 list).
Dataset: AI4Math/MathVista on the Hub; testmini.json of the repository lupantech/MathVista.
Abstract: mathematical reasoning over figures, plots, diagrams and photographs, joined from 31 data sets. Scored here
    without a judge: `rule` reads the response with our extractor and never guesses; `official` is the benchmark's
    own comparison of an extraction, whose nearest-choice guess makes an answer of everything. Without a stored
    extraction, `official` takes the official steps that need no judge, then our extractor, then the words after the
    last answer phrase, since the benchmark scores "cannot be determined" too.
Paper: MathVista: Evaluating Mathematical Reasoning of Foundation Models in Visual Contexts, arXiv 2310.02255.
Licence: CC BY-SA 4.0 for the authors' part, pictures and questions stay with their sources; a test set only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from luspo_cli.data.prompts import IMAGE_MARK, PromptTemplate
from luspo_cli.evaluation.benchmark import Benchmark, BenchmarkProblem, Mode
from luspo_cli.evaluation.benchmarks.mathvista_official import (
    IntegerRule,
    names_a_choice,
    normalize_extraction,
    short_extraction,
    unread_answer,
)
from luspo_cli.evaluation.problems import BenchmarkImage, whole_table
from luspo_cli.evaluation.scores import accuracy_by, as_dicts, overall
from luspo_cli.grading.answers import AnswerMark
from luspo_cli.grading.free_text.choices import choice_position, read_choice
from luspo_cli.grading.free_text.numbers import decimal, list_items, read_list, read_number, rounded, stated_number
from luspo_cli.grading.verdict import DecidedBy, Reason, Verdict
from luspo_cli.records import Message

TABLES = ("question_type", "answer_type", "language", "source", "category", "task", "context", "grade", "skills")
"""The attributes of the published score table; a problem counts in each of its skills."""

_ENDINGS = {
    "multi_choice": "and provide the correct option letter, e.g., A, B, C, D, at the end.",
    "integer": "requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the end.",
    "float1": "requiring a floating-point number with one decimal place "
    "and provide the final value, e.g., 1.2, 1.3, 1.4, at the end.",
    "float2": "requiring a floating-point number with two decimal places "
    "and provide the final value, e.g., 1.23, 1.34, 1.45, at the end.",
    "list": "requiring a Python list as an answer "
    "and provide the final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4], at the end.",
}
_BOXED = (
    "\n\nReason step by step, and put the final answer (for a multiple-choice question its letter) within \\boxed{}."
)


class MathVista(Benchmark):
    """MathVista testmini; `integer_rule` changes the `official` comparison only."""

    name = "MathVista"
    version = 2
    modality = "vision"
    size = 1000
    licence = "CC BY-SA 4.0 (authors' part); evaluation only"
    hub_ids = ("AI4Math/MathVista:default:testmini",)
    modes = ("rule", "official")
    tables = ("tables.task", "tables.skills", "tables.category")
    default_prompt = "boxed"
    prompts = {  # noqa: RUF012 - read-only by contract
        "official": PromptTemplate("official", None, before=IMAGE_MARK),
        "boxed": PromptTemplate("boxed", AnswerMark.BOX, before=IMAGE_MARK, after=_BOXED),
    }

    def __init__(self, integer_rule: IntegerRule = IntegerRule.CURRENT) -> None:
        self.integer_rule = integer_rule

    def problems(self, source: Path) -> list[BenchmarkProblem]:
        """Read testmini.json (object keyed by pid) or a table with its columns."""
        columns = ("pid", "question", "image", "answer", "question_type", "answer_type", "metadata")
        files = ("testmini.json", "testmini.jsonl", "testmini.parquet")
        path, rows = whole_table(source, files, columns, self.size, self.name)
        return [_problem(row, path.parent) for row in rows]

    def prompt(self, problem: BenchmarkProblem, variant: str | None = None) -> tuple[Message, ...]:
        """Return the official text prompt, with the box instruction in the variant `boxed`."""
        return self.template(variant).render(official_query(problem))

    def extract(
        self, problem: BenchmarkProblem, response: str, *, mode: Mode = "rule", variant: str | None = None
    ) -> str | None:
        """Return the choice's letter, a plain decimal or a list; in `official` mode never None."""
        if mode == "official":
            short = short_extraction(response, problem.extra["choices"], problem.extra["answer_type"])
            if short is not None:
                return short
        found = self._read(problem, response)
        return found if found is not None or mode == "rule" else unread_answer(response)

    def compare(self, problem: BenchmarkProblem, extracted: str, *, mode: Mode = "rule") -> Verdict:
        """Compare by value (`rule`) or as the benchmark's script does (`official`)."""
        return self._official(problem, extracted) if mode == "official" else _by_value(problem, extracted)

    def aggregate(
        self, problems: Sequence[BenchmarkProblem], graded: Mapping[str, Sequence[Verdict]]
    ) -> dict[str, Any]:
        """Return the common metrics, `average`, and one table per attribute under `tables`."""
        tables = {name: as_dicts(accuracy_by(problems, graded, _values(name))) for name in TABLES}
        average = overall(problems, graded).as_dict()
        return {**super().aggregate(problems, graded), "average": average, "tables": tables}

    def answer_key(self, extracted: str) -> str:
        """Return one key for equal numbers ("5", "5.0")."""
        value = decimal(extracted)
        return extracted.strip() if value is None else str(value.normalize())

    def row_id(self, row: Mapping[str, Any]) -> str | None:
        """Return `id`, or `pid` as the upstream files call it."""
        value = row.get("id", row.get("pid"))
        return None if value is None else str(value)

    def _read(self, problem: BenchmarkProblem, response: str) -> str | None:
        choices = problem.extra["choices"]
        if choices:
            position = read_choice(response, choices, problem.question)
            return None if position is None else chr(ord("A") + position)
        if problem.extra["answer_type"] == "list":
            return read_list(response)
        return read_number(response, problem.question)

    def _official(self, problem: BenchmarkProblem, extracted: str) -> Verdict:
        choices = problem.extra["choices"]
        answer = normalize_extraction(
            extracted,
            choices,
            problem.extra["answer_type"],
            problem.extra["precision"],
            integer_rule=self.integer_rule,
        )
        if answer is None:
            return Verdict(extracted, False, Reason.NO_ANSWER)
        if answer != problem.raw_gold:
            return Verdict(extracted, False, Reason.DIFFERENT, decided_by=DecidedBy.OFFICIAL)
        guessed = bool(choices) and not names_a_choice(extracted, choices)
        reason = Reason.NEAREST if guessed else Reason.EXACT
        return Verdict(extracted, True, reason, decided_by=DecidedBy.OFFICIAL)


def official_query(problem: BenchmarkProblem) -> str:
    """The official zero-shot text prompt of a problem: hint by answer type, question with unit, lettered choices."""
    kind = "multi_choice" if problem.extra["choices"] else problem.extra["answer_type"]
    if kind == "float":
        kind = f"float{problem.extra['precision']}"
    unit = f" (Unit: {problem.extra['unit']})" if problem.extra["unit"] else ""
    ask = "Please answer the question"
    lines = [f"Hint: {ask} {_ENDINGS[kind]}", f"Question: {problem.question}{unit}"]
    if problem.extra["choices"]:
        lines.append("Choices:")
        lines += [f"({chr(ord('A') + index)}) {choice}" for index, choice in enumerate(problem.extra["choices"])]
    return "\n".join(lines)


def _problem(row: Mapping[str, Any], folder: Path) -> BenchmarkProblem:
    choices = row.get("choices")
    precision = row.get("precision")
    metadata = row["metadata"]
    extra = {
        "question_type": row["question_type"],
        "answer_type": row["answer_type"],
        "choices": None if choices is None or not len(choices) else tuple(choices),
        "unit": row.get("unit") or None,
        "precision": None if precision is None or precision != precision else int(precision),
        **{name: metadata[name] for name in TABLES[2:-1]},
        "skills": tuple(metadata["skills"]),
    }
    answer = str(row["answer"])
    image = BenchmarkImage(folder, row["image"])
    return BenchmarkProblem(str(row["pid"]), row["question"], answer.strip(), answer, (image,), extra)


def _values(name: str) -> Any:
    return lambda problem: problem.extra[name] if name == "skills" else (problem.extra[name],)


def _by_value(problem: BenchmarkProblem, extracted: str) -> Verdict:
    choices = problem.extra["choices"]
    if choices:
        position = choice_position(extracted, choices)
        if position is None:
            return Verdict(extracted, False, Reason.NO_ANSWER)
        # Texts, not positions: two choices with the gold text are both right.
        return _verdict(extracted, choices[position].strip() == problem.gold, Reason.EXACT)
    if problem.extra["answer_type"] == "list":
        items = list_items(extracted) or list_items(read_list(extracted) or "")
        right = items is not None and items == list_items(problem.gold)
        return _verdict(extracted, right, Reason.STRUCTURAL)
    value = decimal(extracted)
    if value is None:
        number = stated_number(extracted)
        value = None if number is None else decimal(number)
    if value is None:
        return Verdict(extracted, False, Reason.NO_ANSWER)
    if problem.extra["answer_type"] == "float":
        value = rounded(value, problem.extra["precision"])
    return _verdict(extracted, value == Decimal(problem.gold), Reason.NUMERIC)


def _verdict(extracted: str, right: bool, reason: Reason) -> Verdict:
    return Verdict(extracted, right, reason if right else Reason.DIFFERENT, decided_by=DecidedBy.COMPARISON)


MATHVISTA = MathVista()
