"""Real processes: some that find one another over gloo, free ports for them, and whether one is still there."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luspo_cli.processes.place import Place


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_processes(number: int, target: Callable[..., None], *arguments: Any) -> list[int | None]:
    """`target(*arguments, variables)` in so many processes that find one another, as a launcher starts them; their exit codes."""
    context = multiprocessing.get_context("forkserver")  # the heavy imports are made once for all of them
    context.set_forkserver_preload(
        ["luspo_cli.training.session", "transformers.models.qwen2.modeling_qwen2", "accelerate"]
    )
    port = free_port()
    places = [Place(rank, number, rank, "127.0.0.1", port) for rank in range(number)]
    # The server keeps the environment that it was started with: hand over today's.
    environments = [{**os.environ, **place.variables()} for place in places]
    processes = [context.Process(target=target, args=(*arguments, environment)) for environment in environments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    return [process.exitcode for process in processes]


def is_running(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether the condition holds, asked again and again for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()
