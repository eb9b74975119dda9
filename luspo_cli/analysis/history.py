"""What a finished or running training wrote, read by column name into one type.

A run folder is the source of truth (docs/run-folder.md); the logs of other trainers are translated (`analysis.logs`) so
that their response length can stand in the same figure. Only the last line of a log may be torn, by a process that was
killed while writing it: it is left out and reported. Anything else that does not fit is refused in one sentence, since
a curve with a hidden gap is worse than no curve.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luspo_cli.analysis.log_table import read_table
from luspo_cli.analysis.logs import no_step, read_json_lines, read_log
from luspo_cli.analysis.tensorboard import event_files, is_event_file
from luspo_cli.errors import UsageError, nearest
from luspo_cli.files import require_object
from luspo_cli.metrics.names import BY_LENGTH, METRICS, metric_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RunHistory:
    """One training as recorded; tables have one row a step (index `step`) and one float column a metric."""

    name: str
    """As short as the runs read together allow: the folder's name, with its parents where two would be equal."""
    path: Path
    source: str
    """Who wrote it: `luspo`, or a framework of `PEER_KEYS`."""
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

    def setting(self, section: str, key: str) -> Any:
        """A value of the run's configuration; None where its log has none, as that of another trainer."""
        return _section(self.config, section).get(key)

    def column(self, metric: str) -> pd.Series:
        """Return one metric by step, NaN where a step has none; UsageError where the run never recorded it."""
        if metric not in self.table.columns:
            hint = "" if metric_of(metric) else nearest(metric, METRICS)
            raise UsageError(f"{self.path} has no metric '{metric}'{hint}; it has {', '.join(self.table.columns)}.")
        return self.table[metric]


def read_runs(paths: Sequence[Path]) -> list[RunHistory]:
    """Read each run once and give the runs names that tell them apart.

    A folder that is no run itself stands for all runs below it. A run given twice, say as folder and as file, is a UsageError.
    """
    if not paths:
        raise UsageError("No run was given; name one or more run folders, for example runs/tiny/luspo-seed0.")
    given: dict[Path, Path] = {}
    found: list[Path] = []
    notes: list[str] = []
    for path in paths:
        below, note = _runs_below(path)
        for run in below:
            log = _log_of(run).resolve()
            if log in given:
                raise UsageError(f"{given[log]} is given twice, the second time as {run}; name each run once.")
            given[log] = run
            found.append(run)
        notes += [] if note is None else [note]
    names = _short_names([path.resolve() for path in found])
    runs = [read_run(path, name) for path, name in zip(found, names, strict=True)]
    return [replace(runs[0], notes=(*notes, *runs[0].notes)), *runs[1:]] if notes else runs


def read_run(path: Path, name: str | None = None) -> RunHistory:
    """Read a run folder, or another trainer's output folder or log (`analysis.logs` says which)."""
    if not path.exists():
        raise UsageError(f"{path} does not exist; name a run folder such as runs/tiny/luspo-seed0.")
    log = _log_of(path)
    shown = name or _stem(path.resolve())
    if log.is_dir():
        # A folder whose training has not reached its first step, or that is no run at all.
        missing = "metrics.jsonl" if (path / "config.json").is_file() else "config.json"
        raise UsageError(f"{path} is not a run folder with recorded steps: it has no {missing}.")
    if log.name == "metrics.jsonl" and (log.parent / "config.json").is_file():
        return _read_run_folder(log.parent, shown)
    return _read_peer_log(log, path, shown)


def _log_of(path: Path) -> Path:
    """Return the file that holds a run's steps: `path` itself, or the one in it; `path` again where there is none."""
    if not path.is_dir():
        # The files of a folder are one run, whichever of them is named.
        return next(iter(event_files(path.parent)), path) if is_event_file(path) else path
    if (path / "config.json").is_file():
        return path / "metrics.jsonl" if (path / "metrics.jsonl").is_file() else path
    return _trainer_log(path) or path


def _trainer_log(folder: Path) -> Path | None:
    """The log in another trainer's output folder: its state, that of its last checkpoint, ms-swift's log, or TensorBoard's."""
    if (folder / "trainer_state.json").is_file():
        return folder / "trainer_state.json"
    states = [path for path in folder.glob("checkpoint-*/trainer_state.json") if path.parent.name[11:].isdigit()]
    last = max(states, key=lambda path: int(path.parent.name[11:]), default=None)
    logged = [folder / "logging.jsonl"] if (folder / "logging.jsonl").is_file() else event_files(folder)
    return last or next(iter(logged), None)


def _runs_below(path: Path) -> tuple[list[Path], str | None]:
    """Return the run at `path`, or the runs below it, with a note on how many; `path` itself where there is none."""
    if not path.is_dir() or (path / "config.json").exists() or _trainer_log(path) is not None:
        return [path], None
    runs: list[Path] = []
    without_step: list[Path] = []
    for folder, folders, files in os.walk(path):
        here = Path(folder)
        if "config.json" in files or (here != path and _trainer_log(here) is not None):
            started = _log_of(here) != here and _log_of(here).stat().st_size > 0
            if started:
                runs.append(here)
            elif (here / "provenance.json").is_file():  # a model's folder has a config.json too
                without_step.append(here)
            folders.clear()  # what lies inside a run belongs to it
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    if not runs:
        return [path], None
    left_out = f"; left out, as they have no step yet: {', '.join(map(str, without_step))}" if without_step else ""
    return runs, f"{len(runs)} {'run' if len(runs) == 1 else 'runs'} found below {path}{left_out}."


def _read_run_folder(folder: Path, name: str) -> RunHistory:
    log = folder / "metrics.jsonl"
    config = _read_object(folder / "config.json")
    provenance = _read_object(folder / "provenance.json") if (folder / "provenance.json").is_file() else {}
    table, torn = read_table(log), None
    if table is None:
        rows, torn = read_json_lines(log)
        table = _table(rows, [_step(row, log, place) for place, row in enumerate(rows, start=1)], log)
    steps = table.index.to_list()
    for place, (before, after) in enumerate(pairwise(steps), start=2):
        if after != before + 1:
            what = "is recorded twice" if after == before else f"follows step {before}"
            raise UsageError(f"{log}: step {after} {what} (line {place}); steps must run on one by one.")
    if steps[0] != 1:
        raise UsageError(f"{log}: the first recorded step is {steps[0]} and not 1, so steps are missing.")
    run, objective = _section(config, "run"), _section(config, "objective")
    if not isinstance(objective.get("name"), str):
        raise UsageError(f"{folder / 'config.json'} names no objective (objective.name).")
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
    known = [{key: value for key, value in row.items() if metric_of(key)} for row in rows]
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


def _read_peer_log(log: Path, path: Path, name: str) -> RunHistory:
    read = read_log(log)
    table = _table(list(read.rows), read.steps, log)
    return RunHistory(
        name=name,
        path=path,
        source=read.source,
        objective=name,
        seed=None,
        planned_steps=read.planned_steps,
        config={},
        provenance={},
        benchmarks={},
        table=table,
        evaluations=_evaluated_steps(table),
        notes=read.notes,
    )


def _table(rows: list[dict[str, Any]], steps: list[int], log: Path) -> pd.DataFrame:
    import pandas as pd

    if not rows:
        raise no_step(log)
    # Nearly all rows have the same keys, so the sets of keys are told apart first.
    known = dict.fromkeys(name for keys in dict.fromkeys(map(tuple, rows)) for name in keys)
    names = [name for name in known if name not in ("step", BY_LENGTH)]
    table = pd.DataFrame(rows, columns=names, index=pd.Index(steps, name="step"))
    # Numbers alone have a type of numbers; what else stands there is looked at one by one.
    for name in (name for name in names if table[name].dtype.kind not in "fiu"):
        table[name] = [_number(row.get(name), name, log) for row in rows]
    return table.astype("float64")


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
    return require_object(path, "restore it or leave this run out.")


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    return section if isinstance(section, Mapping) else {}


_LOG_NAMES = ("metrics.jsonl", "trainer_state.json", "logging.jsonl")
"""Logs that are called after their folder."""


def _stem(path: Path) -> str:
    if path.name in _LOG_NAMES or is_event_file(path):
        return path.parent.name
    return path.name if path.is_dir() else path.stem


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Name each path by its last part, with as many parents as it takes for all names to differ; else by the whole path."""
    parts = []
    for path in paths:
        called_after_folder = path.name in _LOG_NAMES or is_event_file(path)
        parents = path.parent.parts[1:-1] if called_after_folder else path.parent.parts[1:]
        parts.append([*parents, _stem(path)])
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
