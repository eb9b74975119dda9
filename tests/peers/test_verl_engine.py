"""One preset, two engines: after one step on the same stored rollouts, verl's own engine has our engine's weights.

Run with `make test-peers`. Our side is run by `LUSPO_PYTHON`, else by the checkout's `.venv`, else by this environment's Python;
verl's by this one, as one process and as two that share the weights out (FSDP2 on gloo). What is set equal is in docs/verl.md.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.verl
HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
OBJECTIVES = ("grpo", "dr_grpo", "dapo", "gspo", "luspo", "fspo", "cispo", "sapo", "gmpo")
FURTHER = (
    "luspo, gradients not clipped",
    "luspo, one mini-batch",
    "luspo with k3",
    "luspo with entropy",
    "grpo with a dual clip",
)
NO_STOCK_LOSS = ("fspo", "gmpo")
"""verl has no such loss, or one that averages over the rows of each micro-batch."""
TOLERANCE = 3e-5
"""Norm of the difference of all weights over the norm of what the step moved, in float32."""
ENTROPY_TOLERANCE = 2e-3
"""35 of the 3,408 weights, in the embeddings, differ by 1e-6 to 5e-5: AdamW divides a gradient near 0 by its own size."""
SETTINGS = [(name, "plugin") for name in (*OBJECTIVES, *FURTHER)]
SETTINGS += [(name, "stock") for name, _ in SETTINGS if name not in NO_STOCK_LOSS]


@pytest.fixture(scope="module", autouse=True)
def version() -> None:
    pytest.importorskip("verl", reason="needs verl in another environment: make peers")
    assert importlib.metadata.version("verl") == "0.9.1"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that our side writes."""
    folder = tmp_path_factory.mktemp("engines")
    own = CHECKOUT / ".venv" / "bin" / "python"
    python = os.environ.get("LUSPO_PYTHON") or (str(own) if own.exists() else sys.executable)
    paths = {"PYTHONPATH": str(CHECKOUT)}
    subprocess.run([python, HERE / "engine_ours.py", folder], check=True, env=os.environ | paths)
    return folder


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def theirs(ours: Path, request: pytest.FixtureRequest) -> Path:
    """The folder that verl's side writes."""
    world = request.param
    out = ours / f"verl-{world}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "VERL_USE_EXTERNAL_MODULES": "verl_on_cpu",
        "VERL_PLATFORM": "cpu",
        "VERL_ENGINE_DEVICE": "cuda",
        "PYTHONPATH": f"{HERE}:{CHECKOUT}",
    }
    command = [sys.executable, str(HERE / "engine_verl.py"), str(ours), str(out)]
    ranks = [subprocess.Popen(command, env=environment | {"RANK": str(rank)}) for rank in range(world)]
    try:
        assert [rank.wait(timeout=900) for rank in ranks] == [0] * world
    finally:
        for rank in ranks:
            rank.kill()
    return out


def weights(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(file)


def whole(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.flatten() for _, part in sorted(parts.items())])


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_the_weights_are_those_of_our_engine(name: str, setting: str, ours: Path, theirs: Path) -> None:
    own, other = weights(ours / "ours" / f"{name}.safetensors"), weights(theirs / name / f"{setting}.safetensors")
    assert own.keys() == other.keys()
    start = whole(weights(ours / "model" / "model.safetensors"))
    moved = whole(own) - start
    assert moved.abs().max() > 3e-4  # the step is not nothing
    difference = float((whole(other) - whole(own)).norm() / moved.norm())
    print(
        f"{theirs.name} | {name} | {setting} | {difference:.1e} | {float((whole(other) - whole(own)).abs().max()):.1e}"
    )
    assert difference < (ENTROPY_TOLERANCE if "entropy" in name else TOLERANCE)


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_the_numbers_are_those_of_our_engine(name: str, setting: str, ours: Path, theirs: Path) -> None:
    """The mean over the mini-batches of loss and gradient norm."""
    own = json.loads((ours / "cases.json").read_text())[name]["metrics"]
    other = json.loads((theirs / "metrics.json").read_text())[name][setting]
    pairs = {"objective/loss": other["loss"], "update/grad_norm": other["grad_norm"]}
    for key, values in pairs.items():
        assert sum(values) / len(values) == pytest.approx(own[key], rel=1e-4, abs=1e-5), key


def test_the_cases_are_all_there(ours: Path) -> None:
    """And some of them clip ratios and gradients, or nothing beside the plain step was compared."""
    cases: dict[str, Any] = json.loads((ours / "cases.json").read_text())
    assert {*OBJECTIVES, *FURTHER} < cases.keys()
    assert {name for name in OBJECTIVES if cases[name]["differences"] or not cases[name]["stock"]} == set(NO_STOCK_LOSS)
    for name in ("luspo", "gspo", "grpo"):
        metrics = cases[name]["metrics"]
        assert metrics["update/clipped_gradient"] > 0
        assert metrics["objective/clip_low_fraction"] + metrics["objective/clip_high_fraction"] > 0


@pytest.mark.parametrize("setting", ["stock", "plugin"])
def test_verl_pulls_norms_and_biases_to_zero_too(setting: str, ours: Path, theirs: Path) -> None:
    """Weight decay is where the engines differ: ours decays matrices alone. All else of the step is the same."""
    name = "luspo, one mini-batch, weight decay"
    own, other = weights(ours / "ours" / f"{name}.safetensors"), weights(theirs / name / f"{setting}.safetensors")
    start = weights(ours / "model" / "model.safetensors")
    rate, decay = 1e-3, 0.1
    as_verl = {key: part - rate * decay * start[key] if part.dim() < 2 else part for key, part in own.items()}
    moved = whole(own) - whole(start)
    assert (whole(other) - whole(as_verl)).norm() / moved.norm() < TOLERANCE
    assert (whole(other) - whole(own)).norm() / moved.norm() > 100 * TOLERANCE


def test_verl_s_ramp_is_one_step_behind_ours() -> None:
    """Its first step has a learning rate of 0, ours the first part of the ramp."""
    from verl.utils.torch_functional import get_constant_schedule_with_warmup

    from luspo_cli.config.update import UpdateConfig
    from luspo_cli.training.optimizer import learning_rate

    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = get_constant_schedule_with_warmup(optimizer, num_warmup_steps=4)
    theirs = []
    for _ in range(7):
        theirs.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    config = UpdateConfig(learning_rate=1e-3, ramp_steps=4)
    assert theirs == pytest.approx([0.0, *(learning_rate(step, 100, config) for step in range(6))])
