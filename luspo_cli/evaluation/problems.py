"""One problem of a benchmark, and where its data lies: a folder of the user's, else the hub; whole, then cut by `--limit`.

The benchmark itself refuses another number of rows than it has, so a limit is always a stated part of the whole and
never half a file by accident.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luspo_cli.errors import UsageError


@dataclass(frozen=True, slots=True)
class BenchmarkProblem:
    """One problem. `gold` went through the same normaliser as a prediction; `raw_gold` is what the file holds.

    Example:
        BenchmarkProblem("60", "Every morning Aya goes ...", "204", raw_gold="204", aliases=("0",))
    """

    id: str
    question: str
    gold: str
    raw_gold: Any
    images: tuple[str, ...] = ()
    """Paths below the data folder, in the order of the prompt's `<image>` marks."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What the metrics need: level, subject, question type, skills."""
    aliases: tuple[str, ...] = ()
    """Other ids under which a response may be handed in, such as the 0-based row index."""


def benchmark_data(name: str, data: Path, *, several: bool) -> Path:
    """Return the data of the benchmark called `name` on the command line: DATA/NAME, or of one benchmark DATA itself.

    Raises:
        UsageError: there is no such folder or file.
    """
    for folder in (data / name, data / name.partition("-")[0]):  # gsm8k-train lies beside gsm8k, amc23-83 beside amc23
        if folder.is_dir():
            return folder
    if several:
        raise UsageError(f"{data} has no folder '{name}'; with several benchmarks --data holds one folder for each.")
    if not data.exists():
        raise UsageError(f"There is no data file or folder {data}; give the one with the files of {name} to --data.")
    return data


def first_problems(problems: Sequence[BenchmarkProblem], limit: int, name: str) -> list[BenchmarkProblem]:
    """Return the first `limit` problems, all for 0; raises UsageError where there are fewer."""
    if limit > len(problems):
        raise UsageError(f"--limit {limit} is more than the {len(problems)} problems of {name}; leave it out for all.")
    return list(problems[:limit] if limit else problems)
