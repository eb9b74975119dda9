"""How well the lab predicts a folder of runs: `python -m bench.lab_prediction FOLDER [--set KEY=VALUE]`.

Each cell (objective and configuration) with its seeds is one row of `luspo lab --from`, fitted to steps 1 to 3 alone. Printed:
the rows, then sign, rank correlation and error over all cells, for the lab and for "no change" (docs/length.md, section 7).
`--set` changes the model for all rows, for example to take an addition out: --set model.answer_noise=0.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luspo_cli.errors import UsageError
from luspo_cli.experiments.lab.prediction import DEFAULT_SEEDS, Prediction, predict_runs


@dataclass(frozen=True, slots=True)
class Measures:
    """Of one forecast over cells; lengths in tokens."""

    sign: float | None
    """Share of cells whose length moved the way that was predicted; None for a forecast without direction."""
    rank: float
    """Spearman's correlation of predicted and real final lengths."""
    error: float
    """Mean absolute error of the final length."""
    log_error: float
    """Mean absolute error of its natural log."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--seeds", type=int, default=DEFAULT_SEEDS)
    asked = parser.parse_args()
    rows = [row for row in predict_runs([asked.folder], asked.seeds, asked.sets).rows if row.real is not None]
    if len(rows) < 3:
        raise SystemExit(f"{asked.folder} has {len(rows)} cells with finished runs; a correlation needs three.")
    print("| cell | runs | start | predicted | 95 % of its seeds | real | no change |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        assert row.real is not None
        half = "" if row.real.half_width is None else f" ± {row.real.half_width:.1f}"
        print(
            f"| {row.label} | {row.real.n} | {row.no_change:.1f} | {row.final:.1f} | {row.low:.1f} to {row.high:.1f} |"
            f" {row.real.mean:.1f}{half} | {row.no_change:.1f} |"
        )
    print("\n| forecast | sign | rank correlation | error (tokens) | error of the log |")
    print("| --- | --- | --- | --- | --- |")
    for name, found in measures(rows).items():
        sign = "–" if found.sign is None else f"{found.sign * len(rows):.0f} of {len(rows)}"
        print(f"| {name} | {sign} | {found.rank:.2f} | {found.error:.1f} | {found.log_error:.2f} |")
    ends = [(row, run.final) for row in rows for run in row.runs if run.final is not None]
    inside = sum(row.low <= final <= row.high for row, final in ends)
    print(f"\n{inside} of {len(ends)} runs ended in the range in which 95 % of the lab's seeds do.")


def measures(rows: Sequence[Prediction]) -> dict[str, Measures]:
    """The lab's forecast and "no change" over cells that have a real final length."""
    real = [row.real.mean for row in rows if row.real is not None]
    forecasts = {"the lab": [row.final for row in rows], "no change": [row.no_change for row in rows]}
    agreed = statistics.fmean(bool(row.same_direction) for row in rows)
    return {
        name: Measures(
            sign=agreed if name == "the lab" else None,
            rank=spearman(values, real),
            error=statistics.fmean(abs(one - other) for one, other in zip(values, real, strict=True)),
            log_error=statistics.fmean(abs(math.log(one / other)) for one, other in zip(values, real, strict=True)),
        )
        for name, values in forecasts.items()
    }


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation; 0 where one side is constant."""
    ranks = [_ranks(values) for values in (first, second)]
    if any(len(set(own)) == 1 for own in ranks):
        return 0.0
    return statistics.correlation(*ranks)


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1, equal values sharing their mean rank."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) + 1) / 2 for value in values]


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        raise SystemExit(str(error)) from None
