"""The data folder appears whole or not at all.

Rows go out in verl's layout, one row group at a time. The folder that a new one replaces is only ever one that
`luspo prepare-data` wrote itself (it holds a manifest.json).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import pyarrow
import pyarrow.parquet

from luspo_cli.errors import UsageError
from luspo_cli.files import replacing_folder, said_in_one_sentence
from luspo_cli.records import Message

MANIFEST = "manifest.json"
_ROWS_PER_GROUP = 2048
_IMAGE_BYTES_PER_GROUP = 4 * 2**20
"""Reading one image reads those of its row group."""

IfExists = Literal["refuse", "replace"]
StoredAs = Literal["relative", "absolute", "bytes"]
"""How a row of the parquet names its images."""


@dataclass(frozen=True, slots=True)
class Layout:
    """verl's layout, with the further fields of `extra_info` that the sources fill."""

    images: StoredAs = "relative"
    facts: Mapping[str, type] = field(default_factory=dict)

    def schema(self) -> pyarrow.Schema:
        """`index` numbers the rows of the file, `source_row` those of the source's split."""
        text, number = pyarrow.string(), pyarrow.int64()
        message = pyarrow.struct([("role", text), ("content", text)])
        facts = [(name, text if kind is str else pyarrow.float64()) for name, kind in self.facts.items()]
        image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", text)]) if self.images == "bytes" else text
        return pyarrow.schema(
            [
                ("data_source", text),
                ("prompt", pyarrow.list_(message)),
                ("images", pyarrow.list_(image)),
                ("ability", text),
                ("reward_model", pyarrow.struct([("style", text), ("ground_truth", text)])),
                (
                    "extra_info",
                    pyarrow.struct(
                        [("split", text), ("index", number), ("source_row", number), ("question", text), *facts]
                    ),
                ),
            ]
        )


class SplitWriter:
    """Writes one parquet file in row groups; closing it twice is fine. A file whose rows have no images has no such column."""

    def __init__(self, file: Path, split: str, layout: Layout | None = None) -> None:
        self.rows = 0
        self._file = file
        self._split = split
        self._schema = (layout or Layout()).schema()
        self._buffer: list[dict[str, Any]] = []
        self._image_bytes = 0
        self._with_images = False
        self._writer = pyarrow.parquet.ParquetWriter(file, self._schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()
        self._writer.close()
        if kind is None and not self._with_images:
            self._drop_images()

    def add(
        self,
        data_source: str,
        prompt: tuple[Message, ...],
        answer: str,
        extra: Mapping[str, Any],
        images: Sequence[Any] = (),
    ) -> None:
        """Append one problem; its index is its row number. `images` are as the layout has them: paths, or bytes in objects."""
        self._buffer.append(
            {
                "data_source": data_source,
                "prompt": [{"role": message.role, "content": message.content} for message in prompt],
                "images": [*images],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": answer},
                "extra_info": {**extra, "split": self._split, "index": self.rows},
            }
        )
        self.rows += 1
        self._with_images = self._with_images or bool(images)
        self._image_bytes += sum(len(image["bytes"]) for image in images if isinstance(image, Mapping))
        if len(self._buffer) >= _ROWS_PER_GROUP or self._image_bytes >= _IMAGE_BYTES_PER_GROUP:
            self.flush()

    def copy(self, row: Mapping[str, Any]) -> None:
        """Append a row that another split's file held; its source row stays."""
        prompt = tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"])
        answer = row["reward_model"]["ground_truth"]
        self.add(row["data_source"], prompt, answer, row["extra_info"], row.get("images") or ())

    def flush(self) -> None:
        """Write the buffered rows as one row group."""
        if self._buffer:
            self._writer.write_table(pyarrow.Table.from_pylist(self._buffer, schema=self._schema))
            self._buffer.clear()
            self._image_bytes = 0

    def _drop_images(self) -> None:
        with_column = self._file.with_name(f".{self._file.name}")
        self._file.rename(with_column)
        place = self._schema.get_field_index("images")
        with (
            pyarrow.parquet.ParquetFile(with_column) as read,
            pyarrow.parquet.ParquetWriter(self._file, self._schema.remove(place)) as written,
        ):
            for group in range(read.num_row_groups):
                written.write_table(read.read_row_group(group).remove_column(place))
        with_column.unlink()


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
