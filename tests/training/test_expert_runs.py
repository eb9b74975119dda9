"""Whole runs of a model of experts of seconds: replay, adapters, exact resume, what is stored, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from doubles.runs import records, train
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.model import ModelConfig
from luspo_cli.config.run import TrainRun
from luspo_cli.errors import UsageError
from luspo_cli.policy.loading import load_model
from luspo_cli.runs.stored_rollouts import read_columns
from luspo_cli.training.dry_run import make_plan

EXPERTS = (
    "model.shape.experts.number=4",
    "model.shape.experts.feed_forward=24",
    "run.steps=4",
    "run.checkpoint_every=2",
    "evaluation.every=0",
)
OTHER = {
    "replay": ("update.router_replay=rollout", "model.compute_dtype=bfloat16"),
    "balanced": ("update.router_aux_coefficient=0.01", "model.gradient_checkpointing=true"),
    "shared": ("model.shape.experts.shared_feed_forward=16", "update.router_replay=old"),
    "adapters": ("model.lora.rank=2", 'model.lora.targets=["q_proj","o_proj"]', "model.compute_dtype=bfloat16"),
}


@pytest.mark.parametrize("kind", OTHER)
def test_a_killed_run_ends_with_the_same_bits(small_run: Callable[..., TrainRun], tmp_path: Path, kind: str) -> None:
    if kind == "adapters":
        pytest.importorskip("peft", reason="adapters need the extra lora: pip install 'luspo[lora]'")
    config = small_run(*EXPERTS, *OTHER[kind])
    train(config, tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        train(config, tmp_path / "killed", crash_after=2)
    train(config, tmp_path / "killed", "resume")
    part = "adapter/adapter_model" if kind == "adapters" else "model/model"
    one, other = (
        load_file(tmp_path / name / "checkpoints/step-000004" / f"{part}.safetensors") for name in ("whole", "killed")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())
    for record in records(tmp_path / "whole"):
        assert 1 <= record["router/load_max_over_mean"] <= 2
        assert 0 <= record["router/changed_fraction"] <= 1
        assert ("router/aux_loss" in record) is (kind == "balanced")
        assert ("router/sampler_changed_fraction" in record) is (kind == "replay")


def test_a_checkpoint_is_read_as_any_other_model_and_rollouts_hold_what_changed(
    small_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    train(small_run(*EXPERTS, "update.learning_rate=0.02"), tmp_path / "run")
    folder = tmp_path / "run/checkpoints/step-000004/model"
    assert any(".experts.3.up_proj.weight" in name for name in load_file(folder / "model.safetensors"))
    assert load_model(ModelConfig(path=str(folder))).has_experts
    columns = ["mini_batch", "response_length", "experts_changed", "token_log_ratios"]
    rows = read_columns(tmp_path / "run/rollouts/step-000002.parquet", columns).to_pylist()
    trained = [row for row in rows if row["mini_batch"] is not None]
    assert trained
    for row in trained:
        assert len(row["experts_changed"]) == len(row["token_log_ratios"]) == row["response_length"]
        assert set(row["experts_changed"]) <= ({0} if row["mini_batch"] == 0 else {0, 1})


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        (("update.router_replay=old",), "update.router_replay is for models of experts .* and model 'made' is none"),
        (("update.router_aux_coefficient=0.1",), "update.router_aux_coefficient is for models of experts"),
    ],
)
def test_what_only_experts_have_is_refused_elsewhere(
    small_run: Callable[..., TrainRun], tmp_path: Path, sets: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        train(small_run(*sets), tmp_path / "run")
    assert any("is for models of experts" in reason for reason in make_plan(small_run(*sets)).missing)


def test_experts_of_another_sampler_are_refused(small_run: Callable[..., TrainRun]) -> None:
    config = small_run(*EXPERTS, "update.router_replay=rollout")
    assert config.routing_refused("in-process", has_experts=True) is None
    for sampler in ("vllm", "vllm-server"):
        reason = config.routing_refused(sampler, has_experts=True)
        assert reason is not None
        assert "set rollout.sampler = 'in-process', or update.router_replay = 'old'" in reason


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        (("update.router_replay=old", "update.mini_batches=1"), "changes nothing with update.mini_batches = 1"),
        (("model.shape.experts.per_token=3",), "needs model.shape.experts.number: at 0 there are none"),
        (("model.shape.experts.number=4", "model.shape.experts.per_token=5"), r"per_token \(5\) must not exceed"),
        (
            ("model.shape.experts.number=4", "model.shape.experts.dense_layers=2"),
            "must be smaller than model.shape.layers",
        ),
    ],
)
def test_settings_that_do_not_fit(sets: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        resolve_train(preset="tiny", sets=sets)
