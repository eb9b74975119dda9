"""One batch into the weights: what the gradient depends on, what is computed, and numbers that are not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from luspo_cli.errors import RunError
from luspo_cli.machine import multiplies_bfloat16
from luspo_cli.policy.packing import policy_batch, split_mini_batches
from luspo_cli.records import ScoredGroup
from luspo_cli.training import update
from luspo_cli.training.noise_floor import noise_floor

LENGTHS = [[3, 9, 1], [5, 5, 12], [2, 7, 4], [6, 1, 8]]
BUDGET = 16384
"""Tokens of a micro-batch: as in a run."""
ADVANTAGES = [[1.0, -0.5, -0.5], [0.0, 0.0, 0.0], [0.0, 1.0, -1.0], [0.5, 0.2, -0.7]]


@pytest.fixture
def groups(make_groups: Callable[..., list[ScoredGroup]]) -> list[ScoredGroup]:
    return make_groups(LENGTHS, ADVANTAGES)


def gradients(updater: Any, model: Any, groups: list[ScoredGroup], rate: float = 0.0) -> dict[str, torch.Tensor]:
    """Gradients that one update leaves behind (clipping must be off); with one mini-batch these are the whole step's."""
    updater.update(groups, rate)
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("objective", ["grpo", "gspo", "luspo", "dapo", "dr_grpo"])
def test_the_gradient_does_not_depend_on_micro_batches(
    make_updater: Callable[..., Any], groups: list[ScoredGroup], objective: str
) -> None:
    """Whole, one row at a time, and uneven: every parameter. The model is float64, log-probs float32 (about 1e-7)."""
    found = []
    for budget in (100_000, 1, 40):
        updater, model = make_updater(
            f"update.tokens_per_micro_batch={budget}", "update.gradient_clip=0", objective=objective
        )
        found.append(gradients(updater, model, groups))
        passes = len(updater._micro_batches(split_mini_batches(groups, 1, budget)[0]))
        assert passes == {100_000: 1, 1: 8, 40: 3}[budget]
    whole = found[0]
    assert (
        min(float(gradient.abs().max()) for name, gradient in whole.items() if not name.endswith("k_proj.bias")) > 1e-7
    )
    scale = max(float(gradient.norm()) for gradient in whole.values())
    for other in found[1:]:
        for name in whole:
            assert (whole[name] - other[name]).norm() < 1e-6 * scale, name


def test_the_gradient_is_that_of_the_equation(make_updater: Callable[..., Any], groups: list[ScoredGroup]) -> None:
    """LUSPO before the first step: every ratio is 1, so the gradient is that of -(1/N) sum_i A_i sum_t log p."""
    updater, model = make_updater("update.gradient_clip=0")
    found = gradients(updater, model, groups)
    model.zero_grad()
    loss = torch.zeros((), dtype=torch.float64)
    for group in groups:
        for rollout, advantage in zip(group.rollouts, group.advantages, strict=True):
            ids = torch.tensor([rollout.prompt_tokens + rollout.response_tokens])
            log_softmax = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
            start = len(rollout.prompt_tokens)
            loss = loss - advantage * log_softmax[start - 1 : -1].gather(1, ids[0, start:, None]).sum() / 12
    loss.backward()
    for name, weight in model.named_parameters():
        assert torch.allclose(found[name], weight.grad, atol=2e-6 * float(weight.grad.norm()) + 1e-8), name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_without_advantage_cost_nothing_and_change_no_bit(
    make_updater: Callable[..., Any], groups: list[ScoredGroup], dtype: str
) -> None:
    results = []
    for skip in ("true", "false"):
        updater, model = make_updater(
            f"update.skip_rows_without_advantage={skip}",
            "update.mini_batches=2",
            "update.tokens_per_micro_batch=40",
            dtype=dtype,
        )
        metrics = [updater.update(groups, 1e-3) for _ in range(3)][-1]
        gradient = {name: weight.grad.clone() for name, weight in model.named_parameters()}
        results.append((weights(model), gradient, metrics))
    (skipped, skipped_gradient, few), (computed, computed_gradient, all_rows) = results
    assert equal(skipped, computed)
    assert equal(skipped_gradient, computed_gradient)
    assert (few["update/rows_trained"], few["update/rows_skipped"]) == (8, 4)
    assert (all_rows["update/rows_trained"], all_rows["update/rows_skipped"]) == (12, 0)


def test_a_batch_without_signal_first_changes_no_bit_either(
    make_updater: Callable[..., Any], make_groups: Callable[..., list[ScoredGroup]], groups: list[ScoredGroup]
) -> None:
    """The very first optimizer step finds no gradient at all where rows are skipped, and zeros where they are not."""
    silent = make_groups(LENGTHS, [[0.0] * 3] * 4, seed=1)
    results = []
    for skip in ("true", "false"):
        updater, model = make_updater(f"update.skip_rows_without_advantage={skip}")
        before = weights(model)
        updater.update(silent, 1e-3)
        assert equal(weights(model), before)
        updater.update(groups, 1e-3)
        updater.update(silent, 1e-3)
        results.append(weights(model))
    assert equal(*results)


def test_nothing_depends_on_the_order_of_the_rows_of_a_group(
    make_updater: Callable[..., Any], groups: list[ScoredGroup]
) -> None:
    turned = [ScoredGroup(g.problem, g.rollouts[::-1], g.rewards[::-1], g.advantages[::-1]) for g in groups[::-1]]
    found = [gradients(*make_updater("update.gradient_clip=0"), batch) for batch in (groups, turned)]
    for name in found[0]:
        assert torch.allclose(found[0][name], found[1][name], atol=1e-6)


def forward_calls(updater: Any) -> list[bool]:
    """Collects, for each call of the policy, whether it was made with gradients."""
    calls: list[bool] = []
    updater.policy.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    return calls


def test_one_mini_batch_needs_no_old_log_probs(make_updater: Callable[..., Any], groups: list[ScoredGroup]) -> None:
    updater, _ = make_updater("update.tokens_per_micro_batch=100000")
    calls = forward_calls(updater)
    metrics = updater.update(groups, 1e-3)
    assert calls == [True]
    assert (metrics["ratio/min"], metrics["ratio/max"]) == (1.0, 1.0)
    assert metrics["policy/kl_old"] == 0.0


def test_old_log_probs_are_computed_once_for_the_later_mini_batches(
    make_updater: Callable[..., Any], make_groups: Callable[..., list[ScoredGroup]]
) -> None:
    groups = make_groups(LENGTHS, [[1.0, -0.5, -0.5]] * 4)
    updater, _ = make_updater("update.mini_batches=4", "update.tokens_per_micro_batch=100000")
    calls = forward_calls(updater)
    updater.update(groups, 1e-3)
    assert calls == [False] * 3 + [True] * 4


@pytest.mark.parametrize("objective", ["grpo", "luspo"])
def test_ratios_leave_one_only_where_the_weights_moved(
    make_updater: Callable[..., Any], make_groups: Callable[..., list[ScoredGroup]], objective: str
) -> None:
    """At learning rate 0 every ratio of every mini-batch is exactly 1; then only those of the first one are."""
    groups = make_groups(LENGTHS, [[1.0, -0.5, -0.5]] * 4)
    updater, _ = make_updater(
        "update.mini_batches=4", "update.tokens_per_micro_batch=30", objective=objective, dtype="float32"
    )
    still = updater.update(groups, 0.0)
    assert (still["ratio/min"], still["ratio/max"]) == (1.0, 1.0)
    updater, _ = make_updater("update.mini_batches=4", "update.tokens_per_micro_batch=30", objective=objective)
    moved = updater.update(groups, 1e-2)
    assert moved["ratio/min"] < 1.0 < moved["ratio/max"]
    assert moved["policy/kl_old"] > 0
    assert moved["objective/clip_low_fraction"] + moved["objective/clip_high_fraction"] > 0


def test_metrics_are_means_over_the_rows_that_were_computed(
    make_updater: Callable[..., Any], groups: list[ScoredGroup]
) -> None:
    """Ratio 1 stays 1 and entropy is that of the trained tokens, though a third of the rows was set aside."""
    updater, _ = make_updater()
    metrics = updater.update(groups, 0.0)
    assert metrics["ratio/mean"] == pytest.approx(1.0, abs=1e-6)
    rows = [row for batch in split_mini_batches(groups, 1, 10**6)[0].with_advantage for row in batch]
    with torch.no_grad():
        _, entropy = updater.policy(policy_batch(rows), with_entropy=True)
    tokens = sum(row.rollout.response_length for row in rows)
    assert metrics["policy/entropy"] == pytest.approx(float(entropy.sum()) / tokens, rel=1e-6)


def test_float32_weights_move_at_a_millionth_where_bfloat16_ones_do_not(
    make_updater: Callable[..., Any], groups: list[ScoredGroup]
) -> None:
    """With matrices of standard deviation 0.2 a step of 1e-6 is below half a unit in bfloat16's last place."""
    moved = {}
    for dtype, precision in (("float32", "bf16"), ("bfloat16", "no")):
        updater, model = make_updater("update.gradient_clip=0", dtype=dtype, precision=precision)
        before = weights(model)
        updater.update(groups, 1e-6)
        after = weights(model)
        large = {name: before[name].abs() > 1e-2 for name in before}
        moved[dtype] = sum(int((before[n] != after[n])[large[n]].sum()) for n in before) / sum(
            int(mask.sum()) for mask in large.values()
        )
    assert moved["float32"] > 0.8
    assert moved["bfloat16"] < 0.01


class Poison:
    """Replaces the gradient's or the loss's numbers in chosen passes, counted from 1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, passes: set[int], what: str) -> None:
        self.inner, self.passes, self.what, self.count = update.policy_loss, passes, what, 0
        monkeypatch.setattr(update, "policy_loss", self)

    def __call__(self, config: Any, logprobs: Any, *arguments: Any, **options: Any) -> Any:
        self.count += 1
        if self.count in self.passes:
            if self.what == "loss":
                logprobs = logprobs + torch.tensor(float("nan"))
            else:
                logprobs.register_hook(lambda gradient: gradient * float("inf"))
        return self.inner(config, logprobs, *arguments, **options)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_moves_nothing_and_is_counted(
    make_updater: Callable[..., Any], groups: list[ScoredGroup], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    updater, model = make_updater("update.tokens_per_micro_batch=100000")
    updater.update(groups, 1e-3)  # gives Adam's moments something to move by
    before = weights(model)
    Poison(monkeypatch, {1}, what)
    metrics = updater.update(groups, 1e-3)
    assert equal(weights(model), before)
    assert metrics["update/skipped_steps"] == 1.0
    assert all(math.isfinite(value) for value in metrics.values())
    metrics = updater.update(groups, 1e-3)  # the next one is as if nothing had been
    assert not equal(weights(model), before)
    assert metrics["update/skipped_steps"] == 0.0
    assert all(torch.isfinite(weight).all() for weight in model.parameters())


def test_one_bad_micro_batch_spoils_its_whole_step(
    make_updater: Callable[..., Any], groups: list[ScoredGroup], monkeypatch: pytest.MonkeyPatch
) -> None:
    updater, model = make_updater("update.tokens_per_micro_batch=1")
    before = weights(model)
    Poison(monkeypatch, {5}, "loss")
    assert updater.update(groups, 1e-3)["update/skipped_steps"] == 1.0
    assert equal(weights(model), before)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_the_run_stops_after_bad_steps_in_a_row(
    make_updater: Callable[..., Any], groups: list[ScoredGroup], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    updater, model = make_updater("update.stop_after_bad_steps=3", "update.tokens_per_micro_batch=100000")
    before = weights(model)
    Poison(monkeypatch, {1, 2, 4, 5, 6}, what)
    for _ in range(5):  # the third is good: the count begins anew
        updater.update(groups, 1e-3)
    with pytest.raises(
        RunError, match=f"the {'loss' if what == 'loss' else 'gradient norm'} was not finite in 3 updates in a row"
    ):
        updater.update(groups, 1e-3)
    assert not equal(weights(model), before)


def test_a_kl_term_pulls_towards_the_reference_and_needs_every_row(
    make_updater: Callable[..., Any], make_model: Callable[..., Any], groups: list[ScoredGroup]
) -> None:
    sets = ("objective.kl_coefficient=0.5", "update.gradient_clip=0")
    updater, model = make_updater(*sets, reference=make_model(dtype="float64"))
    with_own = gradients(updater, model, groups)
    metrics = updater.update(groups, 0.0)
    assert metrics["policy/kl_ref"] == 0.0
    assert metrics["update/rows_skipped"] == 0
    updater, model = make_updater("update.gradient_clip=0")
    without = gradients(updater, model, groups)
    for name in without:  # k3 has neither value nor gradient where the two models agree
        assert torch.allclose(with_own[name], without[name], atol=1e-6), name

    other = make_model(1, dtype="float64")
    updater, _ = make_updater(*sets, "update.learning_rate=1e-2", reference=other)
    distances = [updater.update(groups, 1e-2)["policy/kl_ref"] for _ in range(8)]
    assert distances[0] > 0.5
    assert distances[-1] < 0.7 * distances[0]
    assert all(not weight.requires_grad and weight.grad is None for weight in other.parameters())


def test_an_entropy_bonus_raises_the_entropy(
    make_updater: Callable[..., Any], make_groups: Callable[..., list[ScoredGroup]]
) -> None:
    silent = make_groups(LENGTHS, [[0.0] * 3] * 4)  # the bonus alone moves the weights: no row may be set aside
    updater, _ = make_updater("objective.entropy_coefficient=0.1")
    found = [updater.update(silent, 1e-2) for _ in range(6)]
    assert found[0]["update/rows_trained"] == 12
    assert found[-1]["policy/entropy"] > found[0]["policy/entropy"] + 0.1
    assert found[0]["objective/entropy_term"] > 0


def test_the_gradient_is_clipped_to_its_limit(make_updater: Callable[..., Any], groups: list[ScoredGroup]) -> None:
    def norm(model: Any) -> float:
        return math.sqrt(sum(float(weight.grad.double().square().sum()) for weight in model.parameters()))

    updater, model = make_updater("update.gradient_clip=0")
    free = updater.update(groups, 0.0)
    assert free["update/grad_norm"] == pytest.approx(norm(model), rel=1e-6)
    assert free["update/clipped_gradient"] == 0.0
    limit = free["update/grad_norm"] / 4
    updater, model = make_updater(f"update.gradient_clip={limit}")
    clipped = updater.update(groups, 0.0)
    assert norm(model) == pytest.approx(limit, rel=1e-4)
    assert clipped["update/grad_norm"] == pytest.approx(free["update/grad_norm"], rel=1e-9)  # as it was before clipping
    assert clipped["update/clipped_gradient"] == 1.0
    updater, model = make_updater(f"update.gradient_clip={8 * limit}")
    assert updater.update(groups, 0.0)["update/clipped_gradient"] == 0.0
    assert norm(model) == pytest.approx(4 * limit, rel=1e-6)


def test_the_learning_rate_given_is_the_one_used(make_updater: Callable[..., Any], groups: list[ScoredGroup]) -> None:
    """Adam's first step is the learning rate times the sign of the gradient."""
    updater, model = make_updater("update.learning_rate=0.5", "update.gradient_clip=0")
    before = weights(model)
    metrics = updater.update(groups, 3e-4)
    step = (before["model.norm.weight"] - model.model.norm.weight).abs()
    assert metrics["update/learning_rate"] == 3e-4
    assert torch.allclose(step, torch.full_like(step, 3e-4), rtol=1e-3)


def test_the_noise_floor_is_zero_in_exact_arithmetic_and_what_a_row_alone_differs_by(
    make_updater: Callable[..., Any], groups: list[ScoredGroup], make_groups: Callable[..., list[ScoredGroup]]
) -> None:
    exact, model = make_updater(dtype="float64")
    before = weights(model)
    assert noise_floor(exact.policy, groups, BUDGET) < 1e-6
    assert equal(weights(model), before)
    assert all(weight.grad is None for weight in model.parameters())
    # Without its instructions the rows of so small a network come out the same in bfloat16 in any batch.
    if multiplies_bfloat16():
        rough, _ = make_updater(dtype="float32", precision="bf16")
        assert noise_floor(rough.policy, groups, BUDGET) > 1e-5

    def differing(policy: Any, batches: Any, found: Any) -> Any:
        mask = batches[0].response_mask
        return (found[0] - 0.25 * mask, *found[1:]) if len(mask) == 1 else found

    hook = exact.policy.register_forward_hook(differing)
    assert noise_floor(exact.policy, groups, BUDGET) == pytest.approx(0.25, rel=1e-6)
    hook.remove()
    empty = make_groups([[0, 0, 0]], [[0.0, 0.0, 0.0]])
    assert noise_floor(exact.policy, empty, BUDGET) is None


def test_empty_responses_never_poison_an_update(
    make_updater: Callable[..., Any], make_groups: Callable[..., list[ScoredGroup]]
) -> None:
    groups = make_groups([[3, 0, 4], [0, 0, 0]], [[1.0, -0.5, -0.5], [1.0, -0.5, -0.5]])
    updater, model = make_updater("update.tokens_per_micro_batch=1", "update.mini_batches=2")
    metrics = updater.update(groups, 1e-3)
    assert metrics["update/skipped_steps"] == 0.0
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
