"""What a finished or running training wrote, read by column name into one type.

A run folder is the source of truth (docs/run-folder.md); the logs of TRL (`trainer_state.json`) and of verl (its file
logger) are translated through `PEER_KEYS` so that their response length can stand in the same figure. Only the last
line of a log may be torn, by a process that was killed while writing it: it is left out and reported. Anything else
that does not fit is refused in one sentence, since a curve with a hidden gap is worse than no curve.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luspo_cli.errors import UsageError, nearest
from luspo_cli.metrics.names import METRICS, PEER_KEYS

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RunHistory:
    """One training as recorded; tables have one row a step (index `step`) and one float column a metric."""

    name: str
    """As short as the runs read together allow: the folder's name, with its parents where two would be equal."""
    path: Path
    source: str
    """`luspo`, `trl` or `verl`: who wrote it."""
    objective: str
    seed: int | None
    planned_steps: int | None
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    benchmarks: Mapping[str, Mapping[str, Any]]
    """Benchmark name -> the content of `evals/<name>.json`."""
    table: pd.DataFrame
    evaluations: pd.DataFrame
    """Held-out evaluations: `evaluation/*` columns; step 0 is the policy before training. Often empty."""
    notes: tuple[str, ...] = ()
    """What was left out while reading, one sentence each."""

    @property
    def first_step(self) -> int:
        return int(self.table.index[0])

    @property
    def last_step(self) -> int:
        return int(self.table.index[-1])

    @property
    def finished(self) -> bool | None:
        """Whether the run reached its planned number of steps; None where that number is not recorded."""
        return None if self.planned_steps is None else self.last_step >= self.planned_steps

    def column(self, metric: str) -> pd.Series:
        """Return one metric by step, NaN where a step has none; UsageError where the run never recorded it."""
        if metric not in self.table.columns:
            hint = "" if metric in METRICS else nearest(metric, METRICS)
            raise UsageError(f"{self.path} has no metric '{metric}'{hint}; it has {', '.join(self.table.columns)}.")
        return self.table[metric]


def read_runs(paths: Sequence[Path]) -> list[RunHistory]:
    """Read each path once and give the runs names that tell them apart; a path given twice is a UsageError."""
    if not paths:
        raise UsageError("No run was given; name one or more run folders, for example runs/tiny/luspo-seed0.")
    resolved = [path.resolve() for path in paths]
    for place, path in enumerate(resolved):
        if path in resolved[:place]:
            raise UsageError(f"{paths[place]} is given twice; name each run once.")
    return [read_run(path, name) for path, name in zip(paths, _short_names(resolved), strict=True)]


def read_run(path: Path, name: str | None = None) -> RunHistory:
    """Read a run folder, a TRL output folder or `trainer_state.json`, or a verl file log."""
    if not path.exists():
        raise UsageError(f"{path} does not exist; name a run folder such as runs/tiny/luspo-seed0.")
    shown = name or _stem(path.resolve())
    if path.is_dir():
        if (path / "config.json").is_file() and (path / "metrics.jsonl").is_file():
            return _read_run_folder(path, shown)
        state = _trainer_state(path)
        if state is not None:
            return _read_trainer_state(state, path, shown)
        # A folder whose training has not reached its first step, or that is no run at all.
        missing = "metrics.jsonl" if (path / "config.json").is_file() else "config.json"
        raise UsageError(f"{path} is not a run folder with recorded steps: it has no {missing}.")
    if path.name == "trainer_state.json":
        return _read_trainer_state(path, path, shown)
    if path.suffix == ".jsonl":
        if path.name == "metrics.jsonl" and (path.parent / "config.json").is_file():
            return _read_run_folder(path.parent, shown)
        return _read_verl_log(path, shown)
    raise UsageError(f"{path} is not a run: give a run folder, a TRL trainer_state.json or a verl .jsonl log.")


def read_json_lines(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    """Return the objects of a JSON lines file, and a note where the last line was torn and left out.

    Lines end with "\\n" only: a string may hold other characters that `str.splitlines` would break at. A line that is
    no JSON object is torn; anywhere but at the end that is a UsageError.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as failure:
        raise UsageError(f"{path} cannot be read: {failure.strerror}.") from None
    while lines and not lines[-1].strip():
        lines.pop()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        elif number == len(lines):
            return rows, f"{path}: line {number}, the last, is torn and was left out."
        else:
            raise UsageError(
                f"{path}: line {number} of {len(lines)} is not a JSON object; only the last line may be torn."
            )
    return rows, None


def _read_run_folder(folder: Path, name: str) -> RunHistory:
    log = folder / "metrics.jsonl"
    config = _read_object(folder / "config.json")
    provenance = _read_object(folder / "provenance.json") if (folder / "provenance.json").is_file() else {}
    rows, torn = read_json_lines(log)
    steps = [_step(row, log, place) for place, row in enumerate(rows, start=1)]
    for place, (before, after) in enumerate(pairwise(steps), start=2):
        if after != before + 1:
            what = "is recorded twice" if after == before else f"follows step {before}"
            raise UsageError(f"{log}: step {after} {what} (line {place}); steps must run on one by one.")
    if steps and steps[0] != 1:
        raise UsageError(f"{log}: the first recorded step is {steps[0]} and not 1, so steps are missing.")
    run, objective = _section(config, "run"), _section(config, "objective")
    if not isinstance(objective.get("name"), str):
        raise UsageError(f"{folder / 'config.json'} names no objective (objective.name).")
    table = _table(rows, steps, log)
    evaluations, torn_evaluation = _evaluations(folder, table)
    return RunHistory(
        name=name,
        path=folder,
        source="luspo",
        objective=objective["name"],
        seed=run.get("seed") if isinstance(run.get("seed"), int) else None,
        planned_steps=run.get("steps") if isinstance(run.get("steps"), int) else None,
        config=config,
        provenance=provenance,
        benchmarks={content.get("benchmark", stem): content for stem, content in _benchmarks(folder)},
        table=table,
        evaluations=evaluations,
        notes=tuple(note for note in (torn, torn_evaluation) if note is not None),
    )


def _evaluations(folder: Path, table: pd.DataFrame) -> tuple[pd.DataFrame, str | None]:
    """The file of evaluations also knows the policy before training; without it the steps that evaluated remain."""
    log = folder / "evals" / "held-out.jsonl"
    if not log.is_file():
        return _evaluated_steps(table), None
    rows, torn = read_json_lines(log)
    steps = [_step(row, log, place) for place, row in enumerate(rows, start=1)]
    for before, after in pairwise(steps):
        if after <= before:
            raise UsageError(f"{log}: step {after} comes after step {before}; steps must increase.")
    known = [{key: value for key, value in row.items() if key in METRICS} for row in rows]
    evaluations = _table(known, steps, log) if rows else _evaluated_steps(table)
    # A run that was killed between an evaluation and its step has an evaluation too many.
    return evaluations.loc[: table.index[-1]], torn


def _evaluated_steps(table: pd.DataFrame) -> pd.DataFrame:
    return table.filter(regex="^evaluation/").dropna(how="all")


def _benchmarks(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted((folder / "evals").glob("*.json")):
        content = _read_object(file)
        if isinstance(content.get("metrics"), dict):
            yield file.stem, content


def _read_trainer_state(state: Path, path: Path, name: str) -> RunHistory:
    content = _read_object(state)
    history = content.get("log_history")
    if not isinstance(history, list):
        raise UsageError(f"{state} has no log_history, so it is not a TRL trainer_state.json.")
    planned = content.get("max_steps")
    # The same step may carry an evaluation entry and, at the end, a summary: only entries with a length are steps.
    rows = [row for row in history if isinstance(row, dict) and "completions/mean_length" in row]
    return _translated("trl", rows, state, path, name, planned if isinstance(planned, int) and planned > 0 else None)


def _read_verl_log(log: Path, name: str) -> RunHistory:
    rows, torn = read_json_lines(log)
    flat = [{"step": row.get("step"), **row["data"]} if isinstance(row.get("data"), dict) else row for row in rows]
    # verl logs a validation before training, or between steps, as a row of its own without a response length.
    steps = [row for row in flat if "response_length/mean" in row]
    return _translated("verl", steps, log, log, name, None, () if torn is None else (torn,))


def _translated(
    source: str,
    rows: list[dict[str, Any]],
    log: Path,
    path: Path,
    name: str,
    planned: int | None,
    notes: tuple[str, ...] = (),
) -> RunHistory:
    steps = [_step(row, log, place) for place, row in enumerate(rows, start=1)]
    for before, after in pairwise(steps):
        if after <= before:
            raise UsageError(f"{log}: step {after} comes after step {before}; steps must increase.")
    keys = PEER_KEYS[source]
    table = _table([{keys[key]: value for key, value in row.items() if key in keys} for row in rows], steps, log)
    return RunHistory(
        name=name,
        path=path,
        source=source,
        objective=name,
        seed=None,
        planned_steps=planned,
        config={},
        provenance={},
        benchmarks={},
        table=table,
        evaluations=_evaluated_steps(table),
        notes=notes,
    )


def _table(rows: list[dict[str, Any]], steps: list[int], log: Path) -> pd.DataFrame:
    import pandas as pd

    if not rows:
        raise UsageError(f"{log} has no step yet; wait for the first one or leave this run out.")
    names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))
    columns = {name: [_number(row.get(name), name, log) for row in rows] for name in names}
    return pd.DataFrame(columns, index=pd.Index(steps, name="step"), dtype="float64")


def _number(value: Any, name: str, log: Path) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{log}: '{name}' is {value!r} where a number belongs.")
    return float(value)


def _step(row: Mapping[str, Any], log: Path, place: int) -> int:
    step = row.get("step")
    if isinstance(step, bool) or not isinstance(step, int):
        raise UsageError(f"{log}: row {place} has no whole number under 'step'.")
    return step


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as failure:
        raise UsageError(f"{path} cannot be read: {failure.strerror}.") from None
    except ValueError:
        raise UsageError(f"{path} is not valid JSON; restore it or leave this run out.") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no JSON object; restore it or leave this run out.")
    return content


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, dict) else {}


def _trainer_state(folder: Path) -> Path | None:
    """The newest `trainer_state.json` of a TRL output folder: its own, else that of the last checkpoint."""
    if (folder / "trainer_state.json").is_file():
        return folder / "trainer_state.json"
    states = [path for path in folder.glob("checkpoint-*/trainer_state.json") if path.parent.name[11:].isdigit()]
    return max(states, key=lambda path: int(path.parent.name[11:]), default=None)


def _stem(path: Path) -> str:
    if path.name in ("metrics.jsonl", "trainer_state.json"):
        return path.parent.name
    return path.stem if path.suffix == ".jsonl" else path.name


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Name each path by its last part, with as many parents as it takes for all names to differ."""
    parts = [[*path.parent.parts, _stem(path)] for path in paths]
    for path, names in zip(paths, parts, strict=True):
        if path.name in ("metrics.jsonl", "trainer_state.json"):
            names.pop(-2)
    depth = 1
    while depth < max(map(len, parts)) and len({tuple(names[-depth:]) for names in parts}) < len(parts):
        depth += 1
    return ["/".join(names[-depth:]) for names in parts]
