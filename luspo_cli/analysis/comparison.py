"""Runs of several objectives side by side: response length beside accuracy, single runs and means with intervals.

Three decisions guard against reading chance as effect (docs/experiments.md has the numbers behind them):

- runs are compared over the steps that all of them have, in three windows of 10 % of those steps: the first, one that
  ends at the middle step, and the last; at the end alone, short lengths sit on the floor and long ones on the limit;
- objectives are also compared seed by seed: seeds differ more than objectives do, and equal seeds share their problems;
- every configuration key in which the runs differ is listed, with a warning where the comparison did not ask for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from luspo_cli.analysis.differences import BLIND, compared_parts, scoring_settings, scoring_warnings, session_warnings
from luspo_cli.analysis.history import RunHistory
from luspo_cli.analysis.variants import (
    ClipRange,
    Variant,
    clip_ranges,
    differing_values,
    expected_to_differ,
    in_which,
    show,
    split_into_variants,
)
from luspo_cli.errors import UsageError
from luspo_cli.metrics.intervals import Estimate, estimate

if TYPE_CHECKING:
    import pandas as pd

LENGTH = "response_length/mean"
ACCURACY = "reward/accuracy/mean"
HELD_OUT = "evaluation/accuracy"
HELD_OUT_BLIND = "evaluation/blind_accuracy"
BLIND_METRICS = {"blind accuracy": "accuracy", "seeing minus blind": "seeing_minus_blind"}
"""Measure of a benchmark's blind pass -> its key in the result."""
BENCHMARK_COUNTS = frozenset({"correct", "samples", "problems_missing"})
"""Metrics of a benchmark's result that count responses or problems."""
WINDOW_SHARE = 10
"""A window is one part in this many of the compared steps, at least one step."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One row of the comparison: how it is called and how it is written."""

    title: str
    unit: str
    paired: bool = False
    """Whether objectives are also compared seed by seed in it."""
    benchmark: str = ""
    """Whose result it is from: seeds are paired where that was drawn and scored alike."""
    blind: bool = False
    """Whether it is of the benchmark's blind pass."""


MEASURES: dict[str, Measure] = {
    "accuracy_final": Measure("accuracy, training batch, final", "1", paired=True),
    "held_out_start": Measure("accuracy, held out, untrained", "1"),
    "held_out_final": Measure("accuracy, held out, last", "1", paired=True),
    "held_out_best": Measure("accuracy, held out, best", "1"),
    "blind_start": Measure("accuracy, held out, blind, untrained", "1"),
    "blind_final": Measure("accuracy, held out, blind, last", "1", paired=True),
    "length_start": Measure("response length, start", "tokens"),
    "length_middle": Measure("response length, mid-run", "tokens", paired=True),
    "length_final": Measure("response length, final", "tokens", paired=True),
    "truncated_final": Measure("truncated fraction, final", "1"),
    "clip_low_fraction": Measure("clipped low, all steps", "1"),
    "clip_high_fraction": Measure("clipped high, all steps", "1"),
    "clipped_gradient": Measure("gradient norm over its limit", "1"),
    "tokens": Measure("response tokens sampled", "count"),
    "seconds": Measure("time in steps", "s"),
}


@dataclass(frozen=True, slots=True)
class Windows:
    """The compared steps, first and last included."""

    start: tuple[int, int]
    middle: tuple[int, int]
    final: tuple[int, int]
    last_step: int


@dataclass(frozen=True)
class RunSummary:
    """One run; `values` holds each measure, None where the run did not record it."""

    name: str
    path: str
    variant: str
    objective: str
    seed: int | None
    last_step: int
    planned_steps: int | None
    finished: bool | None
    windows: Windows
    values: dict[str, float | None]
    held_out_last_step: int | None
    held_out_best_step: int | None
    benchmark_settings: dict[str, dict[str, Any]]
    """Benchmark -> how its responses were drawn and scored."""


@dataclass(frozen=True)
class VariantSummary:
    """The runs of one variant together; an estimate is None where no run has the measure."""

    label: str
    objective: str
    seeds: tuple[int | None, ...]
    estimates: dict[str, Estimate | None]


@dataclass(frozen=True)
class PairedDifference:
    """`first` minus `second` in one measure over the seeds that both have."""

    first: str
    second: str
    measure: str
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    estimate: Estimate
    positive: int


@dataclass(frozen=True)
class Comparison:
    """Everything that the table and the JSON show."""

    runs: tuple[RunSummary, ...]
    variants: tuple[VariantSummary, ...]
    clip_ranges: dict[str, ClipRange]
    """Variant -> lower and upper clip distance: a preset may set another range than an objective's paper."""
    measures: dict[str, Measure]
    paired: tuple[PairedDifference, ...]
    differing: dict[str, dict[str, Any]]
    """Configuration key -> run name -> value, for the keys that should have been equal."""
    warnings: tuple[str, ...]
    last_step: int


def compare_runs(runs: Sequence[RunHistory]) -> Comparison:
    """Compare runs over their common steps; runs without response lengths are a UsageError."""
    for run in runs:
        if not run.column(LENGTH).notna().any():
            raise UsageError(f"{run.path} recorded no response length in any step; leave it out.")
    variants = split_into_variants(runs)
    ordered = [(variant, run) for variant in variants for run in variant.runs]
    common = min(run.last_step for run in runs)
    if common < max(_training_steps(run)[0] for run in runs):
        raise UsageError(f"The runs have no step in common: one of them ends at step {common}.")
    benchmarks = {
        f"{name} {metric}": Measure(f"{name}, {metric}", _unit_of(metric), True, name, metric in BLIND_METRICS)
        for run in runs
        for name, content in sorted(run.benchmarks.items())
        for metric in _numbers(content)
    }
    measures = MEASURES | benchmarks
    summaries = tuple(_summarise_run(run, variant, common) for variant, run in ordered)
    recorded = [run for _, run in ordered if run.config]
    settings = [{**run.config, "provenance": compared_parts(run.provenance)} for run in recorded]
    differing = {
        key: {run.name: value for run, value in zip(recorded, values, strict=True)}
        for key, values in differing_values(settings).items()
        if not expected_to_differ(key)
    }
    return Comparison(
        runs=summaries,
        variants=tuple(_summarise_variant(variant, summaries, measures) for variant in variants),
        clip_ranges=clip_ranges(variants),
        measures=measures,
        paired=tuple(_paired_differences(variants, summaries, measures)),
        differing=differing,
        warnings=tuple(_warnings([run for _, run in ordered], variants, differing, common)),
        last_step=common,
    )


def _numbers(content: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a benchmark's result, those of its blind pass included."""
    found = content.get("blind")
    blind = {metric: found.get(key) for metric, key in BLIND_METRICS.items()} if isinstance(found, Mapping) else {}
    values = {**content["metrics"], **blind}.items()
    return {
        metric: float(value)
        for metric, value in values
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _unit_of(metric: str) -> str:
    """The unit of a benchmark's metric: all but lengths and counts are shares."""
    if metric.startswith("response_length/"):
        return "tokens"
    return "count" if metric in BENCHMARK_COUNTS else "1"


def windows_of(steps: Sequence[int]) -> Windows:
    """Return the three windows over the given steps: first tenth, a tenth that ends at the middle step, last tenth."""
    size = max(1, len(steps) // WINDOW_SHARE)
    middle = max(size, math.ceil(len(steps) / 2))
    return Windows(
        start=(steps[0], steps[size - 1]),
        middle=(steps[middle - size], steps[middle - 1]),
        final=(steps[-size], steps[-1]),
        last_step=steps[-1],
    )


def _training_steps(run: RunHistory) -> list[int]:
    lengths = run.table[LENGTH]
    return [int(step) for step in lengths.index[lengths.notna()]]


def _summarise_run(run: RunHistory, variant: Variant, common: int) -> RunSummary:
    windows = windows_of([step for step in _training_steps(run) if step <= common])
    whole = (windows.start[0], common)
    evaluated, blind = _evaluated(run, HELD_OUT, common), _evaluated(run, HELD_OUT_BLIND, common)
    values = {
        "accuracy_final": _mean(run, ACCURACY, windows.final),
        "held_out_start": _found(evaluated.get(0, math.nan)),
        "held_out_final": _found(evaluated.iloc[-1]) if len(evaluated) else None,
        "held_out_best": _found(evaluated.max()),
        "blind_start": _found(blind.get(0, math.nan)),
        "blind_final": _found(blind.iloc[-1]) if len(blind) else None,
        "length_start": _mean(run, LENGTH, windows.start),
        "length_middle": _mean(run, LENGTH, windows.middle),
        "length_final": _mean(run, LENGTH, windows.final),
        "truncated_final": _mean(run, "response/truncated_fraction", windows.final),
        "clip_low_fraction": _mean(run, "objective/clip_low_fraction", whole),
        "clip_high_fraction": _mean(run, "objective/clip_high_fraction", whole),
        "clipped_gradient": _mean(run, "update/clipped_gradient", whole),
        "tokens": _last(run, "tokens/total", common),
        "seconds": _sum(run, "time/total", whole),
    }
    for name, content in run.benchmarks.items():
        values |= {f"{name} {metric}": value for metric, value in _numbers(content).items()}
    return RunSummary(
        name=run.name,
        path=str(run.path),
        variant=variant.label,
        objective=run.objective,
        seed=run.seed,
        last_step=run.last_step,
        planned_steps=run.planned_steps,
        finished=run.finished,
        windows=windows,
        values=values,
        held_out_last_step=int(evaluated.index[-1]) if len(evaluated) else None,
        benchmark_settings={name: scoring_settings(content) for name, content in run.benchmarks.items()},
        held_out_best_step=int(evaluated.index[int(evaluated.argmax())]) if len(evaluated) else None,
    )


def _summarise_variant(variant: Variant, runs: Sequence[RunSummary], measures: dict[str, Measure]) -> VariantSummary:
    members = [run for run in runs if run.variant == variant.label]
    estimates = {}
    for measure in measures:
        values = [run.values.get(measure) for run in members]
        estimates[measure] = estimate([value for value in values if value is not None])
    return VariantSummary(variant.label, variant.objective, tuple(run.seed for run in members), estimates)


def _paired_differences(
    variants: Sequence[Variant], runs: Sequence[RunSummary], measures: dict[str, Measure]
) -> list[PairedDifference]:
    by_seed = {
        variant.label: {run.seed: run for run in runs if run.variant == variant.label and run.seed is not None}
        for variant in variants
        if not _repeated_seeds(variant)
    }
    pairs = []
    for second, first in combinations(by_seed, 2):
        seeds = sorted(by_seed[first].keys() & by_seed[second].keys())
        for measure, description in measures.items():
            if not description.paired:
                continue
            found: dict[int, float] = {}
            for seed in seeds:
                run, against = by_seed[first][seed], by_seed[second][seed]
                one, other = run.values.get(measure), against.values.get(measure)
                if one is not None and other is not None and _alike(description, run, against):
                    found[seed] = one - other
            spread = estimate(list(found.values()))
            if spread is not None:
                positive = sum(difference > 0 for difference in found.values())
                pairs.append(
                    PairedDifference(first, second, measure, tuple(found), tuple(found.values()), spread, positive)
                )
    return pairs


def _alike(measure: Measure, one: RunSummary, other: RunSummary) -> bool:
    """Whether a measure was found in the same way in both runs: a benchmark's with the same settings."""
    ours, theirs = (run.benchmark_settings.get(measure.benchmark, {}) for run in (one, other))
    return all(ours.get(key) == theirs.get(key) for key in ours.keys() | theirs.keys() if key != BLIND or measure.blind)


def _warnings(
    runs: Sequence[RunHistory], variants: Sequence[Variant], differing: dict[str, dict[str, Any]], common: int
) -> list[str]:
    warnings = [note for run in runs for note in run.notes]
    longest = max(run.last_step for run in runs)
    if longest > common:
        warnings.append(
            f"The runs have different lengths (last steps {common} to {longest}): all are compared up to step {common}."
        )
    for run in runs:
        if run.finished is False:
            warnings.append(f"{run.name} is unfinished: step {run.last_step} of {run.planned_steps}.")
    for key, values in differing.items():
        shown = in_which({name: show(value) for name, value in values.items()})
        warnings.append(f"Not only the objective differs: {key} is {'; '.join(shown)}.")
    warnings += session_warnings(runs)
    for run in runs:
        if not run.config:
            warnings.append(f"{run.name} is a log of {run.source}: what else differs from it is not recorded.")
        silent = int(run.table[LENGTH].loc[_training_steps(run)[0] : common].isna().sum())
        if silent:
            warnings.append(f"{run.name} recorded no response length in {silent} of its steps; means leave them out.")
    for variant in variants:
        seeds = _repeated_seeds(variant)
        if seeds:
            warnings.append(
                f"{variant.label} has more than one run with seed {', '.join(map(str, seeds))}:"
                " they are not independent, and it is left out of the paired differences."
            )
    return warnings + scoring_warnings(runs)


def _repeated_seeds(variant: Variant) -> list[int]:
    seeds = [run.seed for run in variant.runs if run.seed is not None]
    return sorted({seed for seed in seeds if seeds.count(seed) > 1})


def _evaluated(run: RunHistory, metric: str, common: int) -> pd.Series:
    """What the held-out evaluations up to step `common` found, by step; empty where the run has none."""
    return run.evaluations.reindex(columns=[metric])[metric].loc[:common].dropna()


def _mean(run: RunHistory, metric: str, window: tuple[int, int]) -> float | None:
    return _found(run.table[metric].loc[window[0] : window[1]].mean()) if metric in run.table else None


def _sum(run: RunHistory, metric: str, window: tuple[int, int]) -> float | None:
    return _found(run.table[metric].loc[window[0] : window[1]].sum(min_count=1)) if metric in run.table else None


def _last(run: RunHistory, metric: str, common: int) -> float | None:
    if metric not in run.table:
        return None
    values = run.table[metric].loc[:common].dropna()
    return None if values.empty else _found(values.iloc[-1])


def _found(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
