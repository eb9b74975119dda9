"""A benchmark of one's own: a TOML file that names data, prompt and grader (docs/own-benchmark.md).

Decided here: the data are rows of any file that `luspo prepare-data` reads, all of them, each with an id of its own; a gold
answer that the grader could never find right stops the work. Paths are relative to the TOML file. The sha256 of every file
that the benchmark is made of stands in its results, and a stored result is scored anew where one of them changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from luspo_cli.config.reward import RewardConfig, RewardFunction
from luspo_cli.data.missing import is_missing
from luspo_cli.data.prompts import IMAGE_MARK, PromptTemplate
from luspo_cli.data.reading import Row, read_rows, value_at
from luspo_cli.data.values import answer_text, question_text
from luspo_cli.errors import UsageError, nearest
from luspo_cli.evaluation.benchmark import Benchmark, BenchmarkProblem, Mode
from luspo_cli.evaluation.benchmark_description import GRADERS, Description
from luspo_cli.evaluation.problems import BenchmarkImage
from luspo_cli.evaluation.scores import accuracy_by, as_dicts
from luspo_cli.evaluation.text_benchmark import TextBenchmark
from luspo_cli.files import file_sha256
from luspo_cli.function_path import parse_function_path, source_file
from luspo_cli.grading.answers import AnswerMark, Extraction
from luspo_cli.grading.free_text.labels import labels_in, read_labels
from luspo_cli.grading.grader import Grader
from luspo_cli.grading.verdict import DecidedBy, NeedsSymbolic, ReadFrom, Reason, Verdict
from luspo_cli.rewards.functions import RewardFunctions


class OwnBenchmark(TextBenchmark):
    """A benchmark that a TOML file describes."""

    hub_ids = ()

    def __init__(self, description: Description, file: Path) -> None:
        """`file` is where the description was read: paths are relative to it."""
        self._description, self._toml = description, file
        self.name = description.name or file.stem
        self.version, self.licence = description.version, description.licence or "not stated"
        template = description.prompt.made()
        self.prompts: Mapping[str, PromptTemplate] = {template.name: template}
        self.default_prompt = template.name
        self.modality: Literal["text", "vision"] = "vision" if description.columns.images else "text"
        self.tables = description.by

    @property
    def size(self) -> int:  # type: ignore[override]
        """As many problems as the file has."""
        return len(self._problems)

    def problems(self, source: Path) -> list[BenchmarkProblem]:
        """Return the problems of the file that the description names, whatever `source` is."""
        return self._problems

    def from_hub(self) -> list[BenchmarkProblem]:
        """Return the problems; UsageError where the data cannot be used."""
        return self._problems

    def own_files(self) -> dict[str, str]:
        """Return the sha256 of the description, the data and a grader's file."""
        files = {self._toml.name: self._toml, self._description.data: self._data}
        if (function := self._function()) and parse_function_path(function.function).is_file:
            files[parse_function_path(self._description.grader).place] = self._source(function)
        return {name: file_sha256(file) for name, file in files.items()}

    def functions(self) -> RewardFunctions | None:
        """Return the grader where it is a function."""
        function = self._function()
        if function is None:
            return None
        config = RewardConfig(function=(function,), function_seconds=self._description.grader_seconds)
        return RewardFunctions(config, f"{self._toml}: grader")

    def mark(self, variant: str | None) -> AnswerMark:
        """Return the mark that the description names, else the one that its prompt asks for."""
        return self._description.prompt.mark or super().mark(variant or self.default_prompt)

    def find(
        self,
        problem: BenchmarkProblem,
        response: str,
        *,
        mode: Mode = "rule",
        variant: str | None = None,
        thought_open: bool = False,
    ) -> Extraction | None:
        """Return the marked answer as the reward of training reads it; for choices the labels that the response gives."""
        if self._description.grader != "choice":
            return super().find(problem, response, mode=mode, variant=variant, thought_open=thought_open)
        return Benchmark.find(self, problem, response, mode=mode, variant=variant, thought_open=thought_open)

    def extract(
        self, problem: BenchmarkProblem, response: str, *, mode: Mode = "rule", variant: str | None = None
    ) -> str | None:
        """Return the answer as text."""
        if self._description.grader != "choice":
            return super().extract(problem, response, mode=mode, variant=variant)
        labels = read_labels(response, problem.question)
        return ", ".join(sorted(labels)) if labels else None

    def uses_grader(self, mode: Mode) -> bool:
        """Mathematics alone does."""
        return self._description.grader == "math"

    def compare(self, problem: BenchmarkProblem, extracted: str, *, mode: Mode = "rule") -> Verdict | NeedsSymbolic:
        """Compare as the description's grader does."""
        if self._description.grader == "math":
            return super().compare(problem, extracted, mode=mode)
        if self._description.grader == "choice":
            right = labels_in(extracted.upper()) == labels_in(problem.gold.upper())
        else:
            right = extracted.strip() == problem.gold
        reason = Reason.EXACT if right else Reason.DIFFERENT
        return Verdict(extracted, right, reason, ReadFrom.GIVEN, DecidedBy.EXACT)

    def answer_key(self, extracted: str) -> str:
        """Return one key for equal answers, as the grader sees them."""
        return super().answer_key(extracted) if self._description.grader == "math" else extracted.strip()

    def aggregate(
        self, problems: Sequence[BenchmarkProblem], graded: Mapping[str, Sequence[Verdict]]
    ) -> dict[str, Any]:
        """Return the common metrics, and a table for each column of `by`."""

        def table(column: str) -> dict[str, Any]:
            return as_dicts(accuracy_by(problems, graded, lambda one: (str(value_at(one.extra, column)),)))

        tables = {column: table(column) for column in self._description.by}
        return {**super().aggregate(problems, graded), **tables}

    @property
    def _data(self) -> Path:
        file = self._toml.parent / Path(self._description.data).expanduser()
        if not file.is_file():
            raise UsageError(f"{self._toml}: there is no file {file}, its data: paths are relative to the TOML file.")
        return file

    def _function(self) -> RewardFunction | None:
        if self._description.grader in GRADERS:
            return None
        path = parse_function_path(self._description.grader)
        place = str((self._toml.parent / Path(path.place).expanduser()).resolve()) if path.is_file else path.place
        return RewardFunction(f"{place}:{path.name}")

    def _source(self, function: RewardFunction) -> Path:
        try:
            return source_file(parse_function_path(function.function))
        except UsageError as error:
            raise UsageError(f"{self._toml}: grader: {error}.") from None

    @cached_property
    def _problems(self) -> list[BenchmarkProblem]:
        file = self._data
        self.own_files()  # a grader's file that is missing is said before anything is drawn
        problems = [self._row(row, number, file) for number, row in enumerate(read_rows(file, id_column="id"))]
        if not problems:
            raise UsageError(f"{file} has no rows.")
        for column in self._description.by:
            if all(value_at(problem.extra, column) is None for problem in problems):
                known = list(dict.fromkeys(name for problem in problems for name in problem.extra))
                raise UsageError(
                    f"{self._toml}: by names the column '{column}'{nearest(column, known)}, and no row of {file} has a value"
                    f" there; they have {', '.join(known)}."
                )
        ids = [problem.id for problem in problems]
        if len(set(ids)) != len(ids):
            repeated = next(one for one in ids if ids.count(one) > 1)
            raise UsageError(f"{file} gives the id '{repeated}' to two rows; give each row its own id.")
        self._check_golds(problems, file)
        taken = set(ids)
        return [one if set(one.aliases).isdisjoint(taken) else replace(one, aliases=()) for one in problems]

    def _row(self, row: Row, number: int, file: Path) -> BenchmarkProblem:
        columns, place = self._description.columns, f"Row {number} of {file}"
        question = question_text(value_at(row, columns.question))
        raw = value_at(row, columns.answer)
        gold = answer_text(raw)
        for wanted, found, key in ((columns.question, question, "question"), (columns.answer, gold, "answer")):
            if not found and (wanted in row or value_at(row, wanted) is not None):
                empty = is_missing(value_at(row, wanted)) or isinstance(value_at(row, wanted), str)
                what = f"an empty '{wanted}'" if empty else f"something else than text in '{wanted}'"
                raise UsageError(f"{place} has {what}: mend that row, or take it out.")
            if not found:
                raise UsageError(
                    f"{place} has no text in '{wanted}'{nearest(wanted, row)}; it has {', '.join(row)}: name the column as"
                    f" columns.{key} in {self._toml}."
                )
        own = value_at(row, columns.id)
        identity = str(number) if own is None else answer_text(own) or str(own)
        images = value_at(row, columns.images) if columns.images else None
        names = [images] if isinstance(images, str) else list(images or ())
        if not all(isinstance(name, str) for name in names):
            raise UsageError(f"{place} has something else than paths of images in '{columns.images}'.")
        missing = IMAGE_MARK * max(0, len(names) - question.count(IMAGE_MARK))
        if names and (missing + question).count(IMAGE_MARK) != len(names):
            raise UsageError(f"{place} has {len(names)} images and more marks '{IMAGE_MARK}' in its question.")
        folder = file.parent.resolve()
        aliases = () if identity == str(number) else (str(number),)
        shown = tuple(BenchmarkImage(folder, name) for name in names)
        assert gold is not None  # an empty one was refused
        return BenchmarkProblem(identity, missing + question, gold, raw, shown, dict(row), aliases)

    def _check_golds(self, problems: Sequence[BenchmarkProblem], file: Path) -> None:
        golds = [problem.gold for problem in problems]
        bad = [False] * len(golds)
        if self._description.grader == "math":
            with Grader() as grader:
                bad = grader.unreadable(golds)
        elif self._description.grader == "choice":
            bad = [not labels_in(gold.upper()) for gold in golds]
        if any(bad):
            first = problems[bad.index(True)]
            raise UsageError(
                f"{file}: {sum(bad)} gold answers are nothing that grader = '{self._description.grader}' can find right, first"
                f" '{first.gold[:40]}' of '{first.id}'; mend them, or choose another grader."
            )
