"""verl's overrides → the loss that verl 0.9.1 runs with them, read as its trainer, its losses and `agg_loss` read them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from luspo_cli.config.executed import Counts
from luspo_cli.config.objective import Aggregation, ObjectiveConfig
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
from luspo_cli.config.peers import ACTOR, NO_DUAL_CLIP, VERL_KL, VERL_LOSS_MODES
from luspo_cli.config.verl_losses import VERL_LOSSES
from luspo_cli.errors import UsageError, nearest

TRAINER = "verl 0.9.1"
LOSS = f"{ACTOR}.policy_loss.loss_mode"
MODE = f"{ACTOR}.loss_agg_mode"
CORRECTION = "algorithm.rollout_correction"
THRESHOLD = f"{CORRECTION}.rollout_is_threshold"
KEYS: Mapping[str, Any] = {
    "algorithm.adv_estimator": "gae",
    "algorithm.norm_adv_by_std_in_grpo": True,
    "algorithm.use_kl_in_reward": False,
    "algorithm.filter_groups.enable": False,
    f"{CORRECTION}.rollout_is": None,
    THRESHOLD: 2.0,
    f"{CORRECTION}.rollout_rs": None,
    f"{CORRECTION}.bypass_mode": False,
    f"{CORRECTION}.rollout_is_batch_normalize": False,
    LOSS: "vanilla",
    MODE: "token-mean",
    f"{ACTOR}.loss_scale_factor": None,
    f"{ACTOR}.clip_ratio": 0.2,
    f"{ACTOR}.clip_ratio_low": 0.2,
    f"{ACTOR}.clip_ratio_high": 0.2,
    f"{ACTOR}.clip_ratio_c": 3.0,
    f"{ACTOR}.tau_pos": 1.0,
    f"{ACTOR}.tau_neg": 1.05,
    f"{ACTOR}.use_kl_loss": False,
    f"{ACTOR}.kl_loss_coef": 0.001,
    f"{ACTOR}.kl_loss_type": "low_var_kl",
    f"{ACTOR}.entropy_coeff": 0.0,
    f"{ACTOR}.ppo_epochs": 1,
    f"{ACTOR}.ppo_mini_batch_size": 256,
    "actor_rollout_ref.rollout.n": 1,
    "actor_rollout_ref.rollout.temperature": 1.0,
    "data.train_batch_size": 1024,
    "data.max_response_length": 512,
}
"""What the loss and its counts depend on, with verl's own values; a test marked `verl` compares them."""
_OPTIONAL = {
    f"{ACTOR}.loss_scale_factor": 0, f"{ACTOR}.clip_ratio_low": 0.0, f"{ACTOR}.clip_ratio_high": 0.0,
    f"{CORRECTION}.rollout_is": "", f"{CORRECTION}.rollout_rs": "",
}  # fmt: skip
"""Keys that may be null, with a value of their type."""
_AGGREGATIONS = (*(mode for mode in get_args(Aggregation) if mode.startswith(("token-mean", "seq-mean"))), "token-sum")
_ESTIMATORS = {"rloo": "leave_one_out", "rloo_vectorized": "leave_one_out"}
_MODES = {
    "vanilla": ("token", "clip"),
    "gspo": ("sequence", "clip"),
    "sapo": ("token", "sapo"),
    "cispo": ("token", "cispo"),
    **{theirs: ("token", ours) for ours, theirs in VERL_LOSS_MODES.items()},
}
"""verl's loss → our ratio and surrogate."""
_OTHER_MODES = ("clip_cov", "kl_cov", "dro", "bypass_mode")
"""Its losses that have no counterpart here."""
_BY_SEQUENCE_ALONE = ("sapo", "geo_mean")
"""Its losses that ignore loss_agg_mode and average over the tokens of a sequence."""
_NEUTRAL = (
    f"{ACTOR}.strategy", f"{ACTOR}.optim.", f"{ACTOR}.fsdp_config.", f"{ACTOR}.megatron.", f"{ACTOR}.checkpoint.",
    f"{ACTOR}.profiler.", f"{ACTOR}.use_dynamic_bsz", f"{ACTOR}.ppo_micro_batch_size", f"{ACTOR}.ppo_max_token_len_per_gpu",
    f"{ACTOR}.ppo_infer_", f"{ACTOR}.ulysses_sequence_parallel_size", f"{ACTOR}.use_torch_compile", f"{ACTOR}.use_fused_kernels",
    f"{ACTOR}.grad_clip", f"{ACTOR}.shuffle", f"{ACTOR}.data_loader_seed", f"{ACTOR}.calculate_", f"{ACTOR}.freeze_vision_tower",
    f"{ACTOR}.load_weight", f"{ACTOR}.entropy_from_logits_with_chunking", f"{ACTOR}.entropy_checkpointing",
    f"{ACTOR}.use_prefix_grouper", f"{ACTOR}.use_remove_padding", f"{ACTOR}.rollout_n", f"{ACTOR}._target_",
    "algorithm.filter_groups.", "algorithm.kl_ctrl.", "algorithm.kl_penalty", "algorithm.gamma", "algorithm.lam",
    "algorithm._target_",
)  # fmt: skip
"""Keys beside the loss, by how they begin, that are not in its equation; of the last ones GAE and a KL in the reward alone."""


def verl_loss(given: Mapping[str, Any], place: str) -> PeerLoss:
    """The loss of the overrides in the file `place`; UsageError for a value that verl does not have."""
    values = dict(KEYS)
    for key, value in given.items():
        if key == THRESHOLD:
            values[key] = _threshold(value, place)
        elif key in KEYS:
            values[key] = typed(key, value, _OPTIONAL.get(key, KEYS[key]), place, optional=key in _OPTIONAL)
    for key in (f"{ACTOR}.clip_ratio_low", f"{ACTOR}.clip_ratio_high"):
        if values[key] is None:
            values[key] = values[f"{ACTOR}.clip_ratio"]
    batch, part = "data.train_batch_size", f"{ACTOR}.ppo_mini_batch_size"
    if values[batch] % values[part]:
        own = "".join(f"; {values[key]} is verl's own {key}" for key in (batch, part) if key not in given)
        raise UsageError(
            f"{place}: {TRAINER} refuses {batch} = {values[batch]} with {part} = {values[part]}: a batch must be a multiple of"
            f" the mini-batch{own}"
        )
    known(MODE, values[MODE], _AGGREGATIONS, place)
    objective, missing = _objective(values)
    return PeerLoss(
        trainer=TRAINER,
        called=values[LOSS].removeprefix("luspo_"),
        objective=objective,
        missing=missing,
        counts=_counts(values),
        differences=tuple(_differences(values)),
        warnings=tuple(_warnings(values, given, objective)),
        defaults={key: KEYS[key] for key in _read_keys(values) if key not in given},
        unread=tuple(_unread(given)),
    )


def _threshold(value: Any, place: str) -> float | tuple[float, float]:
    """The cap, or the ends of the range of a text LOWER_UPPER; UsageError for what verl refuses, and for what it reads in two
    ways."""
    lower, middle, upper = value.strip().partition("_") if isinstance(value, str) else ("", "", "")
    given = f"{place}: {THRESHOLD} = {value!r}"
    if not middle:
        if isinstance(value, list | tuple):
            raise UsageError(f"{given}: {TRAINER} takes a number or a text LOWER_UPPER, such as 0.5_2.0, and no list")
        return float(typed(THRESHOLD, value, KEYS[THRESHOLD], place))
    if not lower or not upper:
        raise UsageError(f"{given} lacks its {'upper' if lower else 'lower'} end: write LOWER_UPPER, such as 0.5_2.0")
    low, high = (float(typed(THRESHOLD, end, KEYS[THRESHOLD], place)) for end in (lower, upper))
    if low > high:
        raise UsageError(f"{given}: {TRAINER} refuses a lower end above the upper one")
    try:
        number = float(value)
    except ValueError:
        return low, high
    raise UsageError(
        f"{given} is the number {number:g} to verl where no quotes keep it a text, and a range where they do: write {low}_{high},"
        " which is always the range"
    )


def _objective(values: Mapping[str, Any]) -> tuple[ObjectiveConfig | None, str]:
    mode, estimator = values[LOSS], values["algorithm.adv_estimator"]
    if values[f"{CORRECTION}.bypass_mode"]:
        return (
            None,
            f"{CORRECTION}.bypass_mode puts the sampler's log-probs in the place of the old ones, in a loss of its own",
        )
    if estimator not in ("grpo", "grpo_vectorized", *_ESTIMATORS):
        critic = ", which learns a value of each token" if estimator == "gae" else ""
        return None, f"algorithm.adv_estimator={estimator}{critic}: none of our advantages is that"
    standard = "group_mean_std" if values["algorithm.norm_adv_by_std_in_grpo"] else "group_mean"
    terms: dict[str, Any] = {"entropy_coefficient": values[f"{ACTOR}.entropy_coeff"]}
    if values[f"{ACTOR}.use_kl_loss"] and values[f"{ACTOR}.kl_loss_coef"]:
        kinds = {**{theirs: ours for ours, theirs in VERL_KL.items()}, "k1": "k1", "k2": "k2", "k3": "k3"}
        kind = kinds.get(values[f"{ACTOR}.kl_loss_type"])
        if kind is None:
            return None, f"{ACTOR}.kl_loss_type={values[f'{ACTOR}.kl_loss_type']} is none of our KL estimators"
        terms |= {"kl_coefficient": values[f"{ACTOR}.kl_loss_coef"], "kl_estimator": kind}
    advantage = _ESTIMATORS.get(estimator, standard)
    clip = values[f"{ACTOR}.clip_ratio_low"], values[f"{ACTOR}.clip_ratio_high"]
    temperatures, dual = (values[f"{ACTOR}.tau_pos"], values[f"{ACTOR}.tau_neg"]), values[f"{ACTOR}.clip_ratio_c"]
    if mode in VERL_LOSSES:
        loss = VERL_LOSSES[mode]
        try:
            found = loss.objective(
                values[MODE] if loss.aggregation is None else loss.aggregation,
                clip=clip, dual_clip=dual, temperatures=temperatures,
            )  # fmt: skip
        except ValueError as error:
            return None, str(error)
        if loss.aggregation not in (None, values[MODE]):
            return None, f"{LOSS}={mode} is {loss.aggregation} and refuses to start with {MODE}={values[MODE]}"
        numbers = {key: getattr(found, key) for key in found.__dataclass_fields__ if key not in ("name", *_PARTS)}
        return objective_of(
            {**{part: getattr(found, part) for part in _PARTS}, "advantage": advantage}, {**numbers, **terms}
        )
    if mode not in _MODES:
        if mode in _OTHER_MODES:
            return None, f"{LOSS}={mode}: none of our surrogates is that"
        hint = nearest(mode, [*_MODES, *_OTHER_MODES, *VERL_LOSSES])
        return None, f"{LOSS}={mode}: {TRAINER} has no such loss{hint}; what a plug-in registers is not read here"
    if values[MODE] == "token-sum":
        return None, f"{MODE}=token-sum divides by nothing: none of our aggregations does that"
    ratio, surrogate = _MODES[mode]
    aggregation = "seq-mean-token-mean" if mode in _BY_SEQUENCE_ALONE else values[MODE]
    parts = {"advantage": advantage, "ratio": ratio, "surrogate": surrogate, "aggregation": aggregation}
    numbers = {}
    if surrogate == "sapo":
        numbers = {"sapo_temperature_positive": temperatures[0], "sapo_temperature_negative": temperatures[1]}
    elif surrogate != "reinforce":
        numbers = {"clip_low": clip[0], "clip_high": clip[1]}
    if mode == "vanilla" and dual < NO_DUAL_CLIP:
        numbers["dual_clip"] = dual
    elif surrogate.startswith("dppo") and dual < NO_DUAL_CLIP:
        numbers["ratio_cap"] = dual
    return objective_of(parts, {**numbers, **terms})


_PARTS = ("advantage", "ratio", "surrogate", "aggregation")


def _counts(values: Mapping[str, Any]) -> Counts:
    groups, size = values[f"{ACTOR}.ppo_mini_batch_size"], values["actor_rollout_ref.rollout.n"]
    epochs = values[f"{ACTOR}.ppo_epochs"]
    return Counts(
        sequences=groups * size,
        groups=groups,
        response_limit=int(values[f"{ACTOR}.loss_scale_factor"] or values["data.max_response_length"]),
        updates=epochs * values["data.train_batch_size"] / groups,
        epochs=epochs,
    )


def _differences(values: Mapping[str, Any]) -> Iterator[str]:
    mode = values[LOSS]
    if mode == "geo_mean":
        yield "its mean is one over the rows of each micro-batch"
    if values[MODE] == "seq-mean-token-sum-norm" and values[f"{ACTOR}.loss_scale_factor"] is None:
        yield (
            f"without {ACTOR}.loss_scale_factor its L is the padded width of each micro-batch, so the loss depends on the split:"
            " set it to the response limit"
        )
    if values["algorithm.use_kl_in_reward"]:
        yield "a KL penalty is taken off the rewards before the advantages are made (algorithm.use_kl_in_reward)"
    if kind := values[f"{CORRECTION}.rollout_is"]:
        ours = "sequence-product" if kind == "sequence" else kind
        cap = values[THRESHOLD]
        normalised = ", divided by their mean" if values[f"{CORRECTION}.rollout_is_batch_normalize"] else ""
        weighted = f"the policy loss is weighted by the ratio of trainer to sampler{normalised}"
        if isinstance(cap, tuple):
            yield (
                f"{weighted}, and a {kind} whose ratio lies outside {cap[0]:g} to {cap[1]:g} has weight 0 (IcePop): no"
                " update.sampler_correction does that, it caps the ratio at its upper end"
            )
        else:
            yield (
                f"{weighted}, at most {cap}: here update.sampler_correction={ours} with update.sampler_correction_cap={cap}"
            )
    if rule := values[f"{CORRECTION}.rollout_rs"]:
        yield f"what the sampler drew too unlike the trainer is left out of the loss ({CORRECTION}.rollout_rs={rule})"


def _warnings(values: Mapping[str, Any], given: Mapping[str, Any], objective: ObjectiveConfig | None) -> Iterator[str]:
    mode, aggregation = values[LOSS], values[MODE]
    if mode == "gspo" and MODE not in given:
        yield f"{MODE} is token-mean unless set: GSPO as published takes seq-mean-token-mean"
    if mode == "gspo" and aggregation != "seq-mean-token-mean":
        yield (
            "verl before 0.9.1 does not read loss_agg_mode in its gspo: there these settings run GSPO without a word; check"
            " the version that runs"
        )
    yield from by_length(objective)
    if aggregation == "token-mean" and objective is not None and objective.ratio == "token" and mode == "vanilla":
        yield TOKEN_MEAN
    yield from wide_clip(objective)
    if aggregation == "seq-mean-token-sum":
        yield STEEP
    if mode in _BY_SEQUENCE_ALONE and aggregation != "seq-mean-token-mean":
        chosen = "" if MODE in given else ", verl's own value,"
        yield f"its {mode} ignores {MODE}={aggregation}{chosen} and averages over the tokens of each sequence"
    if mode == "vanilla" and f"{ACTOR}.clip_ratio_c" not in given:
        yield f"its vanilla loss has a dual clip at 3.0 unless {ACTOR}.clip_ratio_c says otherwise; ours has none unless set"
    if f"{ACTOR}.clip_ratio" in given and not {f"{ACTOR}.clip_ratio_low", f"{ACTOR}.clip_ratio_high"} <= set(given):
        yield (
            f"{ACTOR}.clip_ratio={given[f'{ACTOR}.clip_ratio']} changes nothing: clip_ratio_low and clip_ratio_high are 0.2"
            " unless set, and they are what is read"
        )
    if values["algorithm.filter_groups.enable"]:
        yield "algorithm.filter_groups chooses which groups are trained on: it is not in the equation"
    if values["actor_rollout_ref.rollout.n"] == 1 and objective is not None:
        yield "actor_rollout_ref.rollout.n is 1: a group of one has nothing to compare, verl takes its raw reward as advantage"


def _read_keys(values: Mapping[str, Any]) -> Iterator[str]:
    """The keys with a value of verl's own that this loss depends on."""
    mode = values[LOSS]
    yield from ("algorithm.adv_estimator", LOSS, MODE, f"{ACTOR}.use_kl_loss", f"{ACTOR}.entropy_coeff")
    if values["algorithm.adv_estimator"].startswith("grpo"):
        yield "algorithm.norm_adv_by_std_in_grpo"
    if mode == "sapo":
        yield from (f"{ACTOR}.tau_pos", f"{ACTOR}.tau_neg")
    elif mode != "gpg":
        yield from (f"{ACTOR}.clip_ratio_low", f"{ACTOR}.clip_ratio_high")
    if mode == "vanilla" or mode.startswith("dppo"):
        yield f"{ACTOR}.clip_ratio_c"
    if values[MODE] == "seq-mean-token-sum-norm":
        yield f"{ACTOR}.loss_scale_factor"
    if values[f"{ACTOR}.use_kl_loss"]:
        yield from (f"{ACTOR}.kl_loss_coef", f"{ACTOR}.kl_loss_type")
    yield from (
        "actor_rollout_ref.rollout.n",
        "data.train_batch_size",
        f"{ACTOR}.ppo_mini_batch_size",
        f"{ACTOR}.ppo_epochs",
    )
    yield from ("data.max_response_length", "actor_rollout_ref.rollout.temperature")


def _unread(given: Mapping[str, Any]) -> Iterator[str]:
    """Keys of the actor and the algorithm are all near the loss; what is elsewhere is not, unless verl has no such section."""
    for key, value in given.items():
        if key in KEYS or key.startswith(_NEUTRAL):
            continue
        if key.startswith((f"{ACTOR}.", "algorithm.")):
            yield f"{key}={value}: not read here{nearest(key, KEYS)}; it may change the loss"
        elif key.split(".")[0] not in SECTIONS:
            yield f"{key}={value}: {TRAINER} has no such section"


SECTIONS = (
    "actor_rollout_ref", "algorithm", "critic", "custom_reward_function", "data", "defaults", "global_profiler", "hydra",
    "model_engine", "ray_kwargs", "reward", "reward_model", "reward_manager", "sandbox_fusion", "trainer", "transfer_queue",
    "distillation", "teacher", "npu_profile",
)  # fmt: skip
"""The first words of verl's keys."""
