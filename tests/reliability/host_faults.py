"""What becomes of a run on two hosts when a process, a host or its network is lost; run this file to try all of them.

The hosts are network namespaces (tests/doubles/hosts.py) with two processes each, started by torchrun; the run is one of seconds.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import os
import signal

from doubles.hosts import Host, ended, no_hosts, torchrun, two_hosts
from doubles.runs import SMALL_RUN, as_arguments
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.run import TrainRun

EACH = 2
"""Processes on each host."""
BOUND_S = 90.0
"""Seconds after which no process of the run is left anywhere; the launcher's own time to leave included."""

FAULTS: dict[str, tuple[Callable[[Host, Host], None], str]] = {
    "one process killed": (
        lambda first, second: os.kill(second.tasks()[3], signal.SIGKILL),
        "lost process 3 of 4 on host2 (ended or killed)",
    ),
    "first process killed": (
        lambda first, second: os.kill(first.tasks()[0], signal.SIGKILL),
        "lost process 0 of 4 on host1 (ended or killed)",
    ),
    "host killed": (
        lambda first, second: second.kill(),
        "lost host2 with processes 2 and 3 of 4 (ended or killed)",
    ),
    "first host killed": (
        lambda first, second: first.kill(),
        "lost process 0 of 4 on host1 (ended or killed)",
    ),
    "host unplugged": (
        lambda first, second: second.unplug(),
        "lost host2 with processes 2 and 3 of 4 (no sign of life for 25 s)",
    ),
    "first host unplugged": (
        lambda first, second: first.unplug(),
        "lost host2 with processes 2 and 3 of 4 (no sign of life for 25 s)",
    ),
}
"""What is done, and how the sentence begins that host1 says, or host2 where host1 is gone."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run on two hosts ended."""

    seconds: float
    """From the fault until the last process had ended, on both hosts."""
    said: dict[str, str]
    """By host, everything that its processes and its launcher said."""
    statuses: tuple[int, ...]
    """Of the two launchers."""
    left: int
    """Processes that were still there."""

    def sentences(self, host: str) -> list[str]:
        return [line for line in self.said[host].splitlines() if line.startswith("luspo:")]


def endless_run() -> TrainRun:
    """A run of seconds that never comes to its last step."""
    more = ("run.steps=100000", "evaluation.every=0")
    return resolve_train(preset="tiny", objective="luspo", sets=[*SMALL_RUN, *more])


def provoke(fault: str, folder: Path) -> Outcome:
    """Start a run in `folder` on two hosts, provoke the fault after three steps, and wait until all have ended."""
    arguments, said = as_arguments(endless_run(), folder), {}
    with two_hosts() as hosts:
        launchers = [
            host.start(
                [sys.executable, "-m", *torchrun(number, hosts[0], EACH), "luspo_cli", *arguments],
                folder / f"{host.name}.txt",
                {"OMP_NUM_THREADS": "1"},
            )
            for number, host in enumerate(hosts)
        ]
        metrics, deadline = folder / "run/metrics.jsonl", time.monotonic() + 300
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 3):
            assert all(launcher.poll() is None for launcher in launchers), (folder / "host1.txt").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        FAULTS[fault][0](*hosts)
        seconds = ended(launchers, 4 * BOUND_S)
        left = sum(len(host.pids()) for host in hosts)
        said = {host.name: (folder / f"{host.name}.txt").read_text() for host in hosts}
        return Outcome(seconds, said, tuple(launcher.returncode for launcher in launchers), left)


def main() -> None:
    if reason := no_hosts():
        sys.exit(reason)
    for fault in sys.argv[1:] or FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            outcome = provoke(fault, Path(folder))
            print(f"{fault}: {outcome.seconds:.1f} s, statuses {outcome.statuses}, {outcome.left} left", flush=True)
            for host in outcome.said:
                print(f"  {host}: {outcome.sentences(host) or 'nothing'}", flush=True)
            if os.environ.get("LUSPO_DEBUG"):
                print(outcome.said)


if __name__ == "__main__":
    main()
