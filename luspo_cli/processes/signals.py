"""How a run is asked to stop: Ctrl-C, a cluster's SIGTERM and the SIGHUP of a closed terminal all finish the step first.

A cluster sends SIGTERM some seconds before SIGKILL, and launchers pass it on once more: repeated SIGTERM and SIGHUP therefore
change nothing. Only a Ctrl-C after the first request stops at once. Under nohup SIGHUP stays ignored.

A reader that went away or a closed terminal must not end hours of training either: `luspo train 2>&1 | head` closes the pipe
after ten lines. What the run says is in run.log and its numbers are in metrics.jsonl, so the lines that nobody reads are dropped
and the run goes on.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

GONE = (errno.EPIPE, errno.EIO, errno.EBADF)
"""The reader will not come back: everything from here on goes nowhere."""

logger = logging.getLogger(__name__)


class StopRequest:
    """Whether a stop was asked for, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None


@contextlib.contextmanager
def stop_signals_handled(
    handle: Callable[[int], None], ignored_after: Callable[[int], bool] = lambda _: False
) -> Iterator[None]:
    """Within this block the signals that ask for a stop go to `handle`; the handlers before it are back afterwards.

    But SIGHUP stays ignored where it was, as under nohup, and outside the main thread, to which handlers belong, all stay as they
    are. `ignored_after`: whether a signal that had no handler before is to be ignored from the end of the block on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wanted = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        wanted.append(signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, frame: handle(number)) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            ignored = handler is signal.SIG_DFL and ignored_after(number)
            signal.signal(number, signal.SIG_IGN if ignored else handler)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within this block a signal asks for a stop after the step; the handlers before it are back afterwards.

    But after a stop SIGTERM and SIGHUP stay ignored: the process is on its way out, and one more of them, as launchers send it,
    would end it by the signal, with another exit status than the one that says that the checkpoint is there.
    """
    request = StopRequest()

    def handle(number: int) -> None:
        if request.signal is not None:
            return
        request.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # The signal may come in the middle of a print, which cannot be entered twice.
        with contextlib.suppress(RuntimeError, OSError):
            logger.info("stopping after this step, with a checkpoint; Ctrl-C again stops at once without one")

    with stop_signals_handled(handle, lambda number: request() and number != signal.SIGINT):
        yield request


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
