"""How good forecasts of final lengths were, over cells: sign, rank correlation and error, for the lab and for "no change"."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from luspo_cli.experiments.lab.prediction import Prediction


@dataclass(frozen=True, slots=True)
class Measures:
    """Of one forecast over cells; lengths in tokens."""

    sign: float | None
    """Share of cells whose length moved the way that was predicted; None for a forecast without direction."""
    rank: float
    """Spearman's correlation of predicted and real final lengths."""
    error: float
    """Mean absolute error of the final length."""
    log_error: float
    """Mean absolute error of its natural log."""


def measures(rows: Sequence[Prediction]) -> dict[str, Measures]:
    """The lab's forecast and "no change" over cells that have a real final length."""
    real = [row.real.mean for row in rows if row.real is not None]
    forecasts = {"the lab": [row.final for row in rows], "no change": [row.no_change for row in rows]}
    agreed = statistics.fmean(bool(row.same_direction) for row in rows)
    return {
        name: Measures(
            sign=agreed if name == "the lab" else None,
            rank=spearman(values, real),
            error=statistics.fmean(abs(one - other) for one, other in zip(values, real, strict=True)),
            log_error=statistics.fmean(abs(math.log(one / other)) for one, other in zip(values, real, strict=True)),
        )
        for name, values in forecasts.items()
    }


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation; 0 where one side is constant."""
    ranks = [_ranks(values) for values in (first, second)]
    if any(len(set(own)) == 1 for own in ranks):
        return 0.0
    return statistics.correlation(*ranks)


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1, equal values sharing their mean rank."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) + 1) / 2 for value in values]


def runs_inside(rows: Sequence[Prediction]) -> tuple[int, int]:
    """How many of the finished runs ended in their row's range, and how many there are."""
    ends = [(row, run.final) for row in rows for run in row.runs if run.final is not None]
    return sum(row.low <= final <= row.high for row, final in ends), len(ends)
