"""Mean kept advantage by response length over training: the push on length (docs/length.md), as a map of sums and counts.

Runs that record `by_length` have it of every step; of older ones it is made of stored rollouts, where these hold clip marks. What
is not in `by_length`, the advantage before the clip and the kept advantage times the weight, comes from stored rollouts. Bins are
those of `metrics.by_length`, so runs lie over one another; sums and counts add up over steps and seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luspo_cli.analysis.history import RunHistory
from luspo_cli.analysis.logs import read_json_lines
from luspo_cli.metrics.by_length import STORED, Array, kept_advantages, length_grid, trained_rows
from luspo_cli.metrics.names import BY_LENGTH
from luspo_cli.report.rollouts import shortest
from luspo_cli.report.selection import evenly
from luspo_cli.runs.stored_rollouts import read_columns, stored_steps

COLUMNS = 120
"""Columns of a map: of more steps, neighbouring ones are added up."""
STEPS = 60
"""Stored steps of a run that are read, evenly over all of them."""
KEPT, WEIGHTED, ADVANTAGE = "kept", "weighted", "advantage"


@dataclass(frozen=True, slots=True)
class Cells:
    """Sums and counts of one quantity at one step, by length."""

    quantity: str
    first: int
    last: int
    """Steps that they are of, both included."""
    lengths: Sequence[int] | Array
    sums: Array
    counts: Array


def kept_maps(runs: Sequence[RunHistory]) -> dict[str, Any] | None:
    """The maps of all runs, or None where no run recorded anything to make them of.

    `{"edges": [bins + 1], "runs": [{quantity: {"columns": [[first, last]], "sums": [columns][bins], "counts"}}],
    "notes": [text]}`; a bin holds the lengths from its edge to the next one's, which it does not hold. Steps that cannot be
    read are left out, and the notes count them.
    """
    unread: dict[tuple[str, str], int] = {}
    size = -(-max(run.last_step for run in runs) // COLUMNS)
    found = []
    for run in runs:
        cells, broken = _recorded(run, size)
        of_rollouts, holed = _of_rollouts(run, kept=not cells)
        found.append(cells + of_rollouts)
        unread[run.name, "whose by_length has no equally long lists of numbers"] = broken
        unread[run.name, "whose stored rollouts have an advantage or a length that is no number"] = holed
    notes = [
        f"{count} step{'s' if count > 1 else ''} of {name} {why} {'are' if count > 1 else 'is'} left out here."
        for (name, why), count in unread.items()
        if count
    ]
    used = sorted({int(length) for cells in found for one in cells for length in one.lengths})
    if not used:
        return {"edges": [], "runs": [{} for _ in runs], "notes": notes} if notes else None
    grid = length_grid(2 * used[-1])
    low, high = np.searchsorted(grid, [used[0], used[-1]], side="right") - 1
    edges = grid[low : high + 2]
    return {"edges": edges.tolist(), "runs": [_maps(cells, edges) for cells in found], "notes": notes}


def _maps(cells: Sequence[Cells], edges: Any) -> dict[str, Any]:
    maps: dict[str, Any] = {}
    for name in dict.fromkeys(one.quantity for one in cells):
        columns: dict[tuple[int, int], Array] = {}
        for one in cells:
            if one.quantity == name:
                bins = np.searchsorted(edges, one.lengths, side="right") - 1
                both = columns.setdefault((one.first, one.last), np.zeros((2, len(edges) - 1)))
                both += [np.bincount(bins, values, len(edges) - 1) for values in (one.sums, one.counts)]
        maps[name] = {
            "columns": [list(column) for column in columns],
            "sums": [[shortest(value) for value in both[0].tolist()] for both in columns.values()],
            "counts": [both[1].astype(int).tolist() for both in columns.values()],
        }
    return maps


def _recorded(run: RunHistory, size: int) -> tuple[list[Cells], int]:
    """What the steps of `run` recorded, and how many of them recorded what cannot be read."""
    log = run.path / "metrics.jsonl"
    cells: list[Cells] = []
    broken = 0
    if run.source != "luspo" or not log.is_file():
        return cells, broken
    for row in read_json_lines(log)[0]:
        if BY_LENGTH not in row:
            continue
        table = _table(row[BY_LENGTH])
        if table is None:
            broken += 1
            continue
        lengths, counts, positive, negative = table
        first = (row["step"] - 1) // size * size + 1
        last = min(first + size - 1, run.last_step)
        cells.append(Cells(KEPT, first, last, lengths, (positive + negative) * counts, counts))
    return cells, broken


def _table(found: Any) -> Array | None:
    """The rows of `by_length` that a map is made of, [4, bins]; None where they are not lists of numbers of one length."""
    try:
        table = np.array(
            [found[name] for name in ("from", "rollouts", "kept_positive", "kept_negative")], dtype=np.float64
        )
    except (KeyError, TypeError, ValueError):
        return None
    return table if table.ndim == 2 and np.isfinite(table).all() and (table[0] >= 1).all() else None


def _of_rollouts(run: RunHistory, *, kept: bool) -> tuple[list[Cells], int]:
    """What stored rollouts tell, and of how many steps they cannot be read.

    `kept`: whether kept advantages are wanted, which a record of every step has better.
    """
    files = stored_steps(run.path)
    cells: list[Cells] = []
    holed = 0
    for place in evenly(len(files), STEPS):
        step = list(files)[place]
        columns = read_columns(files[step], STORED).to_pydict()
        if "response_length" not in columns:  # a run that verl trained
            continue
        table = np.array([columns[name] for name in ("in_batch", "response_length", "advantage")], dtype=np.float64)
        lengths, advantages = table[1:, table[0] > 0]  # None has become NaN
        if not np.isfinite([lengths, advantages]).all():
            holed += 1
            continue
        present = lengths > 0
        cells.append(Cells(ADVANTAGE, step, step, lengths[present], advantages[present], np.ones(int(present.sum()))))
        if set(STORED) <= set(columns):
            rows = trained_rows(columns)
            of_rows = kept_advantages(rows)
            weighted = np.where(rows.advantages != 0, rows.weights * of_rows, 0.0)
            for name, values in ((KEPT, of_rows), (WEIGHTED, weighted)):
                # The update may have left out a response although it has an advantage: nothing is known of it.
                known = np.isfinite(values) & (rows.lengths > 0)
                if kept or name != KEPT:
                    cells.append(Cells(name, step, step, rows.lengths[known], values[known], np.ones(int(known.sum()))))
    return cells, holed
