"""Runs of several objectives side by side: response length beside accuracy, single runs and means with intervals.

Three decisions guard against reading chance as effect (docs/comparison.md has the statistics, docs/experiments.md numbers):

- runs are compared as far as all of them reach on one axis, in three windows (`analysis.axis`);
- objectives are also compared seed by seed: seeds differ more than objectives do, and equal seeds share their problems;
- every configuration key in which the runs differ is listed, with a warning where the comparison did not ask for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from luspo_cli.analysis.answers import accuracy_at_equal_length, outcome_values, stored_answers
from luspo_cli.analysis.axis import LENGTH, By, common_end, training_steps, windows_on
from luspo_cli.analysis.differences import compared_parts, scoring_warnings, session_warnings
from luspo_cli.analysis.history import RunHistory
from luspo_cli.analysis.measures import MEASURES, Measure, RunSummary, benchmark_measures, summarise_run
from luspo_cli.analysis.paired import PairedDifference, paired_differences
from luspo_cli.analysis.tuning import Tuning, tune
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
from luspo_cli.metrics.seed_statistics import Resampled, interquartile_mean


@dataclass(frozen=True)
class VariantSummary:
    """The runs of one variant together; an estimate is None where no run has the measure."""

    label: str
    objective: str
    seeds: tuple[int | None, ...]
    estimates: dict[str, Estimate | None]
    interquartile: dict[str, Resampled | None]


@dataclass(frozen=True, slots=True)
class AnswersRead:
    """Which single responses accuracy at equal length and the lengths by outcome were made from."""

    kind: str
    first_step: int
    last_step: int
    covered: float | None
    """Share of the responses at lengths that all runs wrote; None: too few of them to compare at equal length."""


@dataclass(frozen=True)
class Comparison:
    """Everything that the table, the JSON and the report show."""

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
    """The last compared step; by tokens or time that of the run that got least far."""
    by: By
    """The axis on which all runs reach equally far."""
    end: float
    """How far that is: steps, response tokens, or seconds in steps."""
    answers: AnswersRead | None
    """None where not every run stored its responses."""
    tuning: tuple[Tuning, ...] = ()
    """How the value of one key was chosen for each objective; empty where all runs are compared."""


def compare_runs(runs: Sequence[RunHistory], by: By = "steps") -> Comparison:
    """Compare runs as far as all of them reach on the axis `by`; runs without response lengths are a UsageError."""
    return compare_variants(split_into_variants(runs), by)


def compare_tuned(runs: Sequence[RunHistory], key: str, by: By = "steps") -> tuple[Comparison, list[Variant]]:
    """Compare each objective at the values of `key` that suit it (`analysis.tuning`); returns the chosen runs, too."""
    tuning, variants = tune(runs, compare_runs(runs, by).runs, key)
    return replace(compare_variants(variants, by, intended=key), tuning=tuple(tuning)), variants


def compare_variants(variants: Sequence[Variant], by: By = "steps", intended: str = "") -> Comparison:
    """Compare variants whose runs are given; the runs of one variant count as its seeds.

    `intended`: a key that differs between and within variants by intention.
    """
    runs = [run for variant in variants for run in variant.runs]
    for run in runs:
        if not run.column(LENGTH).notna().any():
            raise UsageError(f"{run.path} recorded no response length in any step; leave it out.")
    end = common_end(runs, by)
    windows = {run.name: windows_on(run, by, end) for run in runs}
    stored = stored_answers(runs, {name: found.last_step for name, found in windows.items()})
    equal = accuracy_at_equal_length(stored.of_run) if stored else None
    measures = MEASURES | benchmark_measures(runs)
    by_variant: dict[str, list[RunSummary]] = {}
    for variant in variants:
        for run in variant.runs:
            of_answers = outcome_values(stored.of_run[run.name]) if stored else {}
            of_answers |= {"equal_length": equal.accuracy[run.name]} if equal else {}
            summary = summarise_run(run, variant.label, windows[run.name], of_answers)
            by_variant.setdefault(variant.label, []).append(summary)
    recorded = [run for run in runs if run.config]
    provenances = [{"provenance": compared_parts(run.provenance)} for run in recorded]
    unlike = differing_values([run.config for run in recorded]) | differing_values(provenances)
    differing = {
        key: {run.name: value for run, value in zip(recorded, values, strict=True)}
        for key, values in sorted(unlike.items())
        if key != intended and not expected_to_differ(key)
    }
    to_pair = {variant.label: by_variant[variant.label] for variant in variants if not _repeated_seeds(variant)}
    last_step = min(found.last_step for found in windows.values())
    summaries = tuple(summary for own in by_variant.values() for summary in own)
    warnings = _warnings(runs, variants, differing, last_step if by == "steps" else None)
    return Comparison(
        runs=summaries,
        variants=tuple(_summarise_variant(variant, by_variant[variant.label], measures) for variant in variants),
        clip_ranges=clip_ranges(variants),
        measures=measures,
        paired=tuple(paired_differences(to_pair, measures)),
        differing=differing,
        warnings=(*warnings, *_early_evaluations(summaries, by)),
        last_step=last_step,
        by=by,
        end=end,
        answers=AnswersRead(stored.kind, *stored.steps(), equal.covered if equal else None) if stored else None,
    )


def _summarise_variant(variant: Variant, runs: Sequence[RunSummary], measures: Mapping[str, Measure]) -> VariantSummary:
    found = {name: [run.values.get(name) for run in runs] for name in measures}
    values = {name: [value for value in column if value is not None] for name, column in found.items()}
    return VariantSummary(
        variant.label,
        variant.objective,
        tuple(run.seed for run in runs),
        {name: estimate(column) for name, column in values.items()},
        {name: interquartile_mean(column) for name, column in values.items()},
    )


def _warnings(
    runs: Sequence[RunHistory], variants: Sequence[Variant], differing: dict[str, dict[str, Any]], common: int | None
) -> list[str]:
    """`common`: the last step that all runs have, where they are compared by steps."""
    warnings = [note for run in runs for note in run.notes]
    longest = max(run.last_step for run in runs)
    if common is not None and longest > common:
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
        silent = int(run.table[LENGTH].loc[training_steps(run)[0] : common].isna().sum())
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


def _early_evaluations(runs: Sequence[RunSummary], by: By) -> list[str]:
    """Where a comparison ends at another step than runs evaluate at, the last evaluation may be of a much earlier policy.

    All runs evaluated at one step and compared up to one step are as fair a pair as at the end: nothing is said of them.
    """
    evaluated = [(run, run.held_out_last_step) for run in runs if run.held_out_last_step is not None]
    early = [
        f"{run.name} (step {step} of {run.windows.last_step})" for run, step in evaluated if step < run.windows.final[0]
    ]
    untrained = [run.name for run, step in evaluated if step == 0]
    alike = len({(step, run.windows.last_step) for run, step in evaluated}) == 1
    if not early or (alike and not untrained):
        return []
    left_out = (
        f" Only the untrained policy was evaluated by then in {', '.join(untrained)}: what was held out is left out there."
        if untrained
        else ""
    )
    advice = "" if by == "steps" else "compare by steps, or "
    return [
        f"Held-out accuracy is from before the final window in {', '.join(early)}: {advice}train with a smaller"
        f" evaluation.every.{left_out}"
    ]


def _repeated_seeds(variant: Variant) -> list[int]:
    seeds = [run.seed for run in variant.runs if run.seed is not None]
    return sorted({seed for seed in seeds if seeds.count(seed) > 1})
