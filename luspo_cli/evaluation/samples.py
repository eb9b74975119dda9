"""Samples on disk: finished chunks while an evaluation runs, one parquet file when it is done.

Decided here: a chunk of problems appears whole (written under a hidden name, flushed, renamed) or not at all, so a
process killed at any point loses only the chunk in flight. The settings stand beside the chunks, and chunks of other
settings are refused: samples of two models in one score would be a number about neither.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from luspo_cli.config.stored import differing_keys
from luspo_cli.errors import UsageError
from luspo_cli.files import lock, read_object, replacing, said_in_one_sentence, write_json

PARTIAL = ".partial"
MANIFEST = "settings.json"


@dataclass(frozen=True, slots=True)
class StoredSample:
    """One response as the sampler gave it."""

    id: str
    """Of the problem."""
    sample: int
    """Counted from 0 within its problem."""
    prompt_variant: str
    response: str
    response_length: int
    """In tokens, the end-of-sequence token included."""
    stop_reason: str
    seed: int
    thought_open: bool = False
    """Whether the prompt ended inside a thought, so that the response begins there."""


class PartialSamples:
    """The chunks of one benchmark's evaluation in FOLDER/.partial/NAME; one process at a time, in a `with` block."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / PARTIAL / name
        self._lock_path = folder / PARTIAL / f"{name}.lock"
        self._lock: int | None = None

    def settings(self) -> dict[str, Any] | None:
        """Return the settings that the chunks were made with, or None where there are none."""
        return read_object(self.path / MANIFEST)

    def open(self, settings: Mapping[str, Any], *, replace: bool) -> None:
        """Begin, or go on with the chunks that are there.

        Raises:
            UsageError: they have other settings and `replace` is not given, or another process is at work.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = lock(self._lock_path)
        except BlockingIOError:
            raise UsageError(
                f"Another process evaluates {self.path.name} into {self.path.parents[1]}; wait for it or choose --out."
            ) from None
        stored = self.settings()
        if stored is None or (replace and not is_same(stored, settings)):
            shutil.rmtree(self.path)
            self.path.mkdir()
            write_json(self.path / MANIFEST, settings)
        else:
            require_same(stored, settings, f"The unfinished evaluation in {self.path}")
        for leftover in self.path.glob(".*"):
            leftover.unlink()

    def add(self, chunk: int, samples: Sequence[StoredSample]) -> None:
        """Store chunk number `chunk`, on disk before this returns; raises RunError on a full disk."""
        write_parquet(self._file(chunk), [asdict(sample) for sample in samples], _SAMPLE_SCHEMA)

    def get(self, chunk: int, ids: Sequence[str], samples: int) -> list[StoredSample] | None:
        """Return chunk number `chunk` if it holds `samples` samples of each of `ids`, in order; else None."""
        try:
            found = read_samples(self._file(chunk))
        except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged: it is made again
            return None
        wanted = [(identity, number) for identity in ids for number in range(samples)]
        return found if [(sample.id, sample.sample) for sample in found] == wanted else None

    def remove(self) -> None:
        """Delete the chunks: their samples are in the result."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock_path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another benchmark's chunks may be there
            self.path.parent.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _file(self, chunk: int) -> Path:
        return self.path / f"chunk-{chunk:05d}.parquet"


def is_same(stored: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Return whether samples with these settings are the same; the model may have another name where its weights agree."""
    return not _different(stored, settings)


def require_same(stored: Mapping[str, Any], settings: Mapping[str, Any], what: str) -> None:
    """Raise UsageError unless the settings are the same."""
    different = _different(stored, settings)
    if different:
        shown = ", ".join(f"{key} ({_short(was)} there, {_short(now)} now)" for key, was, now in different[:3])
        raise UsageError(
            f"{what} was made with other settings: {shown}; choose another --out, or start again with --replace."
        )


def _different(stored: Mapping[str, Any], settings: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    return [found for found in differing_keys(stored, settings) if found[0] != "model"]


def read_samples(file: Path) -> list[StoredSample]:
    """Return the samples of a chunk or of a finished evaluation, in file order."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as parquet:
        # Samples from before a column was there have its default.
        names = [column.name for column in fields(StoredSample) if column.name in parquet.schema_arrow.names]
        return [StoredSample(**row) for row in parquet.read(columns=names).to_pylist()]


def write_results(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write every sample with its verdicts, whole or not at all; raises RunError where it cannot be written."""
    write_parquet(file, list(rows), _SAMPLE_SCHEMA + _VERDICT_SCHEMA)


def write_parquet(file: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[tuple[str, str]]) -> None:
    """Write `rows` with exactly these (name, arrow type) columns in one move."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(name, pyarrow.type_for_alias(kind)) for name, kind in columns])
    with said_in_one_sentence(file, "then the same command goes on"), replacing(file) as stream:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows], schema=schema), stream)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 24 else f"{text[:12]}…"


_SAMPLE_SCHEMA = (
    ("id", "string"),
    ("sample", "int32"),
    ("prompt_variant", "string"),
    ("response", "string"),
    ("response_length", "int32"),
    ("stop_reason", "string"),
    ("seed", "int64"),
    ("thought_open", "bool"),
)
_VERDICT_SCHEMA = (
    ("gold", "string"),
    ("extracted", "string"),
    ("correct", "bool"),
    ("reason", "string"),
    ("read_from", "string"),
    ("decided_by", "string"),
    ("judge_extracted", "string"),
    ("judge_correct", "bool"),
    ("judge_error", "string"),
)
