"""Responses to a benchmark of one's own judged by a function of one's own, in worker processes that can be killed.

The function is called as a reward is (docs/own-reward.md), and what it says of right and wrong is read alike: its part `acc` or
`correct`, else whether its score is above 0. A call that fails makes its responses wrong, as `crashed`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from luspo_cli.evaluation.problems import BenchmarkProblem
from luspo_cli.evaluation.responses import Sample
from luspo_cli.grading.verdict import Verdict
from luspo_cli.metrics.rollout_metrics import function_metrics
from luspo_cli.records import Message, Problem
from luspo_cli.rewards.functions import RewardFunctions, Written, refuse_always_failing, verdict_of


def judge_with(
    functions: RewardFunctions,
    problems: Sequence[BenchmarkProblem],
    samples: Sequence[Sample],
    prompt: Callable[[BenchmarkProblem], tuple[Message, ...]],
    benchmark: str,
) -> tuple[dict[str, list[Verdict]], dict[str, float | None]]:
    """The verdicts of each problem's samples, in their order, and the means of what the function said, as in training.

    Raises:
        UsageError: the function cannot be used.
        RunError: every call failed.
    """
    of_problem: dict[str, list[Sample]] = {}
    for sample in samples:
        of_problem.setdefault(sample.problem_id, []).append(sample)
    asked = [problem for problem in problems if problem.id in of_problem]
    posed = [Problem(one.id, prompt(one), one.gold, benchmark, one.images, one.extra) for one in asked]
    (name,) = functions.names
    try:
        functions.check(posed)
        groups = functions.score_groups(posed, [[_written(one) for one in of_problem[problem.id]] for problem in asked])
    finally:
        functions.close()
    said = [of_response for group in groups for of_response in group]
    refuse_always_failing(f"{benchmark}: its grader '{name}'", [one[name] for one in said])
    verdicts = {
        problem.id: [verdict_of(one[name]) for one in group] for problem, group in zip(asked, groups, strict=True)
    }
    return verdicts, function_metrics(said)


def _written(sample: Sample) -> Written:
    return Written(sample.response, None, sample.response_length, sample.truncated)
