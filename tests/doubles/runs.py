"""Runs of seconds in this process, and what they leave: settings, records and weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from doubles.messages import heard
from luspo_cli.config.run import TrainRun
from luspo_cli.grading.verdict import Reason, Verdict
from luspo_cli.records import ImageSource, Message, Problem, Reward, Rollout, ScoredGroup, StopReason

SMALL_RUN = (
    "model.shape.layers=1",
    "model.shape.width=32",
    "model.shape.heads=2",
    "model.shape.key_value_heads=1",
    "model.shape.feed_forward=48",
    "warmup.steps=20",
    "warmup.rows=16",
    "warmup.ramp_steps=3",
    "warmup.gate=false",
    "warmup.stop_accuracy=0.99",
    "warmup.max_accuracy=1.0",
    "warmup.check_every=50",
    "rollout.problems=4",
    "rollout.group_size=4",
    "rollout.max_response_tokens=16",
    "rollout.max_rows=8",
    "update.mini_batches=2",
    "update.learning_rate=1e-3",
    "update.tokens_per_micro_batch=128",
    # No answer is right after such a warm-up: the overlong penalty gives the groups a signal.
    "reward.overlong_buffer=12",
    "evaluation.every=2",
    "evaluation.problems=4",
    "evaluation.samples=2",
    "run.steps=5",
    "run.checkpoint_every=2",
    "run.rollouts_every=2",
    "run.threads=1",
)
"""One layer, a warm-up of a few steps without gates, short responses: assignments on top of the preset `tiny`."""

SMALL_VISION_RUN = (
    *(setting for setting in SMALL_RUN if "shape" not in setting and "warmup.steps" not in setting),
    "model.shape.layers=1",
    "model.shape.width=32",
    "model.shape.heads=2",
    "model.shape.key_value_heads=1",
    "model.shape.feed_forward=48",
    "model.shape.vision.depth=1",
    "model.shape.vision.width=16",
    "model.shape.vision.heads=2",
    "model.shape.vision.feed_forward=16",
    "model.shape.vision.full_attention=[0]",
    "warmup.steps=2",
    "run.steps=2",
    "run.checkpoint_every=1",
)
"""The same on top of the presets `tiny-vl` and `easy-vqa`: one block in the vision tower."""


def train(config: TrainRun, path: Path, how: str = "refuse", crash_after: int = 0) -> list[str]:
    """Train in this process; returns what was said. `crash_after` a step raises ZeroDivisionError there, after its checkpoint."""
    from accelerate.state import AcceleratorState

    from luspo_cli.training.session import run_training

    def on_step(metrics: dict[str, Any]) -> None:
        if metrics["step"] == crash_after:
            raise ZeroDivisionError

    AcceleratorState._reset_state()  # accelerate keeps the first mixed precision of a process
    with heard() as said:
        run_training(config, path, how, on_step)  # type: ignore[arg-type]
    return said


def as_arguments(config: TrainRun, folder: Path) -> list[str]:
    """The command line of a run with this configuration: a TOML file of all its sections in `folder`, the run beside it."""
    lines: list[str] = []

    def write(name: str, table: dict[str, Any]) -> None:
        lines.append(f"[{name}]")
        lines.extend(f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict))
        for key, inner in table.items():
            if isinstance(inner, dict):
                write(f"{name}.{key}", inner)

    for section, table in config.model_dump(mode="json", exclude_none=True).items():
        write(section, table)
    (folder / "own.toml").write_text("\n".join(lines) + "\n")
    return ["train", "--config", str(folder / "own.toml"), "--run", str(folder / "run")]


def records(path: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def assert_same_records(one: Path, other: Path) -> None:
    """Two runs' metrics are the same but for the order of sums: lengths and rewards equal, losses close; times aside."""
    for found, wanted in zip(records(one), records(other), strict=True):
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            if key.startswith(
                ("response", "reward", "group", "tokens", "step", "evaluation", "update/rows", "update/lag")
            ):
                assert found[key] == value, (wanted["step"], key)
            elif key == "by_length":
                assert found[key].keys() == value.keys()
                for name, numbers in value.items():
                    for one, expected in zip(found[key][name], numbers, strict=True):
                        close = expected if expected is None else pytest.approx(expected, rel=1e-2, abs=1e-5)
                        assert one == close, (wanted["step"], name)
            elif not key.startswith("time/"):
                assert found[key] == pytest.approx(value, rel=1e-2, abs=1e-5), (wanted["step"], key)


def without_times(path: Path) -> list[dict[str, Any]]:
    """The same without what no two runs share."""
    return [{key: value for key, value in record.items() if not key.startswith("time/")} for record in records(path)]


def stored_weights(path: Path, step: int) -> dict[str, Any]:
    """Name → tensor of the model in a run's checkpoint."""
    from safetensors.torch import load_file

    return load_file(path / f"checkpoints/step-{step:06d}/model/model.safetensors")


def assert_close(one: Path, other: Path, step: int) -> None:
    """Two `SMALL_RUN`s with the same steps, within the order of sums: lengths and rewards equal, losses close, and weights
    within a hundredth of an optimizer step (1e-3) on average."""
    assert_same_records(one, other)
    whole, theirs = stored_weights(one, step), stored_weights(other, step)
    assert whole.keys() == theirs.keys()
    for name, value in whole.items():
        assert str(value.dtype) == str(theirs[name].dtype) == "torch.float32"
        if not name.endswith("k_proj.bias"):  # its true gradient is 0: Adam steps by the sign of rounding error
            assert float((value - theirs[name]).abs().mean()) < 1e-2 * 1e-3, name


def weight_bytes(path: Path, step: int) -> bytes:
    """The file of the same, for comparisons bit by bit."""
    return (path / f"checkpoints/step-{step:06d}/model/model.safetensors").read_bytes()


def problem(name: str = "p", answer: str = "1", text: str = "?", images: tuple[ImageSource, ...] = ()) -> Problem:
    """A problem with one question by the user."""
    return Problem(name, (Message("user", text),), answer, "test", images)


def rollout(
    response: str = "", length: int = 2, *, name: str = "p", tokens: Sequence[int] = (), truncated: bool = False
) -> Rollout:
    """A response of `length` tokens (or of exactly `tokens`) to the problem `name`."""
    reason = StopReason.LENGTH if truncated else StopReason.END
    return Rollout(name, (2,), tuple(tokens) or tuple(range(length)), response, reason)


def scored_group(rewards: Sequence[float], name: str = "p") -> ScoredGroup:
    """A group of two-token responses with these accuracies as rewards, its advantages not set yet."""
    scored = tuple(Reward(reward, reward, 0.0, 0.0, Verdict("0", False, Reason.DIFFERENT)) for reward in rewards)
    return ScoredGroup(problem(name), tuple(rollout(name=name) for _ in rewards), scored, tuple(0.0 for _ in rewards))
