"""Single responses of the compared runs: accuracy at equal length, and shares and lengths by outcome.

Read are the answers of each run's last held-out evaluation where every run stored them, else the rollouts that each stored last
before the end of the comparison; one kind for all, since a held-out slice and a training batch are no fair pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from luspo_cli.analysis.history import RunHistory
from luspo_cli.errors import UsageError
from luspo_cli.runs.stored_rollouts import steps_in

HELD_OUT, ROLLOUTS = "evals/held-out", "rollouts"
KINDS = {HELD_OUT: "held-out answers", ROLLOUTS: "training rollouts"}
PARTS = 5
"""All responses are divided by length into so many parts of equal size."""
LEAST_RESPONSES = 10
"""Responses that each run must have in a part for it to count: a mean over fewer is chance."""
LEAST_COVERED = 0.5
"""Share of all responses that the counted parts must hold."""


@dataclass(frozen=True)
class Answers:
    """The responses of one run at one step, `[N]` each."""

    step: int
    lengths: NDArray[np.int64]
    """In tokens."""
    correct: NDArray[np.bool_]
    cut: NDArray[np.bool_]
    """Whether the response limit ended it."""


@dataclass(frozen=True, slots=True)
class EqualLength:
    """Accuracy of every run at one and the same distribution of response lengths."""

    accuracy: dict[str, float]
    """By run name."""
    covered: float
    """Share of all responses whose lengths every run wrote often enough."""


@dataclass(frozen=True, slots=True)
class StoredAnswers:
    """What was found of all runs, by run name; empty where one of them stored nothing."""

    kind: str
    """In words."""
    of_run: Mapping[str, Answers]

    def steps(self) -> tuple[int, int]:
        """The first and the last step that answers were stored at."""
        steps = [answers.step for answers in self.of_run.values()]
        return min(steps), max(steps)


def stored_answers(runs: Sequence[RunHistory], last_steps: Mapping[str, int]) -> StoredAnswers | None:
    """The answers that every run stored last up to its last compared step; None where no kind is in all of them."""
    for place, kind in KINDS.items():
        files = {run.name: _last_file(run.path / place, last_steps[run.name]) for run in runs}
        if all(files.values()):
            return StoredAnswers(kind, {name: _read(*found) for name, found in files.items() if found})
    return None


def accuracy_at_equal_length(answers: Mapping[str, Answers]) -> EqualLength | None:
    """Each run's accuracy within parts of equal length, the parts weighted by all runs' responses together; None without overlap.

    A part in which some run has fewer than `LEAST_RESPONSES` is left out for all: there is nothing to compare in it.
    """
    lengths = np.concatenate([own.lengths for own in answers.values()])
    edges = np.unique(np.quantile(lengths, np.arange(1, PARTS) / PARTS, method="inverted_cdf"))
    parts = np.searchsorted(edges, lengths)
    of_run = {name: np.searchsorted(edges, own.lengths) for name, own in answers.items()}
    shared = [
        part for part in range(len(edges) + 1) if all((own == part).sum() >= LEAST_RESPONSES for own in of_run.values())
    ]
    weights = np.array([(parts == part).mean() for part in shared])
    covered = float(weights.sum())
    if covered < LEAST_COVERED:
        return None
    return EqualLength(
        {
            name: float(np.dot(weights, [own.correct[of_run[name] == part].mean() for part in shared]) / covered)
            for name, own in answers.items()
        },
        covered,
    )


def outcome_values(answers: Answers) -> dict[str, float | None]:
    """Share and mean length of responses that ended right, that ended wrong, and that the limit cut, whatever their verdict."""
    right = answers.correct & ~answers.cut
    values: dict[str, float | None] = {}
    for name, chosen in (("right", right), ("wrong", ~right & ~answers.cut), ("cut", answers.cut)):
        values[f"{name}_share"] = float(chosen.mean())
        values[f"{name}_length"] = float(answers.lengths[chosen].mean()) if chosen.any() else None
    return values


def _last_file(folder: Path, last: int) -> tuple[Path, int] | None:
    """The newest stored step after training began and up to `last`, with its number."""
    found = [(file, step) for step, file in steps_in(folder).items() if 0 < step <= last]
    newest = found[-1] if found else None
    return newest if newest and _tells_lengths(newest[0]) else None


def _tells_lengths(file: Path) -> bool:
    """Whether the file has the column, which verl's rollouts lack; True for one that cannot be read, which `_read` says."""
    import pyarrow.parquet as pq

    try:
        return "response_length" in pq.read_schema(file).names
    except (OSError, ValueError):
        return True


def _read(file: Path, step: int) -> Answers:
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file, columns=["response_length", "status", "stop_reason"])
        lengths = np.asarray(table["response_length"].to_pylist(), dtype=np.int64)
    except (OSError, ValueError, TypeError, KeyError) as failure:
        raise UsageError(f"{file} cannot be read as stored responses ({failure}); restore or remove it.") from None
    status = np.asarray(table["status"].to_pylist(), dtype=object)
    stop = np.asarray(table["stop_reason"].to_pylist(), dtype=object)
    return Answers(step, lengths, status == "correct", stop == "length")
