"""Our loss and advantages against the code of stock verl, with the overrides that `luspo objectives` prints.

Run with `make test-verl`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peer_cases import LIMIT, compare, objectives
from verl_cases import Host, actor, composed

from luspo_cli.advantages import ADVANTAGES
from luspo_cli.config.objective import ObjectiveConfig, resolve
from luspo_cli.config.peers import verl_settings, verl_text

pytestmark = pytest.mark.verl
OBJECTIVES = objectives(verl_settings)


@pytest.fixture(scope="module", autouse=True)
def version() -> None:
    verl = pytest.importorskip("verl", reason="needs verl in another environment: make peers")
    assert verl.__version__ == "0.9.1"


def peer(config: ObjectiveConfig) -> Any:
    """verl's `ppo_loss` as its engine calls it for a mini-batch that is one micro-batch on one device."""
    settings = actor(verl_settings(config, LIMIT))
    return lambda batch: Host(settings, config, batch).loss()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_value_and_gradient_are_those_of_verl(name: str, dtype: torch.dtype, tolerance: float) -> None:
    config = OBJECTIVES[name]
    compare(config, peer(config), tolerance, dtype)


@pytest.mark.parametrize("kind", ["group_mean_std", "group_mean", "leave_one_out"])
def test_advantages_are_those_of_verl(kind: str) -> None:
    """Groups of four rollouts with unequal rewards, by the estimator that the overrides name."""
    import numpy as np
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    parts = {"ratio": "token", "surrogate": "clip", "aggregation": "token-mean", "clip_low": 0.2, "clip_high": 0.2}
    algorithm = composed(verl_text(verl_settings(resolve("custom", advantage=kind, **parts))).split()).algorithm
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.25, -0.5, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    mask = torch.ones(12, 3)
    at_the_end = torch.zeros(12, 3, dtype=torch.float64)
    at_the_end[:, -1] = rewards.flatten()
    more = {} if kind == "leave_one_out" else {"norm_adv_by_std_in_grpo": algorithm.norm_adv_by_std_in_grpo}
    found, _ = get_adv_estimator_fn(algorithm.adv_estimator)(
        token_level_rewards=at_the_end, response_mask=mask, index=np.repeat(np.arange(3), 4), **more
    )
    for group, theirs in zip(rewards.tolist(), found[:, 0].reshape(3, 4).tolist(), strict=True):
        assert list(ADVANTAGES[kind](group)) == pytest.approx(theirs, rel=1e-6, abs=1e-9)
