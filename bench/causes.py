"""The forms of the clip, exact model and network side by side: `python -m bench.causes FOLDER [--seeds 256] [--figure OUT.svg]`.

FOLDER is what `sh bench/clip_forms.sh FOLDER` made: one folder a cell, each with runs of several objectives and seeds. A cell's
clip is read from its runs' configuration, so the exact model (`luspo lab`) has the same one, the response limit of the runs too;
beside it stands what it predicts once it is fitted to the runs' steps 1 to 3.
Printed: a Markdown table of final lengths with 95 % intervals over seeds (Student) and of LUSPO less GSPO, paired by seed in the
network; then accuracy on held-out problems and what was clipped. The figure draws the final lengths, single runs as faint points.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from luspo_cli.analysis.axis import LENGTH
from luspo_cli.analysis.comparison import Comparison, compare_runs
from luspo_cli.analysis.drawing import STYLES, design, set_log_ticks, write_figure
from luspo_cli.analysis.history import RunHistory, read_runs
from luspo_cli.config.lab import resolve_lab
from luspo_cli.errors import KnownError
from luspo_cli.experiments.lab.experiment import run_experiment
from luspo_cli.experiments.lab.prediction import predict
from luspo_cli.experiments.lab.summary import summarise
from luspo_cli.metrics.intervals import Estimate

TITLES = {
    "no-clip": "no clip",
    "mean": "both sides, 2e-3 / 2.5e-3",
    "low-only": "only the low side, 2e-3",
    "high-only": "only the high side, 2.5e-3",
    "gspo-own": "GSPO's own, 3e-4 / 4e-4",
    "root": "on the root, 9.2e-3 / 1.15e-2",
    "sum-wide": "on the sum, 0.042 / 0.0525",
    "sum-narrow": "on the sum, 0.01 / 0.0125",
}
TITLES |= {"no-limit": "both sides, no gradient limit"}
TITLES |= {
    "balanced" if cell == "mean" else f"balanced-{cell}": f"balanced: {title}"
    for cell, title in TITLES.items()
    if cell in ("mean", "gspo-own", "root", "sum-wide", "sum-narrow")
}
TITLES |= {f"free-{cell}": f"long limit: {TITLES[cell]}" for cell in ("no-clip", "mean", "balanced")}
CLIP_KEYS = ("clip_low", "clip_high", "clip_on", "clip_band")
OBJECTIVES = ("gspo", "luspo")


@dataclass(frozen=True)
class Cell:
    """One form of the clip: what the exact model and the network did under each objective; lengths in tokens."""

    title: str
    exact_start: float
    exact: dict[str, Estimate]
    predicted: dict[str, float]
    """The exact model fitted to the runs' steps 1 to 3 (`luspo lab --from`)."""
    step_1: float
    """Mean length in the runs' first step, which the untrained policy wrote."""
    network: Comparison


def read_cell(folder: Path, seeds: int) -> Cell:
    """Runs below `folder`, and the exact model under their clip and response limit."""
    runs = read_runs([folder / "tiny"])
    exact = {}
    for objective in OBJECTIVES:
        run = next(run for run in runs if run.objective == objective)
        exact[objective] = summarise(run_experiment(resolve_lab(objective, sets=settings(run)), seeds), objective)
    return Cell(
        TITLES.get(folder.name, folder.name),
        exact["gspo"].estimates["length_start"].mean,
        {name: found.estimates["length_final"] for name, found in exact.items()},
        {row.objective: row.final for row in predict(runs).rows},
        statistics.fmean(float(run.column(LENGTH).dropna().iloc[0]) for run in runs),
        compare_runs(runs),
    )


def settings(run: RunHistory) -> list[str]:
    """What of a run's configuration the exact model takes over."""
    objective = run.config["objective"]
    clip = [f"objective.{key}={objective[key]}" for key in CLIP_KEYS if objective.get(key) is not None]
    keys = {"rollout": "max_response_tokens", "update": "gradient_clip"}
    return [*clip, *(f"{section}.{key}={run.config[section][key]}" for section, key in keys.items())]


def table(cells: Sequence[Cell]) -> str:
    """Final lengths and differences, then accuracy and clipped shares of the network, as Markdown."""
    lines = [
        "| clip | GSPO: exact | fitted | network | LUSPO: exact | fitted | network | LUSPO − GSPO, network |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    second = [
        "| clip | seeds | step 1 | GSPO: held-out accuracy | cut low / high | LUSPO: held-out accuracy | cut low / high |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell in cells:
        own = {variant.objective: variant.estimates for variant in cell.network.variants}
        shown = [
            text
            for name in OBJECTIVES
            for text in (written(cell.exact[name]), f"{cell.predicted[name]:.1f}", written(own[name]["length_final"]))
        ]
        pair = next(pair for pair in cell.network.paired if pair.measure == "length_final")
        mean_difference = f"{pair.estimate.mean:+.1f} ± {pair.estimate.half_width or 0:.1f}"
        difference = f"{mean_difference}, {pair.positive} of {pair.estimate.n} longer, p = {pair.p:.2g}"
        lines.append(f"| {cell.title} | {' | '.join(shown)} | {difference} |")
        details = [
            text
            for name in OBJECTIVES
            for text in (
                written(own[name]["held_out_final"], 3),
                f"{100 * mean(own[name]['clip_low_fraction']):.1f} / {100 * mean(own[name]['clip_high_fraction']):.1f} %",
            )
        ]
        second.append(f"| {cell.title} | {pair.estimate.n} | {cell.step_1:.1f} | {' | '.join(details)} |")
    return "\n".join([*lines, "", *second])


def written(found: Estimate | None, digits: int = 1) -> str:
    """Mean and half of the interval."""
    if found is None:
        return "–"
    return f"{found.mean:.{digits}f}" + ("" if found.half_width is None else f" ± {found.half_width:.{digits}f}")


def mean(found: Estimate | None) -> float:
    return float("nan") if found is None else found.mean


def draw(cells: Sequence[Cell], seeds: int) -> Figure:
    """One row a cell, from the top; left the exact model, right the network; both with the length at the start as a line."""
    figure = Figure(figsize=(9.0, 1.7 + 0.42 * len(cells)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True, sharex=True)
    runs = [run for cell in cells for run in cell.network.runs]
    for ax, heading, start in (
        (left, f"exact model, {seeds} seeds", cells[0].exact_start),
        (right, "network (tiny), single runs and means", statistics.fmean(cell.step_1 for cell in cells)),
    ):
        ax.set_title(heading, fontsize="medium")
        ax.axvline(start, color="#555555", linewidth=0.9, linestyle=(0, (4, 3)))
        ax.set_xlabel("final response length (tokens)")
    for place, cell in enumerate(cells):
        for offset, name in ((-0.14, "gspo"), (0.14, "luspo")):
            label = name if place == 0 else None
            y = place + offset
            point(left, cell.exact[name], y, name, label)
            own = [run.values["length_final"] for run in cell.network.runs if run.variant.startswith(name)]
            right.plot(cell.predicted[name], y, "D", color=STYLES[name][0], markersize=6, fillstyle="none")
            right.plot(own, [y] * len(own), "|", color=STYLES[name][0], alpha=0.45, markersize=7)
            variant = next(variant for variant in cell.network.variants if variant.objective == name)
            found = variant.estimates["length_final"]
            assert found is not None
            point(right, found, y, name, None)
    left.set_yticks(range(len(cells)), [cell.title for cell in cells])
    left.invert_yaxis()
    left.set_xscale("log")
    # Intervals may reach below 0, which this axis cannot show: its ends follow what was seen.
    seen = [value for run in runs if (value := run.values["length_final"]) is not None]
    seen += [found.mean for cell in cells for found in cell.exact.values()]
    low, high = min(seen) / 1.3, max(seen) * 1.3
    left.set_xlim(low, high)
    set_log_ticks(left.xaxis, low, high)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    figure.supxlabel(
        "point: mean, bar: 95 % interval over seeds (Student); diamond: exact model fitted to steps 1 to 3; dashed: start",
        fontsize=8,
        color="#555555",
    )
    return figure


def point(ax: Axes, found: Estimate, y: float, objective: str, label: str | None) -> None:
    """A mean with its interval."""
    shape = "o" if objective == "luspo" else "s"
    ax.errorbar(
        found.mean, y, xerr=found.half_width or 0.0, fmt=shape, color=STYLES[objective][0], markersize=5, label=label
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=256)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--cells", default=",".join(TITLES), help="names, comma between")
    asked = parser.parse_args()
    wanted = [name for name in asked.cells.split(",") if (asked.folder / name / "tiny").is_dir()]
    if not wanted:
        raise SystemExit(f"{asked.folder} has no cell of bench/clip_forms.sh with runs.")
    try:
        cells = [read_cell(asked.folder / name, asked.seeds) for name in wanted]
    except KnownError as error:
        raise SystemExit(str(error)) from None
    print(table(cells))
    if asked.figure:
        with design():
            write_figure(draw(cells, asked.seeds), asked.figure)


if __name__ == "__main__":
    main()
