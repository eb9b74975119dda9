"""vLLM servers that several processes share: one of them pushes, all know the version, and nobody draws in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from doubles import rank_cases
from doubles.processes import run_processes
from doubles.servers import PushTarget, serving

Found = tuple[list[str], tuple[str, str, int] | None]


def share(
    folder: Path, model: Any, targets: list[PushTarget], processes: int, sharded: bool, killed: int = -1
) -> list[Found | None]:
    """The version of each push, and as what it ended, of every process that is left."""
    torch.save(model, folder / "model")
    with serving() as start:
        servers = [start(target) for target in targets]
        codes = run_processes(processes, rank_cases.share_servers, folder, servers, sharded, killed)
    assert codes == [-9 if rank == killed else 0 for rank in range(processes)]
    files = [folder / f"{rank}.found" for rank in range(processes)]
    return [torch.load(file, weights_only=False) if file.exists() else None for file in files]


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(("processes", "servers"), [(2, 1), (4, 1), (4, 2)])
def test_every_process_draws_with_what_one_of_them_pushed(
    make_model: Callable[..., Any], tmp_path: Path, processes: int, servers: int, sharded: bool
) -> None:
    """Process 1 of each block takes long to draw, while its neighbour has already come to the next push."""
    model = make_model()
    targets = [PushTarget(draw_s=lambda prompt: 0.3 * (prompt[0] % 2)) for _ in range(servers)]
    found = share(tmp_path, model, targets, processes, sharded)
    assert found[0] is not None
    versions = found[0][0]
    assert found == [(versions, None)] * processes
    assert len(set(versions)) == 2
    block = processes // servers
    for number, target in enumerate(targets):
        prompts = [[10 + rank] for rank in range(number * block, (number + 1) * block) for _ in range(2)]
        for version in versions:
            assert sorted(prompt for drawn_with, prompt in target.drawn if drawn_with == version) == prompts
        assert len(target.drawn) == 2 * len(prompts)
        assert target.disturbed == 0
        assert [target.routes.count(route) for route in ("pause", "start_weight_update", "resume")] == [2, 2, 2]
        assert target.received.keys() == dict(model.named_parameters()).keys()
        assert all(torch.equal(target.received[name], 2.0 * weight) for name, weight in model.named_parameters())


@pytest.mark.parametrize(("processes", "failing", "sharded"), [(2, 0, False), (4, 1, False), (4, 1, True)])
def test_a_push_that_fails_ends_every_process_with_its_sentence(
    make_model: Callable[..., Any], tmp_path: Path, processes: int, failing: int, sharded: bool
) -> None:
    """The first process says it, also where another one pushed; nobody has drawn."""
    targets = [PushTarget() for _ in range(processes // 2)]
    targets[failing].fail_after = 3
    found = share(tmp_path, make_model(), targets, processes, sharded)
    ends = [left[1] for left in found if left is not None and not left[0] and left[1] is not None]
    assert [kind == "PeerFailed" for kind, _, _ in ends] == [False, *[True] * (processes - 1)]
    assert {(sentence, code) for _, sentence, code in ends} == {(ends[0][1], 1)}
    assert "refused /update_weights (500: no memory left)" in ends[0][1]
    assert not any(target.drawn for target in targets)


def test_a_killed_pusher_leaves_nobody_waiting_for_its_push(make_model: Callable[..., Any], tmp_path: Path) -> None:
    targets = [PushTarget(), PushTarget()]
    found = share(tmp_path, make_model(), targets, 4, sharded=False, killed=2)
    assert found[2] is None
    ends = [left[1] for left in found if left is not None]
    assert [end and end[0] for end in ends] == ["PeerLost", "PeerFailed", "PeerFailed"]
    assert all(end and "lost process 2 of 4" in end[1] for end in ends)
    assert {len(left[0]) for left in found if left is not None} == {1}  # nobody went on to draw
    assert [len(target.drawn) for target in targets] == [4, 4]
