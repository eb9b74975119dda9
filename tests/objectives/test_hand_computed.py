"""Numbers worked out by hand, for each part and for whole objectives."""

from __future__ import annotations

import math

import pytest
import torch

from luspo_cli.config.objective import ObjectiveConfig, resolve
from luspo_cli.objectives import Counts, policy_loss
from luspo_cli.objectives.aggregation import BatchSize, token_weights
from luspo_cli.objectives.kl import kl_k1, kl_k2, kl_k3
from luspo_cli.objectives.ratio import sequence_ratio, token_log_ratio, token_ratio
from luspo_cli.objectives.surrogate import cispo_surrogate, clip_surrogate, gmpo_surrogate, sapo_surrogate

LOG2 = math.log(2.0)


def doubles(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_ratios() -> None:
    logprobs, old = doubles([[LOG2, 0.0, 3 * LOG2], [5.0, 0.0, 0.0]]), doubles([[0.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    log_ratio = token_log_ratio(logprobs, old, mask)
    torch.testing.assert_close(token_ratio(log_ratio), doubles([[2, 1, 8], [1, 1, 1]]))
    # (2 · 1 · 8)^(1/3) = 2^(4/3)
    torch.testing.assert_close(sequence_ratio(log_ratio, mask), doubles([[2 ** (4 / 3)], [1]]))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.1, 2.0, -2.2, -2.0),  # inside
        (1.5, 2.0, -2.4, 0.0),  # above, rewarded: held at 1.2, no gradient
        (0.5, 2.0, -1.0, -2.0),  # below, rewarded: may come back
        (0.5, -2.0, 1.6, 0.0),  # below, punished: held at 0.8
        (1.5, -2.0, 3.0, 2.0),  # above, punished: may come back
        (1.2, 2.0, -2.4, -2.0),  # on the edge: the whole gradient, not half of it
        (0.8, -2.0, 1.6, 2.0),
    ],
)
def test_clip_surrogate(ratio: float, advantage: float, loss: float, slope: float) -> None:
    r = doubles([[ratio]]).requires_grad_(True)
    # 1 + 0.2 and 1 − 0.2 are the float64 numbers 1.2 and 0.8, so the edges above are exact.
    result = clip_surrogate(r, doubles([[advantage]]), 0.2, 0.2)
    result.loss.sum().backward()
    assert result.loss.item() == pytest.approx(loss)
    assert r.grad is not None
    assert r.grad.item() == pytest.approx(slope)
    assert bool(result.clipped_low) == (slope == 0 and ratio < 1)
    assert bool(result.clipped_high) == (slope == 0 and ratio > 1)


@pytest.mark.parametrize(("ratio", "loss", "slope"), [(2.9, 5.8, 2.0), (3.5, 6.0, 0.0), (0.5, 1.6, 0.0)])
def test_dual_clip_bounds_the_loss_of_a_punished_token(ratio: float, loss: float, slope: float) -> None:
    r = doubles([[ratio]]).requires_grad_(True)
    result = clip_surrogate(r, doubles([[-2.0]]), 0.2, 0.2, dual_clip=3.0)
    result.loss.sum().backward()
    assert result.loss.item() == pytest.approx(loss)
    assert r.grad is not None
    assert r.grad.item() == pytest.approx(slope)
    assert bool(result.dual_clipped) == (ratio > 3)


def test_dual_clip_leaves_rewarded_tokens_alone() -> None:
    result = clip_surrogate(doubles([[5.0]]), doubles([[2.0]]), 0.2, 0.2, dual_clip=3.0)
    assert result.loss.item() == pytest.approx(-2.4)
    assert not result.dual_clipped


def test_cispo_caps_the_weight_and_keeps_the_gradient() -> None:
    logprobs = doubles([[-1.0, -2.0]]).requires_grad_(True)
    ratio = doubles([[8.0, 0.5]])
    result = cispo_surrogate(ratio, logprobs, doubles([[3.0]]), 1.0, 4.0)
    result.loss.sum().backward()
    torch.testing.assert_close(result.loss.detach(), doubles([[15.0, 3.0]]))  # −5·3·(−1), −0.5·3·(−2)
    torch.testing.assert_close(logprobs.grad, doubles([[-15.0, -1.5]]))


def test_sapo_gate_at_ratio_one() -> None:
    # σ(0) = 1/2, so the loss is −(2/τ)·A, and its slope in r is −A (4/τ · τ · 1/4) for either temperature.
    for advantage, temperature in ((2.0, 1.0), (-2.0, 1.05)):
        r = doubles([[1.0]]).requires_grad_(True)
        result = sapo_surrogate(r, doubles([[advantage]]), 1.0, 1.05)
        result.loss.sum().backward()
        assert result.loss.item() == pytest.approx(-2 / temperature * advantage)
        assert r.grad is not None
        assert r.grad.item() == pytest.approx(-advantage)


def test_gmpo_clips_tokens_before_the_mean() -> None:
    log_ratio = doubles([[1.0, -1.0, 0.1]]).requires_grad_(True)
    mask = torch.ones(1, 3, dtype=torch.bool)
    up = gmpo_surrogate(log_ratio, mask, doubles([[1.0]]), 0.4, 0.4)
    assert up.loss.item() == pytest.approx(-math.exp((0.4 - 1.0 + 0.1) / 3))
    down = gmpo_surrogate(log_ratio, mask, doubles([[-1.0]]), 0.4, 0.4)
    assert down.loss.item() == pytest.approx(math.exp((1.0 - 0.4 + 0.1) / 3))
    up.loss.sum().backward()
    assert log_ratio.grad is not None
    assert log_ratio.grad[0, 0].item() == 0
    assert log_ratio.grad[0, 1].item() == pytest.approx(-math.exp(-0.5 / 3) / 3)


def test_kl_estimators() -> None:
    log_ratio = doubles([[LOG2]])
    assert kl_k1(log_ratio).item() == pytest.approx(LOG2)
    assert kl_k2(log_ratio).item() == pytest.approx(LOG2**2 / 2)
    assert kl_k3(log_ratio).item() == pytest.approx(0.5 - 1 + LOG2)


def test_weights_of_each_aggregation() -> None:
    mask = torch.tensor([[True, True, True, True], [True, False, False, False], [False] * 4])
    expected = {
        "token-mean": (1 / 5, 1 / 5),
        "seq-mean-token-mean": (1 / 8, 1 / 2),
        "seq-mean-token-sum": (1 / 2, 1 / 2),
        "seq-mean-token-sum-norm": (1 / 20, 1 / 20),
    }
    for aggregation, (first, second) in expected.items():
        parts = {"advantage": "group_mean", "ratio": "token", "surrogate": "clip", "clip_low": 0.2, "clip_high": 0.2}
        config = resolve("custom", aggregation=aggregation, **parts)
        weights = token_weights(mask, config, BatchSize(2, 5, 10), torch.float64)
        torch.testing.assert_close(weights, doubles([[first] * 4, [second, 0, 0, 0], [0] * 4]))


def test_luspo_by_hand() -> None:
    # Row 0: two tokens, mean log-ratio 0.001, s = e^0.001 inside the range, A = 1 → loss −2·e^0.001.
    # Row 1: one token, log-ratio 0.01, s above 1.0025, A = 0.5 → clipped, loss −1·1.0025·0.5, no gradient.
    logprobs = doubles([[-1.0 + 0.003, -1.0 - 0.001], [-2.0 + 0.01, 99.0]]).requires_grad_(True)
    old = doubles([[-1.0, -1.0], [-2.0, -7.0]])
    mask = torch.tensor([[1, 1], [1, 0]])
    result = policy_loss("luspo", logprobs, old, torch.tensor([1.0, 0.5]).double(), mask)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(-(2 * math.exp(0.001) + 1.0025 * 0.5) / 2, rel=1e-12)
    slope = -math.exp(0.001) / 2  # d(|y| s)/d log π_t = s: one token's share of −(1/N)|y| s A
    torch.testing.assert_close(logprobs.grad, doubles([[slope, slope], [0.0, 0.0]]))
    diagnostics = result.diagnostics
    assert diagnostics["objective/clip_high_fraction"] == 0.5
    assert diagnostics["objective/clip_low_fraction"] == 0
    assert diagnostics["ratio/mean"] == pytest.approx((math.exp(0.001) + math.exp(0.01)) / 2)
    assert diagnostics["ratio/min"] == pytest.approx(math.exp(0.001))
    assert diagnostics["ratio/max"] == pytest.approx(math.exp(0.01))
    k3 = [math.exp(d) - 1 - d for d in (0.003, -0.001, 0.01)]
    assert diagnostics["policy/kl_old"] == pytest.approx(sum(k3) / 3)


def test_clip_fractions_count_tokens_for_a_token_ratio() -> None:
    old = doubles([[0.0, 0.0, 0.0, 0.0]] * 2)
    logprobs = doubles([[0.5, -0.5, 0.0, 0.0], [0.5, -0.5, -0.5, 9.0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    result = policy_loss("grpo", logprobs, old, torch.tensor([1.0, -1.0]).double(), mask)
    assert result.diagnostics["objective/clip_high_fraction"] == pytest.approx(1 / 7)
    assert result.diagnostics["objective/clip_low_fraction"] == pytest.approx(2 / 7)


def test_clip_range_can_be_overridden_for_one_call() -> None:
    arguments = (doubles([[0.3]]), doubles([[0.0]]), torch.tensor([1.0]).double(), torch.ones(1, 1))
    assert policy_loss("grpo", *arguments).loss.item() == pytest.approx(-1.2)
    assert policy_loss("grpo", *arguments, clip_high=0.1).loss.item() == pytest.approx(-1.1)
    assert policy_loss(ObjectiveConfig("dapo"), *arguments, clip_high=0.25).loss.item() == pytest.approx(-1.25)
    below = (doubles([[-0.5]]), doubles([[0.0]]), torch.tensor([-1.0]).double(), torch.ones(1, 1))
    assert policy_loss("grpo", *below, clip_low=0.1).loss.item() == pytest.approx(0.9)


def test_counts_replace_the_numbers_of_the_given_rows() -> None:
    arguments = (doubles([[0.0, 0.0]]), doubles([[0.0, 0.0]]), torch.tensor([1.0]).double(), torch.ones(1, 2))
    counts = Counts(sequences=4, tokens=10)
    assert policy_loss("luspo", *arguments, counts=counts).loss.item() == pytest.approx(-2 / 4)
    assert policy_loss("gspo", *arguments, counts=counts).loss.item() == pytest.approx(-1 / 4)
    assert policy_loss("dapo", *arguments, counts=counts).loss.item() == pytest.approx(-2 / 10)
    norm = policy_loss("dr_grpo", *arguments, counts=counts, max_response_length=5).loss
    assert norm.item() == pytest.approx(-2 / (4 * 5))
