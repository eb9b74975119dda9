"""Up to where runs are compared, and on which axis: at equal steps, at equal response tokens, or after equal time in steps.

Objectives that write shorter responses take more steps for the same tokens, and faster ones; which of the three is fair depends
on what is scarce. In each run three windows are read, a tenth of its compared steps each: the first steps, those that end at the
middle of the axis, and the last; at the end alone, short lengths sit on the floor and long ones on the limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from luspo_cli.analysis.history import RunHistory
from luspo_cli.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

LENGTH = "response_length/mean"
By = Literal["steps", "tokens", "time"]
SOURCES: dict[str, str] = {"tokens": "tokens/total", "time": "time/total"}
"""Metric that an axis is made of."""
WINDOW_SHARE = 10
"""A window is one part in this many of the compared steps, at least one step."""


@dataclass(frozen=True, slots=True)
class Windows:
    """The compared steps, first and last included."""

    start: tuple[int, int]
    middle: tuple[int, int]
    final: tuple[int, int]
    last_step: int


def windows_of(steps: Sequence[int], until_middle: int | None = None) -> Windows:
    """Return the three windows over the given steps; the middle one ends at the `until_middle`-th step, None: at half of them."""
    size = max(1, len(steps) // WINDOW_SHARE)
    middle = max(size, math.ceil(len(steps) / 2) if until_middle is None else until_middle)
    return Windows(
        start=(steps[0], steps[size - 1]),
        middle=(steps[middle - size], steps[middle - 1]),
        final=(steps[-size], steps[-1]),
        last_step=steps[-1],
    )


def training_steps(run: RunHistory) -> list[int]:
    """The steps that recorded a response length."""
    lengths = run.table[LENGTH]
    return [int(step) for step in lengths.index[lengths.notna()]]


def place_on(run: RunHistory, by: By) -> pd.Series:
    """Where each step of a run ends on the axis, by step; UsageError where the run does not record what it takes."""
    if by == "steps":
        return run.table.index.to_series().astype(float)
    source = SOURCES[by]
    if source not in run.table or run.table[source].isna().any():
        raise UsageError(f"--by {by} needs {source} in every step, and {run.path} does not have it; use --by steps.")
    return run.table[source] if by == "tokens" else run.table[source].cumsum()


def common_end(runs: Sequence[RunHistory], by: By) -> float:
    """How far all runs reach; UsageError where one of them has no step by then."""
    ends = {run.name: place_on(run, by) for run in runs}
    end = min(float(places.iloc[-1]) for places in ends.values())
    if any(float(places.loc[training_steps(run)[0]]) > end for run, places in zip(runs, ends.values(), strict=True)):
        unit = {"steps": "step", "tokens": "response token", "time": "second"}[by]
        raise UsageError(f"The runs have no {unit} in common: one of them ends at {unit} {end:.10g}.")
    return end


def windows_on(run: RunHistory, by: By, end: float) -> Windows:
    """The windows of one run up to `end` on the axis."""
    places = place_on(run, by).loc[training_steps(run)]
    compared = places[places <= end]
    return windows_of(
        [int(step) for step in compared.index], None if by == "steps" else int((compared <= end / 2).sum())
    )
