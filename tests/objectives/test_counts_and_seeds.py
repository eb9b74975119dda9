"""A number beside a row or a token equals that many of them; a leading axis equals as many calls."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from loop_oracle import FORMULAS
from ragged_batches import LIMIT, as_tensors, make_batch

from luspo_cli.config.objective import ObjectiveConfig, resolve
from luspo_cli.objectives import PolicyLoss, policy_loss

NAMES = list(FORMULAS)
EXTRAS = {"kl_coefficient": 0.3, "kl_estimator": "k3", "entropy_coefficient": 0.2}
TIGHT = {"rtol": 1e-12, "atol": 1e-14}
PER_TOKEN = ("logprobs", "old_logprobs", "response_mask", "ref_logprobs", "entropy", "rollout_weights")

Inputs = dict[str, torch.Tensor]


def inputs(seed: int, spread: float = 0.05) -> Inputs:
    """Everything that `policy_loss` reads, over five rows of which one is empty."""
    batch = make_batch(seed, [3, 1, 9, 0, 5], spread)
    logprobs, old, advantages, mask = as_tensors(batch)
    generator = torch.Generator().manual_seed(seed)

    def noise() -> torch.Tensor:
        return torch.rand(old.shape, generator=generator, dtype=torch.float64)

    return {
        "logprobs": logprobs.detach(),
        "old_logprobs": old,
        "advantages": advantages,
        "response_mask": mask,
        "ref_logprobs": old - 0.2 * noise(),
        "entropy": noise(),
        "rollout_weights": 0.5 + noise(),
    }


def compute(objective: str | ObjectiveConfig, given: Inputs) -> tuple[PolicyLoss, torch.Tensor]:
    """The result and the gradient that reaches `logprobs`."""
    logprobs = given["logprobs"].clone().requires_grad_(True)
    rest = {key: value for key, value in given.items() if key != "logprobs"}
    result = policy_loss(objective, logprobs, max_response_length=LIMIT, **rest)
    (gradient,) = torch.autograd.grad(result.loss.sum(), logprobs)
    return result, gradient


def with_terms(name: str) -> ObjectiveConfig:
    return replace(resolve(name), **EXTRAS)


def assert_same(left: PolicyLoss, right: PolicyLoss) -> None:
    torch.testing.assert_close(left.loss, right.loss, **TIGHT)
    assert left.diagnostics == pytest.approx(right.diagnostics, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("spread", [0.001, 0.5])
@pytest.mark.parametrize("name", NAMES)
def test_row_counts_equal_repeated_rows(name: str, spread: float) -> None:
    given, times = inputs(3, spread), torch.tensor([1, 4, 2, 3, 5])
    repeated = {key: value.repeat_interleave(times, dim=0) for key, value in given.items()}
    expected, gradient = compute(with_terms(name), repeated)
    found, own = compute(with_terms(name), given | {"row_counts": times})
    assert_same(found, expected)
    # A row's gradient is the sum of its copies'.
    copies = torch.stack([part.sum(dim=0) for part in gradient.split(times.tolist())])
    torch.testing.assert_close(own, copies, **TIGHT)


@pytest.mark.parametrize("spread", [0.001, 0.5])
@pytest.mark.parametrize("name", NAMES)
def test_token_counts_equal_repeated_tokens(name: str, spread: float) -> None:
    given, width = inputs(4, spread), 9
    times = torch.tensor([2, 1, 3, 1, 1, 4, 1, 2, 5])
    repeated = {
        key: value.repeat_interleave(times, dim=1) if key in PER_TOKEN else value for key, value in given.items()
    }
    expected, gradient = compute(with_terms(name), repeated)
    found, own = compute(with_terms(name), given | {"token_counts": times.expand(5, width)})
    assert_same(found, expected)
    copies = torch.stack([part.sum(dim=1) for part in gradient.split(times.tolist(), dim=1)], dim=1)
    torch.testing.assert_close(own, copies, **TIGHT)


def test_counts_of_one_change_no_bit() -> None:
    given = inputs(5)
    ones = {"row_counts": torch.ones(5), "token_counts": torch.ones(5, 9)}
    plain, gradient = compute(with_terms("luspo"), given)
    found, own = compute(with_terms("luspo"), given | ones)
    assert torch.equal(found.loss, plain.loss)
    assert torch.equal(own, gradient)


def test_row_counts_are_expectations_where_they_are_probabilities() -> None:
    # Two sequences of 2 and 3 tokens at ratio 1 with probabilities 1/4 and 3/4: luspo is -(1/4 * 2 * 1 + 3/4 * 3 * -2).
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    probabilities = torch.tensor([0.25, 0.75], dtype=torch.float64)
    advantages = torch.tensor([1.0, -2.0], dtype=torch.float64)
    found = policy_loss("luspo", zeros, zeros, advantages, mask, row_counts=probabilities)
    assert found.loss.item() == pytest.approx(4.0, abs=1e-15)


@pytest.mark.parametrize("name", NAMES)
def test_a_leading_axis_equals_separate_calls(name: str) -> None:
    seeds = [inputs(seed, spread) for seed, spread in ((1, 0.001), (2, 0.05), (3, 0.5))]
    for number, given in enumerate(seeds):
        given["row_counts"] = torch.arange(5, dtype=torch.float64) + number
        given["token_counts"] = torch.full((5, 9), number + 1.0, dtype=torch.float64)
    together, gradient = compute(with_terms(name), {key: torch.stack([s[key] for s in seeds]) for key in seeds[0]})
    assert together.loss.shape == (3,)
    assert together.diagnostics == {}
    for number, given in enumerate(seeds):
        alone, own = compute(with_terms(name), given)
        torch.testing.assert_close(together.loss[number], alone.loss, **TIGHT)
        torch.testing.assert_close(gradient[number], own, **TIGHT)
        assert torch.equal(together.clipped[number], alone.clipped)
        found = {key: float(value[number]) for key, value in together.by_batch.items()}
        assert found == pytest.approx(alone.diagnostics, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize(("name", "spread"), itertools.product(NAMES, [0.001, 0.05, 0.5]))
def test_clipped_marks_what_has_no_gradient(name: str, spread: float) -> None:
    given = inputs(6, spread)
    result, gradient = compute(name, {key: value for key, value in given.items() if key not in PER_TOKEN[3:]})
    mask = given["response_mask"]
    clipped = result.clipped.expand_as(mask)
    assert (gradient[mask & clipped] == 0).all()
    assert (gradient[mask & ~clipped] != 0).all()


def test_shapes_are_checked() -> None:
    given = inputs(7)
    with pytest.raises(ValueError, match=r"row_counts has shape \(4,\): give one number a sequence, \[5\]"):
        compute("luspo", given | {"row_counts": torch.ones(4)})
    with pytest.raises(ValueError, match=r"token_counts has shape \(5, 8\), logprobs \(5, 9\)"):
        compute("luspo", given | {"token_counts": torch.ones(5, 8)})
    with pytest.raises(ValueError, match=r"logprobs must be \[B, T\], or \[S, B, T\]"):
        compute("luspo", given | {"logprobs": torch.zeros(1, 1, 5, 9)})
