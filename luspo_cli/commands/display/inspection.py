"""An inspection for people and for programs: sparklines, warnings with what to try, a few responses on one line each.

Model text reaches the terminal without control characters: an escape sequence in a response would otherwise be obeyed.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from luspo_cli.analysis.inspection import Finding, Inspection, ShownGroup
from luspo_cli.commands.display.comparison import print_whole, titled_table

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 40
"""Columns of a sparkline."""
SHORT = 90
"""Characters of a shown response; of longer ones the beginning and the end."""


def print_inspection(found: Inspection, console: Console) -> None:
    """Print what was found, the warnings last, where a terminal shows them."""
    seed = "" if found.seed is None else f", seed {found.seed}"
    planned = "" if found.planned_steps in (None, found.last_step) else f" of {found.planned_steps}"
    console.print(Text(f"{found.name}: {found.objective}{seed}, step {found.last_step}{planned}", style="bold"))
    table = titled_table("Metrics, means over a tenth of the steps")
    for title in ("metric", "start", "mid-run", "final", "every step"):
        table.add_column(title, justify="left" if title in ("metric", "every step") else "right", no_wrap=True)
    for trend in found.trends:
        numbers = (f"{value:.4g}" for value in (trend.start, trend.middle, trend.final))
        table.add_row(trend.name + ("" if trend.unit == "1" else f" ({trend.unit})"), *numbers, sparkline(trend.values))
    print_whole(table, console)
    for group in found.groups:
        _print_group(group, console)
    if not found.groups:
        console.print(f"\nNo rollouts of steps up to {found.last_step} are stored.")
    console.print()
    for note in found.notes:
        console.print(Text(f"note: {note}", style="dim"), soft_wrap=True)
    for missing in found.not_checked:
        console.print(Text(f"not checked: {missing}", style="dim"), soft_wrap=True)
    for finding in found.findings:
        _print_finding(finding, console)
    if not found.findings:
        console.print("No warnings.")


def inspection_json(found: Inspection) -> dict[str, Any]:
    """The inspection as plain JSON values; trends without their single values, which metrics.jsonl has."""
    content = asdict(found)
    for trend in content["trends"]:
        del trend["values"]
    return content


def sparkline(values: Sequence[float | None], width: int = WIDTH) -> str:
    """Bars between the least and the largest of at most `width` means of neighbouring values; a blank where none is known."""
    size = -(-len(values) // width)
    means = [_mean(values[start : start + size]) for start in range(0, len(values), size)]
    known = [mean for mean in means if mean is not None]
    low, span = min(known), max(known) - min(known)
    place = {mean: round((mean - low) / span * (len(BARS) - 1)) if span else 3 for mean in known}
    return "".join(" " if mean is None else BARS[place[mean]] for mean in means)


def shortened(text: str, length: int = SHORT) -> str:
    """One line of printable characters: line ends as ⏎, the middle of a long text as its number of characters."""
    if len(text) > length:
        head, tail = 2 * length // 3, length // 3
        text = f"{text[:head]} …{len(text) - head - tail:,} more… {text[-tail:]}"
    line = text.replace("\r\n", "⏎").replace("\n", "⏎").replace("\t", " ")
    return "".join("�" if unicodedata.category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp") else one for one in line)


def _print_group(group: ShownGroup, console: Console) -> None:
    title = f"\nstep {group.step}, {shortened(group.problem_id)}: {group.right} of {group.size} right"
    console.print(Text(title, style="bold"))
    console.print(Text(f"  prompt  {shortened(group.prompt)}"), soft_wrap=True)
    console.print(Text(f"  answer  {shortened(group.answer)}"), soft_wrap=True)
    for one in group.responses:
        right = one.status == "correct"
        length = "" if one.length is None else f", {one.length} tokens{' cut' if one.truncated else ''}"
        numbers = f"reward {one.reward:.3g}, advantage {one.advantage:+.2f}{length}"
        mark = Text(f"  {'right' if right else 'wrong'}   ", style="green" if right else "red")
        console.print(mark + Text(f"{numbers}: {shortened(one.response)}"), soft_wrap=True)


def _print_finding(finding: Finding, console: Console) -> None:
    console.print(Text(f"warning, {finding.kind}: {finding.seen}.", style="yellow"), soft_wrap=True)
    for place, one in enumerate(finding.try_next, 1):
        console.print(Text(f"  try {place}. {one}"), soft_wrap=True)
    console.print(Text(f"  see {finding.page}", style="dim"), soft_wrap=True)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
