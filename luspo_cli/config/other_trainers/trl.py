"""Settings of TRL's `GRPOConfig` → the loss that TRL 1.16 runs with them, read as `GRPOTrainer._compute_loss` reads them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from luspo_cli.config.executed import Counts
from luspo_cli.config.objective import ObjectiveConfig
from luspo_cli.config.other_trainers.loss import (
    STEEP,
    TOKEN_MEAN,
    PeerLoss,
    by_length,
    known,
    objective_of,
    typed,
    wide_clip,
)
from luspo_cli.config.other_trainers.trl_keys import FLOATS, LOSS_KEYS, OTHER_KEYS, SCRIPT_KEYS, WHOLE
from luspo_cli.config.peers import TRL_LOSS_TYPES, TRL_SCALES
from luspo_cli.errors import UsageError, nearest

TRAINER = "TRL 1.16"
_AGGREGATIONS = {
    **{theirs: ours for ours, theirs in TRL_LOSS_TYPES.items()},
    "bnpo": "token-mean",
    "cispo": "token-mean",
    "vespo": "token-mean",
    "sapo": "seq-mean-token-mean",
}
_SCALES = {**{theirs: ours for ours, theirs in TRL_SCALES.items()}, "none": "group_mean"}
_SCALED = {"true": "group", "false": "none", "1": "group", "0": "none"}
_LEVELS = ("token", "sequence")
_MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
_CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")


def trl_loss(given: Mapping[str, Any], place: str) -> PeerLoss:
    """The loss of the settings in the file `place`; UsageError for a value that TRL does not have."""
    values = dict(LOSS_KEYS)
    for key, value in given.items():
        if key in LOSS_KEYS:
            if key == "scale_rewards" and str(value).lower() in _SCALED:
                value = _SCALED[str(value).lower()]
            like = 0.0 if key in FLOATS else 0 if key in WHOLE else LOSS_KEYS[key]
            optional = LOSS_KEYS[key] is None or key == "vllm_importance_sampling_clip_max"
            values[key] = typed(key, value, like, place, optional=optional)
    for key, choices in (
        ("loss_type", _AGGREGATIONS), ("scale_rewards", _SCALES), ("importance_sampling_level", _LEVELS),
        ("vllm_importance_sampling_mode", _MODES),
    ):  # fmt: skip
        known(key, values[key], choices, place)
    if reason := next(_refused(values, given, place), None):
        raise UsageError(f"{place}: {TRAINER} refuses to start: {reason}")
    if values["epsilon_high"] is None:
        values["epsilon_high"] = values["epsilon"]
    objective, missing = _objective(values)
    read = _read_keys(values)
    return PeerLoss(
        trainer=TRAINER,
        called=values["loss_type"],
        objective=objective,
        missing=missing,
        counts=_counts(values),
        differences=tuple(_differences(values, objective)),
        notes=tuple(_notes(values)),
        warnings=tuple(_warnings(values, given, objective)),
        defaults={key: LOSS_KEYS[key] for key in read if key not in given},
        unread=tuple(_unread(given)),
    )


def _refused(values: Mapping[str, Any], given: Mapping[str, Any], place: str) -> Iterator[str]:
    """What `GRPOConfig` and `GRPOTrainer` raise a ValueError for, however many processes there are."""
    whole, group = values["generation_batch_size"], values["num_generations"]
    if whole is not None and values["steps_per_generation"] is not None:
        yield "it takes steps_per_generation or generation_batch_size, not both: leave one out"
    for key in ("per_device_train_batch_size", "num_generations"):
        if whole is not None and whole % values[key]:
            yield f"generation_batch_size ({whole}) must be a multiple of {key} ({values[key]})"
    if group < 2:
        yield f"num_generations ({group}) must be at least 2: a group of one has nothing to compare"
    if typed("auto_find_batch_size", given.get("auto_find_batch_size"), False, place, optional=True):
        yield "auto_find_batch_size would break groups: leave it out"
    if values["sync_ref_model"] and not values["beta"]:
        yield "sync_ref_model needs a beta other than 0"
    low, high, mode = values["vllm_importance_sampling_clip_min"], _cap(values), values["vllm_importance_sampling_mode"]
    if low is not None and high is not None and low >= high:
        yield f"vllm_importance_sampling_clip_min ({low:g}) must be less than vllm_importance_sampling_clip_max ({high:g})"
    if values["vllm_importance_sampling_correction"] and mode.endswith("_truncate") and low is high is None:
        yield f"vllm_importance_sampling_mode={mode} needs vllm_importance_sampling_clip_max or clip_min"
    if values["loss_type"] == "vespo" and _corrects(values) and mode.startswith("sequence"):
        yield f"vespo needs vllm_importance_sampling_mode=token_truncate or token_mask, not {mode}"


def _objective(values: Mapping[str, Any]) -> tuple[ObjectiveConfig | None, str]:
    kind, level = values["loss_type"], values["importance_sampling_level"]
    parts = {
        "advantage": _SCALES[values["scale_rewards"]],
        "ratio": "sequence-product" if kind == "vespo" else level,
        "surrogate": "clip" if kind in _CLIPPED else kind,
        "aggregation": _AGGREGATIONS[kind],
    }
    numbers: dict[str, Any] = {}
    if kind == "cispo":
        # There the key is the cap itself, and there is no lower bound.
        if values["epsilon_high"] <= 1:
            return None, (
                f"the cap of cispo is epsilon_high itself, {values['epsilon_high']:g}, so every token near ratio 1 counts"
                f" {values['epsilon_high']:g} times and nothing else is left of the ratio: set epsilon_high above 1, as 5.0"
            )
        numbers |= {"clip_low": 1.0, "clip_high": values["epsilon_high"] - 1}
    elif kind in ("sapo", "vespo"):
        for ours, theirs in (("positive", "pos"), ("negative", "neg")):
            for key in ("sapo_temperature",) if kind == "sapo" else ("vespo_k", "vespo_lambda"):
                numbers[f"{key}_{ours}"] = values[f"{key}_{theirs}"]
    else:
        numbers |= {"clip_low": values["epsilon"], "clip_high": values["epsilon_high"], "dual_clip": values["delta"]}
    if values["beta"]:
        numbers |= {"kl_coefficient": values["beta"], "kl_estimator": "k3"}
    return objective_of(parts, {**numbers, "entropy_coefficient": values["entropy_coef"]})


def _counts(values: Mapping[str, Any]) -> Counts:
    """Of one process: how many there are is not in the file."""
    update = values["per_device_train_batch_size"] * values["gradient_accumulation_steps"]
    return Counts(
        sequences=update,
        response_limit=values["max_completion_length"],
        updates=values["num_iterations"] * _passes(values) / values["gradient_accumulation_steps"],
        epochs=values["num_iterations"],
    )


def _passes(values: Mapping[str, Any]) -> int:
    """Micro-batches of a generation batch, on one process."""
    if values["generation_batch_size"] is not None:
        return int(values["generation_batch_size"] // values["per_device_train_batch_size"])
    return int(values["steps_per_generation"] or values["gradient_accumulation_steps"])


def _notes(values: Mapping[str, Any]) -> Iterator[str]:
    yield "N is that of one process; with more of them it is so many times as large, which the file does not say"
    if values["scale_rewards"] != "none":
        yield "TRL adds 1e-4 to the standard deviation, ours 1e-6"


def _differences(values: Mapping[str, Any], objective: ObjectiveConfig | None) -> Iterator[str]:
    kind, aggregation = values["loss_type"], _AGGREGATIONS[values["loss_type"]]
    if kind == "bnpo":
        yield "its M is that of one micro-batch on one process, so the loss depends on per_device_train_batch_size"
    elif aggregation == "token-mean" and _counts(values).updates != values["num_iterations"]:
        yield "its M is the mean over the mini-batches of one generation, not each mini-batch's own number"
    if values["beta"] and values["use_bias_correction_kl"]:
        yield "its KL term is multiplied by the importance ratio (use_bias_correction_kl, on by default); ours is not"
    if values["beta"] and values["sync_ref_model"]:
        yield "its reference follows the policy (sync_ref_model); ours is the model that the run began with"
    if values["use_adaptive_entropy"]:
        yield "its entropy coefficient changes from step to step (use_adaptive_entropy)"
    elif values["entropy_coef"] and aggregation != "token-mean":
        yield "its entropy term is a mean over the tokens of each micro-batch, whatever the loss type"
    if values["top_entropy_quantile"] < 1:
        yield f"only the {values['top_entropy_quantile']:.0%} of tokens with the highest entropy have a policy loss"
    if values["mask_truncated_completions"]:
        yield (
            "truncated responses have no loss and still count in N (mask_truncated_completions); with our reward.truncated=mask"
            " they do not"
        )
    if values["off_policy_mask_threshold"] is not None:
        yield (
            "responses with a negative advantage and a mean log-ratio beyond"
            f" {values['off_policy_mask_threshold']:g} have no loss (off_policy_mask_threshold)"
        )
    if values["multi_objective_aggregation"] != "sum_then_normalize":
        yield (
            f"multi_objective_aggregation = {values['multi_objective_aggregation']}: each reward function is normalised in its"
            " group, and their sum over the whole batch"
        )
    if values["router_aux_loss_coef"]:
        yield f"a router's balancing loss is added, weight {values['router_aux_loss_coef']:g} (router_aux_loss_coef)"
    if objective is not None and objective.dual_clip is not None and values["delta"] < 1 + values["epsilon_high"]:
        yield "delta lies below 1 + epsilon_high: it bounds positive advantages too, ours negative ones alone"
    if _corrects(values) and kind == "vespo":
        yield "the correction of the sampler is multiplied into VESPO's ratio (vllm_importance_sampling_correction)"
    elif _corrects(values) and values["vllm_importance_sampling_mode"] != "sequence_mask":
        yield (
            f"the policy loss is weighted by the ratio of trainer to sampler: {values['vllm_importance_sampling_mode']}"
            f" with the cap {_cap(values)}"
        )


def _warnings(values: Mapping[str, Any], given: Mapping[str, Any], objective: ObjectiveConfig | None) -> Iterator[str]:
    kind, level = values["loss_type"], values["importance_sampling_level"]
    rows, group = values["per_device_train_batch_size"] * _passes(values), values["num_generations"]
    if rows % group:
        times = group // math.gcd(rows, group)
        yield (
            f"a generation batch of {rows} on one process is no multiple of num_generations ({group}): TRL refuses to start"
            f" unless the number of processes is a multiple of {times}"
        )
    if "loss_type" not in given:
        yield "the trainer is called GRPO, and without loss_type it runs dapo: a mean over tokens"
    if kind == "luspo" and level == "token":
        yield (
            "loss_type=luspo alone is not LUSPO: importance_sampling_level stays token, TRL only logs a warning, and what runs is"
            " GRPO with token ratios summed over tokens; set importance_sampling_level=sequence"
        )
    if kind == "vespo" and level == "sequence":
        yield "VESPO makes its own sequence ratio: importance_sampling_level=sequence changes nothing but a KL correction"
    yield from by_length(objective)
    if kind in ("dapo", "bnpo") and level == "token":
        yield TOKEN_MEAN
    yield from wide_clip(objective)
    if kind == "luspo":
        yield STEEP
        if values["beta"] or level == "token" or _corrects(values):
            yield "axolotl 0.19 and TRL before its PR 6654 have another formula here, which averages over padding as well"
    if _corrects(values) and values["vllm_importance_sampling_mode"] == "sequence_mask" and _cap(values) is not None:
        # The ratio of a whole response is the sum of its tokens' differences.
        nats = math.log(_cap(values))
        yield (
            f"vllm_importance_sampling_mode=sequence_mask drops each response whose ratio of trainer to sampler exceeds"
            f" {_cap(values):g}, as a product over its tokens: a mean difference of {nats / 100:.2g} nat does it at 100 tokens,"
            f" {nats / 1000:.2g} at 1000, so long answers are thinned; token_truncate has no such filter"
        )
    if values["beta"] and "use_bias_correction_kl" not in given:
        yield "use_bias_correction_kl is on by default since beta is not 0: for a plain KL term set it to false"
    if "max_completion_length" not in given:
        yield (
            f"max_completion_length is TRL's own {values['max_completion_length']}: reasoning is cut there, and a cut answer has"
            " no reward"
        )


def _read_keys(values: Mapping[str, Any]) -> Iterator[str]:
    """The keys with a value of TRL's own that this loss depends on."""
    kind = values["loss_type"]
    yield from ("loss_type", "importance_sampling_level", "scale_rewards", "beta")
    yield from ("epsilon", "epsilon_high") if kind in _CLIPPED else ("epsilon_high",) if kind == "cispo" else ()
    yield from (key for key in LOSS_KEYS if kind in ("sapo", "vespo") and key.startswith(kind))
    yield from ("num_generations", "max_completion_length", "num_iterations", "steps_per_generation")
    yield from (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "temperature",
        "max_grad_norm",
        "learning_rate",
    )
    if values["beta"]:
        yield "use_bias_correction_kl"
    if values["use_vllm"]:
        yield from (
            "vllm_importance_sampling_correction",
            "vllm_importance_sampling_mode",
            "vllm_importance_sampling_clip_max",
        )


def _unread(given: Mapping[str, Any]) -> Iterator[str]:
    keys = {*LOSS_KEYS, *OTHER_KEYS, *SCRIPT_KEYS}
    for key, value in given.items():
        if key not in keys:
            yield (
                f"{key} = {value!r}: {TRAINER} has no such key{nearest(key, keys)}; if it changes the loss, that is not seen here"
            )
        elif key == "use_liger_kernel" and typed(key, value, False, "", optional=True):
            yield "use_liger_kernel: Liger's kernels take the place of some layers; whether that changes anything is not seen"


def _corrects(values: Mapping[str, Any]) -> bool:
    return bool(values["use_vllm"] and values["vllm_importance_sampling_correction"])


def _cap(values: Mapping[str, Any]) -> Any:
    older = values["vllm_importance_sampling_cap"]
    return values["vllm_importance_sampling_clip_max"] if older is None else older
