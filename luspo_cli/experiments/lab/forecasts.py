"""How good forecasts of final lengths were, over cells: sign, rank correlation and error, for the lab and for "no change"."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from luspo_cli.experiments.lab.prediction import Prediction
from luspo_cli.metrics.intervals import rank_correlation


@dataclass(frozen=True, slots=True)
class Measures:
    """Of one forecast over cells; lengths in tokens."""

    sign: float | None
    """Share of cells whose length moved the way that was predicted; None for a forecast without direction."""
    rank: float | None
    """Spearman's correlation of predicted and real final lengths; None where it is not defined."""
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
            rank=rank_correlation(values, real),
            error=statistics.fmean(abs(one - other) for one, other in zip(values, real, strict=True)),
            log_error=statistics.fmean(abs(math.log(one / other)) for one, other in zip(values, real, strict=True)),
        )
        for name, values in forecasts.items()
    }


def runs_inside(rows: Sequence[Prediction]) -> tuple[int, int]:
    """How many of the finished runs ended in their row's range, and how many there are."""
    ends = [(row, run.final) for row in rows for run in row.runs if run.final is not None]
    return sum(row.low <= final <= row.high for row, final in ends), len(ends)
