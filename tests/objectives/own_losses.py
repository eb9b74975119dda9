"""Objectives of one's own: a right one for each part, and one for each way to be wrong."""

from __future__ import annotations

import sys

import torch

from luspo_cli.objectives import OwnObjective
from luspo_cli.objectives.surrogate import SurrogateLoss

LUSPO = {"clip_low": 2e-3, "clip_high": 2.5e-3}


def token_sum(batch):
    return 1 / batch.sequences


def mean_ratio(batch):
    return ((batch.log_ratio * batch.amounts).sum(-1, keepdim=True) / batch.lengths).clamp(max=10).exp()


def clipped(ratio, batch):
    low, high = 1 - batch.config.clip_low, 1 + batch.config.clip_high
    return -torch.minimum(ratio * batch.advantages, ratio.clamp(low, high) * batch.advantages)


def minus_mean(rewards):
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


luspo_again = OwnObjective("gspo", aggregation=token_sum, settings=LUSPO)
gspo_ratio = OwnObjective("gspo", ratio=mean_ratio)
gspo_surrogate = OwnObjective("gspo", surrogate=clipped)
dr_grpo_advantage = OwnObjective("grpo", advantage=minus_mean)
all_parts = OwnObjective(
    "gspo", advantage=minus_mean, ratio=mean_ratio, surrogate=clipped, aggregation=token_sum, settings=LUSPO
)


def of_prompts(batch):
    of_group = batch.groups.tokens.sum(-1).gather(-1, batch.group_ids)
    return (1 / (of_group * (batch.groups.sequences.sum(-1) > 0).sum(-1, keepdim=True)))[..., None]


prompt_mean = OwnObjective("dapo_prompt_mean", aggregation=of_prompts)

# The mean over the tokens of the micro-batch: what an aggregation must not be.
of_the_micro_batch = OwnObjective("dapo", aggregation=lambda batch: 1 / batch.mask.sum())
of_the_width = OwnObjective("dapo", aggregation=lambda batch: 1 / (batch.sequences * batch.mask.shape[-1]))
of_the_row = OwnObjective(
    "dapo", aggregation=lambda batch: torch.arange(1, len(batch.mask) + 1)[:, None] / batch.tokens
)
pulls_zero = OwnObjective("gspo", surrogate=lambda ratio, batch: -ratio * (batch.advantages + 0.5))
overflows = OwnObjective("grpo", ratio=lambda batch: (9 * batch.log_ratio).exp())
nan = OwnObjective("gspo", surrogate=lambda ratio, batch: -ratio * batch.advantages * float("nan"))
detached = OwnObjective("gspo", surrogate=lambda ratio, batch: -ratio.detach() * batch.advantages)
stopped = OwnObjective("grpo", surrogate=lambda ratio, batch: -ratio.detach() * batch.advantages * batch.logprobs)
token_level = OwnObjective("gspo", ratio=lambda batch: batch.log_ratio.exp())
no_batch_axis = OwnObjective("gspo", aggregation=lambda batch: 1 / batch.sequences.item())
uncounted = OwnObjective(
    "grpo", aggregation=lambda batch: 1 / (batch.sequences * batch.mask.sum(-1, keepdim=True).clamp(min=1))
)
draws = OwnObjective("gspo", aggregation=lambda batch: torch.rand(batch.mask.shape) / batch.sequences)
first_only = OwnObjective("gspo", advantage=lambda rewards: [rewards[0] - reward for reward in rewards])
too_few = OwnObjective("gspo", advantage=lambda rewards: rewards[1:])
divides = OwnObjective("gspo", aggregation=lambda batch: 1 // 0)
exits = OwnObjective("gspo", aggregation=lambda batch: sys.exit(0))
upside_down = OwnObjective("gspo", aggregation=lambda batch: -1 / batch.sequences)
all_zero = OwnObjective("gspo", advantage=lambda rewards: [0.0 for _ in rewards])
no_marks = OwnObjective("gspo", surrogate=lambda ratio, batch: SurrogateLoss(-ratio * batch.advantages, 1, 2))
a_list = OwnObjective("gspo", ratio=lambda batch: [1.0])
not_one = 3
