"""Where the benchmark data is: beside the repository, or where LUSPO_DATA says. It is not part of the project."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from doubles.judge import Answer, Server
from luspo_cli.evaluation import judge as judge_module

DATA = Path(os.environ.get("LUSPO_DATA") or Path(__file__).resolve().parents[2] / "../shared/data")


@pytest.fixture(scope="session")
def data_folder() -> Callable[[str], Path]:
    """Return a function that gives the data folder of a benchmark, or skips the test."""

    def folder(name: str) -> Path:
        path = DATA / name
        if not path.is_dir():
            pytest.skip(f"{path} is absent; set LUSPO_DATA to the folder that holds the benchmark data")
        return path

    return folder


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], Server]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(judge_module, "_FIRST_WAIT_S", 0.01)
    servers: list[Server] = []

    def start(answer: Answer) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()
