"""avg@k, pass@k, maj@k and intervals against numbers worked out by hand and by brute force."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import pytest

from luspo_cli.evaluation.benchmark import BenchmarkProblem
from luspo_cli.evaluation.scores import (
    by_group,
    pass_at_k,
    sample_counts,
    summarise,
)
from luspo_cli.grading.majority import majority_is_correct
from luspo_cli.grading.verdict import Reason, Verdict
from luspo_cli.metrics.intervals import bootstrap_interval


def verdict(answer: str | None, gold: str = "g") -> Verdict:
    if answer is None:
        return Verdict(None, False, Reason.NO_ANSWER)
    return Verdict(answer, answer == gold, Reason.EXACT if answer == gold else Reason.DIFFERENT)


def problems(count: int) -> list[BenchmarkProblem]:
    return [BenchmarkProblem(str(n), "", "g", "g", extra={"level": 1 + n % 2}) for n in range(count)]


def plain(answer: str) -> str:
    return answer


def test_check_vector() -> None:
    graded = {str(n): [verdict("g")] * c + [verdict("x")] * (4 - c) for n, c in enumerate([2, 0, 4, 1])}
    metrics = summarise(problems(4), graded, answer_key=plain)
    assert metrics["accuracy"] == metrics["avg@4"] == metrics["pass@1"] == 0.4375
    assert metrics["pass@2"] == pytest.approx(0.583333, abs=1e-6)
    assert metrics["pass@4"] == 0.75
    assert sum(pass_at_k(4, c, 3) for c in (2, 0, 4, 1)) / 4 == Fraction(11, 16)
    assert metrics["correct"] == 7


@pytest.mark.parametrize(("n", "c"), [(1, 0), (1, 1), (5, 2), (6, 0), (6, 6), (7, 3)])
def test_pass_at_k_counts_subsets(n: int, c: int) -> None:
    for k in range(1, n + 1):
        subsets = list(combinations(range(n), k))
        hits = sum(any(member < c for member in subset) for subset in subsets)
        assert pass_at_k(n, c, k) == Fraction(hits, len(subsets))


def test_pass_at_k_is_exact_for_many_samples() -> None:
    assert pass_at_k(4096, 1, 2048) == Fraction(1, 2)
    for arguments in ((4, 5, 1), (4, 1, 5), (4, 1, 0), (0, 0, 1)):
        with pytest.raises(ValueError, match="must lie in"):
            pass_at_k(*arguments)


@pytest.mark.parametrize(
    ("answers", "right"),
    [
        (["g", "x", "g"], True),
        (["x", "g", "x"], False),
        (["g", "x"], True),  # a tie goes to the answer that came first
        (["x", "g"], False),
        ([None, None, None, "g"], True),  # no answer is no vote
        ([None], False),
        ([], False),
        (["x", "y", "g", "g"], True),
    ],
)
def test_majority(answers: list[str | None], right: bool) -> None:
    assert majority_is_correct([(answer, answer == "g") for answer in answers], plain) is right


def test_majority_clusters_by_equivalence() -> None:
    wrong = [("1/2", False), ("0.5", False), (".5", False)]
    right = [("g", True), ("g'", True)]
    same = {"1/2": "half", "0.5": "half", ".5": "half"}
    assert not majority_is_correct(right + wrong, lambda answer: same.get(answer, answer))
    assert majority_is_correct(right + wrong, plain)


def test_majority_takes_the_first_k_samples() -> None:
    row = [verdict(answer) for answer in ("g", "g", "x", "x", "x", "x", "x")]
    metrics = summarise(problems(1), {"0": row}, answer_key=plain)
    assert (metrics["maj@2"], metrics["maj@4"], metrics["maj@7"]) == (1.0, 1.0, 0.0)


def test_a_missing_problem_is_wrong_and_counted() -> None:
    graded = {"0": [verdict("g")], "1": [Verdict(None, False, Reason.MISSING)]}
    metrics = summarise(problems(4), graded, answer_key=plain)
    assert metrics["accuracy"] == metrics["pass@1"] == metrics["maj@1"] == 0.25
    assert (metrics["problems_missing"], metrics["samples"]) == (3, 1)
    nothing = summarise(problems(2), {}, answer_key=plain)
    assert (nothing["accuracy"], nothing["problems_missing"]) == (0.0, 2)


def test_uneven_samples_have_no_avg_at_k() -> None:
    graded = {"0": [verdict("g")] * 2, "1": [verdict("x"), verdict("g"), verdict("x"), verdict("x")]}
    metrics = summarise(problems(2), graded, answer_key=plain)
    assert metrics["accuracy"] == (1 + 0.25) / 2
    assert not [key for key in metrics if key.startswith("avg@")]
    assert metrics["pass@2"] == (1 + 0.5) / 2
    assert "pass@4" not in metrics


def test_sample_counts() -> None:
    assert [sample_counts(n) for n in (0, 1, 2, 3, 32)] == [[], [1], [1, 2], [1, 2, 3], [1, 2, 4, 8, 16, 32]]


def test_groups() -> None:
    graded = {"0": [verdict("g")], "1": [verdict("x")], "2": [verdict("x"), verdict("g")]}
    groups = by_group(problems(4), graded, "level")
    assert groups == {
        "1": {"problems": 2, "correct": 1.5, "accuracy": 0.75},
        "2": {"problems": 2, "correct": 0.0, "accuracy": 0.0},
    }
    assert by_group(problems(4), graded, "subject") == {}


def test_the_interval_is_seeded_and_near_the_normal_one() -> None:
    values = [1.0] * 300 + [0.0] * 200
    first = bootstrap_interval(values)
    assert first == bootstrap_interval(values)
    assert first is not None
    half = 1.96 * (0.6 * 0.4 / 500) ** 0.5
    assert first == pytest.approx((0.6 - half, 0.6 + half), abs=0.006)
    assert bootstrap_interval([1.0] * 5) == pytest.approx((1 / (1 + 1.959964**2 / 5), 1.0))
    z = 1.959964**2 / 30  # none of 30: not certainly never
    assert bootstrap_interval([0.0] * 30) == pytest.approx((0.0, z / (1 + z)))
    assert bootstrap_interval([1.0]) is None
