"""The processes of one run: what each of them does alone, what they do together, and how the end of one reaches the others.

Decided here:
- Every process knows everything that decides the course of the run (problems, scored groups, diagnostics); only the work is
  split. So all of them take every branch alike, and none waits in a place that the others never reach.
- The first process alone owns the run folder. What it does there it does in a `phase`, and its failure becomes everybody's.
- Objects travel in a gloo group of their own, also beside NCCL: gloo notices a closed connection at once, so a process that died
  ends the others at the next exchange and not after a timeout.

A run of one process has a `Ranks` too; there each of these is a plain call.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from luspo_cli.errors import KnownError, PeerFailed, PeerLost, RunError, UsageError, first_line
from luspo_cli.machine import usable_cores
from luspo_cli.processes.lifeline import Lifeline
from luspo_cli.processes.place import BY_LUSPO, Place, one_of_a_machine_speaks, read_place

logger = logging.getLogger(__name__)

T = TypeVar("T")
_CLOSED = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo/transport", "Socket closed")
_VERDICT_S = 4.0
"""A broken exchange is noticed at once; who it was is known a moment later."""
_LATE = ("Timed out", "timed out", "Timeout", "timeout")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the processes of its run; by default it is the only one."""

    rank: int = 0
    size: int = 1
    on_machine: int = 1
    """Processes of the run on this machine."""
    machines: int = 1
    """Machines that the run is on."""
    machine: int = 0
    """Number of this one, in the order of their first processes."""
    place: int = 0
    """Number of this process among those of its machine."""
    wait_s: float = 0.0
    objects: Any = None
    """The group in which objects travel."""
    lifeline: Lifeline | None = None
    """What is known of the end of others."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, number: int) -> range:
        """Which of `number` things, in order, this process takes: a contiguous share, as large as any other's or one less."""
        return range(number * self.rank // self.size, number * (self.rank + 1) // self.size)

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank, on every process. PeerLost where one of them is gone."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        with self.guarded():
            dist.all_gather_object(values, value, group=self.objects)
        return values

    def exchange(self, parcels: Sequence[T]) -> list[T]:
        """Hand `parcels[rank]` to each process; what the others had for this one, by rank. PeerLost as in `gather`."""
        if self.size == 1:
            return list(parcels)
        import torch.distributed as dist

        received: list[T] = []
        with self.guarded():
            for sender in range(self.size):
                box: list[Any] = [None]
                dist.scatter_object_list(box, list(parcels) if sender == self.rank else None, sender, self.objects)
                received.append(box[0])
        return received

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        return any(self.gather(flag))

    def broadcast(self, value: T) -> T:
        """The first process's value, on every process; what the others pass is ignored."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box: list[Any] = [value]
        with self.guarded():
            dist.broadcast_object_list(box, src=0, group=self.objects)
        return box[0]

    @contextmanager
    def phase(self) -> Iterator[None]:
        """Work that may fail on one process: at the end of the block all processes go on, or none does.

        A `KnownError` within the block is raised on every process at its end: that of the lowest rank, as itself on the first
        process, which prints it, and as `PeerFailed` on the others. Every process enters the block, also where only
        `if ranks.is_first` does something in it.

        Within the block nothing may be exchanged between processes: the others would wait for one that failed before its turn.
        """
        if self.size == 1:
            yield
            return
        own: KnownError | None = None
        try:
            yield
        except PeerLost:
            raise
        except KnownError as error:
            own = error
        failures = self.gather(None if own is None else (type(own), str(own)))
        kind, sentence = next((failure for failure in failures if failure is not None), (None, ""))
        if kind is None:
            return
        if not self.is_first:
            raise PeerFailed(sentence, kind.exit_code) from own
        raise own if own is not None and str(own) == sentence else kind(sentence)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn a broken exchange within this block into PeerLost, the sentence that says how to go on."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not _is_broken_exchange(error):
                raise
            raise self._loss(str(error)) from error

    def cores(self) -> int:
        """Processor cores for this process: its share of the machine's."""
        return max(1, usable_cores() // self.on_machine)

    def fails_first(self, sentence: str) -> bool:
        """Whether this process is the first of the run to fail with this sentence, and so the one that prints it.

        True also where that cannot be asked any more, since the first process, which keeps the list, has ended: the sentence may
        then be printed twice, which is better than not at all.
        """
        if self.size == 1:
            return True
        from torch.distributed.distributed_c10d import _get_default_store

        try:
            return int(_get_default_store().add(f"failed: {sentence}", 1)) == 1
        except RuntimeError:
            return True

    def _loss(self, reason: str) -> KnownError:
        """The failure of this process when an exchange broke: of one process a machine, the sentence; of the others, silence."""
        late = any(word in reason for word in _LATE) and not any(word in reason for word in _CLOSED[:3])
        verdict = self.lifeline.wait(0.0 if late else _VERDICT_S) if self.lifeline else None
        if verdict and self.lifeline:
            sentence = self.lifeline.sentence(verdict)
            # Of those that `luspo train --processes` started the launcher speaks; it goes by how they end.
            silent = verdict.kind == "failed" or not (self.lifeline.speaks() or os.environ.get(BY_LUSPO))
            return PeerFailed(sentence, RunError.exit_code) if silent else PeerLost(sentence)
        what = (
            f"had no answer from the others for {self.wait_s:g} s (run.wait_for_processes_s)"
            if late
            else "lost the connection to another one, which ended or was killed"
        )
        return PeerLost(f"process {self.rank} of {self.size} {what}, and stops; go on with --resume")


ALONE = Ranks()


@contextmanager
def joined(wait_s: float) -> Iterator[Ranks]:
    """Join the processes that a launcher started with this one, for the length of the block; alone where there are none.

    `wait_s`: how long one process waits for the others, here and in each exchange. RunError where they do not meet.
    """
    place = read_place()
    if place is None:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    os.environ.update(place.variables())  # accelerate reads them as well
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    with one_of_a_machine_speaks():
        _check_devices(place, gpus)
    if gpus:
        torch.cuda.set_device(place.local_rank % gpus)
    wait = timedelta(seconds=wait_s)
    machines: list[Any] = [None] * place.size
    own_machine = _machine()
    with one_of_a_machine_speaks():
        try:
            dist.init_process_group("nccl" if gpus else "gloo", "env://", timeout=wait)
            objects = dist.new_group(backend="gloo", timeout=wait)
            dist.all_gather_object(machines, own_machine, group=objects)
        except (RuntimeError, ValueError) as error:
            raise RunError(
                f"process {place.rank} of {place.size} did not meet the others at {place.address}:{place.port}"
                f" ({first_line(error)}); see that all {place.size} were started and reach that address"
            ) from error
    found = list(dict.fromkeys(machines))
    ranks = Ranks(
        place.rank,
        place.size,
        on_machine=machines.count(own_machine),
        machines=len(found),
        machine=found.index(own_machine),
        place=machines[: place.rank].count(own_machine),
        wait_s=wait_s,
        objects=objects,
    )
    lifeline = _tie(ranks, place, machines)
    ranks = replace(ranks, lifeline=lifeline)
    os.environ.setdefault("OMP_NUM_THREADS", str(ranks.cores()))  # accelerate sets and warns of a number of its own
    failed: bool | None = None
    try:
        with ranks.guarded():
            yield ranks
            ranks.any(False)  # the first process keeps the meeting point: it leaves when all have come to the end
        failed = False
    except (PeerFailed, PeerLost):
        failed = True
        raise
    except KnownError as error:
        failed = True
        # A failure outside a phase: of this process alone, or, as for a loss that is not finite, alike on all.
        if ranks.fails_first(str(error)):
            raise
        raise PeerFailed(str(error), error.exit_code) from error
    finally:
        dist.destroy_process_group()
        lifeline.drop() if failed is None else lifeline.close(failed)


def _machine() -> tuple[str, str]:
    """This machine's name, and what tells it from another of the same name: hosts made from one image may share theirs."""
    booted = Path("/proc/sys/kernel/random/boot_id")
    return socket.gethostname(), booted.read_text().strip() if booted.is_file() else ""


def _tie(ranks: Ranks, place: Place, machines: list[tuple[str, str]]) -> Lifeline:
    """Connect every process with the first one; a warning names those that could not."""
    lifeline = Lifeline(ranks.rank, machines)
    with ranks.guarded():
        where = ranks.broadcast(lifeline.listen(place.address) if ranks.is_first else None)
        assert where is not None
        reached = ranks.gather(ranks.is_first or lifeline.connect(*where))
    if cut_off := [str(rank) for rank, found in enumerate(reached) if not found]:
        logger.warning(
            f"processes {', '.join(cut_off)} cannot reach the first one at port {where[1]} of {' or '.join(where[0])}: the loss"
            " of a machine will be noticed after run.wait_for_processes_s only"
        )
    return lifeline


def _check_devices(place: Place, gpus: int) -> None:
    if gpus and os.environ.get(BY_LUSPO) and place.size > gpus:
        raise UsageError(
            f"--processes {place.size} needs as many GPUs and this machine has {gpus}: ask for {gpus}, or hide the GPUs"
            " with CUDA_VISIBLE_DEVICES= to train on the processor"
        )


def _is_broken_exchange(error: RuntimeError) -> bool:
    import torch.distributed as dist

    text = str(error)
    return isinstance(error, dist.DistError) or any(part in text for part in _CLOSED) or "Timed out waiting" in text
