"""Where several trainings stand: a live table on a terminal, sparse plain lines elsewhere.

A log file wants few lines: one for each run that ends, and an overview at most every ten seconds while a number moves.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from luspo_cli.commands.display.format import number
from luspo_cli.experiments.sweep import Interrupted, Progress, State
from luspo_cli.runs.log import StderrHandler, messages_to

LINE_EVERY_S = 10.0
ENDED: tuple[State, ...] = ("finished", "used again", "failed", "stopped")


class LineDisplay:
    """Plain lines: one for each run as it ends, and the running ones at most every `LINE_EVERY_S` seconds."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._told: set[str] = set()
        self._overview = ""
        self._last_overview = clock()

    def __enter__(self) -> LineDisplay:
        return self

    def __exit__(self, *failure: object) -> None:
        return None

    def show(self, progress: Sequence[Progress]) -> None:
        for one in progress:
            if one.state in ENDED and one.training.name not in self._told:
                self._told.add(one.training.name)
                self._write(f"{one.training.name}: {one.state}{_numbers(one)}")
        running = [one for one in progress if one.state in ("running", "stopping")]
        overview = "; ".join(f"{one.training.name}{_numbers(one)}" for one in running)
        if "stopping" not in self._told and any(one.state == "stopping" for one in running):
            self._told.add("stopping")
            self._write("stopping: each training finishes its step and writes a checkpoint")
        if overview and overview != self._overview and self._clock() - self._last_overview >= LINE_EVERY_S:
            done = sum(one.state in ENDED for one in progress)
            self._write(f"{done} of {len(progress)} runs done; running: {overview}")
            self._overview, self._last_overview = overview, self._clock()


class LiveTable:
    """Something that is drawn anew in place, and stays on the screen as it was last; lines to stderr appear above it."""

    def __init__(self, console: Console, draws_itself: RenderableType | None = None) -> None:
        """`draws_itself`: what to ask for a new picture, four times a second."""
        self._live = Live(draws_itself, console=console, refresh_per_second=4)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


class LiveDisplay(LiveTable):
    """One row a training."""

    def show(self, progress: Sequence[Progress]) -> None:
        self._live.update(progress_table(progress))


def progress_table(progress: Sequence[Progress]) -> Table:
    """Return one row a run: state, step, response length and accuracy of its last step."""
    table = Table(box=None, pad_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("state")
    for title in ("step", "length (tokens)", "accuracy"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in progress:
        table.add_row(
            Text(one.training.name),
            one.state,
            f"{one.step}/{one.training.steps}" if one.step else "",
            number(one.response_length, ".1f"),
            number(one.accuracy, ".3f"),
        )
    return table


@contextmanager
def shown_on_stderr() -> Iterator[LineDisplay | LiveDisplay]:
    """Messages and progress of trainings on stderr; after a signal how to go on, and exit status 130."""
    try:
        with messages_to([StderrHandler()]):
            yield choose_display(Console(stderr=True))
    except Interrupted as interruption:
        if str(interruption):
            typer.echo(str(interruption), err=True)
        again = shlex.join(["luspo", *sys.argv[1:]])
        typer.echo(f"Stopped; no training is left running. Go on with: {again}", err=True)
        raise typer.Exit(130) from None


def choose_display(console: Console) -> LineDisplay | LiveDisplay:
    """Return the live table for a terminal, plain lines otherwise."""
    if console.is_terminal:
        return LiveDisplay(console)
    return LineDisplay(lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))


def _numbers(one: Progress) -> str:
    if not one.step:
        return ""
    length = "" if one.response_length is None else f", length {one.response_length:.1f} tokens"
    accuracy = "" if one.accuracy is None else f", accuracy {one.accuracy:.3f}"
    return f" (step {one.step}/{one.training.steps}{length}{accuracy})"
