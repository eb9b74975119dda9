"""A training of seconds as a process of its own, and what must be left of it: the same bytes as one that nothing disturbed.

Everything is real: `python -m luspo_cli train` is started, killed and resumed as a user would. One undisturbed run and one cache
of made models are shared by all faults. Faults at the border to the kernel come from `fault_preload.c`.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STEPS = 6
KEPT_STEPS = (4, 6)
"""Checkpoints that a finished run has."""
SETTINGS = ("--preset", "tiny", "--config", str(HERE / "small_run.toml"))
LIMIT_S = 3600
"""Of one process: a machine under load is slow, and slowness is no loss."""
Process = subprocess.Popen[str]


class Unavailable(Exception):
    """This machine cannot provoke the fault; the message says what it lacks."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One fault provoked once."""

    moment: str
    problem: str = ""
    """What was lost or went wrong; empty where the run survived."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One change below the watched folder, as the preloaded library counts them."""

    number: int
    name: str
    path: str

    def __str__(self) -> str:
        return f"operation {self.number} ({self.name} {self.path})"


@dataclass(frozen=True, slots=True)
class Fault:
    """What the preloaded library does at operation `at` below `under`; see fault_preload.c for `how`."""

    under: Path
    how: str = ""
    at: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended and what it said."""

    status: int
    said: str
    operations: tuple[Operation, ...] = ()

    @property
    def sentence(self) -> str:
        lines = [line for line in self.said.strip().splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def unlike(self, status: int, *parts: str) -> str:
        """What is wrong with this end; empty for the expected status, one sentence with all `parts`, no traceback."""
        if self.status != status:
            return f"exit status {self.status} instead of {status}: {self.said[-600:]}"
        if "Traceback" in self.said:
            return f"a traceback: {self.said[-600:]}"
        missing = [part for part in parts if part not in self.said]
        if missing:
            return f"'{missing[0]}' was not said: {self.said[-600:]}"
        return ""


@dataclass
class Workshop:
    """A folder for runs, with the undisturbed run to compare with."""

    folder: Path
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _numbers: dict[str, int] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @cached_property
    def library(self) -> Path:
        """The preloaded library, compiled here."""
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None or not sys.platform.startswith("linux"):
            raise Unavailable("faults at chosen file operations need Linux and a C compiler")
        built = self.folder / "fault_preload.so"
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(built), str(HERE / "fault_preload.c"), "-ldl"]
        subprocess.run(command, check=True, capture_output=True)
        return built

    @cached_property
    def whole(self) -> Path:
        """A run that nothing disturbed; its operations are counted on the way where they can be."""
        run = self.folder / "whole"
        try:
            fault = Fault(run) if self.library else None
        except Unavailable:
            fault = None
        began = time.monotonic()
        ended = self.start(run, fault=fault)
        self.whole_seconds = time.monotonic() - began
        if ended.status:
            raise RuntimeError(f"the undisturbed run failed: {ended.said}")
        self.operations = ended.operations
        return run

    @cached_property
    def stopped(self) -> Path:
        """A run that was killed in step 5: checkpoints of steps 2 and 4, records of steps 1 to 5. Copy it, do not touch it."""
        run = self.new_run("stopped")
        with self.watched("train", *SETTINGS, run=run, step=5):
            pass
        return run

    @cached_property
    def resumed(self) -> Path:
        """A copy of the stopped run that went on undisturbed, its operations counted."""
        run = self.copy_of_stopped("resumed")
        self.resumed_operations = self.resume(run, fault=Fault(run)).operations
        return run

    def copy_of_stopped(self, name: str) -> Path:
        run = self.new_run(name)
        shutil.copytree(self.stopped, run)
        return run

    def new_run(self, name: str) -> Path:
        """A path for a run that is not there yet."""
        with self._lock:
            number = self._numbers[name] = self._numbers.get(name, 0) + 1
        return self.folder / f"{name}-{number}"

    def operation(self, name: str, path: str, occurrence: int = 1, *, resumed: bool = False) -> Operation:
        """The undisturbed run's operation on a path (a pattern, below the run folder), the n-th of its kind; -1 the last.

        `resumed`: of the run that was killed and went on, counted from there.
        """
        run = self.resumed if resumed else self.whole
        operations = self.resumed_operations if resumed else self.operations
        kind, place = re.compile(name), re.compile(path)
        found = [
            one
            for one in operations
            if kind.fullmatch(one.name) and place.fullmatch(one.path.removeprefix(str(run)).lstrip("/"))
        ]
        if not found:
            raise LookupError(f"the undisturbed run has no operation '{name}' on '{path}'")
        return found[occurrence - 1 if occurrence > 0 else occurrence]

    def draw_operation(self, draw: random.Random, left: float = 1.0) -> int:
        """An operation among the first `left` of all; a file written in many pieces is as likely as one written at once."""
        assert self.whole
        starts: list[int] = []
        last = ("", "")
        for one in self.operations:
            if (one.name, one.path) != last:
                starts.append(one.number)
            last = (one.name, one.path)
        within = starts[: max(1, int(left * len(starts)))]
        place = draw.randrange(len(within))
        end = starts[place + 1] if place + 1 < len(starts) else len(self.operations) + 1
        return draw.randrange(within[place], end)

    def process(
        self,
        *arguments: str,
        fault: Fault | None = None,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        before: Sequence[str] = (),
        **options: Any,
    ) -> Process:
        """Start `luspo ARGUMENTS`, after a command of one's own such as setpriv; what it says is in its `stderr`."""
        variables = os.environ | {
            "LUSPO_CACHE": str(self.cache),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            **(environment or {}),
        }
        if fault is not None or "FAULT_CLOCK" in variables:
            variables |= {"LD_PRELOAD": str(self.library)}
        if fault is not None:
            variables |= {"FAULT_UNDER": str(fault.under), "FAULT_HOW": fault.how, "FAULT_AT": str(fault.at)}
        if log is not None:
            variables |= {"FAULT_LOG": str(log)}
        command = [*before, sys.executable, "-m", "luspo_cli", *arguments]
        options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | options
        # Others' Ctrl-C is not this run's; a suite in the background has SIGINT ignored, and the child must not inherit that.
        options.setdefault("start_new_session", True)
        options.setdefault("preexec_fn", _default_signals)
        return subprocess.Popen(command, text=True, env=variables, cwd=self.folder, **options)

    def luspo(self, *arguments: str, fault: Fault | None = None, kill_after: float = 0.0, **options: Any) -> Ended:
        """Run `luspo ARGUMENTS` to its end, or kill it after some seconds."""
        log = self.folder / f"operations-{threading.get_ident()}.log" if fault is not None else None
        if log is not None:
            log.unlink(missing_ok=True)
        process = self.process(*arguments, fault=fault, log=log, **options)
        try:
            _, said = process.communicate(timeout=kill_after or LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            _, said = process.communicate()
            if not kill_after:
                said += "\nTraceback: did not end by itself"
        return Ended(process.returncode, said or "", _operations(log))

    def start(self, run: Path, *arguments: str, **options: Any) -> Ended:
        return self.luspo("train", *SETTINGS, "--run", str(run), *arguments, **options)

    def resume(self, run: Path, *arguments: str, **options: Any) -> Ended:
        """Go on as a user would: with --resume, or with the first command where not even config.json was written."""
        if not (run / "config.json").is_file():
            return self.start(run, *arguments, **options)
        return self.luspo("train", "--run", str(run), "--resume", *arguments, **options)

    def watched(self, *arguments: str, run: Path, step: int, **options: Any) -> Watched:
        """A new training that is stopped (SIGSTOP) once `step` is recorded; in the `with` block it stands still."""
        fault = Fault(run / "metrics.jsonl", "stop", 3 * step)  # a line is an open, a write and an fsync
        try:
            assert self.library
        except Unavailable:
            fault = None
        return Watched(
            self.process(*arguments, "--run", str(run), fault=fault, **options), run, step, fault is not None
        )

    def finished_alike(self, run: Path, *, ignore: Sequence[str] = ()) -> str:
        """Resume `run` and say what differs from the undisturbed run; empty where nothing does."""
        ended = self.resume(run)
        return ended.unlike(0) or self.differences(run, ignore=ignore)

    def differences(self, run: Path, *, ignore: Sequence[str] = (), whole: Path | None = None) -> str:
        """What differs: weights, optimizer, rollouts, evaluations and configuration by byte, metrics but for times."""
        whole = whole or self.whole
        theirs, ours = _contents(whole), _contents(run)
        for name in sorted({*theirs, *ours} - set(ignore)):
            if name not in ours:
                return f"{name} is missing"
            if name not in theirs:
                return f"{name} is left over"
            if theirs[name] != ours[name]:
                return f"{name} differs"
        return ""


class Watched:
    """The block in which a training stands still; killed after it unless it was let go on."""

    def __init__(self, process: Process, run: Path, step: int, stops: bool) -> None:
        self.process, self.run, self.step, self.stops = process, run, step, stops

    def __enter__(self) -> Watched:
        wait_until(lambda: self._there() or self.process.poll() is not None)
        self.process.send_signal(signal.SIGSTOP)
        if self.process.poll() is not None:
            raise RuntimeError(f"ended before step {self.step}: {self.process.communicate()[1]}")
        return self

    def __exit__(self, *failure: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def _there(self) -> bool:
        if not self.stops:  # without the library: as soon as it is seen
            return recorded(self.run) >= self.step
        return _state(self.process.pid) == "T"

    def go_on(self, send: int = 0, again: bool = False) -> Ended:
        """Let it run to its end, after a signal where one is given; `again`: and a second time a moment later."""
        if send:
            self.process.send_signal(send)
        self.process.send_signal(signal.SIGCONT)
        if again:
            time.sleep(0.05)
            self.process.send_signal(send)
        _, said = self.process.communicate(timeout=LIMIT_S)
        return Ended(self.process.returncode, said or "")


def wait_until(happened: Callable[[], Any], limit_s: float = LIMIT_S) -> None:
    end = time.monotonic() + limit_s
    while not happened():
        if time.monotonic() > end:
            raise TimeoutError("what was waited for did not happen")
        time.sleep(0.01)


def recorded(run: Path) -> int:
    """Whole lines of metrics.jsonl."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, for asking whether anything changed."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _contents(run: Path) -> dict[str, Any]:
    """What two equal runs share, by name. Times, logs and the record of who resumed it differ by nature."""
    found: dict[str, Any] = dict(snapshot(run))
    for name in ("run.log", "provenance.json", ".lock"):
        found.pop(name, None)
    if "metrics.jsonl" in found:
        lines = found["metrics.jsonl"].split(b"\n")
        found["metrics.jsonl"] = [_without_times(line) for line in lines]
    return found


def _without_times(line: bytes) -> Any:
    try:
        return {key: value for key, value in json.loads(line).items() if not key.startswith("time/")}
    except ValueError:
        return line


def _state(process: int) -> str:
    """The kernel's letter for a process; T: stopped."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _operations(log: Path | None) -> tuple[Operation, ...]:
    if log is None or not log.exists():
        return ()
    found = []
    for line in log.read_text().splitlines():
        number, rest = line.split(" ", 1)
        matched = re.fullmatch(r"(.+?) (\d+) (/.*)", rest)
        assert matched is not None, line
        found.append(Operation(int(number), matched[1], matched[3]))
    return tuple(found)


def _default_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
