"""Sharded weights on their way to vLLM servers: whole at each of them, in any number, and no process waits for another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from doubles import rank_cases
from doubles.processes import run_processes
from doubles.servers import PushTarget, serving


def push(folder: Path, model: Any, targets: list[PushTarget]) -> list[list[str]]:
    """What went wrong on each of two processes that push to these servers, two and one of them."""
    torch.save(model, folder / "model")
    with serving() as start:
        assert run_processes(2, rank_cases.push_sharded, folder, [start(target) for target in targets]) == [0, 0]
    return [torch.load(folder / f"{rank}.found", weights_only=False) for rank in range(2)]


def test_every_server_gets_whole_weights_from_uneven_processes(make_model: Callable[..., Any], tmp_path: Path) -> None:
    model, targets = make_model(), [PushTarget() for _ in range(3)]
    assert push(tmp_path, model, targets) == [[], []]
    for target in targets:
        assert target.received.keys() == dict(model.named_parameters()).keys()
        assert all(torch.equal(target.received[name], weight) for name, weight in model.named_parameters())


def test_a_server_that_fails_leaves_no_other_process_waiting(make_model: Callable[..., Any], tmp_path: Path) -> None:
    model, targets = make_model(), [PushTarget(), PushTarget(fail_after=3), PushTarget()]
    first, second = push(tmp_path, model, targets)
    assert first == []
    assert len(second) == 2
    assert all("refused /update_weights (500: no memory left)" in said for said in second)
    assert len(targets[0].received) == len(targets[2].received) == len(list(model.named_parameters()))
