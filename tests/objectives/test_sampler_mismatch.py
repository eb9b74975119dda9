"""Distance between sampler and policy by hand, and what a weight does to LUSPO's length, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from luspo_cli.objectives import policy_loss
from luspo_cli.objectives.sampler_mismatch import SamplerMismatch, correction_weights, sampler_mismatch

# Two rows of 3 and 2 tokens: log ratios policy/sampler of (0.1, -0.2, 0.3) and (-0.5, 0.1).
MASK = torch.tensor([[True, True, True], [True, True, False]])
RATIOS = torch.tensor([[0.1, -0.2, 0.3], [-0.5, 0.1, 99.0]], dtype=torch.float64)
SAMPLER = torch.tensor([[-1.0, -2.0, -3.0], [-1.5, -0.5, float("nan")]], dtype=torch.float64)
OLD = SAMPLER + RATIOS


def test_numbers_by_hand() -> None:
    found = sampler_mismatch(OLD, SAMPLER, MASK).metrics()
    assert found["sampler/logprob_difference_mean"] == pytest.approx((0.1 + 0.2 + 0.3 + 0.5 + 0.1) / 5, rel=1e-12)
    assert found["sampler/logprob_difference_max"] == pytest.approx(0.5, rel=1e-12)
    one, other = math.exp(0.2), math.exp(-0.4)
    expected = (one + other) ** 2 / (2 * (one**2 + other**2))
    assert found["sampler/effective_sample_size"] == pytest.approx(expected, rel=1e-12)
    assert found.keys() <= {"sampler/logprob_difference_mean", "sampler/logprob_difference_max"} | {
        "sampler/effective_sample_size"
    }


def test_equal_policies_lose_no_sample_and_one_heavy_row_leaves_one() -> None:
    same = sampler_mismatch(SAMPLER, SAMPLER, MASK).metrics()
    assert same == {
        "sampler/logprob_difference_mean": 0.0,
        "sampler/logprob_difference_max": 0.0,
        "sampler/effective_sample_size": 1.0,
    }
    mask = torch.ones(8, 1, dtype=torch.bool)
    sampler = torch.zeros(8, 1, dtype=torch.float64)
    heavy = sampler.clone()
    heavy[0] = 19.0
    assert sampler_mismatch(heavy, sampler, mask).metrics()["sampler/effective_sample_size"] == pytest.approx(
        1 / 8, rel=1e-6
    )


def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    whole = sampler_mismatch(OLD, SAMPLER, MASK)
    parts = SamplerMismatch()
    for row in range(2):
        parts.add(sampler_mismatch(OLD[row : row + 1], SAMPLER[row : row + 1], MASK[row : row + 1]))
    assert parts.metrics() == pytest.approx(whole.metrics(), rel=1e-12)


def test_no_token_no_number() -> None:
    assert sampler_mismatch(OLD, SAMPLER, torch.zeros_like(MASK)).metrics() == {}


def test_token_weights_by_hand() -> None:
    weights, counts = correction_weights(OLD, SAMPLER, MASK, "token", cap=1.2)
    expected = [[math.exp(0.1), math.exp(-0.2), 1.2], [math.exp(-0.5), math.exp(0.1)]]
    assert weights[0].tolist() == pytest.approx(expected[0], rel=1e-12)
    assert weights[1, :2].tolist() == pytest.approx(expected[1], rel=1e-12)
    assert (counts.weights, counts.capped) == (5, 1)


def test_sequence_weights_by_hand() -> None:
    weights, counts = correction_weights(OLD, SAMPLER, MASK, "sequence", cap=1.06)
    assert weights[0].tolist() == pytest.approx([1.06] * 3, rel=1e-12)  # e^(0.2/3) = 1.069
    assert weights[1].tolist() == pytest.approx([math.exp(-0.2)] * 3, rel=1e-12)  # two tokens, the third is padding
    assert (counts.weights, counts.capped) == (2, 1)


def test_products_by_hand() -> None:
    weights, counts = correction_weights(OLD, SAMPLER, MASK, "sequence-product", cap=1.2)
    assert weights[0].tolist() == pytest.approx([1.2] * 3, rel=1e-12)  # e^0.2 = 1.22
    assert weights[1].tolist() == pytest.approx([math.exp(-0.4)] * 3, rel=1e-12)
    assert (counts.weights, counts.capped) == (2, 1)


@pytest.mark.parametrize("gap", [-0.002, 0.002])
def test_the_same_gap_at_every_token_weighs_short_and_long_responses_alike(gap: float) -> None:
    mask = torch.arange(1000) < torch.tensor([[10], [1000]])
    sampler = torch.zeros(2, 1000, dtype=torch.float64)
    alike, _ = correction_weights(sampler + gap, sampler, mask, "sequence", cap=8.0)
    assert alike[:, 0].tolist() == pytest.approx([math.exp(gap)] * 2, rel=1e-12)
    exact, _ = correction_weights(sampler + gap, sampler, mask, "sequence-product", cap=8.0)
    assert exact[:, 0].tolist() == pytest.approx([math.exp(10 * gap), math.exp(1000 * gap)], rel=1e-12)


@pytest.mark.parametrize("level", ["token", "sequence", "sequence-product"])
def test_weights_carry_no_gradient_and_stay_finite(level: str) -> None:
    old = torch.tensor([[500.0, -500.0]], requires_grad=True)
    weights, _ = correction_weights(old, torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), level, cap=2.0)  # type: ignore[arg-type]
    assert not weights.requires_grad
    assert bool(torch.isfinite(weights).all())


def loss_of_row(name: str, length: int, weights: torch.Tensor | None, logprobs: torch.Tensor) -> torch.Tensor:
    mask = torch.ones(1, length)
    return policy_loss(name, logprobs, logprobs.detach(), torch.ones(1).double(), mask, rollout_weights=weights).loss


@pytest.mark.parametrize(("name", "per_length"), [("luspo", True), ("gspo", False)])
@pytest.mark.parametrize("length", [3, 50])
def test_a_sequence_weight_scales_the_term_and_leaves_the_length_alone(
    name: str, per_length: bool, length: int
) -> None:
    logprobs = torch.zeros(1, length, dtype=torch.float64, requires_grad=True)
    sampler = torch.full((1, length), 0.3 / length, dtype=torch.float64)
    mask = torch.ones(1, length, dtype=torch.bool)
    weights, _ = correction_weights(logprobs, sampler, mask, "sequence-product", cap=2.0)
    loss = loss_of_row(name, length, weights, logprobs)
    assert loss.item() == pytest.approx(-math.exp(-0.3) * (length if per_length else 1), rel=1e-12)
    loss.backward()
    # d(-w |y| s)/d logprob_t = -w for luspo, -w/|y| for gspo: one weight for every token of the sequence.
    assert logprobs.grad is not None
    each = -math.exp(-0.3) / (1 if per_length else length)
    torch.testing.assert_close(logprobs.grad, torch.full((1, length), each, dtype=torch.float64), rtol=1e-12, atol=0)


def test_why_token_weights_are_refused_for_a_sequence_loss() -> None:
    """They put the sum of the weights where LUSPO has the length: a row whose late tokens drifted counts as a shorter one."""
    length = 10
    logprobs = torch.zeros(1, length, dtype=torch.float64)
    sampler = torch.zeros(1, length, dtype=torch.float64)
    sampler[0, 5:] = 1.0  # the sampler found the second half more likely by e
    weights, _ = correction_weights(logprobs, sampler, torch.ones(1, length, dtype=torch.bool), "token", cap=2.0)
    effective_length = -loss_of_row("luspo", length, weights, logprobs).item()
    assert effective_length == pytest.approx(5 + 5 * math.exp(-1), rel=1e-12)
    assert effective_length < 0.7 * length
