"""Numbers of one step's rollouts: lengths, truncation, rewards, groups, length pressure. Pure Python, no torch.

A number that does not exist (the mean length of correct rollouts where none is correct) is None, never 0.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from luspo_cli.grading.verdict import DecidedBy, ReadFrom, Reason
from luspo_cli.records import FunctionScore, Rollout, ScoredGroup

_PLACES = (ReadFrom.OWN_MARK, ReadFrom.BOX, ReadFrom.OTHER_MARK, ReadFrom.PHRASE)


def length_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """`response_length/{mean,p50,p90,max}` in tokens and `response/truncated_fraction`."""
    return {
        **length_statistics([rollout.response_length for rollout in rollouts]),
        "response/truncated_fraction": statistics.fmean(rollout.truncated for rollout in rollouts),
    }


def length_statistics(lengths: Sequence[int]) -> dict[str, float]:
    """`response_length/{mean,p50,p90,max}` of at least one length; p90 is the smallest that 90 % do not exceed."""
    ordered = sorted(lengths)
    return {
        "response_length/mean": statistics.fmean(ordered),
        "response_length/p50": statistics.median(ordered),
        "response_length/p90": ordered[max(0, -(-9 * len(ordered) // 10) - 1)],
        "response_length/max": ordered[-1],
    }


def lengths_by_verdict(lengths: Sequence[int], correct: Sequence[bool]) -> dict[str, float | None]:
    """`response_length/{correct,incorrect}`: mean lengths of right and of wrong responses."""
    right = [length for length, good in zip(lengths, correct, strict=True) if good]
    wrong = [length for length, good in zip(lengths, correct, strict=True) if not good]
    return {
        "response_length/correct": statistics.fmean(right) if right else None,
        "response_length/incorrect": statistics.fmean(wrong) if wrong else None,
    }


def reward_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float | None]:
    """Means of the reward terms, length of correct and incorrect rollouts, shares of groups by outcome, failed checks."""
    rewards = [reward for group in groups for reward in group.rewards]
    lengths = [rollout.response_length for group in groups for rollout in group.rollouts]
    correct = [reward.verdict.correct for reward in rewards]
    counts = [sum(r.verdict.correct for r in group.rewards) for group in groups]
    full = [count == len(group.rewards) for count, group in zip(counts, groups, strict=True)]
    empty = [count == 0 for count in counts]
    mixed = [0 < count < len(group.rewards) for count, group in zip(counts, groups, strict=True)]
    reasons = [reward.verdict.reason for reward in rewards]
    places = Counter(reward.verdict.read_from for reward in rewards)
    deciders = Counter(reward.verdict.decided_by for reward in rewards)
    return {
        **lengths_by_verdict(lengths, correct),
        "reward/total/mean": statistics.fmean(reward.total for reward in rewards),
        "reward/accuracy/mean": statistics.fmean(reward.accuracy for reward in rewards),
        "reward/format/mean": statistics.fmean(reward.format for reward in rewards),
        "reward/overlong/mean": statistics.fmean(reward.overlong for reward in rewards),
        **{
            f"reward/{name}/mean": statistics.fmean(reward.lengths[name] for reward in rewards)
            for name in rewards[0].lengths
        },
        "reward/no_answer_fraction": reasons.count(Reason.NO_ANSWER) / len(reasons),
        "reward/verification_timeouts": reasons.count(Reason.TIMEOUT),
        "reward/verification_crashes": reasons.count(Reason.CRASHED),
        **{f"reward/read_from/{place}": places[place] for place in _PLACES},
        "reward/decided_by/math-verify": deciders[DecidedBy.MATH_VERIFY],
        "group/all_correct_fraction": statistics.fmean(full),
        "group/all_wrong_fraction": statistics.fmean(empty),
        "group/mixed_fraction": statistics.fmean(mixed),
        **function_metrics([reward.functions for reward in rewards]),
    }


def function_metrics(said: Sequence[Mapping[str, FunctionScore]], prefix: str = "reward") -> dict[str, float | None]:
    """`PREFIX/NAME/mean`, `PREFIX/NAME/PART/mean` and `PREFIX/NAME/failed` of each reward function of one's own."""
    found: dict[str, float | None] = {}
    for name in said[0] if said else ():
        scores = [of_response[name] for of_response in said]
        given = [one.score for one in scores if one.score is not None]
        found[f"{prefix}/{name}/mean"] = statistics.fmean(given) if given else None
        for part in sorted({part for one in scores for part in one.parts}):
            found[f"{prefix}/{name}/{part}/mean"] = statistics.fmean(
                one.parts[part] for one in scores if part in one.parts
            )
        found[f"{prefix}/{name}/failed"] = sum(bool(one.error) for one in scores)
    return found
