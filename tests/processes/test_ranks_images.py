"""Images on some processes only: a tower without a gradient in the last pass still gets the one of the passes before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from doubles import rank_cases
from doubles.processes import run_processes
from doubles.vision import noise_image, vision_model, vision_processor
from luspo_cli.config.layers import resolve_train
from luspo_cli.data.images import ImageFile
from luspo_cli.errors import UsageError
from luspo_cli.grading.verdict import Reason, Verdict
from luspo_cli.policy.inputs import prompt_inputs
from luspo_cli.policy.policy import Policy
from luspo_cli.processes.sharding import shard
from luspo_cli.records import Message, Problem, Reward, Rollout, ScoredGroup, StopReason

TOLERANCE = 1e-5  # of float32 weights: the order of sums


@pytest.fixture
def case(tmp_path: Path) -> dict[str, Any]:
    """Three rows with an image, four without; every row is a pass of its own, the longest, with the image, first."""
    processor = vision_processor()
    noise_image(tmp_path / "a.png", 70, 60)
    problems = [
        Problem("with", (Message("user", "<image>what?"),), "1", "test", (ImageFile(tmp_path / "a.png"),)),
        Problem("without", (Message("user", "1+1="),), "2", "test"),
    ]
    inputs = [prompt_inputs(p, processor.tokenizer, processor) for p in problems]
    groups = []
    for problem, own, advantages in zip(problems, inputs, ([1.0, -0.5, -0.5], [0.5, 0.5, -0.6, -0.4]), strict=True):
        rollouts = tuple(
            Rollout(problem.id, own.tokens, tuple(range(20 + i, 25 + 2 * i)), "", StopReason.END)
            for i in range(len(advantages))
        )
        rewards = tuple(Reward(a, 0.0, 0.0, 0.0, Verdict("0", False, Reason.DIFFERENT)) for a in advantages)
        groups.append(ScoredGroup(problem, rollouts, rewards, tuple(advantages), own))
    return {
        "model": vision_model(),
        "updates": [(groups, 0.0)] * 2,
        "images": True,
    }


@pytest.mark.parametrize(("sharding", "frozen"), [("none", "false"), ("full", "true")])
def test_the_gradient_with_images_is_that_of_one_process(
    case: dict[str, Any], tmp_path: Path, sharding: str, frozen: str
) -> None:
    config = resolve_train(
        preset="tiny",
        sets=[
            "rollout.problems=2", "update.mini_batches=1", "update.gradient_clip=0", "update.tokens_per_micro_batch=1",
            f"model.sharding={sharding}", f"model.freeze_vision={frozen}",
        ],
    )  # fmt: skip
    case["config"] = config.model_dump(mode="python")
    torch.save(case, tmp_path / "images.case")
    assert run_processes(2, rank_cases.run_cases, tmp_path) == [0, 0]
    whole = rank_cases.found(case)
    scale = max(float(gradient.norm()) for gradient in whole["gradients"].values())
    assert any("visual" in name for name in whole["gradients"]) is (frozen == "false")
    several = [torch.load(tmp_path / f"images.{rank}.found", weights_only=False) for rank in (0, 1)]
    for found in several:
        assert found["gradients"].keys() == whole["gradients"].keys()
        for name, gradient in found["gradients"].items():
            assert (gradient - whole["gradients"][name]).norm() < TOLERANCE * scale, name
    last = [found["pieces"][0][-1] for found in several]
    assert not any(row.image_inputs for piece in last for row in piece.rows)


def test_a_tower_that_is_trained_is_not_sharded() -> None:
    with pytest.raises(UsageError, match=r"model\.freeze_vision = true"):
        shard(Policy(vision_model(), 1.0), torch.device("cpu"))
