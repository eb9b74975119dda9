"""Functions for the pool's workers to run; a module of its own, so that a worker imports nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time


def double(number: int) -> int:
    return 2 * number


def sleep_for(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def hold_the_lock(seconds: float) -> int:
    """Below 0: spend minutes inside one C call that never gives the interpreter lock back; else return at once."""
    return len(str(3 ** (10**9))) if seconds < 0 else 0


def misbehave(kind: str) -> object:
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "exit":
        os._exit(3)
    if kind == "raise":
        raise ValueError("no such thing")
    if kind == "base":
        raise BaseException("below Exception")
    if kind == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    if kind == "memory":
        return len(bytearray(8 << 30))
    if kind == "print":
        print("x" * 100_000)
        sys.stderr.write("noise")
        os.write(1, b"raw noise")
    if kind == "unpicklable":
        return lambda: None
    return kind


def start_child(path: str, then: str) -> None:
    """Start a process that lasts minutes and write its number to `path`; then return, hang, or end."""
    child = subprocess.Popen(["sleep", "300"])
    with open(path, "a") as file:
        file.write(f"{child.pid}\n")
    if then == "hang":
        time.sleep(60)
    if then == "exit":
        os._exit(3)


def process_id(_: int) -> int:
    return os.getpid()


def loaded_modules(_: int) -> list[str]:
    return sorted(sys.modules)


def sleep_and_tell(path: str, seconds: float) -> None:
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(seconds)


def echo(text: str) -> str:
    return text


def once_then(path: str, first: str) -> int:
    """Do `first` in the first call with this path, and in any later one return the number of the call."""
    with open(path, "a") as file:
        file.write("x")
        calls = file.tell()
    if calls > 1 or first == "nothing":
        return calls
    if first == "hang":
        time.sleep(60)
    if first == "exit":
        os._exit(3)
    if first == "raise":
        raise ValueError("too busy")
    time.sleep(float(first))
    return calls


def always_hang(path: str) -> None:
    with open(path, "a") as file:
        file.write("x")
    time.sleep(60)
