"""Accuracy on a fixed held-out slice during training, with an interval that says how sure the number is."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from luspo_cli.grading.majority import majority_is_correct
from luspo_cli.grading.verdict import Reason, Verdict
from luspo_cli.metrics.intervals import accuracy_interval
from luspo_cli.metrics.rollout_metrics import function_metrics
from luspo_cli.processes.ranks import ALONE, Ranks
from luspo_cli.records import Problem, Prompt, Reward
from luspo_cli.rewards.rubric import Rubric
from luspo_cli.rollout.sampler import Sampler, SamplingOptions
from luspo_cli.runs.rollouts import HeldOutAnswer
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

    def evaluate(self, sampler: Sampler, ranks: Ranks = ALONE) -> tuple[dict[str, Any], list[HeldOutAnswer]]:
        """Sample and score: keys as in metrics.jsonl plus counts of failed checks, and every answer but the blind control's."""
        result, answers = self._measure(self.problems, sampler, ranks)
        if self.blind:
            blind, _ = self._measure(self.blind, sampler, ranks)
            result |= {key.replace("/", "/blind_"): blind[key] for key in ACCURACY}
        return result, answers

    def _measure(
        self, problems: Sequence[Problem], sampler: Sampler, ranks: Ranks
    ) -> tuple[dict[str, Any], list[HeldOutAnswer]]:
        size, part = self.options.group_size, self.part * ranks.size
        answers: list[HeldOutAnswer] = []
        verdicts: list[Verdict] = []
        given: list[Reward] = []
        for start in range(0, len(problems), part):
            options, own = replace(self.options, first_row=start * size), problems[start : start + part]
            scored = sample_and_score(ranks, sampler, self.rubric, own, self.to_prompt, options, keep_images=False)
            for rollouts, rewards in zip(scored.groups, scored.rewards, strict=True):
                answers += [
                    HeldOutAnswer.of(place, *pair) for place, pair in enumerate(zip(rollouts, rewards, strict=True))
                ]
                verdicts += [reward.verdict for reward in rewards]
                given += rewards
        self.rubric.look("held-out evaluation", given, aloud=ranks.is_first)
        problem_answers = [verdicts[i : i + size] for i in range(0, len(verdicts), size)]
        per_problem = [statistics.fmean(verdict.correct for verdict in own) for own in problem_answers]
        low, high = accuracy_interval(per_problem, samples=size)
        reasons = [verdict.reason for verdict in verdicts]
        result = {
            "evaluation/accuracy": statistics.fmean(per_problem),
            "evaluation/accuracy_low": low,
            "evaluation/accuracy_high": high,
            "evaluation/problems": len(problems),
            "evaluation/response_length/mean": statistics.fmean(answer.response_length for answer in answers),
            "evaluation/truncated_fraction": statistics.fmean(answer.stop_reason == "length" for answer in answers),
            "evaluation/no_answer_fraction": reasons.count(Reason.NO_ANSWER) / len(reasons),
            "evaluation/failed_verifications": reasons.count(Reason.TIMEOUT) + reasons.count(Reason.CRASHED),
            **function_metrics([reward.functions for reward in given], "evaluation/reward"),
        }
        if size > 1:
            key = self.rubric.answer_key
            votes = ([(verdict.extracted, verdict.correct) for verdict in own] for own in problem_answers)
            result["evaluation/majority_accuracy"] = statistics.fmean(majority_is_correct(own, key) for own in votes)
        return result, answers
