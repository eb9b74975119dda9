"""Stored rollouts as they are read: which steps a run has, and columns by name; older runs have fewer columns.

A column that a file lacks is absent from what is returned, never filled: a reader says that the run did not record it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from luspo_cli.errors import UsageError, first_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


def stored_steps(run: Path) -> dict[int, Path]:
    """Step → file of the rollouts that the run folder stores, by step; empty where it stores none."""
    return steps_in(run / "rollouts")


def steps_in(folder: Path) -> dict[int, Path]:
    """Step → file of the responses in a folder of them, by step."""
    named = [(file, file.stem.removeprefix("step-")) for file in folder.glob("step-*.parquet")]
    return dict(sorted((int(step), file) for file, step in named if step.isdecimal()))


def read_columns(file: Path, columns: Sequence[str]) -> pa.Table:
    """Return those of `columns` that the file has, one row a rollout; UsageError where it cannot be read."""
    with _opened(file) as stored:
        present = set(stored.schema_arrow.names)
        return stored.read([name for name in columns if name in present])


def count_rows(file: Path) -> int:
    """How many rollouts the file holds, without reading them; UsageError where it cannot be read."""
    with _opened(file) as stored:
        return int(stored.metadata.num_rows)


@contextmanager
def _opened(file: Path) -> Iterator[pq.ParquetFile]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as stored:
            yield stored
    except (OSError, pa.ArrowException) as error:
        raise UsageError(
            f"{file} cannot be read: {first_line(error)}; restore it, or delete it and go without."
        ) from None


def groups_of(problem_ids: Sequence[str]) -> list[range]:
    """The rows of each group: rollouts of one problem stand next to each other."""
    groups: list[range] = []
    for _, members in groupby(problem_ids):
        start = groups[-1].stop if groups else 0
        groups.append(range(start, start + sum(1 for _ in members)))
    return groups
