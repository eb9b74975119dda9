"""Real processes that find one another over gloo, as a launcher starts them, and free ports for them."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
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
