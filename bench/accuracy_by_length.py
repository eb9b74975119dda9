"""Are longer responses less often right? `python -m bench accuracy_by_length RUNS... [--steps 1,20,40,60]`.

Of stored rollouts, those that were cut at the response limit left out: the share of right ones by length, and the correlation of
being right with the length within groups (both centred in their group). Where the reward does not depend on the length and the
policy treats all lengths alike the correlation is 0; ± is half of the 95 % interval over runs (Student).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path

from luspo_cli.metrics.intervals import estimate
from luspo_cli.runs.stored_rollouts import groups_of, read_columns, stored_steps
from luspo_cli.training.made.warmup import within_group_correlation

BOUNDS = (0, 8, 16, 32, 48, 10**9)
COLUMNS = ("problem_id", "response_length", "status", "stop_reason")
Response = tuple[int, bool, bool]
"""Length, whether it is right, whether it was cut."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--steps", help="comma between; all that every run stores unless given")
    options = parser.parse_args()
    files = {run: stored_steps(run) for run in options.runs}
    common = sorted(set.intersection(*(set(found) for found in files.values())))
    steps = [int(step) for step in options.steps.split(",")] if options.steps else common
    if missing := [step for step in steps if step not in common]:
        raise SystemExit(f"not every run stores rollouts of step {', '.join(map(str, missing))}; all have {common}")
    names = [f"up to {last}" if last < BOUNDS[-1] else f"over {first}" for first, last in itertools.pairwise(BOUNDS)]
    print(f"{len(options.runs)} runs; share of right responses by length in tokens (their number)\n")
    print(f"| step | cut | {' | '.join(names)} | correlation in groups |")
    print("| ---: | ---: |" + " ---: |" * len(names) + " ---: |")
    for step in steps:
        groups = {run: read_groups(found[step]) for run, found in files.items()}
        print(row(step, list(groups.values())))


def read_groups(file: Path) -> list[list[Response]]:
    """The responses of each group of a stored step."""
    rows = read_columns(file, COLUMNS).to_pylist()
    return [
        [
            (rows[i]["response_length"], rows[i]["status"] == "correct", rows[i]["stop_reason"] == "length")
            for i in members
        ]
        for members in groups_of([one["problem_id"] for one in rows])
    ]


def row(step: int, runs: Sequence[list[list[Response]]]) -> str:
    """One line of the table."""
    everything = [response for groups in runs for group in groups for response in group]
    whole = [(length, right) for length, right, cut in everything if not cut]
    cells = []
    for first, last in itertools.pairwise(BOUNDS):
        inside = [right for length, right in whole if first < length <= last]
        cells.append(f"{statistics.fmean(inside):.2f} ({len(inside):,})" if inside else "–")
    correlations = []
    for groups in runs:
        kept = [[(length, right) for length, right, cut in group if not cut] for group in groups]
        kept = [group for group in kept if group]
        correlations.append(
            within_group_correlation(
                [[length for length, _ in group] for group in kept], [[right for _, right in group] for group in kept]
            )
        )
    found = estimate(correlations)
    assert found is not None
    half = "" if found.half_width is None else f" ± {found.half_width:.3f}"
    cut = sum(one[2] for one in everything) / len(everything)
    return f"| {step} | {100 * cut:.1f} % | {' | '.join(cells)} | {found.mean:+.3f}{half} |"


if __name__ == "__main__":
    main()
