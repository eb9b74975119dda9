"""Problems read from parquet in verl's layout: what `luspo prepare-data` writes, and what others publish.

Nothing is guessed and nothing is skipped: a row without a prompt or a gold answer, or an image outside the data
folder, stops the loading with a sentence, because a problem that silently scores zero looks like a hard one. Gold
answers arrive as int, float or text in the wild and become text here. Images are paths, or bytes inside the file, which
are not read before they are asked for. An absolute path is followed only where the manifest beside the file says that it
was written with such paths. Nothing heavy is imported before there is a file to read: the dry run asks here too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luspo_cli.data.prompts import IMAGE_MARK
from luspo_cli.data.values import answer_text
from luspo_cli.errors import UsageError, first_line, nearest
from luspo_cli.files import file_sha256, read_object
from luspo_cli.records import ImageSource, Message, Problem

if TYPE_CHECKING:
    import pyarrow.parquet

    from luspo_cli.data.images import StoredImage

_COLUMNS = ("data_source", "prompt", "images", "reward_model", "extra_info")
_REQUIRED = ("prompt", "reward_model")
_BATCH_ROWS = 4096
_FEW_ROWS = 32
"""Where images come along with their bytes."""


def load_problems(path: str | Path, *, split: str = "train") -> list[Problem]:
    """Return the problems of a parquet file, or of `{split}.parquet` in a folder, in file order.

    Ids are `data_source/split/index`; one that repeats gets `+1`, `+2`, ... appended (the DAPO copy of AIME 2024 holds each
    problem 32 times).

    Raises:
        UsageError: no such file, not verl's layout, no rows, or a row that cannot be used.
    """
    file = _data_file(path, split)
    absolute = _absolute_images(file.parent)
    problems: list[Problem] = []
    ids: dict[str, int] = {}
    for number, row in enumerate(_rows(file)):
        problem = _problem(row, number, file, split, absolute)
        repeats = ids.get(problem.id, 0)
        ids[problem.id] = repeats + 1
        if repeats:
            problem = replace(problem, id=f"{problem.id}+{repeats}")
        problems.append(problem)
    if not problems:
        raise UsageError(f"{file} has no rows; {_make_it(Path(path))}.")
    return problems


def fingerprint(path: str | Path, *, split: str = "train") -> str:
    """Return the sha256, in hex, of the file that `load_problems` reads for the same arguments."""
    return file_sha256(_data_file(path, split))


def _data_file(given: str | Path, split: str) -> Path:
    path = Path(given).expanduser()
    if path.is_dir():
        file = path / f"{split}.parquet"
        if file.is_file():
            return file
        present = sorted(found.name for found in path.glob("*.parquet"))
        found = f"it holds {', '.join(present)}" if present else "it holds no parquet file"
        raise UsageError(f"There is no {split}.parquet in {path} ({found}); {_make_it(path)}.")
    if not path.exists():
        raise UsageError(f"There is no data file or folder {path}; {_make_it(path)}.")
    if path.suffix != ".parquet":
        raise UsageError(
            f"{path} is not a parquet file; turn it into one with "
            f"`luspo prepare-data {path} --question-column Q --answer-column A --out FOLDER`."
        )
    return path


def _make_it(path: Path) -> str:
    from luspo_cli.data.published import PUBLISHED, SOURCE_NAMES

    folder = path.parent if path.suffix else path
    source = next((name for name in SOURCE_NAMES if name in str(path)), "SOURCE")
    options = (PUBLISHED[source].prepared_with,) if source in PUBLISHED else ()
    return f"make it with `{' '.join(['luspo prepare-data', source, *filter(None, options), '--out', str(folder)])}`"


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    from luspo_cli.data.images import StoredImage

    try:
        with pyarrow.parquet.ParquetFile(file) as parquet:
            names = parquet.schema_arrow.names
            for name in _REQUIRED:
                if name not in names:
                    raise UsageError(
                        f"{file} has no column '{name}'{nearest(name, names)}; it has {', '.join(names)}. "
                        "Training data needs verl's layout: run it through `luspo prepare-data` first."
                    )
            columns, at_once = _columns(parquet, [name for name in _COLUMNS if name in names])
            for group in range(parquet.num_row_groups):
                stored, place = _may_hold_bytes(parquet, group), 0
                for batch in parquet.iter_batches(batch_size=at_once, row_groups=[group], columns=columns):
                    for row in batch.to_pylist():
                        row["images"] = _located(row.get("images"), stored, StoredImage(file, group, place, 0))
                        place += 1
                        yield row
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"{file} cannot be read as parquet: {first_line(error)}.") from error


def _columns(parquet: pyarrow.parquet.ParquetFile, names: list[str]) -> tuple[list[str], int]:
    """The columns to read, of images in objects all but their bytes, and how many rows at once."""
    leaves = [parquet.schema.column(place).path for place in range(len(parquet.schema))]
    images = [leaf for leaf in leaves if leaf.split(".")[0] == "images"]
    without = [leaf for leaf in images if leaf.split(".")[-1] != "bytes"]
    if without:
        names = [*(name for name in names if name != "images"), *without]
    may_be_bytes = images and not (without and without != images)
    return names, _FEW_ROWS if may_be_bytes else _BATCH_ROWS


def _may_hold_bytes(parquet: pyarrow.parquet.ParquetFile, group: int) -> bool:
    """Whether a row group has images in objects with bytes, by what its header says of empty places."""
    metadata = parquet.metadata.row_group(group)
    for column in (metadata.column(place) for place in range(metadata.num_columns)):
        path = column.path_in_schema.split(".")
        if path[0] == "images" and path[-1] == "bytes" and column.physical_type == "BYTE_ARRAY":
            known = column.statistics if column.is_stats_set else None
            return known is None or not known.has_null_count or known.null_count < column.num_values
    return False


def _located(images: Any, stored: bool, first: StoredImage) -> list[Any]:
    """A row's images, those that are bytes by where they are; `first` is where the row's first one would be."""
    several = images if isinstance(images, list) else [] if images is None else [images]
    return [
        replace(first, number=number) if isinstance(image, bytes) or (stored and isinstance(image, Mapping)) else image
        for number, image in enumerate(several)
    ]


def _absolute_images(folder: Path) -> bool:
    """Whether the data of a folder was written with absolute paths of its images, by its manifest."""
    from luspo_cli.data.writing import MANIFEST

    images = (read_object(folder / MANIFEST) or {}).get("images")
    return isinstance(images, Mapping) and images.get("stored_as") == "absolute"


def _problem(row: Mapping[str, Any], number: int, file: Path, split: str, absolute: bool) -> Problem:
    place = f"row {number} of {file}"
    source = row.get("data_source") or ""
    extra = row.get("extra_info")
    extra = dict(extra) if isinstance(extra, Mapping) else {}
    reward_model = row.get("reward_model")
    answer = answer_text(reward_model.get("ground_truth") if isinstance(reward_model, Mapping) else None)
    if answer is None:
        raise UsageError(
            f"{place} has no gold answer (reward_model.ground_truth); `luspo prepare-data` leaves such rows out."
        )
    prompt = _messages(row["prompt"], place)
    images = _images(row["images"], prompt, file.parent, place, absolute)
    index = extra.get("index", extra.get("id"))
    identity = f"{source or file.stem}/{extra.get('split') or split}/{number if index is None else index}"
    return Problem(identity, prompt, answer, source, images, extra)


def _messages(turns: Any, place: str) -> tuple[Message, ...]:
    if not isinstance(turns, list) or not turns:
        raise UsageError(
            f"{place}: the prompt is not a list of messages {{role, content}}; run `luspo prepare-data` on it."
        )
    messages = []
    for turn in turns:
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise UsageError(f"{place}: a message of the prompt lacks text in 'role' or 'content'.")
        messages.append(Message(role, content))
    if not any(message.content.strip() for message in messages if message.role == "user"):
        raise UsageError(f"{place}: the prompt has no text from the user.")
    return tuple(messages)


def _images(
    images: list[Any], prompt: tuple[Message, ...], folder: Path, place: str, absolute: bool
) -> tuple[ImageSource, ...]:
    found = tuple(_image(image, folder, place, absolute) for image in images)
    marks = sum(message.content.count(IMAGE_MARK) for message in prompt)
    # Without images, "<image>" is text of the problem.
    if found and marks != len(found):
        raise UsageError(f"{place} has {len(found)} images but {marks} '{IMAGE_MARK}' marks in its prompt.")
    return found


def _image(image: Any, folder: Path, place: str, absolute: bool) -> ImageSource:
    from luspo_cli.data.images import ImageFile, StoredImage, image_file

    if isinstance(image, StoredImage):
        return image
    if isinstance(image, Mapping):
        image = image.get("path") or image.get("image")
    if not isinstance(image, str) or not image:
        raise UsageError(
            f"{place}: an image is neither bytes nor a path to a file below {folder}; run it through `luspo prepare-data`."
        )
    try:
        return ImageFile(image_file(image, folder, absolute=absolute))
    except UsageError as error:
        moved = "; it was prepared with --images absolute: prepare it anew where it is now" if absolute else ""
        raise UsageError(f"{place}: {error}{moved}.") from error
