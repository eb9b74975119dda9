"""What training and its held-out check ask of the sampler, and one batch of it split over processes by whole groups.

Each process makes the prompts of a contiguous share of the problems, images and all, samples and scores them; then all of them
hold everything but the images, which stay where they were decoded (training/image_delivery.py). The draws of a row follow from
the seed and its place among all rows of the call, so which process samples it changes nothing but the last bits of logits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from luspo_cli.advantages import BATCH_STD, advantages_of
from luspo_cli.config.run import TrainRun
from luspo_cli.data.batches import BatchSource
from luspo_cli.objectives.own import advantage_of
from luspo_cli.policy.loading import context_of
from luspo_cli.processes.ranks import Ranks
from luspo_cli.records import Problem, Prompt, Reward, Rollout, ScoredGroup
from luspo_cli.rewards.rubric import Rubric
from luspo_cli.rollout.given import GivenRollouts
from luspo_cli.rollout.sampler import PromptsOnRequest, Sampler, SamplingOptions
from luspo_cli.runs.draws import FIRST_STEP
from luspo_cli.training.dynamic_sampling import StepGroups, sample_step
from luspo_cli.training.fit import rows_here, rows_note

logger = logging.getLogger(__name__)

SEED_STRIDE = 1_000_000_007
ROUND_STRIDE = 618_033_989_000_003
"""Far above SEED_STRIDE: below 2000 seeds and 100 rounds, no round of one run draws what a step of another one does."""
HELD_OUT_SEED_OFFSET = 1_000_003


@dataclass(frozen=True, slots=True)
class Scored:
    """Prompts, groups of rollouts and their rewards, in the order of the problems, and what they took on the slowest process."""

    prompts: list[Prompt]
    """With images only where this process made them and was asked to keep them."""
    groups: list[list[Rollout]]
    rewards: list[tuple[Reward, ...]]
    rollout_s: float
    reward_s: float
    prompts_s: float = 0.0
    """Of `rollout_s`, where prompts were made at once."""
    overlap_s: float | None = None
    """Of `rollout_s`, in which workers graded what was finished; None where nothing was graded before the end."""

    def times(self) -> dict[str, float]:
        """The seconds by the names of metrics.jsonl."""
        overlapped = {} if self.overlap_s is None else {"time/reward_while_sampling": self.overlap_s}
        return {
            "time/rollout": self.rollout_s,
            "time/prompts": self.prompts_s,
            "time/reward": self.reward_s,
            **overlapped,
        }


class StepSampler:
    """Samples and scores the rounds of one training step; keeps the time that took."""

    def __init__(
        self,
        config: TrainRun,
        step: int,
        sampler: Sampler,
        rubric: Rubric,
        to_prompt: Callable[[Problem], Prompt],
        ranks: Ranks,
        given: Sequence[Sequence[Rollout]] = (),
    ) -> None:
        """`given`: [groups][rollouts] of the step, round after round, which take the place of draws as far as they reach."""
        self._config, self._step, self._given = config, step, list(given)
        self._sampler, self._rubric, self._to_prompt, self._ranks = sampler, rubric, to_prompt, ranks
        self.times: dict[str, float] = {}
        """`time/{rollout,prompts,reward}` of all rounds, and `time/reward_while_sampling` where that was done."""

    def groups(self, source: BatchSource) -> StepGroups:
        """The groups of the step as the update gets them."""
        return settled(sample_step(source, self._step, self._config.rollout, self.sample), self._config)

    def sample(self, problems: Sequence[Problem], round_number: int) -> list[ScoredGroup]:
        """The scored groups of these problems; `round_number` counts from 0, and each round has draws of its own."""
        seed = (self._config.run.seed * SEED_STRIDE + self._step + round_number * ROUND_STRIDE) % 2**63
        options = replace(training_draws(self._config), seed=seed)
        given, self._given = self._given[: len(problems)], self._given[len(problems) :]
        # Where rounds go on beyond what was given (another reward decides about them), the policy draws.
        sampler = GivenRollouts(given, FIRST_STEP) if len(given) == len(problems) else self._sampler
        scored = sample_and_score(
            self._ranks, sampler, self._rubric, problems, self._to_prompt, options, keep_images=True
        )
        for name, seconds in scored.times().items():
            self.times[name] = self.times.get(name, 0.0) + seconds
        return with_advantages(problems, scored, self._config)


def sample_and_score(
    ranks: Ranks,
    sampler: Sampler,
    rubric: Rubric,
    problems: Sequence[Problem],
    to_prompt: Callable[[Problem], Prompt],
    options: SamplingOptions,
    *,
    keep_images: bool,
) -> Scored:
    """Rollouts and rewards for all problems, on every process; each does its share. A failed share fails everywhere.

    Without `keep_images` a prompt is made when the sampler comes to it, and its images are let go.
    """
    share = ranks.share(len(problems))
    own = [problems[i] for i in share]
    started = time.perf_counter()
    # A row's draws follow its place among the rows of all processes.
    draws = replace(options, first_row=options.first_row + share.start * options.group_size)

    with ranks.phase():
        prompts: Sequence[Prompt] = PromptsOnRequest(own, to_prompt)
        if keep_images:
            prompts = list(prompts)
        made = time.perf_counter()
        overlap_s: float | None = None
        if rubric.grades_while_sampling:
            with rubric.begin(own, options.group_size) as grading:
                groups = sampler.sample_groups(prompts, draws, on_finished=grading.add)
                sampled = time.perf_counter()
                rewards = grading.rewards(groups)
            overlap_s = grading.busy_s
        else:
            groups = sampler.sample_groups(prompts, draws)
            sampled = time.perf_counter()
            rewards = rubric.score_groups(own, groups)
    times = sampled - started, time.perf_counter() - sampled, made - started, overlap_s
    parts = ranks.gather(Scored([], groups, rewards, *times))
    everywhere = [_without_images(group) for part in parts for group in part.groups]
    if keep_images:
        everywhere[share.start : share.stop] = prompts
    return Scored(
        prompts=everywhere,
        groups=[group for part in parts for group in part.groups],
        rewards=[rewards for part in parts for rewards in part.rewards],
        rollout_s=max(part.rollout_s for part in parts),
        reward_s=max(part.reward_s for part in parts),
        prompts_s=max(part.prompts_s for part in parts),
        overlap_s=max((part.overlap_s for part in parts if part.overlap_s is not None), default=None),
    )


def _without_images(group: Sequence[Rollout]) -> Prompt:
    """The prompt that a group answers."""
    first = group[0]
    return Prompt(first.problem_id, first.prompt_tokens, None, first.thought_open)


def with_advantages(problems: Sequence[Problem], scored: Scored, config: TrainRun) -> list[ScoredGroup]:
    """Every group with its prompt, rewards and advantages, in order."""
    rewards = scored.rewards
    found = advantages_of(advantage_of(config.objective), [[reward.total for reward in group] for group in rewards])
    return [
        ScoredGroup(problem, tuple(group), rewards, tuple(advantages), prompt)
        for problem, prompt, group, rewards, advantages in zip(
            problems, scored.prompts, scored.groups, rewards, found, strict=True
        )
    ]


def settled(groups: StepGroups, config: TrainRun) -> StepGroups:
    """The step's groups as the update gets them: with advantages that know the whole batch, without what is masked.

    After several rounds a batch's std is not that of a round. Masked are truncated rollouts, with `reward.truncated = "mask"`.
    """
    groups = _over_the_batch(groups, config)
    if config.reward.truncated != "mask":
        return groups
    return replace(groups, batch=[group.without_truncated() for group in groups.batch])


def _over_the_batch(groups: StepGroups, config: TrainRun) -> StepGroups:
    kind = str(config.objective.advantage)
    if kind != BATCH_STD or groups.rounds == 1:
        return groups
    found = advantages_of(kind, [[reward.total for reward in group.rewards] for group in groups.batch])
    batch = [replace(group, advantages=tuple(own)) for group, own in zip(groups.batch, found, strict=True)]
    of_rollouts = {id(group.rollouts): group.advantages for group in batch}
    sampled = [
        replace(group, advantages=of_rollouts.get(id(group.rollouts), group.advantages)) for group in groups.sampled
    ]
    return replace(groups, batch=batch, sampled=sampled)


def training_draws(config: TrainRun) -> SamplingOptions:
    """How the rollouts that are trained on are drawn, but for the seed of each step."""
    rollout = config.rollout
    return SamplingOptions(
        group_size=rollout.group_size,
        max_response_tokens=rollout.max_response_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        with_experts=config.update.router_replay == "rollout",
    )


def held_out_limit(config: TrainRun) -> int:
    """The response limit of the evaluation during training."""
    return config.evaluation.max_response_tokens or config.rollout.max_response_tokens


def held_out_draws(config: TrainRun) -> SamplingOptions:
    """How the held-out responses are drawn: the same each time, and apart from those of training."""
    settings = config.evaluation
    return SamplingOptions(
        group_size=settings.samples,
        max_response_tokens=held_out_limit(config),
        temperature=settings.temperature,
        seed=config.run.seed + HELD_OUT_SEED_OFFSET,
    )


def rows_at_once(config: TrainRun) -> int:
    """Rows that this process samples at once: `rollout.max_rows`, or what the memory holds, which is then said in the log."""
    rows = rows_here(config)
    for sentence in rows_note(config, rows):
        logger.info(sentence)
    return rows


def longest_row(config: TrainRun, model: Any, held_out_tokens: int) -> int:
    """Tokens of the longest row that can be sampled, prompt and response, within the model's context.

    `held_out_tokens`: of the longest held-out prompt, 0 where there is none.
    """
    rows = [config.data.max_prompt_tokens + config.rollout.max_response_tokens]
    if held_out_tokens:
        rows.append(held_out_tokens + held_out_limit(config))
    return min(max(rows), context_of(model.config) or max(rows))
