"""Two hosts on this machine: network namespaces with host names of their own, joined by a pair of virtual network cards."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

CARD = "veth0"
"""Each host's card, for GLOO_SOCKET_IFNAME: a host's name leads nowhere here."""
PORT = 29500


@dataclass
class Host:
    """One of two; commands run on it see its network and its name alone, and this machine's files."""

    name: str
    space: str
    address: str
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(
        self, command: Sequence[str], output: Path, variables: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command here; what it says goes to `output`."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        with output.open("wb") as said:
            child = subprocess.Popen(
                ["ip", "netns", "exec", self.space, *named, *command],
                env={**os.environ, "GLOO_SOCKET_IFNAME": CARD, **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(child)
        return child

    def pids(self) -> list[int]:
        """The processes that run here."""
        found = subprocess.run(["ip", "netns", "pids", self.space], capture_output=True, text=True, check=True)
        return [int(pid) for pid in found.stdout.split() if _runs(int(pid))]

    def rank(self, number: int) -> int:
        """The process that its launcher told to be rank `number`; its launcher's own workers are not it."""
        for pid in self.pids():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if b"luspo_cli" in words and b"train" in words and f"RANK={number}".encode() in variables:
                    return pid
        raise AssertionError(f"no process of {self.name} is rank {number}")

    def kill(self) -> None:
        """End everything here at once, as a host that crashes."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def unplug(self) -> None:
        """Take this host's network away; nobody is told."""
        _ip("-n", self.space, "link", "set", CARD, "down")


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach one another and nothing else; at the end they are gone with all that runs on them."""
    hosts = tuple(Host(f"host{n}", f"luspo-{os.getpid()}-{n}", f"10.77.0.{n}") for n in (1, 2))
    try:
        for host in hosts:
            _ip("netns", "add", host.space)
            _ip("-n", host.space, "link", "set", "lo", "up")
        first, second = hosts
        _ip("-n", first.space, "link", "add", CARD, "type", "veth", "peer", "name", CARD, "netns", second.space)
        for host in hosts:
            _ip("-n", host.space, "address", "add", f"{host.address}/24", "dev", CARD)
            _ip("-n", host.space, "link", "set", CARD, "up")
        yield first, second
    finally:
        for host in hosts:
            with contextlib.suppress(subprocess.CalledProcessError):
                host.kill()
            for child in host.started:
                child.wait()
            subprocess.run(["ip", "netns", "del", host.space], capture_output=True, check=False)


@cache
def no_hosts() -> str:
    """Why there can be no two hosts here, or nothing."""
    if missing := [tool for tool in ("ip", "unshare", "hostname") if shutil.which(tool) is None]:
        return f"{missing[0]} is not installed"
    try:
        with two_hosts() as (first, second):
            probe = ["ip", "netns", "exec", first.space, "unshare", "--uts", "hostname", first.name]
            subprocess.run(probe, capture_output=True, text=True, check=True)
            assert second.pids() == []
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.strip()}"
    return ""


def torchrun(host: int, first: Host, each: int) -> list[str]:
    """The command before `luspo_cli ...` on host number `host` of two, with so many processes on each."""
    return [
        "torch.distributed.run", "--nnodes", "2", "--node-rank", str(host), "--nproc-per-node", str(each),
        "--rdzv-endpoint", f"{first.address}:{PORT}", "-m", "--",
    ]  # fmt: skip


def accelerate(host: int, first: Host, each: int) -> list[str]:
    """The same with `accelerate launch`."""
    return [
        "accelerate.commands.launch", "--multi_gpu", "--num_machines", "2", "--num_processes", str(2 * each),
        "--machine_rank", str(host), "--main_process_ip", first.address, "--main_process_port", str(PORT),
        "--mixed_precision", "no", "--dynamo_backend", "no", "-m",
    ]  # fmt: skip


def ended(children: Sequence[subprocess.Popen[bytes]], within_s: float) -> float:
    """Wait until all have ended; the seconds that took, or AssertionError."""
    begun = time.monotonic()
    while any(child.poll() is None for child in children):
        assert time.monotonic() < begun + within_s, f"still runs after {within_s:g} s"
        time.sleep(0.05)
    return time.monotonic() - begun


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], capture_output=True, text=True, check=True)


def _runs(pid: int) -> bool:
    """Whether it is there and no zombie that its parent has not asked about yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False
