"""Experts that change between old log-probs and update: counted by hand, replayed, and a balancing loss that no split changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from doubles import rank_cases
from doubles.models import own_experts
from luspo_cli.config.layers import resolve_train
from luspo_cli.errors import RunError
from luspo_cli.policy.packing import Row, policy_batch
from luspo_cli.policy.policy import Policy
from luspo_cli.policy.routing import (
    OWN,
    RoutingAsked,
    changed_experts,
    load,
    read_routers,
    routers,
    sampled_experts,
    taken,
)
from luspo_cli.processes.ranks import ALONE
from luspo_cli.records import Prompt, ScoredGroup
from luspo_cli.rollout.in_process.sampler import InProcessSampler
from luspo_cli.rollout.sampler import SamplingOptions
from luspo_cli.training.expert_choices import balancing_loss, shares_of
from luspo_cli.training.update import Updater

FAMILIES = ("Qwen3Moe", "Qwen2Moe")
LENGTHS = [[3, 9, 1], [5, 5, 12], [2, 7, 4], [6, 2, 8]]
ADVANTAGES = [[1.0, -0.5, -0.5], [0.0, 0.0, 0.0], [0.0, 1.0, -1.0], [0.5, 0.2, -0.7]]
Groups = list[ScoredGroup]


@pytest.fixture
def groups(make_groups: Callable[..., Groups]) -> Groups:
    return make_groups(LENGTHS, ADVANTAGES)


def rows_of(groups: Groups) -> list[Row]:
    return [Row(r, a) for group in groups for r, a in zip(group.rollouts, group.advantages, strict=True)]


def updater(*sets: str, family: str = "Qwen3Moe", objective: str = "grpo", dtype: str = "float32") -> Updater:
    """Of two mini-batches of two groups each."""
    small = ["rollout.problems=4", "rollout.max_response_tokens=16", "update.gradient_clip=0", "update.mini_batches=2"]
    config = resolve_train(preset="tiny", objective=objective, sets=[*small, *sets])
    model = own_experts(26, family).to(getattr(torch, dtype))
    return rank_cases.build({"config": config.model_dump(mode="python"), "model": model}, ALONE)[0]


def choices(model: Any, row: Row) -> torch.Tensor:
    """[L, N, k] of a plain pass of the model over one row."""
    with torch.no_grad(), read_routers(model) as found:
        model(input_ids=torch.tensor([row.rollout.prompt_tokens + row.rollout.response_tokens]), use_cache=False)
        return taken(found)


def test_changes_by_hand() -> None:
    one = torch.tensor([[[0, 1], [2, 3], [0, 1]], [[0, 1], [0, 1], [3, 2]]])
    other = torch.tensor([[[1, 0], [2, 1], [2, 3]], [[0, 1], [1, 0], [0, 2]]])
    layers, experts = changed_experts(one, other)
    assert layers.tolist() == [0, 1, 2]  # the order of a choice does not matter
    assert experts.tolist() == [0, 1, 3]
    assert load(one, 4).tolist() == [[2, 2, 1, 1], [2, 2, 1, 1]]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_choices_of_joined_rows_are_those_of_each_row(family: str, groups: Groups) -> None:
    model = own_experts(26, family)
    rows = rows_of(groups)
    with torch.no_grad():
        _, _, routed = Policy(model, 1.0)(policy_batch(rows), routing=RoutingAsked(with_probabilities=True))
    begin, found = 0, []
    for row in rows:
        length, start = row.rollout.response_length, len(row.rollout.prompt_tokens)
        wanted = choices(model, row)[:, start - 1 : start + length - 1]
        assert torch.equal(routed.chosen[:, routed.read[begin : begin + length]], wanted)
        found.append(wanted)
        begin += length
    assert routed.probabilities.sum(-1).tolist() == pytest.approx([begin, begin], rel=1e-5)
    assert load(torch.cat(found, 1), 4).sum() == 2 * 2 * begin


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_replay_of_its_own_choices_changes_no_bit(
    family: str, normed: bool, checkpointing: bool, groups: Groups
) -> None:
    found = []
    batch = policy_batch(rows_of(groups))
    given = None
    for _ in range(2):
        model = own_experts(26, family, norm_topk_prob=normed)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.disable_input_require_grads()
        logprobs, _, routed = Policy(model, 1.0).train()(batch, routing=RoutingAsked(given))
        logprobs.sum().backward()
        given = routed.chosen
        found.append([logprobs.detach(), *(weight.grad for weight in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_given_experts_are_those_that_compute(family: str, checkpointing: bool, groups: Groups) -> None:
    """Against a layer whose router is made to choose them: value and gradient, router included, recomputed layers too."""
    row = rows_of(groups)[1]
    given = (choices(own_experts(26, family), row) + 1) % 4
    given[:, -1] = OWN  # nobody reads the last token
    model = own_experts(26, family)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.disable_input_require_grads()
    logprobs, _, routed = Policy(model, 1.0).train()(policy_batch([row]), routing=RoutingAsked(given))
    logprobs.sum().backward()
    assert not torch.equal(routed.chosen[:, :-1], given[:, :-1])

    plain = own_experts(26, family)

    def choose(place: int) -> Callable[..., Any]:
        def hook(router: Any, _: Any, output: Any) -> Any:
            chosen = torch.where(given[place] < 0, output[2], given[place].long())
            weights = output[0].softmax(-1).gather(-1, chosen)
            return output[0], weights / weights.sum(-1, keepdim=True) if router.norm_topk_prob else weights, chosen

        return hook

    for place, router in enumerate(routers(plain)):
        router.register_forward_hook(choose(place))
    wanted, _ = Policy(plain, 1.0)(policy_batch([row]))
    wanted.sum().backward()
    assert torch.equal(logprobs, wanted)
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-6), name
        if "mlp.gate" in name:
            assert one.grad.abs().max() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sampler_brings_the_experts_that_the_policy_chooses(made_tokenizer: Any, family: str) -> None:
    """With the same float32 weights, over prompts of other lengths, rows that end early and groups that wait."""
    model = own_experts(26, family)
    sampler = InProcessSampler(model, made_tokenizer, (1,), max_rows=6)
    prompts = [Prompt(str(i), tuple(range(2, 3 + 2 * i))) for i in range(5)]
    options = SamplingOptions(3, 12, seed=4, with_experts=True)
    groups = sampler.sample_groups(prompts, options)
    assert sampler.sample_groups(prompts, options, on_finished=lambda row, rollout: None) == groups
    rollouts = [rollout for group in groups for rollout in group]
    assert {1, 12} & {rollout.response_length for rollout in rollouts}
    batch = policy_batch([Row(rollout, 1.0) for rollout in rollouts])
    found = sampled_experts(rollouts, batch.joined, batch.tokens.shape[1], (2, 2), "cpu")
    with torch.no_grad():
        _, _, routed = Policy(model, 1.0)(batch, routing=RoutingAsked())
    layers, _ = changed_experts(found[:, routed.read].long(), routed.chosen[:, routed.read].long())
    assert layers.float().mean() < 0.01  # but for a tie that rounding decides
    without = sampler.sample_groups(prompts, replace(options, with_experts=False))
    assert [replace(rollout, experts=b"") for rollout in rollouts] == [r for group in without for r in group]
    assert sampled_experts([r for g in without for r in g], batch.joined, batch.tokens.shape[1], (2, 2), "cpu") is None


def test_what_changed_is_counted(groups: Groups) -> None:
    """Against plain passes of the weights before the step and before its second mini-batch."""
    moved = updater("update.learning_rate=0.02")
    model = moved.policy.model
    second = [row for row in rows_of(groups)[6:] if row.advantage]
    before = [choices(model, row) for row in second]
    metrics = moved.update(groups, 0.02)
    stored = moved.rows.gathered(ALONE, True).updates()
    # One update of the first mini-batch alone gives the weights that the second one met.
    other = updater("update.learning_rate=0.02")
    other.optimizer.param_groups[0]["lr"] = 0.02
    first_only = [
        replace(group, advantages=(0.0, 0.0, 0.0)) if place > 1 else group for place, group in enumerate(groups)
    ]
    other.config = other.config.model_copy(
        update={"update": other.config.update.model_copy(update={"mini_batches": 2})}
    )
    step = other.optimizer.step
    steps = []
    other.optimizer.step = lambda: steps.append(step() if not steps else None)  # type: ignore[method-assign]
    other.update(first_only, 0.02)
    after = [choices(other.policy.model, row) for row in second]
    expected, chosen, total = [], 0, 0
    for row, one, two in zip(second, before, after, strict=True):
        start, length = len(row.rollout.prompt_tokens), row.rollout.response_length
        layers, experts = changed_experts(
            one[:, start - 1 : start + length - 1], two[:, start - 1 : start + length - 1]
        )
        expected.append(tuple(layers.tolist()))
        chosen, total = chosen + int(experts.sum()), total + length
    found = [update.experts_changed for update in stored[6:] if update]
    assert found == expected
    flat = [layers for own in expected for layers in own]
    assert 0 < sum(layers > 0 for layers in flat) < total
    assert metrics["router/changed_fraction"] == sum(layers > 0 for layers in flat) / total
    assert metrics["router/changed_choice_fraction"] == chosen / total / 4
    ratios = [ratio for update in stored[6:] if update for ratio in update.token_log_ratios]
    for name, wanted in (("changed", True), ("unchanged", False)):
        own = [ratio for ratio, layers in zip(ratios, flat, strict=True) if (layers > 0) is wanted]
        assert metrics[f"router/token_log_ratio/{name}"] == pytest.approx(math.sqrt(sum(r * r for r in own) / len(own)))
    assert all(set(update.experts_changed) == {0} for update in stored[:6] if update)  # the first mini-batch
    assert metrics["router/load_max_over_mean"] >= 1 >= metrics["router/load_entropy"] > 0


def test_a_dense_model_has_no_routers(make_model: Callable[..., Any], groups: Groups) -> None:
    config = resolve_train(preset="tiny", sets=["rollout.problems=4", "update.mini_batches=2"])
    dense, _ = rank_cases.build({"config": config.model_dump(mode="python"), "model": make_model()}, ALONE)
    assert not any(key.startswith("router/") for key in dense.update(groups, 1e-3))
    assert not any(update.experts_changed for update in dense.rows.gathered(ALONE, True).updates() if update)


@pytest.mark.parametrize("objective", ["grpo", "luspo"])
def test_ratios_of_a_replayed_update_are_those_of_the_old_experts(groups: Groups, objective: str) -> None:
    """The replayed log-probs of the second mini-batch, computed apart: plain passes with the old experts given."""
    moved = updater("update.learning_rate=0.02", "update.router_replay=old", objective=objective)
    free = updater("update.learning_rate=0.02", objective=objective)
    replayed, own = moved.update(groups, 0.02), free.update(groups, 0.02)
    # The first mini-batch is the same; in the second the routers would choose the same, the log-probs differ.
    assert replayed["router/changed_fraction"] > 0
    assert own["router/token_log_ratio/changed"] != replayed["router/token_log_ratio/changed"]


def with_experts(groups: Groups, model: Any) -> Groups:
    """The rollouts with the experts that the model chooses for them."""

    def of(rollout: Any) -> bytes:
        return bytes(choices(model, Row(rollout, 0.0)).transpose(0, 1)[:-1].contiguous().numpy().tobytes())

    return [replace(g, rollouts=tuple(replace(r, experts=of(r)) for r in g.rollouts)) for g in groups]


def test_a_replay_of_the_sampler_s_experts_reaches_old_logprobs_and_update(groups: Groups) -> None:
    """Where the sampler chose as the policy, `rollout` is `old`; where it did not, ratios still begin at 1."""
    fed = with_experts(groups, own_experts(26))
    as_old, as_rollout = updater("update.router_replay=old"), updater("update.router_replay=rollout")
    one, other = as_old.update(fed, 0.02), as_rollout.update(fed, 0.02)
    assert one.keys() == other.keys()  # both know the sampler's experts
    for key, value in one.items():
        assert key.startswith("time/") or other[key] == pytest.approx(value, rel=1e-6), key
    assert other["router/sampler_changed_fraction"] == 0
    foreign = with_experts(groups, own_experts(26, seed=5))
    still = updater("update.router_replay=rollout").update(foreign, 0.0)
    assert still["router/sampler_changed_fraction"] > 0.5
    assert still["ratio/min"] == still["ratio/max"] == 1.0


def test_a_replay_without_the_sampler_s_experts_is_refused(groups: Groups) -> None:
    with pytest.raises(RunError, match="some rollouts came without them: set update"):
        updater("update.router_replay=rollout").update(groups, 0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_balancing_loss_is_that_of_the_whole_mini_batch(family: str, groups: Groups) -> None:
    """One pass, many, and by hand: E Σ f P of each layer over all response tokens, also of rows without advantage."""
    found = []
    for budget in (1000, 30, 1):
        one = updater(
            f"update.tokens_per_micro_batch={budget}",
            "update.router_aux_coefficient=0.5",
            "update.mini_batches=1",
            family=family,
            dtype="float64",
        )
        metrics = one.update(groups, 0.0)
        found.append((metrics, [weight.grad.clone() for weight in one.policy.model.parameters()]))
    (whole, gradient), *others = found
    for metrics, parts in others:
        assert metrics["router/aux_loss"] == pytest.approx(whole["router/aux_loss"], rel=1e-6)
        assert metrics["objective/loss"] == pytest.approx(whole["objective/loss"], rel=1e-5, abs=1e-7)
        scale = max(float(own.norm()) for own in gradient)
        assert all((part - own).norm() < 1e-6 * scale for part, own in zip(parts, gradient, strict=True))
    model, losses = own_experts(26, family).double(), []
    with torch.no_grad(), read_routers(model) as noted:
        read = []
        for row in rows_of(groups):
            model(input_ids=torch.tensor([row.rollout.prompt_tokens + row.rollout.response_tokens]), use_cache=False)
            at = slice(len(row.rollout.prompt_tokens) - 1, -1)
            read.append([(logits[at], own[at]) for logits, own in noted])
            noted.clear()
    for layer in range(2):
        logits, own = (torch.cat([part[layer][i] for part in read]) for i in (0, 1))
        shares = torch.bincount(own.reshape(-1), minlength=4) / own.numel()
        losses.append(float(4 * (shares * logits.softmax(-1).mean(0)).sum()))
    assert whole["router/aux_loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    without = updater("update.mini_batches=1", family=family, dtype="float64").update(groups, 0.0)
    assert whole["objective/loss"] == pytest.approx(without["objective/loss"] + 0.5 * sum(losses) / 2, rel=1e-5)
    assert "router/aux_loss" not in without


def test_even_experts_have_a_balancing_loss_of_1() -> None:
    from luspo_cli.policy.routing import Routed

    even = Routed(torch.zeros(0), torch.zeros(0), torch.full((3, 4), 10 / 4))
    assert float(balancing_loss(even, torch.full((3, 4), 0.25, dtype=torch.float64), 10)) == 1.0
    assert shares_of([torch.tensor([[1, 3]]), torch.tensor([[2, 2]])]).tolist() == [[3 / 8, 5 / 8]]
