"""The pool: order, time limits that C code cannot evade, crashes, and no process left behind by any kind of end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import worker_tasks

from doubles.processes import is_running, wait_until
from luspo_cli.errors import RunError
from luspo_cli.grading.pool import KillablePool

REPO = Path(__file__).resolve().parents[2]


def test_values_come_back_in_order() -> None:
    with KillablePool(worker_tasks.double, workers=2, timeout_s=5) as pool:
        outcomes = pool.map([(number,) for number in range(1000)])
        assert [outcome.value for outcome in outcomes] == [2 * number for number in range(1000)]
        assert all(outcome.ok for outcome in outcomes)
        assert pool.map([]) == []


def test_workers_are_reused_and_started_lazily() -> None:
    with KillablePool(worker_tasks.process_id, workers=2, timeout_s=5) as pool:
        assert not pool._workers
        first = {outcome.value for outcome in pool.map([(1,)])}
        assert len(pool._workers) == 1
        second = {outcome.value for outcome in pool.map([(1,)])}
        assert first == second
        assert os.getpid() not in first


def test_old_workers_are_replaced() -> None:
    with KillablePool(worker_tasks.process_id, workers=1, timeout_s=5, recycle_after=10) as pool:
        first = {outcome.value for outcome in pool.map([(n,) for n in range(10)])}
        second = {outcome.value for outcome in pool.map([(n,) for n in range(10)])}
    assert len(first) == len(second) == 1
    assert first != second


def test_a_hang_that_holds_the_interpreter_lock_costs_its_own_task_only() -> None:
    bombs = {0, 20, 40, 60}
    tasks = [(-1.0 if number in bombs else 0.0,) for number in range(64)]
    with KillablePool(worker_tasks.hold_the_lock, workers=2, timeout_s=0.5) as pool:
        pool.map([(0.0,), (0.0,)])
        started = time.monotonic()
        outcomes = pool.map(tasks)
        took = time.monotonic() - started
    assert {number for number, outcome in enumerate(outcomes) if outcome.timed_out} == bombs
    assert all(outcome.ok for number, outcome in enumerate(outcomes) if number not in bombs)
    assert took < 4 * 0.5 + 5


def test_a_slow_task_does_not_hold_up_others() -> None:
    with KillablePool(worker_tasks.sleep_for, workers=2, timeout_s=3) as pool:
        pool.map([(0.0,), (0.0,)])
        finished_at: list[float] = []
        started = time.monotonic()
        counts: list[int] = []

        def note(done: int) -> None:
            counts.append(done)
            finished_at.append(time.monotonic() - started)

        outcomes = pool.map([(2.0,)] + [(0.001,)] * 50, on_done=note)
    assert all(outcome.ok for outcome in outcomes)
    others = next(at for at, done in zip(finished_at, counts, strict=True) if done >= 40)
    assert others < 1.5
    assert counts == sorted(counts)
    assert counts[-1] == 51


@pytest.mark.parametrize("kind", ["kill", "exit", "raise", "base", "memory", "unpicklable"])
def test_a_crash_costs_its_own_task_only(kind: str) -> None:
    tasks = [("fine",)] * 10 + [(kind,)] + [("fine",)] * 10
    with KillablePool(worker_tasks.misbehave, workers=1, timeout_s=20, memory_bytes=1 << 30) as pool:
        outcomes = pool.map(tasks)
    assert [outcome.crashed for outcome in outcomes] == [False] * 10 + [True] + [False] * 10
    assert outcomes[10].error
    assert not outcomes[10].ok


def test_printing_and_interrupts_do_no_harm(capfd: pytest.CaptureFixture[str]) -> None:
    with KillablePool(worker_tasks.misbehave, workers=1, timeout_s=20) as pool:
        outcomes = pool.map([("print",), ("interrupt",), ("fine",)])
    assert [outcome.value for outcome in outcomes] == ["print", "interrupt", "fine"]
    assert capfd.readouterr() == ("", "")


def test_a_worker_killed_from_outside_costs_no_verdict(tmp_path: Path) -> None:
    told = tmp_path / "pids"
    tasks = [(str(told), 0.2)] * 10

    def kill_first() -> None:
        assert wait_until(told.exists)
        os.kill(int(told.read_text().split()[0]), signal.SIGKILL)

    killer = threading.Thread(target=kill_first)
    with KillablePool(worker_tasks.sleep_and_tell, workers=2, timeout_s=10) as pool:
        killer.start()
        outcomes = pool.map(tasks)
        killer.join()
    assert all(outcome.ok for outcome in outcomes)
    assert len(told.read_text().split()) == 11  # the task that ran was begun once more


def test_an_idle_worker_killed_from_outside_costs_nothing() -> None:
    with KillablePool(worker_tasks.process_id, workers=1, timeout_s=10) as pool:
        (first,) = pool.map([(0,)])
        os.kill(first.value, signal.SIGKILL)
        assert wait_until(lambda: not is_running(first.value))
        (second,) = pool.map([(0,)])
    assert second.ok
    assert second.value != first.value


def test_large_arguments_and_results_pass() -> None:
    text = "x" * 3_000_000
    with KillablePool(worker_tasks.echo, workers=1, timeout_s=20) as pool:
        assert [outcome.value for outcome in pool.map([(text,)] * 3)] == [text] * 3


def test_workers_do_not_import_torch() -> None:
    with KillablePool(worker_tasks.loaded_modules, workers=1, timeout_s=20) as pool:
        (outcome,) = pool.map([(0,)])
    assert not {"torch", "pandas", "transformers", "typer"} & {name.partition(".")[0] for name in outcome.value}


def test_close_leaves_no_process_and_refuses_further_work() -> None:
    pool = KillablePool(worker_tasks.process_id, workers=2, timeout_s=10)
    pool.map([(n,) for n in range(100)])
    pids = [worker.process.pid for worker in pool._workers]
    pool.close()
    pool.close()
    assert pids
    assert not any(is_running(pid) for pid in pids)
    with pytest.raises(RuntimeError, match="closed"):
        pool.map([(1,)])


@pytest.mark.parametrize(("then", "started"), [("return", 1), ("hang", 1), ("exit", 2)])
def test_what_a_task_started_ends_with_its_worker(then: str, started: int, tmp_path: Path) -> None:
    """At once where the worker was killed or ended (and was then tried once more), else when the pool closes."""
    told = tmp_path / "pids"
    pool = KillablePool(worker_tasks.start_child, workers=1, timeout_s=2.0)
    try:
        (outcome,) = pool.map([(str(told), then)])
        children = [int(pid) for pid in told.read_text().split()]
        assert (len(children), outcome.ok) == (started, then == "return")
        if then == "return":
            assert is_running(children[0])
        else:
            assert wait_until(lambda: not any(is_running(pid) for pid in children), 5)
    finally:
        pool.close()
    assert wait_until(lambda: not any(is_running(pid) for pid in children), 5)


def test_what_old_workers_started_ends_when_they_are_replaced(tmp_path: Path) -> None:
    with KillablePool(worker_tasks.start_child, workers=1, timeout_s=5, recycle_after=1) as pool:
        for number in ("first", "second"):
            assert pool.map([(str(tmp_path / number), "return")])[0].ok
        first, second = (int((tmp_path / number).read_text()) for number in ("first", "second"))
        assert wait_until(lambda: not is_running(first), 5)
        assert is_running(second)


def test_many_threads_may_use_one_pool() -> None:
    results: dict[int, list[int]] = {}
    with KillablePool(worker_tasks.double, workers=2, timeout_s=10) as pool:

        def use(start: int) -> None:
            results[start] = [outcome.value for outcome in pool.map([(start + n,) for n in range(50)])]

        threads = [threading.Thread(target=use, args=(start,)) for start in (0, 100, 200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {start: [2 * (start + n) for n in range(50)] for start in (0, 100, 200)}


def test_workers_outlive_the_thread_that_first_used_them() -> None:
    with KillablePool(worker_tasks.process_id, workers=1, timeout_s=10) as pool:
        first: list[int] = []
        thread = threading.Thread(target=lambda: first.append(pool.map([(0,)])[0].value))
        thread.start()
        thread.join()
        time.sleep(0.2)
        assert is_running(first[0])
        assert pool.map([(0,)])[0].value == first[0]


def test_a_function_that_cannot_be_imported_is_one_sentence() -> None:
    with (
        KillablePool("no_such_module:f", workers=2, timeout_s=1) as pool,
        pytest.raises(RunError, match="no_such_module"),
    ):
        pool.map([(1,)])
    with pytest.raises(ValueError, match="module-level"):
        KillablePool(lambda: None, workers=1, timeout_s=1)
    with pytest.raises(ValueError, match="at least one"):
        KillablePool(worker_tasks.double, workers=0, timeout_s=1)


PARENT = """
import sys, threading, time
sys.path[:0] = {paths!r}
import worker_tasks
from luspo_cli.grading.pool import KillablePool
pool = KillablePool(worker_tasks.{function}, workers=2, timeout_s=60)
print(*[outcome.value for outcome in KillablePool.map(pool, [(0.0,)] * 2)][:0], flush=True)
print(*[worker.process.pid for worker in pool._workers], flush=True)
{then}
"""


def start_parent(function: str, then: str) -> tuple[subprocess.Popen[str], list[int]]:
    code = textwrap.dedent(PARENT).format(paths=[str(REPO), str(Path(__file__).parent)], function=function, then=then)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    parent.stdout.readline()
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert pids
    # A parent with nothing more to do may be gone by now, and its workers with it.
    assert not then or all(is_running(pid) for pid in pids)
    return parent, pids


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and needs the kernel to kill a child with its parent")
@pytest.mark.parametrize("function", ["sleep_for", "hold_the_lock"])
def test_no_worker_survives_a_killed_parent(function: str) -> None:
    argument = "30.0" if function == "sleep_for" else "-1.0"
    parent, pids = start_parent(function, f"pool.map([({argument},)] * 2)")
    time.sleep(0.5)
    parent.kill()
    parent.communicate()
    assert wait_until(lambda: not any(is_running(pid) for pid in pids), 5)


def test_ctrl_c_ends_the_call_without_worker_tracebacks_or_orphans() -> None:
    parent, pids = start_parent("sleep_for", "pool.map([(30.0,)] * 2)")
    time.sleep(0.5)
    parent.send_signal(signal.SIGINT)
    _, errors = parent.communicate(timeout=20)
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert wait_until(lambda: not any(is_running(pid) for pid in pids), 5)


def test_a_parent_that_forgets_to_close_leaves_nothing() -> None:
    parent, pids = start_parent("sleep_for", "")
    _, errors = parent.communicate(timeout=20)
    assert errors == ""
    assert parent.returncode == 0
    assert wait_until(lambda: not any(is_running(pid) for pid in pids), 5)


def test_interrupted_map_leaves_a_usable_pool() -> None:
    with KillablePool(worker_tasks.sleep_for, workers=2, timeout_s=30) as pool:
        pool.map([(0.0,)])
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            pool.map([(20.0,)] * 4)
        assert pool._workers == []
        assert pool.map([(0.0,)])[0].ok
