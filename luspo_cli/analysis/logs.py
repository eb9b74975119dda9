"""Logs of other trainers as rows of a step each, recognised by what they hold and never by a file's name.

Read are: the `trainer_state.json` of TRL and of all that build on transformers' Trainer; JSON lines (verl's file logger,
ms-swift's `logging.jsonl`, a history of W&B) and JSON arrays; CSV as W&B exports it; TensorBoard's event files; what verl's and
ms-swift's console loggers print, also with Ray's prefix. Their keys are those of `PEER_KEYS`, with or without a leading `train/`.
Only the last line may be torn, by a process that was killed while writing it: it is left out and reported.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luspo_cli.analysis.tensorboard import is_event_file, read_events
from luspo_cli.config.peers import PEER_KEYS
from luspo_cli.errors import UsageError
from luspo_cli.metrics.names import METRICS, metric_of

LENGTH = "response_length/mean"
STEP_KEYS = (
    "train/global_step",
    "training/global_step",
    "global_step",
    "step",
    "global_step/max_steps",
    "_step",
    "Step",
)
"""Where a row's step stands, the first that it has: W&B's own `_step` counts calls of its logger, not steps of training."""
_PREFIX = "train/"
_SHOWN_KEYS = 12
_BARE_LENGTH_KEYS = frozenset(theirs for keys in PEER_KEYS.values() for theirs, ours in keys.items() if ours == LENGTH)
_LENGTH_KEYS = _BARE_LENGTH_KEYS | {_PREFIX + key for key in _BARE_LENGTH_KEYS}

# Ray puts "(TaskRunner pid=123, ip=10.0.0.1) " before each line, in colour; a progress bar may end in the same line.
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_CONSOLE_STEP = re.compile(r"(?:^|[\s)|])step:(\d+) - (\S.*)")
_CONSOLE_PAIR = re.compile(r"(\S+):(?:[\w.]+\()?([-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|\.\d+|inf|nan))\)?(?=\s|$)", re.I)
_PRINTED_DICT = re.compile(r"\{'.*\}")

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Log:
    """What one log holds, in our names."""

    source: str
    """A framework of `PEER_KEYS`, or `luspo`."""
    rows: list[dict[str, float]]
    """One a step, our metric -> number; NaN where the step has none."""
    steps: list[int]
    """Increasing."""
    planned_steps: int | None
    notes: tuple[str, ...]
    """What was left out while reading, one sentence each."""


def read_log(path: Path) -> Log:
    """Read another trainer's log; UsageError where it is none, has no step, or no response length under a known key."""
    raw, planned, torn = _raw_rows(path)
    if not raw:
        raise no_step(path)
    rows = [{key.removeprefix(_PREFIX): value for key, value in row.items()} for row in raw]
    source, keys = _framework(list(dict.fromkeys(key for row in rows for key in row)), path)
    length = next(theirs for theirs, ours in keys.items() if ours == LENGTH)
    steps: list[int] = []
    found: list[dict[str, float]] = []
    for place, (written, row) in enumerate(zip(raw, rows, strict=True), start=1):
        exported = "_step" in written
        # A validation, or the summary at a training's end, is a row of its own without a response length. An export of
        # W&B has all columns in every row, and rows of one step may be several calls of its logger.
        values = {keys[key]: _number(value, key, path) for key, value in row.items() if key in keys}
        if exported:
            values = {name: value for name, value in values.items() if not math.isnan(value)}
        if not values if exported else length not in row:
            continue
        step = _step(written, path, place)
        if exported and steps and steps[-1] == step and not values.keys() & found[-1].keys():
            found[-1] |= values
            continue
        steps.append(step)
        found.append(values)
    kept, rewound = _without_rewound(steps, path)
    notes = [] if torn is None else [torn]
    if rewound:
        notes.append(f"{path}: {rewound} of its rows were recorded anew after a resume; the later ones count.")
    return Log(source, [found[place] for place in kept], [steps[place] for place in kept], planned, tuple(notes))


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    """Return the objects of a JSON lines file, and a note where the last line was torn and left out.

    Lines end with "\\n" only: a string may hold other characters that `str.splitlines` would break at. Blank lines are passed
    over. A line that is no JSON object is torn; anywhere but at the end that is a UsageError.
    """
    lines = _read(path).split(b"\n")
    while lines and not lines[-1].strip():
        lines.pop()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _parsed(line)
        if isinstance(row, dict):
            rows.append(row)
        elif number == len(lines):
            return rows, f"{path}: line {number}, the last, is torn and was left out."
        else:
            raise UsageError(
                f"{path}: line {number} of {len(lines)} is not a JSON object; only the last line may be torn."
            )
    return rows, None


def _parsed(line: bytes) -> Any:
    """What a line of JSON holds; None where it is torn."""
    from pydantic_core import from_json

    try:
        return from_json(line)  # a third of the time of the standard library's
    except ValueError:
        # It refuses half of a surrogate pair, which a model may have written.
        try:
            return json.loads(line)
        except ValueError:
            return None


def no_step(path: Path) -> UsageError:
    """The failure of a log that holds no step at all."""
    return UsageError(f"{path} has no step yet; wait for the first one or leave this run out.")


def _raw_rows(path: Path) -> tuple[list[dict[str, Any]], int | None, str | None]:
    """Return the rows as they are written, the planned number of steps, and a note on a torn last line."""
    if is_event_file(path):
        return read_events(path), None, None
    content = _read(path)
    if not content.strip():
        raise no_step(path)
    torn = None
    rows = None
    if content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        rows, planned = _whole_json(content, path)
        if rows is not None:
            return rows, planned, None
        if content.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b'{"'):
            rows, torn = read_json_lines(path)
            rows = [_flat(row) for row in rows]
    if rows is None:
        text = content.decode("utf-8", "replace")
        rows, torn = _console_rows(text, path)
        rows = rows or ([] if torn else _csv_rows(text, path))
    if not rows and not torn:
        raise UsageError(
            f"{path} is not a run: give a run folder, or a log of TRL (trainer_state.json), verl (file or console), ms-swift,"
            " OpenRLHF or W&B, or an event file of TensorBoard."
        )
    return rows, _planned(rows), torn


def _whole_json(content: bytes, path: Path) -> tuple[list[dict[str, Any]] | None, int | None]:
    """Return the rows of a file that is one JSON value, with the planned steps; None where it is not."""
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError):
        return None, None
    if isinstance(whole, list) and all(isinstance(row, dict) for row in whole):
        return [_flat(row) for row in whole], None
    if not isinstance(whole, dict):
        return None, None
    if isinstance(history := whole.get("log_history"), list):
        planned = whole.get("max_steps")
        rows = [row for row in history if isinstance(row, dict)]
        return rows, planned if isinstance(planned, int) and planned > 0 else None
    if all(isinstance(column, dict) for column in whole.values()) and any(key in whole for key in STEP_KEYS):
        places = dict.fromkeys(place for column in whole.values() for place in column)
        return [{key: column.get(place) for key, column in whole.items()} for place in places], None
    if _step_key(_flat(whole)) is None and not whole.keys() & _LENGTH_KEYS:
        raise UsageError(
            f"{path} is not a run: it has no log_history, so it is not a TRL trainer_state.json, and no step of another log."
        )
    return [_flat(whole)], None


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without nesting: verl's file logger has the numbers under `data`, others have `{"actor": {"lr": ...}}`."""
    data = row.get("data")
    flat: dict[str, Any] = {}
    for key, value in ({"step": row.get("step"), **data} if isinstance(data, dict) else row).items():
        if isinstance(value, dict):
            flat |= {f"{key}/{inner}": found for inner, found in _flat(value).items()}
        else:
            flat[key] = value
    return flat


def _console_rows(text: str, path: Path) -> tuple[list[dict[str, Any]], str | None]:
    """Return the steps that verl printed, or the dicts that transformers' Trainer did."""
    lines = re.split(r"[\r\n]", _COLOUR.sub("", text))
    rows: list[dict[str, Any]] = []
    torn = None
    for number, line in enumerate(lines, start=1):
        if (match := _CONSOLE_STEP.search(line)) is not None:
            if number == len(lines):
                # No line feed ends it: its last number may be the beginning of a longer one.
                torn = f"{path}: line {number}, the last, is torn and was left out."
                continue
            pairs = (_CONSOLE_PAIR.match(pair) for pair in match.group(2).split(" - "))
            rows.append({"step": int(match.group(1)), **{pair[1]: float(pair[2]) for pair in pairs if pair}})
        elif (printed := _PRINTED_DICT.search(line)) is not None:
            try:
                row = ast.literal_eval(printed.group(0))
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(row, dict) and row.keys() & _LENGTH_KEYS:
                rows.append(row)
    return rows, torn


def _csv_rows(text: str, path: Path) -> list[dict[str, Any]]:
    """Return the rows of a W&B export: a history, or the table behind a chart, whose columns are "run - key"."""
    header = text.lstrip("\ufeff").partition("\n")[0]
    delimiter = "\t" if "\t" in header else ","
    try:
        table = list(csv.reader(io.StringIO(text.lstrip("\ufeff")), delimiter=delimiter))
    except csv.Error:
        return []
    keys = [name.rpartition(" - ")[2] for name in table[0]] if table else []
    if not any(key in STEP_KEYS for key in keys):
        return []
    runs = {name.rpartition(" - ")[0] for name, key in zip(table[0], keys, strict=True) if key in _LENGTH_KEYS}
    if len(runs) > 1:
        raise UsageError(f"{path} holds several runs ({', '.join(sorted(runs))}); export each into a file of its own.")
    rows = [dict(zip(keys, (cell or None for cell in line), strict=False)) for line in table[1:] if any(line)]
    return [{"_step": row.get("_step"), **row} for row in rows]


def _planned(rows: Sequence[Row]) -> int | None:
    """Return the planned steps that ms-swift writes beside the step, as in "3/100"."""
    last = rows[-1].get("global_step/max_steps") if rows else None
    planned = last.partition("/")[2] if isinstance(last, str) else ""
    return int(planned) if planned.isdigit() else None


def _framework(seen: Sequence[str], path: Path) -> tuple[str, Mapping[str, str]]:
    """Return whose keys these are, with their translation; UsageError where none of them is a response length."""
    if LENGTH in seen and "tokens/total" in seen:
        return "luspo", {name: name for name in (*METRICS, *seen) if name != "step" and metric_of(name)}
    for source, keys in PEER_KEYS.items():
        if any(ours == LENGTH and theirs in seen for theirs, ours in keys.items()):
            return source, keys
    shown = ", ".join(seen[:_SHOWN_KEYS]) + (", ..." if len(seen) > _SHOWN_KEYS else "")
    raise UsageError(
        f"{path} has no response length: none of {', '.join(sorted(_BARE_LENGTH_KEYS))} is among its keys ({shown}); rename"
        " the key that holds it, or leave this run out."
    )


def _step_key(row: Row) -> str | None:
    return next((key for key in STEP_KEYS if row.get(key) is not None), None)


def _step(row: Row, path: Path, place: int) -> int:
    key = _step_key(row) or "step"
    value = row.get(key)
    if isinstance(value, str):
        value = _float(value.partition("/")[0])
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{path}: row {place} has no whole number under '{key}'.")
    return value


def _number(value: Any, key: str, path: Path) -> float:
    """Return a number that may be written as text; NaN for none and for one that is not finite."""
    number = math.nan if value is None or value == "" else _float(value)
    if number is None:
        raise UsageError(f"{path}: '{key}' is {value!r} where a number belongs.")
    return number if math.isfinite(number) else math.nan


def _float(value: Any) -> float | None:
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _without_rewound(steps: Sequence[int], path: Path) -> tuple[list[int], int]:
    """Return the places of the rows that count, and how many do not: a resume goes back, and what it left behind is void."""
    kept: list[int] = []
    for place, step in enumerate(steps):
        if step < steps[0]:
            raise UsageError(f"{path}: step {step} comes after step {steps[kept[-1]]}; steps must increase.")
        while kept and steps[kept[-1]] >= step:
            kept.pop()
        kept.append(place)
    return kept, len(steps) - len(kept)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as failure:
        raise UsageError(f"{path} cannot be read: {failure.strerror}.") from None
