"""How a run is asked to stop: Ctrl-C, a cluster's SIGTERM and the SIGHUP of a closed terminal all finish the step first.

A cluster sends SIGTERM some seconds before SIGKILL, and launchers pass it on once more: repeated SIGTERM and SIGHUP therefore
change nothing. Only a Ctrl-C after the first request stops at once. Under nohup SIGHUP stays ignored.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


class StopRequest:
    """Whether a stop was asked for, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None


@contextlib.contextmanager
def stop_on_signals(say: Callable[[str], None]) -> Iterator[StopRequest]:
    """Within this block a signal asks for a stop after the step; the handlers before it are back afterwards.

    But after a stop SIGTERM and SIGHUP stay ignored: the process is on its way out, and one more of them, as launchers send it,
    would end it by the signal, with another exit status than the one that says that the checkpoint is there.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # handlers belong to the main thread
        yield request
        return

    def handle(number: int, frame: Any) -> None:
        if request.signal is not None:
            return
        request.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # The signal may come in the middle of a print, which cannot be entered twice.
        with contextlib.suppress(RuntimeError, OSError):
            say("stopping after this step, with a checkpoint; Ctrl-C again stops at once without one")

    wanted = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        wanted.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in wanted}
    try:
        yield request
    finally:
        for number, handler in before.items():
            leaving = request() and number != signal.SIGINT and handler is signal.SIG_DFL
            signal.signal(number, signal.SIG_IGN if leaving else handler)
