"""Rows laid end to end, each prompt once: their layout, and the same numbers and gradients as padded rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from luspo_cli.policy import joined_rows
from luspo_cli.policy.joined_rows import join_rows
from luspo_cli.policy.packing import PolicyBatch, policy_batch, rows_of
from luspo_cli.policy.policy import Policy
from luspo_cli.records import ScoredGroup

MakeGroups = Callable[..., list[ScoredGroup]]


def computed_tokens(model: Any, batch: PolicyBatch) -> int:
    """How many places of the batch the model's embedding is asked for."""
    asked: list[int] = []
    hook = model.model.embed_tokens.register_forward_hook(lambda _, inputs, __: asked.append(inputs[0].numel()))
    with torch.no_grad():
        Policy(model, 1.0)(batch)
    hook.remove()
    return sum(asked)


def test_a_layout_by_hand() -> None:
    """Two rows of one prompt `p q` with responses `a b c` and `d`, one row of prompt `r` with response `e f`."""
    joined = join_rows([("pq", 2), ("pq", 2), ("r", 1)], [3, 1, 2])
    # End to end: p q a b c | d | r e f, read from the padded rows `p q a b c`, `p q d . .`, `r e f . .`.
    assert joined.tokens.tolist() == [0, 1, 2, 3, 4, 7, 10, 11, 12]
    places = joined.places.tolist()
    assert (places[0], places[1][:3], places[2][:3]) == ([0, 1, 2, 3, 4], [0, 1, 5], [6, 7, 8])
    assert [block.rows for block in joined.blocks] == [3]  # too few tokens for a second block


def test_much_shorter_rows_are_padded_apart() -> None:
    """One row of 200 tokens, then rows of 180, 60 and 55: the last two are below three quarters of the first."""
    joined = join_rows([(name, 50) for name in "abcd"], [150, 130, 10, 5])
    assert [(block.rows, len(block.places) // block.rows) for block in joined.blocks] == [(2, 200), (2, 60)]
    assert [len(block.tokens) for block in joined.blocks] == [200 + 180, 60 + 55]
    first, second = joined.blocks
    assert second.tokens[60].item() == 60  # the fourth row's first token stands in the second row of its block
    assert torch.equal(first.places[first.tokens], torch.arange(380))
    assert torch.equal(second.places[second.tokens], torch.arange(380, 495))


def test_a_prompt_is_computed_once_a_batch_and_padding_never(
    make_model: Callable[..., Any], make_groups: MakeGroups
) -> None:
    groups = make_groups([[3, 9, 1], [5, 5, 12]], [[1.0, -0.5, -0.5], [0.5, 0.2, -0.7]])
    batch = policy_batch([row for group in groups for row in rows_of(group)], padding=6)
    prompts = sum(len(group.rollouts[0].prompt_tokens) for group in groups)
    assert computed_tokens(make_model(), batch) == prompts + 3 + 9 + 1 + 5 + 5 + 12


@pytest.mark.parametrize("worth", [joined_rows.WORTH_A_BLOCK, 0])
def test_joined_rows_give_the_numbers_and_gradients_of_padded_ones(
    make_model: Callable[..., Any], make_groups: MakeGroups, monkeypatch: pytest.MonkeyPatch, worth: int
) -> None:
    """In one block and in several."""
    monkeypatch.setattr(joined_rows, "WORTH_A_BLOCK", worth)
    groups = make_groups([[3, 9, 1], [5, 0, 12]], [[1.0, -0.5, -0.5], [0.5, 0.2, -0.7]])
    batch = policy_batch([row for group in groups for row in rows_of(group)], padding=2)
    weights = torch.linspace(0.5, 2.0, batch.response_mask.numel()).view(batch.response_mask.shape)
    assert batch.joined is not None
    assert (len(batch.joined.blocks) > 1) == (worth == 0)
    found = []
    for of in (
        batch,
        PolicyBatch(batch.tokens, batch.prompt_lengths, batch.response_mask, batch.advantages, batch.group_ids),
    ):
        model = make_model(dtype="float64")
        logprobs, entropy = Policy(model, 0.7)(of, with_entropy=True)
        ((logprobs + 0.1 * entropy) * weights).sum().backward()
        found.append((logprobs, [weight.grad for weight in model.parameters() if weight.grad is not None]))
    (joined, gradients), (padded, expected) = found
    assert torch.allclose(joined, padded, atol=1e-6)
    for one, other in zip(gradients, expected, strict=True):
        assert (one - other).norm() <= 2e-6 * other.norm() + 1e-9


def test_a_model_that_keeps_the_layout_from_its_layers_gets_padded_rows(
    make_model: Callable[..., Any], make_groups: MakeGroups
) -> None:
    (group,) = make_groups([[3, 9, 1]], [[1.0, -0.5, -0.5]])
    batch = policy_batch(rows_of(group))
    deaf, plain = make_model(), make_model()
    inner = deaf.model.forward
    deaf.model.forward = lambda *args, joined_rows=None, **kwargs: inner(*args, **kwargs)
    policy = Policy(deaf, 1.0)
    with torch.no_grad():
        expected, _ = Policy(plain, 1.0)(batch)
        for _ in range(2):  # found out in the first pass, remembered in the second
            assert torch.allclose(policy(policy_batch(rows_of(group)))[0], expected, atol=1e-5)
