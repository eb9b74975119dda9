"""What a run says: on stderr and, once its folder is there, in run.log, line by line the same; but not the line of each step.

Modules of the package say it through `logging`, under their own names; a warning begins with the word. Which process speaks is
decided here: the first one of the run, since the others would say the same.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from luspo_cli.errors import KnownError

PACKAGE = "luspo_cli"


class MessageFormatter(logging.Formatter):
    """The bare text, and before a warning the word."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The text as it is printed; run.log has the time before it."""
        text = super().formatMessage(record)
        return f"warning: {text}" if record.levelno >= logging.WARNING else text


class StderrHandler(logging.Handler):
    """Prints to what is stderr at that moment: a display may have put itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


class RunLogHandler(logging.Handler):
    """Adds to RUN/run.log, from when the run folder has its config.json."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self._run = run
        self.begun = False
        """Whether the folder is that of this process's run, and no longer perhaps another one's."""

    def emit(self, record: logging.LogRecord) -> None:
        # The log is a copy: a disk too full for it must not hide the sentence that says so.
        if (self._run / "config.json").exists():
            when = logging.Formatter().formatTime(record, "%Y-%m-%dT%H:%M:%S")
            with suppress(OSError), open(self._run / "run.log", "a", encoding="utf-8", errors="replace") as log:
                log.write(f"{when} {self.format(record)}\n")

    def begin(self) -> None:
        """The folder was made or taken up."""
        self.begun = True

    def failed(self, error: BaseException) -> None:
        """Add how the process ends, as the entry point will print it: a sentence, or the traceback of a defect."""
        known = isinstance(error, KnownError)
        how = str(error) if known else "interrupted" if isinstance(error, KeyboardInterrupt) else ""
        text = f"luspo: {how or 'ended by an error that it does not know'}"
        trace = None if how else (type(error), error, error.__traceback__)
        self.emit(logging.LogRecord(PACKAGE, logging.INFO, "", 0, text, None, trace))


@contextmanager
def messages_to(handlers: list[logging.Handler]) -> Iterator[None]:
    """Within this block what the package says goes to these handlers and nowhere else; none of them: it is not said."""
    logger = logging.getLogger(PACKAGE)
    before = logger.handlers, logger.level, logger.propagate
    for handler in handlers:
        handler.setFormatter(MessageFormatter())
    logger.handlers, logger.propagate = list(handlers) or [logging.NullHandler()], False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers, level, logger.propagate = before
        logger.setLevel(level)
