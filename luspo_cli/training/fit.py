"""Whether a training fits into its device, how many rows it samples at once there, and the smallest change that makes it fit.

All of it follows from the estimate of `training/memory.py`. A run is refused where it would not fit even if the estimate were
15 % too large, which is as far as it was seen to be off (docs/performance.md); what may just fit gets a warning.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from luspo_cli.config.layers import merge, nested
from luspo_cli.config.model import ShapeConfig
from luspo_cli.config.run import MADE, TrainRun
from luspo_cli.errors import UsageError
from luspo_cli.machine import MOST_PER_CORE, has_cuda, memory_bytes, usable_cores
from luspo_cli.policy.model_files import base_of, config_file
from luspo_cli.policy.model_shape import read_shape
from luspo_cli.processes.place import read_place
from luspo_cli.rollout.samplers import ChosenSampler, SamplerName, choose_sampler, device_memory
from luspo_cli.training.memory import estimate_memory

CHOICE = "LUSPO_FIT"
"""Environment variable: "off" starts a run that the estimate says does not fit."""
TOO_LARGE = 0.85
"""Of the estimate, what a run needs at the least."""
FOR_ROWS = 0.9
"""Of the memory that sampling has, what rows in flight may take."""
GIB = 2**30


def model_of(config: TrainRun) -> tuple[Path | None, ShapeConfig, ChosenSampler]:
    """The model's config.json where it is on disk, its shape, and the sampler that will run."""
    model = base_of(config.model) or config.model
    file = None if model.path == MADE else config_file(model.path, model.revision)
    shape = read_shape(file) if file else config.model.shape
    return file, shape, choose_sampler(config.rollout.sampler)


def room_of(processes: int) -> float:
    """Bytes that one of so many processes on this machine has: those of its GPU, or its share of the machine's memory."""
    device = device_memory()
    return memory_bytes() / processes if device is None else device


def rows_in_flight(config: TrainRun, shape: ShapeConfig, processes: int, sampler: SamplerName, room: float) -> int:
    """Rows that are sampled at once: `rollout.max_rows`, or as many whole groups, one at the least, as the memory holds.

    vLLM sees to its own cache: there it is `rollout.max_rows`.
    """
    rollout = config.rollout
    if sampler != "in-process":
        return rollout.max_rows
    parts = estimate_memory(config, shape, processes, sampler)
    asked = min(rollout.max_rows, -(-rollout.problems // processes) * rollout.group_size)
    of_rows = parts["key_value_cache"] + 8 * shape.vocabulary * asked
    fitting = int(FOR_ROWS * (room - (parts["rollout_peak"] - of_rows)) / (of_rows / asked))
    if fitting >= asked:
        return rollout.max_rows
    return max(1, fitting // rollout.group_size) * rollout.group_size


def fitted_rows(config: TrainRun, shape: ShapeConfig, processes: int, sampler: SamplerName, room: float) -> TrainRun:
    """The configuration with the rows that are sampled at once in place of `rollout.max_rows`."""
    rows = rows_in_flight(config, shape, processes, sampler, room)
    return config.model_copy(update={"rollout": config.rollout.model_copy(update={"max_rows": rows})})


def does_not_fit(
    config: TrainRun, shape: ShapeConfig, processes: int, sampler: SamplerName, room: float
) -> tuple[str | None, str | None]:
    """Why the run cannot fit into `room` bytes a process, and why it may not: sentences that end in the smallest change."""
    update, rollout = _need(config, shape, processes, sampler, room)
    most = max(update, rollout)
    if most <= room:
        return None, None
    sentence = (
        f"the update takes up to {update / GIB:.1f} GiB and sampling {rollout / GIB:.1f} GiB (the estimate of --dry-run), and"
        f" {'this GPU' if has_cuda() else 'this machine'} has {room / GIB:.1f} GiB{' for each process' * (processes > 1)}:"
        f" {_smallest_change(config, shape, processes, sampler, room)}"
    )
    return (sentence, None) if TOO_LARGE * most > room else (None, sentence)


def rows_here(config: TrainRun) -> int:
    """`rows_in_flight` of this process; `rollout.max_rows` where the model's shape cannot be read."""
    processes, on_this_machine = _processes()
    try:
        _, shape, sampler = model_of(config)
    except UsageError:
        return config.rollout.max_rows
    return rows_in_flight(config, shape, processes, sampler.name, room_of(on_this_machine))


def refused_by_memory(config: TrainRun, copies: int = 1) -> str | None:
    """Why `luspo train` does not begin this run in so many processes; None where it does, and where the environment says so.

    With one copy it is this process, which a launcher may have started as one of several.
    """
    if os.environ.get(CHOICE) == "off":
        return None
    processes, on_this_machine = (copies, copies) if copies > 1 else _processes()
    try:
        _, shape, sampler = model_of(config)
    except UsageError:  # the run says what is wrong with its model
        return None
    reason, _ = does_not_fit(config, shape, processes, sampler.name, room_of(on_this_machine))
    return reason and f"{reason}; {CHOICE}=off in the environment starts it all the same"


def crowded(config: TrainRun, copies: int, *, of_one_run: bool = True) -> str | None:
    """Say why this machine cannot carry so many processes that train; None where it can, and for one.

    `of_one_run`: whether they share the work of one run or each train a run of their own. On GPUs a process for each is all
    there can be, and their memory is not the machine's.
    """
    most, limit = (
        MOST_PER_CORE * usable_cores(),
        f"{MOST_PER_CORE} for each of this machine's {usable_cores()} processor cores",
    )
    if copies > 1 and copies <= most and not has_cuda():
        try:
            _, shape, sampler = model_of(config)
        except UsageError:  # the run says what is wrong with its model
            return None
        sharing, whole = copies if of_one_run else 1, memory_bytes()
        memory = estimate_memory(
            fitted_rows(config, shape, sharing, sampler.name, whole / copies), shape, sharing, sampler.name
        )
        each = max(memory["update_peak"], memory["rollout_peak"])
        most = max(1, int(whole / each))
        size = f"{each / GIB:.1f} GiB each (the estimate of --dry-run)"
        limit = f"fit into this machine's {whole / GIB:.1f} GiB of memory at {size}"
        if copies > 1 and not int(whole / each):
            return f"{copies} processes are more than {limit}, and one does not fit either: see --dry-run without --processes"
    fewer = f"--processes {most} or less" if most > 1 else "--processes 1"
    return f"{copies} processes are more than {limit}: give {fewer}" if copies > most else None


def rows_note(config: TrainRun, rows: int) -> list[str]:
    """That fewer rows are sampled at once than the configuration allows, as a sentence's beginning; nothing where all are."""
    if rows >= config.rollout.max_rows:
        return []
    return [f"{rows} rows are sampled at once, of rollout.max_rows = {config.rollout.max_rows}: what the memory holds"]


def _processes() -> tuple[int, int]:
    """Processes of the run that this one belongs to, on all machines and on this one."""
    place = read_place()
    processes = place.size if place else 1
    return processes, int(os.environ.get("LOCAL_WORLD_SIZE", processes)) if place else 1


def _need(
    config: TrainRun, shape: ShapeConfig, processes: int, sampler: SamplerName, room: float
) -> tuple[float, float]:
    """Peaks of update and sampling with the rows in flight that the room allows."""
    fitted = fitted_rows(config, shape, processes, sampler, room)
    parts = estimate_memory(fitted, shape, processes, sampler, device_memory() if sampler == "vllm" else None)
    return parts["update_peak"], parts["rollout_peak"]


def _smallest_change(config: TrainRun, shape: ShapeConfig, processes: int, sampler: SamplerName, room: float) -> str:
    """What to set so that the run fits, the end of a sentence."""
    for sets, count in _changes(config, processes):
        try:
            changed = _changed(config, sets)
        except ValueError:  # which does not go with another key of this run
            continue
        if max(_need(changed, shape, count, sampler, room)) <= room:
            given = [f"--processes {count}"] * (count != processes)
            given += [f"--set {key}={str(value).lower()}" for key, value in sets.items()]
            return f"give {' '.join(given)}"
    return (
        "neither micro-batches, checkpointing, small moments nor adapters make it fit; take a smaller model or shorter responses,"
        " or GPUs with --processes N --set model.sharding=full"
    )


def _changes(config: TrainRun, processes: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Settings and a number of processes: first what changes no result, then more devices, then what changes what is learned."""
    longest = config.data.max_prompt_tokens + config.rollout.max_response_tokens
    adapters = config.model.lora.rank > 0
    micro: dict[str, Any] = (
        {"update.tokens_per_micro_batch": longest} if config.update.tokens_per_micro_batch > longest else {}
    )
    recomputed: dict[str, Any] = {} if config.model.gradient_checkpointing else {"model.gradient_checkpointing": True}
    spared: dict[str, Any] = {} if config.update.spare_memory else {"update.spare_memory": True}
    without_effect: list[dict[str, Any]] = [
        {},
        micro,
        recomputed,
        spared,
        micro | recomputed,
        micro | recomputed | spared,
    ]
    yield from ((sets, processes) for sets in without_effect if sets)
    if (devices := _devices()) > processes:
        yield from ((sets | {"model.sharding": "full"}, devices) for sets in without_effect)
    if adapters:
        return
    small_state: list[dict[str, Any]] = [
        {"update.moments": "bfloat16"},
        {"update.optimizer": "adamw-8bit"},
        {"model.lora.rank": 16},
    ]
    for small in small_state:
        yield from ((sets | small, processes) for sets in without_effect)


def _devices() -> int:
    if not has_cuda():
        return 1
    import torch

    return int(torch.cuda.device_count())


def _changed(config: TrainRun, sets: Mapping[str, Any]) -> TrainRun:
    """The configuration with other values under dotted keys; ValueError where they do not go together."""
    values = config.model_dump(mode="json")
    for key, value in sets.items():
        merge(values, {}, nested(key, value), "the smallest change")
    return TrainRun.model_validate(values)
