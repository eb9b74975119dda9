"""Curves as the page draws them: every metric of every run by step, with tokens and seconds as other axes.

Values have five significant digits. Where a run has more than `POINTS` steps, a point is the mean of equally many neighbouring
steps: a screen has no more pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luspo_cli.analysis.history import RunHistory
from luspo_cli.metrics.names import METRICS
from luspo_cli.report.rollouts import shortest

if TYPE_CHECKING:
    import pandas as pd

POINTS = 2_000
EVALUATION = "evaluation/"
AXIS_DIGITS = 8
VALUE_DIGITS = 5


@dataclass(frozen=True, slots=True)
class Prediction:
    """A forecast that is drawn over the curves of one variant: mean by step, with limits where it has them."""

    variant: str
    """`Variant.label` of the runs that it is about."""
    label: str
    metric: str
    steps: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def stride(runs: Sequence[RunHistory]) -> int:
    """Steps that one point of the curves stands for, the same in all runs."""
    return -(-max(len(run.table) for run in runs) // POINTS)


def axes(run: RunHistory, size: int) -> dict[str, list[float | None] | None]:
    """Steps, response tokens sampled and seconds in steps so far, at each point; None for what was not recorded."""
    import pandas as pd

    steps = pd.Series(run.table.index, index=run.table.index, dtype="float64")
    tokens, seconds = run.table.get("tokens/total"), run.table.get("time/total")
    found = {
        "steps": steps,
        "tokens": None if tokens is None or tokens.isna().all() else tokens,
        "seconds": None if seconds is None or seconds.isna().all() else seconds.cumsum(),
    }
    return {name: None if values is None else _points(values, size, AXIS_DIGITS) for name, values in found.items()}


def metrics_of(runs: Sequence[RunHistory]) -> list[str]:
    """The metrics that a run has a value of, in the order of docs/run-folder.md, then unknown ones."""
    recorded = {
        str(name)
        for run in runs
        for table in (run.table, run.evaluations)
        for name in table.columns
        if table[name].notna().any()
    }
    return [*(name for name in METRICS if name in recorded), *sorted(recorded - set(METRICS))]


def curve(run: RunHistory, metric: str, size: int) -> dict[str, Any] | None:
    """`{"values"}` at the run's points, or `{"steps", "values"}` of a held-out metric; None where it has none."""
    if metric.startswith(EVALUATION) and metric in run.evaluations:
        found = run.evaluations[metric].dropna()
        if len(found):
            values = [shortest(value, VALUE_DIGITS) for value in found]
            return {"steps": [int(step) for step in found.index], "values": values}
    if metric not in run.table or run.table[metric].isna().all():
        return None
    return {"values": _points(run.table[metric], size, VALUE_DIGITS)}


def downsampling_note(size: int) -> str:
    """Say that a point stands for several steps."""
    return f"Runs of more than {POINTS:,} steps are drawn by means of {size} neighbouring steps a point."


def prediction_json(prediction: Prediction, labels: Sequence[str]) -> dict[str, Any]:
    """The prediction as the page draws it; its variant must be one of `labels`."""
    bounds = {
        name: None if values is None else [shortest(value, VALUE_DIGITS) for value in values]
        for name, values in (("mean", prediction.mean), ("low", prediction.low), ("high", prediction.high))
    }
    return {
        "variant": labels.index(prediction.variant),
        "label": prediction.label,
        "metric": prediction.metric,
        "steps": [shortest(step) for step in prediction.steps],
        **bounds,
    }


def _points(values: pd.Series, size: int, digits: int) -> list[float | None]:
    numbers = values.tolist()
    if size > 1:
        numbers = [_mean(numbers[start : start + size]) for start in range(0, len(numbers), size)]
    return [shortest(value, digits) for value in numbers]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
