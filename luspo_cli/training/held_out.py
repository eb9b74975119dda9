"""Accuracy on a fixed held-out slice during training, with an interval that says how sure the number is."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from luspo_cli.grading.verdict import Reason
from luspo_cli.metrics.intervals import accuracy_interval
from luspo_cli.metrics.rollout_metrics import length_metrics
from luspo_cli.processes.ranks import ALONE, Ranks
from luspo_cli.records import Problem, Prompt, Rollout
from luspo_cli.rewards.rubric import Rubric
from luspo_cli.rollout.sampler import Sampler, SamplingOptions
from luspo_cli.training.sampling import sample_and_score

ACCURACY = ("evaluation/accuracy", "evaluation/accuracy_low", "evaluation/accuracy_high")


class HeldOut:
    """The slice and how to sample it: the same draws each time, so that only the policy differs.

    Prompts are made anew for each evaluation: the pixels of a whole slice would fill the memory between two of them. `blind` are
    the same problems with other images (data/blind.py), measured a second time; none: no second time.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        to_prompt: Callable[[Problem], Prompt],
        options: SamplingOptions,
        rubric: Rubric,
        blind: Sequence[Problem] = (),
    ) -> None:
        self.problems, self.to_prompt, self.options, self.rubric = list(problems), to_prompt, options, rubric
        self.blind = list(blind)

    def evaluate(self, sampler: Sampler, ranks: Ranks = ALONE) -> dict[str, Any]:
        """Sample and score; keys as in metrics.jsonl plus the counts of failed checks."""
        result = self._measure(self.problems, sampler, ranks)
        if self.blind:
            blind = self._measure(self.blind, sampler, ranks)
            result |= {key.replace("/", "/blind_"): blind[key] for key in ACCURACY}
        return result

    def _measure(self, problems: Sequence[Problem], sampler: Sampler, ranks: Ranks) -> dict[str, Any]:
        scored = sample_and_score(ranks, sampler, self.rubric, problems, self.to_prompt, self.options)
        rollouts: list[Rollout] = [rollout for group in scored.groups for rollout in group]
        rewards = [reward for group in scored.rewards for reward in group]
        right = [reward.verdict.correct for reward in rewards]
        size = self.options.group_size
        per_problem = [statistics.fmean(right[i : i + size]) for i in range(0, len(right), size)]
        low, high = accuracy_interval(per_problem, samples=size)
        lengths = length_metrics(rollouts)
        reasons = [reward.verdict.reason for reward in rewards]
        return {
            "evaluation/accuracy": statistics.fmean(per_problem),
            "evaluation/accuracy_low": low,
            "evaluation/accuracy_high": high,
            "evaluation/problems": len(problems),
            "evaluation/response_length/mean": lengths["response_length/mean"],
            "evaluation/truncated_fraction": lengths["response/truncated_fraction"],
            "evaluation/no_answer_fraction": reasons.count(Reason.NO_ANSWER) / len(reasons),
            "evaluation/failed_verifications": reasons.count(Reason.TIMEOUT) + reasons.count(Reason.CRASHED),
        }
