"""What a run does on a processor without instructions for bfloat16: a warning, and in float32 a packed copy that counts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from luspo_cli import machine
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.run import TrainRun
from luspo_cli.policy import model_files
from luspo_cli.training.dry_run import make_plan
from luspo_cli.training.session import run_training


@pytest.mark.parametrize(
    ("dtype", "cuda", "instructions", "slow"),
    [
        ("bfloat16", False, False, True),
        ("bfloat16", False, True, False),
        ("bfloat16", True, False, False),
        ("float32", False, False, False),
    ],
)
def test_who_is_warned(dtype: str, cuda: bool, instructions: bool, slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "has_cuda", lambda: cuda)
    monkeypatch.setattr(model_files, "multiplies_bfloat16", lambda: instructions)
    config = resolve_train(preset="tiny", objective="luspo", sets=[f"model.compute_dtype={dtype}"])
    assert any("model.compute_dtype=float32" in said for said in make_plan(config).warnings) == slow


def test_the_run_itself_says_so_before_it_samples(
    small_run: Callable[..., TrainRun],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(model_files, "has_cuda", lambda: False)
    monkeypatch.setattr(model_files, "multiplies_bfloat16", lambda: False)
    config = small_run("model.compute_dtype=bfloat16", "run.steps=1")

    class Sampling(Exception):
        pass

    def stop(*_: object, **__: object) -> None:
        raise Sampling

    monkeypatch.setattr("luspo_cli.training.session.make_stages", stop)
    with caplog.at_level(logging.WARNING), pytest.raises(Sampling):
        run_training(config, tmp_path / "run", "refuse", lambda _: None)
    assert [record.message for record in caplog.records if "bfloat16" in record.message]


@pytest.mark.parametrize(
    ("instructions", "preset", "copied"),
    [(False, "qwen2.5-0.5b", True), (True, "qwen2.5-0.5b", False), (False, "tiny", False)],
)
def test_the_dry_run_counts_the_packed_copy_in_the_rollout_alone(
    instructions: bool, preset: str, copied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "multiplies_bfloat16", lambda: instructions)
    plan = make_plan(resolve_train(preset=preset, objective="luspo", sets=["model.compute_dtype=float32"]))
    head = 151936 * 896  # tied to the embedding, which stays beside it
    expected = 4 * (plan.parameters + head) / 2**30 if copied else 0
    memory = plan.memory_gib
    assert memory["sampler_copy"] == pytest.approx(expected, abs=0.01)
    without = sum(memory[part] for part in ("program", "weights", "optimizer", "key_value_cache"))
    assert memory["rollout_peak"] >= without + memory["sampler_copy"] - 0.02
    assert (
        memory["update_peak"]
        < sum(memory[part] for part in ("program", "weights", "optimizer", "gradients", "activations")) + 1
    )
