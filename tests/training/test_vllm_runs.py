"""Whole runs with the real vLLM inside the process: repeatable, resumable, and close to the policy that is trained."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from doubles.runs import weight_bytes, without_times
from luspo_cli.config.run import TrainRun

pytestmark = pytest.mark.vllm
ROOT = Path(__file__).resolve().parents[2]
# vLLM's CPU kernels want heads of 32 numbers.
SETTINGS = (
    "rollout.sampler=vllm",
    "model.shape.width=64",
    "model.shape.heads=2",
    "model.shape.feed_forward=64",
    "update.sampler_correction=sequence",
    "run.steps=4",
)
TRAIN = """
import sys
from pathlib import Path
from luspo_cli.config.run import TrainRun
from luspo_cli.training.session import run_training
config = TrainRun.model_validate_json(sys.stdin.read())
steps = int(sys.argv[3])
class Stop(Exception):
    pass
def on_step(metrics):
    if metrics["step"] == steps:
        raise Stop
try:
    run_training(config, Path(sys.argv[1]), sys.argv[2], on_step)
except Stop:
    pass
"""


def train(config: TrainRun, folder: Path, if_exists: str = "refuse", stop_after: int = 0) -> None:
    """Train in a process of its own; `stop_after` ends it abruptly behind that step's checkpoint."""
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(folder), if_exists, str(stop_after)],
        input=config.model_dump_json(),
        capture_output=True,
        text=True,
        cwd=folder.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_run_repeats_and_goes_on_with_the_same_bits(small_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    config = small_run(*SETTINGS)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "again")
    assert without_times(tmp_path / "again") == without_times(tmp_path / "whole")
    assert weight_bytes(tmp_path / "again", 4) == weight_bytes(tmp_path / "whole", 4)
    train(config, tmp_path / "stopped", stop_after=2)
    assert len(without_times(tmp_path / "stopped")) == 2
    train(config, tmp_path / "stopped", "resume")
    assert without_times(tmp_path / "stopped") == without_times(tmp_path / "whole")
    assert weight_bytes(tmp_path / "stopped", 4) == weight_bytes(tmp_path / "whole", 4)


def test_the_sampler_follows_the_policy(small_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    """At a learning rate that moves the policy far in every step, float32 log-probs stay the policy's own."""
    pytest.importorskip("vllm")
    train(small_run(*SETTINGS, "update.learning_rate=1e-2"), tmp_path / "run")
    found = without_times(tmp_path / "run")
    assert len(found) == 4
    for record in found:
        assert record["sampler/logprob_difference_max"] < 1e-4
        assert record["sampler/effective_sample_size"] > 0.999
        assert record["sampler/capped_fraction"] == 0.0
    assert max(record["ratio/max"] for record in found) > 1.01  # the policy did move
