"""The resolved configuration as settings of verl 0.9.1, in its words; UsageError for what verl cannot be given.

`keys.py` says for every key of ours what becomes of it. The function of each section below makes the settings, and what the user
adds (`verl.overrides`) comes last: it may name any key of verl's but those that our configuration decides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luspo_cli.config.peers import ACTOR, verl_settings
from luspo_cli.config.run import TrainRun
from luspo_cli.config.verl_losses import verl_plugin_settings
from luspo_cli.errors import UsageError
from luspo_cli.training.verl.further import Verbatim, further_settings
from luspo_cli.training.verl.keys import MODEL, OPTIM, REWARD_KWARGS, ROLLOUT, idle_settings, refuse_inexpressible

MAIN = "verl.trainer.main_ppo"
LOGGER_PATH = "VERL_FILE_LOGGER_PATH"
"""verl's environment variable for the file of its file logger."""
NO_CLIP = 1e9
"""verl always clips the gradient; at this norm it does nothing."""
COMPUTE_SCORE = "pkg://luspo_cli.verl_plugin.reward"
RUNTIME_VARIABLES = "+ray_kwargs.ray_init.runtime_env.env_vars"
_THOUGHT_UNKNOWN = (
    "{path} is not on this machine: where its chat template opens a thought (<think>), set"
    f" {REWARD_KWARGS}.thought_open=True in verl.overrides"
)
_PLAIN = re.compile(r"[A-Za-z0-9_./+\-]+")


@dataclass(frozen=True, slots=True)
class VerlFiles:
    """Where a run in verl has its files; absolute, on a file system that all nodes see."""

    folder: Path

    @property
    def train(self) -> Path:
        return self.folder / "data" / "train.parquet"

    @property
    def held_out(self) -> Path:
        return self.folder / "data" / "held-out.parquet"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def rollouts(self) -> Path:
        return self.folder / "rollouts"

    def log(self, after_step: int) -> Path:
        """The JSON lines of verl's file logger; a new file for each start, since verl empties the one that it is given."""
        return self.folder / f"log-after-{after_step:06d}.jsonl"


def verl_files(run: Path) -> VerlFiles:
    """The files of the run folder `run`."""
    return VerlFiles(run.absolute() / "verl")


@dataclass(frozen=True, slots=True)
class VerlCommand:
    """What starts the run in verl."""

    settings: Mapping[str, Any]
    """verl's key, with the + that Hydra wants before a new one → value."""
    remarks: tuple[str, ...]
    """What is otherwise than in our own engine, one sentence each."""

    def overrides(self) -> list[str]:
        """As Hydra reads them, one argument each."""
        return [f"{key}={spelled(value)}" for key, value in self.settings.items()]


def verl_command(
    config: TrainRun,
    files: VerlFiles,
    *,
    name: str,
    problems: int,
    thought_open: bool | None = False,
    after_step: int = 0,
    ray_address: str = "",
) -> VerlCommand:
    """The settings of a run called `name` on so many training problems; UsageError for what verl cannot be given.

    `thought_open`: whether the chat template opens a thought; None: that is not known here. `after_step`: the step that a
    resumed run goes on from. `ray_address`: of a cluster that runs already.
    """
    refuse_inexpressible(config)
    settings: dict[str, Any] = {}
    parts = (
        _engine(config), _objective(config), _model(config), _data(config, files), _rollout(config),
        _reward(config, bool(thought_open)), _update(config), _evaluation(config), _trainer(config, files, name, problems),
        _ray(files, after_step, ray_address),
    )  # fmt: skip
    for part in parts:
        settings.update(part)
    settings.update(further_settings(config.verl.overrides, settings))
    unknown = () if thought_open is not None else (_THOUGHT_UNKNOWN.format(path=config.model.path),)
    return VerlCommand(settings, (*_remarks(config), *unknown, *idle_settings(config)))


def spelled(value: Any) -> str:
    """A value in Hydra's grammar of overrides."""
    if isinstance(value, Verbatim):
        return str(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(spelled, value))}]"
    if isinstance(value, int | float):
        return repr(value)
    text = str(value)
    if _PLAIN.fullmatch(text) and not _reads_as_another_type(text):
        return text
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", re.sub(r"(\\+)$", r"\1\1", text)) + "'"


def _reads_as_another_type(text: str) -> bool:
    """Whether Hydra would take the text for a number, a truth value or null."""
    try:
        float(text)
    except ValueError:
        return text.lower() in ("true", "false", "null", "nan", "inf")
    return True


def _engine(config: TrainRun) -> dict[str, Any]:
    verl, update = config.verl, config.update
    found: dict[str, Any] = {}
    if verl.strategy == "megatron":
        shares, place = verl.megatron, f"{ACTOR}.megatron"
        found = {
            "model_engine": "megatron",
            f"{place}.tensor_model_parallel_size": shares.tensor_parallel,
            f"{place}.pipeline_model_parallel_size": shares.pipeline_parallel,
            f"{place}.context_parallel_size": shares.context_parallel,
            f"{place}.expert_model_parallel_size": shares.expert_parallel,
            f"{place}.expert_tensor_parallel_size": shares.expert_tensor_parallel,
            f"{place}.use_mbridge": True,
        }
    else:
        place = f"{ACTOR}.fsdp_config"
        found = {
            f"{ACTOR}.strategy": verl.strategy,
            f"{ACTOR}.ulysses_sequence_parallel_size": verl.sequence_parallel,
        }
    return {
        **found,
        f"{place}.param_offload": verl.offload_parameters,
        f"{place}.optimizer_offload": verl.offload_optimizer or update.offload_optimizer,
        "trainer.nnodes": verl.nodes,
        "trainer.n_gpus_per_node": verl.gpus_per_node,
    }


def _objective(config: TrainRun) -> dict[str, Any]:
    settings_of = verl_settings if config.verl.loss == "stock" else verl_plugin_settings
    settings = settings_of(config.objective, config.rollout.max_response_tokens)
    if settings.missing:
        advice = "; verl.loss = 'plugin' has it" if config.verl.loss == "stock" else ""
        raise UsageError(f"objective {config.objective.name} cannot be had in verl: {settings.missing}{advice}")
    without_kl = {} if config.objective.kl_coefficient > 0 else {f"{ACTOR}.use_kl_loss": False}
    return {**settings.values, **without_kl, "algorithm.use_kl_in_reward": False}


def _model(config: TrainRun) -> dict[str, Any]:
    model = config.model
    folder = Path(model.path).expanduser()
    found = {
        f"{MODEL}.path": str(folder.absolute()) if folder.is_dir() else model.path,
        **_precision(config),
        f"{MODEL}.enable_gradient_checkpointing": model.gradient_checkpointing,
        f"{MODEL}.use_fused_kernels": config.verl.fused_kernels,
        f"{ACTOR}.freeze_vision_tower": model.freeze_vision,
    }
    if model.trust_remote_code:
        found |= {f"{MODEL}.trust_remote_code": True, "data.trust_remote_code": True}
    if model.gradient_checkpointing and config.verl.strategy == "megatron":
        place = f"{ACTOR}.megatron.override_transformer_config"
        found |= {
            f"{place}.recompute_granularity": "full",
            f"{place}.recompute_method": "uniform",
            f"{place}.recompute_num_layers": 1,
        }
    return found


def _precision(config: TrainRun) -> dict[str, Any]:
    """What passes are computed in. Packed rows are for flash attention, which knows no float32: there rows are padded."""
    if config.model.compute_dtype == "bfloat16":
        return {f"{MODEL}.use_remove_padding": True}
    verl = config.verl
    if verl.strategy == "megatron" or verl.sequence_parallel > 1:
        place = "verl.strategy = 'megatron'" if verl.strategy == "megatron" else "verl.sequence_parallel above 1"
        raise UsageError(
            f"model.compute_dtype = 'float32' cannot be had with verl and {place}, whose kernels have none: set"
            " model.compute_dtype = 'bfloat16'"
        )
    places = [ACTOR, *(["actor_rollout_ref.ref"] if config.objective.kl_coefficient > 0 else [])]
    return {
        f"{MODEL}.use_remove_padding": False,
        f"+{MODEL}.override_config.attn_implementation": "sdpa",
        **{f"+{place}.fsdp_config.mixed_precision.param_dtype": "fp32" for place in places},
        f"{ROLLOUT}.dtype": "float32",
    }


def _data(config: TrainRun, files: VerlFiles) -> dict[str, Any]:
    data, rollout = config.data, config.rollout
    return {
        "data.train_files": str(files.train),
        "data.val_files": str(files.held_out if config.evaluation.every else files.train),
        "data.train_batch_size": rollout.problems,
        "data.max_prompt_length": data.max_prompt_tokens,
        "data.max_response_length": rollout.max_response_tokens,
        "data.filter_overlong_prompts": True,
        "data.shuffle": data.shuffle,
        "data.seed": config.run.seed,
        "data.image_key": "images",
        **{f"+data.apply_chat_template_kwargs.{key}": value for key, value in rollout.chat_template.items()},
    }


def _rollout(config: TrainRun) -> dict[str, Any]:
    rollout, verl, update = config.rollout, config.verl, config.update
    return {
        f"{ROLLOUT}.name": verl.rollout,
        f"{ROLLOUT}.n": rollout.group_size,
        f"{ROLLOUT}.temperature": rollout.temperature,
        f"{ROLLOUT}.top_p": rollout.top_p,
        f"{ROLLOUT}.top_k": rollout.top_k or -1,
        f"{ROLLOUT}.seed": config.run.seed,
        f"{ROLLOUT}.max_num_seqs": rollout.max_rows,
        f"{ROLLOUT}.max_num_batched_tokens": max(8192, config.data.max_prompt_tokens + rollout.max_response_tokens),
        f"{ROLLOUT}.gpu_memory_utilization": verl.rollout_memory_share or rollout.vllm.memory_share,
        f"{ROLLOUT}.enforce_eager": rollout.vllm.eager,
        f"{ROLLOUT}.enable_chunked_prefill": verl.chunked_prefill,
        f"{ROLLOUT}.tensor_model_parallel_size": verl.rollout_tensor_parallel,
        f"{ROLLOUT}.log_prob_max_token_len_per_gpu": verl.logprob_tokens_per_micro_batch
        or update.tokens_per_micro_batch,
    }


def _reward(config: TrainRun, thought_open: bool) -> dict[str, Any]:
    reward = config.reward
    found: dict[str, Any] = {
        "reward.custom_reward_function.path": COMPUTE_SCORE,
        "reward.custom_reward_function.name": "compute_score",
        f"{REWARD_KWARGS}.accuracy_weight": reward.accuracy_weight,
        f"{REWARD_KWARGS}.format": reward.format,
        f"{REWARD_KWARGS}.format_weight": reward.format_weight,
        f"{REWARD_KWARGS}.timeout_s": reward.timeout_s,
    }
    if thought_open:
        found[f"{REWARD_KWARGS}.thought_open"] = True
    if reward.workers:
        found["reward.num_workers"] = reward.workers
    if reward.overlong_buffer:
        place = "+reward.reward_kwargs.overlong_buffer_cfg"
        found |= {
            "reward.reward_manager.name": "dapo",
            "+reward.reward_kwargs.max_resp_len": config.rollout.max_response_tokens,
            f"{place}.enable": True,
            f"{place}.len": reward.overlong_buffer,
            f"{place}.penalty_factor": reward.overlong_weight,
            f"{place}.log": False,
        }
    return found


def _update(config: TrainRun) -> dict[str, Any]:
    update = config.update
    found: dict[str, Any] = {
        f"{ACTOR}.ppo_mini_batch_size": config.rollout.problems // update.mini_batches,
        f"{ACTOR}.ppo_epochs": 1,
        f"{ACTOR}.use_dynamic_bsz": True,
        f"{ACTOR}.ppo_max_token_len_per_gpu": update.tokens_per_micro_batch,
        f"{ACTOR}.data_loader_seed": config.run.seed,
        f"{OPTIM}.lr": update.learning_rate,
        f"{OPTIM}.lr_warmup_steps": update.ramp_steps if update.ramp_steps > 1 else 0,
        f"{OPTIM}.betas": list(update.betas),
        f"{OPTIM}.weight_decay": update.weight_decay,
        f"{OPTIM}.clip_grad": update.gradient_clip or NO_CLIP,
        **_schedule(config),
    }
    if update.sampler_correction == "sequence":
        raise UsageError(
            "update.sampler_correction = 'sequence' is the geometric mean over a sequence's tokens, which verl does not have:"
            " use 'sequence-product', or 'token' with a loss of tokens"
        )
    if update.sampler_correction != "none":
        found |= {
            "algorithm.rollout_correction.rollout_is": update.sampler_correction.removesuffix("-product"),
            "algorithm.rollout_correction.rollout_is_threshold": update.sampler_correction_cap,
        }
    return found


def _schedule(config: TrainRun) -> dict[str, Any]:
    schedule, megatron = config.update.schedule, config.verl.strategy == "megatron"
    if schedule == "linear" and not megatron:
        raise UsageError(
            "update.schedule = 'linear' cannot be had with verl and FSDP, which has constant and cosine: set one of"
            " them, or verl.strategy = 'megatron'"
        )
    end = 0.1 if schedule == "cosine" else 0.0
    if megatron:
        decay = {} if schedule == "constant" else {f"{OPTIM}.min_lr": end * config.update.learning_rate}
        return {f"{OPTIM}.lr_decay_style": schedule, **decay}
    return {f"{OPTIM}.lr_scheduler_type": schedule} | ({f"{OPTIM}.min_lr_ratio": end} if schedule == "cosine" else {})


def _evaluation(config: TrainRun) -> dict[str, Any]:
    evaluation = config.evaluation
    place = f"{ROLLOUT}.val_kwargs"
    if not evaluation.every:
        return {"trainer.test_freq": -1, "trainer.val_before_train": False}
    return {
        "trainer.test_freq": evaluation.every,
        "trainer.val_before_train": True,
        f"{place}.n": evaluation.samples,
        f"{place}.temperature": evaluation.temperature,
        f"{place}.do_sample": evaluation.temperature > 0,
        f"{place}.top_p": 1.0,
        f"{place}.top_k": -1,
    }


def _trainer(config: TrainRun, files: VerlFiles, name: str, problems: int) -> dict[str, Any]:
    run = config.run
    if run.checkpoint_every and not run.checkpoint_last and run.steps % run.checkpoint_every:
        raise UsageError(
            f"run.checkpoint_last = false: verl saves its last step whenever it saves at all; set run.checkpoint_every = 0, or"
            f" to a divisor of run.steps ({run.steps})"
        )
    every = run.checkpoint_every or (run.steps if run.checkpoint_last else -1)
    # verl ends with its epochs where those are fewer than the steps; prompts that it leaves out make an epoch shorter.
    epochs = math.ceil(run.steps * config.rollout.problems / max(1, problems)) + run.steps
    return {
        "trainer.total_training_steps": run.steps,
        "trainer.total_epochs": epochs,
        "trainer.save_freq": every,
        "trainer.max_actor_ckpt_to_keep": run.keep_checkpoints,
        "trainer.default_local_dir": str(files.checkpoints),
        "trainer.rollout_data_dir": str(files.rollouts) if run.rollouts_every else None,
        "trainer.resume_mode": "auto",
        "trainer.logger": ["console", "file"],
        "trainer.project_name": "luspo",
        "trainer.experiment_name": name,
        "trainer.use_v1": True,
        "trainer.v1.trainer_mode": "sync",
        "hydra.run.dir": str(files.folder / "hydra"),
        "hydra.output_subdir": None,
    }


def _ray(files: VerlFiles, after_step: int, ray_address: str) -> dict[str, Any]:
    """What the processes on other nodes are told: the environment of this one does not reach a cluster that runs already."""
    return {
        **({"+ray_kwargs.ray_init.address": ray_address} if ray_address else {}),
        f"{RUNTIME_VARIABLES}.{LOGGER_PATH}": str(files.log(after_step)),
    }


def _remarks(config: TrainRun) -> Iterator[str]:
    update, verl = config.update, config.verl
    if update.ramp_steps > 1 and verl.strategy != "megatron":
        yield (
            f"verl's ramp begins at 0: step t of {update.ramp_steps} has (t-1)/{update.ramp_steps} of the learning rate, and its"
            " first update moves nothing"
        )
    if verl.loss == "stock":
        yield "the loss is verl's own: releases before 0.9.1 run GSPO in its place and say nothing"
