"""One problem of a benchmark, and where its data lies: a folder of the user's, else the hub; whole, then cut by `--limit`.

A file with another number of rows, a repeated id or a missing column stops with one sentence, so a limit is always a stated
part of the whole and never half a file by accident.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luspo_cli.data.images import ImageFile, image_file
from luspo_cli.data.left_out import LeftOut, UnusableImage
from luspo_cli.data.reading import Row, read_rows
from luspo_cli.errors import UsageError
from luspo_cli.records import ImageSource


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
    images: tuple[ImageSource, ...] = ()
    """In the order of the prompt's `<image>` marks."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What the metrics need: level, subject, question type, skills."""
    aliases: tuple[str, ...] = ()
    """Other ids under which a response may be handed in, such as the 0-based row index."""


@dataclass(frozen=True, slots=True)
class BenchmarkImage:
    """An image that lies beside a benchmark's file; it is looked for when it is asked for, since scoring needs no pictures."""

    folder: Path
    name: str
    """Its path below the folder, as the benchmark's file has it."""

    def load(self) -> Any:
        """As `ImageFile.load`; UsageError as well where the path leaves the folder."""
        return ImageFile(image_file(self.name, self.folder)).load()

    def size(self) -> tuple[int, int]:
        """As `ImageFile.size`; raises UsageError as `load` does."""
        return ImageFile(image_file(self.name, self.folder)).size()

    def is_there(self) -> bool:
        """Whether there is such a file; a path that leaves the folder is refused when the image is loaded."""
        try:
            image_file(self.name, self.folder)
        except UnusableImage as error:
            return error.reason is not LeftOut.IMAGE_MISSING
        return True


def require_images(problems: Sequence[BenchmarkProblem], benchmark: str, published: str) -> None:
    """UsageError where images of the problems are missing beside the benchmark's file; `published`: where they come from."""
    images = [image for problem in problems for image in problem.images if isinstance(image, BenchmarkImage)]
    missing = [image for image in images if not image.is_there()]
    if missing:
        first = missing[0]
        raise UsageError(
            f"{len(missing)} of the {len(images)} images of {benchmark} are missing in {first.folder}, the first {first.name}:"
            f" put the images of {published} there, under the names that its file has (docs/benchmarks-vision.md)."
        )


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


def whole_table(
    source: Path, files: Sequence[str], columns: Sequence[str], size: int, benchmark: str, *, ids: int = 1
) -> tuple[Path, list[Row]]:
    """The benchmark's file (`source`, or the first of `files` in it) and its rows; the first `ids` columns name a row.

    Raises:
        UsageError: there is no such file, or not `size` rows, all with `columns` and each with a name of its own.
    """
    path = next((file for file in (source, *(source / name for name in files)) if file.is_file()), None)
    if path is None:
        raise UsageError(f"{source} holds no {benchmark} data; give a folder with {' or '.join(files)}, or that file.")
    rows = list(read_rows(path, id_column=columns[0]))
    for number, row in enumerate(rows, start=1):
        missing = [column for column in columns if column not in row]
        if missing:
            raise UsageError(f"Row {number} of {path} has no '{missing[0]}'; this is not the {benchmark} file.")
    counts = Counter("/".join(str(row[column]) for column in columns[:ids]) for row in rows)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise UsageError(f"{path} holds the id '{repeated[0]}' more than once; download it again.")
    if len(rows) != size:
        raise UsageError(f"{path} holds {len(rows):,} rows and {benchmark} has {size:,}; download it again.")
    return path, rows
