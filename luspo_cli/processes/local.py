"""`luspo train --processes N`: the command in N processes of this machine, the ranks of one run, watched until they end.

Decided here:
- Processes of one machine need no elastic rendezvous: they are told their places and one address, as torchrun would.
- The first one that ends badly ends the others: they notice the lost connection, and after `GRACE_S` they are stopped. What is
  left of the run is its last checkpoint; the launcher says which process ended and how, in one sentence.
- A failure that the run itself explains is said by its first process, and the launcher ends with the same status.
- The processes stop when this one is gone, and get its signals (`supervise`).
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from luspo_cli.errors import RunError, UsageError
from luspo_cli.processes.place import BY_LUSPO, LOST_STATUS, Place, read_place
from luspo_cli.processes.supervise import Supervisor, killed_by

GRACE_S = 15.0
"""For the others to notice by themselves that one has ended."""
STOP_S = 5.0
"""Between the request to stop and the end by force."""
POLL_S = 0.1
_SAID = (1, 2, 129, 130, 143)
"""How the first process ends where it has said why: a known failure, or a stop after a signal."""


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


def launch(processes: int, run: Path, command: Sequence[str]) -> None:
    """Run `command`, a `luspo train` into `run`, in so many processes; returns where all came to the end.

    Exits with the run's status where the run has said why; RunError for a process that was lost.
    """
    port = _free_port()
    with Supervisor(poll_s=POLL_S, patience_s=STOP_S, end=signal.SIGTERM) as supervisor:
        ranks = []
        for rank in range(processes):
            place = Place(rank, processes, rank, "127.0.0.1", port)
            ranks.append(supervisor.start(command, {**os.environ, **place.variables(), BY_LUSPO: "1"}))
        _watch(supervisor)
    statuses = [child.returncode for child in ranks]
    if any(statuses):
        _conclude(statuses, [ranks.index(child) for child in supervisor.ended], supervisor.signals, run)


def how_to_go_on(run: Path, processes: int = 0) -> str:
    """What to do to go on with a run; `processes`: how many work on it, 0: as many as started with this one.

    The whole command line, but where another launcher started them: only its own command has its options.
    """
    place = read_place()
    number = processes or (place.size if place else 1)
    if number > 1 and not processes and not os.environ.get(BY_LUSPO):
        return (
            f"go on with the command that launched these {number} processes (torchrun, accelerate launch or srun), with"
            " --resume"
        )
    return f"go on with: luspo train --run {shlex.quote(str(run))} --resume{f' --processes {number}' if number > 1 else ''}"


def _watch(supervisor: Supervisor) -> None:
    """Wait for all; after a bad end for `GRACE_S` at most, and after a second Ctrl-C alike."""
    deadline = None
    while supervisor.running:
        supervisor.poll()
        bad = any(child.returncode for child in supervisor.ended)
        if deadline is None and (bad or len(supervisor.signals) > 1):
            deadline = time.monotonic() + GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            return


def _conclude(statuses: Sequence[int | None], ended: Sequence[int], signals: Sequence[int], run: Path) -> None:
    """End as the run ended: nothing more to say, or the sentence about the process that was lost.

    `statuses` by rank, and the ranks in the order in which they `ended` by themselves.
    """
    if signals or statuses[0] in _SAID:
        asked = 128 + signals[0] if signals else 0
        first = statuses[0]
        if signals and first not in _SAID:
            print("luspo: interrupted", file=sys.stderr)
        sys.exit(first if first in _SAID else asked)
    rank = next((r for r in ended if statuses[r] not in (0, LOST_STATUS)), ended[0] if ended else 0)
    advice = f"Every checkpoint is whole: {how_to_go_on(run, len(statuses))}"
    if not (run / "config.json").is_file():
        advice = "No run was begun: give the same command again"
    raise RunError(f"process {rank} of {len(statuses)} {_how(statuses[rank])}; the others were stopped. {advice}")


def _how(status: int | None) -> str:
    if status == LOST_STATUS:
        return "lost the connection to the others"
    if status is not None and status < 0:
        return killed_by(status)
    return f"failed with exit status {status} (what it said stands above)"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
