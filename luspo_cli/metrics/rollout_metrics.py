"""Numbers of one step's rollouts: lengths, truncation, rewards, groups, length pressure. Pure Python, no torch.

A number that does not exist (the mean length of correct rollouts where none is correct) is None, never 0.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from luspo_cli.records import Rollout, ScoredGroup, VerificationStatus


def length_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """`response_length/{mean,p50,p90,max}` in tokens and `response/truncated_fraction`."""
    lengths = sorted(rollout.response_length for rollout in rollouts)
    return {
        "response_length/mean": statistics.fmean(lengths),
        "response_length/p50": statistics.median(lengths),
        "response_length/p90": lengths[max(0, -(-9 * len(lengths) // 10) - 1)],
        "response_length/max": lengths[-1],
        "response/truncated_fraction": statistics.fmean(rollout.truncated for rollout in rollouts),
    }


def reward_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float | None]:
    """Means of the reward terms, length of correct and incorrect rollouts, shares of groups by outcome, failed checks."""
    rewards = [reward for group in groups for reward in group.rewards]
    lengths = [rollout.response_length for group in groups for rollout in group.rollouts]
    correct = [reward.status is VerificationStatus.CORRECT for reward in rewards]
    right = [length for length, good in zip(lengths, correct, strict=True) if good]
    wrong = [length for length, good in zip(lengths, correct, strict=True) if not good]
    counts = [sum(r.status is VerificationStatus.CORRECT for r in group.rewards) for group in groups]
    full = [count == len(group.rewards) for count, group in zip(counts, groups, strict=True)]
    empty = [count == 0 for count in counts]
    mixed = [0 < count < len(group.rewards) for count, group in zip(counts, groups, strict=True)]
    statuses = [reward.status for reward in rewards]
    return {
        "response_length/correct": statistics.fmean(right) if right else None,
        "response_length/incorrect": statistics.fmean(wrong) if wrong else None,
        "reward/total/mean": statistics.fmean(reward.total for reward in rewards),
        "reward/accuracy/mean": statistics.fmean(reward.accuracy for reward in rewards),
        "reward/format/mean": statistics.fmean(reward.format for reward in rewards),
        "reward/overlong/mean": statistics.fmean(reward.overlong for reward in rewards),
        "reward/no_answer_fraction": statuses.count(VerificationStatus.NO_ANSWER) / len(statuses),
        "reward/verification_timeouts": statuses.count(VerificationStatus.TIMEOUT),
        "reward/verification_crashes": statuses.count(VerificationStatus.CRASHED),
        "group/all_correct_fraction": statistics.fmean(full),
        "group/all_wrong_fraction": statistics.fmean(empty),
        "group/mixed_fraction": statistics.fmean(mixed),
    }
