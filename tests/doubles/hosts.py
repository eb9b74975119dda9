"""Two hosts on this machine: network namespaces with host names of their own, joined by a pair of virtual network cards."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

CARD = "veth0"
"""Each host's card."""
PORT = 29500


@dataclass
class Host:
    """One of two; commands run on it see its network and its name alone, and this machine's files."""

    name: str
    space: str
    address: str
    names: Path
    """Both hosts' names and addresses, in the place of /etc/hosts."""
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def inside(self) -> list[str]:
        """What goes before a command that is to run here. `ip netns exec` would hide /sys/fs/cgroup, which SLURM asks for."""
        own = f'hostname {self.name} && mount --bind {self.names} /etc/hosts && exec "$@"'
        return ["nsenter", f"--net=/run/netns/{self.space}", "unshare", "--uts", "--mount", "sh", "-c", own, "sh"]

    def start(
        self, command: Sequence[str], output: Path, variables: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command here; what it says goes to `output`."""
        with output.open("wb") as said:
            child = subprocess.Popen(
                [*self.inside(), *command],
                env={**os.environ, **(variables or {})},
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

    def tasks(self) -> dict[int, int]:
        """Rank → process of the run on this host, whichever launcher said the rank; the run's own workers are none."""
        found = {}
        for pid in self.pids():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if b"luspo_cli" in words and b"train" in words and b"torch.distributed.run" not in words:
                    named = [v.partition(b"=")[2] for v in variables if v.startswith((b"RANK=", b"SLURM_PROCID="))]
                    found |= {int(rank): pid for rank in named[:1]}
        return found

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
    names = Path(tempfile.mkdtemp()) / "hosts"
    hosts = tuple(Host(f"host{n}", f"luspo-{os.getpid()}-{n}", f"10.77.0.{n}", names) for n in (1, 2))
    names.write_text("127.0.0.1 localhost\n" + "".join(f"{host.address} {host.name}\n" for host in hosts))
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
        shutil.rmtree(names.parent)


@cache
def no_hosts() -> str:
    """Why there can be no two hosts here, or nothing."""
    if missing := [tool for tool in ("ip", "nsenter", "unshare", "mount", "hostname") if shutil.which(tool) is None]:
        return f"{missing[0]} is not installed"
    try:
        with two_hosts() as (first, second):
            subprocess.run([*first.inside(), "true"], capture_output=True, text=True, check=True)
            assert second.pids() == []
    except (OSError, subprocess.CalledProcessError) as error:
        said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        return f"no network namespaces here: {said}"
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
