"""Mean kept advantage by response length over training: the push on length (docs/length.md), as a map of sums and counts.

Runs that record `by_length` have it of every step; of older ones it is made of stored rollouts, where these hold clip marks. What
is not in `by_length`, the advantage before the clip and the kept advantage times the weight, comes from stored rollouts. Bins are
those of `metrics.by_length`, so runs lie over one another; sums and counts add up over steps and seeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

    `{"edges": [bins + 1], "runs": [{quantity: {"columns": [[first, last]], "sums": [columns][bins], "counts"}}]}`; a bin holds
    the lengths from its edge to the next one's, which it does not hold.
    """
    size = -(-max(run.last_step for run in runs) // COLUMNS)
    recorded = [list(_recorded(run, size)) for run in runs]
    found = [[*cells, *_of_rollouts(run, kept=not cells)] for run, cells in zip(runs, recorded, strict=True)]
    used = sorted({int(length) for cells in found for one in cells for length in one.lengths})
    if not used:
        return None
    grid = length_grid(2 * used[-1])
    low, high = np.searchsorted(grid, [used[0], used[-1]], side="right") - 1
    edges = grid[low : high + 2]
    return {"edges": edges.tolist(), "runs": [_maps(cells, edges) for cells in found]}


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


def _recorded(run: RunHistory, size: int) -> Iterator[Cells]:
    log = run.path / "metrics.jsonl"
    if run.source != "luspo" or not log.is_file():
        return
    for row in read_json_lines(log)[0]:
        found = row.get(BY_LENGTH)
        if not isinstance(found, Mapping):
            continue
        counts = np.array(found["rollouts"], dtype=np.float64)
        means = np.array([found["kept_positive"], found["kept_negative"]], dtype=np.float64).sum(axis=0)
        first = (row["step"] - 1) // size * size + 1
        yield Cells(KEPT, first, min(first + size - 1, run.last_step), found["from"], means * counts, counts)


def _of_rollouts(run: RunHistory, *, kept: bool) -> Iterator[Cells]:
    """`kept`: whether kept advantages are wanted, which a record of every step has better."""
    files = stored_steps(run.path)
    for place in evenly(len(files), STEPS):
        step = list(files)[place]
        columns = read_columns(files[step], STORED).to_pydict()
        trained = np.array(columns["in_batch"], dtype=bool) & (np.array(columns["response_length"]) > 0)
        lengths, advantages = (np.array(columns[name])[trained] for name in ("response_length", "advantage"))
        yield Cells(ADVANTAGE, step, step, lengths, advantages, np.ones(len(lengths)))
        if set(STORED) <= set(columns):
            rows = trained_rows(columns)
            of_rows = kept_advantages(rows)
            weighted = np.where(rows.advantages != 0, rows.weights * of_rows, 0.0)
            for name, values in ((KEPT, of_rows), (WEIGHTED, weighted)):
                # The update may have left out a response although it has an advantage: nothing is known of it.
                known = np.isfinite(values) & (rows.lengths > 0)
                if kept or name != KEPT:
                    yield Cells(name, step, step, rows.lengths[known], values[known], np.ones(int(known.sum())))
