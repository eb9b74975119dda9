"""Figures of the lab: curves with confidence bands side by side, and what each cause of length drift adds, as bars.

A band is the 95 % interval of a mean over seeds: with dozens of seeds it is narrow, and single seeds would hide it. Looks, axes
and the writing of files are those of the other figures.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from luspo_cli.analysis.drawing import SPARE_STYLES, STYLES, design, length_scale, write_figure
from luspo_cli.metrics.intervals import Estimate

PANELS_A_ROW = 3


@dataclass(frozen=True, slots=True)
class Curve:
    """Means with their intervals over x; `objective` gives the look."""

    label: str
    objective: str
    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    real: bool = False
    """Of a run that was trained: a thin line without a band."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves with one axis."""

    title: str
    """Of the vertical axis."""
    curves: tuple[Curve, ...]
    log: bool
    heading: str = ""


@dataclass(frozen=True, slots=True)
class Bar:
    """What one cause adds to the final length under one objective, in tokens."""

    cause: str
    objective: str
    effect: Estimate


@dataclass(frozen=True, slots=True)
class LabFigure:
    """A figure that is drawn when it is written: what it shows, without matplotlib's objects."""

    panels: tuple[Panel, ...]
    bars: tuple[Bar, ...]
    causes: tuple[str, ...]
    x_title: str
    caption: str
    ticks: tuple[tuple[float, str], ...] = ()

    def write(self, out: Path) -> None:
        """Draw into `out` (PNG, SVG or PDF by its suffix), written whole or not at all."""
        with design():
            write_figure(self.build(), out)

    def build(self) -> Figure:
        """The figure of matplotlib."""
        figure = Figure(figsize=(9.0, 4.0), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        if self.bars:
            self._draw_bars(figure.subplots())
            figure.set_figheight(1.6 + 0.16 * (len(self.bars) + 2 * len(self.causes)))
        else:
            columns = min(len(self.panels), PANELS_A_ROW)
            rows = math.ceil(len(self.panels) / columns)
            figure.set_figheight(1.2 + 2.8 * rows)
            axes = figure.subplots(rows, columns, squeeze=False).flatten()
            named: dict[str, Artist] = {}
            for ax, panel in zip(axes, self.panels, strict=False):
                self._draw_panel(ax, panel)
                named = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True)) | named
            for ax in axes[len(self.panels) :]:
                ax.set_axis_off()
            figure.legend(named.values(), named.keys(), loc="outside upper center", ncols=min(len(named), 6))
        below = textwrap.fill(self.caption, int(figure.get_figwidth() * 14))
        figure.supxlabel(below, fontsize=8, color="#555555")
        return figure

    def _draw_panel(self, ax: Axes, panel: Panel) -> None:
        styles = _styles([drawn.objective for drawn in panel.curves])
        for drawn in panel.curves:
            colour, dashes = styles[drawn.objective]
            if drawn.real:
                ax.plot(drawn.x, drawn.mean, color=colour, linewidth=0.9, label=drawn.label)
                continue
            ax.fill_between(drawn.x, drawn.low, drawn.high, color=colour, alpha=0.2, linewidth=0)
            marker = "o" if self.ticks else ""
            ax.plot(
                drawn.x, drawn.mean, color=colour, linestyle=dashes, linewidth=2.2, marker=marker, label=drawn.label
            )
        if panel.log:
            length_scale(ax)
        else:
            ax.axhline(0.0, color="#555555", linewidth=0.8)
        ax.set_ylabel(panel.title)
        ax.set_title(panel.heading, fontsize="medium")
        ax.set_xlabel(self.x_title)
        if not self.ticks:
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            return
        places = [place for place, _ in self.ticks]
        if min(places) > 0 and max(places) / min(places) >= 8:
            ax.set_xscale("log")
            ax.minorticks_off()
        ax.set_xticks(places, [text for _, text in self.ticks])

    def _draw_bars(self, ax: Axes) -> None:
        objectives = list(dict.fromkeys(bar.objective for bar in self.bars))
        styles, height = _styles(objectives), 0.8 / len(objectives)
        for place, objective in enumerate(objectives):
            own = [bar for bar in self.bars if bar.objective == objective]
            y = [self.causes.index(bar.cause) + (place + 0.5) * height - 0.4 for bar in own]
            widths = [bar.effect.mean for bar in own]
            ends = [(b.effect.half_width or 0.0) for b in own]
            colour = styles[objective][0]
            ax.barh(y, widths, height * 0.9, xerr=ends, color=colour, label=objective, error_kw={"elinewidth": 1.0})
        ax.set_yticks(range(len(self.causes)), self.causes)
        ax.invert_yaxis()
        ax.axvline(0.0, color="#555555", linewidth=0.8)
        ax.set_xlabel("added to the final length (tokens)")
        ax.legend(loc="best")


def curves_figure(
    panels: Sequence[Panel], x_title: str, caption: str, ticks: tuple[tuple[float, str], ...] = ()
) -> LabFigure:
    """Panels side by side; `ticks`: the values of x that there are, with their names."""
    return LabFigure(tuple(panels), (), (), x_title, caption, ticks)


def effects_figure(bars: Sequence[Bar], causes: Sequence[str], caption: str) -> LabFigure:
    """Bars cause by cause, from the first of `causes` down."""
    return LabFigure((), tuple(bars), tuple(causes), "", caption)


def _styles(objectives: Sequence[str]) -> dict[str, tuple[str, Any]]:
    spare = cycle(SPARE_STYLES)
    return {name: STYLES[name] if name in STYLES else next(spare) for name in objectives}
