"""Read the rows of a vision benchmark: a JSON object keyed by id, a JSON array, JSON lines or parquet.

A file with another number of rows, a repeated id or a missing column stops with one sentence: a benchmark is never
scored on part of its problems.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from luspo_cli.errors import UsageError


def data_file(source: Path, names: Sequence[str], benchmark: str) -> Path:
    """The benchmark's file: `source` itself, or the first of `names` in the folder `source`; raises UsageError."""
    if source.is_file():
        return source
    for name in names:
        if (source / name).is_file():
            return source / name
    raise UsageError(f"{source} holds no {benchmark} data; give a folder with {' or '.join(names)}, or that file.")


def read_rows(path: Path, id_column: str) -> list[dict[str, Any]]:
    """All rows of `path`; of a JSON object keyed by id, the key fills `id_column` where a row has none."""
    if path.suffix == ".parquet":
        import pandas as pd

        return [{str(name): value for name, value in row.items()} for row in pd.read_parquet(path).to_dict("records")]
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        loaded = json.loads(text, object_pairs_hook=_without_repeated_keys)
    except ValueError as error:
        raise UsageError(f"{path} could not be read as JSON ({error}); download it again.") from error
    if isinstance(loaded, dict):
        return [{id_column: key, **row} for key, row in loaded.items()]
    if isinstance(loaded, list):
        return loaded
    raise UsageError(f"{path} holds neither an object nor an array of problems; download it again.")


def check_rows(
    rows: Sequence[dict[str, Any]], ids: Iterable[str], columns: Sequence[str], size: int, path: Path, benchmark: str
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


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if repeated:
        raise ValueError(f"the key '{repeated[0]}' occurs more than once")
    return dict(pairs)
