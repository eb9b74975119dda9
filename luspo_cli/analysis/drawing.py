"""What all figures share: looks for every common colour blindness, logarithmic axes of lengths, and how a file is written.

A user's settings do not enter, and equal input gives equal bytes: no date or version enters the file.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from luspo_cli.analysis.outputs import FIGURE, check_output
from luspo_cli.files import replace_file

LEAST_RATIO = 2.5
"""Least ratio between the ends of a logarithmic axis."""

# Okabe and Ito's palette, told apart with every common form of colour blindness; yellow is too light on white.
STYLES: dict[str, tuple[str, Any]] = {
    "grpo": ("#E69F00", (0, (5, 1.5))),
    "gspo": ("#0072B2", (0, (5, 1.2, 1, 1.2))),
    "luspo": ("#D55E00", "solid"),
    "dr_grpo": ("#009E73", (0, (3, 1))),
    "dapo": ("#CC79A7", (0, (1, 1))),
    "cispo": ("#56B4E9", "solid"),
    "sapo": ("#000000", (0, (5, 1.5))),
    "gmpo": ("#000000", (0, (1, 1))),
    "fspo": ("#009E73", (0, (5, 1.2, 1, 1.2))),
    "dapo_prompt_mean": ("#CC79A7", (0, (5, 1.5))),
    "balanced": ("#009E73", "solid"),
    "length_power": ("#D55E00", (0, (5, 1.5))),
    "dppo": ("#0072B2", (0, (1, 1))),
    "dppo_kl": ("#0072B2", (0, (5, 1.5))),
    "vespo": ("#56B4E9", (0, (1, 1))),
    "reinforce": ("#000000", "solid"),
}
SPARE_STYLES: tuple[tuple[str, Any], ...] = (
    ("#009E73", (0, (1, 1))),
    ("#56B4E9", (0, (5, 1.5))),
    ("#CC79A7", "solid"),
    ("#0072B2", "solid"),
    ("#E69F00", (0, (1, 1))),
    ("#D55E00", (0, (5, 1.2, 1, 1.2))),
)
MORE_STYLES = tuple(
    (colour, dashes)
    for dashes in ("solid", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.2, 1, 1.2)), (0, (5, 1.2, 1, 1.2, 1, 1.2)))
    for colour in ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
    if (colour, dashes) not in {*STYLES.values(), *SPARE_STYLES}
)
"""For figures of many variants: every other pair of colour and line style."""
DESIGN: dict[str, Any] = {
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.edgecolor": "#555555",
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "svg.hashsalt": "luspo",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}


@contextmanager
def design() -> Iterator[None]:
    """Within this block figures have our looks, whatever a user's matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(DESIGN)  # type: ignore[arg-type]
        yield


def write_figure(figure: Figure, out: Path) -> None:
    """Write as the suffix of `out` says, whole or not at all."""
    check_output(out, FIGURE)
    kind = out.suffix.lower().lstrip(".")
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    drawn = io.BytesIO()
    figure.savefig(drawn, format=kind, metadata=metadata)
    replace_file(out, drawn.getvalue(), "or name another file")


def length_scale(ax: Axes) -> bool:
    """Make the axis of what is drawn logarithmic, with round ticks and a least range; False where a value is not positive."""
    drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in ax.get_lines()])
    if float(np.nanmin(drawn)) <= 0:
        return False
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    widen = math.sqrt(max(1.0, LEAST_RATIO * low / high))
    low, high = low / widen, high * widen
    set_log_ticks(ax.yaxis, low, high)
    ax.set_ylim(low, high)
    return True


def set_log_ticks(axis: Axis, low: float, high: float) -> None:
    """Round ticks with plain numbers on a logarithmic axis from `low` to `high`."""
    axis.set_major_locator(FixedLocator(log_ticks(low, high)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def log_ticks(low: float, high: float) -> list[float]:
    """Return about four to nine round tick values within `low` and `high` for a logarithmic axis."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)):
        ticks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        if len(ticks) >= 4:
            return ticks
    return [float(tick) for tick in MaxNLocator(6).tick_values(low, high) if low <= tick <= high and tick > 0]
