"""Response length over training, one colour an objective; in the looks of `drawing`.

What the figure shows, and why: every run as a thin line, because one seed proves nothing and a mean hides that; the
mean over runs as a thick line, as far as all of an objective's runs reach; a band from the lowest to the highest run,
since with three seeds a t interval would be wider than the axis and below zero. Lengths stand on a logarithmic axis:
short ones are sticky at the floor, long ones stop at the limit, and objectives are compared by ratios. Accuracy stands
beside length, since growth alone is not reasoning. Neither axis spans less than a least range, so that noise cannot
fill it. Equal input gives equal bytes: no date or version enters the file.
"""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from luspo_cli.analysis.drawing import (
    MORE_STYLES,
    SPARE_STYLES,
    STYLES,
    design,
    length_scale,
    write_figure,
)
from luspo_cli.analysis.history import RunHistory
from luspo_cli.analysis.outputs import FIGURE, NUMBERS, check_output
from luspo_cli.analysis.variants import ClipRange, Variant, clip_ranges, clip_sentence, split_into_variants
from luspo_cli.errors import UsageError, nearest
from luspo_cli.files import replace_file
from luspo_cli.metrics.names import METRICS, metric_of

LENGTH = "response_length/mean"
CORRECT, INCORRECT = "response_length/correct", "response_length/incorrect"
ACCURACY = "reward/accuracy/mean"
HELD_OUT, BLIND = "evaluation/accuracy", "evaluation/blind_accuracy"
DASHES = (0, (4, 1.5))
DASHED = (INCORRECT, BLIND)
"""Metrics that are drawn dashed beside a solid one."""
EVALUATION = "evaluation/"
"""Metrics of some steps only, by intention: their values are joined, where other lines break at a step without one."""
SMOOTHING_SHARE = 12
"""Without a wish the moving mean spans one part in this many of the steps, made odd so that it is centred."""
LEAST_SPAN = 0.25
"""Least range of the accuracy axis."""
MOST_BANDS = 3
"""With more objectives bands cover each other: the runs and their means remain."""

ROOM_ABOVE, ROOM_BELOW = 3, 3
"""Lines of legend and of small print for which the panels keep their height; for more the figure grows."""
LEGEND_LINE, PRINT_LINE = 0.23, 0.14
"""Their heights, in inches."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One curve as it was drawn."""

    metric: str
    variant: str
    curve: str
    """A run's name; or `mean`, `lowest` or `highest` over the runs of the variant."""
    values: pd.Series
    """By step."""


@dataclass(frozen=True, slots=True)
class LengthFigure:
    """A figure that was written, with the sentence below it and what was left out of it."""

    path: Path
    caption: str
    notes: tuple[str, ...]
    clip_ranges: dict[str, ClipRange]


def plot_length(
    runs: Sequence[RunHistory],
    out: Path,
    *,
    smooth: int | None = None,
    split_correct: bool = False,
    metric: str = LENGTH,
    log: bool | None = None,
    with_accuracy: bool = True,
    variants: Sequence[Variant] | None = None,
    data: Path | None = None,
) -> LengthFigure:
    """Draw `metric` over steps by objective into `out` (PNG, SVG or PDF by its suffix), written whole or not at all.

    `smooth`: steps of the centred moving mean, None: a twelfth of the steps. `split_correct`: correct and incorrect
    rollouts apart. `log`: None: logarithmic where the unit is tokens. `variants`: of these runs, None: by their configurations.
    `data`: a CSV file for the drawn numbers.
    """
    check_output(out, FIGURE)
    check_output(data, NUMBERS)
    drawn: list[Drawn] = []
    with design():
        figure, caption, notes = build_figure(
            runs,
            smooth=smooth,
            split_correct=split_correct,
            metric=metric,
            log=log,
            with_accuracy=with_accuracy,
            variants=variants,
            drawn=drawn,
        )
        write_figure(figure, out)
    if data is not None:
        write_data(drawn, data)
    return LengthFigure(out, caption, notes, clip_ranges(variants or split_into_variants(runs)))


def build_figure(
    runs: Sequence[RunHistory],
    *,
    smooth: int | None = None,
    split_correct: bool = False,
    metric: str = LENGTH,
    log: bool | None = None,
    with_accuracy: bool = True,
    variants: Sequence[Variant] | None = None,
    drawn: list[Drawn] | None = None,
) -> tuple[Figure, str, tuple[str, ...]]:
    """Return the figure of `plot_length`, its caption and its notes, without writing anything; `drawn` gets its curves."""
    drawn = [] if drawn is None else drawn
    if not runs:
        raise UsageError("No run was given; name one or more run folders.")
    if metric_of(metric) is None or metric == "step":
        raise UsageError(f"'{metric}' is not a metric{nearest(metric, METRICS)}; docs/run-folder.md lists them.")
    if smooth is not None and smooth < 1:
        raise UsageError(f"The moving mean needs at least 1 step, not {smooth}.")
    if split_correct and metric != LENGTH:
        raise UsageError(f"Correct and incorrect rollouts are told apart for {LENGTH} only; leave out one of the two.")
    metrics = (CORRECT, INCORRECT) if split_correct else (metric,)
    for run in runs:
        for name in metrics:
            if not run.column(name).notna().any():
                raise UsageError(f"{run.path} has no value of '{name}' in any step; leave this run out.")
    window = smooth or max(len(run.table) for run in runs) // SMOOTHING_SHARE | 1
    variants = variants or split_into_variants(runs)
    styles = choose_styles(variants)
    notes = [note for run in runs for note in run.notes]
    notes += [note for name in metrics for run in runs if (note := gap_note(run, name)) is not None]
    without = [run.name for run in runs if ACCURACY not in run.table or not run.table[ACCURACY].notna().any()]
    two_panels = with_accuracy and len(without) < len(runs) and metric != ACCURACY
    blind = two_panels and any(BLIND in run.table and run.table[BLIND].notna().any() for run in runs)
    if two_panels and not blind:
        notes += [note for run in runs if run.name not in without and (note := gap_note(run, ACCURACY)) is not None]
    if with_accuracy and without:
        notes.append(f"No accuracy is recorded in {', '.join(without)}.")

    figure = Figure(figsize=(9.0, 4.0) if two_panels else (6.4, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if two_panels else 1, sharex=True, squeeze=False)[0]
    told = [("correct", "incorrect")] * split_correct + [("held out", "blind")] * blind
    if told:
        # Solid and dashed tell these apart here; colour alone tells the objectives apart.
        styles = {label: (colour, "solid") for label, (colour, _) in styles.items()}
    if len(set(styles.values())) < len(styles):
        notes.append(
            f"{len(styles)} lines are more than there are looks to tell them apart; draw fewer runs in one figure."
        )
    band = not split_correct and len(variants) <= MOST_BANDS
    drawn += draw_panel(axes[0], variants, styles, metrics, window, band=band)
    _label_panel(axes[0], metric)
    if (log if log is not None else _unit(metric) == "tokens") and not length_scale(axes[0]):
        notes.append("A value is not positive, so the axis is linear.")
    if two_panels:
        # A held-out accuracy is over problems enough: it stands as measured.
        shown, span = ((HELD_OUT, BLIND), 1) if blind else ((ACCURACY,), window)
        drawn += draw_panel(axes[1], variants, styles, shown, span, band=band and not blind)
        axes[1].set_ylabel("accuracy, held out" if blind else "accuracy, training batch")
        axes[1].set_ylim(fraction_limits(*axes[1].get_ylim()))
        axes[1].yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    for ax in axes:
        ax.set_xlabel("training step")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.margins(x=0.02)
    lines = [_caption(variants, window, band=band)]
    if ranges := clip_ranges(variants):
        lines.append(clip_sentence(ranges))
    above = _add_legend(figure, variants, styles, told)
    figure.get_layout_engine().set(wspace=0.06)  # type: ignore[union-attr, call-arg]
    # About 14 characters of the small print fit an inch.
    below = "\n".join(textwrap.fill(line, int(figure.get_figwidth() * 14)) for line in lines)
    figure.supxlabel(below, fontsize=8, color="#555555")
    more = max(0, above - ROOM_ABOVE) * LEGEND_LINE + max(0, below.count("\n") + 1 - ROOM_BELOW) * PRINT_LINE
    figure.set_figheight(figure.get_figheight() + more)
    return figure, "; ".join(lines), tuple(notes)


def smoothed(values: pd.Series, window: int) -> pd.Series:
    """Return the centred moving mean over `window` rows; shorter at both ends, missing values left out."""
    if window == 1:
        return values
    return values.rolling(window, center=True, min_periods=1).mean()


def gap_note(run: RunHistory, metric: str) -> str | None:
    """Return one sentence where some steps of a run lack a metric that steps have; evaluations lie apart by intention."""
    values = run.table[metric]
    missing = int(values.isna().sum())
    if not missing or metric.startswith(EVALUATION):
        return None
    return f"{run.name} has no {metric} in {missing} of {len(values)} steps; its line is broken there."


def mean_and_band(curves: Sequence[pd.Series]) -> pd.DataFrame:
    """Return mean, low and high by step over curves, for the steps that all of them have; NaN where one has a gap."""
    together = pd.concat(list(curves), axis=1, join="inner")
    return pd.DataFrame(
        {
            "mean": together.mean(axis=1, skipna=False),
            "low": together.min(axis=1, skipna=False),
            "high": together.max(axis=1, skipna=False),
        }
    )


def choose_styles(variants: Sequence[Variant]) -> dict[str, tuple[str, Any]]:
    """Return colour and line style by label: fixed for named objectives, spare ones for the rest in reading order."""
    styles: dict[str, tuple[str, Any]] = {}
    spare = cycle(SPARE_STYLES + MORE_STYLES)
    for variant in variants:
        fixed = STYLES.get(variant.objective)
        if fixed is not None and fixed not in styles.values():
            styles[variant.label] = fixed
        else:
            styles[variant.label] = next(spare)
    return styles


def draw_panel(
    ax: Axes,
    variants: Sequence[Variant],
    styles: dict[str, tuple[str, Any]],
    metrics: Sequence[str],
    window: int,
    *,
    band: bool,
    untrained: bool = False,
) -> list[Drawn]:
    """Draw each variant's runs, their mean and their range, and return what was drawn; `untrained`: evaluations at step 0 too."""
    drawn = []
    for variant in variants:
        colour, style = styles[variant.label]
        for metric in metrics:
            recorded = {run.name: _recorded(run, metric, untrained) for run in variant.runs}
            # The moving mean reaches into a gap from both sides, and a short gap would close: it stays open.
            curves = {
                name: smoothed(values, window).where(values.notna())
                for name, values in recorded.items()
                if values.notna().any()
            }
            if not curves:
                continue
            dashes = DASHES if metric in DASHED else style
            over_runs = mean_and_band([*curves.values()])
            if len(curves) > 1:
                if band:
                    ax.fill_between(
                        over_runs.index, over_runs["low"], over_runs["high"], color=colour, alpha=0.1, linewidth=0
                    )
                    drawn += [
                        Drawn(metric, variant.label, name, over_runs[column])
                        for name, column in (("lowest", "low"), ("highest", "high"))
                    ]
                for name, curve in curves.items():
                    thin = dashes if metric in DASHED else "solid"
                    ax.plot(curve.index, curve, color=colour, alpha=0.5, linewidth=0.8, linestyle=thin, gid="run")
                    _draw_lone(ax, curve, colour, 2.0)
                    drawn.append(Drawn(metric, variant.label, name, curve))
            ax.plot(over_runs.index, over_runs["mean"], color=colour, linewidth=2.2, linestyle=dashes, gid="mean")
            _draw_lone(ax, over_runs["mean"], colour, 4.0)
            drawn.append(Drawn(metric, variant.label, "mean", over_runs["mean"]))
    return drawn


def _recorded(run: RunHistory, metric: str, untrained: bool) -> pd.Series:
    table = run.evaluations if untrained and metric.startswith(EVALUATION) else run.table
    values = table.reindex(columns=[metric])[metric]
    return values.dropna() if metric.startswith(EVALUATION) else values


def write_data(drawn: Sequence[Drawn], out: Path) -> None:
    """Write the drawn curves as CSV: metric, variant, curve, step, value; a step without a value is left out."""
    rows = io.StringIO()
    table = csv.writer(rows, lineterminator="\n")
    table.writerow(["metric", "variant", "curve", "step", "value"])
    # Two panels may show the same curve.
    for curve in {(one.metric, one.variant, one.curve): one for one in drawn}.values():
        table.writerows(
            [curve.metric, curve.variant, curve.curve, step, repr(float(value))]
            for step, value in curve.values.dropna().items()
        )
    replace_file(out, rows.getvalue().encode(), "or name another file")


def _draw_lone(ax: Axes, curve: pd.Series, colour: str, size: float) -> None:
    """Draw values between two gaps as points: a line needs two neighbours, and would not show them."""
    lone = curve[curve.notna() & curve.shift(1).isna() & curve.shift(-1).isna()]
    if len(lone):
        ax.plot(lone.index, lone, color=colour, marker="o", markersize=size, linestyle="none", gid="lone")


def _unit(metric: str) -> str:
    known = metric_of(metric)
    return known.unit if known else "1"


def _label_panel(ax: Axes, metric: str) -> None:
    unit = _unit(metric)
    if metric == LENGTH:
        ax.set_ylabel("response length (tokens)")
    else:
        ax.set_ylabel(metric if unit == "1" else f"{metric} ({unit})")


def fraction_limits(low: float, high: float) -> tuple[float, float]:
    """Return limits that span at least `LEAST_SPAN` around the given ones, moved into 0 to 1 with a small margin."""
    widen = max(0.0, LEAST_SPAN - (high - low)) / 2
    low, high = low - widen, high + widen
    shift = max(0.0, -0.01 - low) - max(0.0, high - 1.01)
    return low + shift, high + shift


def _add_legend(
    figure: Figure, variants: Sequence[Variant], styles: dict[str, tuple[str, Any]], told: Sequence[tuple[str, str]]
) -> int:
    """Draw the legend above the panels; returns its height in lines."""
    # It is as wide as the figure: about 11.5 characters an inch, 6 for the sample line.
    room = int(figure.get_figwidth() * 11.5)
    handles = []
    for variant in variants:
        colour, style = styles[variant.label]
        runs = len(variant.runs)
        recorded = all(run.seed is not None for run in variant.runs)
        count = f" ({runs} {'seed' if runs == 1 else 'seeds'})" if recorded else ""
        label = textwrap.fill(f"{variant.label}{count}", room - 6)
        handles.append(Line2D([], [], color=colour, linestyle=style, linewidth=2.2, label=label))
    looks: tuple[Any, Any] = ("solid", DASHES)
    for style, names in zip(looks, zip(*told, strict=True), strict=False):
        handles.append(Line2D([], [], color="#555555", linestyle=style, linewidth=1.6, label=", ".join(names)))
    texts = [str(handle.get_label()) for handle in handles]
    widths = [max(map(len, text.splitlines())) + 6 for text in texts]
    columns = len(handles) if sum(widths) <= room else max(1, min(len(handles), room // max(widths)))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns)
    return -(-sum(text.count("\n") + 1 for text in texts) // columns)


def _caption(variants: Sequence[Variant], window: int, *, band: bool) -> str:
    parts = [f"centred moving mean over {window} steps" if window > 1 else "each step as recorded"]
    if max(len(variant.runs) for variant in variants) > 1:
        parts.append("thick: mean over runs, thin: single runs" + (", band: lowest to highest run" if band else ""))
    return "; ".join(parts)
