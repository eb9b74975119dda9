"""Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2): refill a step's batch until its groups are mixed.

Decided here, where the paper leaves room:
- The first round is the batch that a run without dynamic sampling has. A further round samples as many problems of the step's
  reserve as the share of mixed groups so far makes likely to be needed, at most a whole batch.
- Of too many mixed groups the first ones in sampling order are taken. That order is the prompts', not that of completion,
  so short responses are not preferred.
- A batch that stays short is filled with other groups; the weight of every group is what it is in a full batch.
- Mixed is said of correctness, as in the paper, and not of the whole reward: with a penalty on length, wrong responses of
  different length would fill the batch and train nothing but shortening.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luspo_cli.advantages import has_signal
from luspo_cli.config.rollout import RolloutConfig
from luspo_cli.config.run import TrainRun
from luspo_cli.data.batches import BatchSource
from luspo_cli.errors import RunError
from luspo_cli.records import Problem, ScoredGroup

Sample = Callable[[Sequence[Problem], int], Sequence[ScoredGroup]]
"""From problems and the number of the round, counted from 0, to their scored groups."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepGroups:
    """The groups of one step; each list is in sampling order."""

    sampled: list[ScoredGroup]
    """All of them, without images."""
    batch: list[ScoredGroup]
    """Those that the update gets: `rollout.problems`."""
    rounds: int

    def metrics(self) -> dict[str, int]:
        """`group/{sampled,set_aside,surplus,rounds}`."""
        mixed = sum(map(is_mixed, self.sampled))
        return {
            "group/sampled": len(self.sampled),
            "group/set_aside": len(self.sampled) - mixed,
            "group/surplus": max(0, mixed - len(self.batch)),
            "group/rounds": self.rounds,
        }


def sample_step(source: BatchSource, step: int, settings: RolloutConfig, sample: Sample) -> StepGroups:
    """Sample the groups of `step`, counted from 1: one round, or with dynamic sampling as many as needed and allowed."""
    problems = source.batch(step - 1)
    sampled = list(sample(problems, 0))
    if not settings.dynamic_sampling:
        return StepGroups([group.without_images() for group in sampled], sampled, 1)
    size, rounds = len(problems), 1
    while rounds < settings.max_sampling_rounds:
        number = further_problems(len(sampled), sum(map(is_mixed, sampled)), size)
        problems = source.reserve(step - 1, len(sampled) - size, number)
        if not problems:  # the batch is full, or the data has no other problem
            break
        sampled += sample(problems, rounds)
        rounds += 1
    return StepGroups([group.without_images() for group in sampled], choose_batch(sampled, size), rounds)


def further_problems(sampled: int, mixed: int, size: int) -> int:
    """Problems of the next round: missing / share of mixed groups so far, rounded up, at most `size`; 0 for a full batch."""
    if mixed >= size:
        return 0
    return min(size, math.ceil((size - mixed) * sampled / mixed)) if mixed else size


def choose_batch(groups: Sequence[ScoredGroup], size: int) -> list[ScoredGroup]:
    """The first `size` mixed groups, else all of them and the first of the others; in sampling order."""
    mixed_first = sorted(range(len(groups)), key=lambda i: not is_mixed(groups[i]))  # stable
    return [groups[i] for i in sorted(mixed_first[:size])]


def is_mixed(group: ScoredGroup) -> bool:
    """Whether some responses of the group are right and some are wrong."""
    return has_signal([reward.accuracy for reward in group.rewards])


class SignalWatch:
    """Reads the records of the steps; says once that a batch stayed short, and ends a run that finds no mixed group."""

    def __init__(self, config: TrainRun, before: Iterable[Mapping[str, Any]] = ()) -> None:
        """`before`: the records of the steps before a resumed run goes on."""
        self._config = config
        self._said = False
        self._empty: list[Mapping[str, Any]] = []
        for record in before:
            self._count(record)

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Take in one record; RunError after `rollout.stop_after_steps_without_signal` steps in a row without a mixed group."""
        if "group/sampled" not in record:
            return
        self._count(record)
        settings = self._config.rollout
        mixed = record["group/sampled"] - record["group/set_aside"]
        if len(self._empty) >= settings.stop_after_steps_without_signal and record["step"] < self._config.run.steps:
            raise RunError(diagnosis(self._empty))
        if mixed < settings.problems and not self._said:
            self._said = True
            rounds = record["group/rounds"]
            bound = f"{rounds} rounds" if rounds == settings.max_sampling_rounds else "every problem of the data"
            logger.warning(
                f"step {record['step']}: {mixed} of {settings.problems} groups are mixed (some responses right, some"
                f" wrong) after {bound} ({record['group/sampled']} groups sampled); the batch is filled with others. Said once;"
                " group/set_aside in metrics.jsonl counts such groups"
            )

    def _count(self, record: Mapping[str, Any]) -> None:
        empty = record.get("group/sampled") is not None and record["group/sampled"] == record["group/set_aside"]
        self._empty = [*self._empty, record] if empty else []


class TruncationWatch:
    """Reads the records of the steps; says once that a step had truncated responses only."""

    def __init__(self) -> None:
        self._said = False

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Take in one record."""
        if record["response/truncated_fraction"] == 1 and not self._said:
            self._said = True
            logger.warning(
                f"step {record['step']}: every response reached the limit, so none was finished; a longer"
                " rollout.max_response_tokens may help. Said once; response/truncated_fraction in metrics.jsonl counts them"
            )


def diagnosis(records: Sequence[Mapping[str, Any]]) -> str:
    """One sentence: why no group of these steps was mixed, and what to change."""
    groups = sum(record["group/sampled"] for record in records)

    def mean(key: str) -> float:
        return sum(record[key] * record["group/sampled"] for record in records) / groups

    accuracy, truncated = mean("reward/accuracy/mean"), mean("response/truncated_fraction")
    if accuracy == 0:
        cause = (
            f"no answer was right and {truncated:.0%} of the responses were cut: take easier problems or a stronger model,"
            " raise rollout.max_response_tokens where many are cut, and look at the responses in rollouts/"
        )
    elif accuracy == 1:
        cause = "every answer was right: take harder problems"
    else:
        cause = (
            "every problem was answered always right or always wrong: raise rollout.group_size or rollout.temperature,"
            " or take problems of a difficulty in between"
        )
    return (
        f"no group of {len(records)} steps in a row was mixed ({groups} groups sampled, accuracy {accuracy:.3f});"
        f" {cause}"
    )
