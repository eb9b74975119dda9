"""Checkpoints that appear whole or not at all, hold no pickle, and know when they are damaged.

A checkpoint is written under a hidden name, flushed, listed with sizes and sha256 in `checkpoint.json`, then renamed. What
resumes is what anybody can load (luspo_cli/runs/checkpoints.py).
Random numbers need no saving: every draw of the engine is a function of seed, step and row.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from luspo_cli.files import replacing_folder, said_in_one_sentence, write_json
from luspo_cli.policy.lora import has_adapters, save_adapter
from luspo_cli.runs.checkpoints import (
    ADAPTER,
    MANIFEST,
    MODEL,
    Checkpoint,
    checkpoint_path,
    digest,
    find_checkpoints,
    outdated,
    remove_partial,
)
from luspo_cli.runs.waiting import WaitingBatch, read_waiting, store_waiting
from luspo_cli.training.lag import LagQueue
from luspo_cli.training.optimizer import load_optimizer, save_optimizer

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
    waiting: Sequence[WaitingBatch] = (),
) -> Path:
    """Write the checkpoint of `step`, then remove all but the newest `keep`. RunError on a full disk.

    `gathered`: the whole weights and the whole optimizer state, where `model` and `optimizer` hold this process's share of them.
    `waiting`: batches that are not trained yet.
    """
    final = checkpoint_path(checkpoints, step)
    remove_partial(checkpoints)
    earlier = ", earlier checkpoints are whole" if find_checkpoints(checkpoints) else ""
    what, left = f"the checkpoint of step {step} in {checkpoints}", f"nothing half-written was left{earlier}"
    with said_in_one_sentence(what, left=left):
        with replacing_folder(final) as folder:
            (folder / "trainer").mkdir()
            save_policy(folder, model, tokenizer, gathered[0] if gathered else None)
            save_optimizer(folder / "trainer", gathered[1] if gathered else optimizer.state_dict()["state"], names)
            store_waiting(folder / "trainer", waiting)
            write_json(folder / "trainer" / "state.json", {"step": step})
            files = {str(f.relative_to(folder)): digest(f) for f in sorted(folder.rglob("*")) if f.is_file()}
            write_json(folder / MANIFEST, {"step": step, "files": files})
        for old in outdated(checkpoints, step, keep):  # the new name is on the disk by now
            shutil.rmtree(old.path)
    return final


def restore(checkpoint: Checkpoint | None, optimizer: torch.optim.Optimizer, names: list[str], lag: int) -> LagQueue:
    """Give the optimizer the state of the checkpoint that the run begins at, if any; returns the batches that wait there."""
    if checkpoint is None:
        return LagQueue(lag)
    load_optimizer(checkpoint.trainer, optimizer, names)
    return LagQueue(lag, read_waiting(checkpoint.trainer) if lag else ())


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
