"""Sampling and scoring, split over processes by whole groups.

Each process samples and scores a contiguous share of the problems; then all of them hold everything. The draws of a row follow
from the seed and its place among all rows of the call, so which process samples it changes nothing but the last bits of logits.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from luspo_cli.processes.ranks import Ranks
from luspo_cli.records import Problem, Reward, Rollout
from luspo_cli.rewards.rubric import Rubric
from luspo_cli.rollout.sampler import Prompt, Sampler, SamplingOptions


@dataclass(frozen=True, slots=True)
class Scored:
    """Groups and their rewards, in the order of the problems, and what they took on the slowest process."""

    groups: list[list[Rollout]]
    rewards: list[Reward]  # one a rollout, group by group
    rollout_s: float
    reward_s: float


def sample_and_score(
    ranks: Ranks,
    sampler: Sampler,
    rubric: Rubric,
    problems: Sequence[Problem],
    prompts: Sequence[Prompt],
    options: SamplingOptions,
) -> Scored:
    """Rollouts and rewards for all problems, on every process; each does its share. A failed share fails everywhere."""
    share = ranks.share(len(problems))
    own = [problems[i] for i in share]
    parts = ranks.gather(
        ranks.together(
            lambda: _own_share(
                sampler,
                rubric,
                own,
                [prompts[i] for i in share],
                replace(options, first_row=options.first_row + share.start * options.group_size),
            )
        )
    )
    return Scored(
        groups=[group for part in parts for group in part.groups],
        rewards=[reward for part in parts for reward in part.rewards],
        rollout_s=max(part.rollout_s for part in parts),
        reward_s=max(part.reward_s for part in parts),
    )


def _own_share(
    sampler: Sampler, rubric: Rubric, problems: Sequence[Problem], prompts: Sequence[Prompt], options: SamplingOptions
) -> Scored:
    started = time.perf_counter()
    groups = sampler.sample_groups(prompts, options)
    sampled = time.perf_counter()
    of_rollout = [problem for problem, group in zip(problems, groups, strict=True) for _ in group]
    rewards = rubric.score(of_rollout, [rollout for group in groups for rollout in group])
    return Scored(groups, rewards, sampled - started, time.perf_counter() - sampled)
