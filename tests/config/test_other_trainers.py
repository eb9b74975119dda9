"""Settings of TRL and verl in files: which loss they run, which of our objectives that is, and what is warned about."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from luspo_cli.app import app
from luspo_cli.config.objective import NAMED_OBJECTIVES, ObjectiveConfig, resolve
from luspo_cli.config.other_trainers.files import read_peer_loss
from luspo_cli.config.other_trainers.loss import PeerLoss
from luspo_cli.config.other_trainers.trl import trl_loss
from luspo_cli.config.other_trainers.trl_keys import LOSS_KEYS, WHOLE
from luspo_cli.config.other_trainers.verl import KEYS, verl_loss
from luspo_cli.config.peers import ACTOR, trl_settings, verl_settings, verl_text
from luspo_cli.config.verl_losses import verl_plugin_settings
from luspo_cli.errors import UsageError

LIMIT = 640
SEQUENCE = {"importance_sampling_level": "sequence"}
GSPO = {"policy_loss.loss_mode": "gspo"}
MIXES = {
    **{name: resolve(name) for name in NAMED_OBJECTIVES},
    "luspo with another range": resolve("luspo", clip_low=1e-3, clip_high=3e-3),
    "grpo with a dual clip": resolve("grpo", dual_clip=2.5),
    "grpo with a KL term": resolve("grpo", kl_coefficient=0.04),
    "dapo with an entropy term": resolve("dapo", entropy_coefficient=0.01),
    "dppo with a cap": resolve("dppo", ratio_cap=2.0),
    "sequence ratio under a token mean": resolve(
        "custom", advantage="group_mean", ratio="sequence", surrogate="clip", aggregation="token-mean", clip_low=0.01,
        clip_high=0.02,
    ),
    "std of the batch": resolve(
        "custom", advantage="group_mean_batch_std", ratio="token", surrogate="clip", aggregation="token-mean", clip_low=0.2,
        clip_high=0.3,
    ),
}  # fmt: skip


def same(found: ObjectiveConfig | None, config: ObjectiveConfig) -> None:
    assert found is not None
    for entry in fields(config):
        assert getattr(found, entry.name) == getattr(config, entry.name), entry.name


@pytest.mark.parametrize("name", MIXES)
def test_the_settings_that_we_print_for_trl_are_read_back(name: str) -> None:
    settings = trl_settings(MIXES[name], LIMIT)
    if not settings.missing and settings.config_class == "GRPOConfig" and MIXES[name].aggregation != "length-power":
        same(trl_loss(settings.values, "a file").objective, MIXES[name])
    else:
        assert name in ("dapo_prompt_mean", "balanced", "length_power", "fspo", "gmpo", "reinforce") or "dppo" in name


@pytest.mark.parametrize("name", MIXES)
def test_the_settings_that_we_print_for_verl_are_read_back(name: str, tmp_path: Path) -> None:
    settings = verl_settings(MIXES[name], LIMIT)
    if not settings.missing and MIXES[name].aggregation != "length-power":
        script = tmp_path / "run.sh"
        script.write_text(
            "python -m verl.trainer.main_ppo " + verl_text(type(settings)(settings.values)), encoding="utf-8"
        )
        same(read_peer_loss(script).objective, MIXES[name])
    ours = verl_plugin_settings(MIXES[name], LIMIT)
    if not ours.missing:
        same(verl_loss(ours.values, "a file").objective, MIXES[name])


def text(loss: PeerLoss) -> str:
    return "\n".join(" ".join(row) for row in loss.rows())


def trl(**values: Any) -> PeerLoss:
    return trl_loss({"max_completion_length": 4096, "loss_type": "grpo", **values}, "trl.yaml")


def verl(**values: Any) -> PeerLoss:
    named = {"clip_ratio_c": 1e9, **values}
    return verl_loss(
        {"algorithm.adv_estimator": "grpo", **{f"{ACTOR}.{key}": value for key, value in named.items()}}, "verl.sh"
    )


def test_trls_own_values_are_a_token_mean_that_is_never_off_policy() -> None:
    loss = trl_loss({}, "trl.yaml")
    same(loss.objective, resolve("dapo", clip_high=0.2))
    assert loss.equals() == "dapo, with clip_high 0.2 (dapo's own is 0.28)"
    said = text(loss)
    assert "without loss_type it runs dapo" in said
    assert "off-policy by nothing" in said
    assert "max_completion_length is TRL's own 512" in said
    assert "dapo_prompt_mean" in said
    assert loss.defaults["epsilon"] == 0.2


def test_the_loss_type_alone_is_not_luspo() -> None:
    loss = trl(loss_type="luspo", epsilon=2e-3, epsilon_high=2.5e-3)
    assert "loss_type=luspo alone is not LUSPO" in text(loss)
    assert loss.equals().startswith("none of our names; nearest luspo (ratio token, not sequence)")
    whole = trl(loss_type="luspo", importance_sampling_level="sequence", epsilon=2e-3, epsilon_high=2.5e-3)
    assert whole.equals() == "luspo, with its own numbers"
    assert "alone is not LUSPO" not in text(whole)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (SEQUENCE, "the clip range 0.2 / 0.2 is a token ratio's and hardly ever acts"),
        ({**SEQUENCE, "loss_type": "dapo", "epsilon": 3e-4}, "LUSPO over the mini-batch's mean length"),
        ({**SEQUENCE, "loss_type": "dr_grpo", "epsilon": 3e-4}, "LUSPO over the response limit"),
        ({"use_vllm": True}, "a mean difference of 0.011 nat does it at 100 tokens, 0.0011 at 1000"),
        ({"beta": 0.04}, "its KL term is multiplied by the importance ratio"),
        ({"beta": 0.04}, "use_bias_correction_kl is on by default"),
        ({"loss_type": "bnpo"}, "its M is that of one micro-batch"),
        ({"loss_type": "cispo"}, "the cap of cispo is epsilon_high itself, 0.2"),
        ({"mask_truncated_completions": True}, "truncated responses have no loss and still count in N"),
        ({"top_entropy_quantile": 0.2}, "only the 20% of tokens"),
        ({"off_policy_mask_threshold": 0.5}, "beyond 0.5 have no loss"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "each reward function is normalised in its group"),
        ({"num_iterations": 2}, "each response is trained on 2 times, a batch makes 2 optimizer steps"),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 8}, "a batch makes 4 optimizer steps"),
        ({"epsilon_hihg": 0.3}, "epsilon_hihg = 0.3: TRL 1.16 has no such key (did you mean 'epsilon_high'?)"),
        ({"scale_rewards": False}, "A_i = R_i − mean(R)"),
        ({"scale_rewards": "batch"}, "std(R of all groups)"),
    ],
)  # fmt: skip
def test_traps_of_trl(values: dict[str, Any], said: str) -> None:
    assert said in text(trl(**values))


def test_no_trap_where_there_is_none() -> None:
    quiet = trl(
        scale_rewards="none",
        loss_type="grpo",
        num_iterations=4,
        use_vllm=True,
        vllm_importance_sampling_correction=False,
    )
    assert not quiet.warnings
    assert not quiet.differences
    assert not quiet.unread


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({**GSPO, "loss_agg_mode": "seq-mean-token-sum"}, "verl before 0.9.1 does not read loss_agg_mode"),
        (GSPO, "loss_agg_mode is token-mean unless set"),
        ({**GSPO, "loss_agg_mode": "seq-mean-token-mean"}, "hardly ever acts"),
        ({"clip_ratio": 0.1}, "actor.clip_ratio=0.1 changes nothing"),
        ({}, "DAPO's paper averages within each prompt"),
        ({"loss_agg_mode": "seq-mean-token-sum-norm"}, "its L is the padded width of each micro-batch"),
        ({"policy_loss.loss_mode": "sapo"}, f"its sapo ignores {ACTOR}.loss_agg_mode=token-mean, verl's own value,"),
        ({"loss_agg_mode": "token-sum"}, "none of our aggregations does that"),
        ({"policy_loss.loss_mode": "clip_cov"}, "clip_cov: none of our surrogates is that"),
        ({"policy_loss.loss_mode": "gsppo"}, "has no such loss (did you mean 'gspo'?)"),
        ({"policy_loss.loss_mode": "luspo_gspo"}, "refuses to start with"),
        ({"policy_loss.clip_cov_ratio": 0.1}, "policy_loss.clip_cov_ratio=0.1: not read here"),
        ({"ppo_epochs": 2}, "each response is trained on 2 times, a batch makes 8 optimizer steps"),
    ],
)  # fmt: skip
def test_traps_of_verl(values: dict[str, Any], said: str) -> None:
    assert said in text(verl(**values))


def test_verl_keeps_a_dual_clip_unless_told() -> None:
    loss = verl_loss({"algorithm.adv_estimator": "grpo", f"{ACTOR}.loss_agg_mode": "seq-mean-token-mean"}, "verl.sh")
    assert loss.equals() == "grpo, with dual_clip 3.0 (grpo's own is null)"
    assert "has a dual clip at 3.0 unless" in text(loss)


def test_verls_own_advantage_is_none_of_ours() -> None:
    loss = verl_loss({f"{ACTOR}.policy_loss.loss_mode": "gspo"}, "verl.sh")
    assert loss.objective is None
    assert loss.equals() == (
        "none of our objectives: algorithm.adv_estimator=gae, which learns a value of each token: none of our advantages is that"
    )


SCRIPT = """#!/usr/bin/env bash
# actor_rollout_ref.actor.clip_ratio_low=9
export mode=gspo
low=0.0003
high=${HIGH:-0.0004}
limit=$((1024 * 2))
CUDA_VISIBLE_DEVICES=0 python3 -m verl.trainer.main_ppo \\
    algorithm.adv_estimator=grpo \\
    actor_rollout_ref.actor.policy_loss.loss_mode=${mode} actor_rollout_ref.actor.loss_agg_mode="seq-mean-token-sum" \\
    actor_rollout_ref.actor.clip_ratio_low=$low \\
    'actor_rollout_ref.actor.clip_ratio_high='$high \\
    data.max_response_length=$limit data.train_batch_size=64 actor_rollout_ref.actor.ppo_mini_batch_size=16 \\
    actor_rollout_ref.rollout.n=8 +trainer.anything=1 "$@"
"""


def test_a_script_is_read_with_its_variables(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text(SCRIPT, encoding="utf-8")
    loss = read_peer_loss(script)
    same(loss.objective, resolve("luspo", clip_low=3e-4, clip_high=4e-4))
    rows = dict(loss.rows())
    assert rows["N, sequences of a mini-batch"] == "128"
    assert rows["L, the response limit"] == "2048 tokens"
    assert "a batch makes 4 optimizer steps" in rows["off-policy by"]
    assert not loss.unread


def test_what_a_script_sets_twice_is_said(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text(
        f'low=0.2\nif [ -n "$X" ]; then\n  low=0.3 # wider\nfi\nlimit=$((2 * (3 + (1024))))\n'
        f"ARGS=(\n  algorithm.adv_estimator=grpo  # a comment 'here\n  {ACTOR}.clip_ratio_low=$low trainer.experiment_name=a#b\n"
        f"  data.max_response_length=$limit {ACTOR}.clip_ratio_high=0.2)\nrun {ACTOR}.clip_ratio_high=0.28\n",
        encoding="utf-8",
    )
    loss = read_peer_loss(script)
    assert (loss.objective.clip_low, loss.objective.clip_high) == (0.3, 0.28)
    assert loss.counts.response_limit == 2054
    assert f"{ACTOR}.clip_ratio_high is set more than once: 0.2, then 0.28, which is read" in text(loss)
    assert f"{ACTOR}.clip_ratio_low: the script sets low more than once, and 0.3 is what is read here" in text(loss)


def test_forms_of_a_file(tmp_path: Path) -> None:
    nested = tmp_path / "verl.yaml"
    nested.write_text(
        "actor_rollout_ref:\n  actor:\n    clip_ratio_low: 3e-4\n    policy_loss: {loss_mode: gspo}\n"
        "algorithm: {adv_estimator: grpo}\n"
    )
    assert read_peer_loss(nested).objective.clip_low == 3e-4
    lines = tmp_path / "trl.txt"
    lines.write_text("loss_type=sapo\nscale_rewards=false\nbeta=0\n", encoding="utf-8")
    found = read_peer_loss(lines).objective
    assert (found.surrogate, found.advantage) == ("sapo", "group_mean")
    same(trl_loss(json.loads(json.dumps({"loss_type": "vespo"})), "trl.json").objective, resolve("vespo"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.yaml", "loss_type: lupso\n", "loss_type = 'lupso' is none of .*did you mean 'luspo'"),
        ("a.yaml", "epsilon: wide\n", "epsilon = 'wide' is not a number"),
        ("a.yaml", "use_vllm: perhaps\nbeta: 0\n", "use_vllm = 'perhaps' is neither true nor false"),
        ("a.yaml", "loss_type: [\n", "is not valid YAML"),
        ("a.json", "{", "is not valid JSON"),
        ("a.yaml", "learning: 3\n", "has no setting of TRL's GRPOConfig"),
        ("a.yaml", "- 1\n", "holds no table of settings"),
        ("a.yaml", "steps_per_generation: 4\ngeneration_batch_size: 64\n", "not both"),
        ("a.yaml", "beta:\nloss_type: grpo\n", "beta is empty"),
        ("a.sh", f"x algorithm.adv_estimator=grpo {ACTOR}.clip_ratio_low=${{LOW}}\n", "the loss depends on .*LOW.* write it out"),
        ("a.sh", "x actor_rollout_ref.actor.loss_agg_mode=mean\n", "is none of token-mean"),
        ("a.yaml", "loss_type: grpo\nalgorithm: {adv_estimator: grpo}\n", "has keys of verl .* and of TRL"),
        ("a.yaml", "beta: 0.1\nloss_type: grpo\nbeta: 0\n", "gives beta twice"),
        ("a.yaml", "algorithm: {adv_estimator: grpo}\nalgorithm.adv_estimator: gae\n", "gives algorithm.adv_estimator twice"),
        ("a.yaml", "loss_type: grpo\nenv: &env {inner: *env}\n", "has a table that holds itself"),
        ("a.json", '{"beta": 0.1, "beta": 0}', "gives beta twice"),
        ("a.sh", "trl grpo --loss_type grpo --beta 0.1\n", "has --loss_type: flags of TRL's command line are not read"),
        ("a.sh", "x algorithm.adv_estimator=grpo actor_rollout_ref.rollout.n=\n", "rollout.n is empty"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_sentence(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=said):
        read_peer_loss(tmp_path / name)


@pytest.mark.parametrize("value", [0, -1, 1.5, "0", [8], True, "many", float("inf"), 10**400])
@pytest.mark.parametrize("key", [key for key in LOSS_KEYS if key in WHOLE or type(LOSS_KEYS[key]) is int])
def test_a_count_of_trl_is_a_whole_number_from_1(key: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{key} = .* is (a count|not a number)"):
        trl(**{key: value})


@pytest.mark.parametrize("value", [0, -1, 1.5, "0", [8], True, "many"])
@pytest.mark.parametrize("key", [*(key for key in KEYS if type(KEYS[key]) is int), f"{ACTOR}.loss_scale_factor"])
def test_a_count_of_verl_is_a_whole_number_from_1(key: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{key} = .* is (a count|not a number)"):
        verl_loss({key: value}, "verl.sh")


@pytest.mark.parametrize("value", [[1], {}, -1.0, 7j])
def test_no_key_of_either_takes_anything_else(value: Any) -> None:
    """Whatever stands there, it is a sentence; the entropy's weight and one threshold may be negative."""
    for key in LOSS_KEYS:
        if value != -1.0 or not key.startswith(("entropy", "off_policy")):
            with pytest.raises(UsageError, match=f"^trl.yaml: {key} = "):
                trl(**{key: value})
    for key in KEYS:
        if value != -1.0 or "entropy" not in key:
            with pytest.raises(UsageError, match=f"^verl.sh: {key} = "):
                verl_loss({key: value}, "verl.sh")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"beta": True}, "beta = True is not a number"),
        ({"temperature": 0}, "temperature = 0 must be above 0"),
        ({"num_generations": 1}, r"num_generations \(1\) must be at least 2"),
        ({"num_generations": 7, "generation_batch_size": 8}, r"generation_batch_size \(8\) must be a multiple of num_gen"),
        ({"generation_batch_size": 12}, r"a multiple of per_device_train_batch_size \(8\)"),
        ({"sync_ref_model": True}, "sync_ref_model needs a beta"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"vllm_importance_sampling_clip_min": 4}, r"clip_min \(4\) must be less than .*clip_max \(3\)"),
        ({"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": None}, "needs vllm_"),
        ({"loss_type": "vespo", "use_vllm": True}, "vespo needs vllm_importance_sampling_mode"),
    ],
)  # fmt: skip
def test_what_trl_refuses_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        trl(**values)


def test_groups_that_one_process_would_break_are_warned_of() -> None:
    # 8 rows a process: 3 of them make 24, which is 4 groups of 6.
    assert "unless the number of processes is a multiple of 3" in text(trl(num_generations=6))
    assert "number of processes is a multiple" not in text(trl(num_generations=6, gradient_accumulation_steps=3))


def test_a_batch_of_verl_that_is_no_multiple_of_its_mini_batch_is_refused() -> None:
    batch, part = "data.train_batch_size", f"{ACTOR}.ppo_mini_batch_size"
    for given in ({batch: 64, part: 128}, {batch: 96, part: 64}):
        with pytest.raises(UsageError, match=r"must be a multiple of the mini-batch$"):
            verl_loss(given, "verl.sh")
    with pytest.raises(UsageError, match=f"256 is verl's own {part}$"):
        verl_loss({batch: 64}, "verl.sh")


def test_keys_of_verl_that_may_be_null() -> None:
    given = {"algorithm.adv_estimator": "grpo", f"{ACTOR}.clip_ratio": 0.1, f"{ACTOR}.clip_ratio_low": "null"}
    found = verl_loss({**given, "algorithm.rollout_correction.rollout_is": "token"}, "verl.sh")
    assert (found.objective.clip_low, found.objective.clip_high) == (0.1, 0.2)
    assert "update.sampler_correction=token" in text(found)


def test_a_range_of_verls_weights_is_no_cap() -> None:
    """verl's text LOWER_UPPER: what lies outside has weight 0; checked beside verl's own parser in tests/peers."""
    correction = "algorithm.rollout_correction.rollout_is"
    given = {"algorithm.adv_estimator": "grpo", correction: "token"}
    said = text(verl_loss({**given, f"{correction}_threshold": "0.5_5.0"}, "verl.sh"))
    assert "a token whose ratio lies outside 0.5 to 5 has weight 0 (IcePop)" in said
    assert "sampler_correction_cap" not in said
    assert "at most 5.0" in text(verl_loss({**given, f"{correction}_threshold": "5"}, "verl.sh"))
    for value, reason in (
        ([0.5, 5.0], "takes a number or a text LOWER_UPPER, such as 0.5_2.0, and no list"),
        ("5.0_0.5", "refuses a lower end above the upper one"),
        ("0.5_", "lacks its upper end"),
        ("_5.0", "lacks its lower end"),
        ("0_5.0", "must be above 0"),
        ("low_high", "is not a number"),
        ("0.5_5", "is the number 0.55 to verl where no quotes keep it a text, .*: write 0.5_5.0, which is always"),
    ):
        with pytest.raises(UsageError, match=f"verl.sh: .*threshold = .*{reason}"):
            verl_loss({**given, f"{correction}_threshold": value}, "verl.sh")


def test_the_command_shows_a_file(tmp_path: Path) -> None:
    config = tmp_path / "trl_config.yaml"
    config.write_text(
        "model_name_or_path: some/model\nloss_type: luspo\nimportance_sampling_level: sequence\n"
        "epsilon: 2e-3\nepsilon_high: 0.0025\n"
    )
    answer = json.loads(CliRunner().invoke(app, ["objectives", "show", str(config), "--json"]).stdout)
    assert answer["equation"] == "L = −(1/N) Σ_i |y_i| · min(s_i A_i, clip(s_i, 1−0.002, 1+0.0025) A_i)"
    assert answer["config"]["name"] == "luspo"
    assert answer["not_understood"] == []
    shown = CliRunner().invoke(app, ["objectives", "show", str(config)])
    assert "luspo, with its own numbers" in shown.stdout
    assert isinstance(
        CliRunner().invoke(app, ["objectives", "show", str(config), "--preset", "tiny"]).exception, UsageError
    )


def test_our_spelling_is_the_same_objective() -> None:
    """What stands under "here" gives the objective back."""
    from luspo_cli.config.layers import resolve_train

    for loss in (trl(loss_type="luspo"), trl(importance_sampling_level="sequence"), verl(use_kl_loss=True)):
        row = dict(loss.rows())["here"].replace("--set ", "").split()
        found = resolve_train(preset="tiny", objective=row[1], sets=row[2:]).objective
        same(found, loss.objective)
