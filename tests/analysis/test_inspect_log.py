"""The export for Inspect's viewer: what stands in a sample, which step is taken, and what is refused."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from doubles import reports
from doubles.reports import marked, rollout
from luspo_cli.analysis.history import read_run
from luspo_cli.analysis.inspect_log import write_inspect_log

ROWS = [
    marked(rollout("2+2", "so 4", status="correct"), sequence_ratio=1.01),
    rollout("2+2", "5 and on and", stop_reason="length", extracted=None),
    rollout("1+3", "<script>4</script>", status="correct"),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    # The two kinds of rows have different columns, so that what a file lacks is null here and absent in the older one.
    return reports.write_run(tmp_path, "a", rollouts={1: [rollout("old", "4")], 3: ROWS})


def test_samples_are_the_responses_of_the_last_stored_step(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "logs" / "a.json"
    assert write_inspect_log(read_run(run), out) == 3
    log = json.loads(out.read_text(encoding="utf-8"))
    assert (log["version"], log["status"], log["eval"]["task"]) == (2, "success", "a step 3")
    assert log["eval"]["metadata"] == {"objective": "luspo", "seed": 0, "step": 3}
    assert log["eval"]["dataset"]["sample_ids"] == ["2+2", "1+3"]
    assert log["eval"]["config"] == {"epochs": 2}
    assert [(one["id"], one["epoch"]) for one in log["samples"]] == [("2+2", 1), ("2+2", 2), ("1+3", 1)]
    first, cut, marked_up = log["samples"]
    assert (first["input"], first["target"], first["output"]["completion"]) == ("What is 2+2?", "4", "so 4")
    assert first["scores"]["correct"] == {"value": "C", "answer": "4", "explanation": "correct: exact"}
    assert first["scores"]["reward"] == {"value": 1.0}
    assert first["metadata"]["sequence_ratio"] == 1.01
    assert [one["output"]["choices"][0]["stop_reason"] for one in log["samples"]] == ["stop", "max_tokens", "stop"]
    assert (cut["scores"]["correct"]["value"], cut["scores"]["correct"]["answer"]) == ("I", None)
    assert marked_up["messages"][1]["content"] == "<script>4</script>"
    means = {one["name"]: next(iter(one["metrics"].values()))["value"] for one in log["results"]["scores"]}
    assert means == {"correct": pytest.approx(2 / 3), "reward": pytest.approx(2 / 3)}


def test_a_step_is_chosen_and_columns_that_it_lacks_stay_away(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    assert write_inspect_log(read_run(run), out, 1) == 1
    (sample,) = json.loads(out.read_text(encoding="utf-8"))["samples"]
    assert sample["id"] == "old"
    assert "sequence_ratio" not in sample["metadata"]


@pytest.mark.skipif(find_spec("inspect_ai") is None, reason="inspect_ai is not installed: pip install inspect-ai")
def test_inspect_reads_it(run: Path, tmp_path: Path) -> None:
    from inspect_ai.log import read_eval_log  # type: ignore[import-not-found]

    out = tmp_path / "a.json"
    write_inspect_log(read_run(run), out)
    log = read_eval_log(str(out))
    assert [sample.output.completion for sample in log.samples] == [row["response"] for row in ROWS]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--step", "2", "--inspect-log", "a.json"], "stores no rollouts of step 2; there are: 1, 3."),
        (["--step", "1"], "give --inspect-log FILE.json too"),
        (["--inspect-log", "a.html"], "end it in .json"),
    ],
)
def test_what_cannot_be_written_is_refused(luspo, run: Path, options: list[str], said: str, tmp_path: Path) -> None:
    status, _, err = luspo("inspect", str(run), *options)
    assert status == 2
    assert said in err
    assert not list(tmp_path.glob("*.json"))


def test_a_run_without_rollouts_is_refused(luspo, tmp_path: Path) -> None:
    empty = reports.write_run(tmp_path, "b")
    status, _, err = luspo("inspect", str(empty), "--inspect-log", str(tmp_path / "b.json"))
    assert status == 2
    assert "stores no rollouts; train with run.rollouts_every above 0" in err


def test_the_command_says_what_it_wrote(luspo, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    status, said, _ = luspo("inspect", str(run), "--inspect-log", str(out))
    assert (status, said.strip()) == (0, f"responses of step 3: {out}")
    status, said, err = luspo("inspect", str(run), "--inspect-log", str(out), "--json")
    assert status == 0
    assert json.loads(said)["name"] == "a"
    assert "responses of step 3" in err
