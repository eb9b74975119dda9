"""Settings of verl: every key is translated, idle with a reason, or refused, and what is said of it is true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from luspo_cli.config.layers import all_keys, merge, nested, resolve_train
from luspo_cli.config.run import TrainRun
from luspo_cli.config.stored import flatten
from luspo_cli.errors import UsageError
from luspo_cli.training.dry_run import make_plan
from luspo_cli.training.verl.keys import FATES
from luspo_cli.training.verl.overrides import VerlFiles, spelled, verl_command
from luspo_cli.training.verl.preflight import faults_of
from luspo_cli.training.verl.script import FORMS, script

ROOT = Path(__file__).resolve().parents[3]
PRESETS = ("qwen2.5-7b", "qwen2.5-vl-7b", "qwen3-30b-a3b", "qwen3-30b-a3b-fsdp2")
FILES = VerlFiles(Path("/there/verl"))
ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"


def config(*sets: str, preset: str = "qwen2.5-7b", objective: str = "luspo") -> TrainRun:
    return resolve_train(preset=preset, objective=objective, sets=["run.engine=verl", *sets])


def settings(run: TrainRun, **options: Any) -> dict[str, Any]:
    return dict(verl_command(run, FILES, **{"name": "x", "problems": 17000, **options}).settings)


OWN = {"objective.name": "loss.py:mine", "objective.base": "gspo", "objective.aggregation": "own"}
CHANGES: dict[str, Any] = {
    "objective.name": [("name", "gspo")],
    "objective.advantage": [("name", "dr_grpo")],
    "objective.ratio": [("name", "grpo")],
    "objective.surrogate": [("name", "cispo")],
    "objective.aggregation": [("name", "gspo")],
    "objective.clip_on": "root",
    "objective.clip_band": "balanced",
    "objective.dual_clip": 3.0,
    "objective.clip_low": 0.001,
    "objective.clip_high": 0.001,
    "objective.ratio_cap": 5.0,
    "objective.length_normalise": "batch",
    "objective.kl_coefficient": 0.1,
    "objective.entropy_coefficient": 0.1,
    "objective.base": "grpo",
    "objective.sha256": "a",
    "model.path": "Qwen/Qwen2.5-3B",
    "model.compute_dtype": "float32",
    "data.train": "data/other",
    "data.held_out": "data/other",
    "data.max_pixels": 1000,
    "data.min_pixels": 1000,
    "rollout.problems": 64,
    "rollout.chat_template": {"enable_thinking": False},
    "rollout.sampler": "in-process",
    "reward.format_weight": 0.5,
    "reward.while_sampling": True,
    "update.mini_batches": 8,
    "update.schedule": "cosine",
    "update.betas": (0.9, 0.99),
    "update.sampler_correction": "sequence-product",
    "evaluation.blind": "noise",
    "model.lora.targets": ("q_proj",),
    "model.sharding": "full",
    "run.track": ("tensorboard",),
    "verl.overrides": ("trainer.balance_batch=False",),
    "verl.strategy": "fsdp",
    "verl.loss": "stock",
    "verl.logprob_tokens_per_micro_batch": 40960,
    "run.rollouts_every": 0,
}
"""Other values of keys where the type alone does not say one, or the preset holds the one that it would."""
BESIDE: dict[str, dict[str, Any]] = {
    "objective.sapo_temperature_positive": {"objective.name": "sapo"},
    "objective.sapo_temperature_negative": {"objective.name": "sapo"},
    **{
        f"objective.vespo_{key}_{sign}": {"objective.name": "vespo"}
        for key in ("k", "lambda")
        for sign in ("positive", "negative")
    },
    "objective.ratio_cap": {"objective.name": "dppo"},
    "objective.length_exponent": {"objective.name": "length_power"},
    "objective.length_normalise": {"objective.name": "length_power"},
    "objective.kl_estimator": {"objective.kl_coefficient": 0.1},
    "objective.base": OWN,
    "objective.sha256": OWN,
    "model.lora.alpha": {"model.lora.rank": 8},
    "model.lora.targets": {"model.lora.rank": 8},
    "reward.overlong_weight": {"reward.overlong_buffer": 4096},
    "update.offload_optimizer": {"verl.offload_optimizer": False},
    "rollout.max_sampling_rounds": {"rollout.dynamic_sampling": True},
    "rollout.stop_after_steps_without_signal": {"rollout.dynamic_sampling": True},
    "rollout.vllm.servers": {"rollout.sampler": "vllm-server"},
    "rollout.vllm.timeout_s": {"rollout.sampler": "vllm-server", "rollout.vllm.servers": ("http://a",)},
    "reward.format": {"reward.format": "boxed", "reward.format_weight": 0.5},
    "reward.format_weight": {"reward.format": "boxed"},
    "update.sampler_correction_cap": {"update.sampler_correction": "sequence-product"},
    "run.checkpoint_last": {"run.checkpoint_every": 0},
    "rollout.vllm.memory_share": {"verl.rollout_memory_share": 0.0},
}
FORKED = {"fork.checkpoint": "a", "fork.sha256": "b", "fork.step": 1, "fork.schedule_steps": 300}
OTHER_TEXT = {
    "objective.kl_estimator": "k1",
    "rollout.vllm.servers": ("http://a",),
    "reward.format": "gsm8k",
    "reward.verifier": "exact",
    "update.optimizer": "adamw-8bit",
    "update.moments": "bfloat16",
    "model.revision": "other",
    "model.kernels.attention": "varlen",
    "model.kernels.head": "liger",
    "model.kernels.decode": "graph",
    "data.profile": "pays",
    "verl.rollout": "sglang",
    "reward.function": ("score.py:score",),
    "update.router_replay": "old",
    "reward.truncated": "mask",
}


def preset_with(key: str, values: dict[str, Any]) -> TrainRun:
    """A preset that has the key, with other values of some keys."""
    base = config(preset="qwen3-30b-a3b" if key.startswith("verl.megatron.") else "qwen2.5-7b").model_dump()
    if key.startswith("objective."):  # the parts that its name fixes are filled in again
        base["objective"] = {"name": values.pop("objective.name", "luspo")}
    for dotted, value in values.items():
        merge(base, {}, nested(dotted, value), "")
    return TrainRun.model_validate(base)


def without_change(key: str) -> TrainRun:
    return preset_with(key, dict(BESIDE.get(key, {})))


def changed(key: str) -> TrainRun:
    """The same with another value of `key`."""
    if key.startswith("fork."):
        return preset_with(key, dict(FORKED))
    now, other = flatten(without_change(key).model_dump()).get(key), CHANGES.get(key, OTHER_TEXT.get(key))
    if isinstance(other, list):
        return preset_with(key, {"objective.name": other[0][1]})
    if other is None and isinstance(now, bool):
        other = not now
    elif other is None and isinstance(now, int):
        other = now + 1
    elif other is None:
        other = now * 0.9 if isinstance(now, float) and now else 0.7
    return preset_with(key, {**BESIDE.get(key, {}), key: other})


def test_every_key_has_one_fate() -> None:
    assert FATES.keys() == {key for key, _ in all_keys()}
    for key, fate in FATES.items():
        assert sum(map(bool, (fate.verl, fate.idle, fate.refused))) == 1, key


IN_THE_DATA = {"data.train", "data.max_pixels", "data.min_pixels", "data.held_out", "evaluation.problems"}
"""What is decided by the problems' file, not by a setting."""
UNREACHED = {
    "rollout.vllm.servers",
    "rollout.vllm.timeout_s",
    "rollout.max_sampling_rounds",
    "rollout.stop_after_steps_without_signal",
    "reward.function_seconds",
    "reward.function_failed_score",
    "reward.truncated_reward",
    "reward.lazy_length_tolerance",
    *(f"reward.cosine_length_{key}" for key in ("correct", "wrong", "at_limit")),
}
"""Idle keys of settings that are refused themselves."""


@pytest.mark.parametrize("key", sorted(FATES))
def test_what_is_said_of_a_key_is_what_happens(key: str) -> None:
    fate = FATES[key]
    if key in UNREACHED or key == "run.engine" or key.startswith(("model.shape.", "warmup.", "data.profile")):
        return  # of made models, and of what the test of refusals meets
    run = changed(key)
    if fate.refused:
        with pytest.raises(UsageError, match=re.escape(key.rpartition(".")[0])):
            settings(run)
    elif fate.idle or key in IN_THE_DATA:
        assert settings(run) == settings(without_change(key))
    else:
        assert settings(run) != settings(without_change(key)), key


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["rollout.dynamic_sampling=true"], "rollout.dynamic_sampling"),
        (["model.lora.rank=8"], "model.lora.rank"),
        (["update.schedule=linear"], "linear"),
        (["update.sampler_correction=sequence"], "geometric mean"),
        (["run.checkpoint_last=false", "run.steps=30"], "run.checkpoint_last"),
        (["model.revision=abc"], "model.revision"),
        (['verl.overrides=["reward_model.reward_manager=dapo"]'], "takes and ignores"),
        (['verl.overrides=["custom_reward_function.path=x.py"]'], "takes and ignores"),
        (['verl.overrides=["actor_rollout_ref.actor.grad_clip=1.0"]'], "update.gradient_clip"),
        (['verl.overrides=["data.truncation=left"]'], "data.max_prompt_tokens"),
        (['verl.overrides=["actor_rollout_ref.actor.policy_loss.loss_mode=luspoo"]'], "decided by the other keys"),
        (['verl.overrides=["+actor_rollout_ref.rollout.name=hf"]'], "decided by the other keys"),
        (['verl.overrides=["actor.fsdp_config.fsdp_size=4"]'], "'actor_rollout_ref.actor.fsdp_config.fsdp_size'"),
        (['verl.overrides=["model_engine=megatron"]'], "decided by the other keys"),
        (['verl.overrides=["policy_loss.loss_mode=gspo"]'], "verl's configuration has no 'policy_loss'"),
        (['verl.overrides=["trainr.balance_batch=False"]'], "did you mean 'trainer'?"),
        (['verl.overrides=["actor_rollout_ref.actor.policy_loss={loss_mode: gspo}"]'], "as a whole holds"),
        (["model.compute_dtype=float32", "verl.sequence_parallel=2"], "verl.sequence_parallel above 1"),
    ],
)
def test_what_verl_would_ignore_or_lacks_is_refused_in_one_sentence(sets: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)) as refused:
        settings(config(*sets))
    assert "\n" not in str(refused.value)


def test_luspo_is_the_plug_ins_loss_or_two_settings_of_stock_verl() -> None:
    ours, stock = settings(config()), settings(config("verl.loss=stock"))
    assert ours[f"{ACTOR}.policy_loss.loss_mode"] == "luspo"
    assert stock[f"{ACTOR}.policy_loss.loss_mode"] == "gspo"
    for found in (ours, stock):
        assert found[f"{ACTOR}.loss_agg_mode"] == "seq-mean-token-sum"
        assert (found[f"{ACTOR}.clip_ratio_low"], found[f"{ACTOR}.clip_ratio_high"]) == (0.002, 0.0025)
        assert found["algorithm.adv_estimator"] == "grpo"
        assert not found[f"{ACTOR}.use_kl_loss"]


def test_a_batch_is_the_same_number_of_rollouts_and_updates() -> None:
    found = settings(config(preset="qwen3-30b-a3b"))
    assert (found["data.train_batch_size"], found[f"{ROLLOUT}.n"], found[f"{ACTOR}.ppo_mini_batch_size"]) == (
        256,
        16,
        32,
    )


def test_an_epoch_never_ends_the_run_before_its_steps() -> None:
    """verl stops at total_epochs: 300 steps of 128 problems out of 128 are 300 epochs."""
    assert settings(config(), problems=128)["trainer.total_epochs"] >= 300


@pytest.mark.parametrize(
    ("preset", "sets", "problems", "said"),
    [
        ("qwen2.5-7b", [], 100, "no step would be made"),
        ("qwen2.5-7b", ["verl.sequence_parallel=3"], 17000, "do not divide by verl.sequence_parallel"),
        ("qwen2.5-7b", ["verl.gpus_per_node=7"], 17000, "does not divide by the 7 data-parallel groups"),
        ("qwen2.5-7b", ["verl.rollout_tensor_parallel=3"], 17000, "verl.rollout_tensor_parallel"),
        ("qwen2.5-7b", ["update.tokens_per_micro_batch=10239"], 17000, "set it to 10240 or more"),
        ("qwen2.5-7b", ["verl.logprob_tokens_per_micro_batch=10239"], 17000, "verl.logprob_tokens_per_micro_batch"),
        ("qwen3-30b-a3b", ["verl.megatron.expert_parallel=3"], 17000, "experts' shares"),
        ("qwen3-30b-a3b", ["verl.megatron.tensor_parallel=3"], 17000, "the shares of verl.megatron"),
        ("qwen2.5-7b", ["model.path=./nowhere"], 17000, "is not a folder"),
        ("qwen2.5-7b", ["verl.rollout_tensor_parallel=8"], 17000, "does not divide the 28 attention heads"),
        ("qwen2.5-7b", ["verl.sequence_parallel=8"], 17000, "does not divide the 28 attention heads"),
        (
            "qwen2.5-7b",
            ["verl.gpus_per_node=7", "rollout.problems=112", "verl.rollout_tensor_parallel=7"],
            17000,
            "the 4 key-value heads",
        ),
    ],
)
def test_what_would_fail_after_a_whole_rollout_is_said_before(
    preset: str, sets: list[str], problems: int, said: str
) -> None:
    (fault,) = faults_of(config(*sets, preset=preset), problems, "auto")
    assert said in fault


def test_shares_of_heads_and_experts_are_those_of_the_model_on_disk(tmp_path: Path) -> None:
    entries = {"num_attention_heads": 12, "num_key_value_heads": 2, "num_experts": 6, "num_experts_per_tok": 2}
    sizes = {"vocab_size": 9, "num_hidden_layers": 1, "hidden_size": 24, "intermediate_size": 8}
    whole = {"model_type": "qwen3_moe", "moe_intermediate_size": 8, **sizes, **entries}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    run = config(
        f"model.path={tmp_path}",
        "verl.megatron.tensor_parallel=8",
        "verl.megatron.expert_parallel=4",
        preset="qwen3-30b-a3b",
    )
    heads, experts = faults_of(run, 17000, "auto")
    assert heads == f"verl.megatron.tensor_parallel = 8 does not divide the 12 attention heads of {tmp_path}"
    assert experts == f"verl.megatron.expert_parallel = 4 does not divide the 6 experts of {tmp_path}"


def test_float32_is_of_every_part_of_verl_that_computes() -> None:
    found = settings(config("model.compute_dtype=float32", "objective.kl_coefficient=0.1"))
    for part in ("actor", "ref"):
        assert found[f"+actor_rollout_ref.{part}.fsdp_config.mixed_precision.param_dtype"] == "fp32"
    assert found[f"{ROLLOUT}.dtype"] == "float32"
    assert found["actor_rollout_ref.model.use_remove_padding"] is False
    assert settings(config())["actor_rollout_ref.model.use_remove_padding"] is True


def test_an_objective_that_verl_cannot_have_is_named() -> None:
    with pytest.raises(UsageError, match="objective length_power cannot be had in verl"):
        settings(config(objective="length_power"))


def test_two_nodes_need_a_cluster_that_runs() -> None:
    assert not list(faults_of(config(preset="qwen3-30b-a3b"), 17000, "auto"))
    (fault,) = faults_of(config(preset="qwen3-30b-a3b"), 17000, "")
    assert "ray start --head" in fault


def test_a_sequence_may_be_longer_than_a_micro_batch_where_gpus_share_it() -> None:
    run = config("verl.sequence_parallel=2", "update.tokens_per_micro_batch=5120")
    assert not list(faults_of(run, 17000, ""))


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "True"), (None, "null"), (1e-6, "1e-06"), ([0.9, 0.95], "[0.9,0.95]"), ("a/b-c.d", "a/b-c.d"),
     ("it's", "'it\\'s'"), ("a b=c", "'a b=c'"), ("12", "'12'"), ("null", "'null'"), ("end\\", "'end\\\\'")],
)  # fmt: skip
def test_values_in_hydras_grammar(value: Any, text: str) -> None:
    assert spelled(value) == text


def test_settings_that_verl_does_not_need_are_named() -> None:
    run = config("update.skip_rows_without_advantage=false", "update.noise_floor_every=5")
    remarks = verl_command(run, FILES, name="x", problems=17000, thought_open=None).remarks
    for word in (
        "update.skip_rows_without_advantage",
        "update.noise_floor_every",
        "verl's ramp begins at 0",
        "<think>",
    ):
        assert sum(word in remark for remark in remarks) == 1, word


@pytest.mark.parametrize("form", FORMS)
def test_the_script_has_one_setting_a_line(form: Any) -> None:
    run = config(preset="qwen3-30b-a3b")
    command = verl_command(run, FILES, name="x", problems=17000, ray_address="auto")
    lines = script(run, command, "python", form).splitlines()
    assert lines[-len(command.settings)].strip(" \\") == command.overrides()[0]
    assert sum("=" in line and line.startswith("    ") for line in lines) >= len(command.settings)
    assert ("#SBATCH --nodes=2" in lines) == (form == "slurm")
    assert any("ray job submit" in line for line in lines) == (form == "ray-job")


def test_a_key_of_verl_needs_the_engine() -> None:
    with pytest.raises(UsageError, match=r"verl.nodes is for verl alone"):
        resolve_train(preset="qwen2.5-7b", sets=["verl.nodes=2"])
    with pytest.raises(UsageError, match=r"does not fit our own engine"):
        make_plan(resolve_train(preset="qwen3-30b-a3b"))
    assert resolve_train(preset="qwen2.5-7b").verl.rollout_memory_share == 0.8


def test_a_made_model_is_not_for_verl() -> None:
    with pytest.raises(
        UsageError, match=r"made by our own engine, .*: set model\.path to another one, or train without verl$"
    ):
        settings(config(preset="tiny"))


def test_the_page_shows_what_becomes_of_every_key() -> None:
    page = (ROOT / "docs" / "verl.md").read_text()
    for key, fate in FATES.items():
        if not key.startswith(("model.shape.", "warmup.", "fork.", "model.lora.")):
            assert row_of(key, fate) in page, key


def row_of(key: str, fate: Any) -> str:
    """The key's row in docs/verl.md."""
    keys = (
        ", ".join(f"`{name}`" for name in fate.verl.split(", "))
        if re.match(r"[\w.+]+$", fate.verl.split(", ")[0])
        else fate.verl
    )
    said = "; ".join(
        filter(
            None, (keys, fate.idle and f"not read: {fate.idle}", fate.refused and f"refused: {fate.refused}", fate.note)
        )
    )
    return f"| `{key}` | {said} |"
