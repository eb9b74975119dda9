"""The update measures the sampler against the policy and weights the loss on request."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from luspo_cli.config.layers import resolve_train
from luspo_cli.errors import RunError, UsageError
from luspo_cli.policy.packing import policy_batch, rows_of
from luspo_cli.records import ScoredGroup
from luspo_cli.training.noise_floor import noise_floor, untrained_difference

LENGTHS = [[3, 9, 1], [2, 7, 4]]
ADVANTAGES = [[1.0, -0.5, -0.5], [0.0, 1.0, -1.0]]
KEYS = {"sampler/logprob_difference_mean", "sampler/logprob_difference_max", "sampler/effective_sample_size"}


def sampled_by(updater: Any, groups: list[ScoredGroup], shift: Callable[[int], float]) -> list[ScoredGroup]:
    """The groups with log-probs as a sampler would return whose token t differs from the policy by shift(t)."""

    def rollout(row: Any) -> Any:
        batch = policy_batch([row])
        with torch.no_grad():
            own = updater.policy(batch)[0][0].tolist()
        return replace(row.rollout, rollout_logprobs=tuple(value - shift(t) for t, value in enumerate(own)))

    return [replace(group, rollouts=tuple(rollout(row) for row in rows_of(group))) for group in groups]


@pytest.fixture
def groups(make_groups: Callable[..., list[ScoredGroup]]) -> list[ScoredGroup]:
    return make_groups(LENGTHS, ADVANTAGES)


def test_without_log_probs_nothing_is_measured(make_updater: Any, groups: list[ScoredGroup]) -> None:
    updater, _ = make_updater("update.learning_rate=1e-9")
    assert not KEYS & updater.update(groups, 0.0).keys()


@pytest.mark.parametrize("mini_batches", [1, 2])
def test_the_difference_is_measured_before_the_first_step(
    make_updater: Any, groups: list[ScoredGroup], mini_batches: int
) -> None:
    updater, _ = make_updater(f"update.mini_batches={mini_batches}")
    drawn = sampled_by(updater, groups, lambda t: 0.25 if t == 0 else 0.0)
    metrics = updater.update(drawn, 1e-2)  # a step that moves the policy far
    trained = [3, 9, 1, 7, 4]  # one row has no advantage
    assert metrics["sampler/logprob_difference_mean"] == pytest.approx(0.25 * len(trained) / sum(trained), rel=1e-4)
    assert metrics["sampler/logprob_difference_max"] == pytest.approx(0.25, rel=1e-4)
    assert metrics["sampler/effective_sample_size"] == pytest.approx(1.0, abs=1e-6)  # the same weight for each rollout


@pytest.mark.parametrize(
    ("objective", "level"),
    [("luspo", "sequence"), ("gspo", "sequence"), ("luspo", "sequence-product"), ("grpo", "token")],
)
def test_a_constant_weight_scales_the_gradient(
    make_updater: Any, groups: list[ScoredGroup], objective: str, level: str
) -> None:
    factor = 1.25

    def gradient(*sets: str) -> dict[str, torch.Tensor]:
        updater, model = make_updater("update.gradient_clip=0", *sets, objective=objective)
        gap = math.log(factor)
        drawn = sampled_by(updater, groups, lambda t: gap if level != "sequence-product" or t == 0 else 0.0)
        updater.update(drawn, 0.0)
        return {name: weight.grad.clone() for name, weight in model.named_parameters()}

    plain, weighted = gradient(), gradient(f"update.sampler_correction={level}")
    for name, value in plain.items():
        torch.testing.assert_close(weighted[name], factor * value, rtol=1e-4, atol=1e-6)


def test_weights_at_the_cap_are_counted(make_updater: Any, groups: list[ScoredGroup]) -> None:
    updater, _ = make_updater("update.sampler_correction=sequence-product", "update.sampler_correction_cap=1.1")
    # e^(0.05 * length): above 1.1 for the rows of 3, 9, 7 and 4 tokens, below for the one of 1.
    metrics = updater.update(sampled_by(updater, groups, lambda t: 0.05), 0.0)
    assert metrics["sampler/capped_fraction"] == pytest.approx(4 / 5)


def test_a_log_prob_that_is_not_a_number_is_left_out_of_the_record(
    make_updater: Any, groups: list[ScoredGroup]
) -> None:
    """metrics.jsonl takes no NaN; the step itself is refused and counted."""
    updater, model = make_updater()
    drawn = sampled_by(updater, groups, lambda t: 0.1)
    with torch.no_grad():
        model.lm_head.weight[:] = math.nan
    metrics = updater.update(drawn, 1e-2)
    assert not KEYS & metrics.keys()
    assert metrics["update/skipped_steps"] == 1
    assert all(math.isfinite(value) for value in metrics.values())
    assert noise_floor(updater.policy, drawn, updater.config.update.tokens_per_micro_batch) is None


def test_a_step_that_trains_no_row_still_measures_the_sampler(make_updater: Any, groups: list[ScoredGroup]) -> None:
    """Each token's log-prob is 0.1 off; a step with an advantage is measured by its update alone."""
    updater, _ = make_updater()
    drawn = sampled_by(updater, groups, lambda t: 0.1)
    policy, budget = updater.policy, updater.config.update.tokens_per_micro_batch
    assert untrained_difference(policy, drawn, budget) == {}
    equal = [replace(group, advantages=tuple(0.0 for _ in group.advantages)) for group in drawn]
    found = untrained_difference(policy, equal, budget)
    assert found["sampler/logprob_difference_mean"] == pytest.approx(0.1, abs=1e-5)
    assert found["sampler/logprob_difference_max"] == pytest.approx(0.1, abs=1e-5)
    assert not KEYS & updater.update(equal, 0.0).keys()


def test_a_correction_without_log_probs_ends_the_run(make_updater: Any, groups: list[ScoredGroup]) -> None:
    updater, model = make_updater("update.sampler_correction=sequence")
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with pytest.raises(RunError, match=r"update.sampler_correction=none"):
        updater.update(groups, 1e-2)
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())


@pytest.mark.parametrize("objective", ["luspo", "gspo", "gmpo"])
def test_token_weights_are_refused_where_the_loss_is_one_number_a_sequence(objective: str) -> None:
    with pytest.raises(UsageError, match="sampler_correction = 'sequence'"):
        resolve_train(preset="tiny", objective=objective, sets=["update.sampler_correction=token"])


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["update.sampler_correction_cap=3.0"], "needs update.sampler_correction"),
        (["rollout.vllm.eager=true", "rollout.sampler=in-process"], "needs rollout.sampler = 'vllm'"),
        (["rollout.vllm.timeout_s=5.0", "rollout.sampler=vllm"], "needs rollout.sampler = 'vllm-server'"),
        (["rollout.sampler=vllm-server"], "needs rollout.vllm.servers"),
        (["rollout.sampler=vllm-server", "rollout.vllm.servers=['gpu7:8000']"], "wants addresses such as http"),
        (["rollout.sampler=vllm-server", "rollout.vllm.servers=['http://a', 'http://a']"], "twice"),
        (
            [
                "rollout.sampler=vllm",
                "rollout.top_k=5",
                "rollout.temperature=0.7",
                "update.sampler_correction=sequence",
            ],
            "set the temperature to 1",
        ),
    ],
)
def test_keys_that_would_change_nothing_are_refused(sets: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        resolve_train(preset="tiny", objective="luspo", sets=sets)
    assert "\n" not in str(caught.value)
