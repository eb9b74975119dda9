"""What tokens whose experts changed between old log-probs and update do to the ratios: a table over stored rollouts of runs.

    python -m bench.expert_switching RUN... [--from-step 1]

Of every mini-batch after a step's first: log π − log π_old of response tokens behind other experts than the old ones and behind
the same ones; and its mean over a response, of responses above the median share of changed tokens of their run (many) and of the
others (few), also times the root of the length: a mean over fewer tokens varies more, whatever their experts. Spread is the root
mean square. Runs must store rollouts: --set run.rollouts_every=1 stores those of each step.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from luspo_cli.errors import UsageError
from luspo_cli.runs.folder import RunFolder
from luspo_cli.runs.stored_rollouts import read_columns, stored_steps

COLUMNS = ("mini_batch", "token_log_ratios", "experts_changed")
Array = NDArray[np.float64]


@dataclass(slots=True)
class Tokens:
    """Of a run, mini-batches after the first."""

    log_ratios: list[Array] = field(default_factory=list)
    """Of each response."""
    changed: list[Array] = field(default_factory=list)
    """Whether each token's experts changed, 1 or 0."""


def tokens_of(run: Path, from_step: int = 1) -> Tokens:
    """Read a run's stored rollouts; UsageError where they do not tell of experts."""
    found = Tokens()
    for step, file in stored_steps(run).items():
        table = read_columns(file, COLUMNS)
        if "experts_changed" not in table.column_names:
            raise UsageError(f"{file} was written without experts_changed: by an earlier version, or the update failed")
        for row in table.to_pylist() if step >= from_step else ():
            if row["mini_batch"] and row["experts_changed"]:
                found.log_ratios.append(np.array(row["token_log_ratios"], dtype=np.float64))
                found.changed.append(np.array(row["experts_changed"], dtype=np.float64) > 0)
    if not found.log_ratios:
        raise UsageError(f"{run} stores no response of a model of experts that was trained after a step's first update")
    return found


def spread(values: Array) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else float("nan")


def summary(found: Tokens) -> dict[str, float]:
    """The numbers of one line of the table."""
    ratios, changed = np.concatenate(found.log_ratios), np.concatenate(found.changed).astype(bool)
    shares = np.array([own.mean() for own in found.changed])
    means = np.array([own.mean() for own in found.log_ratios])
    rooted = means * np.sqrt([len(own) for own in found.log_ratios])
    many = shares > np.median(shares)
    return {
        "responses": len(means),
        "tokens": len(ratios),
        "changed": float(changed.mean()),
        "token": spread(ratios[changed]),
        "token else": spread(ratios[~changed]),
        "many": spread(means[many]),
        "few": spread(means[~many]),
        "many rooted": spread(rooted[many]),
        "few rooted": spread(rooted[~many]),
    }


PAIRS = (("token", "token else"), ("many", "few"), ("many rooted", "few rooted"))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--from-step", type=int, default=1)
    options = parser.parse_args(arguments)
    print(f"{'':54}{'tokens: experts':^29}{'responses: changed tokens':^29}{'the same times √length':^29}")
    print(f"{'run':<28}{'replay':>8}{'tokens':>9}{'changed':>9}", end="")
    print(f"{'changed':>11}{'same':>11}{'ratio':>7}", *[f"{'many':>10}{'few':>11}{'ratio':>7}"] * 2)
    for run in options.runs:
        line = summary(tokens_of(run, options.from_step))
        replay = (RunFolder(run).stored_config() or {}).get("update", {}).get("router_replay", "none")
        print(f"{run.name:<28}{replay:>8}{line['tokens']:>9.0f}{line['changed']:>9.3f}", end="")
        for one, other in PAIRS:
            print(f"{line[one]:>11.2e}{line[other]:>11.2e}{line[one] / line[other]:>7.2f}", end="")
        print()


if __name__ == "__main__":
    main()
