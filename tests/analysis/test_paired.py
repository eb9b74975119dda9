"""Verdicts say no more than intervals and seeds allow; the axes and the single responses of a comparison, by hand."""

from __future__ import annotations

import io
import json
import random

import pytest
from rich.console import Console

from luspo_cli.analysis.comparison import compare_runs
from luspo_cli.analysis.history import read_runs
from luspo_cli.analysis.paired import PairedDifference, Verdict, verdict_text
from luspo_cli.commands.display.comparison import comparison_json, print_comparison
from luspo_cli.errors import UsageError


def _printed(comparison, **options) -> str:
    file = io.StringIO()
    print_comparison(comparison, Console(file=file), **options)
    return file.getvalue()


@pytest.fixture
def final_difference(write_run):
    """The paired difference in final length of runs whose lengths differ by the given numbers, seed by seed."""

    def make(differences: list[float], base: float = 100.0) -> tuple[PairedDifference, str]:
        runs = []
        for seed, difference in enumerate(differences):
            runs.append(write_run(f"{base:g}/gspo-{seed}", "gspo", seed, lengths=[base + seed]))
            runs.append(write_run(f"{base:g}/luspo-{seed}", "luspo", seed, lengths=[base + seed + difference]))
        comparison = compare_runs(read_runs(runs))
        pair = next(pair for pair in comparison.paired if pair.measure == "length_final")
        return pair, verdict_text(pair, comparison.measures[pair.measure])

    return make


@pytest.mark.parametrize(
    ("differences", "verdict", "text"),
    [
        ([7.0], Verdict.ONE_PAIR, "one pair: chance cannot be told from effect"),
        ([0.0, 0.0, 0.0], Verdict.EQUAL, "equal in every pair"),
        ([-5.0, 1.0, 4.0], Verdict.NOISE, "within noise: 3 seeds can show 15.0"),
        # The interval leaves out 0 and all pairs agree, yet no test of three signs can say so.
        ([10.0, 11.0, 12.0], Verdict.SUGGESTED, "longer, given a normal spread; by signs p cannot go below 0.25"),
        ([-10.0, -11.0, -12.0], Verdict.SUGGESTED, "shorter, given a normal spread; by signs p cannot go below 0.25"),
        ([10.0, 11.0, 12.0, 10.0, 11.0, 12.0], Verdict.SHOWN, "longer: 6 of 6 pairs, p = 0.031"),
        ([-10.0, -11.0, -12.0, -10.0, -11.0, -12.0], Verdict.SHOWN, "shorter: 6 of 6 pairs, p = 0.031"),
        # Student's interval holds 0, whatever a bootstrap of three says (its interval is 0.5 to 9.5).
        (
            [0.5, 4.0, 9.5],
            Verdict.NOISE,
            "within noise: 3 seeds can show 14.8; 4.7 takes some 10 seeds",
        ),  # 1.03 deviations
    ],
)
def test_verdicts(final_difference, differences, verdict, text) -> None:
    pair, said = final_difference(differences)
    assert pair.verdict is verdict
    assert said == text


def test_a_difference_is_never_shown_from_noise(final_difference) -> None:
    """The verdict is at most as strong as Student's interval: 40 tables of eight differences around 0."""
    draw = random.Random(2)
    verdicts = []
    for table in range(40):
        pair, _ = final_difference([draw.gauss(0, 5) for _ in range(8)], base=1000.0 + 100 * table)
        verdicts.append(pair.verdict)
        if pair.verdict in (Verdict.SHOWN, Verdict.SUGGESTED):
            assert pair.estimate.low is not None
            assert pair.estimate.low > 0 or pair.estimate.high < 0
    assert verdicts.count(Verdict.SHOWN) <= 6


def test_the_statistics_of_a_difference_by_hand(final_difference) -> None:
    """10, 14 and 15 over gspo's 100, 101 and 102: all nine pairs of runs favour luspo; s = sqrt(7)."""
    pair, _ = final_difference([10.0, 14.0, 15.0])
    assert (pair.bootstrap.value, pair.bootstrap.low, pair.bootstrap.high) == (13.0, 10.0, 15.0)
    assert (pair.interquartile.value, pair.improvement.value, pair.positive) == (13.0, 1.0, 3)
    assert (pair.p, pair.smallest_p) == (0.25, 0.25)
    assert pair.detectable == pytest.approx(3.26404 * 7**0.5, rel=1e-4)


def test_runs_are_compared_at_equal_tokens(write_run) -> None:
    """luspo has spent gspo's 100 tokens after its second step of four; half of them after the first."""
    runs = [
        write_run("a", "gspo", lengths=[9.0, 8.0, 7.0, 6.0], tokens__total=[25, 50, 75, 100]),
        write_run("b", "luspo", lengths=[20.0, 30.0, 40.0, 50.0], tokens__total=[50, 99, 160, 200]),
    ]
    comparison = compare_runs(read_runs(runs), by="tokens")
    assert (comparison.by, comparison.end, comparison.last_step) == ("tokens", 100.0, 2)
    short, long = comparison.runs
    assert (short.windows.middle, short.windows.final) == ((2, 2), (4, 4))
    assert (long.windows.middle, long.windows.final) == ((1, 1), (2, 2))
    assert [long.values[f"length_{which}"] for which in ("start", "middle", "final")] == [20.0, 20.0, 30.0]
    assert "Compared after 100 response tokens, at steps 2 to 4, mid-run at half" in _printed(comparison)
    assert comparison_json(comparison)["by"] == "tokens"


def test_held_out_accuracy_from_long_before_the_end_is_warned_about(write_run) -> None:
    """At 100 tokens luspo is at step 2 of 4, evaluated before training alone; gspo at its end, where it was evaluated."""
    folders = []
    for name, objective, tokens in (("a", "gspo", [25, 50, 75, 100]), ("b", "luspo", [50, 99, 160, 200])):
        folder = write_run(name, objective, lengths=[9.0] * 4, tokens__total=tokens)
        (folder / "evals").mkdir()
        rows = [{"step": step, "evaluation/accuracy": 0.5} for step in (0, 4)]
        (folder / "evals/held-out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        folders.append(folder)
    runs = read_runs(folders)
    (warning,) = compare_runs(runs, by="tokens").warnings
    assert warning.startswith("Held-out accuracy is from before the final window in b (step 0 of 2): ")
    assert compare_runs(runs).warnings == ()


@pytest.mark.parametrize("by", ["steps", "tokens", "time"])
def test_an_untrained_policy_is_not_taken_for_a_trained_one(write_run, by) -> None:
    """Up to step 12 gspo was evaluated before training alone, luspo at step 12: a difference would be training, not objective."""
    folders = []
    for name, objective, steps, evaluated in (("a", "gspo", 20, (0, 20)), ("b", "luspo", 12, (0, 12))):
        columns = {"tokens__total": [10 * step for step in range(1, steps + 1)], "time__total": [1.0] * steps}
        folder = write_run(name, objective, lengths=[8.0] * steps, **columns)
        (folder / "evals").mkdir()
        found = {
            "evaluation/accuracy": 0.5,
            "evaluation/majority_accuracy": 0.5,
            "evaluation/blind_accuracy": 0.1,
            "evaluation/response_length/mean": 10.0,
        }
        rows = [{"step": step, **found} for step in evaluated]
        (folder / "evals/held-out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        folders.append(folder)
    comparison = compare_runs(read_runs(folders), by=by)
    untrained, trained = comparison.runs
    measures = ("held_out_final", "majority_final", "held_out_best", "right_per_1000", "blind_final")
    assert [untrained.values[name] for name in measures] == [None] * 5
    assert [trained.values[name] for name in measures] == [0.5, 0.5, 0.5, 50.0, 0.1]
    assert (untrained.values["held_out_start"], untrained.values["blind_start"]) == (0.5, 0.1)
    assert (untrained.held_out_last_step, untrained.held_out_best_step) == (0, None)
    assert not {pair.measure for pair in comparison.paired} & set(measures)
    (warning,) = [found for found in comparison.warnings if "Held-out" in found]
    assert "in a (step 0 of 12): " in warning
    assert ("compare by steps" in warning) == (by != "steps")
    assert warning.endswith("evaluated by then in a: what was held out is left out there.")


@pytest.mark.parametrize(
    ("evaluated", "named"),
    [((10, 20), "a (step 10 of 20)"), ((18, 20), "a (step 18 of 20)"), ((19, 20), None), ((10, 10), None)],
)
def test_evaluations_before_the_final_window_are_warned_about(write_run, evaluated, named) -> None:
    """Twenty steps have a final window of two, 19 and 20; runs evaluated at one and the same step are a fair pair anywhere."""
    folders = []
    for name, objective, last in zip("ab", ("gspo", "luspo"), evaluated, strict=True):
        found = [0.5 if step == last else None for step in range(1, 21)]
        folders.append(write_run(name, objective, lengths=[8.0] * 20, evaluation__accuracy=found))
    warnings = compare_runs(read_runs(folders)).warnings
    assert [warning.partition(" in ")[2].partition(": ")[0] for warning in warnings] == ([named] if named else [])


def test_runs_are_compared_after_equal_time(write_run) -> None:
    runs = [
        write_run("a", "gspo", lengths=[1.0, 2.0, 3.0], time__total=[10.0, 10.0, 10.0]),
        write_run("b", "luspo", lengths=[4.0, 5.0, 6.0], time__total=[15.0, 15.0, 15.0]),
    ]
    comparison = compare_runs(read_runs(runs), by="time")
    assert comparison.end == 30.0
    assert [run.values["length_final"] for run in comparison.runs] == [3.0, 5.0]
    assert [run.values["seconds"] for run in comparison.runs] == [30.0, 30.0]
    assert "Compared after 30 s in steps" in _printed(comparison)


def test_an_axis_that_is_not_recorded_or_not_shared_is_refused(write_run) -> None:
    one = write_run("a", "gspo", lengths=[1.0, 2.0], tokens__total=[10, 20])
    with pytest.raises(UsageError, match=r"--by time needs time/total in every step, and .*a does not have it"):
        compare_runs(read_runs([one]), by="time")
    late = write_run("b", lengths=[1.0, 2.0], tokens__total=[30, 60])
    with pytest.raises(UsageError, match="no response token in common: one of them ends at response token 20"):
        compare_runs(read_runs([one, late]), by="tokens")
