"""A disk that is full, read-only or broken: one sentence, exit status 1 or 2, and nothing lost once the disk is mended."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from small_training import Attempt, Fault, Unavailable, Workshop, snapshot

SMALL_DISK, ENOUGH = "size=340k", "size=8m"
"""A run with two checkpoints takes about 400 KiB."""
FILE_LIMIT = 60_000
"""Bytes: more than the weights have, fewer than the optimizer."""


def full_disk(workshop: Workshop) -> Iterator[Attempt]:
    """A small file system of its own; space is freed by making it larger."""
    with mounted(workshop, SMALL_DISK) as disk:
        run = disk / "run"
        ended = workshop.start(run)
        problem = ended.unlike(1, "No space left on device", "--resume")
        remount(disk, ENOUGH)
        yield Attempt("in a checkpoint", problem or workshop.finished_alike(run))


def full_disk_at_any_write(workshop: Workshop, tries: int, seed: int) -> Iterator[Attempt]:
    """No space from a random operation on, as the program is told by the kernel's error."""
    yield from _failing(workshop, "disk-full", tries, seed)


def read_only_at_any_write(workshop: Workshop, tries: int, seed: int) -> Iterator[Attempt]:
    """A file system that turns read-only in the middle, as after an error of the device."""
    yield from _failing(workshop, "read-only", tries, seed)


def one_broken_write(workshop: Workshop, tries: int, seed: int) -> Iterator[Attempt]:
    """One operation fails (EIO), the ones after it do not."""
    yield from _failing(workshop, "broken", tries, seed)


def _failing(workshop: Workshop, how: str, tries: int, seed: int) -> Iterator[Attempt]:
    draw = random.Random(f"{seed} {how}")
    for _ in range(tries):
        number = workshop.draw_operation(draw)
        run = workshop.new_run(how)
        ended = workshop.start(run, fault=Fault(run, how, number))
        at = workshop.operations[number - 1]
        moment = f"{at.name} {at.path.removeprefix(str(workshop.whole))}"
        if ended.status == 0:  # the operation was one that may fail: the removal of a leftover, the log
            yield Attempt(moment, ended.unlike(0) or workshop.differences(run))
            continue
        problem = ended.unlike(ended.status, "luspo: cannot")
        if ended.status not in (1, 2):
            problem = f"exit status {ended.status}: {ended.said[-600:]}"
        yield Attempt(moment, problem or workshop.finished_alike(run))


def file_size_limit(workshop: Workshop) -> Iterator[Attempt]:
    """`ulimit -f`: files over a size cannot be written, which the kernel reports as another error than a full disk."""
    run = workshop.new_run("limited")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))

    ended = workshop.start(run, preexec_fn=limit)
    problem = ended.unlike(1, "cannot write the checkpoint", "File too large")
    yield Attempt("in a checkpoint", problem or workshop.finished_alike(run))


def read_only_folder(workshop: Workshop) -> Iterator[Attempt]:
    """A file system mounted read-only: nothing can begin there, and nothing can go on."""
    with mounted(workshop, ENOUGH) as disk:
        shutil.copytree(workshop.stopped, disk / "run")
        before = snapshot(disk)
        remount(disk, "ro")
        fresh = workshop.start(disk / "fresh")
        yield Attempt("a new run", fresh.unlike(2, "Read-only file system", "choose another --run"))
        resumed = workshop.resume(disk / "run")
        unchanged = "" if snapshot(disk) == before else "the folder changed"
        problem = resumed.unlike(2, "Read-only file system") or unchanged
        remount(disk, "rw")
        yield Attempt("a run to resume", problem or workshop.finished_alike(disk / "run"))


def folder_without_permission(workshop: Workshop) -> Iterator[Attempt]:
    """No permission to write; root, who is allowed everything, gives that right up first."""
    before: tuple[str, ...] = ()
    if os.geteuid() == 0:
        before = ("setpriv", "--bounding-set", "-dac_override")
        if shutil.which("setpriv") is None or subprocess.run([*before, "true"], capture_output=True).returncode:
            raise Unavailable("root needs setpriv, to give up the right to write everywhere")
    folder = workshop.new_run("locked")
    shutil.copytree(workshop.stopped, folder / "run")
    for locked in (folder, folder / "run"):
        locked.chmod(0o555)
    (folder / "run" / ".lock").chmod(0o444)
    try:
        ended = workshop.start(folder / "fresh", before=before)
        yield Attempt("a new run", ended.unlike(2, "Permission denied", "choose another --run"))
        problem = workshop.resume(folder / "run", before=before).unlike(2, "Permission denied")
    finally:
        for unlocked in (folder, folder / "run"):
            unlocked.chmod(0o755)
        (folder / "run" / ".lock").chmod(0o644)
    yield Attempt("a run to resume", problem or workshop.finished_alike(folder / "run"))


def tracker_without_disk(workshop: Workshop) -> Iterator[Attempt]:
    """TensorBoard's files alone find no space: the writer is dropped, the run is the same."""
    if importlib.util.find_spec("tensorboard") is None:
        raise Unavailable("tensorboard is not installed")
    for at in (8, 12):  # later than its start: a writer that cannot start ends the command before the first step
        run = workshop.new_run("tracked")
        fault = Fault(run / "tensorboard", "disk-full", at)
        ended = workshop.start(run, "--set", 'run.track=["tensorboard"]', fault=fault)
        own = ["config.json", "tracking.json", *(name for name in snapshot(run) if name.startswith("tensorboard/"))]
        problem = f"exit status {ended.status}: {ended.said[-600:]}" if ended.status else ""
        problem = problem or ("" if "is left out from here on" in ended.said else "its end was not said")
        yield Attempt(f"from its operation {at} on", problem or workshop.differences(run, ignore=own))


@contextlib.contextmanager
def mounted(workshop: Workshop, options: str) -> Iterator[Path]:
    """A file system in memory, with a size."""
    folder = workshop.new_run("disk")
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        raise Unavailable("mounting a small file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True, capture_output=True)
