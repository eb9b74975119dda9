"""What a comparison takes from evals/ and provenance.json: benchmark measures, and warnings where records differ."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from luspo_cli.analysis.comparison import compare_runs
from luspo_cli.analysis.history import read_runs
from luspo_cli.commands.display.comparison import comparison_json, print_comparison


def _printed(comparison) -> str:
    file = io.StringIO()
    print_comparison(comparison, Console(file=file))
    return file.getvalue()


def test_other_code_or_data_is_a_warning_and_other_hardware_is_none(write_run) -> None:
    runs = [write_run("a", "gspo"), write_run("b", "luspo")]
    for run, commit in zip(runs, ("0" * 64, "1" * 64), strict=True):
        provenance = {"code": {"commit": commit}, "hardware": {"processor": commit}, "luspo": "1.0"}
        (run / "provenance.json").write_text(json.dumps(provenance))
    comparison = compare_runs(read_runs(runs))
    assert comparison.differing == {"provenance.code.commit": {"a": "0" * 64, "b": "1" * 64}}
    (warning,) = comparison.warnings
    assert warning.endswith("provenance.code.commit is 000000000000… in a; 111111111111… in b.")


def test_sessions_of_one_run_that_differ_are_a_warning_each_key(write_run) -> None:
    def session(torch: str, data: str | None, **more: object) -> dict[str, object]:
        record = {"luspo": "1.0", "packages": {"torch": torch, "vllm": None}, "hardware": {"cores": torch}, **more}
        return record if data is None else record | {"data": {"train": {"path": "d", "sha256": data}}}

    run = write_run("a")
    resumed = [
        session("2.6", "1" * 64, after_step=4),
        session("2.7", "1" * 64, after_step=8, code={"uncommitted": "2" * 64}),
        session("2.7", "0" * 64, after_step=9, code={"uncommitted": "2" * 64}),
    ]
    began = session("2.6", None, code={"uncommitted": None})
    (run / "provenance.json").write_text(json.dumps(began | {"resumed": resumed}))
    assert compare_runs(read_runs([run])).warnings == (
        "The sessions of a differ: provenance.code.uncommitted is null at first; 222222222222… after step 8.",
        "The sessions of a differ: provenance.packages.torch is 2.6 at first; 2.7 after step 8.",
        "The sessions of a differ: provenance.data.train.sha256 is 111111111111… at first; 000000000000… after step 9.",
    )
    resumed[1:] = []
    (run / "provenance.json").write_text(json.dumps(session("2.6", "1" * 64) | {"resumed": resumed}))
    assert compare_runs(read_runs([run])).warnings == ()


def test_lengths_and_counts_of_a_benchmark_have_their_units(write_run) -> None:
    run = write_run("a")
    (run / "evals").mkdir()
    metrics = {"accuracy": 0.5, "correct": 30, "samples": 60, "response_length/max": 812, "pass@1": 0.5}
    (run / "evals/AIME24.json").write_text(json.dumps({"benchmark": "AIME24", "metrics": metrics}))
    comparison = compare_runs(read_runs([run]))
    units = {name.partition(" ")[2]: m.unit for name, m in comparison.measures.items() if name.startswith("AIME24")}
    assert units == {
        "accuracy": "1",
        "correct": "count",
        "samples": "count",
        "response_length/max": "tokens",
        "pass@1": "1",
    }
    rows = {line.rpartition("  ")[0].strip(): line.rpartition("  ")[2] for line in _printed(comparison).splitlines()}
    assert (rows["AIME24, correct"].strip(), rows["AIME24, response_length/max (tokens)"].strip()) == ("30", "812.0")


def test_results_that_were_drawn_otherwise_are_named_with_the_setting(write_run) -> None:
    same = {"model": "x", "weights": "1", "step": 4, "temperature": 1.0, "top_p": 1.0, "prompts_sha256": "a" * 64}
    contents = {
        "a": {"n_problems": 30, "n_samples": 4, "mode": "rule", "version": 1, "sampling": same},
        "b": {"n_problems": 30, "n_samples": 4, "mode": "rule", "version": 1, "sampling": same | {"model": "y", "weights": "2"}},
        "c": {"n_problems": 10, "n_samples": 8, "mode": "rule", "version": 1,
              "sampling": same | {"temperature": 0.0, "prompts_sha256": "b" * 64, "step": 5}},
        "d": {"n_problems": 30, "n_samples": 4, "mode": "rule", "version": 1},
    }  # fmt: skip
    folders = []
    for seed, (name, content) in enumerate(contents.items()):
        folders.append(write_run(name, "luspo", seed))
        (folders[-1] / "evals").mkdir()
        text = json.dumps({"benchmark": "AIME24", "metrics": {"accuracy": 0.5}, **content})
        (folders[-1] / "evals/AIME24.json").write_text(text)

    def said(*chosen: int) -> list[str]:
        warnings = compare_runs(read_runs([folders[number] for number in chosen])).warnings
        return [warning.partition(": ")[2] for warning in warnings if "not scored alike" in warning]

    assert said(0, 1) == []  # other weights are what is compared
    assert said(0, 2) == [
        "number of problems is 30 in a; 10 in c.",
        "samples is 4 in a; 8 in c.",
        "training step of the weights is 4 in a; 5 in c.",
        "temperature is 1.0 in a; 0.0 in c.",
        "wording of the prompts is aaaaaaaaaaaa… in a; bbbbbbbbbbbb… in c.",
    ]
    assert "temperature is 1.0 in a; not recorded in d." in said(0, 3)


def test_benchmarks_of_the_runs_are_compared(write_run) -> None:
    for name, objective, score, samples in (("a", "gspo", 0.25, 32), ("b", "luspo", 0.5, 16)):
        evals = write_run(name, objective) / "evals"
        evals.mkdir()
        content = {"benchmark": "aime24", "version": 1, "n_samples": samples, "metrics": {"avg@k": score, "note": "x"}}
        (evals / "AIME24.json").write_text(json.dumps(content))
    third = write_run("c", "luspo", 1)
    comparison = compare_runs(read_runs([third.parent / name for name in "abc"]))
    estimates = {variant.label: variant.estimates["aime24 avg@k"] for variant in comparison.variants}
    assert (estimates["gspo"].mean, estimates["luspo"].mean, estimates["luspo"].n) == (0.25, 0.5, 1)
    assert "0.500 (1 of 2 runs)" in _printed(comparison)
    assert any("aime24 was not scored alike" in warning for warning in comparison.warnings)


def _result(score: float, blind: float | None = None, shows: str = "noise", **sampling: object) -> str:
    content = {"benchmark": "MathVista", "version": 2, "mode": "rule", "n_problems": 1000, "n_samples": 1}
    content |= {"metrics": {"accuracy": score}, "sampling": {"temperature": 1.0, "seed": 0, "step": 4, **sampling}}
    if blind is not None:
        content["blind"] = {"shows": shows, "accuracy": blind, "seeing_minus_blind": score - blind}
    return json.dumps(content)


def _with_results(write_run, results: dict[tuple[str, int], str]):
    folders = []
    for (objective, seed), result in results.items():
        folders.append(write_run(f"{objective}-{seed}", objective, seed))
        (folders[-1] / "evals").mkdir()
        (folders[-1] / "evals/MathVista.json").write_text(result)
    return compare_runs(read_runs(folders))


def test_benchmark_scores_have_means_over_seeds_and_are_paired_where_settings_agree(write_run) -> None:
    """Means 0.3 and 0.5 over three seeds; seed 2 was drawn otherwise in one of the two, so two differences are left."""
    scores = {("gspo", 0): _result(0.2), ("gspo", 1): _result(0.3), ("gspo", 2): _result(0.4)}
    scores |= {("luspo", 0): _result(0.5), ("luspo", 1): _result(0.4), ("luspo", 2): _result(0.6, temperature=0.0)}
    comparison = _with_results(write_run, scores)
    means = {variant.label: variant.estimates["MathVista accuracy"] for variant in comparison.variants}
    assert (means["gspo"].mean, means["luspo"].mean) == (pytest.approx(0.3), pytest.approx(0.5))
    (pair,) = [pair for pair in comparison.paired if pair.measure == "MathVista accuracy"]
    assert (pair.first, pair.seeds, pair.differences) == ("luspo", (0, 1), pytest.approx((0.3, 0.1)))
    (warning,) = [warning for warning in comparison.warnings if "MathVista" in warning]
    assert warning.startswith("MathVista was not scored alike in all runs: temperature is ")
    printed = _printed(comparison)
    assert "Of benchmarks only results with the same settings are paired." in printed
    runs = {run["name"]: run for run in comparison_json(comparison)["runs"]}
    assert runs["luspo-2"]["benchmark_settings"]["MathVista"]["temperature"] == 0.0
    assert runs["gspo-0"]["values"]["MathVista accuracy"] == 0.2


def test_blind_scores_are_measures_and_another_control_unpairs_them_alone(write_run) -> None:
    scores = {("gspo", 0): _result(0.5, 0.25), ("luspo", 0): _result(0.75, 0.25)}
    scores |= {("gspo", 1): _result(0.5, 0.25), ("luspo", 1): _result(0.75, 0.5, "other")}
    comparison = _with_results(write_run, scores)
    pairs = {pair.measure: pair.differences for pair in comparison.paired if pair.measure.startswith("MathVista")}
    assert pairs == {
        "MathVista accuracy": (0.25, 0.25),
        "MathVista blind accuracy": (0.0,),
        "MathVista seeing minus blind": (0.25,),
    }
    (warning,) = [warning for warning in comparison.warnings if "MathVista" in warning]
    assert "blind control is noise in " in warning


def test_a_run_without_a_blind_control_differs_from_none(write_run) -> None:
    comparison = _with_results(write_run, {("gspo", 0): _result(0.5), ("luspo", 0): _result(0.75, 0.25)})
    assert [pair.measure for pair in comparison.paired if "MathVista" in pair.measure] == ["MathVista accuracy"]
    assert not any("MathVista" in warning for warning in comparison.warnings)
    assert "MathVista, blind accuracy" in _printed(comparison)
