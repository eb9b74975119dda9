"""Each objective at its best value, chosen on other seeds than the one that is compared: tables by hand."""

from __future__ import annotations

import io
import json
import random
import statistics
from typing import Any

import pytest
from rich.console import Console

from luspo_cli.analysis.comparison import compare_runs, compare_tuned
from luspo_cli.analysis.history import read_runs
from luspo_cli.analysis.tuning import choose
from luspo_cli.commands.display.comparison import comparison_json, print_comparison
from luspo_cli.config.sweeps import parse_sweep, swept_settings
from luspo_cli.errors import UsageError

KEY = "update.learning_rate"


@pytest.fixture
def swept(write_run: Any):
    """Runs from objective -> learning rate -> held-out accuracy by seed; the length is 100 times it."""

    def make(table: dict[str, dict[float, list[float]]]):
        folders = [
            write_run(
                f"{objective}-{rate}-{seed}",
                objective,
                seed,
                lengths=[100 * accuracy],
                evaluation__accuracy=[accuracy],
                change={"update": {"learning_rate": rate}},
            )
            for objective, rates in table.items()
            for rate, row in rates.items()
            for seed, accuracy in enumerate(row)
        ]
        return read_runs(folders)

    return make


TABLE = {
    # 3e-4 is best by mean (0.6 against 0.5), and seeds 1 and 2 (0.45, 0.5) favour 1e-4 without seed 0.
    "gspo": {1e-4: [0.4, 0.5, 0.6], 3e-4: [0.85, 0.45, 0.5]},
    "luspo": {1e-4: [0.2, 0.2, 0.2], 3e-4: [0.7, 0.8, 0.9]},
}


def test_each_seed_is_compared_at_what_the_others_favour(swept) -> None:
    comparison, variants = compare_tuned(swept(TABLE), KEY)
    gspo, luspo = comparison.tuning
    assert (gspo.best, gspo.apart, gspo.criterion) == ("0.0003", True, "held_out_final")
    # Seed 0: of seeds 1 and 2, 1e-4 has 0.55 and 3e-4 0.475. Seeds 1 and 2: seed 0's 0.85 decides.
    assert [candidate.chosen_for for candidate in gspo.candidates] == [(0,), (1, 2)]
    assert [candidate.accuracy.mean for candidate in gspo.candidates] == [pytest.approx(0.5), pytest.approx(0.6)]
    assert [candidate.chosen_for for candidate in luspo.candidates] == [(), (0, 1, 2)]
    assert [run.values["held_out_final"] for run in comparison.runs] == [0.4, 0.45, 0.5, 0.7, 0.8, 0.9]
    assert [variant.label for variant in comparison.variants] == ["gspo, tuned", "luspo, tuned"]
    assert [len(variant.runs) for variant in variants] == [3, 3]
    pair = next(pair for pair in comparison.paired if pair.measure == "held_out_final")
    assert pair.differences == (pytest.approx(0.3), pytest.approx(0.35), pytest.approx(0.4))
    assert comparison.warnings == ()  # the key differs by intention


def test_choosing_on_the_compared_seeds_would_flatter() -> None:
    """300 tables of noise around 0.5: the best of six means lies above it, what other seeds chose does not."""
    draw = random.Random(7)
    best, compared = [], []
    for _ in range(300):
        table = {str(value): {seed: draw.gauss(0.5, 0.1) for seed in range(5)} for value in range(6)}
        tuning = choose(KEY, "gspo", "held_out_final", table)
        best.append(max(candidate.accuracy.mean for candidate in tuning.candidates))
        compared += [table[candidate.value][seed] for candidate in tuning.candidates for seed in candidate.chosen_for]
    assert statistics.fmean(best) > 0.54
    assert statistics.fmean(compared) == pytest.approx(0.5, abs=0.01)


def test_the_table_says_what_was_chosen_and_with_which_caveat(swept) -> None:
    comparison, _ = compare_tuned(swept(TABLE), KEY)
    file = io.StringIO()
    print_comparison(comparison, Console(file=file))
    text = file.getvalue()
    assert text.startswith(f"{KEY}, by accuracy, held out, last\n")
    assert [line.split()[0] for line in text.splitlines()[2:6]] == ["gspo", "0.0003", "luspo", "0.0003"]
    assert "best; compared: seed 1, 2" in text
    assert "Tuned: each seed is compared at the value that the other seeds favour" in text
    assert "gspo: its best value, 0.0003, is at the end of the list; a better one may lie beyond." in text
    report = json.loads(json.dumps(comparison_json(comparison), allow_nan=False))
    assert report["tuning"][0]["candidates"][1] == {
        "value": "0.0003",
        "accuracy": {
            "mean": pytest.approx(0.6),
            "low": pytest.approx(0.0592, abs=1e-3),
            "high": pytest.approx(1.1408, abs=1e-3),
            "n": 3,
        },
        "chosen_for": [1, 2],
    }


def test_with_one_seed_the_caveat_is_said(swept) -> None:
    comparison, _ = compare_tuned(swept({"gspo": {1e-4: [0.4], 3e-4: [0.3], 1e-3: [0.2]}}), KEY)
    (tuning,) = comparison.tuning
    assert (tuning.best, tuning.apart, tuning.at_end) == ("0.0001", False, True)
    file = io.StringIO()
    print_comparison(comparison, Console(file=file))
    assert "Tuned on the one seed that is compared: the best of several is too good" in file.getvalue()


def test_a_best_value_within_the_list_is_not_at_its_end(swept) -> None:
    comparison, _ = compare_tuned(swept({"gspo": {1e-4: [0.1], 3e-4: [0.3], 1e-3: [0.2]}}), KEY)
    assert not comparison.tuning[0].at_end


def test_without_held_out_problems_the_training_batch_decides(write_run) -> None:
    runs = [
        write_run(f"r{rate}", "gspo", reward__accuracy__mean=[accuracy] * 3, change={"update": {"learning_rate": rate}})
        for rate, accuracy in ((1e-4, 0.7), (3e-4, 0.6))
    ]
    (tuning,) = compare_tuned(read_runs(runs), KEY)[0].tuning
    assert (tuning.criterion, tuning.best) == ("accuracy_final", "0.0001")


def test_what_cannot_be_tuned_is_refused(swept, write_run, tmp_path) -> None:
    runs = swept({"gspo": {1e-4: [0.4, 0.5], 3e-4: [0.85]}})
    with pytest.raises(UsageError, match=r"gspo with update\.learning_rate=0\.0003 lacks seed 1"):
        compare_tuned(runs, KEY)
    with pytest.raises(UsageError, match=r"records no update\.lr or no seed"):
        compare_tuned(runs, "update.lr")
    twice = read_runs([write_run("a"), write_run("b")])
    with pytest.raises(UsageError, match=r"have the same update\.learning_rate and seed"):
        compare_tuned(twice, KEY)
    assert compare_runs(runs).tuning == ()
    with pytest.raises(UsageError, match="recorded no accuracy to choose by"):
        compare_tuned(read_runs([tmp_path / "a"]), KEY)


def test_one_value_is_no_choice(swept) -> None:
    one = swept({"gspo": {3e-4: [0.4, 0.5]}, "luspo": {3e-4: [0.5, 0.6]}})
    with pytest.raises(
        UsageError, match=r"^All runs of gspo have update\.learning_rate=0\.0003, so there is nothing to choose"
    ):
        compare_tuned(one, KEY)


def test_sweeps_are_read_as_settings() -> None:
    assert swept_settings("update.learning_rate=1e-4, 3e-4") == [f"{KEY}=0.0001", f"{KEY}=0.0003"]
    assert swept_settings("update.schedule=constant,linear") == ["update.schedule=constant", "update.schedule=linear"]
    assert swept_settings("update.betas=[0.9, 0.95],[0.9, 0.99]")[1] == "update.betas=[0.9, 0.99]"
    assert parse_sweep("update.mini_batches=1,2") == ("update.mini_batches", [1, 2])
    refused = {"a.b=1,2,1": "twice", "a.b=1": "two values", "ab=1,2": "section.key", "a.b": "section.key"}
    for text, message in refused.items():
        with pytest.raises(UsageError, match=message):
            swept_settings(text)
    with pytest.raises(UsageError, match=r"--set and --sweep both give update\.betas"):
        swept_settings("update.betas=[0.9, 0.95],[0.9, 0.99]", ["run.steps=3", "update.betas=[0.5, 0.9]"])
