"""Runs made by an earlier version: later ones resume them, compare them, plot them and find their weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

OLDER = Path(__file__).parents[1] / "fixtures/older_run"
# Another processor may round the last bits otherwise: numbers agree to this much, counts and draws exactly.
TOLERANCE = 1e-4
Luspo = Callable[..., tuple[int, str, str]]


@pytest.fixture
def older(luspo: Luspo, tmp_path: Path) -> Path:
    """The folder that `luspo` works in, with copies of the two runs and their model."""
    shutil.copytree(OLDER, tmp_path, dirs_exist_ok=True)
    return tmp_path


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def same_numbers(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Everything that the older version wrote is there with its value, times and differences of rounding apart."""
    loose = {"sampler/logprob_difference_mean", "sampler/logprob_difference_max", "ratio/noise_floor"}
    for name, value in expected.items():
        if name.startswith("time/"):
            continue
        if name in loose:
            assert 0 <= found[name] < 1e-4, name
        elif isinstance(value, float):
            assert found[name] == pytest.approx(value, rel=TOLERANCE, abs=1e-6), (name, expected["step"])
        else:
            assert found[name] == value, (name, expected["step"])


def test_a_run_stopped_by_an_earlier_version_goes_on_to_the_same_end(luspo: Luspo, older: Path) -> None:
    """Steps 3 and 4 of the stopped run are those of its twin that the earlier version ran without a stop."""
    import pandas as pd
    from safetensors.torch import load_file

    before = (older / "stopped/metrics.jsonl").read_bytes()
    code, _, error = luspo("train", "--run", "stopped", "--resume")
    assert code == 0, error
    assert (older / "stopped/metrics.jsonl").read_bytes().startswith(before)
    for file in ("metrics.jsonl", "evals/held-out.jsonl"):
        found, expected = lines(older / "stopped" / file), lines(older / "finished" / file)
        assert [record["step"] for record in found] == [record["step"] for record in expected]
        for one, other in zip(found, expected, strict=True):
            same_numbers(one, other)
    for step in (3, 4):
        found, expected = (
            pd.read_parquet(older / run / f"rollouts/step-00000{step}.parquet") for run in ("stopped", "finished")
        )
        for column in ("problem_id", "response", "stop_reason", "reward", "advantage"):
            assert found[column].tolist() == pytest.approx(expected[column].tolist()), column
    weights, expected = (
        load_file(older / run / "checkpoints/step-000004/model/model.safetensors") for run in ("stopped", "finished")
    )
    assert weights.keys() == expected.keys()
    moved = load_file(OLDER / "stopped/checkpoints/step-000002/model/model.safetensors")
    for name, weight in weights.items():
        assert (weight - expected[name]).abs().max() < 1e-5, name
        assert (weight - moved[name]).abs().max() > 1e-4, name  # two more steps, or nothing was compared
    (session,) = json.loads((older / "stopped/provenance.json").read_text())["resumed"]
    assert session["after_step"] == 2


def test_a_run_finished_by_an_earlier_version_is_finished(luspo: Luspo, older: Path) -> None:
    before = (older / "finished/metrics.jsonl").read_bytes()
    code, output, error = luspo("train", "--run", "finished", "--resume")
    assert code == 0, error
    assert "is finished: step 4 of 4" in output + error
    assert (older / "finished/metrics.jsonl").read_bytes() == before


def test_compare_reads_runs_of_an_earlier_version(luspo: Luspo, older: Path) -> None:
    """Both up to step 2, the last that both have: lengths, accuracies and benchmark scores as that version printed them."""
    code, output, error = luspo("compare", "stopped", "finished", "--json")
    assert code == 0, error
    found = {run["name"]: run for run in json.loads(output)["runs"]}
    assert {name: run["finished"] for name, run in found.items()} == {"stopped": False, "finished": True}
    for run in found.values():
        values = run["values"]
        assert values["length_final"] == 22.375
        assert values["held_out_final"] == 0.8125
        assert values["AIME24 avg@2"] == 0
    lengths = {name: run["values"]["AIME24 response_length/mean"] for name, run in found.items()}
    assert lengths == {"stopped": 5.875, "finished": 5.75}


def test_plot_length_reads_runs_of_an_earlier_version(luspo: Luspo, older: Path) -> None:
    code, _, error = luspo("plot-length", "stopped", "finished", "--out", "lengths.svg")
    assert code == 0, error
    assert "<svg" in (older / "lengths.svg").read_text(encoding="utf-8")


def test_eval_finds_the_weights_of_a_run_of_an_earlier_version(luspo: Luspo, older: Path) -> None:
    rows = [{"id": 60 + n, "problem": f"{n}=", "answer": str(n)} for n in range(30)]
    (older / "aime").mkdir()
    (older / "aime/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = ("--benchmark", "aime24", "--data", "aime", "--limit", "2", "--max-response-tokens", "4", "--out", "new")
    code, _, error = luspo("eval", "stopped", *settings)
    assert code == 0, error
    found, stored = (json.loads((older / path / "AIME24.json").read_text()) for path in ("new", "stopped/evals"))
    assert found["sampling"]["step"] == stored["sampling"]["step"] == 2
    assert found["sampling"]["weights"] == stored["sampling"]["weights"]


def test_a_run_that_an_older_grader_rewarded_goes_on_only_with_allow_changed(luspo: Luspo, older: Path) -> None:
    """Its answers were graded as mathematics: what is paid from here on may be others, so it must be said and is recorded."""
    before = {file: file.read_bytes() for file in (older / "graded").rglob("*") if file.is_file()}
    code, _, error = luspo("train", "--run", "graded", "--resume")
    assert code == 2
    (sentence,) = [line for line in error.splitlines() if line.startswith("luspo: ")]
    assert "changed since the run began: the grader" in sentence
    assert "--allow-changed" in sentence
    assert {file: file.read_bytes() for file in before} == before

    code, _, error = luspo("train", "--run", "graded", "--resume", "--allow-changed")
    assert code == 0, error
    assert "warning: going on all the same: the grader" in error
    assert [record["step"] for record in lines(older / "graded/metrics.jsonl")] == [1, 2, 3, 4]
    assert (older / "graded/metrics.jsonl").read_bytes().startswith(before[older / "graded/metrics.jsonl"])
    (session,) = json.loads((older / "graded/provenance.json").read_text())["resumed"]
    assert session["after_step"] == 2
    (changed,) = session["changed"]
    assert "grader" in changed["what"]
    assert changed["was"] != changed["now"]
