"""`clip_on`: which sequences are cut, where the value stands, and that nothing else changes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from loop_oracle import Batch
from ragged_batches import as_tensors, make_batch

from luspo_cli.config.objective import ObjectiveConfig, resolve
from luspo_cli.config.objective_text import describe
from luspo_cli.config.peers import trl_settings, verl_settings
from luspo_cli.objectives import Counts, PolicyLoss, policy_loss
from luspo_cli.objectives.diagnostics import combine_diagnostics
from luspo_cli.objectives.ratio import ClipPosition, sequence_ratio
from luspo_cli.objectives.surrogate import clip_surrogate

FORMS = ("mean", "root", "sum")
POWERS = {"mean": 0.0, "root": 0.5, "sum": 1.0}
TIGHT = {"rtol": 1e-12, "atol": 1e-14}
RANGE = {"clip_low": 0.02, "clip_high": 0.03}


def rows(values: list[list[float]]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def two_lengths(position: float, advantage: float) -> tuple[torch.Tensor, ...]:
    """One response of 4 tokens and one of 16 with the same mean log-ratio `position` a token."""
    mask = torch.arange(16) < torch.tensor([[4], [16]])
    logprobs = (mask.double() * position).requires_grad_(True)
    return logprobs, torch.zeros(2, 16, dtype=torch.float64), rows([[advantage, advantage]])[0], mask


@pytest.mark.parametrize(
    ("form", "position", "advantage", "cut"),
    [
        # |y| = 4 and 16 at mean 0.01: root 0.02 and 0.04, sum 0.04 and 0.16, against 0.03 above and 0.02 below.
        ("root", 0.01, 1.0, [False, True]),
        ("sum", 0.01, 1.0, [True, True]),
        ("sum", 0.001, 1.0, [False, False]),
        ("sum", 0.005, 1.0, [False, True]),
        ("root", 0.02, 1.0, [True, True]),
        ("root", -0.008, -1.0, [False, True]),  # −0.016 and −0.032
        ("sum", -0.003, -1.0, [False, True]),  # −0.012 and −0.048
        ("root", 0.01, -1.0, [False, False]),  # away from the old policy in the direction that the advantage opposes
        ("sum", -0.01, 1.0, [False, False]),
        ("mean", 0.01, 1.0, [False, False]),
        ("mean", 0.0299, 1.0, [True, True]),  # the ratio is 1.03035: for the mean the bound is 1.03
    ],
)
def test_which_sequences_are_cut(form: str, position: float, advantage: float, cut: list[bool]) -> None:
    logprobs, old, advantages, mask = two_lengths(position, advantage)
    result = policy_loss(resolve("luspo", clip_on=form, **RANGE), logprobs, old, advantages, mask)
    result.loss.backward()
    assert result.clipped.squeeze(-1).tolist() == cut
    assert [bool((own == 0).all()) for own in logprobs.grad] == cut
    side = "high" if advantage > 0 else "low"
    assert result.diagnostics[f"objective/clip_{side}_fraction"] == pytest.approx(sum(cut) / 2)


def test_a_cut_sequence_stands_where_its_scale_meets_the_bound() -> None:
    # 16 tokens at mean 0.01 under gspo: the sum bound 0.03 is a mean of 0.03/16, the root bound a mean of 0.03/4.
    logprobs, old, advantages, mask = two_lengths(0.01, 1.0)
    for form, mean in (("sum", 0.03 / 16), ("root", 0.03 / 4)):
        config = resolve("gspo", clip_on=form, **RANGE)
        loss = policy_loss(config, logprobs[1:], old[1:], advantages[1:], mask[1:]).loss
        assert loss.item() == pytest.approx(-math.exp(mean), rel=1e-14)
    # fspo's ratio is the product: exp(0.16) cut at exp(0.03 · √16).
    loss = policy_loss("fspo", logprobs[1:], old[1:], advantages[1:], mask[1:]).loss
    assert loss.item() == pytest.approx(-math.exp(0.12), rel=1e-14)
    # Four tokens: exp(0.04) against exp(0.06), not cut.
    loss = policy_loss("fspo", logprobs[:1], old[:1], advantages[:1], mask[:1]).loss
    assert loss.item() == pytest.approx(-math.exp(0.04), rel=1e-14)


def loop_loss(config: ObjectiveConfig, batch: Batch) -> float:
    """The equation as it is printed, over floats."""
    power, terms = POWERS[config.clip_on or ""], []
    for new, old, advantage in zip(batch.new, batch.old, batch.advantages, strict=True):
        n = len(new)
        mean = math.fsum(a - b for a, b in zip(new, old, strict=True)) / n
        lower, upper = -config.clip_low / n**power, config.clip_high / n**power
        if config.clip_on == "mean":
            lower, upper = math.log(1 - config.clip_low), math.log(1 + config.clip_high)
        reach = n if config.ratio == "sequence-product" else 1
        ratio, bounded = math.exp(mean * reach), math.exp(min(max(mean, lower), upper) * reach)
        value = min(ratio * advantage, bounded * advantage)
        if config.dual_clip is not None and advantage < 0:
            value = max(value, config.dual_clip * advantage)
        terms.append((n if config.aggregation == "seq-mean-token-sum" else 1) * value)
    return -math.fsum(terms) / len(terms)


def configurations() -> list[ObjectiveConfig]:
    found = [resolve(name, clip_on=form, **RANGE) for name in ("gspo", "luspo") for form in FORMS]
    found += [replace(config, dual_clip=1.02) for config in found]
    parts = {"advantage": "group_mean", "ratio": "sequence-product", "surrogate": "clip"}
    return [
        *found,
        resolve("fspo"),
        resolve("custom", **parts, aggregation="seq-mean-token-sum", clip_on="sum", **RANGE),
    ]


@pytest.mark.parametrize("config", configurations(), ids=lambda c: f"{c.name}-{c.ratio}-{c.clip_on}-{c.dual_clip}")
def test_value_and_gradient_equal_the_loop(config: ObjectiveConfig, batch: Batch) -> None:
    logprobs, old, advantages, mask = as_tensors(batch)
    result = policy_loss(config, logprobs, old, advantages, mask)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(loop_loss(config, batch), rel=1e-12)
    expected, step = [], 1e-6
    for i, row in enumerate(batch.new):
        for t in range(len(row)):
            values = []
            for sign in (1, -1):
                moved = [list(other) for other in batch.new]
                moved[i][t] += sign * step
                values.append(loop_loss(config, replace(batch, new=moved)))
            expected.append((values[0] - values[1]) / (2 * step))
    torch.testing.assert_close(logprobs.grad[mask], torch.tensor(expected).double(), rtol=1e-5, atol=1e-8)
    clipped = result.clipped.expand_as(mask)
    assert (logprobs.grad[mask & clipped] == 0).all()
    assert (logprobs.grad[mask & ~clipped] != 0).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["gspo", "luspo"])
def test_what_is_not_cut_has_the_gradient_without_a_clip(name: str, form: str, batch: Batch) -> None:
    def gradient(config: ObjectiveConfig) -> tuple[PolicyLoss, torch.Tensor]:
        logprobs, old, advantages, mask = as_tensors(batch)
        result = policy_loss(config, logprobs, old, advantages, mask)
        result.loss.backward()
        return result, logprobs.grad

    found, own = gradient(resolve(name, clip_on=form, **RANGE))
    _, free = gradient(resolve(name, clip_low=1.0, clip_high=1e9))
    assert torch.equal(own, torch.where(found.clipped, 0, free))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["gspo", "luspo"])
def test_the_mean_is_the_clip_of_the_ratio_bit_for_bit(name: str, dtype: torch.dtype, batch: Batch) -> None:
    """As written in GSPO's equation 5: the smaller of ratio times advantage and clamped ratio times advantage."""
    logprobs, old, advantages, mask = as_tensors(batch)
    logprobs, old, advantages = logprobs.detach().to(dtype).requires_grad_(True), old.to(dtype), advantages.to(dtype)
    config = resolve(name, clip_on="mean")
    assert config == resolve(name)
    result = policy_loss(config, logprobs, old, advantages, mask)
    ratio = sequence_ratio(torch.where(mask, logprobs - old, 0), mask)
    bounded = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    value = -torch.minimum(ratio * advantages[:, None], bounded * advantages[:, None])
    lengths = mask.sum(-1, keepdim=True)
    weights = mask.to(dtype) / len(lengths)
    if name == "gspo":
        weights = weights / lengths
    expected = (weights * value).sum()
    assert result.loss.item() == expected.item()
    assert torch.equal(torch.autograd.grad(result.loss, logprobs)[0], torch.autograd.grad(expected, logprobs)[0])


@pytest.mark.parametrize("config", configurations(), ids=lambda c: f"{c.name}-{c.ratio}-{c.clip_on}-{c.dual_clip}")
def test_the_split_into_micro_batches_changes_nothing(config: ObjectiveConfig, batch: Batch) -> None:
    logprobs, old, advantages, mask = as_tensors(batch)
    whole = policy_loss(config, logprobs, old, advantages, mask)
    counts = Counts(len(mask), float(mask.sum()))
    parts = [
        policy_loss(config, logprobs[own], old[own], advantages[own], mask[own], counts=counts)
        for own in (slice(0, 2), slice(2, 3), slice(3, 5))
    ]
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss, **TIGHT)
    assert torch.equal(torch.cat([part.clipped for part in parts]), whole.clipped)
    assert combine_diagnostics(part.diagnostics for part in parts) == pytest.approx(whole.diagnostics, rel=1e-12)


@pytest.mark.parametrize("config", configurations(), ids=lambda c: f"{c.name}-{c.ratio}-{c.clip_on}-{c.dual_clip}")
def test_a_leading_axis_and_token_counts(config: ObjectiveConfig) -> None:
    seeds = [as_tensors(make_batch(seed, [3, 1, 9, 5], spread)) for seed, spread in ((1, 0.003), (2, 0.05))]
    together = policy_loss(config, *(torch.stack(parts) for parts in zip(*seeds, strict=True)))
    for number, given in enumerate(seeds):
        alone = policy_loss(config, *given)
        torch.testing.assert_close(together.loss[number], alone.loss, **TIGHT)
        assert torch.equal(together.clipped[number], alone.clipped)
    # A token that stands for three has the length of three.
    logprobs, old, advantages, mask = seeds[0]
    thrice = policy_loss(config, logprobs, old, advantages, mask, token_counts=torch.full(mask.shape, 3.0))
    repeated = [part.repeat_interleave(3, dim=1) for part in (logprobs, old)]
    expected = policy_loss(config, *repeated, advantages, mask.repeat_interleave(3, dim=1))
    torch.testing.assert_close(thrice.loss, expected.loss, **TIGHT)


def test_far_bounds_are_none() -> None:
    logprobs, old, advantages, mask = as_tensors(make_batch(2, [3, 700], 2.0))
    for form in ("root", "sum"):
        config = resolve("luspo", clip_on=form, clip_low=1e9, clip_high=1e9)
        result = policy_loss(config, logprobs, old, advantages, mask)
        result.loss.backward()
        assert not result.clipped.any()
        assert torch.isfinite(logprobs.grad).all()
        logprobs.grad = None


def test_the_surrogate_alone_keeps_the_edge() -> None:
    ratio = rows([[math.exp(0.125)]]).requires_grad_(True)
    on_the_edge = ClipPosition(rows([[0.5]]), rows([[0.25]]))
    result = clip_surrogate(ratio, rows([[1.0]]), 0.5, 0.5, None, on_the_edge)
    assert not result.clipped_high.any()
    result = clip_surrogate(ratio, rows([[1.0]]), 0.5, 0.25, None, on_the_edge)
    assert result.clipped_high.all()
    assert result.loss.item() == pytest.approx(-math.exp(0.0625))


def test_the_text_is_the_equation_as_executed() -> None:
    text = describe(resolve("luspo", clip_on="sum", clip_low=0.042, clip_high=0.0525))
    assert text.equation == ("L = −(1/N) Σ_i |y_i| · min(s_i A_i, clip(s_i, exp(−0.042/|y_i|), exp(0.0525/|y_i|)) A_i)")
    assert text.clip_range == "sum of the log-ratios −0.042 to 0.0525"
    text = describe(resolve("gspo", clip_on="root", clip_low=0.01, clip_high=0.02, dual_clip=3.0))
    assert text.equation == (
        "L = −(1/N) Σ_i max(min(s_i A_i, clip(s_i, exp(−0.01/√|y_i|), exp(0.02/√|y_i|)) A_i), 3 A_i if A_i < 0)"
    )
    assert text.clip_range == "mean log-ratio times the root of the length −0.01 to 0.02, dual clip 3"
    assert "ρ_i = exp(Σ_t log(π(y_it) / π_old(y_it)))" in describe(resolve("fspo")).definitions


@pytest.mark.parametrize("form", ["root", "sum"])
def test_peers_have_no_such_band(form: str) -> None:
    for settings in (trl_settings, verl_settings):
        found = settings(resolve("luspo", clip_on=form))
        assert not found.values
        assert "log scale" in found.missing
        assert settings(resolve("luspo", clip_on="mean")).values
