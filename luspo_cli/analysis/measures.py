"""What a comparison measures of one run: the rows of its tables, how each is written, and its value over the run's windows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luspo_cli.analysis.axis import LENGTH, Windows
from luspo_cli.analysis.differences import scoring_settings
from luspo_cli.analysis.history import RunHistory

if TYPE_CHECKING:
    import pandas as pd

ACCURACY = "reward/accuracy/mean"
HELD_OUT = "evaluation/accuracy"
HELD_OUT_BLIND = "evaluation/blind_accuracy"
HELD_OUT_MAJORITY = "evaluation/majority_accuracy"
HELD_OUT_LENGTH = "evaluation/response_length/mean"
BLIND_METRICS = {"blind accuracy": "accuracy", "seeing minus blind": "seeing_minus_blind"}
"""Measure of a benchmark's blind pass -> its key in the result."""
BENCHMARK_COUNTS = frozenset({"correct", "samples", "problems_missing"})
"""Metrics of a benchmark's result that count responses or problems."""


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
    headline: bool = False
    """Whether a reader wants a verdict on it: accuracy, length, and what one costs in the other."""
    detail: bool = False
    """Whether it is shown on wish only."""

    def write(self, value: float, *, signed: bool = False) -> str:
        """A number as this measure is written: equal decimals, large counts in thousands or millions."""
        sign = "+" if signed else ""
        if self.unit == "count":
            for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
                if abs(value) >= size:
                    return f"{value / size:{sign}.1f} {suffix}"
            return f"{value:{sign}.0f}"
        if self.unit == "s":
            return f"{value:{sign}.0f} s" if abs(value) < 600 else f"{value / 60:{sign}.0f} min"
        if self.unit == "tokens":
            return f"{value:{sign}.1f}" if abs(value) < 1000 else f"{value:{sign}.0f}"
        return f"{value:{sign}.3f}" if self.unit == "1" else f"{value:{sign}.2f}"


MEASURES: dict[str, Measure] = {
    "accuracy_final": Measure("accuracy, training batch, final", "1", paired=True),
    "held_out_start": Measure("accuracy, held out, untrained", "1"),
    "held_out_final": Measure("accuracy, held out, last", "1", paired=True, headline=True),
    "majority_final": Measure("maj@k, held out, last", "1", paired=True),
    "held_out_best": Measure("accuracy, held out, best", "1"),
    "equal_length": Measure("accuracy at equal length", "1", paired=True),
    "right_per_1000": Measure("right per 1,000 tokens, held out", "right answers", paired=True, headline=True),
    "right_per_1000_batch": Measure("right per 1,000 tokens, batch", "right answers", paired=True, detail=True),
    "blind_start": Measure("accuracy, held out, blind, untrained", "1"),
    "blind_final": Measure("accuracy, held out, blind, last", "1", paired=True),
    "length_start": Measure("response length, start", "tokens"),
    "length_middle": Measure("response length, mid-run", "tokens", paired=True, headline=True),
    "length_final": Measure("response length, final", "tokens", paired=True, headline=True),
    "length_right": Measure("length of right, final", "tokens", paired=True, detail=True),
    "length_wrong": Measure("length of others, final", "tokens", paired=True, detail=True),
    "right_share": Measure("ended right, share", "1", detail=True),
    "wrong_share": Measure("ended wrong, share", "1", detail=True),
    "cut_share": Measure("cut at the limit, share", "1", detail=True),
    "right_length": Measure("ended right, length", "tokens", detail=True),
    "wrong_length": Measure("ended wrong, length", "tokens", detail=True),
    "cut_length": Measure("cut at the limit, length", "tokens", detail=True),
    "truncated_final": Measure("truncated fraction, final", "1"),
    "clip_low_fraction": Measure("clipped low, all steps", "1"),
    "clip_high_fraction": Measure("clipped high, all steps", "1"),
    "clipped_gradient": Measure("gradient norm over its limit", "1"),
    "tokens": Measure("response tokens sampled", "count"),
    "seconds": Measure("time in steps", "s"),
}


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
    """0: only the policy before training was evaluated, and no held-out measure but that of the start has a value."""
    held_out_best_step: int | None
    benchmark_settings: dict[str, dict[str, Any]]
    """Benchmark -> how its responses were drawn and scored."""


def benchmark_measures(runs: Sequence[RunHistory]) -> dict[str, Measure]:
    """One measure for each number of each benchmark's result."""
    return {
        f"{name} {metric}": Measure(
            f"{name}, {metric}", _unit_of(metric), True, name, metric in BLIND_METRICS, headline=metric == "accuracy"
        )
        for run in runs
        for name, content in sorted(run.benchmarks.items())
        for metric in _numbers(content)
    }


def summarise_run(
    run: RunHistory, variant: str, windows: Windows, of_answers: Mapping[str, float | None]
) -> RunSummary:
    """The measures of one run over its windows; `of_answers`: those that single responses were needed for."""
    end, whole = windows.last_step, (windows.start[0], windows.last_step)
    evaluated, blind = _evaluated(run, HELD_OUT, end), _evaluated(run, HELD_OUT_BLIND, end)
    accuracy, length = _mean(run, ACCURACY, windows.final), _mean(run, LENGTH, windows.final)
    trained = _once_trained(evaluated)
    held_out, held_out_length = _final(trained), _final(_evaluated(run, HELD_OUT_LENGTH, end))
    values = {
        "accuracy_final": accuracy,
        "held_out_start": _found(evaluated.get(0, math.nan)),
        "held_out_final": held_out,
        "majority_final": _final(_once_trained(_evaluated(run, HELD_OUT_MAJORITY, end))),
        "held_out_best": _found(trained.max()),
        "equal_length": None,
        "right_per_1000": _per_1000(held_out, held_out_length),
        "right_per_1000_batch": _per_1000(accuracy, length),
        "blind_start": _found(blind.get(0, math.nan)),
        "blind_final": _final(_once_trained(blind)),
        "length_start": _mean(run, LENGTH, windows.start),
        "length_middle": _mean(run, LENGTH, windows.middle),
        "length_final": length,
        "length_right": _mean(run, "response_length/correct", windows.final),
        "length_wrong": _mean(run, "response_length/incorrect", windows.final),
        "truncated_final": _mean(run, "response/truncated_fraction", windows.final),
        "clip_low_fraction": _mean(run, "objective/clip_low_fraction", whole),
        "clip_high_fraction": _mean(run, "objective/clip_high_fraction", whole),
        "clipped_gradient": _mean(run, "update/clipped_gradient", whole),
        "tokens": _last(run, "tokens/total", end),
        "seconds": _sum(run, "time/total", whole),
        **of_answers,
    }
    for name, content in run.benchmarks.items():
        values |= {f"{name} {metric}": value for metric, value in _numbers(content).items()}
    return RunSummary(
        name=run.name,
        path=str(run.path),
        variant=variant,
        objective=run.objective,
        seed=run.seed,
        last_step=run.last_step,
        planned_steps=run.planned_steps,
        finished=run.finished,
        windows=windows,
        values=values,
        held_out_last_step=int(evaluated.index[-1]) if len(evaluated) else None,
        benchmark_settings={name: scoring_settings(content) for name, content in run.benchmarks.items()},
        held_out_best_step=int(trained.index[int(trained.argmax())]) if len(trained) else None,
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


def _per_1000(accuracy: float | None, length: float | None) -> float | None:
    """Right answers in a thousand response tokens: each response costs its length, wrong ones too."""
    return None if accuracy is None or not length else 1000 * accuracy / length


def _evaluated(run: RunHistory, metric: str, end: int) -> pd.Series:
    """What the held-out evaluations up to step `end` found, by step; empty where the run has none."""
    return run.evaluations.reindex(columns=[metric])[metric].loc[:end].dropna()


def _once_trained(values: pd.Series) -> pd.Series:
    """The evaluations of a run that was evaluated after step 0, that one included; empty where only the untrained policy was."""
    return values if len(values) and values.index[-1] > 0 else values.iloc[:0]


def _final(values: pd.Series) -> float | None:
    return _found(values.iloc[-1]) if len(values) else None


def _mean(run: RunHistory, metric: str, window: tuple[int, int]) -> float | None:
    return _found(run.table[metric].loc[window[0] : window[1]].mean()) if metric in run.table else None


def _sum(run: RunHistory, metric: str, window: tuple[int, int]) -> float | None:
    return _found(run.table[metric].loc[window[0] : window[1]].sum(min_count=1)) if metric in run.table else None


def _last(run: RunHistory, metric: str, end: int) -> float | None:
    return _final(run.table[metric].loc[:end].dropna()) if metric in run.table else None


def _found(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
