"""Accuracy at equal length and lengths by outcome, from stored responses with numbers by hand."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from luspo_cli.analysis.answers import Answers, accuracy_at_equal_length, outcome_values
from luspo_cli.analysis.comparison import compare_runs
from luspo_cli.analysis.history import read_runs
from luspo_cli.commands.display.comparison import print_comparison
from luspo_cli.errors import UsageError


def answers(*parts: tuple[int, int, int], cut: int = 0) -> Answers:
    """Of each part (length, responses, right ones); `cut` responses of length 99 more, all wrong."""
    lengths = [length for length, number, _ in parts for _ in range(number)] + [99] * cut
    correct = [place < right for _, number, right in parts for place in range(number)] + [False] * cut
    return Answers(1, np.array(lengths), np.array(correct), np.array([length == 99 for length in lengths]))


def test_equal_accuracy_at_each_length_is_equal_whatever_the_lengths() -> None:
    """Short ones half right, long ones a quarter: the long run is less often right, and at equal length it is not."""
    short, long = answers((5, 80, 40), (20, 20, 5)), answers((5, 20, 10), (20, 80, 20))
    assert (short.correct.mean(), long.correct.mean()) == (0.45, 0.3)
    found = accuracy_at_equal_length({"short": short, "long": long})
    assert found is not None
    assert found.accuracy == {"short": pytest.approx(0.375), "long": pytest.approx(0.375)}
    assert found.covered == 1.0


def test_lengths_that_one_run_does_not_write_are_left_out() -> None:
    """Of 160 responses, 120 of length 5 are shared; the 40 of length 50 are of one run alone."""
    one, other = answers((5, 60, 30)), answers((5, 60, 15), (50, 40, 40))
    found = accuracy_at_equal_length({"one": one, "other": other})
    assert found is not None
    assert found.accuracy == {"one": pytest.approx(0.5), "other": pytest.approx(0.25)}
    assert found.covered == pytest.approx(120 / 160)
    assert accuracy_at_equal_length({"one": answers((5, 90, 9)), "other": answers((50, 90, 9))}) is None


def test_shares_and_lengths_by_outcome() -> None:
    values = outcome_values(answers((4, 6, 6), (10, 2, 0), cut=2))
    assert values == {
        "right_share": 0.6,
        "right_length": 4.0,
        "wrong_share": 0.2,
        "wrong_length": 10.0,
        "cut_share": 0.2,
        "cut_length": 99.0,
    }
    assert outcome_values(answers((4, 5, 5)))["wrong_length"] is None


def _store(run: Path, place: str, step: int, found: Answers) -> None:
    folder = run / place
    folder.mkdir(parents=True, exist_ok=True)
    table = {
        "response_length": found.lengths.tolist(),
        "status": ["correct" if right else "incorrect" for right in found.correct],
        "stop_reason": ["length" if cut else "end" for cut in found.cut],
    }
    pq.write_table(pa.table(table), folder / f"step-{step:06d}.parquet")


def test_a_comparison_reads_the_last_answers_that_all_runs_have(write_run) -> None:
    folders = [write_run("a", "gspo", lengths=[9.0] * 4), write_run("b", "luspo", lengths=[9.0] * 4)]
    for folder, right in zip(folders, (10, 30), strict=True):
        _store(folder, "rollouts", 1, answers((5, 40, 0)))
        _store(folder, "rollouts", 3, answers((5, 40, right)))
    _store(folders[0], "evals/held-out", 4, answers((5, 40, 40)))  # the other has none
    runs = read_runs(folders)
    comparison = compare_runs(runs)
    assert [run.values["equal_length"] for run in comparison.runs] == [0.25, 0.75]
    assert comparison.answers is not None
    assert (comparison.answers.kind, comparison.answers.first_step) == ("training rollouts", 3)
    file = io.StringIO()
    print_comparison(comparison, Console(file=file))
    assert "At equal length: training rollouts, step 3, weighted alike by length; 100% are shared." in file.getvalue()
    _store(folders[1], "evals/held-out", 0, answers((5, 40, 0)))  # the policy before training says nothing of the run
    assert compare_runs(runs).answers == comparison.answers
    _store(folders[1], "evals/held-out", 2, answers((5, 40, 20)))
    assert [run.values["equal_length"] for run in compare_runs(runs).runs] == [1.0, 0.5]


def test_a_broken_file_of_answers_is_named(write_run) -> None:
    folder = write_run("a")
    (folder / "rollouts").mkdir()
    (folder / "rollouts/step-000001.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(UsageError, match=r"step-000001\.parquet cannot be read as stored responses"):
        compare_runs(read_runs([folder]))
