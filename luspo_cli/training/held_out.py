"""Accuracy on a fixed held-out slice during training, with an interval that says how sure the number is."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from luspo_cli.grading.verdict import Reason, Verdict
from luspo_cli.metrics.intervals import accuracy_interval
from luspo_cli.processes.ranks import ALONE, Ranks
from luspo_cli.records import Problem, Prompt
from luspo_cli.rewards.rubric import Rubric
from luspo_cli.rollout.sampler import Sampler, SamplingOptions
from luspo_cli.training.sampling import sample_and_score

ACCURACY = ("evaluation/accuracy", "evaluation/accuracy_low", "evaluation/accuracy_high")


class HeldOut:
    """The slice and how to sample it: the same draws each time, so that only the policy differs.

    It is sampled in parts of at most `rows` responses a process (at least one problem), of which only lengths and verdicts are
    kept, and a prompt is made when the sampler comes to it: memory does not grow with the slice. A response's draws follow from
    its place in the whole slice. `blind` are the same problems with other images (data/blind.py), measured a second time; none:
    no second time.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        to_prompt: Callable[[Problem], Prompt],
        options: SamplingOptions,
        rubric: Rubric,
        blind: Sequence[Problem] = (),
        *,
        rows: int = 1024,
    ) -> None:
        self.problems, self.to_prompt, self.options, self.rubric = list(problems), to_prompt, options, rubric
        self.blind = list(blind)
        self.part = max(1, rows // options.group_size)
        """Problems of one process in one call of the sampler."""

    def evaluate(self, sampler: Sampler, ranks: Ranks = ALONE) -> dict[str, Any]:
        """Sample and score; keys as in metrics.jsonl plus the counts of failed checks."""
        result = self._measure(self.problems, sampler, ranks)
        if self.blind:
            blind = self._measure(self.blind, sampler, ranks)
            result |= {key.replace("/", "/blind_"): blind[key] for key in ACCURACY}
        return result

    def _measure(self, problems: Sequence[Problem], sampler: Sampler, ranks: Ranks) -> dict[str, Any]:
        size, part = self.options.group_size, self.part * ranks.size
        lengths: list[int] = []
        truncated: list[bool] = []
        verdicts: list[Verdict] = []
        for start in range(0, len(problems), part):
            options, own = replace(self.options, first_row=start * size), problems[start : start + part]
            scored = sample_and_score(ranks, sampler, self.rubric, own, self.to_prompt, options, keep_images=False)
            lengths += [rollout.response_length for group in scored.groups for rollout in group]
            truncated += [rollout.truncated for group in scored.groups for rollout in group]
            verdicts += [reward.verdict for group in scored.rewards for reward in group]
        right = [verdict.correct for verdict in verdicts]
        per_problem = [statistics.fmean(right[i : i + size]) for i in range(0, len(right), size)]
        low, high = accuracy_interval(per_problem, samples=size)
        reasons = [verdict.reason for verdict in verdicts]
        return {
            "evaluation/accuracy": statistics.fmean(per_problem),
            "evaluation/accuracy_low": low,
            "evaluation/accuracy_high": high,
            "evaluation/problems": len(problems),
            "evaluation/response_length/mean": statistics.fmean(lengths),
            "evaluation/truncated_fraction": statistics.fmean(truncated),
            "evaluation/no_answer_fraction": reasons.count(Reason.NO_ANSWER) / len(reasons),
            "evaluation/failed_verifications": reasons.count(Reason.TIMEOUT) + reasons.count(Reason.CRASHED),
        }
