"""What `check_nodes` says of a node that lacks the plug-in, or has another one; the real cluster is in tests/peers."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from luspo_cli.errors import RunError
from luspo_cli.verl_plugin import check as module

HERE = {"host": "a", "luspo": "0.1.0", "verl": "0.9.1", "math_verify": "0.9.0", "code": "c0de", "names": ["luspo"]}


@pytest.fixture
def on_second_node(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Ray of two nodes, the second of which answers as told: with a report, or an error."""
    answers: dict[str, Any] = {"first": HERE}

    def get(node: str, timeout: float) -> Any:
        if isinstance(answers[node], Exception):
            raise answers[node]
        return answers[node]

    ray, util, strategies = ModuleType("ray"), ModuleType("ray.util"), ModuleType("ray.util.scheduling_strategies")
    ray.is_initialized = lambda: True  # type: ignore[attr-defined]
    ray.nodes = lambda: [  # type: ignore[attr-defined]
        {"Alive": alive, "NodeID": name, "NodeManagerAddress": f"10.0.0.{number}"}
        for number, (name, alive) in enumerate([("first", True), ("gone", False), ("second", True)])
    ]
    placed = SimpleNamespace(options=lambda scheduling_strategy: SimpleNamespace(remote=lambda: scheduling_strategy))
    ray.remote = lambda **_: lambda function: placed  # type: ignore[attr-defined]
    ray.get = get  # type: ignore[attr-defined]
    strategies.NodeAffinitySchedulingStrategy = lambda node, soft: node  # type: ignore[attr-defined]
    for name, one in (("ray", ray), ("ray.util", util), ("ray.util.scheduling_strategies", strategies)):
        monkeypatch.setitem(sys.modules, name, one)
    monkeypatch.setattr(module, "check", lambda: HERE)

    def ask(answer: Any) -> list[dict[str, Any]]:
        answers["second"] = answer
        return module.check_nodes()

    return ask


def test_living_nodes_are_asked(on_second_node: Any) -> None:
    found = on_second_node({**HERE, "host": "b"})
    assert [(one["node"], one["host"]) for one in found] == [("10.0.0.0", "a"), ("10.0.0.2", "b")]


def test_other_code_is_refused(on_second_node: Any) -> None:
    with pytest.raises(RunError, match=r"Node 10\.0\.0\.2 has another luspo .*code beef \(here c0de\)"):
        on_second_node({**HERE, "code": "beef"})


def test_a_node_without_luspo_says_so_in_one_line(on_second_node: Any) -> None:
    failed = RuntimeError("ray::check()\n  File x\nModuleNotFoundError: No module named 'luspo_cli'\n")
    with pytest.raises(RunError) as caught:
        on_second_node(failed)
    assert str(caught.value) == "Node 10.0.0.2: ModuleNotFoundError: No module named 'luspo_cli'"


def test_a_cluster_that_is_not_reached_is_one_sentence(on_second_node: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**_: Any) -> None:
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379\nmore")

    monkeypatch.setattr(sys.modules["ray"], "is_initialized", lambda: False)
    monkeypatch.setattr(sys.modules["ray"], "init", refused, raising=False)
    with pytest.raises(RunError, match=r"cannot be reached: Failed to connect .*:6379; .* set RAY_AUTH_MODE=token"):
        on_second_node(HERE)
