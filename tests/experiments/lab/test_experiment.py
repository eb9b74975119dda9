"""What the lab's update does, against exact expectations and against a plain loop over one seed with every token written out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from enumeration import all_responses, generators, probabilities, shaken, short_model
from torch import Tensor

from luspo_cli.advantages import ADVANTAGES
from luspo_cli.config.lab import resolve_lab
from luspo_cli.config.objective import NAMED_OBJECTIVES
from luspo_cli.experiments.lab.experiment import (
    Learner,
    advantage_table,
    draw,
    group_advantages,
    move_of_noise,
    run_experiment,
)
from luspo_cli.experiments.lab.responses import DTYPE, Logits, ResponseModel, Responses
from luspo_cli.objectives import ObjectiveConfig, policy_loss

OBJECTIVES = ("grpo", "gspo", "luspo")
RICH = (
    "model.prompt_types=3", "model.skill_spread=1.0", "model.answers=4", "model.answer_tokens=2", "model.ending=0.8",
    "model.accuracy=0.3", "model.stop_bins=3", "model.stop_bin_tokens=4", "model.stop_by_type=true", "model.coupling=0.5",
)  # fmt: skip


def gradients(loss: Tensor, logits: Logits) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [part for part in logits.tensors() if part.numel()]))


@pytest.mark.parametrize("sets", [(), RICH], ids=["plain", "rich"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_is_that_of_the_enumerated_expectation(name: str, sets: tuple[str, ...]) -> None:
    """On-policy the loss's gradient is that of -Σ_y π(y) A(y) w(|y|), with w = 1 for luspo and 1/|y| for the others."""
    model = short_model(*sets, objective=name)
    logits = shaken(model.start(generators(2)))
    responses = all_responses(model, 2, prompt_type=model.config.model.prompt_types - 1)
    chances = probabilities(model, logits, responses)
    rewards = responses.right.to(DTYPE)
    advantages = rewards - (chances * rewards).sum(-1, keepdim=True).detach()
    log_probs = model.log_probs(logits, responses)
    found = policy_loss(
        name,
        log_probs,
        log_probs.detach(),
        advantages,
        responses.mask,
        token_counts=responses.token_counts,
        row_counts=chances.detach(),
    )
    weight = 1.0 if name == "luspo" else 1 / responses.lengths
    expected = -(chances * advantages * weight).sum(-1)
    for own, wanted in zip(gradients(found.loss.sum(), logits), gradients(expected.sum(), logits), strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-10, atol=1e-13)


def pairs(model: ResponseModel, logits: Logits) -> tuple[Responses, Tensor]:
    """Every group of two responses as consecutive rows, and the probability of each row's group."""
    responses = all_responses(model, 1)
    chances = probabilities(model, logits, responses).detach()[0]
    number = torch.arange(len(chances))
    both = torch.cartesian_prod(number, number).flatten()
    of_groups = torch.outer(chances, chances).flatten().repeat_interleave(2)
    return Responses(*(part[:, both] for part in responses)), of_groups[None]


def expected_stop_gradient(model: ResponseModel, logits: Logits, objective: ObjectiveConfig) -> tuple[float, float]:
    """Exact expectation over groups of two of the on-policy gradient of the stopping and of the answer's logit."""
    responses, chances = pairs(model, logits)
    advantages = group_advantages(responses.right, advantage_table(model.config))
    log_probs = model.log_probs(logits, responses)
    counts = {"token_counts": responses.token_counts, "row_counts": chances}
    found = policy_loss(
        objective, log_probs, log_probs.detach(), advantages, responses.mask, max_response_length=20, **counts
    )
    stop, answer = gradients(found.loss.sum(), logits)
    return float(stop), float(answer)


@pytest.mark.parametrize("advantage", ADVANTAGES)
@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo", "luspo", "cispo", "sapo", "gmpo"])
def test_on_policy_and_neutral_no_objective_drifts_in_expectation(name: str, advantage: str) -> None:
    # So short that the limit is never met: a chance of 1e-27.
    sets = ["model.length=2.2", "rollout.max_response_tokens=36", "rollout.group_size=2", "rollout.problems=4"]
    model = ResponseModel(resolve_lab(name, sets=sets))
    parts = {key: getattr(NAMED_OBJECTIVES[name], key) for key in NAMED_OBJECTIVES[name].__slots__}
    objective = ObjectiveConfig("custom", **(parts | {"advantage": advantage}))
    model.config = model.config.model_copy(update={"objective": objective})
    logits = model.start(generators(1))
    for part in logits.tensors():
        part.requires_grad_(True)
    stop, answer = expected_stop_gradient(model, Logits(*logits.tensors()), objective)
    assert abs(stop) < 1e-12
    assert answer < -1e-3  # the right answer's logit rises


def share_that_stops(responses: int, stop: float, tail: int) -> float:
    """E[Σ score / Σ tokens] over so many responses that stop at each position with chance `stop`, by the law of their sum.

    A response of F filler tokens has the score (1 - stop) - stop F and F + tail tokens; the sum of F is negative binomial.
    """
    log_chance, total = responses * math.log(stop), 0.0
    for filler in range(3000):
        score = responses * (1 - stop) - stop * filler
        total += math.exp(log_chance) * score / (filler + tail * responses)
        log_chance += math.log1p(-stop) + math.log((filler + responses) / (filler + 1))
    return total


@pytest.mark.parametrize(("accuracy", "shorter"), [(0.1, True), (0.9, False)])
def test_under_balanced_the_rarer_sign_decides_where_the_length_goes(accuracy: float, shorter: bool) -> None:
    """On-policy and neutral, and yet there is a push: a mean over few responses is no unbiased one (docs/length.md)."""
    sets = ["update.mini_batches=1", "update.gradient_clip=0", "update.optimizer=sgd", "update.learning_rate=1e-3"]
    config = resolve_lab("balanced", sets=[*sets, f"model.accuracy={accuracy}"])
    model, size = ResponseModel(config), config.rollout.group_size
    stop = 1 / (1 + model.start_filler)
    expected = 0.0
    for right in range(1, size):
        mean = right / size
        std = math.sqrt(size / (size - 1) * mean * (1 - mean)) + 1e-6
        # Σ over a sign of A = ±(right)(wrong) / (size std), each sign by its own ratio of sums.
        weight = right * (size - right) / size / std / size
        signs = share_that_stops(right, stop, model.tail) - share_that_stops(size - right, stop, model.tail)
        expected += math.comb(size, right) * accuracy**right * (1 - accuracy) ** (size - right) * weight * signs
    assert abs(expected) == pytest.approx(0.0083, abs=1e-4)
    assert (expected > 0) == shorter
    seeds = generators(300)
    learner = Learner(model, model.start(seeds))
    before = learner.logits.stop.detach().clone()
    responses = draw(model, learner.logits, seeds)
    learner.update(responses, group_advantages(responses.right, advantage_table(config)), seeds)
    moved = (learner.logits.stop.detach() - before).flatten() / 1e-3
    assert abs(float(moved.mean()) - expected) < 4 * float(moved.std()) / math.sqrt(300)
    assert abs(expected) > 15 * float(moved.std()) / math.sqrt(300)


def test_a_limit_that_responses_meet_pushes_towards_short_ones() -> None:
    model = short_model("rollout.group_size=2", "rollout.problems=4", "model.length=6")
    logits = model.start(generators(1))
    for part in logits.tensors():
        part.requires_grad_(True)
    stop, _ = expected_stop_gradient(model, logits, model.config.objective)
    assert stop < -1e-3  # descending raises the chance of stopping


def written_out(model: ResponseModel, logits: Logits, responses: Responses, width: int) -> tuple[Tensor, Tensor]:
    """Log-probs and mask [B, width] of one seed with a column for every token."""
    columns, counts = model.log_probs(logits, responses)[0], responses.token_counts[0].long()
    rows = []
    for row, times, mask in zip(columns, counts, responses.mask[0], strict=True):
        tokens = row[mask].repeat_interleave(times[mask])
        rows.append(torch.cat([tokens, tokens.new_zeros(width - len(tokens))]))
    lengths = responses.lengths[0].long()
    return torch.stack(rows), torch.arange(width) < lengths[:, None]


@pytest.mark.parametrize("name", ["grpo", "gspo", "luspo", "dr_grpo", "gmpo"])
@pytest.mark.parametrize("sets", [(), ("update.optimizer=sgd", "update.learning_rate=0.5"), RICH])
def test_an_update_is_that_of_a_plain_loop_over_written_tokens(name: str, sets: tuple[str, ...]) -> None:
    base = ["rollout.problems=8", "rollout.group_size=4", "model.length=9", "rollout.max_response_tokens=40"]
    config = resolve_lab(name, sets=[*base, *sets, "objective.kl_coefficient=0.1"])
    model = ResponseModel(config)
    logits = model.start(generators(2))
    learner = Learner(model, logits)
    responses = draw(model, logits, generators(2))
    advantages = group_advantages(responses.right, advantage_table(config))
    for _ in range(2):
        learner.update(responses, advantages, generators(2))

    for seed in range(2):
        start = [part[seed : seed + 1].clone() for part in logits.tensors()]
        own, reference = Logits(*start).detached(), Logits(*start).detached()
        parameters = [part.requires_grad_(True) for part in own.tensors() if part.numel()]
        rate = config.update.learning_rate
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            parameters, lr=rate, betas=config.update.betas, weight_decay=0.0
        )
        if "update.optimizer=sgd" in sets:
            optimizer = torch.optim.SGD(parameters, lr=rate)
        rows = Responses(*(part[seed : seed + 1] for part in responses))
        of_groups = [
            value
            for group in rows.right[0].reshape(8, 4).double().tolist()
            for value in ADVANTAGES[config.objective.advantage or ""](group)
        ]
        for _ in range(2):
            old, mask = written_out(model, own.detached(), rows, 40)
            of_reference, _ = written_out(model, reference, rows, 40)
            for first in range(0, 32, 8):
                part = slice(first, first + 8)
                new, _ = written_out(model, own, rows.rows(first, first + 8), 40)
                loss = policy_loss(
                    config.objective,
                    new,
                    old[part],
                    torch.tensor(of_groups[part], dtype=DTYPE),
                    mask[part],
                    max_response_length=40,
                    ref_logprobs=of_reference[part],
                ).loss
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, config.update.gradient_clip)
                optimizer.step()
        for moved, expected in zip(learner.logits.tensors(), own.tensors(), strict=True):
            torch.testing.assert_close(moved[seed : seed + 1], expected, rtol=1e-9, atol=1e-11)


def test_a_seed_does_not_depend_on_those_beside_it() -> None:
    config = resolve_lab("luspo", sets=["run.steps=3"])
    alone = run_experiment(config.model_copy(update={"run": config.run.model_copy(update={"seed": 2})}), 1)
    beside = run_experiment(config, 4)
    torch.testing.assert_close(beside.length[2:3], alone.length, rtol=1e-12, atol=0)
    torch.testing.assert_close(beside.kept_advantage[2:3], alone.kept_advantage, rtol=1e-9, atol=1e-12)


def test_recipes_share_their_first_responses() -> None:
    histories = [run_experiment(resolve_lab(name, sets=["run.steps=2"]), 3) for name in OBJECTIVES]
    for history in histories[1:]:
        assert torch.equal(history.accuracy[:, 0], histories[0].accuracy[:, 0])
        assert torch.equal(history.length[:, 0], histories[0].length[:, 0])
        assert not torch.equal(history.length[:, 1], histories[0].length[:, 1])


def test_only_the_low_side_shortens_and_only_the_high_side_lengthens() -> None:
    """The model's plainest prediction, far outside of any noise of 8 seeds."""
    low = run_experiment(resolve_lab("gspo", sets=["objective.clip_high=1e6"]), 8)
    high = run_experiment(resolve_lab("gspo", sets=["objective.clip_low=1.0"]), 8)
    assert float(low.length[:, -1].max()) < 6
    assert float(high.length[:, -1].min()) > 25
    assert float(low.clip_high.max()) == 0
    assert float(high.clip_low.max()) == 0
    assert float(low.final(low.kept_advantage).mean()) > 0.05


def test_every_objective_runs() -> None:
    for name in NAMED_OBJECTIVES:
        history = run_experiment(resolve_lab(name, sets=["run.steps=2"]), 2)
        assert bool(torch.isfinite(history.length).all())
        assert float(history.update_norm.min()) > 0


def test_an_objective_of_the_preset_has_the_presets_range() -> None:
    gspo = resolve_lab("gspo").objective
    assert (gspo.clip_low, gspo.clip_high) == (2e-3, 2.5e-3)
    assert replace(gspo, clip_low=3e-4) == resolve_lab("gspo", sets=["objective.clip_low=3e-4"]).objective


@pytest.mark.parametrize(
    ("update", "square"), [(1, 1.0), (2, 0.0181 / 0.0361), (3, 0.024661 / 0.073441), (500, 0.1 / 1.9)]
)
def test_noise_moves_weights_as_adamw_moves_them(update: int, square: float) -> None:
    """(1 - b)² Σ b^2i / (1 - b^t)² with b = 0.9."""
    assert move_of_noise(update, 0.9) ** 2 == pytest.approx(square, rel=1e-12)
    assert move_of_noise(update, 0.0) == 1.0


def test_noise_moves_the_wrong_answers_of_prompts_that_are_yet_to_come() -> None:
    noisy = ("model.answers=10", "model.answer_noise=0.5", "rollout.problems=64", "run.steps=1", "model.accuracy=0.1")
    still = ("update.learning_rate=1e-9",)
    one = run_experiment(resolve_lab("gspo", sets=[*noisy, *still, "update.mini_batches=2"]), 8)
    four = run_experiment(resolve_lab("gspo", sets=[*noisy, *still, "update.mini_batches=4"]), 8)
    # Nine noises of variance 0.25 and one of 0, each answer at p = 0.1: their own less the mean leaves (1 - 0.2 + 0.09) of it.
    square = 0.25 * 0.89
    assert float(one.squared_wrong.mean()) == pytest.approx(square / 2, rel=0.1)
    # After one, two and three updates, that move 1, 0.501 and 0.336 times as much.
    assert float(four.squared_wrong.mean()) == pytest.approx(square * (1 + 1.501 + 1.837) / 4, rel=0.1)
    plain = run_experiment(resolve_lab("gspo", sets=["run.steps=2"]), 2)
    assert float(plain.squared_wrong[:, 0].max()) < 0.1


def test_answers_learn_at_their_own_rate() -> None:
    sets = ["run.steps=3", "update.mini_batches=1"]
    slow = run_experiment(resolve_lab("gspo", sets=[*sets, "update.answer_rate=0.1"]), 2)
    fast = run_experiment(resolve_lab("gspo", sets=sets), 2)
    torch.testing.assert_close(slow.length[:, 1], fast.length[:, 1])
    # AdamW's first step is as long as the learning rate for each logit: one for stopping, one for the answer.
    assert fast.update_norm[:, 0].tolist() == pytest.approx([0.02 * 2**0.5] * 2, rel=1e-4)
    assert slow.update_norm[:, 0].tolist() == pytest.approx([0.02 * 1.01**0.5] * 2, rel=1e-4)


def test_kept_advantages_by_length_add_up_and_their_pressure_has_the_sign_of_the_drift() -> None:
    """Low side alone: short; high side alone: long; on-policy nothing is cut."""
    sets = ["run.steps=30", "rollout.problems=8"]
    low = run_experiment(resolve_lab("gspo", sets=[*sets, "objective.clip_high=1e6"]), 8)
    high = run_experiment(resolve_lab("gspo", sets=[*sets, "objective.clip_low=1.0"]), 8)
    on_policy = run_experiment(resolve_lab("gspo", sets=[*sets, "update.mini_batches=1"]), 8)
    for history in (low, high, on_policy):
        assert history.bin_rollouts.sum(1).eq(128).all()
        torch.testing.assert_close(history.bin_kept.sum(1) / 128, history.kept_advantage, rtol=1e-9, atol=1e-12)
        starts, shares, kept = history.kept_by_length()
        assert (len(starts), float(shares.sum())) == (kept.shape[1], pytest.approx(1))
    assert float(low.clip_pressure.mean()) < -0.1 < 0.01 < float(high.clip_pressure.mean())
    assert float(low.expected_pressure.mean()) < 0 < float(high.expected_pressure.mean())
    assert float(on_policy.clip_pressure.abs().max()) == 0
