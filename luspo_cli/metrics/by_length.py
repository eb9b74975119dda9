"""What an update keeps of its advantages at each response length, and the pressure on length that follows (docs/length.md).

One answer for every caller: the training loop, readers of stored rollouts and the lab hand in the same arrays. Lengths fall into
bins of a fixed grid, the powers of √2, so that a bin is the same in every step and every run and a heat map over training needs
no common range; bins of quantiles would move with what is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luspo_cli.errors import UsageError

Array = NDArray[np.float64]
STORED = (
    "in_batch", "response_length", "advantage", "clip_low_fraction", "clip_high_fraction", "dual_clip_fraction", "loss_weight"
)  # fmt: skip
DIGITS = 5
"""Significant digits of a number of `profile_record`."""


@dataclass(frozen=True)
class TrainedRows:
    """A batch of responses as the update left them: arrays [..., B] in parallel; each leading index is a batch of its own.

    Responses without a token take no part. Of a response without advantage only length and advantage are read: the update may
    have skipped it.
    """

    lengths: Array
    """Tokens."""
    advantages: Array
    clipped_low: Array
    """Share of a response's units (the sequence itself or its tokens) whose gradient the lower bound removed."""
    clipped_high: Array
    kept: Array
    """Share whose gradient no bound removed."""
    weights: Array
    """What a token weighs in the loss, times the sequences: `loss_weight` of stored rollouts."""


@dataclass(frozen=True)
class LengthProfile:
    """Numbers [..., K] of the K bins of a grid; NaN where a bin holds nothing to take the mean of."""

    starts: NDArray[np.int64]
    """[K], shortest length of each bin; it ends before the next one's."""
    rollouts: Array
    positive: Array
    """Responses with an advantage above 0; `negative`: below 0."""
    negative: Array
    kept_positive: Array
    """Mean over all the bin's responses of the kept advantages above 0; with `kept_negative` it adds up to `kept`."""
    kept_negative: Array
    clipped_low: Array
    """Mean share that the lower bound removed, over the responses with an advantage below 0, which alone it can cut."""
    clipped_high: Array
    """Mean share that the upper bound removed, over the responses with an advantage above 0."""
    weight: Array
    """Mean over the responses with an advantage of weight times kept share."""

    @property
    def kept(self) -> Array:
        """ā, the mean kept advantage of the bin's responses."""
        return self.kept_positive + self.kept_negative


def length_grid(longest: int) -> NDArray[np.int64]:
    """Starts of the bins up to `longest` tokens: ⌈2^(k/2)⌉, that is 1, 2, 3, 4, 6, 8, 12, 16, 23, 32, 46, 64, ..."""
    starts = [1]
    exponent = 1
    while starts[-1] <= longest:
        root = isqrt(2**exponent)
        starts.append(root + (root * root < 2**exponent))
        exponent += 1
    return np.array(sorted({start for start in starts if start <= max(longest, 1)}), dtype=np.int64)


def length_profile(rows: TrainedRows, starts: NDArray[np.int64] | None = None) -> LengthProfile:
    """The bins of `starts`, by default those of the grid up to the longest response."""
    lengths = np.asarray(rows.lengths)
    if starts is None:
        starts = length_grid(int(lengths.max(initial=1)))
    bins = np.searchsorted(starts, lengths, side="right") - 1
    up, down = rows.advantages > 0, rows.advantages < 0
    kept = kept_advantages(rows)

    def total(values: Any) -> Array:
        return _sum_by_bin(np.where(bins >= 0, values, 0.0), bins, len(starts))

    rollouts, positive, negative = total(1.0), total(up), total(down)
    with np.errstate(invalid="ignore"):  # 0/0 is NaN: a bin without such a response
        return LengthProfile(
            starts=starts,
            rollouts=rollouts,
            positive=positive,
            negative=negative,
            kept_positive=total(np.where(up, kept, 0)) / rollouts,
            kept_negative=total(np.where(down, kept, 0)) / rollouts,
            clipped_low=total(np.where(down, rows.clipped_low, 0)) / negative,
            clipped_high=total(np.where(up, rows.clipped_high, 0)) / positive,
            weight=total(np.where(up | down, rows.weights * rows.kept, 0)) / (positive + negative),
        )


def kept_length_pressure(rows: TrainedRows) -> Array:
    """Cov(|y|, ā(|y|) w(|y|)) over the mean of |A w|, [...] in tokens: Σ_i (|y_i| − mean|y|) w_i A_i k_i / Σ_i |w_i A_i|.

    A_i k_i is the kept advantage; its mean at each length has the same covariance with the length as the responses themselves.
    Above 0 what is left of the update favours responses longer than the mean. The divisor is that of nothing cut, so pressures
    with and without the cut can be subtracted. 0 where no response has an advantage.
    """
    present = rows.lengths > 0
    number = present.sum(axis=-1, keepdims=True)
    mean = (rows.lengths * present).sum(axis=-1, keepdims=True) / np.maximum(number, 1)
    weight = np.where(present & (rows.advantages != 0), rows.weights, 0)
    pull = (weight * kept_advantages(rows) * (rows.lengths - mean)).sum(axis=-1)
    scale = np.abs(weight * rows.advantages).sum(axis=-1)
    return np.divide(pull, scale, out=np.zeros_like(pull), where=scale > 0)


def trained_rows(columns: Mapping[str, Sequence[Any]]) -> TrainedRows:
    """The batch in columns of stored rollouts (`STORED`), null where the update computed nothing; other rows are left out.

    UsageError where a file of an earlier version, or of an update that failed, does not have them.
    """
    missing = [name for name in STORED if name not in columns]
    if missing:
        raise UsageError(
            f"the stored rollouts lack {', '.join(missing)}: an earlier version wrote them, or their update failed;"
            " what it kept is not known"
        )
    table = np.array([columns[name] for name in STORED], dtype=np.float64)  # None becomes NaN
    lengths, advantages, low, high, dual, weights = table[1:, table[0] > 0]
    return TrainedRows(lengths, advantages, low, high, 1 - low - high - dual, weights)


def profile_record(profile: LengthProfile) -> dict[str, list[float | None]]:
    """`by_length` of metrics.jsonl: lists over the bins that hold a response, null where there is nothing to average."""
    held = profile.rollouts > 0
    record: dict[str, list[float | None]] = {"from": profile.starts[held].tolist()}
    for name in ("rollouts", "positive", "negative"):
        record[name] = getattr(profile, name)[held].astype(int).tolist()
    for name in ("kept_positive", "kept_negative", "clipped_low", "clipped_high", "weight"):
        record[name] = [float(f"{x:.{DIGITS}g}") if np.isfinite(x) else None for x in getattr(profile, name)[held]]
    return record


def kept_advantages(rows: TrainedRows) -> Array:
    """[..., B] advantage times the share that no bound removed; 0 without an advantage, NaN where the update computed nothing."""
    return np.where(rows.advantages != 0, rows.advantages * rows.kept, 0.0)


def _sum_by_bin(values: Array, bins: NDArray[np.int64], number: int) -> Array:
    """Sums [..., K] of values [..., B] over the rows of each bin; rows of no bin have value 0."""
    batches = values.reshape(prod(values.shape[:-1]), values.shape[-1])
    places = np.maximum(bins, 0).reshape(batches.shape) + number * np.arange(len(batches))[:, None]
    sums: Array = np.bincount(places.ravel(), batches.ravel(), number * len(batches)).astype(np.float64)
    return sums.reshape(*values.shape[:-1], number)
