"""Where several trainings stand: sparse plain lines for a log, one row a run on a terminal."""

from __future__ import annotations

from pathlib import Path

from luspo_cli.commands.display.trainings import LineDisplay, choose_display, progress_table
from luspo_cli.experiments.sweep import Progress, Training


def _progress(name: str, state: str, step: int, length: float | None = 12.34) -> Progress:
    training = Training("luspo", 0, Path(name), 60, "fresh")
    return Progress(training, state, step, length, None if length is None else 0.5)  # type: ignore[arg-type]


def test_plain_lines_are_few() -> None:
    now = [0.0]
    lines: list[str] = []
    with LineDisplay(lines.append, clock=lambda: now[0]) as display:
        for second in range(25):
            now[0] = float(second)
            display.show([_progress("a", "running", second), _progress("b", "used again", 60)])
        display.show([_progress("a", "running", 24), _progress("b", "used again", 60)])
        now[0] = 60.0
        display.show([_progress("a", "stopping", 24), _progress("b", "used again", 60)])
        display.show([_progress("a", "stopped", 25), _progress("b", "used again", 60)])
    assert lines == [
        "b: used again (step 60/60, length 12.3 tokens, accuracy 0.500)",
        "1 of 2 runs done; running: a (step 10/60, length 12.3 tokens, accuracy 0.500)",
        "1 of 2 runs done; running: a (step 20/60, length 12.3 tokens, accuracy 0.500)",
        "stopping: each training finishes its step and writes a checkpoint",
        "1 of 2 runs done; running: a (step 24/60, length 12.3 tokens, accuracy 0.500)",
        "a: stopped (step 25/60, length 12.3 tokens, accuracy 0.500)",
    ]


def test_the_live_table_shows_each_run() -> None:
    import io

    from rich.console import Console

    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True, color_system=None)
    console.print(progress_table([_progress("luspo[x]", "running", 7), _progress("b", "waiting", 0, None)]))
    rows = [line.split() for line in file.getvalue().splitlines()]
    assert rows[1:] == [["luspo[x]", "running", "7/60", "12.3", "0.500"], ["b", "waiting"]]
    with choose_display(console) as display:
        display.show([_progress("shown", "running", 1)])
    assert "shown" in file.getvalue()
    assert isinstance(choose_display(Console(file=io.StringIO())), LineDisplay)
