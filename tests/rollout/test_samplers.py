"""Who draws: the decision, its reason, and the sentences where it cannot be had."""

from __future__ import annotations

import pytest

from luspo_cli.config.layers import resolve_train
from luspo_cli.config.rollout import VllmConfig
from luspo_cli.errors import UsageError
from luspo_cli.rollout import samplers
from luspo_cli.rollout.sampler import SamplingOptions
from luspo_cli.rollout.samplers import (
    ChosenSampler,
    SamplerModel,
    check_sampler,
    choose_sampler,
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
