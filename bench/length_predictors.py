"""How well numbers of a step predict where the mean response length goes: a Markdown table over runs.

    python -m bench.length_predictors runs/tiny/gspo-seed0 runs/tiny/luspo-seed0 ... [--window 5]

A run is cut into windows of so many steps. Of each window but the last, a predictor is its mean over the steps, and the drift is
the mean length of the next window less that of this one; windows do not overlap, since neighbouring steps say the same. Sign:
share of windows in which both have one sign, among those in which the predictor is not 0 (0.5 is a coin). Rank: Spearman's
correlation over a run's windows. Both are means over runs with the 95 % interval over runs (Student; their number in brackets).
Whole run: in how many runs, of those in which it is not 0, the mean predictor has the sign of the last window's length less the
first one's, and the rank
correlation of the two over runs. A predictor that only some runs recorded, or that never left 0, stands there too: what is
missing is a dash, and the second column says in how many runs it was.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from luspo_cli.metrics.intervals import Estimate, estimate, rank_correlation

Record = Mapping[str, Any]
Predictor = Callable[[Record, str], float | None]
_WEIGHTED = {"grpo": "grpo", "gspo": "gspo", "sapo": "gspo", "gmpo": "gspo"}


def _difference(one: str, other: str) -> Predictor:
    def found(record: Record, objective: str) -> float | None:
        values = record.get(one), record.get(other)
        return None if None in values else values[0] - values[1]  # type: ignore[operator]

    return found


PREDICTORS: dict[str, Predictor] = {
    "expected pressure (kept advantages)": lambda record, _: record.get("expected_length_pressure/run"),
    "of it, the clip's part": lambda record, _: record.get("expected_length_pressure/clip"),
    "pressure of all advantages, own weight": lambda record, objective: record.get(
        f"length_pressure/{_WEIGHTED.get(objective, 'luspo')}"
    ),
    "clipped high less clipped low": _difference("objective/clip_high_fraction", "objective/clip_low_fraction"),
    "length of right less of wrong": _difference("response_length/correct", "response_length/incorrect"),
    "gradient of long less of short": _difference("gradient_share/long", "gradient_share/short"),
    "gradient of right less of wrong": _difference("gradient_share/right", "gradient_share/wrong"),
}
LAST_DRIFT = "the last window's drift goes on"


def windows_of(
    records: Sequence[Record], objective: str, window: int
) -> tuple[list[float], dict[str, list[float | None]]]:
    """Mean length of each whole window, and each predictor's mean over it; None where it has no number."""
    parts = [records[start : start + window] for start in range(0, len(records) - window + 1, window)]
    lengths = [statistics.fmean(record["response_length/mean"] for record in part) for part in parts]
    found: dict[str, list[float | None]] = {}
    for name, predictor in PREDICTORS.items():
        values = [[value for record in part if (value := predictor(record, objective)) is not None] for part in parts]
        found[name] = [statistics.fmean(of_part) if of_part else None for of_part in values]
    found[LAST_DRIFT] = [None, *(after - before for before, after in pairwise(lengths))]
    return lengths, found


def sign_agreement(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Share of (predicted, drift) with one sign, among those whose prediction is not 0; None where there is none."""
    said = [(x > 0) == (y > 0) for x, y in pairs if x != 0]
    return statistics.fmean(said) if said else None


def main(arguments: Sequence[str]) -> None:
    window = int(arguments[arguments.index("--window") + 1]) if "--window" in arguments else 5
    folders = [Path(argument) for argument in arguments if (Path(argument) / "metrics.jsonl").is_file()]
    if not folders:
        sys.exit(__doc__)
    runs = []
    for folder in folders:
        records: list[Record] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        objective = json.loads((folder / "config.json").read_text())["objective"]["name"]
        if len(records) < 2 * window:
            sys.exit(
                f"{folder} has {len(records)} steps: a drift takes two windows of {window}; give a smaller --window"
            )
        runs.append(windows_of(records, objective, window))
        spent = [100 * r["time/diagnostics"] / r["time/total"] for r in records if "time/diagnostics" in r]
        cost = (
            f"{statistics.median(spent):.2f} % of a step went to diagnostics (median)" if spent else "no time recorded"
        )
        print(
            f"{folder}: {objective}, {len(records)} steps, length {runs[-1][0][0]:.1f} to {runs[-1][0][-1]:.1f}, {cost}"
        )
    print(f"\n{len(runs)} runs, windows of {window} steps\n")
    print("| predictor | runs with it | sign, next window | rank, next window | sign, whole run | rank, over runs |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in (*PREDICTORS, LAST_DRIFT):
        print(row(name, runs))


def row(name: str, runs: Sequence[tuple[list[float], dict[str, list[float | None]]]]) -> str:
    """One line of the table."""
    signs, ranks, whole = [], [], []
    for lengths, predictors in runs:
        drifts = [after - before for before, after in pairwise(lengths)]
        pairs = [(x, drift) for x, drift in zip(predictors[name], drifts, strict=False) if x is not None]
        if not pairs:
            continue
        if (sign := sign_agreement(pairs)) is not None:
            signs.append(sign)
        if (rank := _rank(pairs)) is not None:
            ranks.append(rank)
        whole.append((statistics.fmean(x for x, _ in pairs), lengths[-1] - lengths[0]))
    with_sign = [(x, y) for x, y in whole if x != 0]
    agree = sum((x > 0) == (y > 0) for x, y in with_sign)
    over_runs = _rank(whole)
    cells = [
        name, f"{len(whole)} of {len(runs)}", _with_interval(estimate(signs)), _with_interval(estimate(ranks)),
        f"{agree} of {len(with_sign)}", "–" if over_runs is None else f"{over_runs:+.2f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _rank(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's; None for fewer than three pairs too: two are always in some order."""
    return rank_correlation(*zip(*pairs, strict=True)) if len(pairs) > 2 else None


def _with_interval(found: Estimate | None) -> str:
    if found is None:
        return "–"
    return f"{found.mean:.2f}" if found.half_width is None else f"{found.mean:.2f} ± {found.half_width:.2f} ({found.n})"


if __name__ == "__main__":
    main(sys.argv[1:])
