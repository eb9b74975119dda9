"""The balanced clip range: b against a search by definition, hand-made cases, and that only the whole mini-batch decides."""

from __future__ import annotations

import math
import random

import pytest
import torch
from loop_oracle import Batch
from ragged_batches import as_tensors, make_batch

from luspo_cli.config.objective import ObjectiveConfig, resolve
from luspo_cli.config.objective_text import describe
from luspo_cli.config.peers import trl_settings, verl_settings
from luspo_cli.objectives import Counts, policy_loss
from luspo_cli.objectives.balance import CutPoints, balanced_shift, cut_points, shifted
from luspo_cli.objectives.diagnostics import combine_diagnostics
from luspo_cli.objectives.ratio import token_log_ratio

RANGE = {"clip_low": 0.02, "clip_high": 0.03}
FORMS = [("gspo", "mean"), ("luspo", "mean"), ("gspo", "root"), ("luspo", "sum"), ("fspo", "root")]


def balanced(name: str, form: str, **values: float) -> ObjectiveConfig:
    return resolve(name, clip_on=form, clip_band="balanced", **(RANGE | values))


def wide_batch(seed: int, spread: float = 0.02) -> Batch:
    """40 rows, so that there is something to balance."""
    rng = random.Random(seed)
    return make_batch(seed, [rng.randint(1, 9) for _ in range(40)], spread)


def masses(config: ObjectiveConfig, batch: Batch, b: float) -> tuple[float, float]:
    """Σ |A| times the weight of one token over the sequences cut below and above at b, by definition."""
    low, high = config.clip_low * math.exp(b), config.clip_high * math.exp(-b)
    found = [0.0, 0.0]
    for new, old, advantage in zip(batch.new, batch.old, batch.advantages, strict=True):
        n = len(new)
        total = math.fsum(a - c for a, c in zip(new, old, strict=True))
        place = {"mean": math.exp(total / n) - 1, "root": total / math.sqrt(n), "sum": total}[config.clip_on]
        weight = {"gspo": 1 / n, "luspo": 1, "fspo": 1}[config.name]
        if advantage < 0 and place < -low:
            found[0] += abs(advantage) * weight
        if advantage > 0 and place > high:
            found[1] += abs(advantage) * weight
    return found[0], found[1]


def shift_of(config: ObjectiveConfig, batch: Batch) -> float:
    logprobs, old, advantages, mask = as_tensors(batch)
    return float(balanced_shift(cut_points(config, token_log_ratio(logprobs, old, mask), mask, advantages)))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("name", "form"), FORMS)
def test_no_other_shift_balances_better(name: str, form: str, seed: int) -> None:
    config, batch = balanced(name, form), wide_batch(seed)
    b = shift_of(config, batch)

    def imbalance(shift: float) -> float:
        low, high = masses(config, batch, shift)
        return abs(low - high)

    grid = [step / 500 for step in range(-4000, 4001)]
    least = min(map(imbalance, grid))
    assert imbalance(b) <= least + 1e-9
    # Nothing nearer to 0 is as good, but for the distance that b keeps from the points where a sequence is on its bound.
    nearer = [abs(shift) for shift in grid if imbalance(shift) <= imbalance(b) + 1e-9]
    assert abs(b) <= min(nearer, default=math.inf) + 0.1 + 1 / 500
    low, high = masses(config, batch, b)
    largest = max(
        abs(a) * (1 / len(row) if name == "gspo" else 1) for a, row in zip(batch.advantages, batch.new, strict=True)
    )
    assert abs(low - high) <= largest / 2 + 1e-9


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_the_loss_is_that_of_the_fixed_range_with_the_bounds_found(name: str, form: str) -> None:
    config, batch = balanced(name, form), wide_batch(11, 0.1)
    b = shift_of(config, batch)
    assert b != 0
    logprobs, old, advantages, mask = as_tensors(batch)
    found = policy_loss(config, logprobs, old, advantages, mask)
    low, high = shifted(config.clip_low, config.clip_high, b)
    fixed = policy_loss(resolve(name, clip_on=form, clip_low=low, clip_high=high), logprobs, old, advantages, mask)
    torch.testing.assert_close(found.loss, fixed.loss, rtol=1e-12, atol=0)
    assert torch.equal(found.clipped, fixed.clipped)
    own = torch.autograd.grad(found.loss, logprobs)[0]
    torch.testing.assert_close(own, torch.autograd.grad(fixed.loss, logprobs)[0], rtol=1e-12, atol=0)
    # What is cut on the two sides, counted from the marks of the loss, is what the search by definition says.
    cut = found.clipped[:, 0]
    weight = 1 / mask.sum(-1).double() if name == "gspo" else torch.ones(len(mask))
    for side, total in zip((advantages < 0, advantages > 0), masses(config, batch, b), strict=True):
        assert float((advantages.abs() * weight)[cut & side].sum()) == pytest.approx(total, rel=1e-12)


def points(rows: list[tuple[float, float, bool]]) -> CutPoints:
    point, mass, below = zip(*rows, strict=True)
    return CutPoints(
        torch.tensor(point, dtype=torch.float64), torch.tensor(mass, dtype=torch.float64), torch.tensor(below)
    )


@pytest.mark.parametrize(
    ("rows", "b"),
    [
        # Nothing is on a side: the bounds stay.
        ([(math.inf, 0.0, False)], 0.0),
        # One below at 1, one above at −1, of equal mass: at 0 both are cut.
        ([(1.0, 2.0, True), (-1.0, 2.0, False)], 0.0),
        # The one below is the heavier: at 0 they differ by 1, beyond 1 by 2, below −1 by 3.
        ([(1.0, 3.0, True), (-1.0, 2.0, False)], 0.0),
        # Only one is cut, below at 0.5: beyond it nothing is, on either side. b keeps 0.1 from it.
        ([(0.5, 1.0, True), (math.inf, 0.0, False)], 0.6),
        ([(0.5, 1.0, True), (0.54, 1.0, False)], 0.52),  # between them neither is cut
        ([(0.54, 1.0, True), (0.5, 1.0, False)], 0.52),  # between them both are
        ([(-0.5, 1.0, False)], -0.6),
        # Three below of mass 1 and one above of mass 2: one of three must come free, the nearest to its bound.
        ([(1.0, 1.0, True), (2.0, 1.0, True), (3.0, 1.0, True), (-2.0, 2.0, False)], 1.1),
        # Two points at the same place are passed together: differences 2, 0 and not 1.
        ([(1.0, 1.0, True), (1.0, 1.0, True), (2.0, 1e-6, False)], 1.1),
    ],
)
def test_shifts_by_hand(rows: list[tuple[float, float, bool]], b: float) -> None:
    assert float(balanced_shift(points(rows))) == pytest.approx(b, abs=1e-9)
    assert float(balanced_shift(points(rows[::-1]))) == pytest.approx(b, abs=1e-9)


def test_the_masses_by_hand() -> None:
    # One token each, log-ratios −0.05, −0.03, +0.04; sums against 0.02 and 0.03: points ln(5/2), ln(3/2), ln(3/4).
    log_ratio = torch.tensor([[-0.05], [-0.03], [0.04], [0.04], [-0.01]]).double()
    advantages = torch.tensor([-1.0, -2.0, 0.5, -1.0, 0.0]).double()
    found = cut_points(balanced("luspo", "sum"), log_ratio, torch.ones(5, 1).bool(), advantages)
    assert found.mass.tolist() == [1.0, 2.0, 0.5, 0.0, 0.0]
    assert found.below.tolist()[:3] == [True, True, False]
    assert found.point.tolist()[:3] == pytest.approx([math.log(2.5), math.log(1.5), math.log(0.75)])
    # Cut below and above: 3 and 0.5 at 0, 1 and 0.5 beyond ln 1.5, 0 and 0.5 beyond ln 2.5. The second is the first to
    # differ by 0.5 only.
    assert float(balanced_shift(found)) == pytest.approx(math.log(1.5) + 0.1)


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_micro_batches_take_the_shift_of_the_whole(name: str, form: str) -> None:
    config, batch = balanced(name, form), wide_batch(5)
    logprobs, old, advantages, mask = as_tensors(batch)
    whole = policy_loss(config, logprobs, old, advantages, mask)
    counts, shuffled = Counts(len(mask), float(mask.sum())), torch.randperm(40)
    log_ratio = token_log_ratio(logprobs, old, mask)
    split = [shuffled[:7], shuffled[7:8], shuffled[8:]]
    parts = [cut_points(config, log_ratio[own], mask[own], advantages[own]) for own in split]
    b = float(balanced_shift(CutPoints(*(torch.cat(found) for found in zip(*parts, strict=True)))))
    assert b == pytest.approx(shift_of(config, batch), abs=1e-12)
    results = [
        policy_loss(config, logprobs[own], old[own], advantages[own], mask[own], counts=counts, clip_shift=b)
        for own in split
    ]
    torch.testing.assert_close(sum(part.loss for part in results), whole.loss, rtol=1e-12, atol=1e-14)
    for own, part in zip(split, results, strict=True):
        assert torch.equal(part.clipped, whole.clipped[own])
    combined = combine_diagnostics(part.diagnostics for part in results)
    assert combined == pytest.approx(whole.diagnostics, rel=1e-12, abs=1e-14)
    with pytest.raises(ValueError, match="pass clip_shift, that of the whole mini-batch"):
        policy_loss(config, logprobs, old, advantages, mask, counts=counts)
    with pytest.raises(ValueError, match="clip_band is not 'balanced': leave it out"):
        policy_loss("luspo", logprobs, old, advantages, mask, clip_shift=0.1)


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_each_batch_of_a_leading_axis_has_its_own(name: str, form: str) -> None:
    config = balanced(name, form)
    seeds = [as_tensors(wide_batch(seed, spread), width=9) for seed, spread in ((1, 0.01), (2, 0.02), (3, 0.1))]
    together = policy_loss(config, *(torch.stack(parts) for parts in zip(*seeds, strict=True)))
    for number, given in enumerate(seeds):
        alone = policy_loss(config, *given)
        torch.testing.assert_close(together.loss[number], alone.loss, rtol=1e-12, atol=1e-14)
        assert torch.equal(together.clipped[number], alone.clipped)


def test_counts_of_rows_and_tokens_are_repeated_rows_and_tokens() -> None:
    config, batch = balanced("gspo", "sum"), wide_batch(8)
    logprobs, old, advantages, mask = as_tensors(batch)
    times = torch.tensor([1, 3, 2, 1] * 10)
    repeated = [part.repeat_interleave(times, dim=0) for part in (logprobs, old, advantages, mask)]
    found = policy_loss(config, logprobs, old, advantages, mask, row_counts=times)
    torch.testing.assert_close(found.loss, policy_loss(config, *repeated).loss, rtol=1e-12, atol=1e-14)
    twice = [part.repeat_interleave(2, dim=1) for part in (logprobs, old)]
    found = policy_loss(config, logprobs, old, advantages, mask, token_counts=torch.full(mask.shape, 2.0))
    expected = policy_loss(config, *twice, advantages, mask.repeat_interleave(2, dim=1))
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-12, atol=1e-14)


def test_before_the_policy_has_moved_nothing_is_cut() -> None:
    _, old, advantages, mask = as_tensors(wide_batch(4))
    result = policy_loss(balanced("luspo", "mean"), old.clone().requires_grad_(True), old, advantages, mask)
    assert not result.clipped.any()
    assert result.loss.item() == policy_loss("luspo", old, old, advantages, mask).loss.item()


def test_rows_that_are_not_finite_decide_nothing() -> None:
    config, batch = balanced("luspo", "mean"), wide_batch(9)
    expected = shift_of(config, batch)
    logprobs, old, advantages, mask = as_tensors(batch)
    log_ratio = token_log_ratio(logprobs.detach(), old, mask)
    log_ratio = torch.cat([log_ratio, torch.full((1, log_ratio.shape[1]), math.nan)])
    mask = torch.cat([mask, torch.ones_like(mask[:1])])
    advantages = torch.cat([advantages, advantages[:1]])
    assert float(balanced_shift(cut_points(config, log_ratio, mask, advantages))) == expected


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"name": "grpo", "clip_band": "balanced"},
            "clip_band = 'balanced' needs surrogate 'clip' and one ratio a sequence",
        ),
        ({"name": "gmpo", "clip_band": "fixed"}, "gmpo has surrogate 'gmpo' and ratio 'token': remove it"),
        ({"name": "gspo", "clip_band": "balance"}, "clip_band = 'balance' is not one of fixed, balanced .did you mean"),
    ],
)
def test_refusals(values: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as raised:
        ObjectiveConfig(**values)
    assert "\n" not in str(raised.value)


def test_the_text_is_the_equation_as_executed() -> None:
    text = describe(resolve("gspo", clip_band="balanced"))
    assert text.equation == "L = −(1/N) Σ_i min(s_i A_i, clip(s_i, 1−0.0003 e^b, 1+0.0004 e^−b) A_i)"
    assert text.clip_range == "1 − 0.0003 to 1 + 0.0004, balanced in each mini-batch"
    assert "Σ|A_i|/|y_i| over the sequences cut below" in "".join(text.definitions)
    text = describe(balanced("luspo", "sum"))
    assert "clip(s_i, exp(−0.02 e^b/|y_i|), exp(0.03 e^−b/|y_i|))" in text.equation
    assert "Σ|A_i| over the sequences cut below" in "".join(text.definitions)
    for settings in (trl_settings, verl_settings):
        assert settings(balanced("luspo", "mean")).missing == "its clip range is fixed"
