"""A part of a benchmark in a process of its own: none finds memory, threads or caches of another. Standard library only, because
the interpreter of another trainer's environment reads this too.

The child prints one JSON object as its last line. A child that takes too long or too much memory is a result, not an error.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from statistics import median
from typing import Any

BENCH = Path(__file__).resolve().parents[1]
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "MemoryError", "Cannot allocate memory")
Values = dict[str, Any]


def run_child(
    command: Sequence[str], *, limit_s: float | None = None, environment: Mapping[str, str] | None = None
) -> Values:
    """What the child printed last; {"failed": reason} where it ran out of time or memory. SystemExit for any other failure."""
    if shutil.which(command[0]) is None:
        sys.exit(f"bench: there is no program {command[0]}; make peers and make vllm build those of the other sides")
    paths = f"{BENCH.parent}{os.pathsep}{BENCH}"
    settings = {**os.environ, "PYTHONPATH": paths, **(environment or {})}
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        # As Ctrl-C, so that the child is ended too.
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, text=True, env=settings, start_new_session=True
        )
        try:
            out, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            _end_all(process)
            return {"failed": f"over {limit_s:,.0f} s"}
        except BaseException:  # Ctrl-C or SIGTERM: the child has a session of its own and would go on
            _end_all(process)
            raise
        said.seek(0)
        words = said.read().decode(errors="replace").strip()
    if process.returncode:
        if process.returncode == -signal.SIGKILL or any(sign in words for sign in OUT_OF_MEMORY):
            return {"failed": "out of memory"}
        sys.exit(f"{' '.join(command)} failed with status {process.returncode}:\n{words[-3000:]}")
    found: Values = json.loads(out.strip().splitlines()[-1])
    return found


def _end_all(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def resident_peak_gib() -> float:
    """The largest resident size of this process, or that since `reset_peak`; nan where the system does not say.

    Not `ru_maxrss`, which begins at the size of the process that started this one.
    """
    return memory_bytes("VmHWM") / 2**30


def resident_gib() -> float:
    """The resident size of this process now."""
    return memory_bytes("VmRSS") / 2**30


def memory_bytes(entry: str, process: int | str = "self") -> float:
    """One entry of a process's status in bytes, such as VmHWM, VmRSS or RssAnon; nan where the process has ended, or the system
    does not say."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(f"{entry}:")), float("nan"))


def device_peak_gib() -> float:
    """The most memory that torch had allocated on the GPU since `reset_peak`; 0 without one."""
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_allocated() / 2**30 if torch is not None and torch.cuda.is_available() else 0.0


def reset_peak() -> None:
    """The peaks count from here on."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # the peak is then that of the whole process so far
        Path("/proc/self/clear_refs").write_text("5")


def give_back_free_memory() -> None:
    """Hand pages that the allocator keeps for later to the system, so that the resident size is what is held (glibc only)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def wait_for_device() -> None:
    """Until what was asked of the GPU is done; nothing without one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


class Phases:
    """Seconds and peak memory of the phases of a training step, taken at the methods that do them; the rest is the update's."""

    def __init__(self, rest: str = "update") -> None:
        self.rest = rest
        self.steps: list[dict[str, float]] = []
        self._seconds: dict[str, float] = {}
        self._peaks: dict[str, float] = {}
        self._began = time.perf_counter()

    def watch(self, owner: Any, method: str, phase: str) -> None:
        """What `owner.method` takes counts for `phase` from now on."""
        inner = getattr(owner, method)

        @wraps(inner)
        def timed(*arguments: Any, **named: Any) -> Any:
            self._note_peak(self.rest)
            wait_for_device()
            began = time.perf_counter()
            try:
                return inner(*arguments, **named)
            finally:
                wait_for_device()
                self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - began
                self._note_peak(phase)

        setattr(owner, method, timed)

    def begin(self) -> None:
        """A step begins now; needed before the first one only."""
        self._note_peak("start")
        self._began = time.perf_counter()

    def step_done(self) -> None:
        """A step ends and the next one begins."""
        wait_for_device()
        now = time.perf_counter()
        seconds = now - self._began
        self.steps.append({"step": seconds, **self._seconds, self.rest: seconds - sum(self._seconds.values())})
        self._note_peak(self.rest)
        self._seconds, self._began = {}, now

    def _note_peak(self, phase: str) -> None:
        for kind, found in (("peak GiB", resident_peak_gib()), ("GPU peak GiB", device_peak_gib())):
            for key in (kind, f"{phase} {kind}"):
                self._peaks[key] = max(self._peaks.get(key, 0.0), found)
        reset_peak()

    def summary(self, warm_up: int) -> Values:
        """Medians over the steps after the first `warm_up`, and the peaks of all; GPU peaks only where there is a GPU."""
        measured = self.steps[warm_up:]
        found: Values = {name: median(step.get(name, 0.0) for step in measured) for name in measured[0]}
        gpu = self._peaks["GPU peak GiB"] > 0
        return found | {key: value for key, value in self._peaks.items() if gpu or "GPU" not in key}


def state_gib(weights: Iterable[Any], optimizer: Any) -> float:
    """What weights, a gradient for each trained one, and the optimizer's moments take, wherever they are."""
    own = list(weights)
    held = [weight.nbytes for weight in own] + [weight.nbytes for weight in own if weight.requires_grad]
    for entry in optimizer.state.values():
        held += [value.nbytes for value in entry.values() if hasattr(value, "nbytes") and value.dim()]
    return sum(held) / 2**30


def say(values: Mapping[str, Any]) -> None:
    """The child's last line."""
    print(json.dumps(values), flush=True)
