"""The connection by which a lost process is known: who hears of whom, who says it, and that nobody is taken for lost who left."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from luspo_cli.processes import lifeline as module
from luspo_cli.processes.lifeline import Lifeline, Verdict

HOSTS = [("a", "1"), ("a", "1"), ("b", "2"), ("b", "2")]
SOON = 10.0


@pytest.fixture
def tied() -> Iterator[Callable[[], list[Lifeline]]]:
    """Makes four processes, two on each of two hosts, of objects in this process."""
    made: list[Lifeline] = []

    def tie() -> list[Lifeline]:
        made.extend(Lifeline(rank, HOSTS) for rank in range(4))
        where = made[0].listen("127.0.0.1")
        assert all(other.connect(*where) for other in made[1:])
        return made

    yield tie
    for lifeline in made:
        lifeline.close(failed=False)


def test_an_end_without_a_word_reaches_all(tied: Callable[[], list[Lifeline]]) -> None:
    processes = tied()
    processes[3].drop()
    assert [processes[rank].wait(SOON) for rank in (0, 1, 2)] == [Verdict("lost", (3,))] * 3
    assert [processes[rank].speaks() for rank in (0, 1, 2)] == [True, False, True]
    assert processes[1].sentence(Verdict("lost", (3,))) == (
        "lost process 3 of 4 on b (ended or killed); the others stop. Every checkpoint is whole: go on with --resume, with any"
        " number of processes"
    )


def test_the_processes_of_a_machine_are_lost_together(
    tied: Callable[[], list[Lifeline]], monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = tied()
    processes[2].drop()
    processes[3].drop()
    verdict = processes[1].wait(SOON)
    assert verdict == Verdict("lost", (2, 3))
    assert processes[0].wait(SOON) == verdict
    assert processes[0].sentence(verdict).startswith("lost b with processes 2 and 3 of 4 (ended or killed); ")
    silent = Verdict("lost", (2, 3), silent=True)
    assert processes[0].sentence(silent).startswith("lost b with processes 2 and 3 of 4 (no sign of life for 25 s); ")


def test_each_process_hears_of_the_first_one_s_end_by_itself(tied: Callable[[], list[Lifeline]]) -> None:
    processes = tied()
    processes[0].drop()
    assert [processes[rank].wait(SOON) for rank in (1, 2, 3)] == [Verdict("lost", (0,))] * 3
    assert [processes[rank].speaks() for rank in (1, 2, 3)] == [True, True, False]


def test_who_leaves_is_not_lost(tied: Callable[[], list[Lifeline]]) -> None:
    processes = tied()
    processes[2].close(failed=False)
    processes[0].close(failed=False)
    assert [processes[rank].wait(0.5) for rank in (1, 3)] == [None, None]


def test_a_failure_that_was_said_is_none_to_say_again(tied: Callable[[], list[Lifeline]]) -> None:
    processes = tied()
    processes[2].close(failed=True)
    assert [processes[rank].wait(SOON) for rank in (0, 1, 3)] == [Verdict("failed", (2,))] * 3


def test_a_stranger_is_not_let_in(tied: Callable[[], list[Lifeline]]) -> None:
    lifeline = Lifeline(0, HOSTS)
    addresses, port, secret = lifeline.listen("127.0.0.1")
    assert "127.0.0.1" in addresses
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(bytes(len(secret) + 4))
        assert stranger.recv(16) == b""
    assert not Lifeline(1, HOSTS).connect(["127.0.0.1"], port, bytes(len(secret)))
    lifeline.close(failed=False)


def test_a_connection_is_watched_by_the_kernel(tied: Callable[[], list[Lifeline]]) -> None:
    """On both ends; by the numbers that the sentence names."""
    first, second, *_ = tied()
    for peer in (first._peers[1], second._peers[0]):
        assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            kept = [
                peer.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
            ]
            assert kept == [5, 5, 4, 25000]
            assert module.SILENT_S == 5 + 5 * 4


WAITS_FOR_EVER = """
import sys, time
from luspo_cli.processes import lifeline
lifeline.LEAVE_S = lifeline.FAILED_LEAVE_S = 0.2
first, second = (lifeline.Lifeline(rank, [("a", "1"), ("a", "1")]) for rank in range(2))
second.connect(*first.listen("127.0.0.1"))
second.drop() if sys.argv[1] == "lost" else second.close(failed=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("how", "launched", "status", "said"),
    [
        ("lost", False, 1, "luspo: lost process 1 of 2 on a (ended or killed); the others stop."),
        ("lost", True, 75, ""),  # its launcher says it
        ("failed", False, 1, ""),  # said by the one that failed
    ],
)
def test_a_process_that_waits_where_no_error_comes_is_ended(how: str, launched: bool, status: int, said: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "LUSPO_LAUNCHED"}
    environment |= {"LUSPO_LAUNCHED": "1"} if launched else {}
    done = subprocess.run(
        [sys.executable, "-c", WAITS_FOR_EVER, how], capture_output=True, text=True, timeout=50, env=environment
    )
    assert done.returncode == status
    assert done.stderr.startswith(said) if said else not done.stderr
