"""What the engine says through `logging`, as a list of lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from luspo_cli.runs.log import messages_to


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@contextmanager
def heard(lines: list[str] | None = None) -> Iterator[list[str]]:
    """Within this block every message is a line of the list, as it would be printed."""
    found: list[str] = [] if lines is None else lines
    with messages_to([_Lines(found)]):
        yield found
