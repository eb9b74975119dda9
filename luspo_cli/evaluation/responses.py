r"""Responses made elsewhere, one JSON object a line: an id with a `response`, or with a list of `responses`.

Nothing is dropped in silence. A line that cannot be read stops the work and is named by its number; ids that are
missing, unknown or on several lines, and empty responses, are counted and reported, and the report travels with the
result. A further line of one id is a further sample of its problem. Lines end at "\n" alone: U+2028 is text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luspo_cli.errors import UsageError
from luspo_cli.evaluation.benchmark import Benchmark, BenchmarkProblem

_SHAPE = '{"id": ..., "response": "..."} or {"id": ..., "responses": ["...", ...]}'
_IDS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One response to one problem, before it is graded."""

    problem_id: str
    response: str
    extraction: str | None = None
    """The answer, where somebody else extracted it; None: extract it here."""
    truncated: bool | None = None
    """Whether the response limit cut it; None: unknown."""
    response_length: int | None = None
    """In tokens, the end-of-sequence token included; None: unknown."""
    thought_open: bool = False
    """Whether the prompt ended inside a thought, so that the response begins there."""


@dataclass(slots=True)
class ResponseReport:
    """What was handed in, beside what was needed."""

    lines: int = 0
    empty: int = 0
    lines_of: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)

    def to_json(self, problems: Sequence[BenchmarkProblem]) -> dict[str, Any]:
        """Return the counts, and the first ids of each kind."""
        missing = [problem.id for problem in problems if not self.lines_of[problem.id]]
        several = [problem.id for problem in problems if self.lines_of[problem.id] > 1]
        report: dict[str, Any] = {"lines": self.lines, "empty": self.empty}
        for kind, ids in (("missing", missing), ("unknown", list(self.unknown)), ("duplicate", several)):
            report[kind] = len(ids)
            report[f"{kind}_ids"] = ids[:_IDS_SHOWN]
        return report


def read_responses(
    file: Path, benchmark: Benchmark, problems: Sequence[BenchmarkProblem], report: ResponseReport
) -> Iterator[Sample]:
    """Yield the samples of `file` one at a time, in file order, and count into `report`.

    Raises:
        UsageError: the file is not there, or a line is none of the two shapes.
    """
    names = {alias: problem.id for problem in problems for alias in problem.aliases}
    names.update({problem.id: problem.id for problem in problems})
    try:
        with file.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                line = raw.strip()
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line:
                    report.lines += 1
                    yield from _samples(_row(line, number, file), number, file, benchmark, names, report)
    except OSError as error:
        raise UsageError(f"The responses file {file} cannot be read: {error.strerror or error}.") from error
    if report.lines == 0:
        raise UsageError(f"The responses file {file} is empty; it needs lines such as {_SHAPE}.")
    if not report.lines_of:
        first, wanted = ", ".join(list(report.unknown)[:3]), ", ".join(problem.id for problem in problems[:3])
        raise UsageError(
            f"No id in {file} is one of {benchmark.name}: it has {first}, ..., and the benchmark {wanted}, ...; name the"
            " benchmark that the responses are for, or give each line its problem's id."
        )


def _row(line: bytes, number: int, file: Path) -> Mapping[str, Any]:
    if line.startswith(b"PAR1"):
        raise UsageError(f"{file} is a parquet file; responses are read from JSON lines, each {_SHAPE}.")
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(
            f"Line {number} of {file} is not UTF-8 text (byte {error.start}); convert the file."
        ) from error
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply or a number too long"
        raise UsageError(f"Line {number} of {file} is not JSON ({reason}); it must be {_SHAPE}.") from error
    if not isinstance(row, Mapping):
        raise UsageError(f"Line {number} of {file} is not an object; it must be {_SHAPE}.")
    return row


def _samples(
    row: Mapping[str, Any],
    number: int,
    file: Path,
    benchmark: Benchmark,
    names: Mapping[str, str],
    report: ResponseReport,
) -> Iterator[Sample]:
    place = f"Line {number} of {file}"
    identity = benchmark.row_id(row)
    if identity is None:
        raise UsageError(f"{place} has no id; it must be {_SHAPE}.")
    several = "responses" in row
    if several == ("response" in row):
        raise UsageError(f"{place} needs either 'response' or 'responses'; it must be {_SHAPE}.")
    responses = row["responses"] if several else [row["response"]]
    if not isinstance(responses, list):
        raise UsageError(f"{place}: 'responses' is not a list; it must be {_SHAPE}.")
    for response in responses:
        if response is not None and not isinstance(response, str):
            raise UsageError(f"{place} has a response that is not text; it must be {_SHAPE}.")
    keys = ("extraction", "truncated", "response_length", "thought_open")
    columns = {key: _column(row, key, len(responses), several, place) for key in keys}
    for key in ("truncated", "thought_open"):
        if any(value is not None and not isinstance(value, bool) for value in columns[key]):
            raise UsageError(f"{place}: '{key}' must be true or false, not {row[key]!r}.")
    lengths = [_length(value, place) for value in columns["response_length"]]
    problem_id = names.get(identity)
    if problem_id is None:
        report.unknown[identity] += 1
        return
    report.lines_of[problem_id] += bool(responses)  # of an empty list the response is missing
    for at, response in enumerate(responses):
        report.empty += not (response or "").strip()
        extraction = columns["extraction"][at]
        yield Sample(
            problem_id,
            response or "",
            None if extraction is None else benchmark.read_extraction(extraction),
            columns["truncated"][at],
            lengths[at],
            columns["thought_open"][at] is True,
        )


def _length(value: Any, place: str) -> int | None:
    if isinstance(value, float) and value.is_integer():  # tables write whole numbers as 12.0
        value = int(value)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise UsageError(f"{place}: 'response_length' must be a number of tokens, 0 or more, not {value!r}.")


def _column(row: Mapping[str, Any], key: str, count: int, several: bool, place: str) -> list[Any]:
    """Return the values of an optional key, one a response."""
    value = row.get(key)
    if value is None or not several:
        return [value] * count
    if not isinstance(value, list) or len(value) != count:
        raise UsageError(f"{place}: '{key}' must be a list with one entry for each of the {count} responses.")
    return value
