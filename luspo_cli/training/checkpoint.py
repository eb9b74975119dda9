"""Checkpoints that appear whole or not at all, hold no pickle, and know when they are damaged.

A checkpoint is written under a hidden name, flushed, listed with sizes and sha256 in `checkpoint.json`, then renamed. What
resumes is what anybody can load (luspo_cli/runs/checkpoints.py).
Random numbers need no saving: every draw of the engine is a function of seed, step and row.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from luspo_cli.errors import RunError
from luspo_cli.files import PARTIAL, sync, write_json
from luspo_cli.policy.adapters import has_adapters
from luspo_cli.policy.lora import save_adapter
from luspo_cli.runs.checkpoints import (
    ADAPTER,
    MANIFEST,
    MODEL,
    checkpoint_path,
    digest,
    find_checkpoints,
    outdated,
    remove_partial,
)
from luspo_cli.training.optimizer import save_optimizer

Gathered = tuple[Mapping[str, torch.Tensor], Mapping[int, Mapping[str, torch.Tensor]]]


def save_checkpoint(
    checkpoints: Path,
    step: int,
    model: Any,
    tokenizer: Any,
    optimizer: torch.optim.Optimizer,
    names: list[str],
    keep: int,
    gathered: Gathered | None = None,
) -> Path:
    """Write the checkpoint of `step`, then remove all but the newest `keep`. RunError on a full disk.

    `gathered`: the whole weights and the whole optimizer state, where `model` and `optimizer` hold this process's share of them.
    """
    final = checkpoint_path(checkpoints, step)
    partial = checkpoints / f".{final.name}{PARTIAL}"
    remove_partial(checkpoints)
    try:
        (partial / "trainer").mkdir(parents=True)
        save_policy(partial, model, tokenizer, gathered[0] if gathered else None)
        save_optimizer(partial / "trainer", gathered[1] if gathered else optimizer.state_dict()["state"], names)
        write_json(partial / "trainer" / "state.json", {"step": step})
        files = {str(f.relative_to(partial)): digest(f) for f in sorted(partial.rglob("*")) if f.is_file()}
        write_json(partial / MANIFEST, {"step": step, "files": files})
        _flush(partial)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        # The tokenizer's writer raises a bare Exception that ends in "(os error 28)".
        if isinstance(error, OSError | SafetensorError | RunError) or "(os error " in str(error):
            raise _cannot_write(checkpoints, step, error) from error
        raise
    try:
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        sync(checkpoints)  # the new name is on disk before an old checkpoint goes
        for old in outdated(checkpoints, step, keep):
            shutil.rmtree(old.path)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise _cannot_write(checkpoints, step, error) from error
    return final


def save_policy(checkpoint: Path, model: Any, tokenizer: Any, state: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write `adapter/` where `model` has adapters, else `model/`; with the tokenizer or processor.

    `state`: the weights of a model of which this process holds a share only.
    """
    if has_adapters(model):
        folder = checkpoint / ADAPTER
        folder.mkdir()
        save_adapter(model, folder)
    else:
        folder = checkpoint / MODEL
        given = {} if state is None else {"state_dict": state}
        model.save_pretrained(folder, safe_serialization=True, **given)
    tokenizer.save_pretrained(folder)


def _flush(folder: Path) -> None:
    """Bring every file and folder to the disk, so that the rename that follows names something complete."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def _cannot_write(checkpoints: Path, step: int, error: BaseException) -> RunError:
    earlier = ", earlier checkpoints are whole" if find_checkpoints(checkpoints) else ""
    return RunError(
        f"cannot write the checkpoint of step {step} in {checkpoints}: {_reason(error)};"
        f" nothing half-written was left{earlier}; free some space, then go on with --resume"
    )


def _reason(error: BaseException) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error).splitlines()[0]
