"""Length weights |y|^p in the exact model and in the network: `python -m bench.length_exponent FOLDER... [--figure OUT.svg]`.

Each FOLDER holds runs of `length_power` with one `objective.length_normalise`, several `objective.length_exponent` and several
seeds (docs/experiments.md, section 9, has the commands). Printed: a Markdown table, a row for each p: final length in the exact
model with the runs' clip and limits; as predicted once the model is fitted to the runs' steps 1 to 3; in the network; then what
the network got right on held-out problems, and how many response tokens it sampled. The figure has a panel a normalisation.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.causes import mean, settings, written
from luspo_cli.analysis.axis import LENGTH
from luspo_cli.analysis.comparison import compare_runs
from luspo_cli.analysis.drawing import design, write_figure
from luspo_cli.analysis.history import RunHistory, read_runs
from luspo_cli.analysis.measures import RunSummary
from luspo_cli.config.lab import resolve_lab
from luspo_cli.errors import KnownError
from luspo_cli.experiments.lab.experiment import run_experiment
from luspo_cli.experiments.lab.prediction import Prediction, predict
from luspo_cli.experiments.lab.summary import summarise
from luspo_cli.metrics.intervals import Estimate

COLOURS = {"exact": "#7a7a7a", "fitted": "#c2571a", "network": "#1f5fa8"}


@dataclass(frozen=True)
class Point:
    """One exponent; lengths in tokens."""

    exponent: float
    step_1: float
    """Mean length in the runs' first step, which the untrained policy wrote."""
    exact: Estimate
    fitted: Prediction
    network: dict[str, Estimate | None]
    runs: tuple[RunSummary, ...]


def read_points(folder: Path, seeds: int) -> tuple[str, list[Point]]:
    """The normalisation of the runs below `folder`, and a point for each of their exponents."""
    runs = read_runs([folder])
    kinds = {str(run.setting("objective", "length_normalise")) for run in runs}
    if {run.objective for run in runs} != {"length_power"} or len(kinds) > 1:
        raise SystemExit(f"{folder} does not hold runs of length_power with one length_normalise.")
    exponents = sorted({float(run.setting("objective", "length_exponent")) for run in runs})
    (kind,) = kinds
    return kind, [
        read_point(p, [run for run in runs if float(run.setting("objective", "length_exponent")) == p], kind, seeds)
        for p in exponents
    ]


def read_point(exponent: float, runs: Sequence[RunHistory], kind: str, seeds: int) -> Point:
    """Runs that differ in their seed alone, and the exact model under their settings."""
    weight = [f"objective.length_exponent={exponent:g}", f"objective.length_normalise={kind}"]
    lab = run_experiment(resolve_lab("length_power", sets=[*settings(runs[0]), *weight]), seeds)
    (fitted,) = predict(runs).rows
    compared = compare_runs(runs)
    return Point(
        exponent,
        statistics.fmean(float(run.column(LENGTH).dropna().iloc[0]) for run in runs),
        summarise(lab, kind).estimates["length_final"],
        fitted,
        compared.variants[0].estimates,
        tuple(compared.runs),
    )


def table(panels: dict[str, list[Point]]) -> str:
    """All points as Markdown."""
    lines = [
        "| normalise | p | seeds | step 1 | exact | fitted | network | held-out accuracy | tokens sampled |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind, points in panels.items():
        for point in points:
            found = point.network
            lines.append(
                f"| `{kind}` | {point.exponent:g} | {len(point.runs)} | {point.step_1:.1f} | {written(point.exact)} |"
                f" {point.fitted.final:.1f} | {written(found['length_final'])} | {written(found['held_out_final'], 3)} |"
                f" {mean(found['tokens']) / 1000:,.0f} k |"
            )
    return "\n".join(lines)


def draw(panels: dict[str, list[Point]], seeds: int) -> Figure:
    """A panel a normalisation: final length against p."""
    figure = Figure(figsize=(9.0, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for place, (kind, points) in enumerate(panels.items()):
        ax = axes[place]
        ax.set_title(f"length_normalise = {kind}", fontsize="medium")
        ax.set_xlabel("p: a sequence's weight is |y|^p")
        ax.set_xticks([point.exponent for point in points])
        start = statistics.fmean(point.step_1 for point in points)
        ax.axhline(start, color="#555555", linewidth=0.9, linestyle=(0, (4, 3)))
        p = [point.exponent for point in points]
        ax.plot(
            p, [point.exact.mean for point in points], "s-", color=COLOURS["exact"], label=f"exact model, {seeds} seeds"
        )
        ax.plot(p, [point.fitted.final for point in points], "D:", color=COLOURS["fitted"], fillstyle="none",
                label="exact model fitted to steps 1 to 3")  # fmt: skip
        final = [point.network["length_final"] for point in points]
        ax.errorbar(p, [mean(found) for found in final], yerr=[(found and found.half_width) or 0.0 for found in final], fmt="o-",
                    color=COLOURS["network"], capsize=3, label="network (tiny)")  # fmt: skip
        for point in points:
            own = [value for run in point.runs if (value := run.values["length_final"]) is not None]
            ax.plot([point.exponent] * len(own), own, "_", color=COLOURS["network"], alpha=0.5, markersize=9)
    axes[0].set_ylabel("final response length (tokens)")
    axes[0].set_ylim(bottom=0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    figure.supxlabel(
        "bar: 95 % interval over seeds (Student); dash: one run; dashed line: start", fontsize=8, color="#555555"
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--seeds", type=int, default=256)
    parser.add_argument("--figure", type=Path)
    asked = parser.parse_args()
    try:
        panels = dict(read_points(folder, asked.seeds) for folder in asked.folders)
    except KnownError as error:
        raise SystemExit(str(error)) from None
    print(table(panels))
    if asked.figure:
        with design():
            write_figure(draw(panels, asked.seeds), asked.figure)


if __name__ == "__main__":
    main()
