"""What happens to a process from outside: signals, outputs that go away, a second process, a moved folder, the clock."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from small_training import LIMIT_S, SETTINGS, Attempt, Ended, Workshop, recorded, records, snapshot

STOPPING = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
STEP = 3
"""A step between two checkpoints: the stop must write one of its own."""


def stopping_signals(workshop: Workshop) -> Iterator[Attempt]:
    """Ctrl-C, a cluster's SIGTERM (once, and twice as launchers pass it on), a closed terminal's SIGHUP."""
    for number, twice in (
        (signal.SIGINT, False),
        (signal.SIGTERM, False),
        (signal.SIGTERM, True),
        (signal.SIGHUP, False),
    ):
        run = workshop.new_run("signalled")
        with workshop.watched("train", *SETTINGS, run=run, step=STEP) as training:
            ended = training.go_on(number, again=twice)
        problem = ended.unlike(STOPPING[number], "stopping after this step", f"--run {run} --resume")
        step = recorded(run)
        if not problem and not (run / "checkpoints" / f"step-{step:06d}").is_dir():
            problem = f"no checkpoint of step {step}"
        yield Attempt(number.name + (" twice" if twice else ""), problem or workshop.finished_alike(run))


def kill_after_stop_request(workshop: Workshop) -> Iterator[Attempt]:
    """A cluster whose patience ends before the step does: SIGTERM, then SIGKILL."""
    run = workshop.new_run("impatient")
    with workshop.watched("train", *SETTINGS, run=run, step=STEP) as training:
        training.process.send_signal(signal.SIGTERM)
        training.process.send_signal(signal.SIGCONT)
        training.process.kill()
    yield Attempt("SIGTERM, then SIGKILL at once", workshop.finished_alike(run))


def reader_gone(workshop: Workshop) -> Iterator[Attempt]:
    """`luspo train 2>&1 | head -n 1`."""
    run = workshop.new_run("unread")
    process = workshop.process("train", *SETTINGS, "--run", str(run))
    assert process.stderr is not None
    process.stderr.readline()
    process.stderr.close()
    status = process.wait(LIMIT_S)
    problem = f"exit status {status}" if status else workshop.differences(run)
    if not problem and "done" not in (run / "run.log").read_text():
        problem = "run.log does not have the end"
    yield Attempt("stderr is a pipe that nobody reads", problem)


def closed_streams(workshop: Workshop) -> Iterator[Attempt]:
    """Started with `>&- 2>&-`, as some daemons do."""
    run = workshop.new_run("closed")

    def close() -> None:
        os.close(1)
        os.close(2)

    process = workshop.process("train", *SETTINGS, "--run", str(run), preexec_fn=close)
    process.communicate(timeout=LIMIT_S)
    status = process.returncode
    yield Attempt("no stdout and no stderr", f"exit status {status}" if status else workshop.differences(run))


def terminal_gone(workshop: Workshop) -> Iterator[Attempt]:
    """The terminal is closed under a run with a live table: SIGHUP, and every write to it fails from then on."""
    import fcntl
    import termios

    for kept, name in ((False, "a plain start"), (True, "under nohup")):
        run = workshop.new_run("terminal")
        ours, theirs = pty.openpty()

        def take_terminal(kept: bool = kept, theirs: int = theirs) -> None:
            os.setsid()
            fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
            signal.signal(signal.SIGHUP, signal.SIG_IGN if kept else signal.SIG_DFL)

        training = workshop.watched(
            "train",
            *SETTINGS,
            run=run,
            step=STEP,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=False,
            preexec_fn=take_terminal,
            environment={"TERM": "xterm"},
        )
        os.close(theirs)
        closing = threading.Event()
        reader = threading.Thread(target=_read_until, args=(ours, closing))
        reader.start()  # a terminal that nobody reads blocks its writers
        with training:
            closing.set()
            reader.join()
            os.close(ours)
            status = training.go_on().status
        if kept:
            problem = f"exit status {status}" if status else workshop.differences(run)
        else:
            problem = f"exit status {status}" if status != STOPPING[signal.SIGHUP] else workshop.finished_alike(run)
        yield Attempt(name, problem)


def _read_until(terminal: int, closing: threading.Event) -> None:
    while not closing.is_set():
        if select.select([terminal], [], [], 0.05)[0]:
            with contextlib.suppress(OSError):
                os.read(terminal, 1 << 16)


def second_process(workshop: Workshop, asked: Sequence[str] = ("refuse", "resume", "replace")) -> Iterator[Attempt]:
    """Two processes on one run folder: the second is refused whatever it asks for, the first does not notice."""
    run = workshop.new_run("shared")
    with workshop.watched("train", *SETTINGS, run=run, step=STEP) as training:
        before = snapshot(run)
        problems = {}
        for how in asked:
            ended = workshop.start(run, "--if-exists", how)
            changed = "" if snapshot(run) == before else "the folder changed"
            problems[how] = ended.unlike(2, "another process is training in") or changed
        first = training.go_on()
    end = first.unlike(0) or workshop.differences(run)
    for how, problem in problems.items():
        yield Attempt(f"--if-exists {how}", problem or end)


def folder_moved(workshop: Workshop) -> Iterator[Attempt]:
    """The run folder is renamed, or deleted, while the run writes to it: no second folder grows under the old name."""
    run, moved = workshop.new_run("moving"), workshop.new_run("moved")
    with workshop.watched("train", *SETTINGS, run=run, step=STEP) as training:
        run.rename(moved)
        ended = training.go_on()
    problem = ended.unlike(1, "was moved or deleted") or ("the old name is there again" if run.exists() else "")
    yield Attempt("renamed", problem or workshop.finished_alike(moved))
    run = workshop.new_run("deleted")
    with workshop.watched("train", *SETTINGS, run=run, step=STEP) as training:
        shutil.rmtree(run)
        ended = training.go_on()
    problem = ended.unlike(1, "was moved or deleted") or ("the folder is there again" if run.exists() else "")
    yield Attempt("deleted", problem)


def clock_backwards(workshop: Workshop) -> Iterator[Attempt]:
    """The wall clock runs backwards, three seconds a second, from the start to the end."""
    run = workshop.new_run("clock")
    for session in (workshop.start, workshop.resume):
        ended = session(run, environment={"FAULT_CLOCK": "-3"})
        problem = ended.unlike(0) or workshop.differences(run) or _times(run, ended)
        if problem:
            break
    yield Attempt("a whole run", problem)


def _times(run: Path, ended: Ended) -> str:
    stamps = re.findall(r"^\d{4}-\d\d-\d\dT[\d:]+", (run / "run.log").read_text(), flags=re.MULTILINE)
    said_at = time.mktime(time.strptime(stamps[-1], "%Y-%m-%dT%H:%M:%S"))
    written_at = (run / "run.log").stat().st_mtime  # by the kernel, which has the true time
    if said_at > written_at - 2:
        return f"the clock did not run backwards: {stamps[-1]} in run.log, {time.ctime(written_at)} in truth"
    wrong = [key for record in records(run) for key, value in record.items() if key.startswith("time/") and value < 0]
    left = re.findall(r"left -\d", ended.said)
    return f"a negative time: {(wrong + left)[0]}" if wrong or left else ""
