"""One more connection from each process of a run to its first, by which a lost process or machine is known within a minute.

A process that is killed closes its connections; gloo notices that at its next exchange and NCCL does not. A machine that loses
its power or its network closes nothing, and everybody else would wait for `run.wait_for_processes_s`. So each process holds a
TCP connection on which nothing is sent while all is well: the kernel asks the other end for a sign of life (keepalive) and ends
the connection where none comes. The kernel answers for a process that computes for minutes, holds the interpreter lock or is
stopped, so nothing is taken for lost that is only busy.

Decided here:
- The first process hears of every end and tells the others, each of which hears of the first one's by itself.
- A process that hears of a loss has `LEAVE_S` to come out of its exchange with an error. One that waits where no error comes is
  ended: whatever a run writes survives that (docs/reliability.md).
- On each machine the lowest process that is left says it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from luspo_cli.processes.place import BY_LUSPO, LOST_STATUS

IDLE_S, EVERY_S, PROBES = 5, 5, 4
"""Seconds without traffic before the kernel asks for a sign of life, seconds between questions, and how many stay unanswered."""
SILENT_S = IDLE_S + EVERY_S * PROBES
TOGETHER_S = 2.0
"""The processes of a lost machine are found one by one: so long the first loss waits for the others of its machine."""
LEAVE_S = 15.0
"""For a process to come out by itself after a loss: a writer of tracking may have something to send."""
FAILED_LEAVE_S = 60.0
"""After a failure that another process has explained, which most processes share and leave by themselves."""
MEET_S = 10.0
POLL_S = 0.25
_SECRET_BYTES = 16
_LEFT, _FAILED, _LOST = "left", "failed", "lost"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of other processes."""

    kind: str
    """`failed`: one of them said why; `lost`: nobody did."""
    ranks: tuple[int, ...]
    silent: bool = False
    """Lost without a word of the machine either."""


class Lifeline:
    """This process's part; `machines` are those of all processes by rank, each with its name first."""

    def __init__(self, rank: int, machines: Sequence[tuple[str, str]]) -> None:
        self.rank, self.machines = rank, list(machines)
        self.verdict: Verdict | None = None
        self._decided, self._closed = threading.Event(), threading.Event()
        self._secret = secrets.token_bytes(_SECRET_BYTES)
        self._peers: dict[int, socket.socket] = {}
        self._listener: socket.socket | None = None

    def listen(self, towards: str) -> tuple[list[str], int, bytes]:
        """On the first process: where the others find it, by addresses and port, and what they say there.

        `towards`: the address at which the processes met.
        """
        if socket.has_dualstack_ipv6():
            self._listener = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=256)
        else:
            self._listener = socket.create_server(("", 0), backlog=256)
        self._start(self._watch_all)
        addresses = dict.fromkeys([*_own_address(towards), towards, socket.gethostname()])
        return list(addresses), self._listener.getsockname()[1], self._secret

    def connect(self, addresses: Sequence[str], port: int, secret: bytes) -> bool:
        """On every other process: reach the first one at one of its addresses; whether that went well."""
        for address in addresses:
            with contextlib.suppress(OSError):
                peer = socket.create_connection((address, port), timeout=MEET_S / 2)
                peer.sendall(secret + self.rank.to_bytes(4, "big"))
                if peer.recv(_SECRET_BYTES, socket.MSG_WAITALL) == secret[::-1]:
                    _keep_alive(peer)
                    self._peers[0] = peer
                    self._start(self._watch_first)
                    return True
                peer.close()
        return False

    def close(self, failed: bool) -> None:
        """This process leaves: at the end of its work, or with a failure that it says itself."""
        if self._closed.is_set():
            return
        self._closed.set()
        for peer in list(self._peers.values()):
            _send(peer, _FAILED if failed else _LEFT)
        if self._listener is not None:
            self._listener.close()

    def drop(self) -> None:
        """This process leaves without a word, as a killed one would: the others take it for lost."""
        self._closed.set()
        for peer in list(self._peers.values()):
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)

    def wait(self, seconds: float) -> Verdict | None:
        """What became of the others, where that is known or becomes known so soon."""
        if self._peers:
            self._decided.wait(seconds)
        return self.verdict

    def speaks(self) -> bool:
        """Whether this process says the loss: the lowest one of its machine that is left."""
        lost = self.verdict.ranks if self.verdict else ()
        here = [r for r, machine in enumerate(self.machines) if machine == self.machines[self.rank] and r not in lost]
        return bool(here) and here[0] == self.rank

    def sentence(self, verdict: Verdict) -> str:
        """What happened and how to go on."""
        size, ranks = len(self.machines), verdict.ranks
        machine = self.machines[ranks[0]]
        host, numbers = machine[0], f"process{'es' if len(ranks) > 1 else ''} {_listed(ranks)} of {size}"
        whole = len(set(self.machines)) > 1 and len(ranks) == self.machines.count(machine)
        named = f"{host} with {numbers}" if whole else f"{numbers} on {host}"
        how = f"no sign of life for {SILENT_S} s" if verdict.silent else "ended or killed"
        return (
            f"lost {named} ({how}); the others stop. Every checkpoint is whole: go on with"
            " --resume, with any number of processes"
        )

    def _start(self, watch: Callable[[], None]) -> None:
        threading.Thread(target=watch, name="lifeline", daemon=True).start()

    def _watch_first(self) -> None:
        first = self._peers[0]
        while not self._closed.is_set():
            said, silent = _receive(first)
            word, _, rest = said.partition(" ")
            if word == _LEFT:
                return
            if word == _FAILED:
                self._decide(Verdict(_FAILED, (0,) if not rest else _numbers(rest)))
            elif word == _LOST:
                ranks, _, how = rest.partition(" ")
                self._decide(Verdict(_LOST, _numbers(ranks), how == "silent"))
            else:
                self._decide(Verdict(_LOST, (0,), silent))
            return

    def _watch_all(self) -> None:
        assert self._listener is not None
        with selectors.DefaultSelector() as watched, contextlib.suppress(OSError, ValueError):
            watched.register(self._listener, selectors.EVENT_READ, None)
            lost: dict[int, bool] = {}
            decide_at: float | None = None
            while not self._closed.is_set():
                for key, _ in watched.select(POLL_S):
                    peer: Any = key.fileobj
                    if peer is self._listener:
                        if (found := self._welcome()) is not None:
                            watched.register(self._peers[found], selectors.EVENT_READ, found)
                        continue
                    said, silent = _receive(peer)
                    watched.unregister(peer)
                    self._peers.pop(key.data)
                    if said.startswith(_FAILED):
                        self._tell_all(f"{_FAILED} {key.data}")
                        self._decide(Verdict(_FAILED, (key.data,)))
                        return
                    if not said.startswith(_LEFT):
                        lost[key.data] = silent
                        here = self.machines.count(self.machines[key.data])
                        decide_at = decide_at or time.monotonic() + (TOGETHER_S if here > 1 else 0.0)
                if decide_at is not None and time.monotonic() >= decide_at:
                    host = self.machines[min(lost)]
                    ranks = tuple(sorted(rank for rank in lost if self.machines[rank] == host))
                    verdict = Verdict(_LOST, ranks, all(lost[rank] for rank in ranks))
                    self._tell_all(f"{_LOST} {','.join(map(str, ranks))}{' silent' if verdict.silent else ''}")
                    self._decide(verdict)
                    return

    def _welcome(self) -> int | None:
        """The number of a process that has come, once it has said the secret."""
        assert self._listener is not None
        peer, _ = self._listener.accept()
        with contextlib.suppress(OSError):
            peer.settimeout(MEET_S / 2)
            hello = peer.recv(_SECRET_BYTES + 4, socket.MSG_WAITALL)
            if secrets.compare_digest(hello[:_SECRET_BYTES], self._secret):
                rank = int.from_bytes(hello[_SECRET_BYTES:], "big")
                _keep_alive(peer)
                self._peers[rank] = peer
                peer.sendall(self._secret[::-1])
                return rank
        peer.close()
        return None

    def _tell_all(self, words: str) -> None:
        for peer in list(self._peers.values()):
            _send(peer, words)

    def _decide(self, verdict: Verdict) -> None:
        """Let the rest of this process know, and end it where it does not leave by itself."""
        if self._closed.is_set():
            return
        self.verdict = verdict
        self._decided.set()
        if self._closed.wait(LEAVE_S if verdict.kind == _LOST else FAILED_LEAVE_S):
            return
        launched = bool(os.environ.get(BY_LUSPO))  # that launcher says it
        if verdict.kind == _LOST and self.speaks() and not launched:
            with contextlib.suppress(Exception):
                print(f"luspo: {self.sentence(verdict)}", file=sys.stderr, flush=True)
        os._exit(LOST_STATUS if launched else 1)


def _keep_alive(peer: socket.socket) -> None:
    """Have the kernel end the connection where the other machine gives no sign of life for `SILENT_S`."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", IDLE_S),
        ("TCP_KEEPALIVE", IDLE_S),  # the same under the name of macOS
        ("TCP_KEEPINTVL", EVERY_S),
        ("TCP_KEEPCNT", PROBES),
        ("TCP_USER_TIMEOUT", 1000 * SILENT_S),
    ):
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _receive(peer: socket.socket) -> tuple[str, bool]:
    """What the other end says first, nothing where it is gone; and whether its machine fell silent."""
    try:
        return peer.recv(4096).decode(errors="replace").partition("\n")[0], False
    except ConnectionError:
        return "", False
    except OSError:  # timed out, or no way there any more
        return "", True


def _send(peer: socket.socket, words: str) -> None:
    with contextlib.suppress(OSError):
        peer.sendall(f"{words}\n".encode())


def _own_address(towards: str) -> list[str]:
    """The address that a process at `towards` sees of this machine, where that is not a loopback's."""
    with contextlib.suppress(OSError):
        kind, _, _, _, address = socket.getaddrinfo(towards, 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            probe.connect(address)
            found = str(probe.getsockname()[0])
        if not found.startswith("127.") and found != "::1":
            return [found]
    return []


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _listed(ranks: Sequence[int]) -> str:
    *others, last = map(str, ranks)
    return f"{', '.join(others)} and {last}" if others else last
