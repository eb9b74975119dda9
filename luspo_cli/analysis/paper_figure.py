"""A figure as the paper has them: GRPO against GSPO and GSPO against LUSPO in rows; length, reward and held-out avg@k in columns.

It is as wide as a page of text, in its type, with lettered panels and without small print: the caption belongs to the text
around it, and is returned. Beyond the paper every seed is drawn, with its mean and range, since the paper shows one run of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from luspo_cli.analysis.drawing import design, write_figure
from luspo_cli.analysis.history import RunHistory
from luspo_cli.analysis.length_curves import (
    ACCURACY,
    HELD_OUT,
    LENGTH,
    SMOOTHING_SHARE,
    Drawn,
    LengthFigure,
    choose_styles,
    draw_panel,
    write_data,
)
from luspo_cli.analysis.outputs import FIGURE, NUMBERS, check_output
from luspo_cli.analysis.variants import Variant, clip_ranges, clip_sentence, split_into_variants
from luspo_cli.errors import UsageError

REWARD = "reward/total/mean"
PAIRS = (("grpo", "gspo"), ("gspo", "luspo"))
"""What the paper sets side by side."""
WIDTH, ROW, LEGEND = 6.9, 1.75, 0.35
"""Inches: a page of text, one row of panels, and the legend above."""
PAPER: dict[str, Any] = {
    "font.family": "serif",
    "font.serif": ["STIXGeneral", "DejaVu Serif"],
    "mathtext.fontset": "stix",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 8,
}


def plot_paper(
    runs: Sequence[RunHistory],
    out: Path,
    *,
    smooth: int | None = None,
    variants: Sequence[Variant] | None = None,
    data: Path | None = None,
) -> LengthFigure:
    """Draw the runs in the paper's manner into `out` (PNG, SVG or PDF by its suffix); the rest as for `plot_length`.

    Without one of the paper's pairs among the runs all of them stand in one row.
    """
    check_output(out, FIGURE)
    check_output(data, NUMBERS)
    chosen = list(variants or split_into_variants(runs))
    if not chosen:
        raise UsageError("No run was given; name one or more run folders.")
    drawn: list[Drawn] = []
    with design(), mpl.rc_context(PAPER):  # type: ignore[arg-type]
        figure, caption = _build(runs, chosen, smooth, drawn)
        write_figure(figure, out)
    if data is not None:
        write_data(drawn, data)
    notes = tuple(note for run in runs for note in run.notes)
    return LengthFigure(out, caption, notes, clip_ranges(chosen))


def _build(
    runs: Sequence[RunHistory], variants: Sequence[Variant], smooth: int | None, drawn: list[Drawn]
) -> tuple[Figure, str]:
    window = smooth or max(len(run.table) for run in runs) // SMOOTHING_SHARE | 1
    rows = _rows(variants)
    reward = REWARD if all(REWARD in run.table for run in runs) else ACCURACY
    panels = [(LENGTH, "response length (tokens)", window)]
    if any(reward in run.table for run in runs):
        panels.append((reward, "reward" if reward == REWARD else "accuracy, training batch", window))
    if any(HELD_OUT in run.evaluations for run in runs):
        panels.append((HELD_OUT, f"held out, {_avg_at(runs)}", 1))
    figure = Figure(figsize=(WIDTH, ROW * len(rows) + LEGEND), dpi=300, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(panels), squeeze=False, sharex=True)
    styles = choose_styles(variants)
    for place, (row, members) in enumerate(zip(axes, rows, strict=True)):
        for column, (ax, (metric, title, span)) in enumerate(zip(row, panels, strict=True)):
            drawn += draw_panel(ax, members, styles, (metric,), span, band=True, untrained=True)
            _finish(ax, title, chr(ord("a") + place * len(panels) + column), lowest=place == len(rows) - 1)
    handles = [
        Line2D([], [], color=styles[one.label][0], linestyle=styles[one.label][1], linewidth=1.6, label=one.label)
        for one in variants
        if any(one in members for members in rows)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 4))
    mean = f"centred moving mean over {window} steps, held-out accuracy as measured" if window > 1 else "as recorded"
    lines = [f"{mean}; thick: mean over runs, thin: single runs, band: lowest to highest run"]
    lines += [clip_sentence(ranges)] if (ranges := clip_ranges(variants)) else []
    return figure, "; ".join(lines)


def _rows(variants: Sequence[Variant]) -> list[list[Variant]]:
    rows = [[variant for variant in variants if variant.objective in pair] for pair in PAIRS]
    return [row for row in rows if len({variant.objective for variant in row}) == 2] or [list(variants)]


def _avg_at(runs: Sequence[RunHistory]) -> str:
    """avg@k, with k where all runs drew as many responses a problem."""
    sections = [run.config.get("evaluation") for run in runs]
    samples = {section.get("samples") for section in sections if isinstance(section, dict)}
    return f"avg@{samples.pop()}" if len(samples) == 1 else "avg@k"


def _finish(ax: Axes, title: str, letter: str, *, lowest: bool) -> None:
    ax.set_title(f"({letter}) {title}", loc="left")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.margins(x=0.02)
    for line in ax.get_lines():
        line.set_linewidth(line.get_linewidth() * 0.65)
    if lowest:
        ax.set_xlabel("training step")
