"""One run, one folder: created once, written by one process at a time, never half-written (docs/run-folder.md).

`metrics.jsonl` is appended a whole line at a time. A run that goes on from a checkpoint first cuts the file back to that
checkpoint's step: the steps after it are computed again, and no step stands there twice.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from luspo_cli.errors import RunError, UsageError

IfExists = Literal["refuse", "resume", "replace"]


class RunFolder:
    """Paths and files of one run. Use it in a `with` block: it holds the run's lock until the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

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
        write_json(self.path / "config.json", config)
        return False

    def check(self, config: Mapping[str, Any], if_exists: IfExists) -> bool:
        """Return whether a run is there; UsageError where `open` would refuse it. Touches nothing."""
        if not self.path.exists() or (self.path.is_dir() and {e.name for e in self.path.iterdir()} <= {".lock"}):
            return False
        if not (self.path / "config.json").is_file():
            raise UsageError(f"{self.path} exists and is no run folder; choose another --run")
        if if_exists == "refuse":
            raise UsageError(f"run folder {self.path} exists; go on with --resume, or choose another --run")
        if if_exists == "resume":
            self._check_same(config)
        return True

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one step's record as one line, on disk before this returns."""
        line = json.dumps(record, allow_nan=False) + "\n"
        descriptor = os.open(self.metrics_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            _write_all(descriptor, line.encode(), self.metrics_path)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def cut_back(self, step: int) -> None:
        """Drop everything recorded after `step`, and a torn last line: a resumed run computes those steps again."""
        for path in (self.metrics_path, self.path / "evals" / "held-out.jsonl"):
            if not path.exists():
                continue
            kept = [line for line in path.read_bytes().split(b"\n") if _step_of(line) is not None]
            kept = [line for line in kept if (_step_of(line) or 0) <= step]
            replace_file(path, b"".join(line + b"\n" for line in kept))
        if self.rollouts.is_dir():
            for file in self.rollouts.glob("step-*.parquet"):
                if int(file.stem.removeprefix("step-")) > step:
                    file.unlink()

    def records(self) -> list[dict[str, Any]]:
        """Every recorded step of `metrics.jsonl`, in order."""
        if not self.metrics_path.exists():
            return []
        return [json.loads(line) for line in self.metrics_path.read_bytes().split(b"\n") if line.strip()]

    def last_tokens_total(self) -> int:
        """`tokens/total` of the last recorded step, 0 before the first."""
        records = self.records()
        return int(records[-1]["tokens/total"]) if records else 0

    def _take_lock(self) -> None:
        descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UsageError(
                f"another process is training in {self.path}; wait for it or choose another --run"
            ) from None
        self._lock = descriptor

    def _check_same(self, config: Mapping[str, Any]) -> None:
        try:
            stored = json.loads((self.path / "config.json").read_text())
        except ValueError:
            stored = None
        if not isinstance(stored, Mapping):
            raise UsageError(f"{self.path / 'config.json'} is not readable JSON; choose another --run")
        different = differing_keys(stored, config)
        if different:
            shown = ", ".join(f"{key} ({was!r} there, {now!r} now)" for key, was, now in different[:3])
            raise UsageError(f"{self.path} was started with another configuration: {shown}; use another --run")

    def _empty(self) -> None:
        for entry in self.path.iterdir():
            if entry.name == ".lock":
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def differing_keys(left: Mapping[str, Any], right: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted keys with unequal values, as (key, left value, right value); a missing one counts as None."""
    found: list[tuple[str, Any, Any]] = []
    for key in sorted({*left, *right}):
        one, other = left.get(key), right.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += differing_keys(one, other, f"{prefix}{key}.")
        elif one != other:
            found.append((f"{prefix}{key}", one, other))
    return found


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON whole or not at all."""
    replace_file(path, (json.dumps(value, indent=2, sort_keys=False) + "\n").encode())


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one move; a full disk leaves what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            _write_all(descriptor, content, path)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_all(descriptor: int, content: bytes, path: Path) -> None:
    start = os.lseek(descriptor, 0, os.SEEK_END)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        os.ftruncate(descriptor, start)
        raise RunError(f"cannot write {path}: {error.strerror}; free some space, then go on with --resume") from error


def _step_of(line: bytes) -> int | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return int(record["step"]) if isinstance(record, dict) and "step" in record else None
