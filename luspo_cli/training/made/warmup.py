"""The warm-up of a made model: supervised training on demonstrations, checks by sampling, and the gates on what they find.

It ends early, at an accuracy where most groups have right and wrong answers; gates on the result keep a run from starting where
no conclusion could be drawn (docs/experiments.md).
"""

from __future__ import annotations

import logging
import math
import random
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from luspo_cli.config.run import TrainRun
from luspo_cli.config.warmup import WarmupConfig
from luspo_cli.policy.images import hidden_states, rotary_positions
from luspo_cli.policy.loading import LoadedModel
from luspo_cli.policy.packing import PolicyBatch, Row, policy_batch
from luspo_cli.policy.routing import STORED, Routed, load, read_routers, routers, summed_probabilities, taken
from luspo_cli.records import Problem, Rollout, StopReason
from luspo_cli.rewards.exact import score_exact
from luspo_cli.rollout.in_process.sampler import InProcessSampler
from luspo_cli.rollout.sampler import SamplingOptions
from luspo_cli.training.expert_choices import balancing_loss, load_balance, shares_of
from luspo_cli.training.made.task import MadeTask

GATE_PROBLEMS, GATE_GROUP = 64, 16
"""A check samples 1,024 responses: the standard error of a correlation is then 0.03, of an accuracy 0.02 or less."""
FIRST_CHECK = 0.8
"""Of the curriculum: earlier the model has not seen the longest prompts."""
LEAST_LEARNING_RATE = 0.05
_NOT_TRAINED = -100

logger = logging.getLogger(__name__)


def warm_up(loaded: LoadedModel, task: MadeTask, config: TrainRun) -> dict[str, float]:
    """Train on demonstrations, response tokens only, until a check passes every gate; returns that check, or the last one."""
    settings, profile, model = config.warmup, config.data.profile, loaded.model
    steps = settings.steps or task.warm_up_steps[profile]
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    generator = random.Random(f"luspo warm-up {profile} {config.run.seed}")
    curriculum = max(1, int(task.curriculum * steps))
    model.train()
    found: dict[str, float] = {}
    for step in range(steps):
        for parameters in optimizer.param_groups:
            parameters["lr"] = settings.learning_rate * warm_up_factor(step, steps, settings.ramp_steps)
        share = min(1.0, (step + 1) / curriculum)
        rows = demonstrations(loaded, task, profile, generator, settings.rows, share)
        _backward(loaded, rows, task.rows_a_pass or len(rows), settings)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        last = step + 1 == steps
        if last or (step + 1 >= FIRST_CHECK * curriculum and (step + 1) % settings.check_every == 0):
            found = _measure(loaded, task, config, f"check {step}") | {"steps": step + 1}
            missed = missed_gates(found, config)
            logger.info(
                f"warm-up step {step + 1} of at most {steps}: sampled accuracy {found['accuracy']:.2f};"
                f" {'gates not passed yet: ' + '; '.join(missed) if missed else 'fit to start'}"
            )
            if found["accuracy"] >= settings.stop_accuracy and not missed:
                break
    return found


def missed_gates(report: dict[str, float], config: TrainRun) -> list[str]:
    """The gates (tiny-model probe: docs/experiments.md) that the warm-up's result does not pass, in words."""
    gates, missed = config.warmup, []
    if not gates.min_accuracy <= report["accuracy"] <= gates.max_accuracy:
        missed.append(f"accuracy {report['accuracy']:.2f} is outside {gates.min_accuracy} to {gates.max_accuracy}")
    if report["mixed_fraction"] < gates.min_mixed_fraction:
        missed.append(f"only {report['mixed_fraction']:.0%} of groups are mixed, {gates.min_mixed_fraction:.0%} wanted")
    if config.data.profile == "neutral":
        if abs(report["length_correlation"]) > gates.max_length_correlation:
            missed.append(f"length and being right correlate at {report['length_correlation']:.2f} within prompts")
        if report["length_spread"] < gates.min_length_spread:
            missed.append(f"length spread {report['length_spread']:.2f} is below {gates.min_length_spread}")
    return missed


def warm_up_factor(step: int, steps: int, ramp: int) -> float:
    """Linear ramp, then cosine down to 5 %."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / max(1, ramp)) * (LEAST_LEARNING_RATE + (1 - LEAST_LEARNING_RATE) * cosine)


def demonstrations(
    loaded: LoadedModel, task: MadeTask, profile: str, generator: random.Random, number: int, share: float = 1.0
) -> list[Row]:
    """Rows of problems of the task, each with a demonstration and the end of sequence in the place of a rollout."""
    rows = []
    for _ in range(number):
        problem = task.problem(profile, generator, "", share)
        prompt, text = loaded.prompt(problem), task.demonstration(problem, profile, generator, share)
        tokens = (*loaded.tokenizer.encode(text), loaded.tokenizer.eos_token_id)
        rows.append(Row(Rollout("", prompt.tokens, tokens, text, StopReason.END), 0.0, prompt.image_inputs))
    return rows


def next_tokens(batch: PolicyBatch) -> torch.Tensor:
    """The token that follows each position [B, W], -100 where that is none of the response."""
    targets = torch.full_like(batch.tokens, _NOT_TRAINED)
    rows, columns = batch.response_mask.nonzero(as_tuple=True)
    at = batch.prompt_lengths[rows] + columns
    targets[rows, at - 1] = batch.tokens[rows, at]
    return targets


def of_answer(targets: torch.Tensor, mark: int, end: int) -> torch.Tensor:
    """Which of the tokens to learn [B, W] are the answer's: all between the mark and the end of the sequence."""
    return (targets == mark).cumsum(1).bool() & (targets != mark) & (targets != end) & (targets != _NOT_TRAINED)


def _backward(loaded: LoadedModel, rows: list[Row], a_pass: int, settings: WarmupConfig) -> None:
    """Add the gradient of the weighted mean cross-entropy over all response tokens of the rows, and of a balancing loss."""
    if a_pass < len(rows):
        rows = sorted(rows, key=lambda row: row.width)
    model, mark = loaded.model, loaded.tokenizer.convert_tokens_to_ids("#")
    passes = []
    for first in range(0, len(rows), a_pass):
        batch = policy_batch(rows[first : first + a_pass])
        targets = next_tokens(batch)
        answer = of_answer(targets, mark, loaded.tokenizer.eos_token_id)
        weights = torch.where(answer, settings.answer_weight, 1.0) * (targets != _NOT_TRAINED)
        passes.append((batch, targets.flatten(), weights.flatten()))
    total = sum(weights.sum() for _, _, weights in passes)
    for batch, targets, weights in passes:
        with torch.autocast("cpu", torch.bfloat16), read_routers(model) as noted:
            positions = rotary_positions(model, batch.tokens, batch.images)
            logits = model.lm_head(hidden_states(model, batch.tokens, positions, batch.images, use_cache=False))
        losses = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets, reduction="none")
        loss = (weights * losses).sum() / total
        if settings.router_aux_coefficient:
            assert len(passes) == 1  # a task of several passes has images, and no model with a tower has experts
            loss = loss + settings.router_aux_coefficient * _balancing_loss(noted, targets)
        loss.backward()


def _balancing_loss(noted: list[tuple[torch.Tensor, torch.Tensor]], targets: torch.Tensor) -> torch.Tensor:
    """Over the tokens of one pass that a response token is predicted from, of all that its routers were noted to choose."""
    read = (targets != _NOT_TRAINED).nonzero()[:, 0]
    probabilities, chosen = summed_probabilities(noted, read), taken(noted)
    loads = shares_of([load(chosen[:, read], probabilities.shape[1])])
    return balancing_loss(Routed(chosen, read, probabilities), loads, len(read))


def _measure(loaded: LoadedModel, task: MadeTask, config: TrainRun, draw: str) -> dict[str, float]:
    """Sampled accuracy, mixed groups, truncation and the length statistics of the gates; `draw` names a sample of its own."""
    sampler = InProcessSampler(loaded.model, loaded.tokenizer, loaded.end_tokens, max_rows=1024)
    generator = random.Random(f"luspo {draw} {config.data.profile} {config.run.seed}")
    made = [task.problem(config.data.profile, generator, str(i), 1.0) for i in range(GATE_PROBLEMS)]
    limit, with_experts = config.rollout.max_response_tokens, bool(routers(loaded.model))
    options = SamplingOptions(GATE_GROUP, limit, seed=generator.getrandbits(62), with_experts=with_experts)
    groups = sampler.sample_groups([loaded.prompt(problem) for problem in made], options)
    right = [[_is_right(problem, rollout) for rollout in row] for problem, row in zip(made, groups, strict=True)]
    lengths = [[rollout.response_length for rollout in row] for row in groups]
    flat = [length for row in lengths for length in row]
    return {
        "accuracy": statistics.fmean(good for row in right for good in row),
        "mixed_fraction": statistics.fmean(0 < sum(row) < len(row) for row in right),
        "truncated_fraction": statistics.fmean(rollout.truncated for row in groups for rollout in row),
        "length_mean": statistics.fmean(flat),
        "length_spread": statistics.pstdev(flat) / statistics.fmean(flat),
        "length_correlation": within_group_correlation(lengths, right),
        **(_loads(loaded.model, [rollout for row in groups for rollout in row]) if with_experts else {}),
    }


def _loads(model: Any, rollouts: Sequence[Rollout]) -> dict[str, float]:
    """How evenly the experts are chosen over the response tokens that were sampled."""
    found = routers(model)
    shape = (-1, len(found), found[0].top_k)
    met = [
        np.frombuffer(rollout.experts, dtype=STORED).reshape(shape)[len(rollout.prompt_tokens) - 1 :]
        for rollout in rollouts
    ]
    return load_balance(load(torch.from_numpy(np.concatenate(met)).transpose(0, 1), found[0].num_experts).double())


def _is_right(problem: Problem, rollout: Rollout) -> bool:
    return score_exact(rollout.response, problem.answer, ended=not rollout.truncated).correct


def within_group_correlation(lengths: Sequence[Sequence[int]], right: Sequence[Sequence[bool]]) -> float:
    """Pearson correlation of length and being right after both are centred in their group; 0 where either is constant."""
    x = [n - statistics.fmean(row) for row in lengths for n in row]
    y = [r - statistics.fmean(row) for row in right for r in row]
    norm = math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
    return sum(a * b for a, b in zip(x, y, strict=True)) / norm if norm else 0.0
