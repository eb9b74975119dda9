"""Who draws: the decision, its reason, and the sentences where it cannot be had."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from doubles.servers import answering, info, serving
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.rollout import VllmConfig
from luspo_cli.errors import UsageError
from luspo_cli.processes.ranks import Ranks
from luspo_cli.rollout import samplers
from luspo_cli.rollout.sampler import SamplingOptions
from luspo_cli.rollout.samplers import (
    ChosenSampler,
    SamplerModel,
    check_sampler,
    choose_sampler,
    is_pusher,
    make_sampler,
    own_servers,
)
from luspo_cli.training.dry_run import make_plan


@pytest.mark.parametrize(
    ("installed", "cuda", "name", "reason"),
    [
        (True, True, "vllm", "a CUDA device and vllm are there"),
        (True, False, "in-process", "no CUDA device"),
        (False, True, "in-process", "vllm is not installed"),
    ],
)
def test_auto(monkeypatch: pytest.MonkeyPatch, installed: bool, cuda: bool, name: str, reason: str) -> None:
    monkeypatch.setattr(samplers, "vllm_is_installed", lambda: installed)
    monkeypatch.setattr(samplers, "has_cuda", lambda: cuda)
    chosen = choose_sampler("auto")
    assert (chosen.name, chosen.reason) == (name, reason)


def test_a_name_is_taken_at_its_word() -> None:
    for name in ("in-process", "vllm", "vllm-server"):
        assert choose_sampler(name) == ChosenSampler(name, "asked for")  # type: ignore[arg-type]


def test_the_dry_run_says_which_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luspo_cli.training.dry_run.vllm_is_installed", lambda: False)
    plan = make_plan(resolve_train(preset="tiny", objective="luspo"))
    assert plan.sampler["name"] == "in-process"
    assert not any("vllm" in sentence for sentence in plan.missing)
    plan = make_plan(resolve_train(preset="tiny", objective="luspo", sets=["rollout.sampler=vllm"]))
    assert plan.sampler == {"name": "vllm", "reason": "asked for"}
    assert any("make vllm" in sentence for sentence in plan.missing)


def test_without_vllm_the_way_to_get_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "vllm_is_installed", lambda: False)
    model = SamplerModel("nowhere", None, (1,), "float32")
    draws, wanted = SamplingOptions(2, 4), choose_sampler("vllm")
    with pytest.raises(UsageError, match="make vllm"):
        check_sampler(wanted, longest=8, draws=draws, vllm=VllmConfig())
    with pytest.raises(UsageError, match="make vllm"):
        make_sampler(wanted, model, None, max_rows=4, longest=8, draws=draws, seed=0, vllm=VllmConfig())


def test_no_two_processes_push_to_one_server() -> None:
    servers = ("a", "b", "c")
    assert own_servers(servers, 0, 1) == servers
    shares = [own_servers(servers, rank, 2) for rank in range(2)]
    assert shares == [("a", "c"), ("b",)]
    with pytest.raises(UsageError, match="one server a process"):
        own_servers(servers, 0, 4)


def test_one_server_a_machine_is_that_of_the_machine_s_process() -> None:
    """Launchers number processes machine by machine, so servers are named in the order of the machines."""
    nodes = ("http://node1:8000", "http://node2:8000", "http://node3:8000")
    assert [own_servers(nodes, rank, 3) for rank in range(3)] == [(node,) for node in nodes]
    two_each = tuple(f"http://node{n}:{port}" for n in (1, 2) for port in (8000, 8001))
    hosts = [{server.rpartition(":")[0] for server in own_servers(two_each, rank, 4)} for rank in range(4)]
    assert hosts == [{"http://node1"}, {"http://node1"}, {"http://node2"}, {"http://node2"}]


@pytest.mark.parametrize(
    ("servers", "processes", "of_each", "pushers"),
    [
        ("a", 1, "a", [0]),
        ("a", 4, "aaaa", [0]),
        ("ab", 4, "aabb", [0, 2]),
        ("abc", 6, "aabbcc", [0, 2, 4]),
        ("ab", 6, "aaabbb", [0, 3]),
        ("abcd", 12, "aaabbbcccddd", [0, 3, 6, 9]),
        ("abcd", 4, "abcd", [0, 1, 2, 3]),
        ("abcde", 2, ["ace", "bd"], [0, 1]),
    ],
)
def test_neighbours_share_a_server_and_the_first_of_them_pushes(
    servers: str, processes: int, of_each: Sequence[str], pushers: list[int]
) -> None:
    assert [own_servers(servers, rank, processes) for rank in range(processes)] == [tuple(own) for own in of_each]
    assert [rank for rank in range(processes) if is_pusher(len(servers), rank, processes)] == pushers


@pytest.mark.parametrize(("servers", "processes"), [("ab", 3), ("abc", 4), ("abcd", 6), ("abcde", 8)])
def test_servers_that_cannot_be_shared_evenly_are_refused(servers: str, processes: int) -> None:
    vllm = VllmConfig(servers=tuple(f"http://{name}" for name in servers))
    wanted, draws = choose_sampler("vllm-server"), SamplingOptions(2, 4)
    for rank in range(processes):
        ranks = Ranks(rank, processes)
        with pytest.raises(UsageError) as caught:
            check_sampler(wanted, longest=8, draws=draws, vllm=vllm, ranks=ranks)
        assert str(caught.value) == (
            f"rollout.vllm.servers names {len(servers)} and the run has {processes} processes, which cannot share them evenly:"
            f" name one server a process at least, or a number of servers that divides {processes}"
        )


def test_every_process_checks_its_own_server_before_anything_is_loaded() -> None:
    wanted, draws = choose_sampler("vllm-server"), SamplingOptions(2, 4)
    with serving() as start:
        fits, small = start(answering()), start(answering(server_info=info(max_model_len=7)))
        vllm = VllmConfig(servers=(fits, small))
        for rank in (0, 1):
            check_sampler(wanted, longest=8, draws=draws, vllm=vllm, ranks=Ranks(rank, 4))
        for rank in (2, 3):
            with pytest.raises(UsageError, match=f"{small} takes rows of 7 tokens and this run needs 8"):
                check_sampler(wanted, longest=8, draws=draws, vllm=vllm, ranks=Ranks(rank, 4))
