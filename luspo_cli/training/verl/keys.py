"""What becomes of every key of the configuration in verl: its key there, or why it has none. docs/verl.md shows this table.

`overrides.py` makes the settings; a test changes each key and sees whether they change, stay, or are refused, as is said here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from luspo_cli.config.kernels import KERNEL_KEYS
from luspo_cli.config.layers import all_keys
from luspo_cli.config.objective import VESPO_KEYS, resolve
from luspo_cli.config.peers import ACTOR
from luspo_cli.config.reward import LENGTH_KEYS
from luspo_cli.config.run import MADE, TrainRun
from luspo_cli.config.stored import flatten
from luspo_cli.errors import UsageError

MODEL, ROLLOUT, OPTIM = "actor_rollout_ref.model", "actor_rollout_ref.rollout", f"{ACTOR}.optim"
REWARD_KWARGS = "+reward.custom_reward_function.reward_kwargs"
_LOSS = f"{ACTOR}.policy_loss.loss_mode"
_MADE_ONLY = "of a made model, which only our engine trains"
_FORK = "a fork goes on with our engine's optimizer state, which verl does not read"


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one key; exactly one of `verl`, `idle` and `refused` says it, `note` what is different there."""

    verl: str = ""
    """verl's keys that it decides."""
    idle: str = ""
    """Why the run in verl does not depend on it, or what stands in its place."""
    refused: str = ""
    """Why another value than the default is refused."""
    note: str = ""


def _rows(section: str, **fates: Fate) -> dict[str, Fate]:
    return {f"{section}.{key}": fate for key, fate in fates.items()}


FATES: Mapping[str, Fate] = {
    **_rows(
        "objective",
        name=Fate(_LOSS),
        advantage=Fate("algorithm.adv_estimator, algorithm.norm_adv_by_std_in_grpo"),
        ratio=Fate(_LOSS),
        surrogate=Fate(_LOSS),
        aggregation=Fate(f"{ACTOR}.loss_agg_mode, {ACTOR}.loss_scale_factor"),
        clip_low=Fate(f"{ACTOR}.clip_ratio_low", note="verl's actor.clip_ratio changes nothing beside it"),
        clip_high=Fate(f"{ACTOR}.clip_ratio_high"),
        clip_on=Fate(_LOSS),
        clip_band=Fate(refused="verl shows a loss one micro-batch at a time, a balanced range needs the mini-batch"),
        dual_clip=Fate(f"{ACTOR}.clip_ratio_c"),
        sapo_temperature_positive=Fate(f"{ACTOR}.tau_pos"),
        sapo_temperature_negative=Fate(f"{ACTOR}.tau_neg"),
        **{key: Fate(refused="the plug-in has those of the name vespo alone") for key in VESPO_KEYS},
        ratio_cap=Fate(refused="verl has no key for it"),
        length_exponent=Fate(refused="verl has no key for it"),
        length_normalise=Fate(refused="verl has no key for it"),
        kl_coefficient=Fate(f"{ACTOR}.use_kl_loss, {ACTOR}.kl_loss_coef"),
        kl_estimator=Fate(f"{ACTOR}.kl_loss_type"),
        entropy_coefficient=Fate(f"{ACTOR}.entropy_coeff"),
        base=Fate(refused="verl's processes are not handed functions of one's own: use the luspo engine"),
        sha256=Fate(refused="verl's processes are not handed functions of one's own: use the luspo engine"),
    ),
    **_rows(
        "model",
        path=Fate(f"{MODEL}.path", note="`made` is refused"),
        revision=Fate(refused="verl takes the newest revision of a hub id: give a local folder as model.path"),
        compute_dtype=Fate(
            f"{MODEL}.use_remove_padding, +{ACTOR}.fsdp_config.mixed_precision.param_dtype, {ROLLOUT}.dtype",
            note="`float32` with FSDP alone, on padded rows",
        ),
        gradient_checkpointing=Fate(f"{MODEL}.enable_gradient_checkpointing"),
        trust_remote_code=Fate(f"{MODEL}.trust_remote_code, data.trust_remote_code"),
        freeze_vision=Fate(f"{ACTOR}.freeze_vision_tower"),
        **{f"lora.{key}": Fate(refused="adapters are trained by our engine") for key in ("rank", "alpha", "targets")},
        **{key.removeprefix("model."): Fate(idle="verl has kernels of its own") for key in KERNEL_KEYS},
        sharding=Fate(idle="verl shares out every weight (verl.strategy)"),
        **{key.removeprefix("model."): Fate(idle=_MADE_ONLY) for key, _ in all_keys() if key.startswith("model.shape.")},
    ),
    **{key: Fate(idle=_MADE_ONLY) for key, _ in all_keys() if key.startswith("warmup.")},
    **_rows(
        "data",
        train=Fate("data.train_files", note="the problems, written into the run folder in verl's layout"),
        held_out=Fate("data.val_files", note="likewise, the first evaluation.problems of it"),
        profile=Fate(idle="of made:terms, which only our engine trains on"),
        shuffle=Fate("data.shuffle", note="another order than ours: verl draws it with its own generator"),
        max_prompt_tokens=Fate("data.max_prompt_length", note="with data.filter_overlong_prompts=True"),
        max_pixels=Fate("data.train_files", note="`max_pixels` beside each image's bytes"),
        min_pixels=Fate("data.train_files", note="`min_pixels` likewise"),
    ),
    **_rows(
        "rollout",
        problems=Fate("data.train_batch_size"),
        group_size=Fate(f"{ROLLOUT}.n"),
        max_response_tokens=Fate("data.max_response_length"),
        temperature=Fate(f"{ROLLOUT}.temperature"),
        top_p=Fate(f"{ROLLOUT}.top_p"),
        top_k=Fate(f"{ROLLOUT}.top_k", note="0 is -1 there"),
        lag=Fate(refused="verl's trainer trains each batch in the step that sampled it"),
        dynamic_sampling=Fate(
            refused="verl's filter of groups has no bound on its rounds, and reports the kept groups' lengths alone"
        ),
        max_sampling_rounds=Fate(idle="of dynamic sampling"),
        stop_after_steps_without_signal=Fate(idle="of dynamic sampling"),
        chat_template=Fate("+data.apply_chat_template_kwargs.NAME"),
        max_rows=Fate(f"{ROLLOUT}.max_num_seqs", note="of each copy of the sampling engine"),
        sampler=Fate(refused="verl starts its own sampling engines (verl.rollout): set 'auto'"),
        **{
            "vllm.memory_share": Fate(f"{ROLLOUT}.gpu_memory_utilization"),
            "vllm.eager": Fate(f"{ROLLOUT}.enforce_eager"),
            "vllm.servers": Fate(idle="of rollout.sampler = 'vllm-server'"),
            "vllm.timeout_s": Fate(idle="of rollout.sampler = 'vllm-server'"),
        },
    ),
    **_rows(
        "reward",
        verifier=Fate(refused="verl does not tell a reward how a response ended, which the made tasks' verifier needs"),
        accuracy_weight=Fate(f"{REWARD_KWARGS}.accuracy_weight"),
        function=Fate(refused="the plug-in rewards by accuracy and form: name a function of verl's own there"),
        function_seconds=Fate(idle="of reward.function"),
        function_failed_score=Fate(idle="of reward.function"),
        format=Fate(f"{REWARD_KWARGS}.format"),
        format_weight=Fate(f"{REWARD_KWARGS}.format_weight"),
        overlong_buffer=Fate("reward.reward_manager.name=dapo, +reward.reward_kwargs.overlong_buffer_cfg.len"),
        overlong_weight=Fate("+reward.reward_kwargs.overlong_buffer_cfg.penalty_factor"),
        **{
            key: Fate(refused="verl's reward function is called once a response, without its length and its group")
            for key in LENGTH_KEYS
        },
        truncated=Fate(refused="verl does not tell a reward function whether the limit cut a response"),
        truncated_reward=Fate(idle="of reward.truncated = 'penalise'"),
        lazy_length_tolerance=Fate(idle="of reward.lazy_length_weight"),
        **{
            f"cosine_length_{key}": Fate(idle="of reward.cosine_length_weight")
            for key in ("correct", "wrong", "at_limit")
        },
        timeout_s=Fate(f"{REWARD_KWARGS}.timeout_s"),
        workers=Fate("reward.num_workers", note="0: verl's 8"),
        while_sampling=Fate(idle="verl always grades while it samples"),
    ),
    **_rows(
        "update",
        mini_batches=Fate(f"{ACTOR}.ppo_mini_batch_size", note="rollout.problems over it"),
        tokens_per_micro_batch=Fate(f"{ACTOR}.ppo_max_token_len_per_gpu", note="without padding"),
        learning_rate=Fate(f"{OPTIM}.lr"),
        schedule=Fate(
            f"{OPTIM}.lr_scheduler_type, with Megatron {OPTIM}.lr_decay_style",
            note="`linear` is refused with FSDP, which has none",
        ),
        ramp_steps=Fate(
            f"{OPTIM}.lr_warmup_steps",
            note="with FSDP step t of a ramp of R has (t-1)/R of the rate, ours has t/R: verl's first step moves nothing",
        ),
        betas=Fate(f"{OPTIM}.betas"),
        optimizer=Fate(refused="verl's own AdamW keeps its moments in 32 bits"),
        moments=Fate(refused="verl's own AdamW keeps its moments in 32 bits"),
        spare_memory=Fate(idle="verl has keys of its own for what it holds when (verl.offload_parameters)"),
        offload_optimizer=Fate(f"{ACTOR}.fsdp_config.optimizer_offload, with Megatron {ACTOR}.megatron.optimizer_offload"),
        weight_decay=Fate(f"{OPTIM}.weight_decay"),
        gradient_clip=Fate(f"{OPTIM}.clip_grad", note="0 (off) is 1e9 there; verl's actor.grad_clip is read by nothing"),
        skip_rows_without_advantage=Fate(idle="verl computes every row; the gradient is the same"),
        stop_after_bad_steps=Fate(idle="verl leaves out an update with a gradient that is not finite, and goes on"),
        noise_floor_every=Fate(idle="verl does not measure ratio/noise_floor"),
        exact_gradient_shares_every=Fate(refused="verl does not measure shares of the gradient"),
        router_replay=Fate(refused=f"in verl.overrides set Megatron's own key, {ACTOR}.megatron.router_replay.mode"),
        router_aux_coefficient=Fate(refused="verl adds no balancing loss of ours; Megatron has keys of its own for one"),
        sampler_correction=Fate(
            "algorithm.rollout_correction.rollout_is",
            note="sequence-product is `sequence` there; `sequence` (the geometric mean) is refused, verl has none",
        ),
        sampler_correction_cap=Fate("algorithm.rollout_correction.rollout_is_threshold"),
    ),
    **_rows(
        "evaluation",
        every=Fate("trainer.test_freq, trainer.val_before_train"),
        problems=Fate("data.val_files"),
        samples=Fate(f"{ROLLOUT}.val_kwargs.n"),
        temperature=Fate(f"{ROLLOUT}.val_kwargs.temperature, {ROLLOUT}.val_kwargs.do_sample"),
        max_response_tokens=Fate(refused="verl has one response limit, rollout.max_response_tokens"),
        blind=Fate(refused="verl validates once, on the images themselves"),
    ),
    **_rows(
        "run",
        engine=Fate(idle="it is what chose verl"),
        steps=Fate("trainer.total_training_steps, trainer.total_epochs"),
        seed=Fate(f"data.seed, {ROLLOUT}.seed, {ACTOR}.data_loader_seed", note="the draws are not ours"),
        threads=Fate(idle="Ray gives each process its cores"),
        wait_for_processes_s=Fate(idle="Ray watches its processes"),
        checkpoint_every=Fate("trainer.save_freq"),
        checkpoint_last=Fate("trainer.save_freq"),
        keep_checkpoints=Fate("trainer.max_actor_ckpt_to_keep"),
        rollouts_every=Fate("trainer.rollout_data_dir", note="verl writes every step's; so many are kept"),
        track=Fate(idle="the launcher hands the translated metrics to these writers"),
    ),
    **{key: Fate(refused=_FORK) for key, _ in all_keys() if key.startswith("fork.")},
    **_rows(
        "verl",
        required=Fate(idle="of our own engine alone"),
        nodes=Fate("trainer.nnodes"),
        gpus_per_node=Fate("trainer.n_gpus_per_node"),
        strategy=Fate(f"model_engine, {ACTOR}.strategy"),
        loss=Fate(_LOSS),
        offload_parameters=Fate(f"{ACTOR}.fsdp_config.param_offload, with Megatron {ACTOR}.megatron.param_offload"),
        offload_optimizer=Fate("as update.offload_optimizer"),
        rollout_memory_share=Fate(f"{ROLLOUT}.gpu_memory_utilization"),
        sequence_parallel=Fate(f"{ACTOR}.ulysses_sequence_parallel_size"),
        rollout=Fate(f"{ROLLOUT}.name"),
        rollout_tensor_parallel=Fate(f"{ROLLOUT}.tensor_model_parallel_size"),
        chunked_prefill=Fate(f"{ROLLOUT}.enable_chunked_prefill"),
        fused_kernels=Fate(f"{MODEL}.use_fused_kernels"),
        logprob_tokens_per_micro_batch=Fate(f"{ROLLOUT}.log_prob_max_token_len_per_gpu"),
        overrides=Fate("whatever they name"),
        **{
            f"megatron.{ours}": Fate(f"{ACTOR}.megatron.{theirs}")
            for ours, theirs in (
                ("tensor_parallel", "tensor_model_parallel_size"),
                ("pipeline_parallel", "pipeline_model_parallel_size"),
                ("context_parallel", "context_parallel_size"),
                ("expert_parallel", "expert_model_parallel_size"),
                ("expert_tensor_parallel", "expert_tensor_parallel_size"),
            )
        },
    ),
}  # fmt: skip


def refuse_inexpressible(config: TrainRun) -> None:
    """UsageError for the first key whose value verl cannot be given."""
    if config.model.path == MADE or config.data.train.startswith(f"{MADE}:"):
        key, value = ("model.path", MADE) if config.model.path == MADE else ("data.train", config.data.train)
        raise UsageError(
            f"{key} = '{value}' is made by our own engine, which verl has not: set {key} to another one, or train without verl"
        )
    for key, value in _changed(config):
        if reason := FATES[key].refused:
            raise UsageError(f"{key} = {value!r} cannot be had with verl: {reason}")


def idle_settings(config: TrainRun) -> list[str]:
    """One sentence for each key that is not at its default and that the run in verl does not depend on."""
    silent = ("run.engine", "verl.required", "run.track", "model.sharding")
    shape = [key for key, _ in _changed(config) if key.startswith("model.shape.")]
    return [
        f"{key} = {value!r} changes nothing in verl: {FATES[key].idle}"
        for key, value in _changed(config)
        if FATES[key].idle and key not in silent and key not in shape
    ]


def _changed(config: TrainRun) -> Iterator[tuple[str, Any]]:
    """Keys with another value than their default, in order; that of an objective's key is its name's."""
    name = config.objective.base or config.objective.name  # of one of one's own: what it is made of
    named = {} if name == "custom" else {f"objective.{key}": value for key, value in asdict(resolve(name)).items()}
    defaults = {**dict(all_keys()), "objective.clip_band": "fixed", **named, "reward.accuracy_weight": 1.0}
    for key, value in flatten(config.model_dump()).items():
        # None of these: the objective does not read the key.
        unread = value is None and (key == "objective.clip_band" or key.startswith("objective.vespo_"))
        if key in defaults and value != defaults[key] and not unread:
            yield key, value
