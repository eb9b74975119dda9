"""Where a step's update pushes the response length, by what it kept of its advantages (docs/length.md derives the numbers)."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from luspo_cli.advantages import advantages_of
from luspo_cli.config.objective import NAMED_OBJECTIVES, resolve
from luspo_cli.config.run import TrainRun
from luspo_cli.metrics.by_length import Array, TrainedRows, kept_length_pressure, length_profile, profile_record
from luspo_cli.metrics.names import BY_LENGTH
from luspo_cli.objectives.diagnostics import length_pressure
from luspo_cli.processes.ranks import Ranks
from luspo_cli.records import RowUpdate, ScoredGroup
from luspo_cli.training.gradient_shares import ESTIMATE, EXACT, estimated_norms, row_classes, shares
from luspo_cli.training.row_updates import GatheredRows, RowUpdates

PRESSURES = ("grpo", "gspo", "luspo")
PAPERS = MappingProxyType({name: resolve(name) for name in NAMED_OBJECTIVES})
"""Every named objective with the clip range of its paper."""


def diagnose(
    updates: RowUpdates, ranks: Ranks, groups: Sequence[ScoredGroup], config: TrainRun, with_tokens: bool
) -> tuple[dict[str, Any], list[RowUpdate | None]]:
    """The step's numbers of lengths, and what became of each rollout of `groups`, whose token log-ratios come `with_tokens`.

    All processes of a run call this together after the update that `updates` collected.
    """
    began = time.perf_counter() - updates.seconds
    rows = updates.gathered(ranks, with_tokens, PAPERS, config.rollout.max_response_tokens)
    metrics = _raw_pressures(groups) | _kept(groups, rows) | _gradient_shares(groups, rows, updates)
    seconds = time.perf_counter() - began
    return metrics | {"time/diagnostics": seconds}, rows.updates() if with_tokens else []


def _raw_pressures(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    advantages = [advantage for group in groups for advantage in group.advantages]
    lengths = [rollout.response_length for group in groups for rollout in group.rollouts]
    return {f"length_pressure/{name}": length_pressure(advantages, lengths, name) for name in PRESSURES}


def _kept(groups: Sequence[ScoredGroup], rows: GatheredRows) -> dict[str, Any]:
    """Bins of lengths and expected pressures; a pressure that is not finite is left out."""
    lengths = np.array([rollout.response_length for group in groups for rollout in group.rollouts], dtype=np.float64)
    advantages = np.array([advantage for group in groups for advantage in group.advantages])
    low, high, dual, weight = rows.numbers[2:6]
    ran = TrainedRows(lengths, advantages, low, high, 1 - low - high - dual, weight)
    uncut = TrainedRows(lengths, advantages, low, high, np.ones_like(low), weight)
    by_estimator = {kind: _advantages(groups, kind) for kind in {str(PAPERS[name].advantage) for name in rows.under}}
    of_papers = np.stack([by_estimator[str(PAPERS[name].advantage)] for name in rows.under])
    low, high, kept, weights = np.stack(list(rows.under.values()), axis=1)
    others = TrainedRows(np.broadcast_to(lengths, kept.shape), of_papers, low, high, kept, weights)
    pressure = float(kept_length_pressure(ran))
    found = {"run": pressure, "clip": pressure - float(kept_length_pressure(uncut))}
    found |= dict(zip(rows.under, kept_length_pressure(others).tolist(), strict=True))
    pressures = {f"expected_length_pressure/{name}": value for name, value in found.items() if math.isfinite(value)}
    return {**pressures, BY_LENGTH: profile_record(length_profile(ran))}


def _gradient_shares(groups: Sequence[ScoredGroup], rows: GatheredRows, updates: RowUpdates) -> dict[str, float]:
    """Estimated at the logits, and exactly where the update measured it."""
    mini_batches, squared = rows.numbers[0], np.nan_to_num(rows.numbers[-1], nan=0.0)
    found = shares(estimated_norms(row_classes(groups), mini_batches, squared), ESTIMATE)
    return found | shares(updates.class_norms, EXACT) if updates.class_norms else found


def _advantages(groups: Sequence[ScoredGroup], estimator: str) -> Array:
    rewards = [[*(reward.total for reward in group.rewards), *group.masked] for group in groups]
    found = zip(groups, advantages_of(estimator, rewards), strict=True)
    return np.array([advantage for group, own in found for advantage in own[: len(group.rollouts)]])
