"""From verdicts to numbers: avg@k, unbiased pass@k, maj@k, bootstrap intervals over problems, tables by group.

Decided here: every mean divides by the problems of the benchmark, never by the answers found; a problem without a
response is wrong. pass@k is the unbiased estimate of Chen et al. (arXiv 2107.03374), in exact integers; it is not the
bootstrap that verl calls best@k. maj@k takes the first k samples, drops those without an answer, and on a tie elects
the cluster whose first member came first. Intervals resample problems, since the samples of one problem are no new
problems; where all problems scored alike the interval is Wilson's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import comb
from typing import Any

from luspo_cli.errors import UsageError
from luspo_cli.evaluation.problems import BenchmarkProblem
from luspo_cli.grading.majority import majority_is_correct
from luspo_cli.grading.verdict import Reason, Verdict
from luspo_cli.metrics.intervals import bootstrap_interval, paired_interval

Graded = Mapping[str, Sequence[Verdict]]
"""Verdicts by problem id."""


def pass_at_k(n: int, correct: int, k: int) -> Fraction:
    """Return 1 - C(n - c, k) / C(n, k): the chance that k of n samples, c of them right, hold a right one."""
    if not 0 <= correct <= n:
        raise ValueError(f"correct must lie in 0..n, got {correct} of {n}")
    if not 1 <= k <= n:
        raise ValueError(f"k must lie in 1..n, got k={k} with n={n}")
    return 1 - Fraction(comb(n - correct, k), comb(n, k))


def sample_counts(n: int) -> list[int]:
    """Return the k that are reported for n samples: 1, 2, 4, ... and n."""
    powers = [1 << bit for bit in range(n.bit_length()) if 1 << bit < n]
    return [*powers, n] if n else []


def summarise(
    problems: Sequence[BenchmarkProblem], graded: Graded, *, answer_key: Callable[[str], str]
) -> dict[str, Any]:
    """Return the metrics that every benchmark has; all means are over `problems`.

    `accuracy` is the mean over problems of their share of right samples. avg@k, pass@k and maj@k are there for k up to
    the samples that every answered problem has.
    """
    verdicts = [[v for v in graded.get(problem.id, ()) if v.reason is not Reason.MISSING] for problem in problems]
    answered = [row for row in verdicts if row]
    shares = [share_correct(row) for row in verdicts]
    handed = sum(map(len, verdicts))
    total = max(1, len(problems))
    metrics: dict[str, Any] = {
        "accuracy": float(sum(shares, Fraction(0)) / total),
        "accuracy_interval_95": bootstrap_interval([float(share) for share in shares]),
        "correct": sum(v.correct for row in verdicts for v in row),
        "samples": handed,
        "problems_missing": len(problems) - len(answered),
        "no_answer_fraction": sum(v.reason is Reason.NO_ANSWER for row in verdicts for v in row) / max(1, handed),
        "reasons": dict(sorted(Counter(str(v.reason) for row in verdicts for v in row).items())),
    }
    fewest = min(map(len, answered), default=0)
    if fewest == max(map(len, answered), default=0) and fewest:
        metrics[f"avg@{fewest}"] = metrics["accuracy"]
    for k in sample_counts(fewest):
        chances = (pass_at_k(len(row), sum(v.correct for v in row), k) for row in answered)
        metrics[f"pass@{k}"] = float(sum(chances, Fraction(0)) / total)
    key_of = lru_cache(maxsize=1 << 16)(answer_key)  # every k votes on the same answers
    for k in sample_counts(fewest):
        right = (majority_is_correct([(v.extracted, v.correct) for v in row[:k]], key_of) for row in answered)
        metrics[f"maj@{k}"] = sum(right) / total
    return metrics


@dataclass(frozen=True, slots=True)
class Cell:
    """One line of a table; a problem with several samples counts with the share of them that is right."""

    correct: Fraction
    total: int
    """Problems, never responses."""

    @property
    def accuracy(self) -> float | None:
        """In [0, 1]; None of no problems."""
        return float(self.correct / self.total) if self.total else None

    def as_dict(self) -> dict[str, float | None]:
        """Return accuracy, correct and total for a result file."""
        correct = float(self.correct) if self.correct.denominator > 1 else int(self.correct)
        return {"accuracy": self.accuracy, "correct": correct, "total": self.total}


def share_correct(verdicts: Sequence[Verdict]) -> Fraction:
    """The share of a problem's samples that are right; 0 without samples."""
    return Fraction(sum(verdict.correct for verdict in verdicts), max(1, len(verdicts)))


def overall(problems: Sequence[BenchmarkProblem], graded: Graded) -> Cell:
    """Accuracy over all problems; one without a verdict is wrong."""
    return Cell(sum((share_correct(graded.get(problem.id, ())) for problem in problems), Fraction(0)), len(problems))


def accuracy_by(
    problems: Sequence[BenchmarkProblem], graded: Graded, values_of: Callable[[BenchmarkProblem], Iterable[str]]
) -> dict[str, Cell]:
    """One cell per value, sorted by value; a problem with several values counts once in each."""
    members: dict[str, list[BenchmarkProblem]] = {}
    for problem in problems:
        for value in dict.fromkeys(values_of(problem)):
            members.setdefault(value, []).append(problem)
    return {value: overall(members[value], graded) for value in sorted(members)}


def accuracy_by_image_size(problems: Sequence[BenchmarkProblem], graded: Graded) -> dict[str, Cell]:
    """One cell per third of the problems with images, by their pixels, the smallest first; equal sizes are never parted.

    Empty where an image is missing: scores need no pictures.
    """
    try:
        pixels = {
            problem.id: sum(height * width for height, width in (image.size() for image in problem.images))
            for problem in problems
            if problem.images
        }
    except UsageError:
        return {}
    ordered = sorted(pixels.values())
    ends = sorted({ordered[-(-len(ordered) * part // 3) - 1] for part in (1, 2, 3)}) if ordered else []
    cells = {}
    for start, end in zip([0, *(end + 1 for end in ends)], ends, strict=False):
        members = [problem for problem in problems if start <= pixels.get(problem.id, -1) <= end]
        title = f"{start:,} to {end:,} pixels" if start else f"up to {end:,} pixels"
        cells[title] = overall(members, graded)
    return cells


def against_blind(
    problems: Sequence[BenchmarkProblem], seeing: Graded, blind: Graded
) -> tuple[float, tuple[float, float] | None]:
    """Seeing minus blind accuracy, and its 95 % interval over the problems, each compared with itself."""
    differences = [
        share_correct(seeing.get(problem.id, ())) - share_correct(blind.get(problem.id, ())) for problem in problems
    ]
    return float(sum(differences) / max(1, len(differences))), paired_interval([float(one) for one in differences])


def as_dicts(cells: Mapping[str, Cell]) -> dict[str, dict[str, float | None]]:
    """The cells of one table for a result file."""
    return {value: cell.as_dict() for value, cell in cells.items()}


def by_group(problems: Sequence[BenchmarkProblem], graded: Graded, key: str) -> dict[str, dict[str, Any]]:
    """Return problems, right answers (a mean over samples, maybe a fraction) and accuracy by value of `extra[key]`.

    A problem whose value is a tuple counts once in each of its values.
    """

    def values_of(problem: BenchmarkProblem) -> Iterable[str]:
        found = problem.extra[key]
        return found if isinstance(found, tuple) else (str(found),)

    having = [problem for problem in problems if problem.extra.get(key) is not None]
    return {
        group: {"problems": cell.total, "correct": float(cell.correct), "accuracy": cell.accuracy}
        for group, cell in accuracy_by(having, graded, values_of).items()
    }
