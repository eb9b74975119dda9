"""Another program with all that it starts, ended together: `python -m luspo_cli.processes.contained COMMAND...` (Linux).

A program of others knows nothing of our supervisor, and may start processes that leave its session (Ray does). This process
stands between: it takes over every descendant whose parent ends, passes on what asks the program to stop, and when the program
has ended, or the supervisor is gone, ends every descendant. The program itself ends with this process, killed too.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from luspo_cli.processes.supervise import stop_with_supervisor

PATIENCE_S = 10.0
"""Between the request to stop and the end by force."""
_SET_PARENT_DEATH_SIGNAL, _SET_SUBREAPER = 1, 36


def main(command: list[str]) -> int:
    """Run the command to its end; its exit status, 128 + signal where one ended it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_SET_SUBREAPER, 1, 0, 0, 0)
    stop_with_supervisor()
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: asked.append(number))
    program = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: libc.prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0),
    )
    passed, force_at = 0, None
    while program.poll() is None:
        if passed < len(asked):
            program.send_signal(asked[passed])
            force_at, passed = force_at or time.monotonic() + PATIENCE_S, passed + 1
        if force_at is not None and time.monotonic() > force_at:
            program.kill()
        time.sleep(0.05)
    end_descendants()
    status = program.returncode
    return 128 - status if status < 0 else status


def end_descendants() -> None:
    """End every process below this one: by request, then by force."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + PATIENCE_S
        asked: set[int] = set()
        while (left := list(descendants(os.getpid()))) and time.monotonic() < deadline:
            for pid in left:
                if pid not in asked:
                    asked.add(pid)
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, number)
            _reap()
            time.sleep(0.05)


def _reap() -> None:
    """Take note of children that have ended."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def descendants(root: int) -> Iterator[int]:
    """Processes below `root`, but those that have ended and are not yet taken note of."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, IndexError, ValueError):
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if state != "Z":
                    children.setdefault(int(parent), []).append(int(entry.name))
    waiting = list(children.get(root, ()))
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += children.get(pid, ())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
