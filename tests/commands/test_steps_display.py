"""What a training shows: the last steps as a live table on a terminal, the line a step that logs have otherwise."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from rich.console import Console

from luspo_cli.commands.display.format import clock
from luspo_cli.commands.display.steps import ROWS, Pace, StepLines, StepTable, choose_step_display


def record(step: int, seconds: float = 2.0, **more: Any) -> dict[str, Any]:
    return {
        "step": step, "response_length/mean": 100.0 + step, "reward/accuracy/mean": 0.25, "reward/total/mean": 0.2,
        "response/truncated_fraction": 0.5, "objective/clip_low_fraction": 0.125, "objective/clip_high_fraction": 0.25,
        "update/grad_norm": 0.0123, "time/rollout": 1.25, "time/update": 0.5, "time/total": seconds, **more,
    }  # fmt: skip


def screen(table: StepTable, width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)


def test_the_time_left_is_that_of_the_last_ten_steps() -> None:
    pace = Pace(30)
    assert pace.left(record(1, 100.0)) == "48:20"  # 29 * 100 s
    for step in range(2, 12):
        last = pace.left(record(step, 10.0))
    assert last == "3:10"  # 19 * 10 s: the first step is out
    assert pace.left(record(30)) == "0:00"
    assert [clock(s) for s in (0, 59.6, 3599, 3600, 90061)] == ["0:00", "1:00", "59:59", "1:00:00", "25:01:01"]


def test_the_table_holds_the_last_steps_and_what_is_left() -> None:
    now = [0.0]
    table = StepTable(terminal(), "runs/a", 40, lambda: now[0])
    assert screen(table) == [""]
    for step in range(1, 15):
        table.show(record(step))
    now[0] = 75.0
    lines = screen(table)
    assert lines[0].split("  ") == ["runs/a", "step 14/40", "left 0:52"]
    assert lines[1].split() == "step length accuracy reward clipped grad norm rollout s update s total s".split()  # noqa: SIM905
    assert [int(line.split()[0]) for line in lines[2:-1]] == list(range(3, 15))
    assert len(lines) == ROWS + 3
    assert lines[-2].split() == ["14", "114.0", "0.250", "0.200", "0.38", "0.0123", "1.2", "0.5", "2.0"]
    assert lines[-1] == "step 15: 1:15"


def test_held_out_accuracy_has_a_column_once_there_is_one_and_missing_numbers_are_empty() -> None:
    table = StepTable(terminal(), "runs/[a]", 2, lambda: 0.0)
    without = {key: value for key, value in record(1).items() if key != "update/grad_norm"}
    table.show(without)
    assert "held-out" not in screen(table)[1]
    table.show(record(2, **{"evaluation/accuracy": 0.75}))
    lines = screen(table)
    assert lines[0].startswith("runs/[a]  step 2/2")
    assert lines[1].split()[:4] == ["step", "length", "accuracy", "held-out"]
    assert lines[2].split() == ["1", "101.0", "0.250", "0.200", "0.38", "1.2", "0.5", "2.0"]
    assert lines[3].split()[3] == "0.750"
    assert len(lines) == 4  # nothing runs after the last step


def test_the_blind_control_stands_behind_the_held_out_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    evaluated = record(2, **{"evaluation/accuracy": 0.75, "evaluation/blind_accuracy": 0.25})
    table = StepTable(terminal(), "runs/a", 2, lambda: 0.0)
    table.show(evaluated)
    lines = screen(table)
    assert lines[1].split()[3:5] == ["held-out", "blind"]
    assert lines[2].split()[3:5] == ["0.750", "0.250"]
    StepLines(2).show(evaluated)
    assert capsys.readouterr().err.endswith("left 0:00  held-out 0.750  blind 0.250\n")


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (80, "step length accuracy reward clipped grad norm rollout s update s total s"),
        (79, "step length accuracy reward clipped grad norm rollout s total s"),
        (59, "step length accuracy reward clipped grad norm total s"),
        (40, "step length accuracy clipped total s"),
        (39, "step length accuracy total s"),
        (9, "step"),
    ],
)
def test_a_narrow_terminal_leaves_out_whole_columns(width: int, titles: str) -> None:
    """80 = 4+6+8+6+7+9+9+8+7 and 8 gaps of two, 59 without 8+9 and two gaps, 40 = 4+6+8+7+7 and 4 gaps; no number is cut."""
    table = StepTable(terminal(), "runs/a-rather-long-name", 9, lambda: 0.0)
    table.show(record(1))
    lines = screen(table, width)
    assert lines[1].split() == titles.split()
    assert "…" not in lines[1] + lines[2]
    assert max(map(len, lines)) <= width


def test_on_a_terminal_messages_stand_above_the_table_and_the_table_stays() -> None:
    console = terminal()
    with choose_step_display(console, "runs/a", 3) as display:
        assert isinstance(display, StepTable)
        print("warning: something", file=sys.stderr)
        display.show(record(1))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "warning: something" in shown
    assert shown.index("warning: something") < shown.index("step 1/3")
    assert shown.endswith("\x1b[?25h")  # the cursor is back


def test_the_terminal_is_whole_again_after_a_failure() -> None:
    console, before = terminal(), sys.stderr

    def fail() -> None:
        with choose_step_display(console, "runs/a", 3) as display:
            display.show(record(1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert sys.stderr is before
    assert console.file.getvalue().endswith("\x1b[?25h")  # type: ignore[attr-defined]


def test_piped_it_is_one_line_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    with choose_step_display(Console(file=io.StringIO()), "runs/a", 40) as display:
        assert isinstance(display, StepLines)
        display.show(record(1))
        display.show(record(2, **{"evaluation/accuracy": 0.75}))
    assert capsys.readouterr().err.splitlines() == [
        "step    1/40  length   101.0  accuracy 0.250  truncated 0.50  clipped 0.38  2.0 s  left 1:18",
        "step    2/40  length   102.0  accuracy 0.250  truncated 0.50  clipped 0.38  2.0 s  left 1:16  held-out 0.750",
    ]
