"""The data folder appears whole or not at all.

Rows go out in verl's layout, one row group at a time. The folder that a new one replaces is only ever one that
`luspo prepare-data` wrote itself (it holds a manifest.json).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import pyarrow
import pyarrow.parquet

from luspo_cli.errors import UsageError
from luspo_cli.files import replacing_folder, said_in_one_sentence
from luspo_cli.records import Message

MANIFEST = "manifest.json"
_ROWS_PER_GROUP = 2048

IfExists = Literal["refuse", "replace"]

SCHEMA = pyarrow.schema(
    [
        ("data_source", pyarrow.string()),
        ("prompt", pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))),
        ("ability", pyarrow.string()),
        ("reward_model", pyarrow.struct([("style", pyarrow.string()), ("ground_truth", pyarrow.string())])),
        (
            "extra_info",
            pyarrow.struct(
                [
                    ("split", pyarrow.string()),
                    ("index", pyarrow.int64()),
                    ("source_row", pyarrow.int64()),
                    ("question", pyarrow.string()),
                ]
            ),
        ),
    ]
)
"""verl's layout; `index` numbers the rows of the file, `source_row` those of the source's split."""


class SplitWriter:
    """Writes one parquet file in row groups; closing it twice is fine."""

    def __init__(self, file: Path, split: str) -> None:
        self.rows = 0
        self._split = split
        self._buffer: list[dict[str, Any]] = []
        self._writer = pyarrow.parquet.ParquetWriter(file, SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()
        self._writer.close()

    def add(self, data_source: str, prompt: tuple[Message, ...], answer: str, source_row: int, question: str) -> None:
        """Append one problem; its index is its row number."""
        self._buffer.append(
            {
                "data_source": data_source,
                "prompt": [{"role": message.role, "content": message.content} for message in prompt],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": answer},
                "extra_info": {
                    "split": self._split,
                    "index": self.rows,
                    "source_row": source_row,
                    "question": question,
                },
            }
        )
        self.rows += 1
        if len(self._buffer) >= _ROWS_PER_GROUP:
            self.flush()

    def copy(self, row: Mapping[str, Any]) -> None:
        """Append a row that another split's file held; its source row stays."""
        extra = row["extra_info"]
        prompt = tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"])
        answer = row["reward_model"]["ground_truth"]
        self.add(row["data_source"], prompt, answer, extra["source_row"], extra["question"])

    def flush(self) -> None:
        """Write the buffered rows as one row group."""
        if self._buffer:
            self._writer.write_table(pyarrow.Table.from_pylist(self._buffer, schema=SCHEMA))
            self._buffer.clear()


def check_output(out: Path, if_exists: IfExists) -> None:
    """Raise UsageError where `out` is taken and may not be replaced."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if not out.exists() and not out.is_symlink():
        return
    if not (out.is_dir() and (out / MANIFEST).is_file()):
        raise UsageError(f"{out} exists and was not written by prepare-data; choose another --out.")
    if if_exists == "refuse":
        raise UsageError(f"{out} holds prepared data; give --if-exists replace, or choose another --out.")


@contextmanager
def new_folder(out: Path, if_exists: IfExists) -> Iterator[Path]:
    """Yield a folder beside `out` that takes its place when the block ends well, and is removed when it does not.

    Raises:
        UsageError: `out` is taken.
        RunError: the disk is full or cannot be written.
    """
    check_output(out, if_exists)
    then, left = "then give the same command again", "nothing half-written is left"
    with said_in_one_sentence(out, then, left), replacing_folder(out.absolute()) as folder:
        yield folder
        check_output(out, if_exists)  # it may have appeared meanwhile


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write manifest.json, keys sorted: the same content gives the same bytes."""
    text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
