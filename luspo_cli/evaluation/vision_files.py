"""The file of a vision benchmark, and whether its rows are the whole benchmark.

A file with another number of rows, a repeated id or a missing column stops with one sentence: a benchmark is never
scored on part of its problems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from luspo_cli.data.reading import Row
from luspo_cli.errors import UsageError


def data_file(source: Path, names: Sequence[str], benchmark: str) -> Path:
    """The benchmark's file: `source` itself, or the first of `names` in the folder `source`; raises UsageError."""
    if source.is_file():
        return source
    for name in names:
        if (source / name).is_file():
            return source / name
    raise UsageError(f"{source} holds no {benchmark} data; give a folder with {' or '.join(names)}, or that file.")


def check_rows(
    rows: Sequence[Row], ids: Iterable[str], columns: Sequence[str], size: int, path: Path, benchmark: str
) -> None:
    """Raise UsageError unless there are `size` rows, all with `columns`, and no id occurs twice."""
    for number, row in enumerate(rows, start=1):
        missing = [column for column in columns if column not in row]
        if missing:
            raise UsageError(f"Row {number} of {path} has no '{missing[0]}'; this is not the {benchmark} file.")
    repeated = [identifier for identifier, count in Counter(ids).items() if count > 1]
    if repeated:
        raise UsageError(f"{path} holds the id '{repeated[0]}' more than once; download it again.")
    if len(rows) != size:
        raise UsageError(f"{path} holds {len(rows):,} rows and {benchmark} has {size:,}; download it again.")
