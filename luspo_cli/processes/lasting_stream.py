"""A stderr that a run outlives: a reader that went away or a closed terminal must not end hours of training.

`luspo train 2>&1 | head` closes the pipe after ten lines, a lost connection takes the terminal along. What the run says is in
run.log and its numbers are in metrics.jsonl, so the lines that nobody reads are dropped and the run goes on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any

GONE = (errno.EPIPE, errno.EIO, errno.EBADF)
"""The reader will not come back: everything from here on goes nowhere."""


class LastingStream:
    """A text stream that never raises on writing; everything else is the wrapped stream's."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except (OSError, ValueError) as error:  # ValueError: closed on our side
            self._lost(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._lost(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _lost(self, error: Exception) -> None:
        if isinstance(error, OSError) and error.errno in GONE:
            # What is still buffered must go somewhere, or each later flush and the interpreter's last one fail again.
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


@contextlib.contextmanager
def lasting_stderr() -> Iterator[None]:
    """Within this block nothing that is printed to stderr can fail."""
    before = sys.stderr
    sys.stderr = LastingStream(before)
    try:
        yield
    finally:
        sys.stderr = before
