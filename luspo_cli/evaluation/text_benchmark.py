"""What the text benchmarks share: rows in any published layout become problems, and answers are looked for where the
prompt asks for them.

Column names are matched in any case (`Problem`, `question`, a verl `prompt`; `answer`, `reward_model.ground_truth`).
A wrong number of problems stops the work: half a benchmark gives a number that nobody can compare.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from luspo_cli.data.prompts import BOXED_SUFFIX, DAPO, QWEN_BOXED, PromptTemplate
from luspo_cli.data.reading import ANSWER_COLUMNS, QUESTION_COLUMNS, Row, data_files, read_rows, value_at
from luspo_cli.data.values import question_text
from luspo_cli.errors import UsageError, first_line
from luspo_cli.evaluation.benchmark import Benchmark, BenchmarkProblem, Mode
from luspo_cli.grading.answers import AnswerMark, Extraction, extract_answer
from luspo_cli.grading.grader import compare
from luspo_cli.grading.maths.decide import answer_key
from luspo_cli.grading.prompts import mark_of_prompt
from luspo_cli.grading.verdict import NO_ANSWER, NeedsSymbolic, ReadFrom, Verdict

_IDS = ("unique_id", "id", "problem_idx", "extra_info.index", "extra_info.id", "index")


BOXED_PROMPTS = {"qwen-boxed": QWEN_BOXED, "verl": BOXED_SUFFIX, "dapo": DAPO}


class TextBenchmark(Benchmark):
    """A benchmark of questions in words with one gold answer each."""

    files: tuple[str, ...]
    """Names looked for in a data folder, in this order."""
    prompts: Mapping[str, PromptTemplate] = BOXED_PROMPTS

    def problems(self, source: Path) -> list[BenchmarkProblem]:
        """Read the problems of a folder or file; raises UsageError where it is not this benchmark."""
        file = self._file(Path(source))
        return self.read(read_rows(file), str(file))

    def from_hub(self) -> list[BenchmarkProblem]:
        """Download the problems from the hub (`id:config:split`); raises UsageError where they cannot be had."""
        return self.read(_hub_rows(self.hub_ids[0]), self.hub_ids[0])

    def read(self, rows: Iterable[Row], place: str) -> list[BenchmarkProblem]:
        """Turn rows into problems and check their number; a problem that is repeated equally often counts once."""
        ids_of: dict[tuple[str, str], list[str | None]] = {}
        made: dict[tuple[str, str], BenchmarkProblem] = {}
        for number, row in enumerate(rows):
            row = {key.lower(): value for key, value in row.items()}
            own = next((found for name in _IDS if (found := value_at(row, name)) is not None), None)
            problem = self._problem(row, own, number, place)
            key = (problem.question, problem.gold)
            made.setdefault(key, problem)
            ids_of.setdefault(key, []).append(None if own is None else problem.id)
        problems = list(made.values())
        repeats_of = [len(ids) for ids in ids_of.values()]
        if len(problems) != self.size or len(set(repeats_of)) != 1:
            raise UsageError(self._wrong_size(sum(repeats_of), len(problems), place))
        if repeats_of[0] > 1:
            problems = [_merge(problem, ids_of[key], n) for n, (key, problem) in enumerate(made.items())]
        if len({problem.id for problem in problems}) != len(problems):
            raise UsageError(f"{place} gives one id to two problems; give each row its own id.")
        return _without_ambiguous_aliases(problems)

    def extract(
        self, problem: BenchmarkProblem, response: str, *, mode: Mode = "rule", variant: str | None = None
    ) -> str | None:
        """Return the marked answer: where the prompt `variant` asks for it first, then in the other usual places."""
        found = self.find(problem, response, mode=mode, variant=variant)
        return None if found is None else found.text

    def find(
        self,
        problem: BenchmarkProblem,
        response: str,
        *,
        mode: Mode = "rule",
        variant: str | None = None,
        thought_open: bool = False,
    ) -> Extraction | None:
        """Return the answer as the reward of training reads it."""
        return extract_answer(response, self.mark(variant), thought_open=thought_open)

    def mark(self, variant: str | None) -> AnswerMark:
        """Return the mark that the prompt `variant` asks for; responses to an unknown prompt (None) are read as boxed."""
        if variant is None:
            return AnswerMark.BOX
        return mark_of_prompt(turn.content for turn in self.template(variant).render(""))

    def uses_grader(self, mode: Mode) -> bool:
        """All text benchmarks do; an official mode is the benchmark's own script."""
        return mode == "rule"

    def compare(self, problem: BenchmarkProblem, extracted: str, *, mode: Mode = "rule") -> Verdict | NeedsSymbolic:
        """Compare an extracted answer with the gold answer; blank text is no answer."""
        if not extracted.strip():
            return NO_ANSWER
        decision = compare(problem.gold, extracted)
        if decision is None:
            return NeedsSymbolic(extracted, problem.gold, extracted)
        return decision.verdict(Extraction(extracted, ReadFrom.GIVEN))

    def answer_key(self, extracted: str) -> str:
        """Return one key for equal numbers and equal spellings."""
        return answer_key(extracted)

    def normalise_gold(self, raw: Any, place: str) -> str:
        """Return the gold as it is, since comparison normalises both sides alike; raises UsageError where there is none."""
        if isinstance(raw, bool) or not isinstance(raw, str | int | float) or not str(raw).strip():
            raise UsageError(f"{place} has no gold answer; give the complete benchmark with --data.")
        return str(raw).strip()

    def details(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the metrics need of a row."""
        return {}

    def _problem(self, row: Mapping[str, Any], own: Any, number: int, place: str) -> BenchmarkProblem:
        question = question_text(next((row[name] for name in QUESTION_COLUMNS if row.get(name) is not None), None))
        raw = next((found for name in ANSWER_COLUMNS if (found := value_at(row, name)) is not None), None)
        if not question or raw is None:
            lacking = "question" if not question else "gold answer"
            raise UsageError(
                f"Row {number} of {place} has no {lacking}; {self.name} is published as {self.hub_ids[0]}."
            )
        aliases = () if own is None or str(own) == str(number) else (str(number),)
        identity = str(number if own is None else own)
        gold = self.normalise_gold(raw, f"Row {number} of {place}")
        return BenchmarkProblem(identity, question, gold, raw, extra=self.details(row), aliases=aliases)

    def _file(self, source: Path) -> Path:
        if source.is_file():
            return source
        if not source.is_dir():
            raise UsageError(
                f"There is no data file or folder {source}; {self.name} is published as {self.hub_ids[0]}."
            )
        for name in self.files:
            if (source / name).is_file():
                return source / name
        present = data_files(source)
        if len(present) == 1:
            return present[0]
        wanted = " or ".join(self.files)
        names = ", ".join(file.name for file in present) or "no data file"
        raise UsageError(f"{source} holds {names} and {self.name} needs {wanted}; give that file itself with --data.")

    def _wrong_size(self, rows: int, problems: int, place: str) -> str:
        have = f"{rows} rows" if rows == problems else f"{rows} rows with {problems} different problems"
        return f"{place} has {have}, and {self.name} has {self.size} problems; give the complete benchmark with --data."


def _without_ambiguous_aliases(problems: list[BenchmarkProblem]) -> list[BenchmarkProblem]:
    """Drop row numbers as ids where one of them is another row's own id: AMC23's 40 problems have ids up to 49."""
    ids = {problem.id for problem in problems}
    if all(alias not in ids for problem in problems for alias in problem.aliases):
        return problems
    return [replace(problem, aliases=()) for problem in problems]


def _merge(problem: BenchmarkProblem, ids: list[str | None], number: int) -> BenchmarkProblem:
    """One problem for rows that repeat it; the rows' own ids all lead to it, unless they are mere row numbers."""
    named = [identity for identity in dict.fromkeys(ids) if identity is not None]
    return replace(problem, id=named[0] if named else str(number), aliases=tuple(named[1:]))


def _hub_rows(name: str) -> Iterator[Row]:
    import datasets

    hub_id, config, split = [*name.split(":"), "", ""][:3]
    for part in config.split("+"):  # AIME25 is published in two configurations
        try:
            yield from datasets.load_dataset(hub_id, part or None, split=split or "test")
        except Exception as error:
            raise UsageError(
                f"{name} cannot be had from the hub ({first_line(error)}); give a local copy with --data."
            ) from error
