"""Two processes make the update of one with a model of experts, whole on each and shared out; bounds as in test_ranks.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from doubles import rank_cases
from doubles.models import own_experts
from doubles.processes import run_processes
from luspo_cli.config.layers import resolve_train

TOLERANCE = 1e-6
RATE = 1e-3
LENGTHS = [[3, 9, 1], [5, 5, 12], [2, 7, 4], [6, 1, 8]]
ADVANTAGES = [[1.0, -0.5, -0.5], [0.0, 0.0, 0.0], [0.0, 1.0, -1.0], [0.5, 0.2, -0.7]]
UNEVEN = [[16, 1, 1], [1, 1, 2], [14, 1, 3], [1, 2, 1]]

FAMILIES = ("Qwen3Moe", "Qwen2Moe")
SHARDINGS = ("none", "full")
SMALL = (
    "rollout.problems=4",
    "rollout.max_response_tokens=16",
    "update.gradient_clip=0",
    "update.tokens_per_micro_batch=30",
)
ONE, TWO = "update.mini_batches=1", "update.mini_batches=2"


def cases(make_groups: Callable[..., Any]) -> dict[str, dict[str, Any]]:
    """Name → model, updates and configuration."""

    def case(family: str, lengths: Any, *sets: str, rate: float = 0.0, updates: int = 1) -> dict[str, Any]:
        config = resolve_train(preset="tiny", sets=[*SMALL, *sets])
        return {
            "config": config.model_dump(mode="python"),
            "model": own_experts(26, family).double(),
            "updates": [(make_groups(lengths, ADVANTAGES), rate)] * updates,
        }

    found = {}
    for family in FAMILIES:
        for sharding in SHARDINGS:
            s = f"model.sharding={sharding}"
            found |= {
                f"gradient.{family}.{sharding}": case(family, LENGTHS, s, ONE),
                f"uneven.{family}.{sharding}": case(family, UNEVEN, s, ONE),
                f"aux.{family}.{sharding}": case(family, UNEVEN, s, ONE, "update.router_aux_coefficient=0.3"),
                f"replay.{family}.{sharding}": case(
                    family, LENGTHS, s, TWO, "update.router_replay=old", rate=RATE, updates=3
                ),
                f"steps.{family}.{sharding}": case(family, LENGTHS, s, TWO, rate=RATE, updates=3),
            }
    return found


@pytest.fixture(scope="module")
def two(make_groups: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Name of a case → what each of two processes found."""
    folder = tmp_path_factory.mktemp("experts")
    names = []
    for name, case in cases(make_groups).items():
        names.append(name)
        torch.save(case, folder / f"{name}.case")
    assert run_processes(2, rank_cases.run_cases, folder) == [0, 0]
    return {
        name: [torch.load(folder / f"{name}.{rank}.found", weights_only=False) for rank in (0, 1)] for name in names
    }


@pytest.fixture(scope="module")
def alone(make_groups: Callable[..., Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    return {name: rank_cases.found(case) for name, case in cases(make_groups).items()}


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["gradient", "uneven", "aux"])
def test_the_gradient_is_that_of_one_process(
    two: dict[str, list[Any]], alone: dict[str, Any], name: str, family: str, sharding: str
) -> None:
    whole = alone[f"{name}.{family}.{sharding}"]["gradients"]
    scale = max(float(gradient.norm()) for gradient in whole.values())
    assert scale > 1e-3
    for found in two[f"{name}.{family}.{sharding}"]:
        assert found["gradients"].keys() == whole.keys()
        for weight, gradient in found["gradients"].items():
            assert (gradient - whole[weight]).norm() < TOLERANCE * scale, weight


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["steps", "replay"])
def test_the_weights_after_steps_are_those_of_one_process(
    two: dict[str, list[Any]], alone: dict[str, Any], kind: str, family: str, sharding: str
) -> None:
    """Six optimizer steps, as in test_ranks.py; and the same bits on both processes."""
    name = f"{kind}.{family}.{sharding}"
    first, second = two[name]
    for weight, value in first["weights"].items():
        assert torch.equal(value, second["weights"][weight])
        if not weight.endswith("k_proj.bias"):  # its true gradient is 0
            assert float((value - alone[name]["weights"][weight]).abs().mean()) < 1e-2 * RATE, weight


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["gradient", "uneven", "aux", "steps", "replay"])
def test_the_metrics_are_those_of_one_process(
    two: dict[str, list[Any]], alone: dict[str, Any], name: str, family: str, sharding: str
) -> None:
    first, second = (found["metrics"] for found in two[f"{name}.{family}.{sharding}"])
    assert first == second
    for found, wanted in zip(first, alone[f"{name}.{family}.{sharding}"]["metrics"], strict=True):
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert found[key] == pytest.approx(
                value, rel=1e-5 if name in ("gradient", "uneven", "aux") else 2e-3, abs=1e-6
            ), key
