"""What must hold between objectives, and between one batch and its parts."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from loop_oracle import FORMULAS, Batch
from ragged_batches import LIMIT, as_tensors, make_batch, pad

from luspo_cli.config.objective import ObjectiveConfig
from luspo_cli.objectives import Counts, policy_loss
from luspo_cli.objectives.diagnostics import combine_diagnostics

NAMES = list(FORMULAS)
EXTRAS = {"kl_coefficient": 0.3, "kl_estimator": "k3", "entropy_coefficient": 0.2}
TIGHT = {"rtol": 1e-11, "atol": 1e-13}


def gradient_of(loss: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor:
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return gradient


def run(name: str, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    logprobs, old, advantages, mask = as_tensors(batch)
    loss = policy_loss(name, logprobs, old, advantages, mask, max_response_length=LIMIT).loss
    return loss.detach(), gradient_of(loss, logprobs)


def full(name: str, batch: Batch, rows: list[int], width: int, side: str = "right", fill: float = 0.0, counts=None):
    """Loss, ragged gradient and diagnostics of some rows with KL, entropy and rollout weights switched on."""
    part = Batch(*([field[i] for i in rows] for field in (batch.new, batch.old, batch.advantages, batch.weights)))
    logprobs, old, advantages, mask = as_tensors(part, width, side, fill)
    reference = pad([[x - 0.1 * (t % 3) for t, x in enumerate(row)] for row in part.old], width, side, fill)
    entropy = pad([[0.5 + 0.01 * x for x in row] for row in part.old], width, side, fill)
    result = policy_loss(
        ObjectiveConfig(name, **EXTRAS),
        logprobs,
        old,
        advantages,
        mask,
        max_response_length=LIMIT,
        counts=counts,
        ref_logprobs=reference,
        entropy=entropy,
        rollout_weights=pad(part.weights, width, side, fill),
    )
    gradient = gradient_of(result.loss, logprobs)
    ragged = [row[keep] for row, keep in zip(gradient, mask, strict=True)]
    assert (gradient[~mask] == 0).all()
    return result.loss.detach(), ragged, result.diagnostics


def assert_same_rows(left: list[torch.Tensor], right: list[torch.Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, **TIGHT)


def assert_same_diagnostics(left: dict[str, float], right: dict[str, float]) -> None:
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert value == pytest.approx(right[key], rel=1e-9, abs=1e-12), key


# --- between objectives ---


def test_luspo_is_gspo_with_each_sequence_weighted_by_its_length(batch: Batch) -> None:
    clip = {"clip_low": 2e-3, "clip_high": 2.5e-3}
    logprobs, old, advantages, mask = as_tensors(batch)
    luspo = policy_loss("luspo", logprobs, old, advantages, mask).loss
    lengths = [len(row) for row in batch.new]
    total, gradient = torch.zeros((), dtype=torch.float64), torch.zeros_like(logprobs)
    for i, length in enumerate(lengths):
        one = policy_loss("gspo", logprobs[i : i + 1], old[i : i + 1], advantages[i : i + 1], mask[i : i + 1], **clip)
        total = total + length * one.loss.detach() / len(lengths)
        gradient += length * gradient_of(one.loss, logprobs) / len(lengths)
    torch.testing.assert_close(luspo.detach(), total, **TIGHT)
    torch.testing.assert_close(gradient_of(luspo, logprobs), gradient, **TIGHT)


def test_at_equal_lengths_luspo_is_length_times_gspo() -> None:
    batch = make_batch(11, [6] * 5, 0.002)
    logprobs, old, advantages, mask = as_tensors(batch)
    luspo = policy_loss("luspo", logprobs, old, advantages, mask, clip_low=3e-4, clip_high=4e-4).loss
    gspo = policy_loss("gspo", logprobs, old, advantages, mask).loss
    torch.testing.assert_close(luspo, 6 * gspo, **TIGHT)
    torch.testing.assert_close(gradient_of(luspo, logprobs), 6 * gradient_of(gspo, logprobs), **TIGHT)


def test_sequence_ratio_equals_its_stop_gradient_form_per_token(batch: Batch) -> None:
    # The form of verl's gspo: sg(s) · π_t / sg(π_t), clipped and summed token by token.
    logprobs, old, advantages, mask = as_tensors(batch)
    luspo = policy_loss("luspo", logprobs, old, advantages, mask).loss
    log_ratio = (logprobs - old) * mask
    log_s = (log_ratio.sum(-1) / mask.sum(-1)).detach()[:, None]
    per_token = torch.exp(log_s + logprobs - logprobs.detach())
    a = advantages[:, None]
    losses = torch.maximum(-a * per_token, -a * per_token.clamp(1 - 2e-3, 1 + 2.5e-3))
    expected = (losses * mask).sum() / len(batch.new)
    torch.testing.assert_close(luspo, expected, **TIGHT)
    torch.testing.assert_close(gradient_of(luspo, logprobs), gradient_of(expected, logprobs), **TIGHT)


def test_sequence_ratio_with_token_mean_is_luspo_over_the_mean_length(batch: Batch) -> None:
    parts = {
        "advantage": "group_mean_std",
        "ratio": "sequence",
        "surrogate": "clip",
        "clip_low": 2e-3,
        "clip_high": 2.5e-3,
    }
    logprobs, old, advantages, mask = as_tensors(batch)
    mixed = policy_loss(
        ObjectiveConfig("custom", aggregation="token-mean", **parts), logprobs, old, advantages, mask
    ).loss
    luspo = policy_loss("luspo", logprobs, old, advantages, mask).loss
    mean_length = mask.sum().item() / len(batch.new)
    torch.testing.assert_close(mixed, luspo / mean_length, **TIGHT)
    same = policy_loss(
        ObjectiveConfig("custom", aggregation="seq-mean-token-sum", **parts), logprobs, old, advantages, mask
    ).loss
    assert same.item() == luspo.item()


def test_before_the_first_update_token_and_sequence_ratio_have_one_gradient() -> None:
    batch = make_batch(2, [3, 7, 1], 0.0)
    grpo, gspo = run("grpo", batch), run("gspo", batch)
    torch.testing.assert_close(grpo[1], gspo[1], **TIGHT)
    torch.testing.assert_close(grpo[0], gspo[0], **TIGHT)
    moved = make_batch(2, [3, 7, 1], 1e-4)
    assert not torch.allclose(run("grpo", moved)[1], run("gspo", moved)[1], rtol=1e-6)


def test_gspo_gives_short_and_long_sequences_one_gradient_norm_per_unit_of_score() -> None:
    # Sequence ratio with summed tokens would weight the long one 100-fold without saying so (luspo says so).
    norms = {}
    for name, length in itertools.product(("gspo", "luspo"), (2, 200)):
        logprobs = torch.zeros(1, length, dtype=torch.float64, requires_grad=True)
        loss = policy_loss(name, logprobs, logprobs.detach(), torch.ones(1).double(), torch.ones(1, length)).loss
        norms[name, length] = gradient_of(loss, logprobs).sum().abs().item()
    assert norms["gspo", 2] == pytest.approx(norms["gspo", 200]) == pytest.approx(1.0)
    assert norms["luspo", 200] == pytest.approx(100 * norms["luspo", 2]) == pytest.approx(200.0)
    with pytest.raises(ValueError, match="gspo fixes aggregation"):
        ObjectiveConfig("gspo", aggregation="seq-mean-token-sum")


def test_dapo_has_one_weight_for_every_token_of_the_batch() -> None:
    logprobs, old, _, mask = as_tensors(make_batch(4, [1, 9], 0.0))
    loss = policy_loss("dapo", logprobs, old, torch.ones(2).double(), mask).loss
    torch.testing.assert_close(gradient_of(loss, logprobs)[mask], torch.full((10,), -0.1).double())


# --- one batch and its parts ---


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("fill", [0.0, -50.0, float("nan"), float("inf"), float("-inf")])
def test_padding_changes_nothing(name: str, side: str, fill: float) -> None:
    batch = make_batch(7, [3, 1, 9, 5, 2], 0.05)
    rows = list(range(5))
    value, gradient, diagnostics = full(name, batch, rows, 9)
    for width in (9, 10, 40):
        padded = full(name, batch, rows, width, side, fill)
        torch.testing.assert_close(padded[0], value, **TIGHT)
        assert_same_rows(padded[1], gradient)
        assert_same_diagnostics(padded[2], diagnostics)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", [[1] * 10, [2] * 5, [4, 4, 2], [3, 7], [9, 1]], ids=str)
def test_micro_batches_sum_to_the_batch(name: str, split: list[int]) -> None:
    # Uneven windows, each padded to its own longest row, as an engine does. Ranks are the same sum.
    lengths = [3, 1, 9, 5, 2, 12, 7, 1, 4, 6]
    batch = make_batch(13, lengths, 0.05)
    counts = Counts(sequences=10, tokens=sum(lengths))
    value, gradient, diagnostics = full(name, batch, list(range(10)), 12)
    order = iter(range(10))
    parts = [[next(order) for _ in range(size)] for size in split]
    results = [full(name, batch, rows, max(lengths[i] for i in rows), counts=counts) for rows in parts]
    torch.testing.assert_close(sum(r[0] for r in results), value, **TIGHT)
    assert_same_rows([row for r in results for row in r[1]], gradient)
    assert_same_diagnostics(combine_diagnostics(r[2] for r in results), diagnostics)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_that_average_gradients_times_their_number(name: str, ranks: int) -> None:
    # DDP and FSDP average over D ranks, so each rank's loss is multiplied by D: the number of ranks must cancel.
    lengths = [3, 1, 9, 5, 2, 12, 7, 1]
    batch = make_batch(17, lengths, 0.05)
    counts = Counts(sequences=8, tokens=sum(lengths))
    value, gradient, _ = full(name, batch, list(range(8)), 12)
    results = [full(name, batch, list(range(rank, 8, ranks)), 12, counts=counts) for rank in range(ranks)]
    torch.testing.assert_close(sum(ranks * r[0] for r in results) / ranks, value, **TIGHT)
    for rank, result in enumerate(results):
        assert_same_rows(result[1], gradient[rank::ranks])


@pytest.mark.parametrize("name", NAMES)
def test_row_order_does_not_matter(name: str) -> None:
    batch = make_batch(19, [3, 1, 9, 5, 2, 8], 0.05)
    order = list(range(6))
    random.Random(0).shuffle(order)
    value, gradient, diagnostics = full(name, batch, list(range(6)), 9)
    shuffled = full(name, batch, order, 9)
    torch.testing.assert_close(shuffled[0], value, **TIGHT)
    assert_same_rows(shuffled[1], [gradient[i] for i in order])
    assert_same_diagnostics(shuffled[2], diagnostics)


@pytest.mark.parametrize("name", NAMES)
def test_masking_a_row_equals_deleting_it(name: str) -> None:
    batch = make_batch(23, [3, 4, 9, 5], 0.05)
    value, gradient, diagnostics = full(name, batch, [0, 2, 3], 9)
    masked = Batch(*([[] if i == 1 else row for i, row in enumerate(f)] for f in (batch.new, batch.old)), [], [])
    masked.advantages = [float("nan") if i == 1 else a for i, a in enumerate(batch.advantages)]
    masked.weights = [[] if i == 1 else w for i, w in enumerate(batch.weights)]
    result = full(name, masked, [0, 1, 2, 3], 9, fill=float("nan"))
    torch.testing.assert_close(result[0], value, **TIGHT)
    assert_same_rows([result[1][i] for i in (0, 2, 3)], gradient)
    assert_same_diagnostics(result[2], diagnostics)


@pytest.mark.parametrize("name", ["grpo", "gspo", "luspo"])
def test_constant_number_of_sequences_is_available_through_counts(name: str) -> None:
    # verl divides by mini-batch size times group size whether rows are empty or not: 4 here, where 3 have tokens.
    batch = make_batch(29, [3, 4, 5], 0.05)
    own = full(name, batch, [0, 1, 2], 5)[0]
    constant = full(name, batch, [0, 1, 2], 5, counts=Counts(sequences=4, tokens=12))[0]
    torch.testing.assert_close(constant, own * 3 / 4, **TIGHT)
