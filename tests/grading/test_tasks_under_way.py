"""Tasks that a pool works on while its owner does something else: the outcomes are those of doing them afterwards."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
import worker_tasks

from doubles.processes import is_running, wait_until
from luspo_cli.errors import RunError
from luspo_cli.grading.pool import KillablePool


def test_outcomes_come_in_the_order_in_which_tasks_were_added() -> None:
    with KillablePool(worker_tasks.double, workers=2, timeout_s=20) as pool:
        for _ in range(2):  # the pool can be used again, for either kind of call
            under_way = pool.begin()
            for first in range(0, 100, 10):
                under_way.add([(number,) for number in range(first, first + 10)])
            assert [outcome.value for outcome in under_way.collect()] == [2 * number for number in range(100)]
        assert pool.begin().collect() == []
        assert [outcome.value for outcome in pool.map([(3,)])] == [6]
        assert under_way.busy_s >= 0


def test_tasks_are_done_before_they_are_collected(tmp_path: Path) -> None:
    with KillablePool(worker_tasks.once_then, workers=1, timeout_s=20) as pool:
        under_way = pool.begin()
        for number in range(3):
            under_way.add([(str(tmp_path / str(number)), "nothing")])
            assert wait_until((tmp_path / str(number)).exists, 60)
        assert [outcome.value for outcome in under_way.collect()] == [1, 1, 1]
    assert under_way.busy_s > 0


@pytest.mark.parametrize("first", ["hang", "exit", "raise"])
def test_what_ends_badly_meanwhile_is_done_again_at_the_end(tmp_path: Path, first: str) -> None:
    """With the cores taken by others a time limit proves nothing, nor do a worker's end and an error."""
    file = tmp_path / "calls"
    with KillablePool(worker_tasks.once_then, workers=1, timeout_s=2) as pool:
        under_way = pool.begin()
        under_way.add([(str(file), first)])
        assert wait_until(file.exists, 60)
        other = tmp_path / "other"
        under_way.add([(str(other), "nothing")])
        assert wait_until(other.exists, 60)  # the one worker has left the first task, which is not tried again yet
        assert len(file.read_text()) == 1
        outcomes = under_way.collect()
    assert [outcome.value for outcome in outcomes] == [2, 1]
    assert file.read_text() == "xx"


def test_what_still_runs_at_the_end_has_its_whole_limit_from_there(tmp_path: Path) -> None:
    """One call of a task that hangs, and not two: it did not end in the time that a call afterwards would have had."""
    file = tmp_path / "calls"
    with KillablePool(worker_tasks.always_hang, workers=1, timeout_s=5) as pool:
        under_way = pool.begin()
        under_way.add([(str(file),)])
        assert wait_until(file.exists, 60)
        (outcome,) = under_way.collect()
    assert outcome.timed_out
    assert outcome.error == "over 5 s"
    assert file.read_text() == "x"


def test_an_answer_that_took_longer_than_the_limit_in_all_is_asked_for_again(tmp_path: Path) -> None:
    file = tmp_path / "calls"
    with KillablePool(worker_tasks.once_then, workers=1, timeout_s=3) as pool:
        under_way = pool.begin()
        under_way.add([(str(file), "3.5")])
        assert wait_until(file.exists, 60)
        threading.Event().wait(1.5)
        (outcome,) = under_way.collect()
    assert outcome.value == 2


def test_tasks_that_end_badly_every_time() -> None:
    kinds = ["fine", "exit", "fine", "raise", "memory"]
    with KillablePool(worker_tasks.misbehave, workers=2, timeout_s=20, memory_bytes=1 << 30) as pool:
        afterwards = pool.map([(kind,) for kind in kinds])
        under_way = pool.begin()
        for kind in kinds:
            under_way.add([(kind,)])
        assert under_way.collect() == afterwards
    assert [outcome.crashed for outcome in afterwards] == [False, True, False, True, True]


def test_cancelling_leaves_no_process_and_a_usable_pool(tmp_path: Path) -> None:
    file = tmp_path / "calls"
    with KillablePool(worker_tasks.once_then, workers=1, timeout_s=60) as pool:
        under_way = pool.begin()
        under_way.add([(str(file), "hang")] * 3)
        assert wait_until(file.exists, 60)
        (pid,) = [worker.process.pid for worker in pool._workers]
        under_way.cancel()
        assert not is_running(pid)
        assert pool._workers == []
        assert pool.map([(str(tmp_path / "new"), "nothing")])[0].value == 1


def test_closing_the_pool_ends_what_is_under_way(tmp_path: Path) -> None:
    file = tmp_path / "calls"
    pool = KillablePool(worker_tasks.once_then, workers=1, timeout_s=60)
    under_way = pool.begin()
    under_way.add([(str(file), "hang")])
    assert wait_until(file.exists, 60)
    (pid,) = [worker.process.pid for worker in pool._workers]
    pool.close()
    assert not is_running(pid)
    with pytest.raises(RuntimeError, match="closed"):
        under_way.collect()


def test_ctrl_c_while_collecting(tmp_path: Path) -> None:
    file = tmp_path / "calls"
    with KillablePool(worker_tasks.once_then, workers=1, timeout_s=60) as pool:
        under_way = pool.begin()
        under_way.add([(str(file), "hang")])
        assert wait_until(file.exists, 60)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            under_way.collect()
        assert pool._workers == []


def test_a_function_that_cannot_be_imported_is_said_when_collected() -> None:
    with KillablePool("no_such_module:f", workers=2, timeout_s=1) as pool:
        under_way = pool.begin()
        under_way.add([(1,)])
        with pytest.raises(RunError, match="no_such_module"):
            under_way.collect()
