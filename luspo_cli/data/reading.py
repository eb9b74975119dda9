r"""Rows of a data file, one dict at a time: JSON lines, CSV, TSV, parquet and Arrow in bounded memory, and JSON arrays.

JSON lines are split at "\n" only: U+2028, which `str.splitlines` takes for a line end, is text in GSM8K. A file that
cannot be read stops the work at its first bad line; what is wrong with a row's content is not decided here.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from luspo_cli.data.image_columns import is_image_column
from luspo_cli.errors import UsageError, first_line, nearest
from luspo_cli.files import read_object

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".arrow", ".feather")
_ARROW = (".arrow", ".feather")
QUESTION_COLUMNS = ("question", "problem", "prompt", "query")
ANSWER_COLUMNS = ("answer", "reward_model.ground_truth", "ground_truth", "final_answer", "gold")
_DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "manifest.json")
"""Of a table, by the hub's clients and by `luspo prepare-data`."""
_BATCH_ROWS = 1024
_LARGE_ROWS = 8
_READ_AT_ONCE = 2**20
_SHOWN_COLUMNS = 20

Row = Mapping[str, Any]


def read_rows(file: Path, columns: Sequence[str] = (), *, id_column: str | None = None) -> Iterator[Row]:
    """Yield the rows of `file`; of a parquet file only the (top-level) `columns`, where any are named.

    In an object of objects, as some benchmarks are published, the key of a row fills its `id_column` where it has none.

    Raises:
        UsageError: a suffix that is none of `SUFFIXES`, or content that does not fit the suffix.
    """
    suffix = file.suffix.lower()
    try:
        if suffix == ".jsonl":
            yield from _json_lines(file)
        elif suffix == ".json":
            yield from _json(file, id_column)
        elif suffix == ".parquet":
            yield from _parquet(file, columns)
        elif suffix in _ARROW:
            yield from _arrow(file)
        elif suffix in (".csv", ".tsv"):
            yield from _csv(file, "," if suffix == ".csv" else "\t")
        else:
            raise UsageError(f"{file} is of no kind that can be read; there are {', '.join(SUFFIXES)}.")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text (byte {error.start}); convert it first.") from error
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror or error}.") from error


def column_names(file: Path) -> list[str]:
    """Return the columns of a file, nested ones dotted: all of a parquet file, those of the first row otherwise."""
    if file.suffix.lower() == ".parquet":
        import pyarrow.types

        names = []
        for field in _parquet_schema(file):
            names.append(field.name)
            if pyarrow.types.is_struct(field.type):
                names.extend(f"{field.name}.{field.type.field(i).name}" for i in range(field.type.num_fields))
        return names
    first = next(iter(read_rows(file)), None)
    if first is None:
        raise UsageError(f"{file} has no rows.")
    names = []
    for name, value in first.items():
        names.append(name)
        if isinstance(value, Mapping):
            names.extend(f"{name}.{inner}" for inner in value)
    return names


def choose_column(names: Sequence[str], wanted: str | None, usual: Sequence[str], *, option: str, place: str) -> str:
    """Return `wanted`, or the first of the `usual` names that occurs, in any case; the rest is for the message.

    Raises:
        UsageError: there is no such column; the message lists those there are.
    """
    lower = {name.lower(): name for name in names}
    for name in (wanted,) if wanted else usual:
        found = name if name in names else lower.get(name.lower())
        if found is not None:
            return found
    there = _listed([name for name in names if "." not in name])
    if wanted:
        raise UsageError(f"{place} has no column '{wanted}'{nearest(wanted, names)}; it has {there}.")
    raise UsageError(f"{place} has none of the columns {', '.join(usual)}; it has {there}. Name one with {option}.")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN_COLUMNS]) + (
        f" and {more} more" if (more := len(names) - _SHOWN_COLUMNS) > 0 else ""
    )


def value_at(row: Row, column: str) -> Any:
    """Return `row[column]`, looking into nested rows for a dotted name; None where it is absent."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def data_files(folder: Path) -> list[Path]:
    """Return the readable data files in `folder` (not below it), sorted by name; none that is hidden, or describes others.

    Of a folder that `datasets` saved they are those that its state.json names: what the library cached lies beside them.
    """
    there = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    found = sorted(path for path in there if not path.name.startswith("."))
    state = folder / "state.json"
    saved = read_object(state) if state in found else None
    if saved is not None and isinstance(files := saved.get("_data_files"), list):
        named = {file.get("filename") for file in files if isinstance(file, Mapping)}
        return [path for path in found if path.name in named]
    return [path for path in found if path.name not in _DESCRIPTIONS]


def saved_splits(folder: Path) -> list[str]:
    """The splits of a folder that `DatasetDict.save_to_disk` wrote, each a folder below it; [] of any other one."""
    said = (read_object(folder / "dataset_dict.json") or {}).get("splits")
    return [name for name in said if isinstance(name, str)] if isinstance(said, list) else []


def _json_lines(file: Path) -> Iterator[Row]:
    with file.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip(" \t\r\n")
            if line:
                yield _json_row(line, f"line {number} of {file}")


def _json(file: Path, id_column: str | None) -> Iterator[Row]:
    try:
        content = _parsed(file.read_text(encoding="utf-8-sig"), str(file))
    except json.JSONDecodeError as error:
        if error.msg.startswith("Extra data"):  # JSON lines under the name of JSON
            yield from _json_lines(file)
            return
        raise UsageError(f"{file} is not JSON: {error.msg} in line {error.lineno}.") from error
    if isinstance(content, Mapping) and _is_by_columns(content):
        raise UsageError(
            f"{file} is one object of columns ({_listed([*content])}), not of rows; write it by rows, in pandas with"
            " orient='records'."
        )
    if isinstance(content, Mapping) and content and all(isinstance(value, Mapping) for value in content.values()):
        content = [({} if id_column is None else {id_column: key}) | row for key, row in content.items()]
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list) or not all(isinstance(row, Mapping) for row in content):
        raise UsageError(f"{file} is not a list of objects, an object of objects, or JSON lines.")
    yield from content


def _is_by_columns(content: Mapping[str, Any]) -> bool:
    """Whether an object holds a table by columns: lists of one length, or objects whose keys are row numbers."""
    values = list(content.values())
    if len(values) > 1 and all(isinstance(value, list) and len(value) > 1 for value in values):
        return len({len(value) for value in values}) == 1
    numbers = [str(number) for number in range(len(values[0]))] if values and isinstance(values[0], Mapping) else []
    return bool(numbers) and all(isinstance(value, Mapping) and list(value) == numbers for value in values)


def _json_row(line: str, place: str) -> Row:
    try:
        row = _parsed(line, place)
    except json.JSONDecodeError as error:
        raise UsageError(f"{place} is not JSON: {error.msg}.") from error
    if not isinstance(row, Mapping):
        raise UsageError(f"{place} is not a JSON object.")
    return row


def _parsed(text: str, place: str) -> Any:
    """Return the content of JSON text; raises JSONDecodeError where it is none, and UsageError where it cannot be taken."""
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _without_repeated_keys(pairs, place))
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # Python reads no whole number of more than 4,300 digits
        raise UsageError(f"{place} holds a number with too many digits; write it as text, in quotes.") from error
    except RecursionError as error:
        raise UsageError(f"{place} is not JSON: nested too deeply.") from error


def _without_repeated_keys(pairs: list[tuple[str, Any]], place: str) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        _refuse_repeated([key for key, _ in pairs], place)
    return row


def _refuse_repeated(names: Sequence[str], place: str) -> None:
    """Raise UsageError where a name occurs twice: the last of its values would be taken without a word."""
    for name, count in Counter(names).items():
        if count > 1:
            raise UsageError(f"{place} names '{name}' more than once; keep one of them.")


def _csv(file: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(1 << 24)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
        try:
            _refuse_repeated([name for name in reader.fieldnames or () if name.strip()], f"the header of {file}")
            for row in reader:
                if None in row:
                    raise UsageError(f"line {reader.line_num} of {file} has more fields than the header.")
                yield row
        except csv.Error as error:
            raise UsageError(f"line {reader.line_num} of {file} is not CSV: {error}.") from error


def _parquet(file: Path, columns: Sequence[str]) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        # A row group may hold gigabytes of images: it is read page by page, one group after the other, few rows at a time.
        with pyarrow.parquet.ParquetFile(file, buffer_size=_READ_AT_ONCE, pre_buffer=False) as parquet:
            _refuse_repeated(parquet.schema_arrow.names, str(file))
            names = list(dict.fromkeys(columns)) or None
            large = any(is_image_column(name) for name in names or parquet.schema_arrow.names)
            at_once = _LARGE_ROWS if large else _BATCH_ROWS
            for group in range(parquet.num_row_groups):
                for batch in parquet.iter_batches(batch_size=at_once, row_groups=[group], columns=names):
                    yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise _no_parquet(file, error) from error


def _parquet_schema(file: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_schema(file)
    except pyarrow.ArrowException as error:
        raise _no_parquet(file, error) from error
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror or error}.") from error


def _arrow(file: Path) -> Iterator[Row]:
    """Rows of an Arrow file (Feather is one) or stream, the latter as `datasets` saves them."""
    import pyarrow
    import pyarrow.ipc

    try:
        with pyarrow.memory_map(str(file)) as mapped:
            if is_file := mapped.read(6) == b"ARROW1":
                reader = pyarrow.ipc.open_file(mapped)
            else:
                mapped.seek(0)
                reader = pyarrow.ipc.open_stream(mapped)
            _refuse_repeated(reader.schema.names, str(file))
            batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
            for batch in batches:
                for first in range(0, batch.num_rows, _LARGE_ROWS):
                    yield from batch.slice(first, _LARGE_ROWS).to_pylist()
    except pyarrow.ArrowException as error:
        said = f"{file} cannot be read as Arrow ({first_line(error)})"
        raise UsageError(f"{said}; write it as parquet, with datasets ds.to_parquet(...).") from error


def _no_parquet(file: Path, error: Exception) -> UsageError:
    return UsageError(f"{file} cannot be read as parquet: {str(error).partition(chr(10))[0].rstrip('.')}.")
