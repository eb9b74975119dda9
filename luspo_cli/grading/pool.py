"""A pool of worker processes that can be killed in the middle of a task.

Decided here: symbolic comparison can hang inside C code, where neither a signal handler nor a thread gets a turn, so
the limit is wall-clock time kept by the parent, and its means is SIGKILL. Workers are started as fresh interpreters
(not forked: the parent has torch's threads; not multiprocessing's spawn: that would import the parent's main module,
and torch with it). Tasks travel in chunks, answers come back one by one, so a kill costs the task that hung and
nothing else: its chunk's remainder goes back to the front of the queue. A task whose worker ended is tried once more:
a kill from outside (the kernel's, out of memory) says nothing about the response, ending two workers does. Processes that
tasks started end with their worker.

Tasks may also come one by one while the caller does something else that takes the cores (`begin`). A time limit then proves
nothing: what ran out of it is done again when the caller waits (tasks.py), a task that still runs at that moment gets its
whole limit from there on, and workers are not hurried to start.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Self

from luspo_cli.errors import RunError
from luspo_cli.grading.tasks import Outcome, TaskBatch, TasksUnderWay

START_LIMIT_S = 120.0
"""How long a worker may take to import its function; a loaded machine takes seconds."""
_START_ATTEMPTS = 3
_LONGEST_CHUNK = 32


@dataclass(eq=False, slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    requests: Connection
    replies: Connection
    ready: bool = False
    pending: deque[int] = field(default_factory=deque)  # task numbers of the chunk it works on, the running one first
    since: float = field(default_factory=time.monotonic)  # start of the running task, or of the process
    before: float = 0.0  # seconds that the running task had already had when its batch was sealed
    completed: int = 0


class KillablePool:
    """Runs one importable function on many argument tuples in worker processes; start is lazy, workers are reused.

    `function` is a module-level callable or "package.module:name". `timeout_s` bounds the wall-clock time of one task,
    `memory_bytes` the address space of one worker (0: unlimited). One batch of tasks runs at a time; others wait.

    Example:
        with KillablePool("math:factorial", workers=2, timeout_s=1.0) as pool:
            [outcome.value for outcome in pool.map([(3,), (4,)])]  # [6, 24]
    """

    def __init__(
        self,
        function: str | Callable[..., Any],
        *,
        workers: int,
        timeout_s: float,
        memory_bytes: int = 2 << 30,
        recycle_after: int = 20_000,
        setup: tuple[str, Sequence[Any]] | None = None,
    ) -> None:
        """`setup`: a function by its import path and arguments that JSON holds, called in each worker before its first task."""
        if workers < 1:
            raise ValueError(f"a pool needs at least one worker, got {workers}")
        if not timeout_s > 0:
            raise ValueError(f"the time limit must be positive, got {timeout_s}")
        self._function = function if isinstance(function, str) else _import_path(function)
        self._limit = workers
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._recycle_after = recycle_after
        self._setup = setup
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._failed_starts = 0
        self._under_way: TasksUnderWay | None = None
        self._closed = False
        # On Linux a worker dies with the *thread* that started it: let that be one that lives as long as the pool.
        self._starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="luspo-worker-starter")
        self._finalizer = weakref.finalize(self, _end, self._workers, self._starter)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill every worker and wait for its end; the pool cannot be used again."""
        self._closed = True
        if self._under_way is not None:
            self._under_way.cancel()
        self._finalizer()

    def map(self, tasks: Sequence[tuple[Any, ...]], *, on_done: Callable[[int], None] | None = None) -> list[Outcome]:
        """Return one outcome a task, in order; `on_done` gets the number of finished tasks as it grows.

        Raises:
            RunError: the workers cannot be started at all. A task never raises here.
        """
        batch = TaskBatch(tasks, on_done=on_done)
        if tasks or self._closed:
            self._work(batch)
        return batch.outcomes()

    def begin(self, sound: Callable[[Outcome], bool] = lambda outcome: outcome.ok) -> TasksUnderWay:
        """Tasks that come one by one and are worked on meanwhile; to be collected before the next call of the pool.

        `sound`: whether an outcome from before that counts; any other task is done again then. So the outcomes are those that
        `map` would have returned.
        """
        self._under_way = TasksUnderWay(self._work, TaskBatch(is_open=True, sound=sound))
        return self._under_way

    def _work(self, batch: TaskBatch) -> None:
        with self._lock:
            try:
                self._work_through(batch)
            except BaseException:
                # Ctrl-C or a failed start: what runs belongs to a call that nobody waits for any more.
                _kill_all(self._workers)
                raise

    def _work_through(self, batch: TaskBatch) -> None:
        self._failed_starts = 0
        for worker in list(self._workers):  # one may have died or grown old since the last call
            if worker.process.poll() is not None or worker.completed >= self._recycle_after:
                self._discard(worker)
        while True:
            if batch.cancelled or self._closed:
                raise RuntimeError("the pool is closed")
            if batch.take_in():
                self._failed_starts = 0
                self._give_time_anew(batch)
            if batch.is_done:
                return
            self._start_missing(batch)
            for worker in self._workers:
                if worker.ready and not worker.pending and batch.queue:
                    self._send_chunk(worker, batch)
            batch.note_busy(any(worker.pending for worker in self._workers))
            spoke = wait([*batch.bells, *(worker.replies for worker in self._workers)], self._seconds_left(batch))
            for worker in [worker for worker in self._workers if worker.replies in spoke]:
                if not self._receive(worker, batch):
                    self._lose(worker, batch)
            self._kill_overdue(batch)
            batch.report()

    def _give_time_anew(self, batch: TaskBatch) -> None:
        """The cores are free from now on: what runs or starts has its whole limit before it."""
        now = time.monotonic()
        batch.note_busy(False)
        batch.early &= {worker.pending[0] for worker in self._workers if worker.pending}
        for worker in self._workers:
            worker.before, worker.since = now - worker.since, now

    def _start_missing(self, batch: TaskBatch) -> None:
        if batch.is_open and self._failed_starts >= _START_ATTEMPTS:
            return  # memory may be short for what goes on beside
        idle = sum(not worker.pending for worker in self._workers)
        for _ in range(min(self._limit - len(self._workers), len(batch.queue) - idle)):
            self._workers.append(self._starter.submit(self._start).result())

    def _start(self) -> _Worker:
        settings = {
            "function": self._function,
            "parent": os.getpid(),
            "memory_bytes": self._memory_bytes,
            "timeout_s": self._timeout_s,
            "setup": self._setup,
        }
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from luspo_cli.grading.pool_worker import main; main({json.dumps(settings)!r})"
        )
        its_requests, requests = Pipe(duplex=False)
        replies, its_replies = Pipe(duplex=False)
        try:
            with its_requests, its_replies:
                process = subprocess.Popen(
                    [sys.executable, "-c", code],
                    stdin=its_requests.fileno(),
                    stdout=its_replies.fileno(),
                    stderr=subprocess.DEVNULL,
                    env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                    # Ctrl-C on the terminal is for the parent alone, and what tasks start is in the worker's own group.
                    start_new_session=True,
                )
        except OSError as error:
            raise RunError(f"A verification worker could not be started: {error.strerror or error}.") from error
        return _Worker(process, requests, replies)

    def _send_chunk(self, worker: _Worker, batch: TaskBatch) -> None:
        # Small enough that every worker gets several chunks, so that none waits long behind another's slow task.
        size = max(1, min(_LONGEST_CHUNK, len(batch.queue) // (4 * self._limit)))
        worker.pending.extend(batch.queue.popleft() for _ in range(min(size, len(batch.queue))))
        worker.since, worker.before = time.monotonic(), 0.0
        if batch.is_open:
            batch.early.update(worker.pending)
        # An idle worker reads a whole chunk before it answers, so this cannot block for good; where it has died, the
        # end of its replies says so.
        with contextlib.suppress(BrokenPipeError):
            worker.requests.send([tuple(batch.tasks[number]) for number in worker.pending])

    def _receive(self, worker: _Worker, batch: TaskBatch) -> bool:
        """Take in every reply that is there; return False where the worker has ended."""
        try:
            while worker.replies.poll():
                kind, content = worker.replies.recv()
                now = time.monotonic()
                took, before = now - worker.since + worker.before, worker.before
                worker.since, worker.before = now, 0.0
                if kind == "ready":
                    worker.ready = True
                elif kind == "failed":
                    raise RunError(f"A verification worker could not load {self._function}: {content}.")
                else:
                    number = worker.pending.popleft()
                    worker.completed += 1
                    # With the cores to itself from the beginning, it might have been in time or not.
                    if before and took > self._timeout_s:
                        batch.again(number)
                    else:
                        batch.end(number, Outcome(content) if kind == "value" else Outcome(crashed=True, error=content))
        except (EOFError, OSError):
            return False
        return True

    def _lose(self, worker: _Worker, batch: TaskBatch) -> None:
        """Replace a worker that ended by itself; the task it ran is tried once more, then it has crashed."""
        status = self._discard(worker)
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= _START_ATTEMPTS and not batch.is_open:
                raise RunError(
                    f"Verification workers end before they are ready (exit status {status}); "
                    "run fewer of them with reward.workers, or free some memory."
                )
        if worker.pending:
            running = worker.pending[0]
            if running in batch.early or running in batch.tried:
                batch.end(worker.pending.popleft(), Outcome(crashed=True, error=f"worker ended with status {status}"))
            else:
                batch.tried.add(running)
            batch.queue.extendleft(reversed(worker.pending))

    def _kill_overdue(self, batch: TaskBatch) -> None:
        now = time.monotonic()
        for worker in list(self._workers):
            limit = self._limit_of(worker, batch)
            if limit is None or now - worker.since < limit:
                continue
            if not worker.ready:
                raise RunError(
                    f"A verification worker was not ready after {START_LIMIT_S:.0f} s; the machine is overloaded."
                )
            _kill(worker)
            running = worker.pending[0]
            self._receive(worker, batch)  # it may have answered in the very last moment
            self._discard(worker)
            if worker.pending and worker.pending[0] == running:
                if not batch.is_open:
                    batch.early.discard(running)  # it had its whole limit since
                overdue = Outcome(timed_out=True, error=f"over {self._timeout_s:g} s")
                batch.end(worker.pending.popleft(), overdue)
            batch.queue.extendleft(reversed(worker.pending))

    def _limit_of(self, worker: _Worker, batch: TaskBatch) -> float | None:
        if not worker.ready:
            return None if batch.is_open else START_LIMIT_S
        return self._timeout_s if worker.pending else None

    def _seconds_left(self, batch: TaskBatch) -> float | None:
        """Until the next deadline; None where nothing has one."""
        limits = ((worker.since, self._limit_of(worker, batch)) for worker in self._workers)
        deadlines = [since + limit for since, limit in limits if limit is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _discard(self, worker: _Worker) -> int:
        self._workers.remove(worker)
        return _end_worker(worker)


def _import_path(function: Callable[..., Any]) -> str:
    module, name = function.__module__, function.__qualname__
    if module == "__main__" or "<" in name:
        raise ValueError(
            f"a worker cannot import {name} of {module}: give a module-level function of an importable module"
        )
    return f"{module}:{name}"


def _kill(worker: _Worker) -> None:
    """Kill a worker and every process of its group, also one that has ended by itself."""
    # The group is the worker's own, for the worker began it (start_new_session), and no new process gets a number that still
    # names a process or a group: this comes before the worker's number is given back (`wait`), or in the same breath (`poll`).
    # macOS answers EPERM for a group whose leader has ended.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.kill()


def _end_worker(worker: _Worker) -> int:
    _kill(worker)
    status = worker.process.wait()
    worker.requests.close()
    worker.replies.close()
    return status


def _kill_all(workers: list[_Worker]) -> None:
    for worker in workers:
        _kill(worker)
    while workers:
        _end_worker(workers.pop())


def _end(workers: list[_Worker], starter: ThreadPoolExecutor) -> None:
    _kill_all(workers)
    starter.shutdown(wait=False)
