"""What `policy_loss` says of each row: by hand, and against loops over Python floats."""

from __future__ import annotations

import math

import pytest
import torch
from loop_oracle import CLIPS, FORMULAS, too_far
from ragged_batches import LIMIT, as_tensors, make_batch

from luspo_cli.objectives import Counts, policy_loss

LENGTHS = [3, 1, 9, 0, 5]


def test_by_hand() -> None:
    """Two rows of 2 and 4 tokens, bounds 0.1: a mean log-ratio of 0.2 with A > 0 is cut, one of -0.05 with A < 0 is not."""
    log_ratio = torch.tensor([[0.3, 0.1, 7.0, 7.0], [-0.2, 0.0, 0.1, -0.1]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    advantages = torch.tensor([2.0, -1.0], dtype=torch.float64)
    old = torch.zeros_like(log_ratio)
    found = {
        name: policy_loss(name, log_ratio, old, advantages, mask, clip_low=0.1, clip_high=0.1).rows
        for name in ("gspo", "luspo", "grpo", "dapo")
    }
    for rows in found.values():
        assert rows.sequence_ratio.tolist() == pytest.approx([math.exp(0.2), math.exp(-0.05)])
        assert rows.log_ratio.tolist() == [[0.3, 0.1, 0.0, 0.0], [-0.2, 0.0, 0.1, -0.1]]
    for name in ("gspo", "luspo"):
        assert (found[name].clip_high.tolist(), found[name].clip_low.tolist()) == ([1, 0], [0, 0])
        assert found[name].kept.tolist() == [0, 1]
    # Token ratios: exp(0.3) and exp(0.1) are both above 1.1; of the other row exp(-0.2) and not exp(-0.1) is under 0.9.
    for name in ("grpo", "dapo"):
        assert (found[name].clip_high.tolist(), found[name].clip_low.tolist()) == ([1, 0], [0, 0.25])
        assert found[name].kept.tolist() == [0, 0.75]
    weights = {"gspo": [1 / 2, 1 / 4], "grpo": [1 / 2, 1 / 4], "luspo": [1, 1], "dapo": [1 / 3, 1 / 3]}
    for name, expected in weights.items():
        assert found[name].weight.tolist() == pytest.approx(expected), name


@pytest.mark.parametrize("spread", [0.01, 0.5])
@pytest.mark.parametrize("name", list(FORMULAS))
def test_equal_loops_over_the_tokens(name: str, spread: float) -> None:
    batch = make_batch(5, LENGTHS, spread)
    logprobs, old, advantages, mask = as_tensors(batch)
    rows = policy_loss(name, logprobs, old, advantages, mask, max_response_length=LIMIT).rows
    level, surrogate, weight = FORMULAS[name]
    low, high = CLIPS[name]
    number, tokens = sum(n > 0 for n in LENGTHS), sum(LENGTHS)
    cut = 0.0
    for i, length in enumerate(LENGTHS):
        steps = [new - before for new, before in zip(batch.new[i], batch.old[i], strict=True)]
        mean = sum(steps) / max(length, 1)
        if surrogate in ("cispo", "sapo", "vespo", "reinforce"):
            below = above = 0.0
        elif surrogate == "dppo":
            pairs = zip(batch.new[i], batch.old[i], strict=True)
            sides = [too_far(name, new, before, batch.advantages[i], low, high) for new, before in pairs]
            below, above = (sides.count(side) / max(length, 1) for side in ("low", "high"))
        else:
            # fspo clips the mean times the root of the length, on the log scale.
            units = {"sequence": [mean], "product": [mean * math.sqrt(length)]}.get(level, steps)
            on_log_scale = surrogate == "gmpo" or level == "product"
            lower, upper = (-low, high) if on_log_scale else (math.log(1 - low), math.log(1 + high))
            of_units = max(len(units), 1)
            below = sum(unit < lower for unit in units) / of_units * (batch.advantages[i] < 0) * (length > 0)
            above = sum(unit > upper for unit in units) / of_units * (batch.advantages[i] > 0) * (length > 0)
        cut += below + above
        assert rows.sequence_ratio[i].item() == pytest.approx(math.exp(mean), rel=1e-12)
        assert (rows.clip_low[i].item(), rows.clip_high[i].item()) == pytest.approx((below, above))
        expected = weight(length, number, tokens, LIMIT) * number if length else 0.0
        assert rows.weight[i].item() == pytest.approx(expected * (length if level == "product" else 1), rel=1e-12)
    assert (cut > 0) == (surrogate in ("clip", "gmpo", "dppo") and (spread > 0.1 or level == "sequence"))
    assert not rows.log_ratio.requires_grad


@pytest.mark.parametrize("name", list(FORMULAS))
def test_the_weight_is_what_a_log_prob_moves_the_loss_by(name: str) -> None:
    """At ratio 1 the derivative of the loss by a token's log-prob is -A times the weight over the sequences."""
    logprobs, _, advantages, mask = as_tensors(make_batch(7, LENGTHS, 0.1))
    result = policy_loss(name, logprobs, logprobs.detach(), advantages, mask, max_response_length=LIMIT)
    (gradient,) = torch.autograd.grad(result.loss, logprobs)
    expected = -(advantages * result.rows.weight)[:, None] / 4 * mask
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)


def test_the_dual_clip_is_told_apart() -> None:
    log_ratio = torch.tensor([[2.0, 2.0], [2.0, 0.0]])
    given = (log_ratio, torch.zeros(2, 2), torch.tensor([-1.0, 1.0]), torch.ones(2, 2))
    from luspo_cli.config.objective import resolve

    rows = policy_loss(resolve("grpo", dual_clip=3.0), *given).rows
    assert rows.dual_clip.tolist() == [1, 0]
    assert rows.clip_high.tolist() == [0, 0.5]
    assert rows.kept.tolist() == [0, 0.5]


def test_parts_of_a_batch_with_its_counts_say_what_the_whole_says() -> None:
    logprobs, old, advantages, mask = as_tensors(make_batch(6, LENGTHS, 0.3))
    counts = Counts(4, sum(LENGTHS))
    for name in FORMULAS:
        given = {"max_response_length": LIMIT, "counts": counts}
        whole = policy_loss(name, logprobs, old, advantages, mask, **given).rows
        parts = [
            policy_loss(name, logprobs[part], old[part], advantages[part], mask[part], **given).rows
            for part in (slice(0, 2), slice(2, 5))
        ]
        for value, *pieces in zip(whole, *parts, strict=True):
            assert torch.equal(value, torch.cat(pieces)), name
