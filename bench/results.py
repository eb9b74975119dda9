"""What a benchmark measured, kept as JSON beside what it ran on: a benchmark that was stopped goes on, and a table can be traced.

    results = Results("start-up", options.json)
    found = results.measured("luspo --help", lambda: {"seconds": ...})
    results.print(("seconds",))

    medians = results.interleaved({"ours": measure_ours, "theirs": measure_theirs}, repeats=3)
    print_table("step", with_ratio(medians, "theirs", "seconds"), ("seconds", "times as fast"))

With `path` None nothing is kept. A file of another version of the code or of another machine is refused: mixing the two would
compare what cannot be compared. What else the machine did during each measurement is kept beside it and said under the table.
"""

from __future__ import annotations

import json
import math
import os
import platform
import resource
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
from luspo_cli.machine import memory_bytes, processor_name, usable_cores

ROOT = Path(__file__).resolve().parents[1]
Values = Mapping[str, Any]
"""Numbers by name; texts, such as why there is no number, are shown as they are."""
FAILED = "failed"
"""The one entry of a measurement that ran out of time or memory: why."""
QUIET_CORES = 0.1
"""A measurement is quiet while other processes take no more of the cores than this."""


class Results:
    """Rows of numbers by name, in the order in which they were measured."""

    def __init__(self, benchmark: str, path: Path | None, **settings: Any) -> None:
        """`settings`: what the rows depend on beside their names; a file that was made with others is refused."""
        self.path, self.benchmark = path, benchmark
        self.made_on = machine() | {key: str(value) for key, value in settings.items()}
        self.rows: dict[str, dict[str, Any]] = {}
        self.load: dict[str, dict[str, float]] = {}
        """By row: the load average when it began, and the cores that other processes took meanwhile."""
        if path is not None and path.is_file():
            try:
                kept = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                raise SystemExit(f"{path} is no JSON: name another file or remove it.") from None
            if kept["benchmark"] != benchmark or kept["made_on"] != self.made_on:
                raise SystemExit(
                    f"{path} was measured by another benchmark, version or machine, or with other options; name another file or"
                    " remove it."
                )
            self.rows, self.load = kept["rows"], kept.get("load", {})

    def measured(self, row: str, measure: Callable[[], Values]) -> Values:
        """What was measured under this name before, else what `measure` returns, which is kept at once."""
        if row not in self.rows:
            watch = OtherWork()
            self.rows[row] = dict(measure())
            self.load[row] = {"load average": round(watch.load_average, 2), "other cores": round(watch.cores(), 3)}
            if self.path is not None:
                content = {
                    "benchmark": self.benchmark,
                    "made_on": self.made_on,
                    "rows": self.rows,
                    "load": self.load,
                }
                replace_file(self.path, (json.dumps(content, indent=1) + "\n").encode(), "or name another file")
        return self.rows[row]

    def interleaved(
        self, cases: Mapping[str, Callable[[], Values]], repeats: int, said: Callable[[str, Values], None] | None = None
    ) -> dict[str, Values]:
        """Each case once, then each once more, and so on, so that what drifts meets all of them alike; medians by case.

        `said` hears of each measurement. A case that failed is not tried again.
        """
        found: dict[str, list[Values]] = {name: [] for name in cases}
        for turn in range(repeats):
            for name, measure in cases.items():
                if any(FAILED in one for one in found[name]):
                    continue
                found[name].append(self.measured(f"{name} #{turn + 1}", measure))
                if said:
                    said(f"{name} #{turn + 1}", found[name][-1])
        return {name: median_values(values) for name, values in found.items()}

    def print(self, columns: Sequence[str], digits: int = 2) -> None:
        """The rows as a Markdown table, and the machine under it."""
        print_table(self.benchmark, self.rows, columns, digits)
        self.print_machine()

    def print_machine(self) -> None:
        """What the numbers were made on, and whether something else ran meanwhile."""
        print("\n" + ", ".join(f"{key} {value}" for key, value in self.made_on.items()))
        print(self.quietness())

    def quietness(self) -> str:
        """One sentence: what other processes took of the cores while these rows were measured."""
        loads = list(self.load.values())
        if not loads or any(math.isnan(load["other cores"]) for load in loads):
            return "not quiet, as far as is known: what other processes took of the cores was not measured"
        most = max(load["other cores"] for load in loads)
        noisy = sum(load["other cores"] > QUIET_CORES for load in loads)
        said = f"load average {loads[0]['load average']:.2f} before the first row, other processes took up to {most:.2f} cores"
        return f"NOT QUIET in {noisy} of {len(loads)} rows: {said}" if noisy else f"quiet: {said}"


class OtherWork:
    """What processes other than this one and its finished children take of the machine's cores from now on (Linux)."""

    def __init__(self) -> None:
        self.load_average = os.getloadavg()[0]
        self._began, self._busy, self._own = time.perf_counter(), _busy_s(), _own_s()

    def cores(self) -> float:
        """Cores, on average since the beginning; nan where the system does not say. Time stolen by other guests counts."""
        seconds = time.perf_counter() - self._began
        return max(0.0, _busy_s() - self._busy - (_own_s() - self._own)) / max(seconds, 1e-9)


def _busy_s() -> float:
    """Processor seconds of all processes since the machine started."""
    try:
        user, nice, system, _idle, _wait, irq, softirq, steal = map(
            int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        )
    except (OSError, ValueError):
        return float("nan")
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def print_table(title: str, rows: Mapping[str, Values], columns: Sequence[str], digits: int = 2) -> None:
    """Rows as a Markdown table; a dash for what a row lacks, and why in the first column of a row that failed."""
    print(f"| {title} | {' | '.join(columns)} |")
    print("| --- |" + " ---: |" * len(columns))
    for name, values in rows.items():
        shown = [_shown(values.get(column), digits) for column in columns]
        if FAILED in values:
            shown[0] = str(values[FAILED])
        print(f"| {name} | {' | '.join(shown)} |")


def _shown(value: Any, digits: int) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:,.{digits}f}"


def median_values(found: Sequence[Values]) -> Values:
    """The median of each number and the first of each text; of repeats one of which failed, why."""
    failed = next((one for one in found if FAILED in one), None)
    if failed is not None:
        return {FAILED: failed[FAILED]}
    first = found[0]
    return {
        name: value if isinstance(value, str) else statistics.median(one[name] for one in found)
        for name, value in first.items()
    }


def with_ratio(
    rows: Mapping[str, Values], baseline: str, column: str, name: str = "times as fast", inverse: bool = False
) -> dict[str, Values]:
    """Rows with the baseline's `column` divided by their own, under `name`; `inverse`: their own by the baseline's."""
    base = rows[baseline].get(column)
    found: dict[str, Values] = {}
    for row, values in rows.items():
        own = values.get(column)
        added = {name: own / base if inverse else base / own} if base and own else {}
        found[row] = {**values, **added}
    return found


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """The p of y ~ x^p that fits the points (x, y) best, by least squares of the logarithms; nan with fewer than two x."""
    kept = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    if len({x for x, _ in kept}) < 2:
        return float("nan")
    mean_x, mean_y = (sum(values) / len(kept) for values in zip(*kept, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in kept) / sum((x - mean_x) ** 2 for x, _ in kept)


def machine() -> dict[str, Any]:
    """What a number depends on: processor, cores, threads, memory, allocator, GPU, versions, the commit."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    facts = {
        "processor": processor_name(),
        "cores": usable_cores(),
        "memory GiB": round(memory_bytes() / 2**30, 1),
        "gpu": gpu_name(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", ""),
        "LD_PRELOAD": os.path.basename(os.environ.get("LD_PRELOAD", "")),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "transformers": metadata.version("transformers"),
        "commit": commit.stdout.strip(),
    }
    return {key: value for key, value in facts.items() if value != "" or key == "OMP_NUM_THREADS"}


def gpu_name() -> str:
    """What the first NVIDIA device calls itself, without torch; empty where there is none."""
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        named = [line.split(":", 1)[1].strip() for line in file.read_text().splitlines() if line.startswith("Model")]
        return named[0] if named else "NVIDIA"
    return ""


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
    return median_values([measure() for _ in range(repeats)])
