"""What a launcher told this process: its number among the processes of one run, and where they meet.

Read from the environment alone, without torch: `RANK`, `WORLD_SIZE` and their relatives, which torchrun, `accelerate launch` and
`luspo train --processes` set, or the variables of a SLURM job step. A step is one that `srun` started: the batch script itself
has `SLURM_PROCID` and `SLURM_NTASKS` too and is one process, which must not wait for others.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from luspo_cli.errors import KnownError, PeerFailed, PeerLost, UsageError

BY_LUSPO = "LUSPO_LAUNCHED"
"""Set for the processes that `luspo train --processes` starts: their launcher speaks for those that were lost."""
LOST_STATUS = 75
"""How such a process ends where another one of the run was lost: the launcher knows which and says it."""
SLURM_PORTS = 15000, 17000
"""First port and number of ports that job steps are spread over; below those that systems hand out themselves."""


@dataclass(frozen=True, slots=True)
class Place:
    """One process among those of a run."""

    rank: int
    size: int
    local_rank: int
    """Number among the processes of this machine."""
    address: str
    port: int

    def variables(self) -> dict[str, str]:
        """The environment variables by which torch and accelerate know this place."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


def read_place(environment: Mapping[str, str] | None = None) -> Place | None:
    """The place that a launcher gave this process, or None where it was started alone. UsageError for half a place."""
    env = os.environ if environment is None else environment
    if "RANK" in env and "WORLD_SIZE" in env:
        return Place(
            rank=_number(env, "RANK"),
            size=_number(env, "WORLD_SIZE"),
            local_rank=_number(env, "LOCAL_RANK", default=_number(env, "RANK")),
            address=env.get("MASTER_ADDR", "127.0.0.1"),
            port=_number(env, "MASTER_PORT", default=29500),
        )
    size = _number(env, "SLURM_STEP_NUM_TASKS", default=_number(env, "SLURM_NTASKS", default=1))
    in_step = "SLURM_STEP_ID" in env or "SLURM_STEP_NUM_TASKS" in env
    if not in_step or size < 2:
        return None
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "")
    first, number = SLURM_PORTS
    job, step = _number(env, "SLURM_JOB_ID", default=0), _number(env, "SLURM_STEP_ID", default=0)
    return Place(
        rank=_number(env, "SLURM_PROCID"),
        size=size,
        local_rank=_number(env, "SLURM_LOCALID"),
        address=env.get("MASTER_ADDR") or first_host(nodes) or "127.0.0.1",
        port=_number(env, "MASTER_PORT", default=first + (job + 1009 * step) % number),
    )


def is_first_process(environment: Mapping[str, str] | None = None) -> bool:
    """Whether this process speaks for its run: it was started alone, or as number 0."""
    place = read_place(environment)
    return place is None or place.rank == 0


def says(error: BaseException) -> bool:
    """Whether this process says the failure that ends it; if not, another process of the run or their launcher does."""
    if isinstance(error, PeerLost):
        return not os.environ.get(BY_LUSPO)  # that launcher knows which process ended first
    return is_first_process() if isinstance(error, KeyboardInterrupt) else not isinstance(error, PeerFailed)


@contextmanager
def one_of_a_machine_speaks() -> Iterator[None]:
    """Within this block, before the processes of a run have met, a failure is printed by the first process of each machine only.

    What is wrong then, a key of the configuration or the address to meet at, is wrong for each of them.
    """
    try:
        yield
    except KnownError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            raise
        raise PeerFailed(str(error), error.exit_code) from error


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list: `a[003-006,9]b,c` is a003b; empty for an empty list."""
    outside = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes.strip())
    name = outside.group(0) if outside else ""
    return re.sub(r"\[([^\]]*)\]", lambda found: re.split("[,-]", found.group(1))[0], name)


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = env.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.strip().isdecimal():
        said = "is not set" if text is None else f"is '{text}', which is no number"
        raise UsageError(f"the launcher's variable {name} {said}: start all processes of a run with one launcher")
    return int(text)
