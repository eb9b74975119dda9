"""verl's log and dumped rollouts in our words: `metrics.jsonl` of a run that verl trains.

A number that verl does not log, or that means something else there, is absent: never 0, and never under our name. docs/verl.md
shows `SUPPLIED`. Traps that are met here, each read in verl 0.9.1's code:

- `response_length/clip_ratio` is the share of responses as long as the batch's longest, whether that reached the limit or not.
- `actor/entropy` is summed over each response under seq-mean-token-sum: divided by the mean length it is per token again.
- `actor/lr` is read after the scheduler moved on: step t logs the learning rate of step t + 1.
- `timing_s/step` has the checkpoint in it and the validation not; ours is the other way round.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from luspo_cli.config.reward import BESIDE_ACCURACY
from luspo_cli.config.run import TrainRun
from luspo_cli.training.verl.data import source_of

Row = Mapping[str, Any]
_VALIDATION = re.compile(r"val-(?:core|aux)/(?P<source>.*)/acc/mean@\d+")
LENGTH = "response_length/mean"
SUPPLIED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "tokens/total": ("response_length/mean", "times the step's rollouts, summed over the steps"),
        "response_length/mean": ("response_length/mean", ""),
        "response_length/max": ("response_length/max", ""),
        "response/truncated_fraction": ("response_length/clip_ratio", "0 where response_length/max is under the limit"),
        "reward/total/mean": ("critic/score/mean", ""),
        "reward/accuracy/mean": ("the dumped rollouts", "graded again; where accuracy is the only term: critic/score/mean"),
        "reward/format/mean": ("the dumped rollouts", "graded again"),
        "reward/no_answer_fraction": ("the dumped rollouts", "graded again"),
        "reward/verification_timeouts": ("the dumped rollouts", "graded again"),
        "reward/verification_crashes": ("the dumped rollouts", "graded again"),
        "reward/read_from/own_mark": ("the dumped rollouts", "graded again"),
        "reward/read_from/box": ("the dumped rollouts", "graded again"),
        "reward/read_from/other_mark": ("the dumped rollouts", "graded again"),
        "reward/read_from/phrase": ("the dumped rollouts", "graded again"),
        "reward/decided_by/math-verify": ("the dumped rollouts", "graded again"),
        "group/all_correct_fraction": ("the dumped rollouts", "graded again, grouped by verl's uid"),
        "group/all_wrong_fraction": ("the dumped rollouts", "likewise"),
        "group/mixed_fraction": ("the dumped rollouts", "likewise"),
        "objective/loss": ("actor/loss", ""),
        "objective/policy_term": ("actor/pg_loss", "with a KL or entropy term only"),
        "objective/kl_term": ("actor/kl_loss", ""),
        "objective/entropy_term": ("actor/entropy_loss", ""),
        "objective/clip_low_fraction": ("actor/objective/clip_low_fraction", "from the plug-in"),
        "objective/clip_high_fraction": ("actor/objective/clip_high_fraction", "from the plug-in"),
        "objective/dual_clip_fraction": ("actor/objective/dual_clip_fraction", "from the plug-in"),
        "ratio/mean": ("actor/ratio/mean", "from the plug-in"),
        "policy/kl_old": ("actor/policy/kl_old", "from the plug-in"),
        "policy/entropy": (
            "actor/entropy",
            "over response_length/mean with a sum over tokens; absent under seq-mean-token-mean, a mean of another kind",
        ),
        "update/grad_norm": ("actor/grad_norm", ""),
        "update/learning_rate": ("actor/lr", "of the step before; absent in the first step after a start"),
        "time/rollout": ("timing_s/gen", "with the rewards, which verl computes meanwhile"),
        "time/logprobs": ("timing_s/old_log_prob", "of every step: verl always computes them"),
        "time/update": ("timing_s/update_actor", ""),
        "time/weights": ("timing_s/update_weights", ""),
        "time/evaluation": ("timing_s/testing", ""),
        "time/total": ("timing_s/step", "less timing_s/save_checkpoint, plus timing_s/testing"),
        "evaluation/accuracy": ("val-core/SOURCE/acc/mean@K", "over sources, weighted by their problems"),
        "evaluation/problems": ("", "the problems that verl was given"),
    }
)  # fmt: skip
"""Our metric → verl's key or where else it comes from, and what is done to it."""
_AS_IT_IS = (
    "response_length/max", "objective/loss", "objective/kl_term", "objective/entropy_term", "objective/clip_low_fraction",
    "objective/clip_high_fraction", "objective/dual_clip_fraction", "ratio/mean", "policy/kl_old", "update/grad_norm",
    "time/rollout", "time/logprobs", "time/update", "time/weights", "time/evaluation", "reward/total/mean", LENGTH,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Before:
    """What the rows before leave to the next one."""

    tokens: int = 0
    """`tokens/total` so far."""
    learning_rate: float | None = None
    """What the next step has, as the row before says; None after a start."""


class Translator:
    """Rows of verl's log → records of metrics.jsonl, for one configuration."""

    def __init__(self, config: TrainRun, held_out_sources: Mapping[str, int]) -> None:
        """`held_out_sources`: data source → its number of held-out problems."""
        self._config, self._sources = config, held_out_sources

    def is_step(self, row: Row) -> bool:
        """Whether the row is of a training step; the validation before training has a row of its own."""
        return _number(row, LENGTH) is not None

    def record(self, step: int, row: Row, before: Before, graded: Row | None = None) -> tuple[dict[str, Any], Before]:
        """The record of one step, and what the next one needs. `graded`: numbers of its dumped rollouts, where there are any."""
        rollout = self._config.rollout
        numbers = {name: _number(row, SUPPLIED[name][0]) for name in _AS_IT_IS}
        length = numbers[LENGTH] or 0.0
        rows = rollout.problems * rollout.group_size
        tokens = before.tokens + round(length * rows)
        longest = numbers["response_length/max"]
        cut = _number(row, "response_length/clip_ratio")
        if longest is not None and cut is not None:
            numbers["response/truncated_fraction"] = cut if longest >= rollout.max_response_tokens else 0.0
        numbers |= {
            "reward/accuracy/mean": self._accuracy(numbers["reward/total/mean"]),
            "objective/policy_term": _number(row, "actor/pg_loss") if self._has_further_terms else None,
            "policy/entropy": self._entropy(row, length),
            "update/learning_rate": before.learning_rate,
            "time/total": _total_time(row),
            **self.evaluation(row),
            **(graded or {}),
        }
        found = {name: value for name, value in numbers.items() if value is not None}
        return {"step": step, "tokens/total": tokens, **found}, Before(tokens, _number(row, "actor/lr"))

    def evaluation(self, row: Row) -> dict[str, float | None]:
        """`evaluation/*` of a row that validates; empty elsewhere."""
        means = {
            match["source"]: value
            for key in row
            if (match := _VALIDATION.fullmatch(key)) and (value := _number(row, key)) is not None
        }
        if not means or means.keys() != self._sources.keys():
            return {}
        problems = sum(self._sources.values())
        accuracy = sum(means[source] * number for source, number in self._sources.items()) / problems
        return {"evaluation/accuracy": accuracy, "evaluation/problems": problems}

    @property
    def _has_further_terms(self) -> bool:
        objective = self._config.objective
        return objective.kl_coefficient > 0 or objective.entropy_coefficient > 0

    def _accuracy(self, reward: float | None) -> float | None:
        """Accuracy where it is the reward's only term."""
        terms = self._config.reward
        if reward is None or not terms.accuracy_weight or any(getattr(terms, key) for key in BESIDE_ACCURACY):
            return None
        return reward / terms.accuracy_weight

    def _entropy(self, row: Row, length: float) -> float | None:
        entropy, aggregation = _number(row, "actor/entropy"), self._config.objective.aggregation
        if entropy is None or aggregation == "seq-mean-token-mean":
            return None
        if aggregation == "token-mean":
            return entropy
        # A response without a token counts in the mean length and not in verl's mean over sequences.
        if not length or _number(row, "response/aborted_ratio"):
            return None
        scale = self._config.rollout.max_response_tokens if aggregation == "seq-mean-token-sum-norm" else 1
        return entropy * scale / length


def _total_time(row: Row) -> float | None:
    step = _number(row, "timing_s/step")
    if step is None:
        return None
    return step - (_number(row, "timing_s/save_checkpoint") or 0.0) + (_number(row, "timing_s/testing") or 0.0)


def _number(row: Row, key: str) -> float | None:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def sources_of(problems: Sequence[Any]) -> dict[str, int]:
    """Data source → number of problems, as the parquet for verl names them."""
    found: dict[str, int] = {}
    for problem in problems:
        name = source_of(problem)
        found[name] = found.get(name, 0) + 1
    return found
