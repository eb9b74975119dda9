"""Settings of TRL and verl that give the loss of an objective, as data: what is printed and what is run read the same tables.

They are those of TRL 1.16 (`GRPOConfig`, `trl.experimental.gmpo.GMPOConfig`) and verl 0.9.1 (Hydra overrides). Tests marked `trl`
and `verl` run both peers' own code with them. Older releases read some of them otherwise: docs/objectives.md. `PEER_KEYS` spells
the numbers of `metrics.jsonl` in the words of other trainers, for reading their logs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from luspo_cli.config.objective import ObjectiveConfig

Value = str | float | int | bool

ACTOR = "actor_rollout_ref.actor"
RESPONSE_LIMIT = "<the response limit>"
"""Stands for the number where it is not known."""
NO_DUAL_CLIP = 1e9
"""verl's vanilla loss always has a dual clip, 3.0 unless set; a very large one is none."""

TRL_LOSS_TYPES = {
    "token-mean": "dapo",
    "seq-mean-token-mean": "grpo",
    "seq-mean-token-sum": "luspo",
    "seq-mean-token-sum-norm": "dr_grpo",
}
TRL_SCALES = {"group_mean_std": "group", "group_mean_batch_std": "batch"}
VERL_LOSS_MODES = {"gmpo": "geo_mean", "dppo-tv": "dppo_tv", "dppo-kl": "dppo_kl", "reinforce": "gpg"}
VERL_KL = {"k1": "kl", "k2": "mse", "k3": "low_var_kl"}


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """What to set in a peer for an objective."""

    values: Mapping[str, Value] = field(default_factory=dict)
    """Option → value; empty where the peer has no such objective."""
    differences: tuple[str, ...] = ()
    """What the peer cannot do or does otherwise even so, in words."""
    missing: str = ""
    """Why no settings give this objective; empty where some do."""
    config_class: str = "GRPOConfig"
    """Of TRL: the class that takes these options."""


def trl_settings(config: ObjectiveConfig, response_limit: int | None = None) -> PeerSettings:
    """TRL's options for the objective's loss; `response_limit`: of `seq-mean-token-sum-norm`, its `max_completion_length`."""
    if missing := _missing_in_trl(config):
        return PeerSettings(missing=missing)
    values: dict[str, Value] = {"scale_rewards": TRL_SCALES.get(config.advantage or "", "none")}
    aggregation = config.plain_aggregation
    differences: list[str] = []
    low, high = config.clip_low or 0.0, config.clip_high or 0.0
    if config.surrogate == "gmpo":
        values |= {"epsilon": low, "epsilon_high": high}
    elif config.surrogate != "vespo":
        values["importance_sampling_level"] = config.ratio or ""
    if config.surrogate == "clip":
        values |= {"loss_type": TRL_LOSS_TYPES[aggregation], "epsilon": low, "epsilon_high": high}
        if config.dual_clip is not None:
            values["delta"] = config.dual_clip
        if aggregation == "seq-mean-token-sum-norm":
            values["max_completion_length"] = RESPONSE_LIMIT if response_limit is None else response_limit
    elif config.surrogate == "cispo":
        values |= {"loss_type": "cispo", "epsilon_high": 1 + high}  # there it is the cap itself
        if low != 1:
            differences.append(f"no lower bound, ours is {1 - low:g}")
    elif config.surrogate == "sapo":
        values |= {
            "loss_type": "sapo",
            "sapo_temperature_pos": config.sapo_temperature_positive or 0.0,
            "sapo_temperature_neg": config.sapo_temperature_negative or 0.0,
        }
    elif config.surrogate == "vespo":
        values |= {"loss_type": "vespo", "importance_sampling_level": "token"}
        for key in ("k", "lambda"):
            values |= {f"vespo_{key}_pos": getattr(config, f"vespo_{key}_positive")}
            values |= {f"vespo_{key}_neg": getattr(config, f"vespo_{key}_negative")}
    if config.kl_coefficient > 0:
        values["beta"] = config.kl_coefficient
        if config.surrogate != "gmpo":
            values["use_bias_correction_kl"] = False  # on by default: it multiplies the KL term by the importance ratio
        if config.kl_estimator != "k3":
            differences.append("its KL term is k3 only")
    if config.entropy_coefficient > 0 and config.surrogate == "gmpo":
        differences.append("no entropy term")
    elif config.entropy_coefficient > 0:
        values["entropy_coef"] = config.entropy_coefficient
        if aggregation != "token-mean":
            differences.append("its entropy term is a mean over the tokens of each micro-batch")
    return PeerSettings(
        values, tuple(differences), config_class="GMPOConfig" if config.surrogate == "gmpo" else "GRPOConfig"
    )


def verl_settings(config: ObjectiveConfig, response_limit: int | None = None) -> PeerSettings:
    """verl's overrides for the objective's loss; `response_limit`: of `seq-mean-token-sum-norm`, its `loss_scale_factor`."""
    if missing := _missing_in_verl(config):
        return PeerSettings(missing=missing)
    values, terms = verl_terms(config)
    mode, aggregation = _verl_loss_mode(config), config.plain_aggregation
    values |= {f"{ACTOR}.policy_loss.loss_mode": mode, f"{ACTOR}.loss_agg_mode": aggregation}
    differences: list[str] = []
    if aggregation == "seq-mean-token-sum-norm":
        values[f"{ACTOR}.loss_scale_factor"] = RESPONSE_LIMIT if response_limit is None else response_limit
    if mode == "sapo":
        values[f"{ACTOR}.tau_pos"] = config.sapo_temperature_positive or 0.0
        values[f"{ACTOR}.tau_neg"] = config.sapo_temperature_negative or 0.0
    elif config.clips:
        values[f"{ACTOR}.clip_ratio_low"] = config.clip_low or 0.0
        values[f"{ACTOR}.clip_ratio_high"] = config.clip_high or 0.0
    if mode == "vanilla":
        values[f"{ACTOR}.clip_ratio_c"] = config.dual_clip or NO_DUAL_CLIP
    elif config.clips_divergence:
        values[f"{ACTOR}.clip_ratio_c"] = config.ratio_cap or NO_DUAL_CLIP
    elif mode == "gspo" and config.dual_clip is not None:
        differences.append("no dual clip")
    if mode == "geo_mean":
        differences.append("a mean over the rows of each micro-batch")
    return PeerSettings(values | terms, tuple(differences))


def verl_terms(config: ObjectiveConfig) -> tuple[dict[str, Value], dict[str, Value]]:
    """verl's overrides for what is not the policy loss: the advantage, and the KL and entropy terms."""
    advantage: dict[str, Value] = {"algorithm.adv_estimator": "rloo" if config.advantage == "leave_one_out" else "grpo"}
    if config.advantage != "leave_one_out":
        advantage["algorithm.norm_adv_by_std_in_grpo"] = config.advantage == "group_mean_std"
    terms: dict[str, Value] = {}
    if config.kl_coefficient > 0:
        terms |= {
            f"{ACTOR}.use_kl_loss": True,
            f"{ACTOR}.kl_loss_coef": config.kl_coefficient,
            f"{ACTOR}.kl_loss_type": VERL_KL[config.kl_estimator or "k3"],
        }
    if config.entropy_coefficient > 0:
        terms[f"{ACTOR}.entropy_coeff"] = config.entropy_coefficient
    return advantage, terms


def trl_text(settings: PeerSettings) -> str:
    """The settings as arguments of TRL's configuration class."""
    if settings.missing:
        return f"no setting: {settings.missing}"
    words = [
        f'{key}="{value}"' if isinstance(value, str) else f"{key}={_plain(value)}"
        for key, value in settings.values.items()
    ]
    text = ", ".join([*words, *(f"({difference})" for difference in settings.differences)])
    return f"trl.experimental.gmpo.GMPOConfig({text})" if settings.config_class == "GMPOConfig" else text


def verl_text(settings: PeerSettings) -> str:
    """The settings as overrides on verl's command line."""
    if settings.missing:
        return f"no setting: {settings.missing}"
    words = [f"{key}={_plain(value)}" for key, value in settings.values.items()]
    return " ".join([*words, *(f"({difference})" for difference in settings.differences)])


def _plain(value: Value) -> str:
    return str(value) if isinstance(value, str | bool) else f"{value:g}"


def _missing_in_both(config: ObjectiveConfig) -> str:
    if config.own_parts:
        return f"luspo's engine alone runs a function of one's own ({', '.join(config.own_parts)})"
    if config.needs_group_ids:
        return "its loss is not told which responses answer one prompt"
    if config.plain_aggregation == "length-power":
        return "its aggregations have no power of the length"
    if config.advantage == "max_rl":
        return "it has no advantage that is divided by the group's mean"
    if config.clip_band == "balanced":
        return "its clip range is fixed"
    if config.by_sequence and config.surrogate == "clip" and config.clips_log_ratio:
        return "its clip range is on the ratio alone, not on a log scale that takes the length in"
    return ""


def _missing_in_trl(config: ObjectiveConfig) -> str:
    if missing := _missing_in_both(config):
        return missing
    if config.advantage == "leave_one_out":
        return "GRPOTrainer has no leave-one-out baseline"
    if config.clips_divergence:
        return "it clips ratios, and no divergence"
    if config.surrogate == "reinforce":
        return "each of its losses has an importance ratio"
    averages = {
        "gmpo": ("seq-mean-token-mean", "its GMPOTrainer averages over sequences only"),
        "cispo": ("token-mean", "its cispo averages over tokens only"),
        "vespo": ("token-mean", "its vespo averages over tokens only"),
        "sapo": ("seq-mean-token-mean", "its sapo averages over the tokens of a sequence, then over sequences"),
    }
    aggregation, reason = averages.get(config.surrogate or "", (config.plain_aggregation, ""))
    return "" if config.plain_aggregation == aggregation else reason


def _verl_loss_mode(config: ObjectiveConfig) -> str:
    if config.surrogate == "clip":
        return "gspo" if config.by_sequence else "vanilla"
    return VERL_LOSS_MODES.get(config.surrogate or "", config.surrogate or "")


def _missing_in_verl(config: ObjectiveConfig) -> str:
    if missing := _missing_in_both(config):
        return missing
    if config.advantage == "group_mean_batch_std":
        return "its adv_estimator grpo divides by the group's standard deviation or by none"
    if config.surrogate == "vespo":
        return "it has no such loss"
    mode = _verl_loss_mode(config)
    if config.by_sequence and config.surrogate != "clip":
        return f"its {mode} has token ratios only"
    if mode in ("sapo", "geo_mean") and config.plain_aggregation != "seq-mean-token-mean":
        return f"its {mode} ignores loss_agg_mode and averages over sequences"
    return ""


_FRAMEWORKS = ("trl", "trl-before-0.17", "verl", "openrlhf")
_PEER_TABLE = (
    # Ours, then each framework's in the order above; "" where it has none.
    ("response_length/mean", "completions/mean_length", "completion_length", "response_length/mean", "response_length"),
    ("response_length/max", "completions/max_length", "", "response_length/max", ""),
    ("response/truncated_fraction", "completions/clipped_ratio", "", "response_length/clip_ratio", "response_clip_ratio"),
    ("reward/total/mean", "reward", "reward", "critic/score/mean", "reward"),
    ("objective/loss", "loss", "loss", "actor/pg_loss", "policy_loss"),
    ("update/grad_norm", "grad_norm", "grad_norm", "actor/grad_norm", ""),
    ("update/learning_rate", "learning_rate", "learning_rate", "actor/lr", "actor_lr"),
    ("policy/entropy", "entropy", "", "actor/entropy", ""),
    ("objective/clip_low_fraction", "clip_ratio/low_mean", "", "actor/objective/clip_low_fraction", ""),
    ("objective/clip_high_fraction", "clip_ratio/high_mean", "", "actor/objective/clip_high_fraction", ""),
    ("time/rollout", "", "", "timing_s/gen", ""),
    ("time/total", "step_time", "", "timing_s/step", ""),
)  # fmt: skip
PEER_KEYS: Mapping[str, Mapping[str, str]] = {
    framework: {row[column]: row[0] for row in _PEER_TABLE if row[column]}
    for column, framework in enumerate(_FRAMEWORKS, start=1)
}
"""Framework -> its key, without a leading `train/` -> ours, for the numbers that mean the same.

ms-swift has TRL's keys; clip fractions in a log of verl are from our losses in it (docs/verl.md)."""
