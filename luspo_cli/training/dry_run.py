"""The dry run: what a training would do, need and miss, without touching anything.

A model on this machine is read as the training would read it, weights aside; torch is imported for that and for vLLM's device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from luspo_cli.config.data import DataConfig
from luspo_cli.config.model import ModelConfig, ShapeConfig
from luspo_cli.config.objective_text import describe
from luspo_cli.config.rollout import TemplateValue
from luspo_cli.config.run import MADE, TrainRun
from luspo_cli.data.overlap import held_out_warning
from luspo_cli.errors import UsageError
from luspo_cli.policy.model_files import (
    base_of,
    find_model,
    is_adapter,
    liger_missing,
    of_base,
    slow_passes,
    unmeasured,
    unread_revision,
)
from luspo_cli.rollout.samplers import (
    INSTALL_VLLM,
    device_memory,
    uneven_servers,
    vllm_is_installed,
)
from luspo_cli.runs.checkpoints import fork_checkpoint
from luspo_cli.runs.folder import IfExists, RunFolder
from luspo_cli.runs.tracking import writers_refused
from luspo_cli.training.fit import GIB, crowded, does_not_fit, fitted_rows, model_of, room_of, rows_note
from luspo_cli.training.memory import (
    estimate_memory,
    largest_image_tokens,
    offload_refused,
    tower_moves,
    trained_parameters,
)
from luspo_cli.training.problems import own_objective, own_rewards, readable_problems, refuse_other_engine


@dataclass(frozen=True, slots=True)
class Plan:
    """What `luspo train --dry-run` says."""

    configuration: dict[str, Any]
    objective: dict[str, Any]
    parameters: int
    trained: int
    """Of these, or of the adapters beside them: what the optimizer moves."""
    shape_from: str
    """Whose shape is counted with: the model's `config.json`, or `model.shape` where that is not on this machine."""
    processes: int
    """Of the run; the memory is that of one of them."""
    memory_gib: dict[str, float]
    """Estimated peak by part for one process; `update_peak` and `rollout_peak` are sums over parts in use together."""
    memory_notes: list[str]
    """What the estimate could not know."""
    images: dict[str, Any]
    """Of a vision model, else empty: `parameters` of its tower, whether it is `trained`, `tokens` of the largest image."""
    work: dict[str, float]
    rewards: list[dict[str, Any]]
    """Own reward functions: `name`, `weight`, `function`, `signature`, `called` once a response or a group, `sha256`."""
    sampler: dict[str, str]
    """`name`, and the `reason` why it is this one."""
    missing: list[str]
    warnings: list[str]
    """What the run would warn about before its first step."""
    about: list[str]
    """What the preset's file says of its model, data, licences and commands, line by line."""


def make_plan(
    config: TrainRun,
    processes: int = 1,
    run: Path | None = None,
    if_exists: IfExists = "refuse",
    about: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> Plan:
    """Describe the run that `config` would be in so many processes, in the folder `run`; `about` and `warnings` are handed on."""
    refuse_other_engine(config)
    file, shape, sampler = model_of(config)
    rollout, update = config.rollout, config.update
    rows = rollout.problems * rollout.group_size
    device_bytes = device_memory() if sampler.name == "vllm" else None
    room = room_of(processes)
    fitted = fitted_rows(config, shape, processes, sampler.name, room)
    memory = estimate_memory(fitted, shape, processes, sampler.name, device_bytes)
    too_many = crowded(config, processes)
    too_large, tight = does_not_fit(config, shape, processes, sampler.name, room)
    unreadable, overlap = _data(config)
    rewards, unusable = own_rewards(config)
    refused, dependent = own_objective(config)
    slow = slow_passes(config.model)
    missing = [
        *missing_inputs(config),
        *unreadable,
        unusable,
        refused,
        config.correction_refused(sampler.name, never_drawn=shape.vision.depth > 0),
        config.graph_refused(sampler.name),
        config.routing_refused(sampler.name, has_experts=shape.experts.number > 0),
        too_many or too_large,
        uneven_servers(config.rollout.vllm.servers, processes) if sampler.name == "vllm-server" else None,
        writers_refused(config.run.track),
        _taken(config, run, if_exists) if run else None,
    ]
    return Plan(
        configuration=config.model_dump(mode="json"),
        objective=asdict(describe(config.objective)),
        parameters=shape.parameters(),
        trained=trained_parameters(config, shape),
        shape_from="config.json" if file else "model.shape",
        processes=processes,
        memory_gib={name: round(size / GIB, 2) for name, size in memory.items()},
        memory_notes=[
            *_notes(config, processes, file is None, sampler.name == "vllm" and device_bytes is None),
            *rows_note(config, fitted.rollout.max_rows),
        ],
        images=_images(config, shape),
        work={
            "steps": config.run.steps,
            "rollouts_per_step": rows,
            "optimizer_steps": (config.run.steps - rollout.lag) * update.mini_batches,
            "rollouts_per_optimizer_step": rows / update.mini_batches,
            "response_tokens_at_most": config.run.steps
            * rows
            * rollout.max_response_tokens
            * (rollout.max_sampling_rounds if rollout.dynamic_sampling else 1),
        },
        rewards=rewards,
        sampler={"name": sampler.name, "reason": sampler.reason},
        missing=[reason for reason in missing if reason],
        warnings=[*warnings, *(said for said in (dependent, overlap, file and unmeasured(file), slow, tight) if said)],
        about=list(about),
    )


def _images(config: TrainRun, shape: ShapeConfig) -> dict[str, Any]:
    if not shape.vision.depth:
        return {}
    return {
        "parameters": shape.vision.parameters(shape.width),
        "trained": tower_moves(config, shape),
        "tokens": largest_image_tokens(config, shape),
    }


def _notes(config: TrainRun, processes: int, shape_unknown: bool, device_unknown: bool) -> list[str]:
    found, path = [], (base_of(config.model) or config.model).path
    if shape_unknown and path != MADE:
        found.append(f"the shape is that of [model.shape]: the config.json of {path} is not on this machine")
    if config.model.sharding == "full" and processes == 1:
        found.append("one process has nothing to share out (model.sharding = full): give --processes N as for the run")
    if device_unknown:
        share = f"{config.rollout.vllm.memory_share:.0%} of the memory (rollout.vllm.memory_share)"
        found.append(f"vllm is not counted, since no CUDA device is here: on one it takes {share}")
    return found


def missing_inputs(config: TrainRun) -> list[str]:
    """One sentence for every model or package that the run needs and this machine does not have, or that makes no sense."""
    found: list[str] = []
    if config.fork.checkpoint and (reason := _unfit_parent(config)):
        found.append(reason)
    if config.model.path != MADE and (not config.fork.checkpoint or config.model.lora.rank):
        reason = unfit_model(config.model, config.rollout.chat_template, config.data)
        if reason:
            found.append(reason)
    if unread := unread_revision(config.model.path, config.model.revision):
        found.append(unread)
    if config.rollout.sampler == "vllm" and not vllm_is_installed():
        found.append(f"rollout.sampler = 'vllm' needs vllm, which is not installed: {INSTALL_VLLM}")
    adapted = (
        "an adapter as model.path" if is_adapter(config.model.path) else "model.lora" * bool(config.model.lora.rank)
    )
    for package, extra, wanted_by in (
        ("peft", "lora", adapted),
        ("bitsandbytes", "adamw-8bit", "update.optimizer" if config.update.optimizer == "adamw-8bit" else ""),
    ):
        if wanted_by and find_spec(package) is None:
            found.append(f"{wanted_by} needs {package}: pip install 'luspo[{extra}]'")
    found += filter(
        None, [offload_refused(config.update), liger_missing() if config.model.kernels.head == "liger" else None]
    )
    return found


def _unfit_parent(config: TrainRun) -> str | None:
    """Why the checkpoint that a fork begins at would be refused."""
    try:
        fork_checkpoint(config.fork)
    except UsageError as error:
        return str(error)
    return None


def _taken(config: TrainRun, run: Path, if_exists: IfExists) -> str | None:
    """Why the run folder would be refused."""
    try:
        RunFolder(run).check(config.model_dump(mode="json"), if_exists)
    except UsageError as error:
        return str(error)
    return None


def _data(config: TrainRun) -> tuple[list[str], str | None]:
    """Why the run could not read its problems, one sentence a key, and what it would warn about."""
    training, held_out, unreadable = readable_problems(config)
    if unreadable:
        return unreadable, None
    refused = config.lag_refused(has_images=any(problem.images for problem in training))
    return [refused] if refused else [], held_out_warning(training, held_out, config.data.train, config.data.held_out)


def unfit_model(
    config: ModelConfig, template_arguments: Mapping[str, TemplateValue], data: DataConfig | None = None
) -> str | None:
    """Why loading would refuse this model, as far as files on this machine tell; None otherwise."""
    folder = Path(config.path).expanduser()
    base = None
    try:
        base = base_of(config)
        model = base or config
        if reason := find_model(model.path, model.revision):
            raise UsageError(reason)
        from luspo_cli.policy.reading import check_files

        check_files(model, template_arguments, (not base and data) or DataConfig())
    except UsageError as error:
        return of_base(folder, str(error)) if base else str(error)
    if base and find_spec("peft"):
        from luspo_cli.policy.lora import adapter_settings

        try:
            adapter_settings(folder)
        except UsageError as error:
            return str(error)
    return None
