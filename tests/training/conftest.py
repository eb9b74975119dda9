"""What the tests of training share: an updater on a tiny model, and the configuration of a run of seconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from luspo_cli.config.layers import resolve_train
from luspo_cli.config.run import TrainRun

# A run of a few seconds: one layer, a warm-up of a few steps without gates, short responses.
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


@pytest.fixture(scope="session")
def made_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of made models for the whole session, also for subprocesses: one warm-up serves every run of a seed."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("LUSPO_CACHE")
    os.environ["LUSPO_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["LUSPO_CACHE"]
    else:
        os.environ["LUSPO_CACHE"] = before


@pytest.fixture(scope="session")
def small_run(made_cache: Path) -> Callable[..., TrainRun]:
    """Return a function from an objective and further assignments to the configuration of a small run."""

    def configure(*sets: str, objective: str = "luspo") -> TrainRun:
        return resolve_train(preset="tiny", objective=objective, sets=[*SMALL_RUN, *sets])

    return configure


@pytest.fixture
def make_updater(make_model: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that builds (updater, model) on a fresh tiny model, AdamW as in a run."""
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from luspo_cli.policy.policy import Policy
    from luspo_cli.training.optimizer import make_optimizer
    from luspo_cli.training.update import Updater

    def build(
        *sets: str, objective: str = "luspo", dtype: str = "float64", reference: Any = None, precision: str = "no"
    ) -> tuple[Updater, Any]:
        AcceleratorState._reset_state()  # accelerate keeps the first mixed precision of a process
        config = resolve_train(
            preset="tiny", objective=objective, sets=["update.mini_batches=1", "rollout.max_response_tokens=16", *sets]
        )
        model = make_model(dtype=dtype)
        accelerator = Accelerator(cpu=True, mixed_precision=precision)
        policy = Policy(model, config.rollout.temperature).train()
        _, optimizer = make_optimizer(policy, config.update)
        prepared, optimizer = accelerator.prepare(policy, optimizer)
        frozen = None if reference is None else Policy(reference.requires_grad_(False), config.rollout.temperature)
        torch.set_num_threads(1)
        return Updater(prepared, optimizer, accelerator, config, frozen), model

    return build
