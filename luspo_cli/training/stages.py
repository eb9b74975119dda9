"""The stages of the loop, built from a configuration: policy, optimizer, sampler, held-out check, checkpoints.

The sampler comes before the policy is wrapped or shared out: what it copies, it copies from whole weights, and an engine that
takes its memory first leaves the rest to training.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luspo_cli.config.run import TrainRun
from luspo_cli.data.batches import BatchSource
from luspo_cli.policy.loading import LoadedModel, freeze_vision
from luspo_cli.policy.lora import BasePolicy
from luspo_cli.policy.policy import Policy
from luspo_cli.processes.accelerate import make_accelerator, prepare
from luspo_cli.processes.ranks import Ranks
from luspo_cli.processes.sharding import gather_state, shard
from luspo_cli.records import Problem
from luspo_cli.rewards.rubric import Rubric
from luspo_cli.rollout.sampler import Sampler, SamplingOptions
from luspo_cli.rollout.samplers import SamplerModel, choose_sampler, make_sampler
from luspo_cli.runs.checkpoints import Checkpoint
from luspo_cli.runs.folder import RunFolder
from luspo_cli.training.checkpoint import save_checkpoint
from luspo_cli.training.held_out import SEED_OFFSET, HeldOut
from luspo_cli.training.loop import Stages
from luspo_cli.training.optimizer import load_optimizer, make_optimizer
from luspo_cli.training.sampling import held_out_limit, longest_row, training_draws
from luspo_cli.training.update import Updater


def make_stages(
    config: TrainRun,
    loaded: LoadedModel,
    source: BatchSource,
    held_out_problems: Sequence[Problem],
    held_out_tokens: int,
    rubric: Rubric,
    folder: RunFolder,
    checkpoint: Checkpoint | None,
    reference_model: Any,
    ranks: Ranks,
) -> Stages:
    """Build every stage.

    `held_out_tokens` are those of the longest held-out prompt, 0 where there is none; `checkpoint` gives the optimizer's state,
    `reference_model` a KL term's starting weights.
    """
    sharded = ranks.size > 1 and config.model.sharding == "full"
    low_precision = config.model.compute_dtype == "bfloat16"
    accelerator = make_accelerator(low_precision, images=loaded.processor is not None, sharded=sharded)
    held_out = _held_out_check(config, loaded, held_out_problems, rubric)
    sampler = _sampler(config, loaded, held_out_tokens, accelerator.device, sharded)
    adapted, has_reference = config.model.lora.rank > 0, config.objective.kl_coefficient > 0
    reference: Policy | BasePolicy | None = None
    if has_reference and not adapted:
        frozen = (reference_model or copy.deepcopy(loaded.model)).requires_grad_(False).eval().to(accelerator.device)
        reference = Policy(frozen, config.rollout.temperature)
    if config.model.freeze_vision:
        freeze_vision(loaded.model)
    policy = Policy(loaded.model, config.rollout.temperature).train()
    if sharded:
        for whole in (policy, reference):
            if isinstance(whole, Policy):
                shard(whole, accelerator.device)
    names, optimizer = make_optimizer(policy, config.update)
    if checkpoint:
        load_optimizer(checkpoint.trainer, optimizer, names)
    prepared, optimizer = prepare(accelerator, policy, optimizer, sharded)
    if has_reference and adapted:
        reference = BasePolicy(prepared, policy.model)

    def save(step: int) -> Path:
        ranks.first(folder.check_still_here)
        gathered = gather_state(policy.model, optimizer, ranks.is_first) if sharded else None
        return ranks.first(
            lambda: save_checkpoint(
                folder.checkpoints,
                step,
                policy.model,
                loaded.processor or loaded.tokenizer,
                optimizer,
                names,
                config.run.keep_checkpoints,
                gathered,
            )
        )

    return Stages(
        problems=source,
        to_prompt=loaded.prompt,
        sampler=sampler,
        rubric=rubric,
        updater=Updater(prepared, optimizer, accelerator, config, reference, ranks),
        held_out=held_out,
        refresh_sampler=lambda: sampler.load_weights(policy.model),
        save=save,
        ranks=ranks,
    )


def _held_out_check(
    config: TrainRun, loaded: LoadedModel, problems: Sequence[Problem], rubric: Rubric
) -> HeldOut | None:
    if not config.evaluation.every:
        return None
    settings = config.evaluation
    options = SamplingOptions(
        group_size=settings.samples,
        max_response_tokens=held_out_limit(config),
        temperature=settings.temperature,
        seed=config.run.seed + SEED_OFFSET,
    )
    return HeldOut(problems, loaded.prompt, options, rubric)


def _sampler(config: TrainRun, loaded: LoadedModel, held_out_tokens: int, device: Any, apart: bool) -> Sampler:
    model = SamplerModel(
        path=str(loaded.model.config.name_or_path),
        tokenizer=loaded.tokenizer,
        end_tokens=loaded.end_tokens,
        compute_dtype=config.model.compute_dtype,
        revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
    )
    return make_sampler(
        choose_sampler(config.rollout.sampler, reads_images=loaded.processor is not None),
        model,
        loaded.model,
        device=device,
        apart=apart,
        max_rows=config.rollout.max_rows,
        longest=longest_row(config, loaded.model, held_out_tokens),
        draws=training_draws(config),
        seed=config.run.seed,
        vllm=config.rollout.vllm,
    )
