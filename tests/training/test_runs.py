"""Whole runs on a model of seconds: the same seed gives the same bytes, however often the run was stopped or killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from doubles.runs import as_arguments, records, train, weight_bytes, without_times
from luspo_cli.config.run import TrainRun
from luspo_cli.errors import UsageError
from luspo_cli.metrics.names import BY_LENGTH, METRICS

STEPS = 5
# The names that every step has: a public contract of the run folder.
CONTRACT = set(
    """
    step tokens/total response_length/mean response_length/p50 response_length/p90 response_length/max
    response_length/correct response_length/incorrect response/truncated_fraction reward/total/mean
    reward/accuracy/mean reward/format/mean reward/overlong/mean group/all_correct_fraction
    group/all_wrong_fraction group/mixed_fraction objective/loss objective/clip_low_fraction
    objective/clip_high_fraction ratio/mean ratio/min ratio/max policy/entropy policy/kl_old update/grad_norm
    update/learning_rate update/rows_trained update/rows_skipped time/rollout time/reward time/logprobs time/update
    time/total length_pressure/grpo length_pressure/gspo length_pressure/luspo
    """.split()  # noqa: SIM905
)


def same_run(one: Path, other: Path) -> None:
    """Weights, optimizer, held-out evaluations and stored rollouts bit for bit; metrics apart from times."""
    assert without_times(one) == without_times(other)
    assert weight_bytes(one, STEPS) == weight_bytes(other, STEPS)
    for name in ("checkpoints/step-000005/trainer/optimizer.safetensors", "evals/held-out.jsonl", "config.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    stored = sorted(os.listdir(one / "rollouts"))
    assert stored == sorted(os.listdir(other / "rollouts"))
    for name in stored:
        assert (one / "rollouts" / name).read_bytes() == (other / "rollouts" / name).read_bytes()


@pytest.fixture(scope="session")
def whole(small_run: Callable[..., TrainRun], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five steps that nothing disturbed."""
    path = tmp_path_factory.mktemp("whole") / "run"
    train(small_run(), path)
    return path


def test_what_a_run_leaves(whole: Path) -> None:
    assert sorted(os.listdir(whole)) == [
        ".lock", "checkpoints", "config.json", "evals", "metrics.jsonl", "provenance.json", "rollouts"
    ]  # fmt: skip
    assert [record["step"] for record in records(whole)] == [1, 2, 3, 4, 5]
    assert sorted(os.listdir(whole / "checkpoints")) == ["step-000004", "step-000005"]  # keep_checkpoints = 2
    assert sorted(os.listdir(whole / "rollouts")) == [f"step-00000{step}.parquet" for step in (1, 2, 4)]
    evaluated = [json.loads(line) for line in (whole / "evals" / "held-out.jsonl").read_text().splitlines()]
    assert [result["step"] for result in evaluated] == [0, 2, 4, 5]
    assert all(result["evaluation/accuracy_low"] <= result["evaluation/accuracy"] for result in evaluated)
    assert not list(whole.rglob("*.partial"))
    assert {file.suffix for file in whole.rglob("*") if file.is_file()} <= {
        ".json", ".jsonl", ".safetensors", ".jinja", ".parquet", ""
    }  # fmt: skip


def test_the_records_of_a_run(whole: Path) -> None:
    """Contract of the metrics file: names, order, and numbers that fit together."""
    total = 0.0
    for record in records(whole):
        assert record.keys() >= CONTRACT, CONTRACT - record.keys()
        assert list(record) == [name for name in (*METRICS, BY_LENGTH) if name in record]
        assert record["update/rows_trained"] + record["update/rows_skipped"] == 16
        assert record["update/rows_trained"] > 0  # otherwise these tests would train nothing
        assert record["update/grad_norm"] > 0
        shares = [record[f"group/{kind}_fraction"] for kind in ("all_correct", "all_wrong", "mixed")]
        assert sum(shares) == pytest.approx(1.0)
        total += 16 * record["response_length/mean"]
        assert record["tokens/total"] == pytest.approx(total)
    assert ["ratio/noise_floor" in record for record in records(whole)] == [True, False, False, False, False]
    assert ["evaluation/accuracy" in record for record in records(whole)] == [False, True, False, True, True]


def test_the_times_of_a_step_are_parts_of_its_whole(whole: Path) -> None:
    apart = ("rollout", "reward", "logprobs", "update", "weights", "evaluation")
    for record in records(whole):
        assert sum(record.get(f"time/{phase}", 0.0) for phase in apart) <= record["time/total"]
        assert 0 < record["time/prompts"] < record["time/rollout"]
        assert 0 < record["time/optimizer"] < record["time/update"]
        assert ("time/evaluation" in record) is ("evaluation/accuracy" in record)


def test_stored_rollouts_hold_what_the_metrics_were_made_from(whole: Path) -> None:
    import pandas as pd

    for step in (1, 2, 4):
        table = pd.read_parquet(whole / "rollouts" / f"step-{step:06d}.parquet")
        record = records(whole)[step - 1]
        assert len(table) == 16
        assert table.response_length.mean() == pytest.approx(record["response_length/mean"])
        assert table.reward.mean() == pytest.approx(record["reward/total/mean"])
        assert (table.response_tokens.map(len) == table.response_length).all()
        assert (table.rollout_logprobs.map(len) == table.response_length).all()
        assert (table.stop_reason == "length").mean() == record["response/truncated_fraction"]
        assert table.advantage.groupby(table.problem_id).sum().abs().max() < 1e-6
        assert (table.advantage != 0).sum() == record["update/rows_trained"]


def test_provenance_names_seed_versions_and_the_weights_it_started_from(whole: Path, made_cache: Path) -> None:
    import hashlib

    import torch

    found = json.loads((whole / "provenance.json").read_text())
    assert found["seed"] == 0
    assert found["packages"]["torch"] == torch.__version__
    (started_from,) = found["model"]["weights"].values()
    made = {hashlib.sha256(file.read_bytes()).hexdigest() for file in made_cache.rglob("model.safetensors")}
    assert started_from in made


def test_the_same_seed_gives_the_same_run(whole: Path, small_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    train(small_run(), tmp_path / "again")
    same_run(whole, tmp_path / "again")


def test_another_seed_gives_another_run(whole: Path, small_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    train(small_run("run.seed=1", "run.steps=1"), tmp_path / "other")
    assert without_times(tmp_path / "other")[0] != without_times(whole)[0]


def test_weights_move_and_keep_their_type(whole: Path) -> None:
    from safetensors.torch import load_file

    four, five = (load_file(whole / "checkpoints" / f"step-00000{s}" / "model" / "model.safetensors") for s in (4, 5))
    assert {str(weight.dtype) for weight in five.values()} == {"torch.float32"}
    assert any(not four[name].equal(five[name]) for name in four)


def test_the_first_rollouts_do_not_depend_on_the_objective(
    whole: Path, small_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    """Same seed, same model, same draws: GSPO and LUSPO start from the same batch and part afterwards."""
    import pandas as pd

    train(small_run("run.steps=2", objective="gspo"), tmp_path / "gspo")
    columns = ["problem_id", "prompt_tokens", "response_tokens", "rollout_logprobs", "reward", "advantage"]
    one, other = (pd.read_parquet(p / "rollouts/step-000001.parquet")[columns] for p in (whole, tmp_path / "gspo"))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    before = [(p / "evals/held-out.jsonl").read_text().splitlines()[0] for p in (whole, tmp_path / "gspo")]
    assert before[0] == before[1]
    assert weight_bytes(tmp_path / "gspo", 2) != b""
    assert records(whole)[0]["objective/loss"] != records(tmp_path / "gspo")[0]["objective/loss"]
    assert records(whole)[1]["ratio/mean"] != records(tmp_path / "gspo")[1]["ratio/mean"]


# Runs `luspo ARGUMENTS` and sends itself a signal at a chosen moment, so that a test needs no luck with time.
DRIVER = textwrap.dedent(
    """
    import os, signal, sys
    from luspo_cli.runs.folder import RunFolder
    from luspo_cli import files
    moment, step, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sys.argv[1:4] = []
    append, sync = RunFolder.append_metrics, files.sync
    def appended(self, record):
        append(self, record)
        if moment == "metrics" and record["step"] == step:
            os.kill(os.getpid(), number)
    def synced(folder):  # a folder's own names come last, when all its files are on the disk
        sync(folder)
        if moment == "checkpoint" and folder.name == f".step-{step:06d}.partial":
            os.kill(os.getpid(), number)
    RunFolder.append_metrics, files.sync = appended, synced
    from luspo_cli.__main__ import main
    main()
    """
)


def signalled(moment: str, step: int, number: int, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", DRIVER, moment, str(step), str(int(number)), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_ctrl_c_finishes_the_step_and_the_run_goes_on_bit_for_bit(
    whole: Path, small_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    arguments = as_arguments(small_run(), tmp_path)
    stopped = signalled("metrics", 3, signal.SIGINT, arguments)
    assert stopped.returncode == 130, stopped.stderr
    assert f"go on with: luspo train --run {tmp_path / 'run'} --resume" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert [record["step"] for record in records(tmp_path / "run")] == [1, 2, 3]
    assert "step-000003" in os.listdir(tmp_path / "run/checkpoints")
    assert "go on with" in (tmp_path / "run/run.log").read_text()
    resumed = signalled("never", 0, 0, ["train", "--run", str(tmp_path / "run"), "--resume"])
    assert resumed.returncode == 0, resumed.stderr
    same_run(whole, tmp_path / "run")


def test_a_killed_run_goes_on_bit_for_bit(whole: Path, small_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    """Killed at step 3, after its record and before its checkpoint's turn: step 3 is computed again."""
    killed = signalled("metrics", 3, signal.SIGKILL, as_arguments(small_run(), tmp_path))
    assert killed.returncode == -signal.SIGKILL
    assert [record["step"] for record in records(tmp_path / "run")] == [1, 2, 3]
    assert os.listdir(tmp_path / "run/checkpoints") == ["step-000002"]
    assert "going on after step 2" in train(small_run(), tmp_path / "run", "resume")
    same_run(whole, tmp_path / "run")


@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_a_checkpoint_goes_on_bit_for_bit(
    whole: Path, small_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    killed = signalled("checkpoint", 4, signal.SIGKILL, as_arguments(small_run(), tmp_path))
    assert killed.returncode == -signal.SIGKILL
    assert sorted(os.listdir(tmp_path / "run/checkpoints")) == [".step-000004.partial", "step-000002"]
    train(small_run(), tmp_path / "run", "resume")
    same_run(whole, tmp_path / "run")
    assert sorted(os.listdir(tmp_path / "run/checkpoints")) == ["step-000004", "step-000005"]


@pytest.mark.parametrize("step", [1, 4])
def test_a_run_that_crashed_goes_on_bit_for_bit(
    whole: Path, small_run: Callable[..., TrainRun], tmp_path: Path, step: int
) -> None:
    """After step 1 there is no checkpoint yet: the run begins anew, but does not repeat the first evaluation."""
    with pytest.raises(ZeroDivisionError):
        train(small_run(), tmp_path / "run", crash_after=step)
    said = train(small_run(), tmp_path / "run", "resume")
    assert f"going on after step {0 if step == 1 else 4}" in said
    same_run(whole, tmp_path / "run")
    found = json.loads((tmp_path / "run/provenance.json").read_text())
    assert [session["after_step"] for session in found.get("resumed", [])] == ([] if step == 1 else [4])


@pytest.mark.parametrize(
    "sets",
    [
        ("model.compute_dtype=bfloat16",),
        ("objective.kl_coefficient=0.1", "objective.entropy_coefficient=0.01", "update.schedule=cosine"),
    ],
    ids=["bfloat16", "reference and schedule"],
)
def test_other_engines_parts_resume_bit_for_bit_too(
    small_run: Callable[..., TrainRun], tmp_path: Path, sets: tuple[str, ...]
) -> None:
    """The packed sampling copy; a reference that must come from the start and not from the checkpoint."""
    config = small_run(*sets)
    train(config, tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        train(config, tmp_path / "broken", crash_after=3)
    train(config, tmp_path / "broken", "resume")
    same_run(tmp_path / "whole", tmp_path / "broken")
    if "objective.kl_coefficient=0.1" in sets:
        distances = [record["policy/kl_ref"] for record in records(tmp_path / "whole")]
        assert distances[-1] > distances[0] > 0


def test_a_damaged_checkpoint_is_passed_over_and_said(
    whole: Path, small_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    with pytest.raises(ZeroDivisionError):
        train(small_run(), tmp_path / "run", crash_after=4)
    file = tmp_path / "run/checkpoints/step-000004/model/model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    said = train(small_run(), tmp_path / "run", "resume")
    assert any("step-000004 is damaged (model/model.safetensors has" in text and "going back" in text for text in said)
    assert "going on after step 2" in said
    same_run(whole, tmp_path / "run")


def test_no_whole_checkpoint_left(small_run: Callable[..., TrainRun], tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        train(small_run(), tmp_path / "run", crash_after=3)
    (tmp_path / "run/checkpoints/step-000002/trainer/optimizer.safetensors").unlink()
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    with pytest.raises(UsageError, match=r"optimizer\.safetensors is missing\) and no other checkpoint is whole"):
        train(small_run(), tmp_path / "run", "resume")
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before  # nothing is cut away before that is clear


def test_resuming_a_finished_run_changes_nothing(
    whole: Path, small_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    assert train(small_run(), tmp_path / "run", "resume")[-1].endswith("is finished: step 5 of 5")
    same_run(whole, tmp_path / "run")
    assert records(whole) == records(tmp_path / "run")


def test_a_longer_run_goes_on_bit_for_bit_and_the_record_says_so(
    whole: Path, small_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    """Three steps, then five: with a constant learning rate these are the five of one run. Other storage is taken as well."""
    path = tmp_path / "run"
    train(small_run("run.steps=3"), path)
    said = train(small_run("run.keep_checkpoints=7"), path, "resume")
    assert {"run.steps is 5 from here on (3 before)", "run.keep_checkpoints is 7 from here on (2 before)"} <= set(said)
    assert weight_bytes(path, STEPS) == weight_bytes(whole, STEPS)
    # Its third step was the last one, and so has an evaluation of its own.
    numbers = [
        [{key: value for key, value in one.items() if "evaluation/" not in key} for one in without_times(folder)]
        for folder in (path, whole)
    ]
    assert numbers[0] == numbers[1]
    stored = json.loads((path / "config.json").read_text())["run"]
    assert (stored["steps"], stored["keep_checkpoints"]) == (5, 7)
    (session,) = json.loads((path / "provenance.json").read_text())["resumed"]
    assert session["settings"]["run.steps"] == {"was": 3, "now": 5}
    assert train(small_run("run.keep_checkpoints=7"), path, "resume")[-1].endswith("is finished: step 5 of 5")
    files = {name: (path / name).read_bytes() for name in ("config.json", "provenance.json", "metrics.jsonl")}
    assert train(small_run("run.keep_checkpoints=9"), path, "resume")[-1] == (
        "warning: nothing to do: the run has all its steps, so run.keep_checkpoints (7 there, 9 now) is neither used nor"
        " recorded; give it together with a larger run.steps"
    )
    assert files == {name: (path / name).read_bytes() for name in files}
    with pytest.raises(UsageError, match=r"another configuration: run\.steps \(5 there, 4 now\); use another --run$"):
        train(small_run("run.steps=4"), path, "resume")


def test_a_longer_run_of_a_falling_learning_rate_is_another_run(
    small_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    train(small_run("run.steps=1", "update.schedule=linear"), tmp_path / "run")
    with pytest.raises(
        UsageError, match=r"run\.steps \(1 there, 2 now\); use another --run: its update\.schedule ends with"
    ):
        train(small_run("run.steps=2", "update.schedule=linear"), tmp_path / "run", "resume")


def test_an_occupied_folder_is_refused_before_anything_is_made(
    whole: Path, small_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUSPO_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UsageError, match="exists; go on with --resume"):
        train(small_run(), whole)
    with pytest.raises(UsageError, match=r"another configuration: run\.seed \(0 there, 7 now\)"):
        train(small_run("run.seed=7"), whole, "resume")
    assert not (tmp_path / "cache").exists()


def test_a_loss_that_is_never_finite_ends_the_run_in_one_sentence(
    small_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luspo_cli.errors import RunError
    from luspo_cli.training import update

    true_loss = update.policy_loss
    monkeypatch.setattr(
        update, "policy_loss", lambda c, logprobs, *a, **k: true_loss(c, logprobs * float("nan"), *a, **k)
    )
    with pytest.raises(RunError, match="the loss was not finite in 3 updates in a row"):
        train(small_run(), tmp_path / "run")
    assert [record["update/skipped_steps"] for record in records(tmp_path / "run")] == [2.0]  # two mini-batches a step
