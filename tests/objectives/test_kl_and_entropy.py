"""The KL and entropy terms alone (advantages zero), their scale, and the rollout weights."""

from __future__ import annotations

import math

import pytest
import torch
from loop_oracle import FORMULAS
from ragged_batches import LIMIT, as_tensors, make_batch, pad

from luspo_cli.config.objective import ObjectiveConfig
from luspo_cli.objectives import policy_loss

NAMES = list(FORMULAS)
LENGTHS = [3, 1, 9, 5]
ESTIMATORS = {
    "k1": lambda d: d,
    "k2": lambda d: d * d / 2,
    "k3": lambda d: math.exp(-d) - 1 + d,
}
SLOPES = {"k1": lambda d: 1.0, "k2": lambda d: d, "k3": lambda d: 1 - math.exp(-d)}


def per_token_weights(name: str) -> list[float]:
    weight = FORMULAS[name][2]
    return [weight(n, len(LENGTHS), sum(LENGTHS), LIMIT) for n in LENGTHS]


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", NAMES)
def test_kl_term_alone(name: str, estimator: str) -> None:
    batch = make_batch(3, LENGTHS, 0.05)
    logprobs, old, advantages, mask = as_tensors(batch)
    gaps = [[0.1 * (t + 1) * (-1) ** i for t in range(n)] for i, n in enumerate(LENGTHS)]
    reference = logprobs.detach() - pad(gaps, 9)
    config = ObjectiveConfig(name, kl_coefficient=0.5, kl_estimator=estimator)
    result = policy_loss(config, logprobs, old, 0 * advantages, mask, max_response_length=LIMIT, ref_logprobs=reference)
    result.loss.backward()
    weights = per_token_weights(name)
    term = sum(w * ESTIMATORS[estimator](d) for w, row in zip(weights, gaps, strict=True) for d in row)
    assert result.loss.item() == pytest.approx(0.5 * term, rel=1e-10)
    assert result.diagnostics["objective/kl_term"] == pytest.approx(term, rel=1e-10)
    assert result.diagnostics["objective/policy_term"] == 0
    k3 = sum(ESTIMATORS["k3"](d) for row in gaps for d in row) / sum(LENGTHS)
    assert result.diagnostics["policy/kl_ref"] == pytest.approx(k3, rel=1e-10)
    slopes = pad([[0.5 * w * SLOPES[estimator](d) for d in row] for w, row in zip(weights, gaps, strict=True)], 9)
    torch.testing.assert_close(logprobs.grad, slopes, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_entropy_term_alone(name: str) -> None:
    logprobs, old, advantages, mask = as_tensors(make_batch(3, LENGTHS, 0.05))
    values = [[1.0 + 0.1 * t for t in range(n)] for n in LENGTHS]
    entropy = pad(values, 9, fill=float("nan")).requires_grad_(True)
    config = ObjectiveConfig(name, entropy_coefficient=0.25)
    result = policy_loss(config, logprobs, old, 0 * advantages, mask, max_response_length=LIMIT, entropy=entropy)
    result.loss.backward()
    weights = per_token_weights(name)
    term = sum(w * h for w, row in zip(weights, values, strict=True) for h in row)
    assert result.loss.item() == pytest.approx(-0.25 * term, rel=1e-10)
    assert result.diagnostics["objective/entropy_term"] == pytest.approx(term, rel=1e-10)
    mean = sum(h for row in values for h in row) / sum(LENGTHS)
    assert result.diagnostics["policy/entropy"] == pytest.approx(mean, rel=1e-10)
    torch.testing.assert_close(
        entropy.grad, pad([[-0.25 * w] * n for w, n in zip(weights, LENGTHS, strict=True)], 9), rtol=1e-10, atol=1e-13
    )


def test_all_terms_share_one_scale() -> None:
    # Policy term, KL and entropy of luspo are each |y| times gspo's at equal lengths: no term changes its balance.
    logprobs, old, advantages, mask = as_tensors(make_batch(5, [6] * 4, 0.0))
    terms = {}
    for name in ("gspo", "luspo"):
        config = ObjectiveConfig(name, kl_coefficient=0.5, entropy_coefficient=0.25)
        extra = {"ref_logprobs": old - 0.3, "entropy": torch.ones_like(old)}
        terms[name] = policy_loss(config, logprobs, old, advantages, mask, **extra).diagnostics
    for key in ("objective/policy_term", "objective/kl_term", "objective/entropy_term", "objective/loss"):
        assert terms["luspo"][key] == pytest.approx(6 * terms["gspo"][key], rel=1e-12)
    assert terms["luspo"]["policy/kl_ref"] == pytest.approx(terms["gspo"]["policy/kl_ref"])


def test_loss_is_the_sum_of_its_terms() -> None:
    logprobs, old, advantages, mask = as_tensors(make_batch(5, LENGTHS, 0.05))
    config = ObjectiveConfig("luspo", kl_coefficient=0.5, entropy_coefficient=0.25)
    d = policy_loss(
        config, logprobs, old, advantages, mask, ref_logprobs=old - 0.3, entropy=torch.ones_like(old)
    ).diagnostics
    plain = policy_loss("luspo", logprobs, old, advantages, mask).diagnostics
    assert d["objective/policy_term"] == plain["objective/loss"]
    expected = d["objective/policy_term"] + 0.5 * d["objective/kl_term"] - 0.25 * d["objective/entropy_term"]
    assert d["objective/loss"] == pytest.approx(expected, rel=1e-12)


def test_entropy_and_reference_without_a_coefficient_are_only_reported() -> None:
    logprobs, old, advantages, mask = as_tensors(make_batch(5, LENGTHS, 0.05))
    entropy = torch.ones_like(old, requires_grad=True)
    result = policy_loss("luspo", logprobs, old, advantages, mask, ref_logprobs=old - 0.3, entropy=entropy)
    result.loss.backward()
    assert entropy.grad is None
    assert result.loss.item() == policy_loss("luspo", logprobs, old, advantages, mask).loss.item()
    assert result.diagnostics["policy/entropy"] == pytest.approx(1.0)
    assert "objective/kl_term" not in result.diagnostics


@pytest.mark.parametrize("name", ["gspo", "luspo"])
@pytest.mark.parametrize("length", [10, 1000])
def test_one_gap_per_token_weighs_the_same_at_any_length(name: str, length: int) -> None:
    # An engine-mismatch weight must be averaged over tokens: the same per-token weight, the same effect at any length.
    logprobs = torch.zeros(1, length, dtype=torch.float64, requires_grad=True)
    arguments = (name, logprobs, logprobs.detach(), torch.ones(1).double(), torch.ones(1, length))
    plain = policy_loss(*arguments).loss.item()
    weighted = policy_loss(*arguments, rollout_weights=torch.full((1, length), 0.7, dtype=torch.float64)).loss.item()
    assert weighted / plain == pytest.approx(0.7, rel=1e-12)
    assert plain == pytest.approx(-length if name == "luspo" else -1.0)


def test_rollout_weights_never_change_the_length_weight_or_the_other_terms() -> None:
    logprobs, old, advantages, mask = as_tensors(make_batch(5, LENGTHS, 0.001))
    config = ObjectiveConfig("luspo", kl_coefficient=0.5)
    plain = policy_loss(config, logprobs, old, advantages, mask, ref_logprobs=old - 0.3).diagnostics
    weights = torch.where(mask, 0.5, float("nan")).double()
    half = policy_loss(
        config, logprobs, old, advantages, mask, ref_logprobs=old - 0.3, rollout_weights=weights
    ).diagnostics
    assert half["objective/policy_term"] == pytest.approx(plain["objective/policy_term"] / 2, rel=1e-12)
    for key in plain.keys() - {"objective/policy_term", "objective/loss"}:
        assert half[key] == plain[key], key
