"""The tasks of one call of a pool and what came of them; they may come while the pool already works.

Decided here: a batch is *open* while further tasks may come and something else (the decoding of responses) wants the
processor cores. What ends badly then, ends so without proof: the cores, not the task, may have been slow, and the memory
may have been another's. Such a task is put off and done once more when the batch is sealed, so that only what a quiet
machine says of it counts.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one task ended: with a value, killed at its time limit, or crashed (it raised, or its worker died)."""

    value: Any = None
    timed_out: bool = False
    crashed: bool = False
    error: str = ""
    """What was raised, or how the worker ended; empty for a value."""

    @property
    def ok(self) -> bool:
        return not (self.timed_out or self.crashed)


class TaskBatch:
    """Tasks in the order in which they came; `add`, `seal` and `cancel` may be called by any thread, the rest by the pool's."""

    def __init__(
        self,
        tasks: Sequence[tuple[Any, ...]] = (),
        *,
        is_open: bool = False,
        sound: Callable[[Outcome], bool] = lambda outcome: outcome.ok,
        on_done: Callable[[int], None] | None = None,
    ) -> None:
        """`sound`: whether an outcome of an open batch counts; `on_done` gets the number of finished tasks as it grows."""
        self.tasks = list(tasks)
        self.queue = deque(range(len(tasks)))
        """Numbers of the tasks that wait for a worker."""
        self.is_open = is_open
        self.cancelled = False
        self.early: set[int] = set()
        """Tasks that ran, or were about to, while the batch was open, and are not finished."""
        self.tried: set[int] = set()
        """Tasks that a worker has ended with."""
        self.busy_s = 0.0
        """Seconds in which a worker had a task while the batch was open."""
        self._busy_since: float | None = None
        self._sound, self._on_done = sound, on_done
        self._outcomes: dict[int, Outcome] = {}
        self._reported = 0
        self._put_off: list[int] = []
        self._lock = threading.Lock()
        self._incoming: list[tuple[Any, ...]] = []
        self._sealed = not is_open
        self._rung = False
        self.bells: list[Connection] = []
        """What a pool that waits for its workers listens to besides."""
        self._bell: Connection | None = None
        if is_open:
            heard, self._bell = Pipe(duplex=False)
            self.bells.append(heard)

    def add(self, tasks: Sequence[tuple[Any, ...]]) -> None:
        """Put tasks behind the others."""
        with self._lock:
            self._incoming += tasks
            self._ring()

    def seal(self) -> None:
        """No further task comes, and the cores are free."""
        with self._lock:
            self._sealed = True
            self._ring()

    def cancel(self) -> None:
        """Nobody waits for the outcomes any more."""
        with self._lock:
            self.cancelled = True
            self._ring()

    def take_in(self) -> bool:
        """Queue what was added; whether the batch was sealed just now."""
        if not self.is_open:
            return False
        with self._lock:
            if self._rung:
                self.bells[0].recv_bytes()
                self._rung = False
            first = len(self.tasks)
            self.tasks += self._incoming
            self.queue.extend(range(first, len(self.tasks)))
            self._incoming = []
            if not self._sealed:
                return False
            self.is_open = False
        self.queue.extend(self._put_off)
        self._put_off = []
        return True

    @property
    def is_done(self) -> bool:
        return not self.is_open and len(self._outcomes) == len(self.tasks)

    def end(self, number: int, outcome: Outcome) -> None:
        """Take the outcome of a task, or do the task again where it does not count."""
        if number in self.early and not self._sound(outcome):
            self.again(number)
            return
        self.early.discard(number)
        self._outcomes[number] = outcome

    def again(self, number: int) -> None:
        """Do a task once more, when the cores are free."""
        self.early.discard(number)
        (self._put_off if self.is_open else self.queue).append(number)

    def report(self) -> None:
        """Tell `on_done` how many are finished, where that has grown."""
        if self._on_done and len(self._outcomes) > self._reported:
            self._reported = len(self._outcomes)
            self._on_done(self._reported)

    def note_busy(self, busy: bool) -> None:
        """Take the time: whether a worker has a task now."""
        now = time.monotonic()
        if self._busy_since is not None:
            self.busy_s += now - self._busy_since
        self._busy_since = now if busy and self.is_open else None

    def outcomes(self) -> list[Outcome]:
        """One a task, in order, of a batch that is done."""
        return [self._outcomes[number] for number in range(len(self.tasks))]

    def close(self) -> None:
        """Let the bell go; nothing is added any more."""
        with self._lock:
            for connection in (*self.bells, self._bell):
                if connection is not None:
                    connection.close()
            self._bell = None

    def _ring(self) -> None:
        if self._bell is not None and not self._rung:
            self._bell.send_bytes(b"!")
            self._rung = True


class TasksUnderWay:
    """Tasks that a pool works on in a thread of its own while its owner does something else; `collect` or `cancel` them."""

    def __init__(self, work: Callable[[TaskBatch], None], batch: TaskBatch) -> None:
        """`work` does an open batch until it is done."""
        self._work, self._batch = work, batch
        self._thread: threading.Thread | None = None
        # Not `Thread.join`: in Python 3.11 one that Ctrl-C interrupts takes the thread for ended.
        self._ended = threading.Event()
        self._error: BaseException | None = None

    def add(self, tasks: Sequence[tuple[Any, ...]]) -> None:
        """Begin further tasks."""
        self._batch.add(tasks)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="luspo-pool", daemon=True)
            self._thread.start()

    def collect(self) -> list[Outcome]:
        """Wait for what is not finished, and return one outcome a task, in the order in which they were added.

        Raises:
            RunError: the workers cannot be started at all. A task never raises here.
        """
        if self._thread is None:
            return []
        try:
            self._batch.seal()
            self._ended.wait()
        except BaseException:  # Ctrl-C
            self.cancel()
            raise
        if self._error is not None:
            raise self._error
        return self._batch.outcomes()

    def cancel(self) -> None:
        """End the workers at once; nothing where all was collected."""
        self._batch.cancel()
        if self._thread is not None:
            self._ended.wait()

    @property
    def busy_s(self) -> float:
        """Seconds in which a worker had a task before `collect`."""
        return self._batch.busy_s

    def _run(self) -> None:
        try:
            self._work(self._batch)
        except BaseException as error:
            self._error = error
        finally:
            self._batch.close()
            self._ended.set()
