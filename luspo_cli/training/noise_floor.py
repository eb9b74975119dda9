"""How far arithmetic alone moves a sequence ratio: measured by two computations with the same weights, and warned about.

With reduced precision a row's log-probs depend on the rows that it is computed with. Where that moves ratios by a good part of
the clip range, clipping measures rounding and not learning.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from luspo_cli.config.objective import LENGTH_POWERS
from luspo_cli.config.run import TrainRun
from luspo_cli.objectives.sampler_mismatch import SamplerMismatch, sampler_mismatch
from luspo_cli.policy.packing import Row, policy_batch, rows_of, split_micro_batches
from luspo_cli.records import ScoredGroup

NOISE_FLOOR_ROWS = 16
NOISE_SHARE = 0.2
"""Of the clip range: noise beyond it is warned about."""

logger = logging.getLogger(__name__)


@torch.no_grad()
def noise_floor(policy: Any, groups: Sequence[ScoredGroup], tokens_per_micro_batch: int) -> float | None:
    """Mean |log sequence ratio| between two computations with the same weights: together, and row by row, padded.

    None where no row has a response, or where log-probs are not finite. All processes of a run call this together.
    """
    batches = measured_rows(groups, tokens_per_micro_batch)
    if not batches:
        return None
    together = [_sequence_means(policy, batch, 0) for batch in batches]
    alone = [_sequence_means(policy, [row], 3) for batch in batches for row in batch]
    floor = float((torch.cat(together) - torch.cat(alone)).abs().mean())
    return floor if math.isfinite(floor) else None


@torch.no_grad()
def untrained_difference(policy: Any, groups: Sequence[ScoredGroup], tokens_per_micro_batch: int) -> dict[str, float]:
    """The `sampler/` metrics of a step in which no row has an advantage, over the rows of the noise floor.

    Empty where one has: the update measures the rows that it trains. All processes of a run call this together.
    """
    if any(advantage for group in groups for advantage in group.advantages):
        return {}
    mismatch = SamplerMismatch()
    for rows in measured_rows(groups, tokens_per_micro_batch):
        batch = policy_batch(rows, next(policy.parameters()).device)
        logprobs, _ = policy(batch)  # sharded weights are gathered in the pass, so every process makes each of them
        if (drawn := batch.rollout_logprobs) is not None:
            mismatch.add(sampler_mismatch(logprobs, drawn, batch.response_mask & ~drawn.isnan()))
    found = mismatch.metrics()
    return found if all(map(math.isfinite, found.values())) else {}


class NoiseWatch:
    """Reads the records of the steps; warns once where the noise floor is above a fifth of the clip range of sequence ratios."""

    def __init__(self, config: TrainRun) -> None:
        objective = config.objective
        widths = [width for width in (objective.clip_low, objective.clip_high) if width]
        self._limit = NOISE_SHARE * min(widths) if widths and objective.by_sequence else None
        # The noise is that of the mean log-ratio; the clip range may be on this mean times a power of the length.
        self._power = LENGTH_POWERS[objective.clip_on or "mean"]

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Take in one record."""
        noise = record.get("ratio/noise_floor")
        if noise is None or self._limit is None:
            return
        if self._power:
            noise *= record["response_length/mean"] ** self._power
        if noise > self._limit:
            logger.warning(
                f"the ratio noise floor {noise:.1e} is above a fifth of the clip range ({self._limit:.1e}):"
                " part of the clipping is arithmetic, not learning; model.compute_dtype=float32 avoids it"
            )
            self._limit = None


def measured_rows(groups: Sequence[ScoredGroup], tokens_per_micro_batch: int) -> list[tuple[Row, ...]]:
    """A few rows with a response in micro-batches, those that will be trained first; none where all responses are empty."""
    rows = [row for group in groups for row in rows_of(group) if row.rollout.response_length]
    rows.sort(key=lambda row: row.advantage == 0.0)  # stable: the order of the batch stays within both kinds
    return list(split_micro_batches(rows[:NOISE_FLOOR_ROWS], tokens_per_micro_batch)) if rows else []


def _sequence_means(policy: Any, rows: Sequence[Row], padding: int) -> Tensor:
    batch = policy_batch(rows, next(policy.parameters()).device, padding)
    logprobs, _ = policy(batch)
    return logprobs.double().sum(-1) / batch.response_mask.sum(-1)
