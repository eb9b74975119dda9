"""What a benchmark measured, kept as JSON beside what it ran on: a benchmark that was stopped goes on, and a table can be traced.

    results = Results("start-up", options.json)
    found = results.measured("luspo --help", lambda: {"seconds": ...})
    results.print(("seconds",))

With `path` None nothing is kept. A file of another version of the code or of another machine is refused: mixing the two would
compare what cannot be compared.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from luspo_cli.files import replace_file
from luspo_cli.machine import processor_name

ROOT = Path(__file__).resolve().parents[1]
Values = Mapping[str, float]


class Results:
    """Rows of numbers by name, in the order in which they were measured."""

    def __init__(self, benchmark: str, path: Path | None) -> None:
        self.path, self.benchmark = path, benchmark
        self.made_on = machine()
        self.rows: dict[str, dict[str, float]] = {}
        if path is not None and path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["benchmark"] != benchmark or kept["made_on"] != self.made_on:
                raise SystemExit(
                    f"{path} was measured by another benchmark, version or machine; name another file or remove it."
                )
            self.rows = kept["rows"]

    def measured(self, row: str, measure: Callable[[], Values]) -> Values:
        """What was measured under this name before, else what `measure` returns, which is kept at once."""
        if row not in self.rows:
            self.rows[row] = dict(measure())
            if self.path is not None:
                content = {"benchmark": self.benchmark, "made_on": self.made_on, "rows": self.rows}
                replace_file(self.path, (json.dumps(content, indent=1) + "\n").encode(), "or name another file")
        return self.rows[row]

    def print(self, columns: Sequence[str], digits: int = 2) -> None:
        """The rows as a Markdown table, and the machine under it."""
        print(f"| {self.benchmark} | {' | '.join(columns)} |")
        print("| --- |" + " ---: |" * len(columns))
        for name, values in self.rows.items():
            shown = ["–" if column not in values else f"{values[column]:,.{digits}f}" for column in columns]
            print(f"| {name} | {' | '.join(shown)} |")
        print("\n" + ", ".join(f"{key} {value}" for key, value in self.made_on.items()))


def machine() -> dict[str, Any]:
    """What a number depends on: processor, cores, threads, versions, the commit."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", ""),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "commit": commit.stdout.strip(),
    }


def luspo_costs(arguments: Sequence[str]) -> Values:
    """Seconds on the clock and of the processor and peak resident memory of one command of luspo; it must succeed."""
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "luspo_cli", *arguments], stdout=subprocess.DEVNULL, stderr=said
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(f"luspo {' '.join(arguments)} failed: {said.read().decode().strip()}")
    # The largest of its own processes, in units of 1,024 bytes on Linux.
    return {
        "seconds": seconds,
        "processor": used.ru_utime + used.ru_stime,
        "peak MB": used.ru_maxrss * 1024 / 1e6,
    }


def median_of(measure: Callable[[], Values], repeats: int) -> Values:
    """The median of each number over so many repeats."""
    found = [measure() for _ in range(repeats)]
    return {name: statistics.median(one[name] for one in found) for name in found[0]}
