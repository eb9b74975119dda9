"""Where an evaluation stands: a bar with an estimate on a terminal, sparse plain lines elsewhere.

The estimate counts only what this session drew: samples that were there already took no time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from luspo_cli.commands.display import format as shown

LINE_EVERY_S = 10.0


class LineProgress:
    """Plain lines: at most one every `LINE_EVERY_S` seconds, and one at the end of each benchmark."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._benchmark = ""
        self._started = self._told = clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        return None

    def __call__(self, benchmark: str, done: int, total: int, found: int) -> None:
        now = self._clock()
        if benchmark != self._benchmark:
            self._benchmark, self._started, self._told = benchmark, now, now
        if now - self._told < LINE_EVERY_S and done < total:
            return
        self._told = now
        left = seconds_left(now - self._started, done - found, total - done)
        rest = "" if left is None or done == total else f", about {shown.clock(left)} left"
        self._write(f"{benchmark}: {done:,} of {total:,} samples{rest}")


class BarProgress:
    """One bar a benchmark, drawn in place."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._progress = Progress(*columns, console=console)
        self._clock = clock
        self._tasks: dict[str, tuple[TaskID, float]] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, benchmark: str, done: int, total: int, found: int) -> None:
        if benchmark not in self._tasks:
            self._tasks[benchmark] = self._progress.add_task(benchmark, total=total, left=""), self._clock()
        task, started = self._tasks[benchmark]
        left = seconds_left(self._clock() - started, done - found, total - done)
        text = "" if left is None or done == total else f"{shown.clock(left)} left"
        self._progress.update(task, completed=done, left=text)


def seconds_left(elapsed: float, drawn: int, left: int) -> float | None:
    """Return the estimate from the pace so far; None before the first sample."""
    return elapsed / drawn * left if drawn > 0 else None


def choose_progress(console: Console) -> LineProgress | BarProgress:
    """Return the bar for a terminal, plain lines otherwise."""
    if console.is_terminal:
        return BarProgress(console)
    return LineProgress(lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))
