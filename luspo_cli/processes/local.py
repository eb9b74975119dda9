"""`luspo train --processes N`: N copies of the command on this machine, and an eye on them.

Decided here:
- Processes of one machine need no elastic rendezvous: they are told their places and one address, as torchrun would.
- The first one that ends badly ends the others: they notice the lost connection, and after `GRACE_S` they are stopped. What is
  left of the run is its last checkpoint; the launcher says which process ended and how, in one sentence.
- A failure that the run itself explains is said by its first process, and the launcher ends with the same status.
- The copies live in sessions of their own, so that Ctrl-C reaches each of them once, from here. They hold the reading end of a
  pipe and stop when this process is gone.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luspo_cli.errors import RunError, UsageError
from luspo_cli.processes.place import BY_LUSPO, LOST_STATUS, Place, read_place

GRACE_S = 15.0
"""For the others to notice by themselves that one has ended."""
STOP_S = 5.0
"""Between the request to stop and the end by force."""
POLL_S = 0.1
PIPE = "LUSPO_LAUNCHER_PIPE"
_SAID = (1, 2, 129, 130, 143)
"""How the first process ends where it has said why: a known failure, or a stop after a signal."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def check_processes(processes: int | None) -> int:
    """The number of processes to start, 1 for none beside this one; UsageError where a launcher has decided already."""
    if processes is None:
        return 1
    if processes < 1:
        raise UsageError(f"--processes must be 1 or more, not {processes}")
    place = read_place()
    if place is not None and not os.environ.get(BY_LUSPO):
        raise UsageError(
            f"this is process {place.rank} of {place.size} of another launcher (torchrun, accelerate launch or srun):"
            " leave out --processes"
        )
    return 1 if place is not None else processes


def launch(processes: int, run: Path, arguments: Sequence[str] | None = None) -> None:
    """Run `luspo ARGUMENTS` (this process's own, unless told) in so many processes; returns where all came to the end.

    Exits with the run's status where the run has said why; RunError for a process that was lost.
    """
    command = [sys.executable, "-m", "luspo_cli", *(sys.argv[1:] if arguments is None else arguments)]
    reading, writing = os.pipe()
    port = _free_port()
    group = _Group()
    try:
        with _forwarded(group.forward):
            for rank in range(processes):
                place = Place(rank, processes, rank, "127.0.0.1", port)
                environment = {**os.environ, **place.variables(), BY_LUSPO: "1", PIPE: str(reading)}
                group.start(command, environment, reading)
            group.watch()
    finally:
        group.stop()
        os.close(reading)
        os.close(writing)
    _conclude(group, run)


def stop_with_launcher() -> None:
    """In a copy: end when the launcher is gone, so that none trains on unseen. Does nothing elsewhere."""
    pipe = os.environ.pop(PIPE, None)
    if pipe is None:
        return

    def wait() -> None:
        os.read(int(pipe), 1)  # returns when the last writing end is closed
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="launcher", daemon=True).start()


class _Group:
    """The copies, by rank, and the order in which they ended."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.ended: list[int] = []
        self.signals: list[int] = []
        self._forced = False

    @property
    def statuses(self) -> list[int | None]:
        return [process.returncode for process in self.processes]

    def start(self, command: Sequence[str], environment: dict[str, str], pipe: int) -> None:
        self.processes.append(
            subprocess.Popen(
                command, env=environment, start_new_session=True, pass_fds=(pipe,), stdin=subprocess.DEVNULL
            )
        )

    def forward(self, number: int) -> None:
        """Pass a signal on; a third one ends everything."""
        self.signals.append(number)
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number if len(self.signals) < 3 else signal.SIGKILL)

    def watch(self) -> None:
        """Wait for all; after a bad end for `GRACE_S` at most, and after a second Ctrl-C alike."""
        deadline = None
        while len(self.ended) < len(self.processes):
            self._collect()
            bad = any(self.processes[rank].returncode for rank in self.ended)
            if deadline is None and (bad or len(self.signals) > 1):
                deadline = time.monotonic() + GRACE_S
            if deadline is not None and time.monotonic() > deadline:
                return
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End what still runs: by request, then by force."""
        for end, patience in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
            running = [process for process in self.processes if process.poll() is None]
            for process in running:
                process.send_signal(end)
            deadline = time.monotonic() + patience
            while any(process.poll() is None for process in running) and time.monotonic() < deadline:
                time.sleep(POLL_S)

    def _collect(self) -> None:
        for rank, process in enumerate(self.processes):
            if rank not in self.ended and process.poll() is not None:
                self.ended.append(rank)


def _conclude(group: _Group, run: Path) -> None:
    """End as the run ended: nothing more to say, or the sentence about the process that was lost."""
    statuses = group.statuses
    if not any(statuses):
        return
    if group.signals or statuses[0] in _SAID:
        asked = 128 + group.signals[0] if group.signals else 0
        first = statuses[0]
        if group.signals and first not in _SAID:
            print("luspo: interrupted", file=sys.stderr)
        sys.exit(first if first in _SAID else asked)
    rank = next((r for r in group.ended if statuses[r] not in (0, LOST_STATUS)), group.ended[0] if group.ended else 0)
    go_on = f"luspo train --run {shlex.quote(str(run))} --resume --processes {len(statuses)}"
    advice = f"Every checkpoint is whole: go on with: {go_on}"
    if not (run / "config.json").is_file():
        advice = "No run was begun: give the same command again"
    raise RunError(f"process {rank} of {len(statuses)} {_how(statuses[rank])}; the others were stopped. {advice}")


def _how(status: int | None) -> str:
    if status == LOST_STATUS:
        return "lost the connection to the others"
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        return f"was killed by {name}" + (" (often for want of memory)" if name == "SIGKILL" else "")
    return f"failed with exit status {status} (what it said stands above)"


@contextmanager
def _forwarded(forward: Callable[[int], None]) -> Iterator[None]:
    """Within this block, signals that would end this process go to the copies instead; under nohup SIGHUP would not."""

    def handle(number: int, frame: Any) -> None:
        forward(number)

    wanted = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
