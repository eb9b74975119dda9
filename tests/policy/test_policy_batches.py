"""Packing and the policy's forward pass: budgets, padding, alignment of tokens and log-probs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from doubles.models import own_experts
from luspo_cli.policy.packing import Row, policy_batch, split_micro_batches, split_mini_batches
from luspo_cli.policy.policy import Policy
from luspo_cli.records import ScoredGroup

LENGTHS = [[3, 9, 1], [5, 5, 12], [2, 7, 4], [6, 0, 8]]
ADVANTAGES = [[1.0, -0.5, -0.5], [0.0, 0.0, 0.0], [0.0, 1.0, -1.0], [0.5, 0.2, -0.7]]


@pytest.fixture
def groups(make_groups: Callable[..., list[ScoredGroup]]) -> list[ScoredGroup]:
    return make_groups(LENGTHS, ADVANTAGES)


def rows_of(groups: list[ScoredGroup]) -> list[Row]:
    return [Row(r, a) for group in groups for r, a in zip(group.rollouts, group.advantages, strict=True)]


@pytest.mark.parametrize("budget", [1, 13, 25, 40, 1000])
def test_micro_batches_hold_every_row_once_within_the_budget(groups: list[ScoredGroup], budget: int) -> None:
    rows = rows_of(groups)
    batches = split_micro_batches(rows, budget)
    assert sorted(map(id, rows)) == sorted(id(row) for batch in batches for row in batch)
    widths = [row.width for batch in batches for row in batch]
    assert widths == sorted(widths, reverse=True)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * batch[0].width <= budget
    for batch in batches[:-1]:
        assert (len(batch) + 1) * batch[0].width > budget  # as few as the budget allows


def test_mini_batches_are_whole_groups_with_counts_of_all_their_rows(groups: list[ScoredGroup]) -> None:
    first, second = split_mini_batches(groups, 2, 1000)
    assert (first.sequences, first.response_tokens) == (6, 3 + 9 + 1 + 5 + 5 + 12)
    assert (second.sequences, second.response_tokens) == (5, 2 + 7 + 4 + 6 + 8)  # an empty response is no sequence
    assert [len(batch) for batch in first.with_advantage] == [3]
    assert [len(batch) for batch in first.without_advantage] == [3]
    assert {row.advantage for batch in second.without_advantage for row in batch} == {0.0}
    with pytest.raises(ValueError, match="4 groups do not divide into 3"):
        split_mini_batches(groups, 3, 1000)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_forward_against_the_models_own_logits(
    make_model: Callable[..., Any], groups: list[ScoredGroup], temperature: float
) -> None:
    model = make_model()
    rows = rows_of(groups)
    batch = policy_batch(rows)
    with torch.no_grad():
        logprobs, entropy = Policy(model, temperature)(batch, with_entropy=True)
    for i, row in enumerate(rows):
        length, start = row.rollout.response_length, len(row.rollout.prompt_tokens)
        ids = torch.tensor([row.rollout.prompt_tokens + row.rollout.response_tokens])
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0].double() / temperature
        log_softmax = logits.log_softmax(-1)[start - 1 : -1]
        expected = log_softmax.gather(1, ids[0, start:, None])[:, 0]
        assert torch.allclose(logprobs[i, :length].double(), expected, atol=1e-5)
        assert torch.allclose(entropy[i, :length].double(), -(log_softmax.exp() * log_softmax).sum(-1), atol=1e-5)
        assert not logprobs[i, length:].any()
        assert not entropy[i, length:].any()


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3Moe", "Qwen2Moe"])
def test_padding_and_micro_batches_change_nothing(
    make_model: Callable[..., Any], groups: list[ScoredGroup], family: str
) -> None:
    """Same rows with 0, 1 and 40 more columns, and each row alone: value and gradient, also of experts."""
    rows = [row for row in rows_of(groups) if row.rollout.response_length]

    def gradients(batches: list[list[Row]], padding: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        model = make_model(dtype="float64") if family == "Qwen2" else own_experts(26, family).double()
        policy, values = Policy(model, 1.0), []
        for batch in batches:
            logprobs, _ = policy(policy_batch(batch, padding=padding))
            (logprobs.sum(-1) * torch.tensor([row.width for row in batch])).sum().backward()
            values.append(logprobs.sum(-1))
        return torch.cat(values), [weight.grad for weight in model.parameters() if weight.grad is not None]

    value, gradient = gradients([rows], 0)
    for batches, padding in (([rows], 1), ([rows], 40), ([[row] for row in rows], 0), ([rows[:2], rows[2:]], 3)):
        other_value, other_gradient = gradients(batches, padding)
        assert torch.allclose(value, other_value, atol=1e-5)
        for one, other in zip(gradient, other_gradient, strict=True):
            assert (one - other).norm() <= 2e-6 * one.norm() + 1e-9


def test_what_stands_in_the_padding_is_never_read(make_model: Callable[..., Any], groups: list[ScoredGroup]) -> None:
    batch = policy_batch(rows_of(groups), padding=2)
    policy = Policy(make_model(), 1.0)
    with torch.no_grad():
        before, _ = policy(batch)
        for i, row in enumerate(rows_of(groups)):
            batch.tokens[i, row.width :] = 17
        after, _ = policy(batch)
    assert torch.equal(before, after)


def test_gradient_checkpointing_keeps_the_gradient(make_model: Callable[..., Any], groups: list[ScoredGroup]) -> None:
    batch, found = policy_batch(rows_of(groups)), []
    for checkpointing in (False, True):
        model = make_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        Policy(model, 1.0)(batch)[0].sum().backward()
        found.append(model.model.layers[0].mlp.up_proj.weight.grad)
    assert torch.allclose(*found, atol=1e-6)
    assert found[0].abs().max() > 0
