"""The conductor: sample → score → advantage → update → record, once a step.

    batch source ──problems──▶ sampler ──groups of rollouts──▶ rubric ──rewards──▶ advantages
                                  ▲                                                    │ scored groups
                                  └────── weights ◀── updater ◀── queue (rollout.lag) ◀┘
                                                     └──▶ metrics.jsonl, rollouts/, checkpoints/, evals/

Each stage consumes what the one before it returns and waits for nothing else, but that the rubric may begin with responses that
are finished while others are sampled (`reward.while_sampling`). A step's draws depend on (seed, step) alone, so a resumed run
takes up at any checkpoint and ends with the same weights, bit for bit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from luspo_cli.config.run import RunConfig, TrainRun
from luspo_cli.data.batches import BatchSource
from luspo_cli.metrics.names import BY_LENGTH, METRICS, metric_of, unknown_metrics
from luspo_cli.metrics.rollout_metrics import length_metrics, reward_metrics
from luspo_cli.processes.ranks import ALONE, Ranks
from luspo_cli.records import Problem, Prompt, Rollout, RowUpdate
from luspo_cli.rewards.rubric import Rubric
from luspo_cli.rollout.sampler import Sampler
from luspo_cli.runs.folder import RunFolder
from luspo_cli.runs.rollouts import HeldOutAnswer, store_held_out, store_rollouts
from luspo_cli.training.held_out import HeldOut
from luspo_cli.training.image_delivery import deliver_images
from luspo_cli.training.lag import LagQueue, with_old_logprobs
from luspo_cli.training.length_diagnostics import diagnose
from luspo_cli.training.noise_floor import noise_floor, untrained_difference
from luspo_cli.training.optimizer import learning_rate, release_gradients
from luspo_cli.training.sampling import StepSampler
from luspo_cli.training.update import Updater

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stages:
    """What the loop conducts; each part is made in stages.py and can be replaced alone."""

    problems: BatchSource
    to_prompt: Callable[[Problem], Prompt]
    sampler: Sampler
    rubric: Rubric
    updater: Updater
    held_out: HeldOut | None
    refresh_sampler: Callable[[], None]
    """Bring the policy's weights into the sampler."""
    save: Callable[[int], Any]
    """Write the checkpoint of a step."""
    queue: LagQueue = field(default_factory=lambda: LagQueue(0))
    """What was sampled and is not trained yet."""
    release_sampler: Callable[[], None] = lambda: None
    """Let what the sampler holds of the weights go until they are brought there again."""
    first_rollouts: Sequence[Sequence[Rollout]] = ()
    """[groups][rollouts] that step 1 trains on in the place of draws of its own: what a fork was handed."""
    ranks: Ranks = ALONE
    """The processes that share the work; every one of them runs the loop, and the first one owns the run folder."""


def train(
    config: TrainRun,
    stages: Stages,
    folder: RunFolder,
    first_step: int,
    on_step: Callable[[dict[str, Any]], None],
    stop_requested: Callable[[], bool],
) -> int:
    """Run steps `first_step`+1 to `run.steps`; returns the last finished step, earlier than the last one if asked to stop."""
    ranks, masks, lag = stages.ranks, config.reward.truncated == "mask", config.rollout.lag
    if first_step < lag and ranks.is_first:
        logger.info(
            f"rollout.lag = {lag}: a batch trains {lag} steps after it was sampled, steps 1 to {lag} train nothing"
        )
    tokens_total = ranks.broadcast(folder.last_tokens_total() if ranks.is_first else 0)
    stages.refresh_sampler()
    if first_step == 0 and not ranks.broadcast(ranks.is_first and 0 in folder.evaluated_steps()):
        evaluation, answers = _evaluate(config, stages, 0)
        with ranks.phase():
            if ranks.is_first and evaluation:
                store_held_out(folder.held_out_answers, 0, answers)
                folder.append_evaluation(0, evaluation)
    for step in range(first_step + 1, config.run.steps + 1):
        started = time.perf_counter()
        place = config.fork.step + step  # of problems, draws and learning rate: a fork goes on in its parent's count
        given = stages.first_rollouts if step == 1 else ()
        sampler = StepSampler(config, place, stages.sampler, stages.rubric, stages.to_prompt, ranks, given)
        groups = sampler.groups(stages.problems)
        rewards = [reward for group in groups.sampled for reward in group.rewards]
        stages.rubric.look(f"step {step}", rewards, aloud=ranks.is_first)
        every = config.update.noise_floor_every
        noise: dict[str, float | None] = {}
        measures_noise = bool(every) and step % every == 1 % every
        batch = deliver_images(groups.batch, stages.updater, ranks, measures_noise)
        groups = replace(groups, batch=batch)  # the one before holds images that no row of this process needs
        if measures_noise:
            policy, budget = stages.updater.policy, config.update.tokens_per_micro_batch
            noise = {
                "ratio/noise_floor": noise_floor(policy, batch, budget),
                **untrained_difference(policy, batch, budget),
            }
        knowing = time.perf_counter()
        if lag:
            batch = with_old_logprobs(stages.updater, batch)
        known = time.perf_counter() - knowing
        due = stages.queue.exchange(step, groups.sampled, batch)
        stores = due is not None and _is_stored(due.step, config.run)
        updated: dict[str, Any] = {"update/rows_trained": 0, "update/rows_skipped": 0, "time/logprobs": 0.0}
        row_updates: list[RowUpdate | None] = []
        if due is not None:
            schedule = config.fork.schedule_steps or config.run.steps
            try:
                shares_every = config.update.exact_gradient_shares_every
                stages.release_sampler()
                exact = bool(shares_every) and step % shares_every == 1 % shares_every
                updated = stages.updater.update(due.batch, learning_rate(place - 1, schedule, config.update), exact)
            except Exception:
                if stores and ranks.is_first:
                    with suppress(Exception):  # what stopped the update is what must be said
                        store_rollouts(folder.rollouts, due.step, due.sampled, due.batch)
                raise
            diagnosed, row_updates = diagnose(stages.updater.rows, ranks, due.batch, config, with_tokens=stores)
            updated |= diagnosed
            if config.update.spare_memory:
                release_gradients(stages.updater.policy, stages.updater.optimizer)
        if lag:
            updated |= {"update/lag": step - due.step if due else None}
            updated["time/logprobs"] += known
        pushing = time.perf_counter()
        stages.refresh_sampler()
        pushed = time.perf_counter() - pushing

        evaluating = time.perf_counter()
        evaluation, answers = _evaluate(config, stages, step)
        evaluated = {"time/evaluation": time.perf_counter() - evaluating} if evaluation else {}
        rollouts = [rollout for group in groups.sampled for rollout in group.rollouts]
        tokens_total += sum(rollout.response_length for rollout in rollouts)
        metrics = {
            "step": step,
            "tokens/total": tokens_total,
            **length_metrics(rollouts),
            **reward_metrics(groups.sampled),
            **(groups.metrics() if config.rollout.dynamic_sampling else {}),
            **updated,
            **({"update/rows_masked": sum(len(group.masked) for group in due.batch)} if masks and due else {}),
            **noise,
            **{key: value for key, value in evaluation.items() if metric_of(key)},
            **sampler.times,
            "time/weights": pushed,
            **evaluated,
        }
        with ranks.phase():
            if ranks.is_first:
                folder.check_still_here()
                if evaluation:
                    store_held_out(folder.held_out_answers, step, answers)
                    folder.append_evaluation(step, evaluation)
                if stores and due:
                    store_rollouts(folder.rollouts, due.step, due.sampled, due.batch, row_updates)
                metrics["time/total"] = time.perf_counter() - started
                folder.append_metrics(in_order(metrics))
        stop = ranks.any(stop_requested())  # one process is asked, all of them stop after the same step
        last, every = step == config.run.steps, config.run.checkpoint_every
        if (config.run.checkpoint_last if last else stop) or (every and step % every == 0):
            stages.save(step)
        with ranks.phase():
            if ranks.is_first:
                on_step(in_order(metrics))  # after the checkpoint: it may end the run
        if stop:
            return step
    return config.run.steps


def in_order(metrics: dict[str, Any]) -> dict[str, Any]:
    """The record in the order of `METRICS`, own reward functions behind them; a name that is no metric is a defect."""
    unknown = unknown_metrics(metrics.keys() - {BY_LENGTH})
    if unknown:
        raise AssertionError(f"metrics without an entry in metrics/names.py: {unknown}")
    own = [name for name in metrics if name not in METRICS and name != BY_LENGTH]
    return {name: metrics[name] for name in (*METRICS, *own, BY_LENGTH) if name in metrics}


def _is_stored(step: int, run: RunConfig) -> bool:
    return bool(run.rollouts_every) and (step == 1 or step % run.rollouts_every == 0)


def _evaluate(config: TrainRun, stages: Stages, step: int) -> tuple[dict[str, Any], list[HeldOutAnswer]]:
    """What the held-out check finds after `step`; empty where none is due."""
    every = config.evaluation.every
    if stages.held_out is None or not every or (step % every and step != config.run.steps):
        return {}, []
    return stages.held_out.evaluate(stages.sampler, stages.ranks)
