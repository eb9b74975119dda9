"""Checkpoints that appear whole or not at all, hold no pickle, and know when they are damaged.

A checkpoint is written under a hidden name, flushed, listed with sizes and sha256 in `checkpoint.json`, then renamed.
`model/` is a plain Hugging Face folder with float32 weights, `adapter/` of a LoRA run a peft folder: what resumes is what
anybody can load.
Random numbers need no saving: every draw of the engine is a function of seed, step and row.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from luspo_cli.errors import RunError, UsageError
from luspo_cli.files import PARTIAL, sync, write_json
from luspo_cli.training.optimizer import save_optimizer
from luspo_cli.training.policy_files import save_policy

MANIFEST = "checkpoint.json"
Gathered = tuple[Mapping[str, torch.Tensor], Mapping[int, Mapping[str, torch.Tensor]]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    step: int

    @property
    def trainer(self) -> Path:
        return self.path / "trainer"


def checkpoint_path(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:06d}"


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
    _remove_partial(checkpoints)
    try:
        (partial / "trainer").mkdir(parents=True)
        save_policy(partial, model, tokenizer, gathered[0] if gathered else None)
        save_optimizer(partial / "trainer", gathered[1] if gathered else optimizer.state_dict()["state"], names)
        write_json(partial / "trainer" / "state.json", {"step": step})
        files = {str(f.relative_to(partial)): _digest(f) for f in sorted(partial.rglob("*")) if f.is_file()}
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
        for old in _outdated(checkpoints, step, keep):
            shutil.rmtree(old.path)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise _cannot_write(checkpoints, step, error) from error
    return final


def find_checkpoints(checkpoints: Path) -> list[Checkpoint]:
    """Checkpoints by step, damaged ones too. Leftovers of an interrupted write have another name and are passed over."""
    named = [(path, path.name.removeprefix("step-")) for path in checkpoints.glob("step-*")]
    found = [Checkpoint(path, int(step)) for path, step in named if step.isdecimal() and path.is_dir()]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def damage(checkpoint: Checkpoint) -> str | None:
    """Say which file of a checkpoint is missing, cut short or altered; None where all is as written."""
    try:
        listed = json.loads((checkpoint.path / MANIFEST).read_bytes())["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in listed.items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is unreadable"
    for name, (size, checksum) in expected.items():
        file = checkpoint.path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if _digest(file)["sha256"] != checksum:
            return f"{name} differs from its checksum"
    return None


def newest_whole(checkpoints: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest undamaged checkpoint, and a sentence for each newer one that was passed over."""
    notes: list[str] = []
    found = find_checkpoints(checkpoints)
    for checkpoint in reversed(found):
        reason = damage(checkpoint)
        if reason is None:
            return checkpoint, notes
        notes.append(f"checkpoint {checkpoint.path} is damaged ({reason})")
    if found:
        raise UsageError(
            f"{notes[0]} and no other checkpoint is whole; start again with --if-exists replace, or restore the file"
        )
    return None, notes


def remove_leftovers(checkpoints: Path, step: int, keep: int) -> None:
    """Remove what a killed process was writing or deleting; the checkpoint of `step` is the one to go on from."""
    _remove_partial(checkpoints)
    for old in _outdated(checkpoints, step, keep):
        shutil.rmtree(old.path, ignore_errors=True)  # not now, then with the next checkpoint


def _remove_partial(checkpoints: Path) -> None:
    for leftover in checkpoints.glob(f".step-*{PARTIAL}"):
        shutil.rmtree(leftover, ignore_errors=True)


def _outdated(checkpoints: Path, step: int, keep: int) -> list[Checkpoint]:
    """All but the newest `keep` up to `step`; a later one is damaged, and must not push out a whole one."""
    return [found for found in find_checkpoints(checkpoints) if found.step <= step][:-keep]


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


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
