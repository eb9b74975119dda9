"""What the exact model predicts of the rest of runs, from their first steps, beside what they did and beside "no change".

Runs that differ in their seed alone are one row: one fit to their first steps, one experiment with many seeds. Each of its seeds
is a run that could have been, so the range in which 95 % of them end is where a single real run should end.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from luspo_cli.analysis.axis import LENGTH, windows_of
from luspo_cli.analysis.history import RunHistory, read_runs
from luspo_cli.analysis.lab_figures import Curve, LabFigure, Panel, curves_figure
from luspo_cli.analysis.variants import Variant, split_into_variants
from luspo_cli.config.lab import LabRun
from luspo_cli.experiments.lab.experiment import run_experiment
from luspo_cli.experiments.lab.fitting import fit
from luspo_cli.experiments.lab.start_values import FITTED_STEPS, StartValues, measure_start
from luspo_cli.metrics.intervals import Estimate, estimate

logger = logging.getLogger(__name__)

LENGTH_AXIS = "response length (tokens)"
DEFAULT_SEEDS = 64


@dataclass(frozen=True, slots=True)
class RealRun:
    """One of the runs: mean length of the fitted steps, and of the last tenth of the planned ones where it has them."""

    name: str
    path: str
    seed: int | None
    start: float
    final: float | None
    lengths: tuple[tuple[float, float], ...]
    """Step and mean length."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row: what was fitted, what follows from it, and what happened. Lengths in tokens."""

    label: str
    objective: str
    runs: tuple[RealRun, ...]
    start: StartValues
    config: LabRun
    final: float
    """Predicted length, mean over the last tenth of the steps and over seeds."""
    low: float
    """The range in which 95 % of the lab's seeds end; so `high`."""
    high: float
    no_change: float
    """The other forecast: the length of the fitted steps."""
    curve: Curve

    @property
    def real(self) -> Estimate | None:
        """The real final length, mean over the finished runs; None where none is."""
        return estimate([run.final for run in self.runs if run.final is not None])

    @property
    def error(self) -> float | None:
        """Predicted less real final length."""
        return None if self.real is None else self.final - self.real.mean

    @property
    def no_change_error(self) -> float | None:
        """Start of the finished runs less their final length."""
        found = estimate([run.start - run.final for run in self.runs if run.final is not None])
        return None if found is None else found.mean

    @property
    def same_direction(self) -> bool | None:
        """Whether the length moved the way that was predicted."""
        if self.no_change_error is None:
            return None
        return (self.final - self.no_change) * -self.no_change_error > 0


@dataclass(frozen=True, slots=True)
class Predictions:
    """All rows and the figure."""

    rows: tuple[Prediction, ...]
    seeds: int
    figure: LabFigure


def predict_runs(paths: Sequence[Path], seeds: int = DEFAULT_SEEDS, sets: Sequence[str] = ()) -> Predictions:
    """Predict what follows steps 1 to 3 of run folders; folders of runs stand for the runs in them.

    `sets`: keys of the lab that replace what was fitted. UsageError names a run that cannot be fitted.
    """
    return predict(read_runs(paths), seeds, sets)


def predict(runs: Sequence[RunHistory], seeds: int = DEFAULT_SEEDS, sets: Sequence[str] = ()) -> Predictions:
    """Predict what follows steps 1 to 3 of runs that were read."""
    variants = split_into_variants(runs)
    # All of them are measured before the first one is fitted: a run that cannot be fitted costs no time.
    starts = [measure_start(variant.runs) for variant in variants]
    rows = []
    for variant, start in zip(variants, starts, strict=True):
        begin = time.perf_counter()
        rows.append(_row(variant, start, seeds, sets))
        logger.info(f"{variant.label}: fitted, {seeds} seeds, {time.perf_counter() - begin:.1f} s")
    return Predictions(tuple(rows), seeds, predictions_figure(rows, seeds))


def _row(variant: Variant, start: StartValues, seeds: int, sets: Sequence[str]) -> Prediction:
    config = fit(variant.runs[0], start, sets)
    history = run_experiment(config, seeds)
    final = history.final(history.length)
    low, high = torch.quantile(final, final.new_tensor([0.025, 0.975])).tolist()
    return Prediction(
        label=variant.label,
        objective=variant.objective,
        runs=tuple(_real(run, config.run.steps) for run in variant.runs),
        start=start,
        config=config,
        final=float(final.mean()),
        low=low,
        high=high,
        no_change=start.length,
        curve=_range_curve(history.length, variant.objective),
    )


def _range_curve(lengths: Tensor, objective: str) -> Curve:
    """Mean over seeds of [S, steps] with the range of 95 % of the seeds."""
    low, high = torch.quantile(lengths, lengths.new_tensor([0.025, 0.975]), dim=0).tolist()
    steps = tuple(float(step) for step in range(1, lengths.shape[1] + 1))
    return Curve("predicted", objective, steps, tuple(lengths.mean(0).tolist()), tuple(low), tuple(high))


def _real(run: RunHistory, steps: int) -> RealRun:
    lengths = run.column(LENGTH)
    recorded = lengths.dropna()
    first, last = windows_of(range(1, steps + 1)).final
    final = float(lengths.loc[first:last].mean()) if run.last_step >= last else math.nan
    return RealRun(
        name=run.name,
        path=str(run.path),
        seed=run.seed,
        start=float(lengths.loc[:FITTED_STEPS].mean()),
        final=final if math.isfinite(final) else None,
        lengths=tuple(zip(map(float, recorded.index), map(float, recorded), strict=True)),
    )


def predictions_figure(rows: Sequence[Prediction], seeds: int) -> LabFigure:
    """Each row's prediction with its range, and its runs' real curves over it, in a panel of its own."""
    panels = []
    for row in rows:
        real = []
        for run in row.runs:
            steps, lengths = zip(*run.lengths, strict=True)
            real.append(Curve("real", row.objective, steps, lengths, lengths, lengths, real=True))
        panels.append(Panel(LENGTH_AXIS, (row.curve, *real), True, row.label))
    caption = (
        f"thick: predicted from steps 1 to {FITTED_STEPS}, mean over {seeds} seeds of the exact model; band: 95 % of its seeds;"
        " thin: the runs"
    )
    return curves_figure(panels, "training step", caption)
