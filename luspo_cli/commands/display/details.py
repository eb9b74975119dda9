"""A title, then names and texts in two columns: one objective, one answer."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_details(console: Console, title: str, lines: Sequence[tuple[str, str]]) -> None:
    """Print a title, then names and texts in two columns."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", max_width=28)
    grid.add_column(overflow="fold")
    for line in lines:
        grid.add_row(*map(Text, line))  # as Text, so that square brackets are no markup
    console.print(Text(title, style="bold underline"))
    console.print(grid)
