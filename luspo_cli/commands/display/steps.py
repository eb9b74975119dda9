"""Where one training stands: a live table of its last steps on a terminal, one plain line a step elsewhere.

Both read the records of metrics.jsonl and nothing else. The time left is the mean of the last ten steps, evaluations included,
times the steps to go.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from luspo_cli.commands.display.format import clock, number
from luspo_cli.commands.display.trainings import LiveTable

ROWS = 12
"""Steps that the table shows."""
RECENT = 10
"""Steps that the time left is reckoned from."""
Record = Mapping[str, Any]


class Column(NamedTuple):
    """A column of the live table."""

    title: str
    value: Callable[[Record], float | None]
    form: str
    rank: int
    """A narrow terminal leaves out the columns of the highest rank."""


def clipped_fraction(record: Record) -> float:
    """Share of ratios that the clip range held, below or above."""
    clip: float = record.get("objective/clip_low_fraction", 0.0) + record.get("objective/clip_high_fraction", 0.0)
    return clip


def trained(record: Record) -> str:
    """What a line says of the step's update."""
    waits = record.get("update/lag", 0) is None
    return "trains nothing yet" if waits else f"clipped {clipped_fraction(record):.2f}"


def _of(key: str) -> Callable[[Record], float | None]:
    return lambda record: record.get(key)


HELD_OUT = Column("held-out", _of("evaluation/accuracy"), ".3f", 3)
BLIND = Column("blind", _of("evaluation/blind_accuracy"), ".3f", 4)
COLUMNS = (
    Column("step", _of("step"), "d", 0),
    Column("length", _of("response_length/mean"), ".1f", 1),
    Column("accuracy", _of("reward/accuracy/mean"), ".3f", 2),
    HELD_OUT,
    BLIND,
    Column("reward", _of("reward/total/mean"), ".3f", 6),
    Column("clipped", clipped_fraction, ".2f", 5),
    Column("grad norm", _of("update/grad_norm"), ".3g", 7),
    Column("rollout s", _of("time/rollout"), ".1f", 8),
    Column("update s", _of("time/update"), ".1f", 9),
    Column("total s", _of("time/total"), ".1f", 4),
)


class Pace:
    """How long the steps take, and how long the rest will."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._recent: tuple[float, ...] = ()

    def left(self, record: Record) -> str:
        """Take in a step's record and return the time to the end of the run."""
        self._recent = (*self._recent, record["time/total"])[-RECENT:]
        return clock((self.steps - record["step"]) * sum(self._recent) / len(self._recent))


class StepLines:
    """One line a step."""

    def __init__(self, steps: int) -> None:
        self._pace = Pace(steps)

    def __enter__(self) -> StepLines:
        return self

    def __exit__(self, *failure: object) -> None:
        return None

    def show(self, record: Record) -> None:
        held_out = "".join(
            f"  {column.title} {value:.3f}"
            for column in (HELD_OUT, BLIND)
            if (value := column.value(record)) is not None
        )
        print(
            f"step {record['step']:>4}/{self._pace.steps}  length {record['response_length/mean']:7.1f}"
            f"  accuracy {record['reward/accuracy/mean']:.3f}  truncated {record['response/truncated_fraction']:.2f}"
            f"  {trained(record)}  {record['time/total']:.1f} s  left {self._pace.left(record)}{held_out}",
            file=sys.stderr,
            flush=True,
        )


class StepTable(LiveTable):
    """The last steps as a table, with the time left above and the time since the last step below."""

    def __init__(self, console: Console, run: str, steps: int, now: Callable[[], float] = time.monotonic) -> None:
        self._run, self._pace, self._now = run, Pace(steps), now
        # Replaced as a whole: another thread draws.
        self._shown: tuple[tuple[Record, ...], str, float] = ((), "", now())
        super().__init__(console, self)

    def show(self, record: Record) -> None:
        records, _, _ = self._shown
        self._shown = ((*records, record)[-ROWS:], self._pace.left(record), self._now())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._picture(options.max_width)

    def _picture(self, width: int) -> Table | Text:
        records, left, since = self._shown
        if not records:
            return Text("")
        step, steps = records[-1]["step"], self._pace.steps
        cells = {c: [number(c.value(record), c.form) for record in records] for c in COLUMNS}
        columns = [c for c in COLUMNS if c not in (HELD_OUT, BLIND) or any(cells[c])]
        columns = _fitting(columns, [max(map(len, (c.title, *cells[c]))) for c in columns], width)
        table = Table(box=None, pad_edge=False, title_justify="left", caption_justify="left")
        table.title = Text(f"{self._run}  step {step}/{steps}  left {left}", overflow="ellipsis", no_wrap=True)
        if step < steps:
            table.caption = Text(f"step {step + 1}: {clock(self._now() - since)}")
        for column in columns:
            table.add_column(column.title, justify="right", no_wrap=True)
        for i in range(len(records)):
            table.add_row(*(cells[column][i] for column in columns))
        return table


def _fitting(columns: Sequence[Column], widths: Sequence[int], room: int) -> list[Column]:
    """The columns that fit beside one another with two blanks between them; those of least rank go first."""
    kept = dict(zip(columns, widths, strict=True))
    while len(kept) > 1 and sum(kept.values()) + 2 * (len(kept) - 1) > room:
        del kept[max(kept, key=lambda column: column.rank)]
    return list(kept)


def choose_step_display(console: Console, run: str, steps: int) -> StepLines | StepTable:
    """Return the live table for a terminal, plain lines otherwise."""
    return StepTable(console, run, steps) if console.is_terminal else StepLines(steps)
