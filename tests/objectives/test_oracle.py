"""Every named objective against loops over floats written from the equations (value and gradient)."""

from __future__ import annotations

import pytest
import torch
from group_oracle import GROUP_CLIPS, GROUP_FORMULAS
from loop_oracle import CLIPS, FORMULAS, Batch, oracle_gradient, oracle_loss
from ragged_batches import LIMIT, as_tensors, make_batch, pad

from luspo_cli.config.objective import NAMED_OBJECTIVES
from luspo_cli.objectives import policy_loss

NAMES = list(FORMULAS)


def flat_gradient(logprobs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    assert logprobs.grad is not None
    return logprobs.grad[mask]


def test_oracle_covers_every_name() -> None:
    assert set(FORMULAS) | set(GROUP_FORMULAS) == set(NAMED_OBJECTIVES)
    assert all(NAMED_OBJECTIVES[name].length_exponent in (None, 1.0) for name in FORMULAS)  # what its weight here is of
    for name, clip in (CLIPS | GROUP_CLIPS).items():
        assert (NAMED_OBJECTIVES[name].clip_low, NAMED_OBJECTIVES[name].clip_high) == clip


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "rollout_weights"])
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_equal_the_loops(name: str, weighted: bool, batch: Batch) -> None:
    if not weighted:
        batch.weights = [[1.0] * len(row) for row in batch.new]
    logprobs, old, advantages, mask = as_tensors(batch)
    rollout_weights = pad(batch.weights, logprobs.shape[1]) if weighted else None
    result = policy_loss(
        name, logprobs, old, advantages, mask, max_response_length=LIMIT, rollout_weights=rollout_weights
    )
    result.loss.backward()
    assert result.loss.item() == pytest.approx(oracle_loss(name, batch, LIMIT), rel=1e-12)
    expected = torch.tensor([g for row in oracle_gradient(name, batch, LIMIT) for g in row], dtype=torch.float64)
    torch.testing.assert_close(flat_gradient(logprobs, mask), expected, rtol=1e-6, atol=1e-8)
    assert (logprobs.grad[~mask] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_no_part_of_the_loss_ignores_the_advantage(name: str) -> None:
    # A port of SAPO once lost the advantage: negating it must mirror the loss of any objective near the old policy.
    batch = make_batch(3, [4, 6, 2], 1e-6)
    logprobs, old, advantages, mask = as_tensors(batch)
    plus = policy_loss(name, logprobs, old, advantages, mask, max_response_length=LIMIT).loss
    minus = policy_loss(name, logprobs, old, -advantages, mask, max_response_length=LIMIT).loss
    none = policy_loss(name, logprobs, old, 0 * advantages, mask, max_response_length=LIMIT).loss
    assert none.item() == 0
    assert plus.item() * minus.item() < 0
    if name != "sapo":  # its two temperatures are not mirror images
        assert minus.item() == pytest.approx(-plus.item(), rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_small_step_down_the_gradient_raises_rewarded_responses(name: str) -> None:
    batch = make_batch(5, [4, 6], 0.0)
    logprobs, old, _, mask = as_tensors(batch)
    advantages = torch.tensor([1.0, -1.0], dtype=torch.float64)
    policy_loss(name, logprobs, old, advantages, mask, max_response_length=LIMIT).loss.backward()
    assert logprobs.grad is not None
    assert (logprobs.grad[0][mask[0]] < 0).all()
    assert (logprobs.grad[1][mask[1]] > 0).all()
