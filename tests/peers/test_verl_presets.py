"""Every preset that verl can train, as settings that the real verl composes and validates, read back as they were meant.

Run with `make test-peers`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luspo_cli.config.layers import resolve_train
from luspo_cli.training.verl.ask import refusal
from luspo_cli.training.verl.further import LEGACY_REWARD, TOP_GROUPS
from luspo_cli.training.verl.overrides import VerlFiles, verl_command

pytestmark = pytest.mark.verl
PRESETS = ("qwen2.5-0.5b", "qwen2.5-7b", "qwen2.5-vl-7b", "qwen3-30b-a3b", "qwen3-30b-a3b-fsdp2")
OBJECTIVES = ("grpo", "dr_grpo", "dapo", "gspo", "luspo", "cispo", "sapo", "gmpo", "fspo")
FILES = VerlFiles(Path("/there/it's a=b, {run}/verl"))


@pytest.fixture(scope="module", autouse=True)
def version() -> None:
    verl = pytest.importorskip("verl", reason="needs verl in another environment: make peers")
    assert verl.__version__ == "0.9.1"


def overrides(preset: str, objective: str = "luspo", *sets: str) -> list[str]:
    run = resolve_train(preset=preset, objective=objective, sets=["run.engine=verl", *sets])
    return verl_command(run, FILES, name="x", problems=17000, ray_address="auto").overrides()


def composed(settings: list[str]) -> Any:
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=[one for one in settings if not one.startswith("hydra.")])


@pytest.mark.parametrize("preset", PRESETS)
def test_verl_takes_every_preset(preset: str) -> None:
    # This preset's micro-batch of 2,048 tokens is for a small machine; verl checks nothing of it here.
    assert refusal(overrides(preset)) == ""


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_verl_takes_every_objective(objective: str) -> None:
    assert refusal(overrides("qwen2.5-7b", objective)) == ""


def test_other_values_are_taken_too() -> None:
    sets = [
        "objective.kl_coefficient=0.01", "objective.entropy_coefficient=0.001", "update.schedule=cosine",
        "update.sampler_correction=sequence-product", "rollout.chat_template={enable_thinking=false}", "evaluation.every=0",
        "run.rollouts_every=0", "verl.rollout=sglang", 'verl.overrides=["trainer.balance_batch=False"]',
    ]  # fmt: skip
    assert refusal(overrides("qwen2.5-7b", "luspo", *sets)) == ""
    assert refusal(overrides("qwen3-30b-a3b", "luspo", "update.schedule=linear")) == ""
    assert (
        refusal(overrides("qwen2.5-7b", "luspo", "model.compute_dtype=float32", "objective.kl_coefficient=0.1")) == ""
    )


def test_values_arrive_as_they_were_meant() -> None:
    found = composed(overrides("qwen2.5-7b"))
    actor = found.actor_rollout_ref.actor
    assert actor.policy_loss.loss_mode == "luspo"
    assert (actor.loss_agg_mode, actor.clip_ratio_low, actor.clip_ratio_high) == ("seq-mean-token-sum", 2e-3, 2.5e-3)
    assert actor.optim.lr == 1e-6
    assert list(actor.optim.betas) == [0.9, 0.999]
    assert found.data.train_files == str(FILES.train)
    assert found.trainer.default_local_dir == str(FILES.checkpoints)
    assert found.ray_kwargs.ray_init.address == "auto"
    assert str(FILES.log(0)) == found.ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH
    assert found.reward.custom_reward_function.path == "pkg://luspo_cli.verl_plugin.reward"
    assert found.reward.reward_kwargs.overlong_buffer_cfg.len == 4096
    assert list(found.trainer.logger) == ["console", "file"]


def test_the_groups_that_an_override_may_name_are_verls() -> None:
    assert {"model_engine", *TOP_GROUPS, *LEGACY_REWARD} == set(composed(overrides("qwen2.5-7b")))


def test_megatron_is_composed_as_megatron() -> None:
    actor = composed(overrides("qwen3-30b-a3b")).actor_rollout_ref.actor
    assert actor.strategy == "megatron"
    shares = actor.megatron
    assert (shares.tensor_model_parallel_size, shares.expert_model_parallel_size) == (2, 8)
    assert shares.override_transformer_config.moe_router_dtype == "fp32"
    assert composed(overrides("qwen3-30b-a3b-fsdp2")).actor_rollout_ref.actor.strategy == "fsdp2"


def test_a_misspelt_key_is_refused_before_ray_starts() -> None:
    said = refusal([*overrides("qwen2.5-7b"), "trainer.no_such_key=1"])
    assert "no_such_key" in said
    assert "\n" not in said
