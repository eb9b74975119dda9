"""Accuracy per value of a problem's attribute: the tables that the vision benchmarks publish.

The denominator is the number of problems with that value, never of responses; a problem without a verdict is wrong.
A problem with several samples counts with the share of them that is right, so `correct` is whole for one sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from luspo_cli.evaluation.benchmark import BenchmarkProblem
from luspo_cli.grading.verdict import Verdict

Graded = Mapping[str, Sequence[Verdict]]


@dataclass(frozen=True, slots=True)
class Cell:
    """One line of a table; `accuracy` in [0, 1]."""

    correct: float
    total: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.total if self.total else 0.0

    def as_dict(self) -> dict[str, float]:
        """Return accuracy, correct and total for a result file."""
        return {"accuracy": self.accuracy, "correct": self.correct, "total": self.total}


def share_correct(verdicts: Sequence[Verdict]) -> float:
    """The share of a problem's samples that are right; 0 without samples; a whole number where it is 0 or 1."""
    right = sum(verdict.correct for verdict in verdicts)
    return right / len(verdicts) if 0 < right < len(verdicts) else int(right > 0)


def overall(problems: Sequence[BenchmarkProblem], graded: Graded) -> Cell:
    """Accuracy over all problems."""
    return Cell(sum(share_correct(graded.get(problem.id, ())) for problem in problems), len(problems))


def accuracy_by(
    problems: Sequence[BenchmarkProblem], graded: Graded, values_of: Callable[[BenchmarkProblem], Iterable[str]]
) -> dict[str, Cell]:
    """One cell per value, sorted by value; a problem with several values counts once in each."""
    members: dict[str, list[BenchmarkProblem]] = {}
    for problem in problems:
        for value in dict.fromkeys(values_of(problem)):
            members.setdefault(value, []).append(problem)
    return {value: overall(members[value], graded) for value in sorted(members)}


def as_dicts(cells: Mapping[str, Cell]) -> dict[str, dict[str, float]]:
    """The cells of one table for a result file."""
    return {value: cell.as_dict() for value, cell in cells.items()}
