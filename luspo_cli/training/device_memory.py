"""A GPU that has too little memory is a fact that the user can mend, not a defect: one sentence instead of a traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from luspo_cli.errors import RunError

_TRIED = re.compile(r"Tried to allocate ([\d.]+ \w+)")


@contextmanager
def shortage_explained() -> Iterator[None]:
    """Within this block torch's OutOfMemoryError becomes a RunError that names the keys to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        tried = _TRIED.search(str(error))
        raise RunError(
            f"the GPU's memory is used up{f' (tried to allocate {tried.group(1)})' if tried else ''}: lower"
            " update.tokens_per_micro_batch, rollout.max_rows or rollout.vllm.memory_share, or set"
            " model.gradient_checkpointing = true, in a new run or in the run's config.json and then --resume --allow-changed;"
            " where another program held the memory, --resume is enough"
        ) from error
