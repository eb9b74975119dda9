"""One run, one folder: created once, written by one process at a time, never half-written (docs/run-folder.md).

`metrics.jsonl` is appended a whole line at a time. A run that goes on from a checkpoint first cuts the file back to that
checkpoint's step: the steps after it are computed again, and no step stands there twice.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from luspo_cli.config.run import STORED_ONLY
from luspo_cli.config.stored import differing_keys, with_defaults
from luspo_cli.errors import RunError, UsageError
from luspo_cli.files import PARTIAL, append, holds, lock, read_object, replace_file, require_object, write_json

IfExists = Literal["refuse", "resume", "replace"]
BEFORE_STEP_1 = frozenset(
    {"config.json", "provenance.json", "tracking.json", "run.log", "console.log", "start", "verl", ".lock"}
)
"""What a run that failed before its first step or evaluation leaves behind, or a fork is handed."""
SHOWN_STEPS = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a session ended."""

    last_step: int
    finished: bool
    stopped_by: int | None = None
    """The signal that asked for the end, where one did."""


class RunFolder:
    """Paths and files of one run. Use it in a `with` block: it holds the run's lock until the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None  # descriptor of the lock file while this process holds it

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def held_out_path(self) -> Path:
        return self.path / "evals" / "held-out.jsonl"

    @property
    def held_out_answers(self) -> Path:
        return self.path / "evals" / "held-out"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    def open(self, config: Mapping[str, Any], if_exists: IfExists) -> bool:
        """Create the folder, or take up the one that is there; returns whether a run is being resumed.

        Raises UsageError where the folder cannot be made or holds something else, another configuration, or another
        process at work.
        """
        self.check(config, if_exists)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
        except OSError as error:
            raise UsageError(f"cannot make run folder {self.path}: {error.strerror}; choose another --run") from error
        occupied = self.check(config, if_exists)  # again: another process may have worked here before the lock was ours
        if occupied and if_exists == "resume":
            return True
        if occupied:
            self._empty()
        self._remove_partial()
        for name in ("provenance.json", "tracking.json"):  # of a start that failed; what it said stays in its logs
            (self.path / name).unlink(missing_ok=True)
        self.write_config(config)
        return False

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.json, at the start or where a resumed run takes over other settings."""
        write_json(self.path / "config.json", config)

    def check(self, config: Mapping[str, Any], if_exists: IfExists) -> bool:
        """Return whether a run is there; UsageError where `open` would refuse it. Touches nothing.

        A folder in which nothing was recorded yet counts as none: there is nothing to go on from or to lose.
        """
        if self._lock is None:
            self._check_free()
        self._check_writable()
        if not self.path.exists() or (self.path.is_dir() and self._entries() <= {".lock"}):
            return False
        if not (self.path / "config.json").is_file():
            raise UsageError(f"{self.path} exists and is no run folder; choose another --run")
        if if_exists != "replace" and self._nothing_recorded():
            return False
        if if_exists == "refuse":
            raise UsageError(f"run folder {self.path} exists; go on with --resume, or choose another --run")
        if if_exists == "resume":
            self._check_same(config)
        return True

    def _check_writable(self) -> None:
        """UsageError where the folder could not be made or written in: said before minutes of loading a model."""
        there = next(found for found in (self.path, *self.path.absolute().parents) if found.exists())
        if there != self.path and not there.is_dir():
            raise UsageError(f"cannot make run folder {self.path}: {there}: Not a directory; choose another --run")
        if there.is_dir() and not os.access(there, os.W_OK | os.X_OK):
            why = errno.EROFS if os.statvfs(there).f_flag & os.ST_RDONLY else errno.EACCES
            raise UsageError(
                f"cannot write in {there}, where run folder {self.path} belongs: {os.strerror(why)}; choose another --run"
            )

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one step's record as one line, on disk before this returns; RunError where that fails."""
        append(self.metrics_path, (json.dumps(record, allow_nan=False) + "\n").encode())

    def check_still_here(self) -> None:
        """RunError where the folder was moved or deleted since `open`: a second one would grow under the old name."""
        if self._lock is None:
            return
        if not holds(self._lock, self.path / ".lock"):
            raise RunError(
                f"run folder {self.path} was moved or deleted while this process trained in it; nothing was written after"
                " that: where it was moved, go on from its last checkpoint with --run NEW-PLACE --resume"
            )

    def cut_back(self, step: int) -> None:
        """Drop everything recorded after `step`, and a torn last line: a resumed run computes those steps again.

        Raises UsageError, and drops nothing, where steps 1 to `step` do not stand in metrics.jsonl once each, in order.
        """
        self._remove_partial()
        self._check_steps([found for found, _ in _numbered_lines(self.metrics_path) if found <= step], step)
        for path in (self.metrics_path, self.held_out_path):
            kept = b"".join(line + b"\n" for found, line in _numbered_lines(path) if found <= step)
            if path.exists() and path.read_bytes() != kept:
                replace_file(path, kept)
        for folder in (self.rollouts, self.held_out_answers):
            for file in folder.glob("step-*.parquet"):
                if int(file.stem.removeprefix("step-")) > step:
                    file.unlink()

    def records(self) -> list[dict[str, Any]]:
        """Every recorded step of `metrics.jsonl`, in order."""
        if not self.metrics_path.exists():
            return []
        return [json.loads(line) for line in self.metrics_path.read_bytes().split(b"\n") if line.strip()]

    def append_evaluation(self, step: int, result: Mapping[str, Any]) -> None:
        """Add one held-out evaluation; `step` is the number of training steps behind the policy."""
        before = self.held_out_path.read_bytes() if self.held_out_path.exists() else b""
        replace_file(self.held_out_path, before + (json.dumps({"step": step, **result}) + "\n").encode())

    def evaluated_steps(self) -> set[int]:
        """Steps that have an evaluation already: a resumed run does not repeat the one before training."""
        return {step for step, _ in _numbered_lines(self.held_out_path)}

    def last_step(self) -> int:
        """The last recorded step, 0 before the first."""
        return max((step for step, _ in _numbered_lines(self.metrics_path)), default=0)

    def last_tokens_total(self) -> int:
        """`tokens/total` of the last recorded step, 0 before the first."""
        records = self.records()
        return int(records[-1]["tokens/total"]) if records else 0

    def _take_lock(self) -> None:
        try:
            self._lock = lock(self.path / ".lock")
        except BlockingIOError:
            raise self._in_use() from None

    def _check_free(self) -> None:
        """UsageError where another process holds the lock now; takes it for no longer than the look."""
        try:
            os.close(lock(self.path / ".lock", shared=True))
        except BlockingIOError:
            raise self._in_use() from None
        except OSError:  # no lock, or none that this process may read: `open` says what is wrong
            return

    def _in_use(self) -> UsageError:
        return UsageError(f"another process is training in {self.path}; wait for it or choose another --run")

    def _nothing_recorded(self) -> bool:
        """Whether a run was begun here and failed before anything was recorded."""
        if not self._entries() <= BEFORE_STEP_1:
            return False
        stored = self.stored_config()
        return stored is not None and "run" in stored  # a config.json of something else is not ours to write over

    def _check_steps(self, found: list[int], step: int) -> None:
        if found == list(range(1, step + 1)):
            return
        missing = sorted(set(range(1, step + 1)) - set(found))
        doubled = sorted({number for number in found if found.count(number) > 1})
        wrong = [f"{name} {_shown(steps)}" for name, steps in (("lacks", missing), ("doubles", doubled)) if steps]
        raise UsageError(
            f"{self.metrics_path} {' and '.join(wrong) or 'is out of order'} of the steps 1 to {step} before the checkpoint"
            " to go on from; restore the file, or start again with --if-exists replace"
        )

    def _entries(self) -> set[str]:
        """Names in the folder, without what a killed process was writing."""
        return {e.name for e in self.path.iterdir() if not (e.name.startswith(".") and e.name.endswith(PARTIAL))}

    def _remove_partial(self) -> None:
        for folder in (self.path, self.path / "evals", self.path / "start", self.held_out_answers, self.rollouts):
            for file in folder.glob(f".*{PARTIAL}"):
                file.unlink(missing_ok=True)

    def stored_config(self) -> Mapping[str, Any] | None:
        """The content of config.json; None where it is not an object."""
        return read_object(self.path / "config.json")

    def _check_same(self, config: Mapping[str, Any]) -> None:
        stored = require_object(self.path / "config.json", "choose another --run")
        if different := other_settings(stored, config):
            shown = ", ".join(f"{key} ({was!r} there, {now!r} now)" for key, was, now in different[:3])
            longer = len(different) == 1 and different[0][0] == "run.steps" and different[0][2] > different[0][1]
            why = (
                ": its update.schedule ends with run.steps, so a longer run has other learning rates" if longer else ""
            )
            raise UsageError(f"{self.path} was started with another configuration: {shown}; use another --run{why}")

    def new_settings(self, config: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
        """What a resumed run takes over from `config`: (key, value in config.json, value from now on)."""
        stored = self.stored_config() or config
        return [one for one in differing_keys(with_defaults(stored), config) if _is_taken(one, config)]

    def _empty(self) -> None:
        # config.json last: killed before that, the folder is still known as a run's and can be replaced again.
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry.name == "config.json"):
            if entry.name == ".lock":
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def other_settings(stored: Mapping[str, Any], config: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """What makes `config` another run than the stored one: (key, value there, value now) of keys that are not taken over."""
    return [one for one in differing_keys(with_defaults(stored), config) if not _is_taken(one, config)]


def unused_settings(new: list[tuple[str, Any, Any]]) -> str | None:
    """Say that a run that has all its steps has no use for new settings; None where there are none.

    `run.track` is of use: a finished run is handed over to a new writer as a whole.
    """
    keys = [f"{key} ({was} there, {now} now)" for key, was, now in new if key != "run.track"]
    if not keys:
        return None
    return (
        f"nothing to do: the run has all its steps, so {', '.join(keys)} is neither used nor recorded; give it together with"
        " a larger run.steps"
    )


def _is_taken(difference: tuple[str, Any, Any], config: Mapping[str, Any]) -> bool:
    """Whether a resumed run may have this key otherwise: what is only stored, and more steps of a constant learning rate."""
    key, was, now = difference
    longer = key == "run.steps" and now > was and config.get("update", {}).get("schedule") == "constant"
    return key in STORED_ONLY or longer


def _step_of(line: bytes) -> int | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return step if isinstance(step, int) and not isinstance(step, bool) else None


def _numbered_lines(path: Path) -> list[tuple[int, bytes]]:
    """The lines of `path` that record a step, with its number; none where there is no file."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    return [(step, line) for line in lines if (step := _step_of(line)) is not None]


def _shown(steps: list[int]) -> str:
    more = f" and {len(steps) - SHOWN_STEPS} more" if len(steps) > SHOWN_STEPS else ""
    return ", ".join(str(step) for step in steps[:SHOWN_STEPS]) + more
