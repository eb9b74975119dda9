"""Comparisons of small histories whose every number can be done by hand."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from luspo_cli.analysis.axis import Windows, windows_of
from luspo_cli.analysis.comparison import compare_runs
from luspo_cli.analysis.history import read_runs
from luspo_cli.analysis.variants import split_into_variants
from luspo_cli.commands.display.comparison import comparison_json, print_comparison, short_names, statements
from luspo_cli.errors import UsageError

TWENTY = list(range(1, 21))


def _by_name(comparison):
    return {run.name: run for run in comparison.runs}


def _printed(comparison, **console) -> str:
    file = io.StringIO()
    print_comparison(comparison, Console(file=file, **console))
    return file.getvalue()


@pytest.fixture
def two_by_two(write_run):
    """gspo and luspo with seeds 0 and 1, final lengths 10, 12 and 20, 26."""
    final = {("gspo", 0): 10.0, ("gspo", 1): 12.0, ("luspo", 0): 20.0, ("luspo", 1): 26.0}
    return read_runs(
        [
            write_run(f"{objective}-seed{seed}", objective, seed, lengths=[30.0, 15.0, length])
            for (objective, seed), length in final.items()
        ]
    )


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([1], Windows((1, 1), (1, 1), (1, 1), 1)),
        ([1, 2, 3], Windows((1, 1), (2, 2), (3, 3), 3)),
        (range(1, 21), Windows((1, 2), (9, 10), (19, 20), 20)),
        (range(1, 61), Windows((1, 6), (25, 30), (55, 60), 60)),
        (range(10, 210, 10), Windows((10, 20), (90, 100), (190, 200), 200)),
    ],
)
def test_windows_are_a_tenth_at_start_middle_and_end(steps, expected) -> None:
    assert windows_of(list(steps)) == expected


def test_the_blind_control_stands_beside_the_held_out_accuracy(write_run) -> None:
    held_out = {"evaluation__accuracy": [None, 0.5, None, 0.9], "evaluation__blind_accuracy": [None, 0.3, None, 0.2]}
    folder = write_run("a", lengths=[1.0, 2.0, 3.0, 4.0], **held_out)
    (folder / "evals").mkdir()
    rows = [(0, 0.4, 0.25), (2, 0.5, 0.3), (4, 0.9, 0.2)]
    (folder / "evals" / "held-out.jsonl").write_text(
        "".join(
            json.dumps({"step": step, "evaluation/accuracy": seeing, "evaluation/blind_accuracy": blind}) + "\n"
            for step, seeing, blind in rows
        )
    )
    values = compare_runs(read_runs([folder])).runs[0].values
    assert (values["held_out_start"], values["held_out_final"]) == (0.4, 0.9)
    assert (values["blind_start"], values["blind_final"]) == (0.25, 0.2)


def test_values_of_one_run_by_hand(write_run) -> None:
    folder = write_run(
        "a",
        lengths=TWENTY,
        reward__accuracy__mean=[step / 100 for step in TWENTY],
        response__truncated_fraction=[0.0] * 18 + [0.1, 0.3],
        objective__clip_low_fraction=[0.2] * 10 + [0.4] * 10,
        objective__clip_high_fraction=[None] * 10 + [0.5] * 10,
        update__clipped_gradient=[1.0] * 5 + [0.0] * 15,
        tokens__total=[step * 100 for step in TWENTY],
        time__total=[0.5] * 20,
        evaluation__accuracy=[None] * 4 + [0.3] + [None] * 4 + [0.6] + [None] * 9 + [0.4],
    )
    run = compare_runs(read_runs([folder])).runs[0]
    assert run.values == {
        "accuracy_final": pytest.approx(0.195),
        "held_out_start": None,
        "held_out_final": 0.4,
        "held_out_best": 0.6,
        "majority_final": None,
        "equal_length": None,
        "right_per_1000": None,
        "right_per_1000_batch": pytest.approx(10.0),  # 0.195 right answers in 19.5 tokens
        "length_right": None,
        "length_wrong": None,
        "blind_start": None,
        "blind_final": None,
        "length_start": 1.5,
        "length_middle": 9.5,
        "length_final": 19.5,
        "truncated_final": pytest.approx(0.2),
        "clip_low_fraction": pytest.approx(0.3),
        "clip_high_fraction": 0.5,
        "clipped_gradient": 0.25,
        "tokens": 2000.0,
        "seconds": 10.0,
    }
    assert (run.held_out_best_step, run.held_out_last_step) == (10, 20)


def test_the_policy_before_training_is_evaluated_too(write_run) -> None:
    folder = write_run("a", lengths=[10.0, 20.0], planned=2)
    (folder / "evals").mkdir()
    rows = [{"step": 0, "evaluation/accuracy": 0.9}, {"step": 2, "evaluation/accuracy": 0.8}]
    (folder / "evals" / "held-out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = compare_runs(read_runs([folder])).runs[0]
    assert (run.values["length_start"], run.values["length_final"]) == (10.0, 20.0)
    assert [run.values[f"held_out_{which}"] for which in ("start", "final", "best")] == [0.9, 0.8, 0.9]
    assert (run.held_out_best_step, run.held_out_last_step) == (0, 2)


def test_what_was_not_recorded_is_none_and_shown_as_a_dash(write_run) -> None:
    comparison = compare_runs(read_runs([write_run("a")]))
    run = comparison.runs[0]
    assert run.values["accuracy_final"] is None
    assert comparison.variants[0].estimates["accuracy_final"] is None
    row = next(line for line in _printed(comparison).splitlines() if line.startswith("a "))
    assert row.split() == ["a", "0", "3", "–", "–", "–", "10.0", "20.0", "30.0", "–", "–", "–"]


def test_means_and_intervals_over_seeds(two_by_two) -> None:
    comparison = compare_runs(two_by_two)
    gspo, luspo = comparison.variants
    assert (gspo.label, luspo.label) == ("gspo", "luspo")
    assert gspo.seeds == (0, 1)
    final = luspo.estimates["length_final"]
    # 20 and 26: mean 23, s = sqrt(18), half width 12.7062 * sqrt(18) / sqrt(2) = 38.1186.
    assert final.mean == 23.0
    assert final.half_width == pytest.approx(38.1186, abs=1e-3)
    assert gspo.estimates["length_final"].half_width == pytest.approx(12.7062, abs=1e-3)


def test_paired_differences_by_hand(two_by_two) -> None:
    pairs = {pair.measure: pair for pair in compare_runs(two_by_two).paired}
    final = pairs["length_final"]
    assert (final.first, final.second, final.seeds) == ("luspo", "gspo", (0, 1))
    assert final.differences == (10.0, 14.0)
    assert (final.estimate.mean, final.positive, final.estimate.n) == (12.0, 2, 2)
    # s = sqrt(8), half width 12.7062 * sqrt(8) / sqrt(2) = 25.4124.
    assert final.estimate.half_width == pytest.approx(25.4124, abs=1e-3)
    assert pairs["length_middle"].differences == (0.0, 0.0)
    assert pairs["length_middle"].positive == 0
    assert "accuracy_final" not in pairs


def test_only_equal_seeds_are_paired(write_run) -> None:
    runs = [
        write_run("g0", "gspo", 0, lengths=[1.0]),
        write_run("g2", "gspo", 2, lengths=[5.0]),
        write_run("l2", "luspo", 2, lengths=[4.0]),
        write_run("l3", "luspo", 3, lengths=[9.0]),
    ]
    pair = next(pair for pair in compare_runs(read_runs(runs)).paired if pair.measure == "length_final")
    assert (pair.seeds, pair.differences, pair.positive) == ((2,), (-1.0,), 0)
    assert pair.estimate.half_width is None


def test_one_seed_has_no_interval_and_that_is_said(write_run) -> None:
    comparison = compare_runs(read_runs([write_run("a", "gspo"), write_run("b", "luspo")]))
    assert comparison.variants[0].estimates["length_final"].half_width is None
    text = _printed(comparison)
    assert "±" not in text
    assert "One run has no interval" in text


def test_runs_of_different_length_are_compared_at_the_common_last_step(write_run) -> None:
    runs = [write_run("short", "gspo", lengths=[1.0, 2.0]), write_run("long", "luspo", lengths=[1.0, 2.0, 50.0, 60.0])]
    comparison = compare_runs(read_runs(runs))
    assert comparison.last_step == 2
    assert _by_name(comparison)["long"].values["length_final"] == 2.0
    assert any("up to step 2" in warning for warning in comparison.warnings)
    assert any("run.steps is 2 in short; 4 in long" in warning for warning in comparison.warnings)


def test_runs_without_a_common_step_are_refused(write_run, tmp_path) -> None:
    state = tmp_path / "late.jsonl"
    state.write_text('{"step": 50, "response_length/mean": 1.0}\n')
    with pytest.raises(UsageError, match="no step in common"):
        compare_runs(read_runs([write_run("a"), state]))


def test_an_unfinished_run_is_flagged(write_run) -> None:
    comparison = compare_runs(read_runs([write_run("a", lengths=[1.0, 2.0], planned=60)]))
    assert comparison.warnings == ("a is unfinished: step 2 of 60.",)
    assert "2/60" in _printed(comparison)


def test_a_torn_line_is_reported(write_run) -> None:
    folder = write_run("a")
    with (folder / "metrics.jsonl").open("a") as log:
        log.write('{"st')
    assert any("torn" in warning for warning in compare_runs(read_runs([folder])).warnings)


def test_objective_seed_and_bookkeeping_may_differ_without_warning(write_run) -> None:
    runs = [write_run("a", "gspo", 0), write_run("b", "luspo", 1, change={"run": {"checkpoint_every": 5}})]
    comparison = compare_runs(read_runs(runs))
    assert comparison.differing == {}
    assert comparison.warnings == ()


@pytest.mark.parametrize(
    ("change", "key", "values"),
    [
        ({"update": {"learning_rate": 1e-4}}, "update.learning_rate", {"a": 3e-4, "b": 1e-4}),
        ({"update": {"betas": [0.9, 0.999]}}, "update.betas", {"a": [0.9, 0.99], "b": [0.9, 0.999]}),
        ({"reward": {"verifier": "exact"}}, "reward.verifier", {"a": "absent", "b": "exact"}),
        ({"objective": {"kl_coefficient": 0.1}}, "objective.kl_coefficient", {"a": "absent", "b": 0.1}),
    ],
)
def test_another_differing_key_is_a_warning(write_run, change, key, values) -> None:
    comparison = compare_runs(read_runs([write_run("a", "gspo"), write_run("b", "luspo", change=change)]))
    assert comparison.differing == {key: values}
    assert len(comparison.warnings) == 1
    assert f"Not only the objective differs: {key} is" in comparison.warnings[0]


def test_another_setting_of_one_objective_is_a_variant_not_a_seed(write_run) -> None:
    runs = read_runs(
        [
            write_run("a", "luspo", 0, lengths=[10.0]),
            write_run("b", "luspo", 0, lengths=[20.0], change={"objective": {"clip_low": 0.1}}),
            write_run("c", "luspo", 1, lengths=[30.0], change={"objective": {"clip_low": 0.1}}),
        ]
    )
    variants = split_into_variants(runs)
    assert [(variant.label, len(variant.runs)) for variant in variants] == [
        ("luspo (objective.clip_low=0.002)", 1),
        ("luspo (objective.clip_low=0.1)", 2),
    ]
    means = [variant.estimates["length_final"].mean for variant in compare_runs(runs).variants]
    assert means == [10.0, 25.0]


def test_many_settings_make_no_wide_column(write_run) -> None:
    """A name in the tables is short, two variants never have one, and the whole setting stands below."""
    place = "data/" + "very-long-name/" * 9 + "mine"
    common = {"data": {"train": place}, "model": {"path": "X"}, "objective": {"clip_high": 0.5, "clip_low": 0.1}}
    changes = [None, common, common | {"update": {"learning_rate": 0.25}}, {"objective": {"clip_low": 0.3}}]
    runs = [write_run(f"r{n}", "luspo", change=change) for n, change in enumerate(changes)]
    comparison = compare_runs(read_runs(runs))
    assert len(comparison.variants) == 4
    above, _, below = _printed(comparison).partition("Compared")
    assert max(len(line) for line in above.splitlines()) <= 130
    assert all(label in below for label in short_names(comparison.variants))
    names = [*short_names(comparison.variants).values()]
    assert len({tuple(name) for name in names}) == 4
    two = short_names(compare_runs(read_runs([runs[0], runs[3]])).variants)
    assert [*two.values()] == [["luspo", "clip_low=0.002"], ["luspo", "clip_low=0.3"]]
    assert [*short_names(compare_runs(read_runs(runs[:2])).variants).values()] == [
        ["luspo", "train=…ame/very-long-name/mine", "path=X", "clip_high=0.5", "1 more"],
        ["luspo", "train=made:terms", "path=made", "clip_high=0.0025", "1 more"],
    ]


def test_bookkeeping_and_length_do_not_make_a_variant(write_run) -> None:
    other = {"run": {"checkpoint_every": 5, "threads": 2, "steps": 9}, "rollout": {"max_rows": 7}}
    (variant,) = split_into_variants(read_runs([write_run("b", seed=1, change=other), write_run("a", seed=0)]))
    assert (variant.label, [run.name for run in variant.runs]) == ("luspo", ["a", "b"])


def test_a_seed_that_runs_twice_is_warned_about_and_not_paired(write_run) -> None:
    runs = [write_run("a", "gspo", 0), write_run("b", "luspo", 0), write_run("c", "luspo", 0)]
    comparison = compare_runs(read_runs(runs))
    assert comparison.paired == ()
    assert any("more than one run with seed 0" in warning for warning in comparison.warnings)


def test_steps_without_a_length_are_counted(write_run) -> None:
    comparison = compare_runs(read_runs([write_run("a", lengths=[1.0, None, 3.0])]))
    assert comparison.warnings == ("a recorded no response length in 1 of its steps; means leave them out.",)


def test_a_log_of_another_framework_is_named_as_such(write_run, tmp_path) -> None:
    log = tmp_path / "peer.jsonl"
    log.write_text("".join(f'{{"step": {step}, "data": {{"response_length/mean": {step}}}}}\n' for step in (1, 2, 3)))
    comparison = compare_runs(read_runs([write_run("a"), log]))
    assert comparison.differing == {}
    assert comparison.warnings == ("peer is a log of verl: what else differs from it is not recorded.",)


def test_the_json_has_its_schema_and_no_nan(two_by_two, write_run) -> None:
    extra = read_runs([write_run("lone", "grpo", 0, lengths=[1.0, math.nan, 2.0])])
    report = json.loads(json.dumps(comparison_json(compare_runs([*two_by_two, *extra])), allow_nan=False))
    tables = {"runs", "variants", "clip_ranges", "paired", "answers", "tuning", "differing", "warnings"}
    assert set(report) == {"last_step", "by", "end", "level", "measures"} | tables
    assert report["clip_ranges"] == {"grpo": [0.2, 0.2], "gspo": [0.002, 0.0025], "luspo": [0.002, 0.0025]}
    assert [run["name"] for run in report["runs"]] == ["lone", "gspo-seed0", "gspo-seed1", "luspo-seed0", "luspo-seed1"]
    assert report["runs"][0]["values"]["accuracy_final"] is None
    assert report["runs"][0]["windows"]["final"] == [3, 3]
    assert set(report["variants"][0]) == {"label", "objective", "seeds", "estimates", "interquartile"}
    assert report["variants"][1]["estimates"]["length_final"]["mean"] == 11.0
    assert set(report["paired"][0]) == {
        "first",
        "second",
        "measure",
        "seeds",
        "differences",
        "estimate",
        "positive",
        "bootstrap",
        "interquartile",
        "improvement",
        "p",
        "smallest_p",
        "detectable",
        "seeds_needed",
        "verdict",
        "verdict_text",
    }
    assert report["measures"]["length_final"] == {"title": "response length, final", "unit": "tokens"}


def test_the_table_lists_every_run_and_fits_100_columns(two_by_two) -> None:
    text = _printed(compare_runs(two_by_two))
    lines = text.splitlines()
    for name in ("gspo-seed0", "gspo-seed1", "luspo-seed0", "luspo-seed1"):
        assert any(line.startswith(f"{name} ") for line in lines)
    assert "23.0 ± 38.1" in text
    assert "+12.0 ± 25.4" in text
    assert "+10.0 +14.0" in text
    assert "2 of 2" in text
    assert max(len(line) for line in text.split("Compared")[0].splitlines()) <= 100
    assert not any(line.endswith(" ") for line in lines)


def test_piped_output_is_plain_and_cuts_nothing(write_run) -> None:
    name = "a-run-with-a-name-that-is-longer-than-any-sensible-column-" * 2
    text = _printed(compare_runs(read_runs([write_run(name)])))
    assert name in text
    assert "\x1b" not in text
    assert "…" not in text


@pytest.mark.parametrize("width", [60, 100, 200])
def test_a_terminal_shows_every_number(two_by_two, width: int) -> None:
    text = _printed(compare_runs(two_by_two), width=width, force_terminal=True, color_system=None)
    assert "…" not in text
    assert "23.0 ± 38.1" in text
    assert all(len(line.rstrip()) <= max(100, width) for line in text.splitlines())


def test_four_objectives_stand_in_two_tables(write_run) -> None:
    names = ("grpo", "dapo", "gspo", "luspo")
    comparison = compare_runs(read_runs([write_run(name, name, lengths=[1e5, 2e5, 3e5]) for name in names]))
    text = _printed(comparison)
    assert text.count("Means over seeds") == 2
    assert max(len(line) for line in text.split("Compared")[0].splitlines()) <= 100


def test_brackets_in_names_are_no_markup(write_run) -> None:
    assert "run[bold]" in _printed(compare_runs(read_runs([write_run("run[bold]")])))


def test_the_statements_name_the_windows(write_run) -> None:
    comparison = compare_runs(read_runs([write_run("a", lengths=TWENTY)]))
    first = next(statements(comparison))
    assert first == (
        "Compared up to step 20: start = steps 1 to 2, mid-run = steps 9 to 10, final = steps 19 to 20 (means)."
    )


def test_the_statements_name_the_clip_range_of_each_objective(write_run, tmp_path) -> None:
    log = tmp_path / "peer.jsonl"
    log.write_text("".join(f'{{"step": {step}, "data": {{"response_length/mean": {step}}}}}\n' for step in (1, 2, 3)))
    none = {"objective": {"clip_low": None, "clip_high": None}}
    other = {"objective": {"clip_low": 3e-4, "clip_high": 4e-4}}
    runs = [write_run("a", "grpo"), write_run("b", "gspo", change=other), write_run("c", "sapo", change=none), log]
    comparison = compare_runs(read_runs(runs))
    assert "clip range: grpo 0.2 / 0.2, gspo 0.0003 / 0.0004, sapo none." in list(statements(comparison))
    assert comparison_json(comparison)["clip_ranges"]["sapo"] == [None, None]
    alone = compare_runs(read_runs([log]))
    assert not any("clip range" in line for line in statements(alone))
