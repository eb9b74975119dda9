"""Names of our losses in verl: every objective has one, and it says all that verl's keys do not."""

from __future__ import annotations

from typing import Any

import pytest

from luspo_cli.config.objective import NAMED_OBJECTIVES, ObjectiveConfig, resolve
from luspo_cli.config.peers import ACTOR, verl_text
from luspo_cli.config.verl_losses import VERL_LOSSES, verl_loss_name, verl_plugin_settings

CUSTOM = {"advantage": "group_mean", "aggregation": "token-mean"}
CLIP = {"clip_low": 0.02, "clip_high": 0.03}
NOT_CARRIED = ("dapo_prompt_mean", "balanced", "length_power")
CONFIGS = [
    *(resolve(name) for name in NAMED_OBJECTIVES if name not in NOT_CARRIED),
    resolve("custom", ratio="token", surrogate="dppo-kl", **CLIP, **CUSTOM),
    resolve("custom", ratio="token", surrogate="reinforce", **CUSTOM),
    resolve("luspo", clip_high=3e-3),
    resolve("gspo", clip_on="sum", dual_clip=2.0),
    resolve("luspo", clip_on="root"),
    resolve("dr_grpo", dual_clip=3.5),
    resolve("custom", ratio="token", surrogate="gmpo", **CLIP, **CUSTOM),
    resolve("custom", ratio="sequence", surrogate="sapo", sapo_temperature_positive=1.0, sapo_temperature_negative=1.2, **CUSTOM),
    resolve("custom", ratio="sequence", surrogate="clip", clip_on="mean", dual_clip=2.0, **CLIP, **CUSTOM),
    resolve("custom", ratio="sequence-product", surrogate="clip", clip_on="sum", **CLIP, **CUSTOM),
]  # fmt: skip


def as_the_plugin_reads(config: ObjectiveConfig) -> ObjectiveConfig:
    """From the overrides alone, with verl's defaults for the rest."""
    values: dict[str, Any] = {
        key.removeprefix(f"{ACTOR}."): v for key, v in verl_plugin_settings(config, 512).values.items()
    }
    loss = VERL_LOSSES[values["policy_loss.loss_mode"]]
    return loss.objective(
        values["loss_agg_mode"],
        clip=(values.get("clip_ratio_low", 0.2), values.get("clip_ratio_high", 0.2)),
        dual_clip=values.get("clip_ratio_c", 3.0),
        temperatures=(values.get("tau_pos", 1.0), values.get("tau_neg", 1.05)),
    )


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: verl_loss_name(config))
def test_the_overrides_say_the_whole_objective(config: ObjectiveConfig) -> None:
    found = as_the_plugin_reads(config)
    for key in vars(config):
        if key != "advantage":  # verl's own estimator gives it
            assert getattr(found, key) == getattr(config, key), key


def test_names_are_ours_and_say_one_thing_each() -> None:
    assert all(name == "luspo" or name.startswith("luspo_") for name in VERL_LOSSES)
    assert len(set(VERL_LOSSES.values())) == len(VERL_LOSSES)
    assert verl_loss_name(resolve("luspo")) == "luspo"
    assert verl_loss_name(resolve("dr_grpo", dual_clip=2.0)) == "luspo_dr_grpo_dual_clip"
    assert verl_loss_name(resolve("fspo", clip_on="root")) == "luspo_fspo"
    assert verl_loss_name(CONFIGS[-1]) == "luspo_custom_sequence_product_clip_on_sum"


def test_the_overrides_of_two_objectives_in_full() -> None:
    assert verl_text(verl_plugin_settings(resolve("luspo", entropy_coefficient=0.01))) == (
        "algorithm.adv_estimator=grpo algorithm.norm_adv_by_std_in_grpo=True"
        " actor_rollout_ref.actor.policy_loss.loss_mode=luspo actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum"
        " actor_rollout_ref.actor.clip_ratio_low=0.002 actor_rollout_ref.actor.clip_ratio_high=0.0025"
        " actor_rollout_ref.actor.entropy_coeff=0.01"
    )
    assert verl_text(verl_plugin_settings(resolve("dr_grpo"), 4096)) == (
        "algorithm.adv_estimator=grpo algorithm.norm_adv_by_std_in_grpo=False"
        " actor_rollout_ref.actor.policy_loss.loss_mode=luspo_dr_grpo"
        " actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm actor_rollout_ref.actor.clip_ratio_low=0.2"
        " actor_rollout_ref.actor.clip_ratio_high=0.2 actor_rollout_ref.actor.loss_scale_factor=4096"
    )


def test_a_balanced_clip_range_has_no_name() -> None:
    config = resolve("luspo", clip_band="balanced")
    with pytest.raises(ValueError, match="one micro-batch at a time"):
        verl_loss_name(config)
    assert "clip_band" in verl_plugin_settings(config).missing


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (resolve("dapo_prompt_mean"), "does not tell a loss which responses answer one prompt, as prompt-mean asks"),
        (resolve("balanced"), "as sign-balanced asks"),
        (resolve("length_power", length_exponent=0.5), r"no key for objective\.length_exponent"),
        (resolve("dppo", ratio_cap=5.0), r"no key for objective\.ratio_cap"),
        (resolve("vespo", vespo_k_positive=1.0), "no key for VESPO's exponents"),
        (resolve("custom", ratio="token", surrogate="clip", **CLIP, **(CUSTOM | {"advantage": "max_rl"})), "max_rl"),
    ],
)
def test_what_verl_does_not_carry_is_refused(config: ObjectiveConfig, reason: str) -> None:
    with pytest.raises(ValueError, match=f"{reason}.*: use the luspo engine"):
        verl_loss_name(config)
    assert verl_plugin_settings(config).missing
    assert not any(loss.name in NOT_CARRIED for loss in VERL_LOSSES.values())
