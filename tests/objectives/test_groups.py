"""Objectives that know which responses answer one prompt: loops, parts of a batch, and what they are at the edges."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from group_oracle import GROUP_FORMULAS, group_gradient, group_loss
from loop_oracle import Batch
from ragged_batches import LIMIT, as_tensors, make_batch, pad

from luspo_cli.config.objective import ObjectiveConfig, resolve
from luspo_cli.objectives import Counts, PolicyLoss, counts_of, policy_loss
from luspo_cli.objectives.aggregation import BatchSize
from luspo_cli.objectives.diagnostics import combine_diagnostics, length_pressure
from luspo_cli.objectives.row_values import RowValues

NAMES = list(GROUP_FORMULAS)
TIGHT = {"rtol": 1e-12, "atol": 1e-14}
LENGTHS = [3, 1, 9, 5, 2, 12, 7, 0, 4, 6]
GROUPS = [0, 0, 1, 1, 1, 2, 0, 2, 2, 3]
SIGNS = [1.2, -0.3, 0.7, 0.0, -0.9, 0.8, -0.9, 0.4, -0.2, 0.0]


def grouped(seed: int, spread: float) -> Batch:
    """Groups of unequal size, one of them of a row without signal, with an empty row and with advantages that are 0."""
    batch = make_batch(seed, LENGTHS, spread)
    batch.advantages = list(SIGNS)
    return batch


def compute(
    objective: str | ObjectiveConfig, batch: Batch, rows: list[int], counts: Counts | None = None
) -> tuple[PolicyLoss, list[torch.Tensor]]:
    """The result and the ragged gradient of some rows with KL, entropy and rollout weights."""
    config = resolve(objective) if isinstance(objective, str) else objective
    config = replace(config, kl_coefficient=0.3, entropy_coefficient=0.2)
    part = Batch(*([field[i] for i in rows] for field in (batch.new, batch.old, batch.advantages, batch.weights)))
    width = max((len(row) for row in part.new), default=0)
    logprobs, old, advantages, mask = as_tensors(part, width)
    result = policy_loss(
        config,
        logprobs,
        old,
        advantages,
        mask,
        max_response_length=LIMIT,
        counts=counts,
        ref_logprobs=old - 0.1,
        entropy=0.5 - 0.1 * old,
        rollout_weights=pad(part.weights, width),
        group_ids=torch.tensor([GROUPS[i] for i in rows]),
    )
    (gradient,) = torch.autograd.grad(result.loss, logprobs)
    return result, [row[keep] for row, keep in zip(gradient, mask, strict=True)]


@pytest.mark.parametrize("spread", [0.001, 0.05, 0.5])
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_equal_the_loops(name: str, spread: float) -> None:
    batch = grouped(7, spread)
    logprobs, old, advantages, mask = as_tensors(batch)
    weights = pad(batch.weights, logprobs.shape[1])
    ids = torch.tensor(GROUPS)
    result = policy_loss(name, logprobs, old, advantages, mask, rollout_weights=weights, group_ids=ids)
    result.loss.backward()
    assert logprobs.grad is not None
    assert result.loss.item() == pytest.approx(group_loss(name, batch, GROUPS), rel=1e-12)
    expected = torch.tensor(group_gradient(name, batch, GROUPS), dtype=torch.float64)
    torch.testing.assert_close(logprobs.grad[mask], expected, rtol=1e-6, atol=1e-8)


def test_by_hand() -> None:
    """Two prompts at ratio 1: tokens 2, 6 and 4, 4; advantages 1, -1 and 2, -2. Losses are minus what is written here."""
    mask = torch.arange(6) < torch.tensor([2, 6, 4, 4])[:, None]
    zeros, ids = torch.zeros(4, 6, dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    advantages = torch.tensor([1.0, -1.0, 2.0, -2.0], dtype=torch.float64)
    # Of 8 tokens each: (2 - 6)/8 and (8 - 8)/8, then their mean.
    found = policy_loss("dapo_prompt_mean", zeros, zeros, advantages, mask, group_ids=ids)
    assert found.loss.item() == pytest.approx(0.25, abs=1e-15)
    assert found.rows.weight.tolist() == pytest.approx([4 / 16] * 4)
    # One half of each sign's token mean: what is longer pulls no more.
    found = policy_loss("balanced", zeros, zeros, advantages, mask, group_ids=ids)
    assert found.loss.item() == pytest.approx(0.0, abs=1e-15)
    assert found.rows.weight.tolist() == pytest.approx([4 / 8, 4 / 24, 4 / 16, 4 / 16])


def test_one_prompt_is_dapo_bit_for_bit() -> None:
    batch = make_batch(3, [3, 1, 9, 5], 0.3)
    given = as_tensors(batch)
    ids = torch.zeros(4, dtype=torch.long)
    assert torch.equal(policy_loss("dapo_prompt_mean", *given, group_ids=ids).loss, policy_loss("dapo", *given).loss)


def test_a_prompt_for_each_response_is_grpos_aggregation() -> None:
    given, ids = as_tensors(make_batch(3, [3, 1, 9, 5], 0.3)), torch.arange(4)
    grpo = policy_loss("grpo", *given, clip_high=0.28).loss
    for name in NAMES:
        torch.testing.assert_close(policy_loss(name, *given, group_ids=ids).loss, grpo, **TIGHT)


def test_at_equal_lengths_all_of_them_are_dapo() -> None:
    given, ids = as_tensors(make_batch(3, [4] * 6, 0.3)), torch.tensor([0, 1, 0, 1, 0, 1])
    dapo = policy_loss("dapo", *given).loss
    for name in NAMES:
        torch.testing.assert_close(policy_loss(name, *given, group_ids=ids).loss, dapo, **TIGHT)


CONFIGS: dict[str, ObjectiveConfig] = {name: resolve(name) for name in NAMES} | {
    f"{normalise} {exponent}": resolve("length_power", length_exponent=exponent, length_normalise=normalise)
    for normalise, exponent in (("batch", 0.5), ("batch", 1.5), ("delta-l", 0.25), ("delta-l", -1.0))
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("split", [[1] * 10, [4, 4, 2], [3, 7], [0, 2, 4, 6, 8]], ids=str)
def test_parts_with_the_counts_of_the_whole_sum_to_it(name: str, split: list[int]) -> None:
    """Groups are torn apart by every split; the last one takes every second row, as ranks do."""
    config, batch = CONFIGS[name], grouped(13, 0.3)
    whole, gradient = compute(config, batch, list(range(10)))
    counts = counts_of(config, LENGTHS, SIGNS, GROUPS)
    order = iter(range(10))
    parts = [[next(order) for _ in range(size)] for size in split] if sum(split) == 10 else [split, [1, 3, 5, 7, 9]]
    results = [compute(config, batch, rows, counts) for rows in parts]
    torch.testing.assert_close(sum(r[0].loss for r in results), whole.loss, **TIGHT)
    for rows, (_, own) in zip(parts, results, strict=True):
        for row, found in zip(rows, own, strict=True):
            torch.testing.assert_close(found, gradient[row], **TIGHT)
    assert combine_diagnostics(r[0].diagnostics for r in results) == pytest.approx(whole.diagnostics, rel=1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_order_padding_and_group_numbers_do_not_matter(name: str) -> None:
    config, batch = CONFIGS[name], grouped(17, 0.3)
    whole, gradient = compute(config, batch, list(range(10)))
    order = [5, 9, 0, 3, 7, 1, 8, 2, 6, 4]
    shuffled, own = compute(config, batch, order)
    torch.testing.assert_close(shuffled.loss, whole.loss, **TIGHT)
    for row, found in zip(order, own, strict=True):
        torch.testing.assert_close(found, gradient[row], **TIGHT)
    nan = float("nan")
    values = []
    for width, side, names in ((12, "right", [0, 1, 2, 3]), (20, "left", [7, 2, 0, 5])):
        logprobs, old, advantages, mask = as_tensors(batch, width, side, nan)
        ids = torch.tensor([names[group] for group in GROUPS])
        values.append(
            policy_loss(config, logprobs, old, advantages, mask, max_response_length=LIMIT, group_ids=ids).loss
        )
    torch.testing.assert_close(values[0], values[1], **TIGHT)


@pytest.mark.parametrize("name", CONFIGS)
def test_masking_a_row_equals_deleting_it(name: str) -> None:
    config, batch = CONFIGS[name], grouped(23, 0.3)
    rest = [i for i in range(10) if i != 2]
    without, gradient = compute(config, batch, rest)
    batch.new[2] = batch.old[2] = batch.weights[2] = []
    batch.advantages[2] = float("nan")
    masked, own = compute(config, batch, list(range(10)))
    torch.testing.assert_close(masked.loss, without.loss, **TIGHT)
    for row, expected in zip(rest, gradient, strict=True):
        torch.testing.assert_close(own[row], expected, **TIGHT)


@pytest.mark.parametrize("name", CONFIGS)
def test_row_and_token_counts_equal_repeated_ones(name: str) -> None:
    config = CONFIGS[name]
    logprobs, old, advantages, mask = as_tensors(grouped(3, 0.3))
    ids, times, of_tokens = (
        torch.tensor(GROUPS),
        torch.tensor([1, 4, 2, 3, 1, 2, 1, 1, 2, 3]),
        torch.arange(1, 13) % 3 + 1,
    )
    rows = [value.detach().repeat_interleave(times, dim=0) for value in (logprobs, old, advantages, mask)]
    wide = [value.repeat_interleave(of_tokens, dim=1) if value.dim() == 2 else value for value in rows]
    repeated = policy_loss(config, *wide, max_response_length=LIMIT, group_ids=ids.repeat_interleave(times))  # type: ignore[call-arg]
    counted = policy_loss(
        config,
        logprobs.detach(),
        old,
        advantages,
        mask,
        max_response_length=LIMIT,
        row_counts=times,
        token_counts=of_tokens.expand(10, 12),
        group_ids=ids,
    )
    torch.testing.assert_close(counted.loss, repeated.loss, **TIGHT)
    assert counted.diagnostics == pytest.approx(repeated.diagnostics, rel=1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_leading_axis_equals_separate_calls(name: str) -> None:
    given = [as_tensors(grouped(seed, 0.3)) for seed in (1, 2, 3)]
    ids = torch.stack([torch.tensor(GROUPS), torch.tensor(GROUPS).flip(0), torch.arange(10) % 3])
    together = policy_loss(
        CONFIGS[name],
        *(torch.stack([seed[place].detach() for seed in given]) for place in range(4)),
        max_response_length=LIMIT,
        group_ids=ids,
    )
    for number, seed in enumerate(given):
        alone = policy_loss(CONFIGS[name], *seed, max_response_length=LIMIT, group_ids=ids[number])
        torch.testing.assert_close(together.loss[number], alone.loss, **TIGHT)
        torch.testing.assert_close(together.rows.weight[number], alone.rows.weight, **TIGHT)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_weight_is_what_a_log_prob_moves_the_loss_by(name: str) -> None:
    logprobs, _, advantages, mask = as_tensors(grouped(7, 0.1))
    ids = torch.tensor(GROUPS)
    given = (logprobs, logprobs.detach(), advantages, mask)
    result = policy_loss(CONFIGS[name], *given, max_response_length=LIMIT, group_ids=ids)
    (gradient,) = torch.autograd.grad(result.loss, logprobs)
    torch.testing.assert_close(gradient, -(advantages * result.rows.weight)[:, None] / 9 * mask, rtol=1e-12, atol=1e-15)


def test_what_is_missing_is_asked_for() -> None:
    given = as_tensors(grouped(1, 0.1))
    for name in NAMES:
        with pytest.raises(ValueError, match=f"{name}.* pass group_ids"):
            policy_loss(name, *given)
        with pytest.raises(ValueError, match=r"needs counts\.groups"):
            policy_loss(name, *given, group_ids=torch.tensor(GROUPS), counts=Counts(9, 49))
        with pytest.raises(ValueError, match=f"weights of {name} follow from the groups"):
            length_pressure([1.0], [2], name)
    with pytest.raises(ValueError, match=r"needs counts\.length_power_sum"):
        policy_loss(CONFIGS["batch 0.5"], *given, counts=Counts(9, 49))
    with pytest.raises(ValueError, match=r"delta-l.* pass max_response_length"):
        policy_loss(CONFIGS["delta-l 0.25"], *given)
    with pytest.raises(ValueError, match=r"group_ids has shape \(3,\)"):
        policy_loss("balanced", *given, group_ids=torch.zeros(3, dtype=torch.long))


def test_group_ids_change_nothing_else() -> None:
    given = as_tensors(grouped(1, 0.1))
    for name in ("luspo", "dapo", "vespo"):
        assert torch.equal(
            policy_loss(name, *given).loss, policy_loss(name, *given, group_ids=torch.tensor(GROUPS)).loss
        )


def test_an_empty_batch_is_zero() -> None:
    nothing = torch.zeros(2, 3, dtype=torch.float64)
    for config in CONFIGS.values():
        found = policy_loss(
            config,
            nothing,
            nothing,
            torch.ones(2),
            torch.zeros(2, 3),
            max_response_length=LIMIT,
            group_ids=torch.tensor([0, 1]),
        )
        assert found.loss.item() == 0
        assert isinstance(found.rows, RowValues)
    assert BatchSize(0, 0).divisors is None
