"""A training with rewards of one's own: the documentation's example, what is recorded, resuming, and a function that fails."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from doubles.pages import commands, write_files
from doubles.runs import SMALL_RUN, records, train
from luspo_cli.analysis.history import read_runs
from luspo_cli.config.run import TrainRun
from luspo_cli.errors import RunError, UsageError

PAGE = "own-reward.md"
SMALL = [part for setting in SMALL_RUN for part in ("--set", setting)]


def test_the_example_of_the_documentation_runs(luspo: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    assert write_files(PAGE, tmp_path) == ["rewards.py", "own.toml"]
    dry, real = commands(PAGE)
    code, out, err = luspo(*dry, *SMALL)
    assert (code, err) == (0, "")
    assert "reward  compute_score (weight 1): rewards.py:compute_score, called once a response as compute_score(" in out
    assert "reward  short (weight 0.1): rewards.py:brevity, called once a group as brevity(completions, " in out
    code, _, err = luspo(*real, *SMALL, "--set", "run.steps=2")
    assert code == 0, err
    record = records(tmp_path / "runs/own")[-1]
    wanted = record["reward/compute_score/mean"] + 0.1 * record["reward/short/mean"] + record["reward/overlong/mean"]
    assert record["reward/total/mean"] == pytest.approx(wanted)
    assert record["reward/accuracy/mean"] == record["reward/compute_score/acc/mean"]
    assert record["reward/compute_score/failed"] == record["reward/short/failed"] == 0


BOTH = (
    "def right(solution_str, ground_truth, **kwargs):\n"
    "    return {'score': -len(solution_str), 'acc': solution_str.endswith(ground_truth)}\n"
    "def rank(completions, **kwargs):\n    return [sorted(completions).index(text) for text in completions]\n"
)


@pytest.fixture
def own(small_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainRun]:
    """Return `small_run` in a folder with own.py, whose functions it is rewarded by."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(BOTH)
    return lambda *sets: small_run('reward.function=["own.py:right", "own.py:rank"]', *sets)


def test_stored_rollouts_and_evaluations_have_the_parts(own: Callable[..., TrainRun], tmp_path: Path) -> None:
    train(own("run.steps=2"), tmp_path / "run")
    (first, second) = records(tmp_path / "run")
    table = pq.read_table(tmp_path / "run/rollouts/step-000001.parquet").to_pylist()
    assert first["reward/right/mean"] == pytest.approx(sum(row["reward_right"] for row in table) / len(table))
    for row in table:
        said = json.loads(row["reward_functions"])
        assert row["reward_right"] == said["right"]["score"] == -len(row["response"])
        assert said["right"]["parts"] == {"acc": float(row["response"].endswith(row["answer"]))}
        assert row["reward"] == pytest.approx(row["reward_right"] + row["reward_rank"] + row["reward_overlong"])
    lines = [json.loads(line) for line in (tmp_path / "run/evals/held-out.jsonl").read_text().splitlines()]
    assert second["evaluation/reward/right/mean"] == lines[-1]["evaluation/reward/right/mean"]
    held_out = pq.read_table(tmp_path / "run/evals/held-out/step-000002.parquet").to_pylist()
    assert lines[-1]["evaluation/reward/right/mean"] == pytest.approx(
        sum(row["reward_right"] for row in held_out) / len(held_out)
    )
    (history,) = read_runs([tmp_path / "run"])
    assert history.column("reward/right/acc/mean").tolist() == [one["reward/right/acc/mean"] for one in (first, second)]


def test_a_run_does_not_resume_with_another_file(own: Callable[..., TrainRun], tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        train(own("run.steps=4"), tmp_path / "run", crash_after=2)
    record = json.loads((tmp_path / "run/provenance.json").read_text())
    assert [one["key"] for one in record["functions"].values()] == ["reward.function"] * 2
    (tmp_path / "own.py").write_text(BOTH + "# edited\n")
    with pytest.raises(UsageError) as caught:
        train(own("run.steps=4"), tmp_path / "run", "resume")
    assert "changed since the run began: the file of reward.function = 'own.py:right' (sha256 " in str(caught.value)
    assert "--resume --allow-changed" in str(caught.value)
    (tmp_path / "own.py").write_text(BOTH)
    train(own("run.steps=4"), tmp_path / "run", "resume")
    train(own("run.steps=4"), tmp_path / "whole")
    numbers = [
        [{key: value for key, value in record.items() if "time" not in key} for record in records(tmp_path / name)]
        for name in ("run", "whole")
    ]
    assert numbers[0] == numbers[1]


def test_a_resume_from_another_folder_says_where_the_file_was(
    own: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ZeroDivisionError):
        train(own("run.steps=4"), tmp_path / "run", crash_after=2)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"reward\.function 'own\.py' is relative.*; resume from "):
        train(own("run.steps=4"), tmp_path / "run", "resume")


def test_a_function_that_always_fails_ends_the_run_with_its_error(own: Callable[..., TrainRun], tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(BOTH + "def right(solution_str):\n    raise ValueError('no <answer> in it')\n")
    wanted = r"reward function 'right' failed for all 8 responses, first: ValueError: no <answer> in it \(own\.py"
    with pytest.raises(RunError, match=wanted):
        train(own(), tmp_path / "run")


def test_a_file_that_cannot_be_used_is_refused_before_the_folder_is_touched(
    own: Callable[..., TrainRun], tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text("import nowhere_to_be_found\n")
    with pytest.raises(UsageError, match=r"reward\.function: own\.py cannot be imported: ModuleNotFoundError"):
        train(own(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        (
            "def right(solution_str):\n    return missing\n",
            r"'right'.*NameError: name 'missing' is not defined \(own\.py",
        ),
        ("def right(solution_str):\n    import nowhere\n", "'right'.*ModuleNotFoundError: No module named 'nowhere'"),
        ("def rank(completions):\n    return 1.0\n", r"'rank'.*returned 1\.0 and not a list of 2 numbers"),
    ],
)
def test_a_call_that_no_response_can_mend_is_refused_before_the_folder_is_touched(
    own: Callable[..., TrainRun], tmp_path: Path, code: str, wanted: str
) -> None:
    (tmp_path / "own.py").write_text(BOTH + code)
    with pytest.raises(UsageError, match=r"reward\.function: .* fails whatever it is given: ") as caught:
        train(own(), tmp_path / "run")
    assert re.search(wanted, str(caught.value))
    assert not (tmp_path / "run").exists()
