"""How accelerate and the machine's cores are set up for one process or several.

Decided here: accelerate wraps the policy for DDP and for mixed precision; a policy that is sharded already gets the latter only.
DDP broadcasts no buffers (a rotary table is the same everywhere, and a forward pass without gradients must not wait for the
others) and looks for weights without a gradient only where a trained vision tower has none: where a process's last rows have no
image.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

from luspo_cli.errors import UsageError
from luspo_cli.grading.grader import MOST_WORKERS
from luspo_cli.machine import MOST_PER_CORE
from luspo_cli.processes.ranks import Ranks

logger = logging.getLogger(__name__)

FOREIGN = {
    "ACCELERATE_USE_FSDP": "leave out its FSDP options and set model.sharding = full",
    "ACCELERATE_USE_DEEPSPEED": "leave out its DeepSpeed options; model.sharding = full shares out weights and moments",
    "ACCELERATE_USE_MEGATRON_LM": "leave out its Megatron options",
}
"""What accelerate's own configuration may ask for and the engine would pass over in silence."""


def make_accelerator(low_precision: bool, *, idle_tower: bool, sharded: bool) -> Any:
    """The accelerator of this process; UsageError where its launcher was told to wrap the model in another way.

    `idle_tower`: a vision tower is trained, and rows without an image do not reach it.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.utils import AutocastKwargs, DistributedDataParallelKwargs

    refuse_foreign_wrapping()
    handlers: list[Any] = [
        DistributedDataParallelKwargs(
            broadcast_buffers=False, find_unused_parameters=idle_tower, gradient_as_bucket_view=True
        )
    ]
    if sharded:
        # Autocast would keep the bfloat16 weights of all layers until the end of the pass; each is used once anyway.
        handlers.append(AutocastKwargs(cache_enabled=False))
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="bf16" if low_precision else "no",
        kwargs_handlers=handlers,
    )


def refuse_foreign_wrapping() -> None:
    """UsageError where accelerate's launcher was told to wrap the model in another way."""
    for name, advice in FOREIGN.items():
        if os.environ.get(name, "false").lower() == "true":
            raise UsageError(f"accelerate is set up with {name}, which luspo does not use: {advice}")


def prepare(accelerator: Any, policy: Any, optimizer: Any, sharded: bool) -> tuple[Any, Any]:
    """Policy and optimizer as accelerate wraps them: for one process or DDP, or around a sharded policy."""
    if sharded:
        return accelerator.prepare_model(policy, evaluation_mode=True), accelerator.prepare_optimizer(optimizer)
    with warnings.catch_warnings():
        # torch 2.13 renames the switch; earlier versions know no other name, and accelerate hands on this one.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        prepared, wrapped = accelerator.prepare(policy, optimizer)
    return prepared, wrapped


def set_threads(threads: int, ranks: Ranks) -> None:
    """As `run.threads` says; with 0, several processes share a machine's cores and one leaves the choice to torch."""
    import torch

    if threads or ranks.size > 1:
        torch.set_num_threads(threads or ranks.cores())


def rubric_workers(wanted: int, ranks: Ranks) -> int:
    """Worker processes that check answers: as `reward.workers` says, with no more than `MOST_PER_CORE` a core of this process.

    Where it is 0, with several processes of a run no more than this one's cores, since all of them check at the same time; for a
    run of one process 0, which leaves the number to the rubric.
    """
    most = MOST_PER_CORE * ranks.cores()
    if wanted > most:  # no refusal: a run that goes on with fewer cores than it began with cannot change the key
        logger.warning(
            f"reward.workers = {wanted} is more than {MOST_PER_CORE} for each of this process's {ranks.cores()} processor cores:"
            f" {most} check answers"
        )
    return min(wanted, most) or (0 if ranks.size == 1 else min(ranks.cores(), MOST_WORKERS))
