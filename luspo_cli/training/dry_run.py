"""The dry run: what a training would do, need and miss, without touching anything; torch is imported for vLLM's device alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from luspo_cli.config.objective_text import describe
from luspo_cli.config.run import MADE, MADE_TERMS, TrainRun
from luspo_cli.policy.model_files import config_file, find_model, unread_revision
from luspo_cli.policy.model_shape import read_shape
from luspo_cli.rollout.samplers import (
    INSTALL_VLLM,
    choose_sampler,
    device_memory,
    folder_reads_images,
    vllm_is_installed,
)
from luspo_cli.training.memory import estimate_memory, trained_parameters

GIB = 2**30


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
    memory_gib: dict[str, float]
    """Estimated peak by part for one process; `update_peak` and `rollout_peak` are sums over parts in use together."""
    memory_notes: list[str]
    """What the estimate could not know."""
    work: dict[str, float]
    sampler: dict[str, str]
    """`name`, and the `reason` why it is this one."""
    missing: list[str]


def make_plan(config: TrainRun, processes: int = 1) -> Plan:
    """Describe the run that `config` would be in so many processes."""
    file = None if config.model.path == MADE else config_file(config.model.path, config.model.revision)
    shape = read_shape(file) if file else config.model.shape
    rollout, update = config.rollout, config.update
    rows = rollout.problems * rollout.group_size
    sampler = choose_sampler(
        rollout.sampler, reads_images=folder_reads_images(str(file.parent) if file else config.model.path)
    )
    device_bytes = device_memory() if sampler.name == "vllm" else None
    memory = estimate_memory(config, shape, processes, sampler.name, device_bytes)
    return Plan(
        configuration=config.model_dump(mode="json"),
        objective=asdict(describe(config.objective)),
        parameters=shape.parameters(),
        trained=trained_parameters(config, shape),
        shape_from="config.json" if file else "model.shape",
        memory_gib={name: round(size / GIB, 2) for name, size in memory.items()},
        memory_notes=_notes(config, file is None, sampler.name == "vllm" and device_bytes is None),
        work={
            "steps": config.run.steps,
            "rollouts_per_step": rows,
            "optimizer_steps": config.run.steps * update.mini_batches,
            "rollouts_per_optimizer_step": rows / update.mini_batches,
            "response_tokens_at_most": config.run.steps
            * rows
            * rollout.max_response_tokens
            * (rollout.max_sampling_rounds if rollout.dynamic_sampling else 1),
        },
        sampler={"name": sampler.name, "reason": sampler.reason},
        missing=missing_inputs(config) + [reason for reason in [config.correction_refused(sampler.name)] if reason],
    )


def _notes(config: TrainRun, shape_unknown: bool, device_unknown: bool) -> list[str]:
    found = []
    if shape_unknown and config.model.path != MADE:
        found.append(
            f"the shape is that of [model.shape]: the config.json of {config.model.path} is not on this machine"
        )
    if device_unknown:
        share = f"{config.rollout.vllm.memory_share:.0%} of the memory (rollout.vllm.memory_share)"
        found.append(f"vllm is not counted, since no CUDA device is here: on one it takes {share}")
    return found


def missing_inputs(config: TrainRun) -> list[str]:
    """One sentence for every file or model that the run needs and this machine does not have, or that makes no sense."""
    found: list[str] = []
    if config.model.path != MADE:
        reason = find_model(config.model.path, config.model.revision)
        if reason:
            found.append(reason)
    if unread := unread_revision(config.model.path, config.model.revision):
        found.append(unread)
    if config.rollout.sampler == "vllm" and not vllm_is_installed():
        found.append(f"rollout.sampler = 'vllm' needs vllm, which is not installed: {INSTALL_VLLM}")
    for package, extra, wanted_by in (
        ("peft", "lora", "model.lora" if config.model.lora.rank else ""),
        ("bitsandbytes", "adamw-8bit", "update.optimizer" if config.update.optimizer == "adamw-8bit" else ""),
    ):
        if wanted_by and find_spec(package) is None:
            found.append(f"{wanted_by} needs {package}: pip install 'luspo[{extra}]'")
    wanted = {"data.train": (config.data.train, "train")}
    if config.evaluation.every:
        wanted["data.held_out"] = (config.data.held_out, "test")
    for key, (path, split) in wanted.items():
        if path == MADE_TERMS:
            continue
        if not path:
            found.append(f"{key} is empty: set it to a folder from luspo prepare-data")
        elif not Path(path).exists():
            found.append(f"{key}: {path} does not exist; make it with luspo prepare-data")
        elif Path(path).is_dir() and not (Path(path) / f"{split}.parquet").exists():
            found.append(f"{key}: {path} has no {split}.parquet; make it with luspo prepare-data")
    return found
