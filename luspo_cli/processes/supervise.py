"""Child processes of which none is lost: started, watched, told to stop, and ended with the one that started them.

Children live in sessions of their own, so that a Ctrl-C in the terminal reaches each of them once, from here. They hold the
reading end of a pipe of which this process alone holds the other: they stop when it is gone, killed too (`stop_with_supervisor`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Self

from luspo_cli.processes.signals import stop_signals_handled

PIPE = "LUSPO_SUPERVISOR_PIPE"
FORCED_AT = 3
"""The third signal ends the children at once; the first asks for a checkpoint, the second is a child's own second Ctrl-C."""


class Supervisor:
    """Use it in a `with` block: signals that would end this process go to the children, and none outlives the block."""

    def __init__(
        self, *, poll_s: float, patience_s: float, end: signal.Signals, pass_on: signal.Signals | None = None
    ) -> None:
        """`end` is sent at the end of the block to what still runs, and `patience_s` later SIGKILL.

        `pass_on`: the signal that children get for every one that comes; by default the same one.
        """
        self.signals: list[int] = []
        """Those that came, in order."""
        self.ended: list[subprocess.Popen[bytes]] = []
        """Children in the order in which they were found to have ended."""
        self._children: list[subprocess.Popen[bytes]] = []
        self._delivered: dict[int, int] = {}
        self._poll_s, self._patience_s, self._end, self._pass_on = poll_s, patience_s, end, pass_on
        self._scope = contextlib.ExitStack()

    @property
    def running(self) -> list[subprocess.Popen[bytes]]:
        """Children that have not been found to have ended, in the order of their start."""
        return [child for child in self._children if child not in self.ended]

    def __enter__(self) -> Self:
        self._reading, writing = os.pipe()
        self._scope.callback(os.close, self._reading)
        self._scope.callback(os.close, writing)
        # Only noted: sent from the handler, a signal could miss a child that is being started at this moment.
        self._scope.enter_context(stop_signals_handled(self.signals.append))
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._stop()
        finally:
            self._scope.close()

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], output: IO[bytes] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a child whose output goes to `output`, or where this process's goes."""
        child = subprocess.Popen(
            command,
            env={**environment, PIPE: str(self._reading)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(self._reading,),
        )
        self._children.append(child)
        return child

    def poll(self) -> list[subprocess.Popen[bytes]]:
        """Pass on the signals that came, then wait a moment if all run on; returns the children that have ended since."""
        self._pass_signals_on()
        ended = [child for child in self.running if child.poll() is not None]
        self.ended += ended
        if not ended and self.running:
            time.sleep(self._poll_s)
        return ended

    def _pass_signals_on(self) -> None:
        came = list(self.signals)  # a handler may add to it meanwhile
        for child in self.running:
            for count in range(self._delivered.get(child.pid, 0), len(came)):
                child.send_signal(signal.SIGKILL if count + 1 >= FORCED_AT else self._pass_on or came[count])
            self._delivered[child.pid] = len(came)

    def _stop(self) -> None:
        """End what still runs: by request, then by force."""
        for end in (self._end, signal.SIGKILL):
            running = [child for child in self.running if child.poll() is None]
            for child in running:
                child.send_signal(end)
            deadline = time.monotonic() + self._patience_s
            while any(child.poll() is None for child in running) and time.monotonic() < deadline:
                time.sleep(self._poll_s)


def stop_with_supervisor() -> None:
    """In a child of a `Supervisor`: ask this process to stop when the supervisor is gone. Does nothing elsewhere."""
    pipe = os.environ.pop(PIPE, None)
    if pipe is None:
        return

    def wait() -> None:
        os.read(int(pipe), 1)  # returns when the last writing end is closed
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="supervisor", daemon=True).start()


def killed_by(status: int) -> str:
    """How a child ended whose status is negative: "was killed by SIGTERM"."""
    name = signal.Signals(-status).name
    return f"was killed by {name}" + (" (often for want of memory)" if name == "SIGKILL" else "")
