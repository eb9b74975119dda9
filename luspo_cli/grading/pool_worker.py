"""The child side of `pool.KillablePool`: read a chunk of tasks, answer each one as soon as it is done.

It must not outlive its parent even while a task holds the interpreter lock inside C code, where no Python thread or
handler runs: on Linux the kernel kills it when the parent's spawning thread ends, and everywhere a CPU limit renewed
before each task ends it soon after. Between tasks, the end of the request pipe ends it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

_PR_SET_PDEATHSIG = 1
_CPU_MARGIN_S = 2


def main(settings_text: str) -> None:
    """Serve tasks until the request pipe ends; `settings_text` is the JSON written by the pool."""
    settings = json.loads(settings_text)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent(settings["parent"])
    requests, replies = Connection(os.dup(0), writable=False), Connection(os.dup(1), readable=False)
    # A task that prints must not write into the reply pipe, nor onto the user's terminal.
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(quiet, descriptor)
    try:
        function = _resolve(settings["function"])
        if settings["setup"]:
            prepare, arguments = settings["setup"]
            _resolve(prepare)(*arguments)
    except BaseException as error:
        _send(replies, ("failed", f"{type(error).__name__}: {error}"))
        return
    _limit(resource.RLIMIT_CORE, 0)
    if settings["memory_bytes"]:
        _limit(resource.RLIMIT_AS, settings["memory_bytes"])
    _send(replies, ("ready", ""))
    with contextlib.suppress(EOFError):
        while True:
            for arguments in requests.recv():
                _limit_cpu(settings["timeout_s"])
                _send(replies, _run(function, arguments))


def _run(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[str, Any]:
    try:
        return "value", function(*arguments)
    except MemoryError:
        # What the failed allocation left behind is unknown: a fresh process is cheaper than finding out.
        os._exit(1)
    except BaseException as error:  # some libraries raise time-outs of their own below BaseException
        return "raised", f"{type(error).__name__}: {error}"[:500]


def _resolve(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{path} is not callable")
    return found


def _send(replies: Connection, reply: tuple[str, Any]) -> None:
    try:
        replies.send(reply)
    except BrokenPipeError:
        os._exit(0)
    except Exception as error:
        replies.send(("raised", f"the result cannot be pickled: {error}"[:500]))


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the request above took effect
        os._exit(0)


def _limit(kind: int, value: int) -> None:
    with contextlib.suppress(OSError, ValueError):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (value, hard))


def _limit_cpu(timeout_s: float) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    # Twice: a task that runs when its batch is sealed gets its whole limit once more.
    _limit(resource.RLIMIT_CPU, int(usage.ru_utime + usage.ru_stime + 2 * timeout_s) + _CPU_MARGIN_S)
