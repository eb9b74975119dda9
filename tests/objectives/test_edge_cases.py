"""Empty rows, garbage at padding, extreme ratios, low precision, and inputs that must be refused."""

from __future__ import annotations

import math

import pytest
import torch
from loop_oracle import FORMULAS
from ragged_batches import LIMIT, as_tensors, make_batch

from luspo_cli.config.objective import ObjectiveConfig, resolve
from luspo_cli.objectives import Counts, policy_loss

NAMES = list(FORMULAS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("counts", [None, Counts(0, 0), Counts(8, 100)], ids=["own", "nothing", "global"])
def test_a_batch_without_a_token_has_loss_zero_and_gradient_zero(name: str, counts: Counts | None) -> None:
    logprobs = torch.full((3, 4), float("nan"), requires_grad=True)
    result = policy_loss(
        name,
        logprobs,
        torch.full((3, 4), float("nan")),
        torch.full((3,), float("nan")),
        torch.zeros(3, 4),
        max_response_length=LIMIT,
        counts=counts,
    )
    result.loss.backward()
    assert result.loss.item() == 0
    assert (logprobs.grad == 0).all()
    assert "ratio/min" not in result.diagnostics
    assert "ratio/max" not in result.diagnostics
    assert all(math.isfinite(value) for value in result.diagnostics.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(0, 4), (3, 0)], ids=["no_rows", "no_columns"])
def test_empty_tensors(name: str, shape: tuple[int, int]) -> None:
    logprobs = torch.zeros(shape, requires_grad=True)
    result = policy_loss(
        name, logprobs, torch.zeros(shape), torch.ones(shape[0]), torch.ones(shape), max_response_length=LIMIT
    )
    result.loss.backward()
    assert result.loss.item() == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [1e4, -1e4, 88.0, -88.0, 20.0, 10.0, float("inf")])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_extreme_ratios_stay_finite(name: str, dtype: torch.dtype, shift: float, advantage: float) -> None:
    logprobs = torch.tensor([[-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0]], dtype=dtype, requires_grad=True)
    old = torch.full((2, 3), -1.0, dtype=dtype)
    old[0] -= shift  # a whole row
    old[1, 1] -= shift  # one token among ordinary ones
    result = policy_loss(
        name, logprobs, old, torch.tensor([advantage, advantage]), torch.ones(2, 3), max_response_length=LIMIT
    )
    result.loss.backward()
    assert math.isfinite(result.loss.item())
    assert torch.isfinite(logprobs.grad).all()
    assert all(math.isfinite(value) for value in result.diagnostics.values())


def test_clamps_are_those_documented() -> None:
    def loss_and_slope(name: str, log_ratio: float) -> tuple[float, float]:
        logprobs = torch.tensor([[log_ratio]], dtype=torch.float64, requires_grad=True)
        loss = policy_loss(name, logprobs, torch.zeros(1, 1).double(), torch.tensor([-1.0]), torch.ones(1, 1)).loss
        loss.backward()
        assert logprobs.grad is not None
        return loss.item(), logprobs.grad.item()

    assert loss_and_slope("grpo", 19.0) == pytest.approx((math.exp(19), math.exp(19)))
    assert loss_and_slope("grpo", 25.0) == pytest.approx((math.exp(20), 0.0))
    assert loss_and_slope("gspo", 9.0) == pytest.approx((math.exp(9), math.exp(9)))
    assert loss_and_slope("gspo", 12.0) == pytest.approx((math.exp(10), 0.0))


def test_nan_at_a_trained_position_is_not_hidden() -> None:
    logprobs = torch.tensor([[float("nan"), -1.0]], requires_grad=True)
    result = policy_loss("luspo", logprobs, torch.zeros(1, 2), torch.ones(1), torch.ones(1, 2))
    assert math.isnan(result.loss.item())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float32, torch.bfloat16])
def test_masks_of_any_type(name: str, dtype: torch.dtype) -> None:
    logprobs, old, advantages, mask = as_tensors(make_batch(1, [3, 5, 1], 0.05))
    expected = policy_loss(name, logprobs, old, advantages, mask, max_response_length=LIMIT)
    result = policy_loss(name, logprobs, old, advantages, mask.to(dtype), max_response_length=LIMIT)
    assert result.loss.item() == expected.loss.item()
    assert result.diagnostics == expected.diagnostics


@pytest.mark.parametrize("name", NAMES)
def test_low_precision_inputs_are_computed_in_float32(name: str) -> None:
    # What is lost is the rounding of the inputs, nothing in between: equal to float32 arithmetic on the rounded values.
    logprobs, old, advantages, mask = as_tensors(make_batch(1, [30, 50, 10], 0.05))
    rounded = [x.detach().bfloat16() for x in (logprobs, old, advantages)]
    low = policy_loss(name, *rounded, mask, max_response_length=LIMIT)
    high = policy_loss(name, *[x.float() for x in rounded], mask, max_response_length=LIMIT)
    assert low.loss.dtype == torch.float32
    assert low.loss.item() == high.loss.item()
    assert policy_loss(name, logprobs, old, advantages, mask, max_response_length=LIMIT).loss.dtype == torch.float64


@pytest.mark.parametrize("name", NAMES)
def test_error_does_not_grow_with_length(name: str) -> None:
    # 8192 tokens: float32 within 1e-5 of float64 on the same inputs; bf16 inputs within what their rounding explains.
    generator = torch.Generator().manual_seed(0)
    length = 8192
    old = -torch.empty(4, length, dtype=torch.float64).exponential_(1.0, generator=generator)
    new = old + 1e-3 * torch.randn(4, length, dtype=torch.float64, generator=generator)
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5], dtype=torch.float64)
    lengths = torch.tensor([length, 100, 5000, 1])[:, None]
    mask = torch.arange(length)[None] < lengths

    def run(dtype: torch.dtype) -> tuple[float, torch.Tensor]:
        logprobs = new.detach().to(dtype, copy=True).requires_grad_(True)
        loss = policy_loss(name, logprobs, old.to(dtype), advantages, mask, max_response_length=length).loss
        loss.backward()
        return loss.item(), logprobs.grad.double()

    exact, single, half = run(torch.float64), run(torch.float32), run(torch.bfloat16)
    size = exact[1].abs().sum().item()
    assert abs(single[0] - exact[0]) < 1e-5 * size
    assert (single[1] - exact[1]).abs().sum().item() < 1e-5 * size
    if name == "vespo":  # its weight is of the sum of 8192 rounded log-ratios, and has no gradient that would say so
        return
    # A log-prob of magnitude 1 is rounded by up to 2^-9 in bf16; the loss moves by at most that per unit of gradient.
    assert abs(half[0] - exact[0]) < 2**-6 * size
    if name not in (
        "gspo",
        "luspo",
        "fspo",
    ):  # rounding alone flips their narrow clip, and moves a product of 8192 ratios
        assert (half[1] - exact[1]).abs().sum().item() < 2**-5 * size


@pytest.mark.parametrize("name", NAMES)
def test_old_logprobs_advantages_and_weights_get_no_gradient(name: str) -> None:
    logprobs, old, advantages, mask = as_tensors(make_batch(1, [3, 5, 1], 0.05))
    old.requires_grad_(True)
    advantages.requires_grad_(True)
    weights = torch.ones_like(logprobs, requires_grad=True)
    reference = torch.zeros_like(logprobs, requires_grad=True)
    policy_loss(
        ObjectiveConfig(name, kl_coefficient=0.1),
        logprobs,
        old,
        advantages,
        mask,
        max_response_length=LIMIT,
        ref_logprobs=reference,
        rollout_weights=weights,
    ).loss.backward()
    assert all(tensor.grad is None for tensor in (old, advantages, weights, reference))
    assert logprobs.grad is not None


def test_diagnostics_cost_no_gradient_and_are_floats() -> None:
    logprobs, old, advantages, mask = as_tensors(make_batch(1, [3, 5, 1], 0.05))
    result = policy_loss("luspo", logprobs, old, advantages, mask)
    assert all(type(value) is float for value in result.diagnostics.values())
    assert result.diagnostics["objective/loss"] == result.loss.item()
    assert set(result.diagnostics) == {
        "objective/loss",
        "objective/clip_low_fraction",
        "objective/clip_high_fraction",
        "ratio/mean",
        "ratio/min",
        "ratio/max",
        "policy/kl_old",
    }


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"objective": "lupso"}, "did you mean 'luspo'"),
        ({"objective": "dr_grpo"}, "pass max_response_length"),
        ({"objective": "dr_grpo", "max_response_length": 0}, "pass max_response_length"),
        ({"objective": "sapo", "clip_high": 0.1}, "does not read clip_high"),
        ({"logprobs": torch.zeros(6)}, r"logprobs must be \[B, T\]"),
        ({"old_logprobs": torch.zeros(2, 4)}, "old_logprobs has shape"),
        ({"response_mask": torch.ones(3, 2)}, "response_mask has shape"),
        ({"advantages": torch.zeros(2, 3)}, "one number a sequence"),
        ({"advantages": torch.zeros(3)}, "one number a sequence"),
        ({"rollout_weights": torch.ones(2, 1)}, "rollout_weights has shape"),
        ({"ref_logprobs": torch.ones(2, 1)}, "ref_logprobs has shape"),
        ({"objective": resolve("luspo", kl_coefficient=0.1)}, "pass ref_logprobs"),
        ({"objective": resolve("luspo", entropy_coefficient=0.1)}, "pass entropy"),
    ],
)
def test_bad_inputs_are_refused_with_a_sentence(change: dict[str, object], sentence: str) -> None:
    arguments: dict[str, object] = {
        "objective": "luspo",
        "logprobs": torch.zeros(2, 3),
        "old_logprobs": torch.zeros(2, 3),
        "advantages": torch.zeros(2),
        "response_mask": torch.ones(2, 3),
    }
    with pytest.raises(ValueError, match=sentence):
        policy_loss(**{**arguments, **change})  # type: ignore[arg-type]


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        Counts(-1, 3)
