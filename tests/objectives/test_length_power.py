"""The exponent of the length: its ends are the named objectives, bit for bit; between them it is the formula."""

from __future__ import annotations

import math

import pytest
import torch
from loop_oracle import Batch, clipped_value
from ragged_batches import LIMIT, as_tensors, make_batch

from luspo_cli.config.objective import ObjectiveConfig, resolve
from luspo_cli.config.objective_text import describe
from luspo_cli.objectives import counts_of, policy_loss

LENGTHS = [3, 1, 9, 5, 2, 7]
PARTS = {"advantage": "group_mean_std", "ratio": "sequence", "surrogate": "clip", "clip_low": 2e-3, "clip_high": 2.5e-3}


def power(exponent: float, normalise: str = "none", **more: float) -> ObjectiveConfig:
    return resolve("length_power", length_exponent=exponent, length_normalise=normalise, **more)


ENDS = {
    "luspo": (power(1.0), resolve("luspo")),
    "gspo": (power(0.0, clip_low=3e-4, clip_high=4e-4), resolve("gspo")),
    "gspo, normalised": (power(0.0, "batch", clip_low=3e-4, clip_high=4e-4), resolve("gspo")),
    "token mean": (power(1.0, "batch"), resolve("custom", aggregation="token-mean", **PARTS)),
    "constant": (power(1.0, "delta-l"), resolve("custom", aggregation="seq-mean-token-sum-norm", **PARTS)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ENDS)
def test_the_ends_are_named_objectives_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    mine, named = ENDS[name]
    for seed, spread in ((1, 0.001), (2, 0.05)):
        found = []
        for config in (mine, named):
            for counted in (False, True):
                counts = counts_of(config, LENGTHS, [0.0] * 6, [0] * 6) if counted else None
                values = [value.detach() for value in as_tensors(make_batch(seed, LENGTHS, spread))]
                logprobs, old, advantages, mask = (v.to(dtype) if v.is_floating_point() else v for v in values)
                logprobs.requires_grad_(True)
                loss = policy_loss(
                    config, logprobs, old, advantages, mask, max_response_length=LIMIT, counts=counts
                ).loss
                found.append((loss.detach(), torch.autograd.grad(loss, logprobs)[0]))
        for other in found[1:]:
            assert torch.equal(found[0][0], other[0])
            assert torch.equal(found[0][1], other[1])


def test_luspos_end_is_luspo_under_none_alone() -> None:
    given = as_tensors(make_batch(1, LENGTHS, 0.001))
    luspo = policy_loss("luspo", *given).loss.item()
    assert policy_loss(power(1.0, "batch"), *given).loss.item() == pytest.approx(luspo / (sum(LENGTHS) / 6), rel=1e-12)
    assert policy_loss(power(1.0, "delta-l"), *given, max_response_length=LIMIT).loss.item() == pytest.approx(
        luspo / LIMIT, rel=1e-12
    )


def loops(batch: Batch, exponent: float, normalise: str) -> float:
    """Σ_i c |y_i|^p C(s_i, A_i) over floats."""
    lengths = [len(row) for row in batch.new]
    scale = {
        "none": 1 / len(lengths),
        "batch": 1 / sum(n**exponent for n in lengths),
        "delta-l": 1 / (LIMIT * sum(n ** (exponent - 1) for n in lengths)),
    }[normalise]
    terms = []
    for new, old, advantage in zip(batch.new, batch.old, batch.advantages, strict=True):
        ratio = math.exp(math.fsum(a - b for a, b in zip(new, old, strict=True)) / len(new))
        terms.append(-scale * len(new) ** exponent * clipped_value(ratio, advantage, 2e-3, 2.5e-3))
    return math.fsum(terms)


@pytest.mark.parametrize("normalise", ["none", "batch", "delta-l"])
@pytest.mark.parametrize("exponent", [-0.5, 0.0, 0.25, 0.5, 1.0, 1.5])
def test_value_and_gradient_equal_the_loops(exponent: float, normalise: str) -> None:
    batch = make_batch(5, LENGTHS, 0.002)
    logprobs, old, advantages, mask = as_tensors(batch)
    found = policy_loss(power(exponent, normalise), logprobs, old, advantages, mask, max_response_length=LIMIT)
    found.loss.backward()
    assert found.loss.item() == pytest.approx(loops(batch, exponent, normalise), rel=1e-12)
    expected = []
    for i, row in enumerate(batch.new):
        for t in range(len(row)):
            values = []
            for sign in (1, -1):
                moved = [list(r) for r in batch.new]
                moved[i][t] += sign * 1e-7
                values.append(loops(Batch(moved, batch.old, batch.advantages, batch.weights), exponent, normalise))
            expected.append((values[0] - values[1]) / 2e-7)
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad[mask], torch.tensor(expected).double(), rtol=1e-5, atol=1e-7)


def test_batch_weights_have_mean_one() -> None:
    """With equal advantages at ratio 1 the loss is minus the mean weight, whatever the exponent."""
    zeros, ones = torch.zeros(6, 9, dtype=torch.float64), torch.ones(6, dtype=torch.float64)
    mask = torch.arange(9) < torch.tensor(LENGTHS)[:, None]
    for exponent in (-1.0, 0.3, 2.0):
        found = policy_loss(power(exponent, "batch"), zeros, zeros, ones, mask)
        assert found.loss.item() == pytest.approx(-1, rel=1e-12)


def test_delta_l_is_its_authors_formula() -> None:
    """Token sums times |y|^-α over the mean of these, then over N and a constant: their code's order of operations."""
    batch, alpha = make_batch(9, LENGTHS, 0.0), 0.75
    logprobs, old, advantages, mask = as_tensors(batch)
    config = resolve(
        "custom",
        advantage="group_mean",
        ratio="token",
        surrogate="clip",
        aggregation="length-power",
        clip_low=0.2,
        clip_high=0.2,
        length_exponent=1 - alpha,
        length_normalise="delta-l",
    )
    found = policy_loss(config, logprobs, old, advantages, mask, max_response_length=LIMIT).loss
    reciprocal = [(n / (sum(LENGTHS) / 6)) ** -alpha for n in LENGTHS]
    scaled = [a * r / (sum(reciprocal) / 6) for a, r in zip(batch.advantages, reciprocal, strict=True)]
    expected = -sum(a * n for a, n in zip(scaled, LENGTHS, strict=True)) / 6 / LIMIT
    assert found.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("config", "equation"),
    [
        (power(0.5, "batch"), "(1/Σ_j |y_j|^0.5) Σ_i |y_i|^0.5 · min("),
        (power(1.5), "(1/N) Σ_i |y_i|^1.5 · min("),
        (power(0.25, "delta-l"), "(1/(L Σ_j |y_j|^-0.75)) Σ_i |y_i|^0.25 · min("),
    ],
)
def test_equations(config: ObjectiveConfig, equation: str) -> None:
    text = describe(config)
    assert equation in text.equation
    assert text.verl.startswith("no setting: its aggregations have no power of the length")


def test_peers_have_the_ends() -> None:
    assert "loss_agg_mode=seq-mean-token-sum " in describe(power(1.0)).verl
    assert 'loss_type="grpo"' in describe(power(0.0)).trl
