"""Mean kept advantage by response length over training: the push on length (docs/length.md, section 2).

A rollout's kept advantage is its advantage times the share of it that no bound removed. One without an advantage counts as 0; one
that the update did not compute although it had an advantage is left out. Runs that did not store clip marks have the advantage
before the clip only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from luspo_cli.analysis.history import RunHistory
from luspo_cli.report.rollouts import shortest
from luspo_cli.report.selection import evenly
from luspo_cli.runs.stored_rollouts import read_columns, stored_steps

BINS = 18
STEPS = 60
"""Stored steps of a run that are read, evenly over all of them."""
COLUMNS = ("response_length", "advantage", "in_batch", "clip_low_fraction", "clip_high_fraction", "loss_weight")
QUANTITIES = ("advantage", "kept", "weighted")
"""Advantage before the clip, kept advantage, and kept advantage times the weight of the rollout's tokens in the loss."""


def kept_advantages(runs: Sequence[RunHistory]) -> dict[str, Any] | None:
    """Sums and counts by length bin and step, or None where no run stored rollouts.

    `{"edges": [bins + 1], "runs": [{"steps", quantity: {"sums": [steps][bins], "counts"}} or None]}`; bins are half-open.
    """
    tables = [_read(run) for run in runs]
    lengths = [length for table in tables for step in table.values() for length in step["response_length"]]
    if not lengths:
        return None
    edges = length_edges(min(lengths), max(lengths))
    return {"edges": edges, "runs": [_binned(table, edges) if table else None for table in tables]}


def length_edges(low: int, high: int, bins: int = BINS) -> list[int]:
    """Whole edges from `low` to just above `high`, at equal ratios where lengths allow it; at most `bins` bins."""
    ratio = math.log((high + 1) / max(1, low))
    edges = {low, high + 1}
    edges |= {round(max(1, low) * math.exp(ratio * place / bins)) for place in range(1, bins)}
    return sorted(edge for edge in edges if low <= edge <= high + 1)


def quantities(row: dict[str, Any]) -> dict[str, float]:
    """What one rollout adds to each of `QUANTITIES`; without those that are not known of it."""
    advantage = row.get("advantage")
    if advantage is None or row.get("in_batch") is False:
        return {}
    found = {"advantage": advantage}
    low, high, weight = row.get("clip_low_fraction"), row.get("clip_high_fraction"), row.get("loss_weight")
    if advantage == 0:
        low, high, weight = low or 0.0, high or 0.0, weight or 0.0
    if low is not None and high is not None:
        found["kept"] = advantage * (1 - low - high)
        if weight is not None:
            found["weighted"] = found["kept"] * weight
    return found


def _read(run: RunHistory) -> dict[int, dict[str, list[Any]]]:
    files = stored_steps(run.path)
    steps = [list(files)[place] for place in evenly(len(files), STEPS)]
    return {step: read_columns(files[step], COLUMNS).to_pydict() for step in steps}


def _binned(table: dict[int, dict[str, list[Any]]], edges: list[int]) -> dict[str, Any]:
    import bisect

    marked = any("clip_low_fraction" in columns for columns in table.values())
    names = QUANTITIES if marked else QUANTITIES[:1]
    bins = max(1, len(edges) - 1)
    sums = {name: [[0.0] * bins for _ in table] for name in names}
    counts = {name: [[0] * bins for _ in table] for name in names}
    for place, columns in enumerate(table.values()):
        for values in zip(*columns.values(), strict=True):
            row = dict(zip(columns, values, strict=True))
            cell = bisect.bisect_right(edges, row["response_length"]) - 1
            for name, value in quantities(row).items():
                if name in sums:
                    sums[name][place][cell] += value
                    counts[name][place][cell] += 1
    rounded = {name: [[shortest(value) for value in line] for line in lines] for name, lines in sums.items()}
    return {"steps": list(table), **{name: {"sums": rounded[name], "counts": counts[name]} for name in names}}
