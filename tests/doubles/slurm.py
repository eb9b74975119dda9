"""A SLURM cluster of two nodes on this machine: the hosts of `doubles.hosts`, each with a slurmd; slurmctld is on the first."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from doubles.hosts import Host, no_hosts

CONFIGURATION = """\
ClusterName=luspo
SlurmctldHost={first.name}({first.address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
MailProg=/bin/true
SwitchType=switch/none
MpiDefault=none
NodeName={first.name} NodeAddr={first.address} CPUs=2
NodeName={second.name} NodeAddr={second.address} CPUs=2
PartitionName=all Nodes={first.name},{second.name} Default=YES State=UP OverSubscribe=FORCE:4
"""
_DAEMONS = ("munged", "slurmctld", "slurmd")


@contextlib.contextmanager
def cluster(hosts: tuple[Host, Host], folder: Path) -> Iterator[dict[str, str]]:
    """The daemons, with their files in `folder`; yields the environment for `srun`. They end with the hosts."""
    keys = folder / "munge"
    for name in ("munge", "state", *(f"spool-{host.name}" for host in hosts)):
        (folder / name).mkdir(mode=0o700)
    (keys / "key").write_bytes(os.urandom(1024))
    (keys / "key").chmod(0o400)
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, first=hosts[0], second=hosts[1]))
    variables = {"SLURM_CONF": str(configuration), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    files = [
        f"--{name}={keys}/{file}" for name, file in (("socket", "socket"), ("key-file", "key"), ("pid-file", "pid"))
    ]
    logs = [f"--{name}={keys}/{file}" for name, file in (("log-file", "log"), ("seed-file", "seed"))]
    hosts[0].start(["munged", "--foreground", "--force", *files, *logs], folder / "munged.txt", variables)
    _wait_for(lambda: (keys / "socket").exists(), keys / "log")
    hosts[0].start(["slurmctld", "-D"], folder / "slurmctld.txt", variables)
    for host in hosts:
        host.start(["slurmd", "-D", "-N", host.name], folder / f"slurmd-{host.name}.txt", variables)

    def both_are_idle() -> bool:
        asked = [*hosts[0].inside(), "sinfo", "--noheader", "--format=%T %D"]
        said = subprocess.run(asked, capture_output=True, text=True, env={**os.environ, **variables}, check=False)
        return said.stdout.strip() == "idle 2"

    _wait_for(both_are_idle, folder / "slurmctld.log")
    yield variables


def no_slurm() -> str:
    """Why there can be no such cluster here, or nothing."""
    if missing := [daemon for daemon in _DAEMONS if not shutil.which(daemon, path=f"{os.environ['PATH']}:/usr/sbin")]:
        return f"{missing[0]} is not installed (Debian: apt-get install slurm-wlm munge)"
    return no_hosts()


def _wait_for(there: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline, log.read_text() if log.exists() else log
        time.sleep(0.2)
