"""A fork goes on from another run's checkpoint: with the parent's own settings it takes the parent's next steps bit for bit."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState

from doubles.runs import records, train, weight_bytes
from luspo_cli.config.fork import ForkConfig
from luspo_cli.config.forking import Variant, fork_configuration
from luspo_cli.config.run import TrainRun
from luspo_cli.errors import RunError, UsageError
from luspo_cli.runs.checkpoints import fork_checkpoint, manifest_sha256
from luspo_cli.runs.draws import FIRST_STEP, HELD_OUT
from luspo_cli.training.dry_run import make_plan
from luspo_cli.training.session import run_training

KEEP_ALL = ("run.keep_checkpoints=9", "run.checkpoint_every=1", "update.schedule=linear", "rollout.group_size=4")
OWN = ("step", "tokens/total", "ratio/noise_floor", "evaluation/", "time/", "sampler/")
"""Keys in which a fork's record may differ from the parent's of the same step: its own count, and what it measures besides."""


@pytest.fixture(scope="session")
def parent(small_run: Callable[..., TrainRun], tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainRun, Path]:
    """A run of five steps with all its checkpoints, under a learning rate that falls to 0."""
    path, config = tmp_path_factory.mktemp("parent") / "run", small_run(*KEEP_ALL)
    train(config, path)
    return config, path


@pytest.fixture
def fork(parent: tuple[TrainRun, Path]) -> Callable[..., TrainRun]:
    """Return a function from variant and settings to the configuration of a fork of step 2."""
    config, path = parent
    checkpoint = path / "checkpoints/step-000002"
    section = ForkConfig(checkpoint=str(checkpoint), sha256=manifest_sha256(checkpoint), step=2, schedule_steps=5)

    def configure(*sets: str, objective: str = "luspo", replicate: int = 0, steps: int = 3) -> TrainRun:
        keep = ("run.checkpoint_last=true", *sets)
        return fork_configuration(config, section, Variant(objective), replicate, steps, sets=keep)

    return configure


def trained(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if not key.startswith(OWN)}


def ctrl_c_after_step_1(metrics: dict[str, Any]) -> None:
    if metrics["step"] == 1:
        signal.raise_signal(signal.SIGINT)


def evaluations(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "evals/held-out.jsonl").read_text().splitlines()]


def test_a_fork_with_the_parents_settings_takes_the_parents_next_steps(
    parent: tuple[TrainRun, Path], fork: Callable[..., TrainRun], tmp_path: Path
) -> None:
    _, path = parent
    train(fork(), tmp_path / "fork")
    assert weight_bytes(tmp_path / "fork", 3) == weight_bytes(path, 5)
    state = "trainer/optimizer.safetensors"
    one, other = (tmp_path / f"fork/checkpoints/step-000003/{state}", path / f"checkpoints/step-000005/{state}")
    assert one.read_bytes() == other.read_bytes()
    assert list(map(trained, records(tmp_path / "fork"))) == list(map(trained, records(path)[2:]))
    assert [record["step"] for record in records(tmp_path / "fork")] == [1, 2, 3]
    rates = [record["update/learning_rate"] for record in records(tmp_path / "fork")]
    assert rates == pytest.approx([1e-3 * left / 5 for left in (3, 2, 1)])


def test_provenance_names_the_parent(
    parent: tuple[TrainRun, Path], fork: Callable[..., TrainRun], tmp_path: Path
) -> None:
    train(fork(steps=1), tmp_path / "fork")
    found = json.loads((tmp_path / "fork/provenance.json").read_text())
    checkpoint = parent[1] / "checkpoints/step-000002"
    assert found["fork"] == {"run": str(parent[1]), "step": 2, "sha256": manifest_sha256(checkpoint)}
    assert list(found["model"]["weights"]) == ["model.safetensors"]
    listed = json.loads((checkpoint / "checkpoint.json").read_text())["files"]["model/model.safetensors"]
    assert found["model"]["weights"]["model.safetensors"] == listed["sha256"]


def test_given_rollouts_and_draws_are_trained_on_as_sampled_ones(
    fork: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sibling that is handed step 1 and the parent's draws ends with the bits of one that draws them itself."""
    from luspo_cli.rollout.in_process.sampler import InProcessSampler

    train(fork(), tmp_path / "donor")
    train(fork(objective="gspo"), tmp_path / "own")
    _hand_over(tmp_path / "donor", tmp_path / "given")
    calls, sample = [], InProcessSampler.sample_groups
    monkeypatch.setattr(
        InProcessSampler, "sample_groups", lambda self, *rest, **more: calls.append(1) or sample(self, *rest, **more)
    )
    train(fork(objective="gspo"), tmp_path / "given")
    assert len(calls) == 3  # steps 2 and 3, and the evaluation after them
    assert weight_bytes(tmp_path / "given", 3) == weight_bytes(tmp_path / "own", 3)
    assert weight_bytes(tmp_path / "given", 3) != weight_bytes(tmp_path / "donor", 3)
    assert evaluations(tmp_path / "given") == evaluations(tmp_path / "own")
    assert _first_step(tmp_path / "given") == _first_step(tmp_path / "donor")


def test_the_distance_from_the_parent(
    parent: tuple[TrainRun, Path], fork: Callable[..., TrainRun], tmp_path: Path
) -> None:
    """0 before the first update and above it afterwards; equal to a computation from the stored weights."""
    import torch

    from luspo_cli.policy.loading import load_model
    from luspo_cli.runs.draws import read_parent_draws

    config = fork()
    train(config, tmp_path / "fork")
    start, end = evaluations(tmp_path / "fork")
    assert (start["step"], end["step"]) == (0, 3)
    assert start["evaluation/kl_parent"] == 0
    assert end["evaluation/kl_parent"] > 0
    assert start["evaluation/reweighted_sample_size"] == pytest.approx(1)
    for own, weighted in (("response_length/mean", "reweighted_length"), ("accuracy", "reweighted_accuracy")):
        assert start[f"evaluation/{weighted}"] == pytest.approx(start[f"evaluation/{own}"])
    draws = read_parent_draws(tmp_path / "fork" / HELD_OUT, config.evaluation.samples)
    assert draws is not None
    drawn = [rollout for group in draws.groups for rollout in group]
    lengths = [rollout.response_length for rollout in drawn]
    assert sum(lengths) / len(lengths) == pytest.approx(start["evaluation/response_length/mean"])
    model = load_model(
        config.model.model_copy(update={"path": str(tmp_path / "fork/checkpoints/step-000003/model")})
    ).model
    kl = entropy = 0.0
    weights = []
    with torch.no_grad():
        for rollout, before in zip(drawn, draws.logprobs, strict=True):
            tokens = torch.tensor([[*rollout.prompt_tokens, *rollout.response_tokens]])
            every = model(input_ids=tokens).logits[0].double().log_softmax(-1)[len(rollout.prompt_tokens) - 1 : -1]
            chosen = every.gather(-1, torch.tensor(rollout.response_tokens)[:, None])[:, 0]
            moved = torch.tensor(before, dtype=torch.float64) - chosen
            kl += float((torch.exp(-moved) - 1 + moved).sum())
            entropy -= float((every.exp() * every).sum())
            weights.append(math.exp(-float(moved.sum())))
    assert end["evaluation/kl_parent"] == pytest.approx(kl / sum(lengths), rel=1e-3)
    assert end["evaluation/entropy"] == pytest.approx(entropy / sum(lengths), rel=1e-4)
    weighted = sum(weight * length for weight, length in zip(weights, lengths, strict=True)) / sum(weights)
    assert end["evaluation/reweighted_length"] == pytest.approx(weighted, rel=1e-4)
    assert end["evaluation/reweighted_length"] != pytest.approx(start["evaluation/reweighted_length"], rel=1e-6)
    sizes = sum(weights) ** 2 / (len(weights) * sum(weight**2 for weight in weights))
    assert end["evaluation/reweighted_sample_size"] == pytest.approx(sizes, rel=1e-4)


@pytest.mark.parametrize("step", [1, 2])
def test_a_fork_that_crashed_goes_on_bit_for_bit(fork: Callable[..., TrainRun], tmp_path: Path, step: int) -> None:
    config = fork("run.checkpoint_every=2", "evaluation.every=1")
    train(config, tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        train(config, tmp_path / "fork", crash_after=step)
    train(config, tmp_path / "fork", "resume")
    assert weight_bytes(tmp_path / "fork", 3) == weight_bytes(tmp_path / "whole", 3)
    assert evaluations(tmp_path / "fork") == evaluations(tmp_path / "whole")
    assert list(map(trained, records(tmp_path / "fork"))) == list(map(trained, records(tmp_path / "whole")))


KILLED_AFTER_STEP_2 = """
import os, signal, sys
from pathlib import Path
from luspo_cli.runs.folder import RunFolder
from luspo_cli.runs.resume import read_configuration
from luspo_cli.training.session import run_training
append = RunFolder.append_metrics
def appended(self, record):
    append(self, record)
    if record["step"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
RunFolder.append_metrics = appended
run = Path(sys.argv[1])
run_training(read_configuration(run), run, "resume", lambda record: None)
"""


def test_a_killed_fork_goes_on_bit_for_bit(fork: Callable[..., TrainRun], tmp_path: Path) -> None:
    """Killed after the record of step 2, before its checkpoint: that step is computed again."""
    config = fork("run.checkpoint_every=1")
    train(config, tmp_path / "whole")
    (tmp_path / "fork").mkdir()
    (tmp_path / "fork/config.json").write_text(config.model_dump_json())
    killed = subprocess.run([sys.executable, "-c", KILLED_AFTER_STEP_2, str(tmp_path / "fork")], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [record["step"] for record in records(tmp_path / "fork")] == [1, 2]
    assert "going on after step 1" in train(config, tmp_path / "fork", "resume")
    assert weight_bytes(tmp_path / "fork", 3) == weight_bytes(tmp_path / "whole", 3)
    assert evaluations(tmp_path / "fork") == evaluations(tmp_path / "whole")


def test_a_finished_fork_without_a_checkpoint_is_not_trained_again(
    fork: Callable[..., TrainRun], tmp_path: Path
) -> None:
    config = fork("run.checkpoint_last=false", steps=1)
    train(config, tmp_path / "fork")
    assert not (tmp_path / "fork/checkpoints").exists()
    before = (tmp_path / "fork/metrics.jsonl").read_bytes()
    with pytest.raises(UsageError, match=r"is finished and kept no checkpoint of its last step"):
        train(config, tmp_path / "fork", "resume")
    assert (tmp_path / "fork/metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(("every", "kept"), [(0, []), (3, ["step-000003"])])
def test_a_fork_that_was_stopped_and_finished_keeps_no_checkpoint_of_the_stop(
    fork: Callable[..., TrainRun], tmp_path: Path, every: int, kept: list[str]
) -> None:
    """Asked to stop after step 1, it writes a checkpoint after step 2; those of `run.checkpoint_every` stay."""
    config, folder = fork("run.checkpoint_last=false", f"run.checkpoint_every={every}"), tmp_path / "fork/checkpoints"
    AcceleratorState._reset_state()
    stopped = run_training(config, tmp_path / "fork", "refuse", ctrl_c_after_step_1)
    assert (stopped.last_step, stopped.finished, stopped.stopped_by) == (2, False, signal.SIGINT)
    assert [path.name for path in folder.iterdir()] == ["step-000002"]
    assert "going on after step 2" in train(config, tmp_path / "fork", "resume")
    assert [record["step"] for record in records(tmp_path / "fork")] == [1, 2, 3]
    assert [path.name for path in folder.glob("*")] == kept
    assert folder.exists() == bool(kept)


def test_a_fork_that_is_stopped_in_its_last_step_is_finished(fork: Callable[..., TrainRun], tmp_path: Path) -> None:
    config = fork("run.checkpoint_last=false", steps=2)
    AcceleratorState._reset_state()
    outcome = run_training(config, tmp_path / "fork", "refuse", ctrl_c_after_step_1)
    assert (outcome.last_step, outcome.finished) == (2, True)
    assert not (tmp_path / "fork/checkpoints").exists()


def test_replicates_have_other_problems_and_draws(fork: Callable[..., TrainRun], tmp_path: Path) -> None:
    train(fork(steps=1), tmp_path / "one")
    train(fork(steps=1, replicate=1), tmp_path / "other")
    one, other = _first_step(tmp_path / "one"), _first_step(tmp_path / "other")
    assert not {row[0] for row in one} & {row[0] for row in other}
    assert all(row[2] != against[2] for row, against in zip(one, other, strict=True))
    assert fork(replicate=1).run.seed == 100


def test_a_checkpoint_that_changed_is_refused(
    parent: tuple[TrainRun, Path], fork: Callable[..., TrainRun], tmp_path: Path
) -> None:
    config = fork(steps=1)
    moved = tmp_path / "checkpoints/step-000002"
    shutil.copytree(config.fork.checkpoint, moved)
    assert fork_checkpoint(config.fork) is not None
    section = config.fork.model_copy(update={"checkpoint": str(moved)})
    manifest = moved / "checkpoint.json"
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(UsageError, match=r"is not the one that the fork was made of \(fork\.sha256 "):
        train(config.model_copy(update={"fork": section}), tmp_path / "run")
    (moved / "trainer/state.json").unlink()
    with pytest.raises(UsageError, match=r"is damaged \(trainer/state\.json is missing\)"):
        fork_checkpoint(section)
    shutil.rmtree(moved)
    with pytest.raises(UsageError, match="is not there; put it back"):
        fork_checkpoint(section)
    assert make_plan(config).missing == []
    assert f"fork.checkpoint {moved} is not there" in make_plan(config.model_copy(update={"fork": section})).missing[0]
    assert not (tmp_path / "run").exists()


def test_rollouts_of_another_replicate_are_refused(fork: Callable[..., TrainRun], tmp_path: Path) -> None:
    train(fork(steps=1), tmp_path / "donor")
    _hand_over(tmp_path / "donor", tmp_path / "run")
    with pytest.raises(RunError, match=r"start/held-out\.parquet does not hold 2 responses to problem"):
        train(fork(steps=1, replicate=1), tmp_path / "run")


def _hand_over(donor: Path, sibling: Path) -> None:
    (sibling / "start").mkdir(parents=True)
    shutil.copy(donor / "rollouts/step-000001.parquet", sibling / FIRST_STEP)
    shutil.copy(donor / HELD_OUT, sibling / HELD_OUT)
    (sibling / "config.json").write_text('{"run": {}}')


def _first_step(path: Path) -> list[tuple[Any, ...]]:
    import pyarrow.parquet as pq

    columns = [
        "problem_id",
        "prompt_tokens",
        "response_tokens",
        "rollout_logprobs",
        "reward",
        "advantage",
        "stop_reason",
    ]
    rows = pq.read_table(path / "rollouts/step-000001.parquet", columns=columns).to_pylist()
    return [tuple(row.values()) for row in rows]
