"""What the tests of training share: an updater on a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from luspo_cli.config.layers import resolve_train


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
