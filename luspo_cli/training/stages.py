"""The stages of the loop, built from a configuration: policy, optimizer, sampler, held-out check, checkpoints.

The sampler comes before the policy is wrapped or shared out: what it copies, it copies from whole weights, and an engine that
takes its memory first leaves the rest to training.
"""

from __future__ import annotations

import copy
from typing import Any

from luspo_cli.config.run import TrainRun
from luspo_cli.policy.loading import LoadedModel, freeze_vision
from luspo_cli.policy.lora import BasePolicy
from luspo_cli.policy.policy import Policy
from luspo_cli.processes.accelerate import make_accelerator, prepare
from luspo_cli.processes.ranks import Ranks
from luspo_cli.processes.sharding import gather_state, is_sharded, shard, twin
from luspo_cli.rewards.rubric import Rubric
from luspo_cli.rollout.samplers import SamplerModel, choose_sampler, make_sampler, release_weights
from luspo_cli.runs.checkpoints import Checkpoint
from luspo_cli.runs.folder import RunFolder
from luspo_cli.training.checkpoint import restore, save_checkpoint
from luspo_cli.training.fork import handed_rollouts, make_held_out
from luspo_cli.training.loop import Stages
from luspo_cli.training.optimizer import make_optimizer
from luspo_cli.training.problems import RunProblems
from luspo_cli.training.sampling import longest_row, rows_at_once, training_draws
from luspo_cli.training.update import Updater


def make_stages(
    config: TrainRun,
    loaded: LoadedModel,
    problems: RunProblems,
    rubric: Rubric,
    folder: RunFolder,
    checkpoint: Checkpoint | None,
    reference_model: Any,
    ranks: Ranks,
) -> Stages:
    """Build every stage; `checkpoint` gives the optimizer's state, `reference_model` a KL term's starting weights."""
    sharded = is_sharded(config.model, ranks)
    low_precision = config.model.compute_dtype == "bfloat16"
    idle_tower = problems.some_bare and loaded.has_trained_tower and not config.model.freeze_vision
    accelerator = make_accelerator(low_precision, idle_tower=idle_tower, sharded=sharded)
    sampler = make_sampler(
        choose_sampler(config.rollout.sampler),
        SamplerModel(
            path=str(loaded.model.config.name_or_path),
            tokenizer=loaded.tokenizer,
            end_tokens=loaded.end_tokens,
            compute_dtype=config.model.compute_dtype,
            revision=config.model.revision,
            trust_remote_code=config.model.trust_remote_code,
            never_drawn=loaded.never_drawn,
            image_pixels=loaded.image_pixels,
            decode_graph=config.model.kernels.decode == "graph",
        ),
        loaded.model,
        device=accelerator.device,
        apart=sharded,
        max_rows=rows_at_once(config),
        longest=longest_row(config, loaded.model, problems.longest_held_out.tokens if problems.longest_held_out else 0),
        draws=training_draws(config),
        seed=config.run.seed,
        vllm=config.rollout.vllm,
        ranks=ranks,
    )
    adapted, has_reference = config.model.lora.rank > 0, config.objective.kl_coefficient > 0
    reference: Policy | BasePolicy | None = None
    if has_reference and not adapted:
        frozen = reference_model or (twin(loaded.model) if sharded else copy.deepcopy(loaded.model))
        frozen.requires_grad_(False).eval()
        own = frozen if sharded else frozen.to(accelerator.device)
        reference = Policy(own, config.rollout.temperature, config.model.kernels)
    if config.model.freeze_vision:
        freeze_vision(loaded.model)
    to_prompt = accelerator.autocast()(loaded.training_prompt)  # features are computed as in the policy's own passes
    policy = Policy(loaded.model, config.rollout.temperature, config.model.kernels).train()
    policy.wrapped = ranks.size > 1 or not config.update.spare_memory
    if sharded:
        for whole in (policy, reference):
            if isinstance(whole, Policy):
                shard(whole, accelerator.device)
    names, optimizer = make_optimizer(policy, config.update)
    queue = restore(checkpoint, optimizer, names, config.rollout.lag)
    prepared, optimizer = prepare(accelerator, policy, optimizer, sharded)
    if has_reference and adapted:
        reference = BasePolicy(prepared, policy.model)

    def save(step: int) -> None:
        gathered = gather_state(policy.model, optimizer, ranks.is_first) if sharded else None
        talker, keep = loaded.processor or loaded.tokenizer, config.run.keep_checkpoints
        with ranks.phase():
            if ranks.is_first:
                folder.check_still_here()
                waiting = queue.waiting
                save_checkpoint(
                    folder.checkpoints, step, policy.model, talker, optimizer, names, keep, gathered, waiting
                )

    def release_sampler() -> None:
        if config.update.spare_memory:
            release_weights(sampler, policy.model)

    return Stages(
        problems=problems.source,
        to_prompt=to_prompt,
        sampler=sampler,
        rubric=rubric,
        updater=Updater(prepared, optimizer, accelerator, config, reference, ranks),
        held_out=make_held_out(config, problems, to_prompt, rubric, prepared, folder),
        refresh_sampler=lambda: sampler.load_weights(policy.model),
        save=save,
        queue=queue,
        release_sampler=release_sampler,
        first_rollouts=handed_rollouts(config, folder, ranks),
        ranks=ranks,
    )
