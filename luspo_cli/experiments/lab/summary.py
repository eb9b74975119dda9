"""Histories as numbers with intervals over seeds: one row of the lab's table, and the curves of its figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from luspo_cli.analysis.lab_figures import Curve
from luspo_cli.experiments.lab.experiment import LabHistory
from luspo_cli.metrics.intervals import Estimate, estimate

SHOWN_SHARE = 0.01
"""Bins of lengths with fewer of the responses are left out of a summary."""


@dataclass(frozen=True, slots=True)
class KeptAdvantage:
    """Mean kept advantage of the responses in one bin of lengths, which begins at `start` tokens."""

    start: int
    share: float
    """Of all responses."""
    kept: Estimate


@dataclass(frozen=True, slots=True)
class LabSummary:
    """Means over seeds with 95 % intervals; final: the last tenth of the steps, clipping and advantages: all steps."""

    label: str
    objective: str
    clip_low: float | None
    clip_high: float | None
    clip_on: str | None
    """Scale of the clip range; None where there is one only."""
    clip_band: str | None
    seeds: int
    spread: float
    """Standard deviation over seeds of the final length, tokens."""
    estimates: dict[str, Estimate]
    kept_by_length: tuple[KeptAdvantage, ...]
    """Of bins with at least a hundredth of all responses, over all steps."""


def summarise(history: LabHistory, label: str) -> LabSummary:
    """The table's row of one experiment."""
    objective, start, final = history.config.objective, history.length[:, 0], history.final(history.length)
    return LabSummary(
        label=label,
        objective=objective.name,
        clip_low=objective.clip_low,
        clip_high=objective.clip_high,
        clip_on=objective.clip_on,
        clip_band=objective.clip_band,
        seeds=history.seeds,
        spread=float(final.std()),
        estimates={
            "length_start": over_seeds(start),
            "length_final": over_seeds(final),
            "drift": over_seeds(final - start),
            "accuracy_final": over_seeds(history.final(history.accuracy)),
            "truncated": over_seeds(history.truncated.mean(-1)),
            "clipped_low": over_seeds(history.clip_low.mean(-1)),
            "clipped_high": over_seeds(history.clip_high.mean(-1)),
            "kept_advantage": over_seeds(history.kept_advantage.mean(-1)),
            "expected_pressure": over_seeds(history.expected_pressure.mean(-1)),
            "clip_pressure": over_seeds(history.clip_pressure.mean(-1)),
        },
        kept_by_length=_kept_by_length(history),
    )


def _kept_by_length(history: LabHistory) -> tuple[KeptAdvantage, ...]:
    starts, shares, kept = history.kept_by_length()
    return tuple(
        KeptAdvantage(start, float(share), over_seeds(of_seeds[~of_seeds.isnan()]))
        for start, share, of_seeds in zip(starts, shares, kept.unbind(-1), strict=True)
        if share >= SHOWN_SHARE
    )


def over_seeds(values: Tensor) -> Estimate:
    """Mean and interval of one number a seed, [S]."""
    found = estimate(values.tolist())
    assert found is not None  # there is one seed at least
    return found


def curve(values: Tensor, label: str, objective: str) -> Curve:
    """Mean over seeds of [S, steps] with its band, from step 1 on."""
    return curve_of(
        [over_seeds(column) for column in values.unbind(-1)], range(1, values.shape[-1] + 1), label, objective
    )


def curve_of(estimates: Sequence[Estimate], x: Sequence[float], label: str, objective: str) -> Curve:
    """A curve through estimates; one seed has no band."""
    means = tuple(found.mean for found in estimates)
    low = tuple(found.mean if found.low is None else found.low for found in estimates)
    high = tuple(found.mean if found.high is None else found.high for found in estimates)
    return Curve(label, objective, tuple(x), means, low, high)
